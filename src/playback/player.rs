//! One playback: what to send next, and when.
//!
//! While it waits, for the client to read, for time to pass or for a live session to go on, it holds no connection,
//! transaction or database cursor.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Begin, Cursor, Pass, PlayRequest, pacer::Pacer};
use crate::{
    changes::{Changes, Following},
    error::{Error, Result},
    model::{LATEST_TIME, Session, StoredAction, Track},
    store::{ActionQuery, SeqWindow, Store},
};

/// A page is full when it has this many bytes: clients take messages of 4 MiB unless told otherwise.
const PAGE_BYTES: usize = 1 << 20;

/// The most rows that are read at once.
const MAX_ROWS: u64 = 1_000;

/// The rows that are read before anything is known of their size.
const FIRST_ROWS: u64 = 64;

/// Actions due within this time of each other are sent together.
const TOGETHER: Duration = Duration::from_millis(5);

/// Followers look for themselves this often, should a change have gone unheard.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Senders' clocks differ, and their batches arrive out of step: what a pass brings is first looked for this far before the
/// latest action known, and only if something is missing there in the whole session.
const OUT_OF_STEP: TimeDelta = TimeDelta::seconds(60);

/// What a playback sends.
pub enum PlayEvent {
    /// First, the session.
    Start(Box<Session>),
    /// Consecutive actions, at least one, and where to resume after them.
    Page {
        /// The actions.
        actions: Vec<StoredAction>,
        /// Where to resume.
        cursor: String,
    },
    /// Last, the number of actions sent, and where to resume should there be more.
    End {
        /// Number of actions sent.
        action_count: i64,
        /// Where to resume.
        cursor: String,
    },
}

/// One playback.
pub struct Player {
    store: Store,
    following: Option<Following>,
    /// Ends the playback when the service shuts down.
    drain: CancellationToken,
    request: PlayRequest,
    cursor: Cursor,
    /// Where the first pass that stopped at `until` stood at its end.
    stopped_at: Option<Cursor>,
    /// The names of the tracks, by number.
    sources: HashMap<i16, String>,
    pacer: Pacer,
    until: Option<DateTime<Utc>>,
    /// Where this pass's actions begin, if that is known to be later than the cursor's `from`.
    pass_from: Option<DateTime<Utc>>,
    /// The latest timestamp when the pass began.
    last_action_at: Option<DateTime<Utc>>,
    /// Read and not sent yet, in order.
    read: VecDeque<StoredAction>,
    next_rows: u64,
    /// Whether the pass has been read to its end.
    pass_read: bool,
    /// Whether what was committed while the client was away is still to be looked for.
    resumed: bool,
    sent: i64,
    stage: Stage,
}

enum Stage {
    Start(Box<Session>),
    Actions,
    Over,
}

impl Player {
    /// Begins a playback. Fails where there is no such session.
    pub async fn begin(
        store: Store,
        changes: &Arc<Changes>,
        drain: CancellationToken,
        request: PlayRequest,
    ) -> Result<Self> {
        // Before the first look, so that no change falls between.
        let following = request.follow.then(|| changes.follow(request.session));
        let session = store.session_get(request.session).await?;
        let started_at = request.session.started_at();
        let at = |offset: Duration| {
            let offset = TimeDelta::from_std(offset).unwrap_or(TimeDelta::MAX);
            started_at.checked_add_signed(offset).map_or(LATEST_TIME, |time| time.min(LATEST_TIME))
        };
        let pass = Pass::first(&session.tracks);
        let fresh = |from| Cursor { session: request.session, pass, position: None, from };
        let (cursor, clock) = match &request.begin {
            Begin::FirstAction => (fresh(None), Some(started_at)),
            Begin::Offset(offset) => (fresh(Some(at(*offset))), Some(at(*offset))),
            Begin::Cursor(cursor) => {
                let pass = cursor.pass.clone().within(&session.tracks);
                let clock = cursor.position.map(|position| position.timestamp);
                (Cursor { pass, ..cursor.clone() }, clock)
            }
        };
        let mut player = Self {
            pacer: Pacer::start(clock, request.speed, request.max_idle),
            until: request.until.map(at),
            resumed: matches!(request.begin, Begin::Cursor(_)),
            stopped_at: None,
            pass_from: None,
            last_action_at: None,
            sources: HashMap::new(),
            read: VecDeque::new(),
            next_rows: FIRST_ROWS,
            pass_read: false,
            sent: 0,
            stage: Stage::Actions,
            store,
            following,
            drain,
            cursor,
            request,
        };
        player.meet(&session.tracks);
        player.stage = Stage::Start(Box::new(session));
        Ok(player)
    }

    /// The names of the tracks by their numbers, complete for every action given so far.
    #[must_use]
    pub fn sources(&self) -> &HashMap<i16, String> {
        &self.sources
    }

    /// Waits for what is to be sent next. None after the end.
    pub async fn next(&mut self) -> Result<Option<PlayEvent>> {
        match std::mem::replace(&mut self.stage, Stage::Actions) {
            Stage::Start(session) => return Ok(Some(PlayEvent::Start(session))),
            Stage::Over => {
                self.stage = Stage::Over;
                return Ok(None);
            }
            Stage::Actions => {}
        }
        loop {
            if !self.read.is_empty() {
                return self.send().await.map(Some);
            }
            if !self.pass_read {
                self.read_more().await?;
            } else if !self.begin_next_pass().await? {
                self.stage = Stage::Over;
                let cursor = match self.until {
                    None => Cursor { pass: self.cursor.pass.clone().over(), position: None, ..self.cursor.clone() },
                    Some(_) => self.resume_at().clone(),
                };
                return Ok(Some(PlayEvent::End { action_count: self.sent, cursor: cursor.encode() }));
            }
        }
    }

