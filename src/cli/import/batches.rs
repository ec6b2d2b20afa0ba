//! Turns entries into the messages of an upload: finds each entry's session and track, numbers it, and puts it into its
//! track's next batch.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use prost::Message as _;

use super::{
    entry::{About, Entry},
    identity::Minting,
    recording::Place,
};
use crate::{
    cli::{Failure, time},
    model::SessionId,
    proto::{Action, ActionBatch, SessionEnd, SessionStart, StreamActionsRequest, User, stream_actions_request::Event},
};

/// A batch is full when it has this many bytes, so that messages stay well under the 4 MiB that they may have.
const BATCH_BYTES: usize = 1 << 20;

/// When open batches have this many bytes together, all are sent: a recording may have any number of sessions.
const OPEN_BYTES: usize = 16 << 20;

/// How many actions may wait for those before them. Playback orders by time, so that seqs come out of order where clocks
/// went back.
const MAX_WAITING: usize = 100_000;

/// A session of a recording.
pub(in crate::cli) struct ImportedSession {
    /// Its id.
    pub(in crate::cli) id: SessionId,
    /// What the recording calls it.
    pub(in crate::cli) name: Arc<str>,
}

/// The sessions of a recording and their open batches.
pub(in crate::cli) struct Batches {
    max_actions: usize,
    by_name: HashMap<Arc<str>, usize>,
    sessions: Vec<Session>,
    /// Messages to send, in order. For whoever calls to take out.
    pub(in crate::cli) ready: VecDeque<StreamActionsRequest>,
    open_bytes: usize,
    waiting_count: usize,
}

struct Session {
    session: ImportedSession,
    /// Whether its name is more than its id.
    is_named: bool,
    /// Whether its start is to be sent before its next batch.
    starts: bool,
    user: Option<User>,
    about: Option<About>,
    last_micros: i64,
    tracks: Vec<Track>,
}

struct Track {
    source: String,
    /// The seq of the action that is put into the batch next.
    next_seq: i64,
    batch: Vec<Action>,
    batch_bytes: usize,
    /// Actions that came before their turn, each with where it stands.
    waiting: BTreeMap<i64, (Action, String)>,
}

impl Batches {
    /// Makes batches of at most this many actions.
    pub(in crate::cli) fn new(max_actions: usize) -> Self {
        Self {
            max_actions,
            by_name: HashMap::new(),
            sessions: Vec::new(),
            ready: VecDeque::new(),
            open_bytes: 0,
            waiting_count: 0,
        }
    }

    /// Takes an entry. Fails where its seq is not its track's next.
    pub(in crate::cli) fn take(&mut self, entry: Entry<'_>, place: &Place<'_>) -> Result<(), Failure> {
        let session_index = self.find(&entry, place)?;
        let session = &mut self.sessions[session_index];
        if session.user.is_none() && entry.user.is_some() {
            session.user = entry.user;
            session.starts = true;
        }
        if session.about.is_none() && entry.about.is_some() {
            session.about = entry.about;
            session.starts = true;
        }
        let Some((micros, action)) = entry.action else { return Ok(()) };
        session.last_micros = session.last_micros.max(micros);
        let track_index = session.find(&entry.source);
        let track = &mut session.tracks[track_index];
        let seq = entry.seq.unwrap_or(track.next_seq);
        if seq < track.next_seq || track.waiting.contains_key(&seq) {
            return Err(format!("{place}: seq {seq} of source {} was there already", track.source).into());
        }
        if seq > track.next_seq {
            track.waiting.insert(seq, (action, place.to_string()));
            self.waiting_count += 1;
            return if self.waiting_count > MAX_WAITING { self.check_waiting() } else { Ok(()) };
        }
        self.add(session_index, track_index, action);
        loop {
            let track = &mut self.sessions[session_index].tracks[track_index];
            let Some((action, _)) = track.waiting.remove(&track.next_seq) else { return Ok(()) };
            self.waiting_count -= 1;
            self.add(session_index, track_index, action);
        }
    }

