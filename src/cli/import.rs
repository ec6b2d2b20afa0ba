//! `reel import`: sends recordings to a running service, through the API that everybody else uses.

pub(super) mod batches;
mod earlier;
pub(super) mod entry;
mod identity;
pub(super) mod recording;
mod stored;
pub(super) mod tally;
mod upload;

use std::{
    io::{self, Write},
    path::PathBuf,
    thread,
    time::Instant,
};

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::sync::{mpsc, oneshot};

use self::{
    batches::{Batches, ImportedSession},
    earlier::earlier_session,
    identity::Identity,
    recording::Recording,
    stored::Conflict,
    tally::{Tally, counted},
    upload::Upload,
};
use super::{Failure, client::Service};
use crate::{config::ClientArgs, proto::StreamActionsRequest};

/// How many messages are made ahead of those that are sent.
const AHEAD: usize = 8;

/// Up to this many sessions are listed without being asked for.
const FEW_SESSIONS: usize = 5;

/// What to import, and where to.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
FORMATS, told apart by content; the first two may be compressed with gzip:
  JSON Lines, one action a line:
    {\"session\":\"visit 7\",\"user\":\"ada\",\"seq\":1,\"timestamp\":1793491200000,\"type\":\"click\",\"target\":\"Share\",\"data\":{\"x\":1}}
    session    any name, or a session's id                                         required
    user       an id, or {\"id\",\"email\",\"name\",\"attributes\"}; said once is enough
    source     the track; `main` if left out
    seq        1, 2, 3, … on each track; counted if left out
    timestamp  Unix milliseconds, with decimals if need be, or RFC 3339            required
    type       what kind of thing happened                                         required
    target     what it was done to
    data       any JSON, kept byte for byte; or data_text, the same as a text
    A line without type and timestamp says what a session is, as `reel export` does:
    {\"session\":ID,\"user\":…,\"attributes\":{…},\"end\":{\"timestamp\":1793491260000,\"reason\":\"logout\"}}
  An rrweb recording: a JSON array of rrweb events.
  Parquet: what `reel export` writes, and the segments of an archive.

The same recording always becomes the same sessions: importing it again stores nothing twice, and goes on where an
earlier import was broken off. Nothing is added to a session of which other actions are stored. An rrweb recording is
known by all of its events; it is read to its end first, and stored only if all of it can be read. What `reel play`
prints can be imported.")]
pub(super) struct ImportArgs {
    /// Recordings; - is the standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The service.
    #[command(flatten)]
    client: ClientArgs,
    /// Actions of a batch at most
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=5_000))]
    batch: u16,
    /// Leave the sessions open: more of them is to come
    #[arg(long)]
    no_end: bool,
    /// List all sessions, however many
    #[arg(long)]
    list: bool,
}

/// How to send a recording.
#[derive(Clone, Copy)]
pub(super) struct Sending {
    /// Actions of a batch at most.
    pub(super) max_batch_actions: usize,
    /// Whether to end each session.
    pub(super) end_sessions: bool,
}

/// What became of a recording.
pub(super) struct Imported {
    /// What the service did.
    pub(super) tally: Tally,
    /// The sessions that were read.
    pub(super) sessions: Vec<ImportedSession>,
    /// Those that were given up, because something else is stored of them.
    pub(super) conflicts: Vec<Conflict>,
    /// Why it was not imported to its end, if so.
    pub(super) failure: Option<Failure>,
}

/// Imports the files one after the other. Fails at the first that cannot be imported to its end, and in the end if anything
/// was rejected, or had been and is no more than a placeholder still.
pub(super) async fn import(args: ImportArgs) -> Result<(), Failure> {
    let service = Service::new(&args.client)?;
    let sending = Sending { max_batch_actions: usize::from(args.batch), end_sessions: !args.no_end };
    let mut total = Tally::default();
    for file in &args.files {
        let progress = progress_bar();
        let recording = Recording::open(file, &progress)?;
        let label = recording.label.clone();
        let (recording, identity) = identify(recording, progress.clone()).await?;
        let imported = match identity {
            Some(identity) => send_rrweb(&service, &recording, identity, sending, &progress).await?,
            None => send(&service, recording, sending, &progress).await,
        };
        progress.finish_and_clear();
        // Whoever closes standard output does not want it: that is no failure of the import.
        let _ = summarize(&mut io::stdout(), &label, &imported, args.list);
        for line in imported.tally.rejections(&imported.sessions) {
            eprintln!("{line}");
        }
        for conflict in &imported.conflicts {
            eprintln!("{label}: {}", given_up(conflict, &imported.sessions));
        }
        if let Some(failure) = imported.failure {
            return Err(failure);
        }
        total.absorb(&imported.tally);
    }
    total.fault().map_or(Ok(()), |fault| Err(fault.into()))
}

