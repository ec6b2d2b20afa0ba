//! Reads a recording, entry by entry and never as a whole: plain or gzip, JSON Lines or an rrweb array, told apart by content.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read, Seek as _, Write as _},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    entry::Entry,
    identity::{Identifying, Identity},
};
use crate::{archive::read_table, cli::Failure, model::SessionId};

/// The first bytes of every gzip file (RFC 1952 §2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The first bytes of every Parquet file.
const PARQUET_MAGIC: [u8; 4] = *b"PAR1";

/// The longest line taken. No action may be this large, so a longer one is another kind of file.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// The first byte that is not blank of an rrweb recording.
const RRWEB_BEGINS: u8 = b'[';

/// Extensions that do not belong to the name of an rrweb recording's session.
const EXTENSIONS: [&str; 3] = [".gz", ".json", ".rrweb"];

/// A recording to read.
pub(in crate::cli) struct Recording {
    /// What it is called when people are told of it.
    pub(in crate::cli) label: String,
    /// The session's name, where the recording itself has none.
    pub(super) session: String,
    /// The session's id, where the recording itself has neither id nor name.
    id: Option<SessionId>,
    contents: Contents,
}

enum Contents {
    /// Lines or events, maybe compressed, which can be read once.
    Stream(Box<dyn Read + Send>),
    /// The same, which can be read again.
    File(File, ProgressBar),
    /// A Parquet table.
    Table(File, ProgressBar),
}

impl Recording {
    /// Opens a file; `-` is the standard input. `progress` is told of every byte read.
    pub(super) fn open(path: &Path, progress: &ProgressBar) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            let label = "standard input".to_owned();
            let contents = Contents::Stream(Box::new(progress.wrap_read(io::stdin())));
            return Ok(Self { session: label.clone(), label, id: None, contents });
        }
        let label = path.display().to_string();
        let mut file = File::open(path).map_err(|error| format!("cannot open {label}: {error}"))?;
        let metadata = file.metadata().map_err(|error| format!("cannot open {label}: {error}"))?;
        // A pipe has no length.
        progress.set_length(metadata.len());
        let session = session_name(&path.file_name().unwrap_or_default().to_string_lossy());
        let contents = if !metadata.is_file() {
            Contents::Stream(Box::new(progress.wrap_read(file)))
        } else if begins_as_table(&mut file) {
            Contents::Table(file, progress.clone())
        } else {
            Contents::File(file, progress.clone())
        };
        Ok(Self { label, session, id: None, contents })
    }

    /// A recording that is a part of the program.
    pub(in crate::cli) fn embedded(label: &str, bytes: &'static [u8]) -> Self {
        let contents = Contents::Stream(Box::new(bytes));
        Self { label: label.to_owned(), session: label.to_owned(), id: None, contents }
    }

    /// Reads an rrweb recording to its end and says what it is known by. None for other recordings. What can be read only once
    /// is kept in a temporary file, so that either can be read afterwards.
    pub(super) fn identify(self, progress: &ProgressBar) -> Result<(Self, Option<Identity>), Failure> {
        let Self { label, session, id, contents } = self;
        let unreadable = |error: io::Error| Failure::from(format!("cannot read {label}: {error}"));
        let (contents, identity) = match contents {
            Contents::Table(..) => (contents, None),
            Contents::File(mut file, bar) => {
                let identity = identify(bar.wrap_read(&file), &label)?;
                file.rewind().map_err(unreadable)?;
                bar.set_position(0);
                (Contents::File(file, bar), identity)
            }
            Contents::Stream(mut stream) => {
                let mut copy = tempfile::tempfile().map_err(|error| format!("no temporary file: {error}"))?;
                let identity = identify(Tee { from: &mut stream, copy: &mut copy }, &label)?;
                copy.rewind().map_err(unreadable)?;
                let contents = match identity {
                    Some(_) => Contents::File(copy, progress.clone()),
                    None => Contents::Stream(Box::new(copy.chain(stream))),
                };
                (contents, identity)
            }
        };
        Ok((Self { label, session, id, contents }, identity))
    }

    /// The same recording once more, as the session of this id. Only what was identified can be read again, one reading after
    /// the other.
    pub(super) fn again(&self, id: SessionId) -> Result<Self, Failure> {
        let unreadable = |error: io::Error| Failure::from(format!("cannot read {} again: {error}", self.label));
        let Contents::File(file, progress) = &self.contents else {
            return Err(format!("{} cannot be read again", self.label).into());
        };
        let mut file = file.try_clone().map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        progress.set_position(0);
        let contents = Contents::File(file, progress.clone());
        Ok(Self { label: self.label.clone(), session: self.session.clone(), id: Some(id), contents })
    }

    /// Reads all of it and gives each entry with its place to `take`. Fails where the recording or `take` does, which then
    /// has been given everything before.
    pub(in crate::cli) fn read(self, take: &mut Take<'_>) -> Result<(), Failure> {
        let Self { label, session, id, contents } = self;
        let bytes: Box<dyn Read> = match contents {
            Contents::Stream(bytes) => bytes,
            Contents::File(file, progress) => Box::new(progress.wrap_read(file)),
            Contents::Table(file, progress) => return read_rows(file, &label, &progress, take),
        };
        let unreadable = |error: io::Error| Failure::from(format!("cannot read {label}: {error}"));
        let mut reader = decompress(bytes).map_err(unreadable)?;
        let (lines_before, first) = skip_blank(&mut reader).map_err(unreadable)?;
        if first == Some(RRWEB_BEGINS) {
            read_rrweb(reader, &label, (&session, id), take)
        } else {
            read_lines(reader, &label, lines_before, take)
        }
    }
}