    /// Sends what is in open batches.
    pub(in crate::cli) fn flush(&mut self) {
        for session in &mut self.sessions {
            for track in 0..session.tracks.len() {
                session.send(track, &mut self.ready);
            }
        }
        self.open_bytes = 0;
    }

    /// Takes the end of the recording: sends what is left, and ends all sessions if that is wanted. Fails where an action
    /// still waits for those before it.
    pub(in crate::cli) fn finish(&mut self, end_sessions: bool) -> Result<(), Failure> {
        self.flush();
        self.check_waiting()?;
        // Sessions without actions were not started by them.
        self.ready.extend(self.sessions.iter_mut().filter_map(Session::start));
        if end_sessions {
            self.ready.extend(self.sessions.iter().filter_map(Session::end));
        }
        Ok(())
    }

    /// The sessions, in the order of their first actions.
    pub(in crate::cli) fn into_sessions(self) -> Vec<ImportedSession> {
        self.sessions.into_iter().map(|session| session.session).collect()
    }

    /// Finds the entry's session, or makes it.
    fn find(&mut self, entry: &Entry<'_>, place: &Place<'_>) -> Result<usize, Failure> {
        if let Some(&index) = self.by_name.get(&*entry.session) {
            return Ok(index);
        }
        let name: Arc<str> = Arc::from(&*entry.session);
        let brought = name.parse::<SessionId>().ok();
        // What a file is called is no id, even where it looks like one.
        let brought = if entry.id.is_some() { None } else { brought };
        let id = match (entry.id.or(brought), &entry.action) {
            (Some(id), _) => id,
            (None, Some((micros, _))) => mint(entry, *micros),
            (None, None) => {
                return Err(format!("{place}: what is said of a session without an action must give its id").into());
            }
        };
        let session = ImportedSession { id, name: Arc::clone(&name) };
        self.by_name.insert(name, self.sessions.len());
        self.sessions.push(Session {
            session,
            is_named: brought.is_none(),
            starts: true,
            user: None,
            about: None,
            last_micros: 0,
            tracks: Vec::new(),
        });
        Ok(self.sessions.len() - 1)
    }

    /// Puts a track's next action into its batch.
    fn add(&mut self, session_index: usize, track_index: usize, action: Action) {
        let session = &mut self.sessions[session_index];
        let bytes = action.encoded_len();
        let track = &session.tracks[track_index];
        if track.batch_bytes + bytes > BATCH_BYTES {
            self.open_bytes -= track.batch_bytes;
            session.send(track_index, &mut self.ready);
        }
        let track = &mut session.tracks[track_index];
        track.next_seq += 1;
        track.batch.push(action);
        track.batch_bytes += bytes;
        self.open_bytes += bytes;
        if track.batch.len() >= self.max_actions {
            self.open_bytes -= track.batch_bytes;
            session.send(track_index, &mut self.ready);
        }
        if self.open_bytes > OPEN_BYTES {
            self.flush();
        }
    }

    fn check_waiting(&self) -> Result<(), Failure> {
        let mut tracks = self.sessions.iter().flat_map(|session| &session.tracks);
        let Some((track, (seq, (_, place)))) = tracks.find_map(|track| Some((track, track.waiting.first_key_value()?)))
        else {
            return Ok(());
        };
        let Track { source, next_seq, .. } = track;
        Err(format!("{place}: seq {seq} of source {source} where seq {next_seq} was to come").into())
    }
}

impl Session {
    fn find(&mut self, source: &str) -> usize {
        if let Some(index) = self.tracks.iter().position(|track| track.source == source) {
            return index;
        }
        self.tracks.push(Track {
            source: source.to_owned(),
            next_seq: 1,
            batch: Vec::new(),
            batch_bytes: 0,
            waiting: BTreeMap::new(),
        });
        self.tracks.len() - 1
    }

