//! Reads a recording, entry by entry and never as a whole: plain or gzip, JSON Lines or an rrweb array, told apart by content.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read, Seek as _},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::entry::Entry;
use crate::{archive::read_table, cli::Failure};

/// The first bytes of every gzip file (RFC 1952 §2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The first bytes of every Parquet file.
const PARQUET_MAGIC: [u8; 4] = *b"PAR1";

/// The longest line taken. No action may be this large, so a longer one is another kind of file.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Extensions that do not belong to the name of an rrweb recording's session.
const EXTENSIONS: [&str; 3] = [".gz", ".json", ".rrweb"];

/// A recording to read.
pub(in crate::cli) struct Recording {
    /// What it is called when people are told of it.
    pub(in crate::cli) label: String,
    /// The session's name, where the recording itself has none.
    session: String,
    contents: Contents,
}

enum Contents {
    /// Lines or events, maybe compressed.
    Bytes(Box<dyn Read + Send>),
    /// A Parquet table.
    Table(File, ProgressBar),
}

impl Recording {
    /// Opens a file; `-` is the standard input. `progress` is told of every byte read.
    pub(super) fn open(path: &Path, progress: &ProgressBar) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            let label = "standard input".to_owned();
            let contents = Contents::Bytes(Box::new(progress.wrap_read(io::stdin())));
            return Ok(Self { session: label.clone(), label, contents });
        }
        let label = path.display().to_string();
        let mut file = File::open(path).map_err(|error| format!("cannot open {label}: {error}"))?;
        let metadata = file.metadata().map_err(|error| format!("cannot open {label}: {error}"))?;
        // A pipe has no length.
        progress.set_length(metadata.len());
        let session = session_name(&path.file_name().unwrap_or_default().to_string_lossy());
        let is_table = metadata.is_file() && begins_as_table(&mut file);
        let contents = if is_table {
            Contents::Table(file, progress.clone())
        } else {
            Contents::Bytes(Box::new(progress.wrap_read(file)))
        };
        Ok(Self { label, session, contents })
    }

    /// A recording that is a part of the program.
    pub(in crate::cli) fn embedded(label: &str, bytes: &'static [u8]) -> Self {
        Self { label: label.to_owned(), session: label.to_owned(), contents: Contents::Bytes(Box::new(bytes)) }
    }

    /// Reads all of it and gives each entry with its place to `take`. Fails where the recording or `take` does, which then
    /// has been given everything before.
    pub(in crate::cli) fn read(self, take: &mut Take<'_>) -> Result<(), Failure> {
        let Self { label, session, contents } = self;
        let bytes = match contents {
            Contents::Bytes(bytes) => bytes,
            Contents::Table(file, progress) => return read_rows(file, &label, &progress, take),
        };
        let unreadable = |error: io::Error| Failure::from(format!("cannot read {label}: {error}"));
        let mut reader = decompress(bytes).map_err(unreadable)?;
        let (lines_before, first) = skip_blank(&mut reader).map_err(unreadable)?;
        if first == Some(b'[') {
            read_rrweb(reader, &label, &session, take)
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

fn decompress(mut bytes: Box<dyn Read + Send>) -> io::Result<Box<dyn BufRead>> {
    let mut head = Vec::new();
    (&mut bytes).take(2).read_to_end(&mut head)?;
    let is_gzip = head == GZIP_MAGIC;
    let whole = Cursor::new(head).chain(bytes);
    Ok(if is_gzip { Box::new(BufReader::new(MultiGzDecoder::new(whole))) } else { Box::new(BufReader::new(whole)) })
}

/// Goes on to the first byte that is not blank. Returns it, and the number of lines before it.
fn skip_blank(reader: &mut dyn BufRead) -> io::Result<(u64, Option<u8>)> {
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

fn read_rrweb(reader: impl BufRead, label: &str, session: &str, take: &mut Take<'_>) -> Result<(), Failure> {
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
    session: &'a str,
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
        let mut first: Option<Box<RawValue>> = None;
        let mut number = 0;
        while let Some(event) = events.next_element::<Box<RawValue>>()? {
            number += 1;
            let place = Place::Event(self.label, number);
            let origin = first.get_or_insert_with(|| event.clone());
            let taken = match Entry::from_rrweb(self.session, origin.get(), &event) {
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
            contents: Contents::Bytes(Box::new(Cursor::new(bytes.to_vec()))),
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