    /// Waits until the first action is due, and gives it with those that are due by then.
    async fn send(&mut self) -> Result<PlayEvent> {
        let mut actions = Vec::new();
        let mut bytes = 0;
        let mut horizon = Instant::now();
        while let Some(stored) = self.read.front() {
            bytes += stored.size();
            if !actions.is_empty() && bytes > PAGE_BYTES {
                break;
            }
            let due = self.pacer.due(stored.action.timestamp);
            if actions.is_empty() {
                self.wait_until(due).await?;
                horizon = due.max(Instant::now()) + TOGETHER;
            } else if due > horizon {
                break;
            }
            actions.extend(self.read.pop_front());
        }
        self.cursor.position = actions.last().map(StoredAction::position).or(self.cursor.position);
        self.sent += i64::try_from(actions.len()).unwrap_or(0);
        Ok(PlayEvent::Page { actions, cursor: self.resume_at().encode() })
    }

    /// Where to resume. A pass that stops at `until` leaves something of itself to play, which later passes know nothing
    /// of; so it stays there, although what they have played comes again then.
    fn resume_at(&self) -> &Cursor {
        self.stopped_at.as_ref().unwrap_or(&self.cursor)
    }

    async fn wait_until(&self, due: Instant) -> Result<()> {
        if self.drain.is_cancelled() {
            return Err(Error::Draining);
        }
        if due <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            () = sleep_until(due) => Ok(()),
            () = self.drain.cancelled() => Err(Error::Draining),
        }
    }

    /// Reads the next rows of the pass.
    async fn read_more(&mut self) -> Result<()> {
        let windows = self.windows();
        if windows.is_empty() {
            self.pass_read = true;
            return Ok(());
        }
        let query = ActionQuery {
            session: self.request.session,
            windows: &windows,
            after: self.cursor.position,
            from: self.cursor.from.max(self.pass_from),
            until: self.until,
            types: &self.request.types,
        };
        let rows = self.store.action_page(&query, self.next_rows, PAGE_BYTES).await?;
        self.pass_read = rows.is_last;
        if let Some(bytes_a_row) = rows.bytes.checked_div(rows.actions.len()) {
            // Rows beyond the page's bytes would be read by the database for nothing.
            let fitting = u64::try_from(PAGE_BYTES / bytes_a_row.max(1)).unwrap_or(MAX_ROWS);
            // Slowly up, for large ones may follow on small ones.
            self.next_rows = fitting.clamp(1, MAX_ROWS).min(self.next_rows * 4);
        }
        self.read = rows.actions;
        Ok(())
    }

    /// Waits, if that was asked for, until there is more to play. Returns whether there is.
    async fn begin_next_pass(&mut self) -> Result<bool> {
        loop {
            // Fails if the session was erased meanwhile, which would have cut the pass short.
            let (tracks, ended) = self.store.track_list(self.request.session).await?;
            if !self.request.follow && (!self.resumed || self.until.is_some()) {
                return Ok(false);
            }
            self.resumed = false;
            let next = self.cursor.pass.clone().next(&tracks);
            if next.action_count() > 0 {
                if self.until.is_some() && self.stopped_at.is_none() {
                    self.stopped_at = Some(self.cursor.clone());
                }
                self.cursor.pass = next;
                self.cursor.position = None;
                self.pass_read = false;
                self.pass_from = self.find_pass_from().await?;
                self.meet(&tracks);
                return Ok(true);
            }
            if ended || !self.request.follow {
                return Ok(false);
            }
            self.wait_for_change().await?;
        }
    }

    async fn wait_for_change(&mut self) -> Result<()> {
        let Some(following) = &mut self.following else { return Ok(()) };
        tokio::select! {
            _ = timeout(LOOK_EVERY, following.changed()) => Ok(()),
            () = self.drain.cancelled() => Err(Error::Draining),
        }
    }

    /// A time before which the pass has nothing, so that it need not look through the whole session. Seqs have no gaps: if
    /// as many actions as the pass has are found after that time, they are all.
    async fn find_pass_from(&self) -> Result<Option<DateTime<Utc>>> {
        let from = self.last_action_at.and_then(|time| time.checked_sub_signed(OUT_OF_STEP));
        let windows = self.cursor.pass.windows(|_| true);
        let session = self.request.session;
        let query = ActionQuery { session, windows: &windows, after: None, from, until: None, types: &[] };
        let found = self.store.action_count(&query).await?;
        let is_all = i64::try_from(found).is_ok_and(|found| found == self.cursor.pass.action_count());
        Ok(from.filter(|_| is_all))
    }

    /// What the pass reads: of tracks that are there only, as a made-up cursor may name more than fit into a statement.
    fn windows(&self) -> Vec<SeqWindow> {
        let sources = &self.request.sources;
        let is_wanted = |source: &String| sources.is_empty() || sources.contains(source);
        self.cursor.pass.windows(|track| self.sources.get(&track).is_some_and(is_wanted))
    }

    /// Takes note of the tracks as they are now.
    fn meet(&mut self, tracks: &[Track]) {
        self.last_action_at = tracks.iter().filter_map(|track| track.last_action_at).max();
        self.sources = tracks.iter().map(|track| (track.number, track.source.clone())).collect();
    }
}