    /// Sends a track's batch, if it has any, after the session's start, if that is due.
    fn send(&mut self, track: usize, ready: &mut VecDeque<StreamActionsRequest>) {
        if self.tracks[track].batch.is_empty() {
            return;
        }
        ready.extend(self.start());
        let track = &mut self.tracks[track];
        let actions = std::mem::take(&mut track.batch);
        track.batch_bytes = 0;
        let first_seq = track.next_seq - i64::try_from(actions.len()).unwrap_or(0);
        let batch = ActionBatch { source: track.source.clone(), first_seq, actions };
        ready.push_back(self.message(Event::Batch(batch)));
    }

    /// Its start, if that is due.
    fn start(&mut self) -> Option<StreamActionsRequest> {
        if !std::mem::take(&mut self.starts) {
            return None;
        }
        let mut attributes = self.about.clone().unwrap_or_default().attributes;
        if self.is_named {
            attributes.entry("name".to_owned()).or_insert_with(|| self.session.name.to_string());
        }
        Some(self.message(Event::Start(SessionStart { user: self.user.clone(), start_time: None, attributes })))
    }

    /// Its end. None where the recording says that it goes on.
    fn end(&self) -> Option<StreamActionsRequest> {
        let last_seqs = self.tracks.iter().map(|track| (track.source.clone(), track.next_seq - 1)).collect();
        // A brought id may say a later start than all of the actions.
        let (end_micros, reason) = match &self.about {
            Some(about) => about.end.clone()?,
            None => (self.last_micros.max(self.session.id.started_at().timestamp_micros()), String::new()),
        };
        let end_time = Some(time::to_proto(end_micros));
        Some(self.message(Event::End(SessionEnd { end_time, reason, last_seqs })))
    }

    fn message(&self, event: Event) -> StreamActionsRequest {
        StreamActionsRequest { session_id: self.session.id.to_string(), event: Some(event) }
    }
}

