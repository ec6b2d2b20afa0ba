//! `reel play`: prints a session as JSON Lines that `reel import` reads back.

pub(super) mod playback;

use std::{
    fmt::Write as _,
    io::{self, BufWriter, ErrorKind, Write},
    time::Duration,
};

use clap::Args;

use self::playback::Playback;
use super::{Failure, client::Service, time};
use crate::{
    config::ClientArgs,
    proto::{Action, PlaySessionRequest, play_session_request::Begin},
};

/// Bytes of output that are written at once: a page is about ten times as much.
const BUFFER_BYTES: usize = 128 << 10;

/// What to play, and from where.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
OUTPUT: one action a line, in the order in which they happened, and nothing else on standard output:
  {\"session\":…,\"source\":…,\"seq\":…,\"timestamp\":Unix milliseconds,\"type\":…,\"target\":…,\"data\":…}
`data` is what was stored, byte for byte, and left out where it was empty. Where it has line breaks, or blanks around it,
it is printed as a text, under the name `data_text`.

`reel import` reads the output of a whole session back.")]
pub(super) struct PlayArgs {
    /// The session's id
    #[arg(value_name = "SESSION")]
    session: String,
    /// The service.
    #[command(flatten)]
    client: ClientArgs,
    /// Begin this long after the session's start
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "cursor")]
    from: Option<Duration>,
    /// Go on where an earlier playback of the session ended or broke off
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// Stop this long after the session's start
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    until: Option<Duration>,
    /// Only actions of this type; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only actions of this track; may be given several times
    #[arg(long = "source", value_name = "SOURCE")]
    sources: Vec<String>,
    /// 1 is real time, 20 is twenty times as fast, 0 is as fast as it goes
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    speed: f64,
    /// The longest pause, in the session's own time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_idle: Option<Duration>,
    /// Go on with what is recorded later, until the session ends
    #[arg(long)]
    follow: bool,
}

impl PlayArgs {
    fn request(&self) -> Result<PlaySessionRequest, Failure> {
        let duration = |option: &str, duration: Option<Duration>| {
            let proto = duration.map(prost_types::Duration::try_from).transpose();
            proto.map_err(|_| Failure::from(format!("{option} is too long")))
        };
        let begin = match (&self.cursor, duration("--from", self.from)?) {
            (Some(cursor), _) => Some(Begin::Cursor(cursor.clone())),
            (None, from) => from.map(Begin::From),
        };
        Ok(PlaySessionRequest {
            session_id: self.session.clone(),
            begin,
            until: duration("--until", self.until)?,
            types: self.types.clone(),
            sources: self.sources.clone(),
            speed: self.speed,
            max_idle: duration("--max-idle", self.max_idle)?,
            follow: self.follow,
        })
    }
}

/// Prints a session. A reader of standard output that goes away ends it without a fuss.
pub(super) async fn play(args: PlayArgs) -> Result<(), Failure> {
    let mut playback = Playback::new(&Service::new(&args.client)?, args.request()?);
    let mut output = BufWriter::with_capacity(BUFFER_BYTES, io::stdout());
    let mut line = String::new();
    loop {
        let page = playback.next_page(|trouble| eprintln!("reel: {trouble}")).await;
        let actions = match page {
            Ok(Some(actions)) => actions,
            Ok(None) => return Ok(()),
            Err(failure) => {
                if let Some(cursor) = playback.cursor() {
                    let session = &args.session;
                    eprintln!("reel: to go on after what was printed, with the other options as before:");
                    eprintln!("  reel play {session} --cursor {cursor}");
                }
                return Err(failure);
            }
        };
        let printed = actions.iter().try_for_each(|action| {
            line.clear();
            write_line(&mut line, &args.session, action);
            output.write_all(line.as_bytes())
        });
        match printed.and_then(|()| output.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(format!("cannot write: {error}").into()),
        }
    }
}

/// Appends an action as a line.
pub(super) fn write_line(line: &mut String, session: &str, action: &Action) {
    let millis = time::millis_text(action.timestamp.as_ref().map_or(0, time::from_proto));
    // Writing to a text cannot fail.
    let _ = write!(
        line,
        r#"{{"session":{},"source":{},"seq":{},"timestamp":{millis},"type":{},"target":{}"#,
        quoted(session),
        quoted(&action.source),
        action.seq,
        quoted(&action.r#type),
        quoted(&action.target),
    );
    let data = action.data.as_str();
    if data.contains(['\n', '\r']) || data.trim_ascii().len() < data.len() {
        // As a part of the line it would break the line, or lose what stands around it.
        let _ = write!(line, r#","data_text":{}"#, quoted(data));
    } else if !data.is_empty() {
        line.push_str(r#","data":"#);
        line.push_str(data);
    }
    line.push_str("}\n");
}

pub(super) fn quoted(text: &str) -> serde_json::Value {
    serde_json::Value::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::entry::Entry;

    #[test]
    fn a_line_is_read_back_as_the_same_action() {
        let mut action = Action {
            timestamp: Some(time::to_proto(1_793_491_200_000_250)),
            r#type: "click".to_owned(),
            target: "\"Share\"\n\u{1}ä".to_owned(),
            data: "{ \"x\" : 1.0,\r\n\"y\":\"\\n\" }".to_owned(),
            seq: 7,
            source: "web".to_owned(),
        };
        let mut line = String::new();
        write_line(&mut line, "id", &action);
        assert_eq!(
            line,
            "{\"session\":\"id\",\"source\":\"web\",\"seq\":7,\"timestamp\":1793491200000.25,\"type\":\"click\",\
             \"target\":\"\\\"Share\\\"\\n\\u0001ä\",\"data_text\":\"{ \\\"x\\\" : 1.0,\\r\\n\\\"y\\\":\\\"\\\\n\\\" }\"}\n"
        );
        let entry = Entry::from_line(line.as_bytes()).expect("an entry");
        assert_eq!((&*entry.session, &*entry.source, entry.seq), ("id", "web", Some(7)));
        let (_, read) = entry.action.expect("an action");
        assert!(Action { seq: 7, source: "web".to_owned(), ..read } == action);
        action.data = "{ \"x\" : 1.0 }".to_owned();
        line.clear();
        write_line(&mut line, "id", &action);
        assert!(line.ends_with(",\"data\":{ \"x\" : 1.0 }}\n"), "{line}");
    }

    #[test]
    fn data_is_left_out_where_there_is_none() {
        let mut line = String::new();
        write_line(&mut line, "id", &Action { seq: 1, ..Action::default() });
        assert_eq!(
            line,
            "{\"session\":\"id\",\"source\":\"\",\"seq\":1,\"timestamp\":0,\"type\":\"\",\"target\":\"\"}\n"
        );
    }
}