/// Takes an entry. An error is what is wrong with it, for people.
pub(in crate::cli) type Take<'a> = dyn FnMut(Entry<'_>, &Place<'_>) -> Result<(), Failure> + 'a;

/// Where in a recording something stands.
#[derive(Clone, Copy)]
pub(in crate::cli) enum Place<'a> {
    /// In this line of a file, from 1.
    Line(&'a str, u64),
    /// In this event of an rrweb array, from 1.
    Event(&'a str, u64),
    /// In this row of a table, from 1.
    Row(&'a str, u64),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(label, line) => write!(f, "{label}:{line}"),
            Self::Event(label, event) => write!(f, "{label}: event {event}"),
            Self::Row(label, row) => write!(f, "{label}: row {row}"),
        }
    }
}

/// The name of a file without the extensions that only say its format.
fn session_name(file: &str) -> String {
    let mut name = file;
    while let Some(shorter) = EXTENSIONS.iter().find_map(|extension| name.strip_suffix(extension)) {
        name = shorter;
    }
    if name.is_empty() { file.to_owned() } else { name.to_owned() }
}

/// Reads to the end if these are rrweb events, and else only so far as to see that they are not.
fn identify(bytes: impl Read, label: &str) -> Result<Option<Identity>, Failure> {
    let unreadable = |error: io::Error| Failure::from(format!("cannot read {label}: {error}"));
    let mut reader = decompress(bytes).map_err(unreadable)?;
    let (_, first) = skip_blank(&mut reader).map_err(unreadable)?;
    if first != Some(RRWEB_BEGINS) {
        return Ok(None);
    }
    let mut identifying = Identifying::new();
    read_rrweb(reader, label, ("", None), &mut |entry, _| {
        if let Some((micros, event)) = entry.action {
            identifying.take(&event.data, micros);
        }
        Ok(())
    })?;
    Ok(identifying.finish())
}

/// Reads, and keeps a copy of what was read.
struct Tee<'a> {
    from: &'a mut dyn Read,
    copy: &'a mut File,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.copy.write_all(buffer.get(..length).unwrap_or_default())?;
        Ok(length)
    }
}

fn decompress<'a>(mut bytes: impl Read + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let mut head = Vec::new();
    (&mut bytes).take(2).read_to_end(&mut head)?;
    let is_gzip = head == GZIP_MAGIC;
    let whole = Cursor::new(head).chain(bytes);
    Ok(if is_gzip { Box::new(BufReader::new(MultiGzDecoder::new(whole))) } else { Box::new(BufReader::new(whole)) })
}

/// Goes on to the first byte that is not blank. Returns it, and the number of lines before it.
fn skip_blank(reader: &mut impl BufRead) -> io::Result<(u64, Option<u8>)> {
    let mut lines = 0;
    loop {
        let Some(&byte) = reader.fill_buf()?.first() else { return Ok((lines, None)) };
        if !byte.is_ascii_whitespace() {
            return Ok((lines, Some(byte)));
        }
        lines += u64::from(byte == b'\n');
        reader.consume(1);
    }
}

fn read_lines(mut reader: impl BufRead, label: &str, lines_before: u64, take: &mut Take<'_>) -> Result<(), Failure> {
    let mut line = Vec::new();
    for number in lines_before + 1.. {
        let place = Place::Line(label, number);
        line.clear();
        let read = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        match read.map_err(|error| format!("{place}: cannot read: {error}"))? {
            0 => break,
            _ if line.ends_with(b"\n") || (line.len() as u64) < MAX_LINE_BYTES => {}
            _ => return Err(format!("{place}: longer than {} MiB", MAX_LINE_BYTES >> 20).into()),
        }
        let line = line.trim_ascii_end();
        if line.is_empty() {
            continue;
        }
        let entry = Entry::from_line(line).map_err(|fault| format!("{place}: {fault}"))?;
        take(entry, &place)?;
    }
    Ok(())
}