/// Makes the id of an entry's session from what stays the same when the recording is imported again: its start, name and user.
fn mint(entry: &Entry<'_>, micros: i64) -> SessionId {
    let user = entry.user.as_ref().map_or("", |user| user.id.as_str());
    Minting::new("reel import").part(&entry.session).part(user).finish(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(batches: &mut Batches, lines: &[String]) -> Result<(), String> {
        for (number, line) in (1..).zip(lines) {
            let entry = Entry::from_line(line.as_bytes())?;
            batches.take(entry, &Place::Line("file", number)).map_err(|failure| failure.to_string())?;
        }
        Ok(())
    }

    fn line(session: &str, seq: &str, timestamp: u32) -> String {
        format!(r#"{{"session":"{session}"{seq},"timestamp":{timestamp},"type":"t"}}"#)
    }

    /// The messages in short: `start`, `end`, or the source, first seq and number of actions of a batch.
    fn sent(batches: &mut Batches) -> Vec<String> {
        let short = |message: StreamActionsRequest| match message.event {
            Some(Event::Start(start)) => {
                format!("start {}", start.user.map(|user| user.id).unwrap_or_default())
            }
            Some(Event::Batch(batch)) => format!("{} {}+{}", batch.source, batch.first_seq, batch.actions.len()),
            Some(Event::End(end)) => format!("end {:?}", end.last_seqs),
            None => String::new(),
        };
        batches.ready.drain(..).map(short).collect()
    }

    #[test]
    fn a_batch_is_full_at_its_limit_and_a_session_starts_before_its_first() {
        for (count, expected) in [
            (1, vec!["start ", "main 1+1", "end {\"main\": 1}"]),
            (3, vec!["start ", "main 1+3", "end {\"main\": 3}"]),
            (4, vec!["start ", "main 1+3", "main 4+1", "end {\"main\": 4}"]),
        ] {
            let mut batches = Batches::new(3);
            let lines: Vec<_> = (0..count).map(|time| line("s", "", time)).collect();
            assert_eq!(take(&mut batches, &lines), Ok(()));
            assert!(batches.finish(true).is_ok());
            assert_eq!(sent(&mut batches), expected);
        }
    }

    #[test]
    fn large_actions_make_small_batches() {
        let mut batches = Batches::new(500);
        let data = "x".repeat(BATCH_BYTES / 2);
        let large = format!(r#"{{"session":"s","timestamp":1,"type":"t","data":"{data}"}}"#);
        assert_eq!(take(&mut batches, &[large.clone(), large]), Ok(()));
        assert!(batches.finish(false).is_ok());
        assert_eq!(sent(&mut batches), ["start ", "main 1+1", "main 2+1"]);
    }

    #[test]
    fn sessions_may_be_interleaved_and_a_user_may_be_named_late() {
        let mut batches = Batches::new(2);
        let named = r#"{"session":"a","user":"ada","timestamp":5,"type":"t"}"#.to_owned();
        let lines = [line("a", "", 1), line("b", "", 2), line("a", "", 3), line("a", "", 4), line("b", "", 5), named];
        assert_eq!(take(&mut batches, &lines), Ok(()));
        assert!(batches.finish(false).is_ok());
        assert_eq!(sent(&mut batches), ["start ", "main 1+2", "start ", "main 1+2", "start ada", "main 3+2"]);
        assert_eq!(batches.into_sessions().iter().map(|session| &*session.name).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn seqs_may_come_out_of_order_but_not_twice_and_not_with_a_gap() {
        let numbered =
            |seqs: &[i64]| -> Vec<_> { seqs.iter().map(|seq| line("s", &format!(r#","seq":{seq}"#), 1)).collect() };
        let mut batches = Batches::new(9);
        assert_eq!(take(&mut batches, &numbered(&[3, 1, 2, 4])), Ok(()));
        assert!(batches.finish(false).is_ok());
        assert_eq!(sent(&mut batches), ["start ", "main 1+4"]);

        for twice in [[1, 1], [2, 2]] {
            let outcome = take(&mut Batches::new(9), &numbered(&twice));
            assert_eq!(outcome, Err(format!("file:2: seq {} of source main was there already", twice[0])));
        }

        let mut batches = Batches::new(9);
        assert_eq!(take(&mut batches, &numbered(&[1, 3])), Ok(()));
        let failure = batches.finish(true).err().map(|failure| failure.to_string());
        assert_eq!(failure.as_deref(), Some("file:2: seq 3 of source main where seq 2 was to come"));
        assert_eq!(sent(&mut batches), ["start ", "main 1+1"]);
    }

    #[test]
    fn ids_are_the_same_again_and_differ_by_name_user_and_start() {
        let id = |line: &str| {
            let entry = Entry::from_line(line.as_bytes()).expect("an entry");
            let mut batches = Batches::new(1);
            batches.take(entry, &Place::Line("file", 1)).expect("taken");
            batches.into_sessions()[0].id
        };
        let first = id(r#"{"session":"s","user":"u","timestamp":1793491200000.7,"type":"t"}"#);
        assert_eq!(first, id(r#"{"session":"s","user":{"id":"u"},"timestamp":1793491200000.9,"type":"other"}"#));
        assert_eq!(first.started_at().timestamp_millis(), 1_793_491_200_000);
        for other in [
            r#"{"session":"s","user":"v","timestamp":1793491200000,"type":"t"}"#,
            r#"{"session":"t","user":"u","timestamp":1793491200000,"type":"t"}"#,
            r#"{"session":"su","timestamp":1793491200000,"type":"t"}"#,
        ] {
            assert_ne!(first, id(other));
        }
        let brought = format!(r#"{{"session":"{first}","timestamp":0,"type":"t"}}"#);
        assert_eq!(id(&brought), first);
    }
}