/// Says what became of a recording.
fn summarize(output: &mut impl Write, label: &str, imported: &Imported, list: bool) -> io::Result<()> {
    let Imported { tally, sessions, failure, .. } = imported;
    match failure {
        None => writeln!(output, "{label}: {}, {tally}", counted(sessions.len() as u64, "session"))?,
        Some(_) if tally.action_count() > 0 => writeln!(output, "{label}: broken off after {tally}")?,
        Some(_) => return Ok(()),
    }
    if list || sessions.len() <= FEW_SESSIONS {
        for session in sessions {
            writeln!(output, "  {}  {}", session.id, session.name)?;
        }
    }
    Ok(())
}

/// Says why nothing more was added to a session.
fn given_up(conflict: &Conflict, sessions: &[ImportedSession]) -> String {
    let Conflict { session_id, source, seq } = conflict;
    let name = sessions.iter().find(|session| session.id.to_string() == *session_id);
    let name = name.map_or("", |session| &session.name);
    format!(
        "session {session_id} ({name}) is another: seq {seq} of source {source} is not what is stored, so nothing was added"
    )
}

/// Finds out what an rrweb recording is known by. None for others.
async fn identify(recording: Recording, progress: ProgressBar) -> Result<(Recording, Option<Identity>), Failure> {
    let (done, identified) = oneshot::channel();
    // Not a task of the runtime's, for the reason that `send` gives.
    thread::spawn(move || {
        let _ = done.send(recording.identify(&progress));
    });
    identified.await.unwrap_or_else(|_| Err("reading stopped".into()))
}

/// Sends an rrweb recording: as the session that an earlier version made of it, if it did, and else as its own.
async fn send_rrweb(
    service: &Service,
    recording: &Recording,
    identity: Identity,
    sending: Sending,
    progress: &ProgressBar,
) -> Result<Imported, Failure> {
    if let Some(id) = earlier_session(service, recording, identity, progress).await? {
        let imported = send(service, recording.again(id)?, sending, progress).await;
        if imported.conflicts.is_empty() {
            return Ok(imported);
        }
        // It is another recording's that begins with the same event, and nothing was added to it.
    }
    Ok(send(service, recording.again(identity.id)?, sending, progress).await)
}

/// Sends a recording. What was stored before a failure stays stored.
pub(super) async fn send(
    service: &Service,
    recording: Recording,
    sending: Sending,
    progress: &ProgressBar,
) -> Imported {
    let (messages, outgoing) = mpsc::channel(AHEAD);
    let (done, read) = oneshot::channel();
    // Not a task of the runtime's: its end would wait for a standard input that says nothing more.
    thread::spawn(move || {
        let _ = done.send(make_messages(recording, sending, &messages));
    });
    let begun = Instant::now();
    let mut tally = Tally::default();
    let take = |receipt| {
        tally.add(receipt);
        let count = tally.action_count();
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let per_second = count.saturating_mul(1_000) / millis.max(1);
        progress.set_message(format!("{} actions, {}/s", HumanCount(count), HumanCount(per_second)));
    };
    let tell = |trouble: &str| progress.suspend(|| eprintln!("reel: {trouble}"));
    let conflicts = match Upload::new(service, outgoing).run(take, tell).await {
        Ok(conflicts) => conflicts,
        Err(failure) => {
            return Imported { tally, sessions: Vec::new(), conflicts: Vec::new(), failure: Some(failure) };
        }
    };
    let (sessions, failure) = match read.await {
        Ok(read) => read,
        Err(_) => (Vec::new(), Some("reading stopped".into())),
    };
    Imported { tally, sessions, conflicts, failure }
}

/// Reads a recording and makes the messages of its upload. Gives its sessions, and why it was not read to its end, if so.
fn make_messages(
    recording: Recording,
    sending: Sending,
    messages: &mpsc::Sender<StreamActionsRequest>,
) -> (Vec<ImportedSession>, Option<Failure>) {
    let label = recording.label.clone();
    let mut batches = Batches::new(sending.max_batch_actions);
    let read = recording.read(&mut |entry, place| {
        batches.take(entry, place)?;
        pass_on(&mut batches, messages)
    });
    let finished = match read {
        Ok(()) => batches.finish(sending.end_sessions),
        Err(failure) => {
            batches.flush();
            Err(failure)
        }
    };
    let passed_on = pass_on(&mut batches, messages);
    let sessions = batches.into_sessions();
    let failure = match finished.and(passed_on) {
        Ok(()) if sessions.is_empty() => Some(format!("{label}: no actions").into()),
        outcome => outcome.err(),
    };
    (sessions, failure)
}

fn pass_on(batches: &mut Batches, messages: &mpsc::Sender<StreamActionsRequest>) -> Result<(), Failure> {
    for message in batches.ready.drain(..) {
        messages.blocking_send(message).map_err(|_| "the upload was given up")?;
    }
    Ok(())
}

/// Shows how much of a file is read. Hidden where standard error is not a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}  {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
