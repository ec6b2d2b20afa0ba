//! One playback: what to send next, and when.
//!
//! While it waits, for the client to read, for time to pass or for a live session to go on, it holds no connection,
//! transaction or database cursor.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Begin, Cursor, Pass, PlayRequest,
    pacer::Pacer,
    pages::{Pages, Selection},
};
use crate::{
    changes::{Changes, Following},
    error::{Error, Result},
    model::{LATEST_TIME, Session, StoredAction, Track},
    store::{ActionQuery, SeqWindow, Store},
};

/// Actions due within this time of each other are sent together.
const TOGETHER: Duration = Duration::from_millis(5);

/// How long before it is needed the next page is read, where time is paced.
const READ_AHEAD: Duration = Duration::from_secs(1);

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
    sources: Arc<BTreeMap<i16, String>>,
    pacer: Pacer,
    until: Option<DateTime<Utc>>,
    /// The latest timestamp when the pass began.
    last_action_at: Option<DateTime<Utc>>,
    /// What the pass has left to read. None when it has been read to its end.
    pages: Option<Pages>,
    /// Read and not sent yet, in order.
    read: std::vec::IntoIter<StoredAction>,
    /// When the last of them is due.
    used_up: Instant,
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
        let mut session = store.session_get(request.session).await?;
        if session.is_cut() {
            // What its tracks count is not what is there.
            session = store.session_describe(request.session).await?.session;
        }
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
            last_action_at: None,
            sources: Arc::default(),
            pages: None,
            read: Vec::new().into_iter(),
            used_up: Instant::now(),
            sent: 0,
            stage: Stage::Actions,
            store,
            following,
            drain,
            cursor,
            request,
        };
        player.meet(&session.tracks);
        player.open_pages(None);
        player.stage = Stage::Start(Box::new(session));
        Ok(player)
    }

    /// The names of the tracks by their numbers, complete for every action given so far.
    #[must_use]
    pub fn sources(&self) -> &Arc<BTreeMap<i16, String>> {
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
            if !self.read.as_slice().is_empty() {
                return self.send().await.map(Some);
            }
            if let Some(pages) = &mut self.pages {
                match pages.next().await? {
                    Some(actions) => self.take(actions),
                    None => self.pages = None,
                }
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

    fn take(&mut self, actions: Vec<StoredAction>) {
        let mut pacer = self.pacer.clone();
        let dues = actions.iter().map(|stored| pacer.due(stored.action.timestamp));
        self.used_up = dues.last().unwrap_or(self.used_up);
        self.read = actions.into_iter();
    }

    /// Waits until the first action is due, and gives it with those that are due by then.
    async fn send(&mut self) -> Result<PlayEvent> {
        if let Some(first) = self.read.as_slice().first() {
            let due = self.pacer.due(first.action.timestamp);
            self.wait_until(due).await?;
        }
        let horizon = Instant::now() + TOGETHER;
        let dues = self.read.as_slice().iter().map(|stored| self.pacer.due(stored.action.timestamp));
        let count = dues.take_while(|due| *due <= horizon).count();
        let actions: Vec<_> = self.read.by_ref().take(count).collect();
        self.cursor.position = actions.last().map(StoredAction::position).or(self.cursor.position);
        self.sent += i64::try_from(actions.len()).unwrap_or(0);
        Ok(PlayEvent::Page { actions, cursor: self.resume_at().encode() })
    }

    /// Where to resume. A pass that stops at `until` leaves something of itself to play, which later passes know nothing
    /// of; so it stays there, although what they have played comes again then.
    fn resume_at(&self) -> &Cursor {
        self.stopped_at.as_ref().unwrap_or(&self.cursor)
    }

    /// Waits until this time, and has the next page read when what there is will soon be used up: at once, where time is not
    /// paced.
    async fn wait_until(&mut self, due: Instant) -> Result<()> {
        let read_at = self.used_up.checked_sub(READ_AHEAD).unwrap_or(due);
        if read_at <= due {
            self.sleep_until(read_at).await?;
            if let Some(pages) = &mut self.pages {
                pages.read_ahead();
            }
        }
        self.sleep_until(due).await
    }

    async fn sleep_until(&self, time: Instant) -> Result<()> {
        if self.drain.is_cancelled() {
            return Err(Error::Draining);
        }
        if time <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            () = sleep_until(time) => Ok(()),
            () = self.drain.cancelled() => Err(Error::Draining),
        }
    }

    /// Begins to read the pass. `pass_from` is where its actions begin, if that is known to be later than where the
    /// playback does.
    fn open_pages(&mut self, pass_from: Option<DateTime<Utc>>) {
        let selection = Selection {
            session: self.request.session,
            windows: self.windows(),
            from: self.cursor.from.max(pass_from),
            until: self.until,
            types: self.request.types.clone(),
        };
        let is_paced = self.request.speed > 0.0;
        let mut pages = Pages::new(self.store.clone(), selection, self.cursor.position, is_paced);
        pages.read_ahead();
        self.pages = Some(pages);
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
                let pass_from = self.find_pass_from().await?;
                self.meet(&tracks);
                self.open_pages(pass_from);
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
        self.sources = Arc::new(tracks.iter().map(|track| (track.number, track.source.clone())).collect());
    }
}