fn begins_as_table(file: &mut File) -> bool {
    let mut magic = [0; 4];
    let begins = file.read_exact(&mut magic).is_ok() && magic == PARQUET_MAGIC;
    file.rewind().is_ok() && begins
}

fn read_rows(file: File, label: &str, progress: &ProgressBar, take: &mut Take<'_>) -> Result<(), Failure> {
    let mut number = 0;
    let read = read_table(file, |row| {
        number += 1;
        let place = Place::Row(label, number);
        let entry = Entry::from_row(row).map_err(|fault| format!("{place}: {fault}"))?;
        take(entry, &place)
    });
    progress.set_position(progress.length().unwrap_or(0));
    read.map_err(|error| if number == 0 { format!("{label}: {error}").into() } else { error })
}

/// `session` is the name and id of the session.
fn read_rrweb(
    reader: impl BufRead,
    label: &str,
    session: (&str, Option<SessionId>),
    take: &mut Take<'_>,
) -> Result<(), Failure> {
    let mut failure = None;
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let events = RrwebEvents { label, session, take, failure: &mut failure };
    let read = events.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(format!("{label}: {error}").into()),
        (None, Ok(())) => Ok(()),
    }
}

/// Goes through the array, one event in memory at a time.
struct RrwebEvents<'a, 't> {
    label: &'a str,
    session: (&'a str, Option<SessionId>),
    take: &'a mut Take<'t>,
    /// Why `take` failed: serde's own errors carry no others.
    failure: &'a mut Option<Failure>,
}

impl<'de> DeserializeSeed<'de> for RrwebEvents<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for RrwebEvents<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rrweb events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<(), A::Error> {
        let (session, id) = self.session;
        let mut number = 0;
        while let Some(event) = events.next_element::<Box<RawValue>>()? {
            number += 1;
            let place = Place::Event(self.label, number);
            let taken = match Entry::from_rrweb(session, id, &event) {
                Ok(entry) => (self.take)(entry, &place),
                Err(fault) => Err(format!("{place}: {fault}").into()),
            };
            if let Err(failure) = taken {
                *self.failure = Some(failure);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn read(bytes: &[u8]) -> (Vec<String>, Option<String>) {
        let recording = Recording {
            label: "file".to_owned(),
            session: "name".to_owned(),
            id: None,
            contents: Contents::Stream(Box::new(Cursor::new(bytes.to_vec()))),
        };
        let mut seen = Vec::new();
        let outcome = recording.read(&mut |entry, place| {
            let (micros, action) = entry.action.expect("an action");
            seen.push(format!("{place} {} {micros} {}", entry.session, action.data));
            Ok(())
        });
        (seen, outcome.err().map(|failure| failure.to_string()))
    }

    const LINES: &str = "\n{\"session\":\"s\",\"timestamp\":1,\"type\":\"t\"}\r\n\n \t\n{\"session\":\"s\",\"timestamp\":2,\"type\":\"t\",\"data\":7}";

    #[test]
    fn lines_are_read_plain_or_compressed_and_blank_ones_left_out() {
        let expected = vec!["file:2 s 1000 ".to_owned(), "file:5 s 2000 7".to_owned()];
        assert_eq!(read(LINES.as_bytes()), (expected.clone(), None));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(LINES.as_bytes()).expect("in memory");
        assert_eq!(read(&gzip.finish().expect("in memory")), (expected, None));
    }

    #[test]
    fn an_rrweb_array_is_one_session_of_its_events() {
        let events = br#" [ {"type":4,"timestamp":1}, {"timestamp" : 2.5,"data":[1, 2]} ] "#;
        let expected = vec![
            r#"file: event 1 name 1000 {"type":4,"timestamp":1}"#.to_owned(),
            r#"file: event 2 name 2500 {"timestamp" : 2.5,"data":[1, 2]}"#.to_owned(),
        ];
        assert_eq!(read(events), (expected, None));
        assert_eq!(read(b"[]"), (vec![], None));
    }

    #[test]
    fn what_stands_before_a_fault_is_read() {
        let (seen, failure) = read(format!("{LINES}\nnonsense\n").as_bytes());
        assert_eq!((seen.len(), failure.as_deref()), (2, Some("file:6: expected ident (column 2)")));
        let (seen, failure) = read(br#"[{"timestamp":1},{"time":1}]"#);
        assert_eq!((seen.len(), failure.as_deref()), (1, Some("file: event 2: missing field `timestamp` (column 10)")));
        assert!(read(br#"[{"timestamp":1}"#).1.is_some());
        assert!(read(&GZIP_MAGIC).1.is_some());
        assert_eq!(read(b""), (vec![], None));
    }

    #[test]
    fn a_session_is_named_after_its_file() {
        for (file, name) in [("a.rrweb.json.gz", "a"), ("2026.11.22-visit.json", "2026.11.22-visit"), (".gz", ".gz")] {
            assert_eq!(session_name(file), name);
        }
    }
}
