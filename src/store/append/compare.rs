//! Tells actions that have arrived again from others that were given the same seqs, and finds the placeholders that they can
//! replace.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{ColumnTrait as _, DatabaseConnection, DbErr, EntityTrait as _, QueryFilter as _, Select};
use tokio::time::timeout;

use super::plan::count;
use crate::{
    archive::{SegmentFile, Wanted},
    error::{Error, Result},
    model::{Action, Batch, BatchAction, ContentDigest, Rejection, RejectionReason, SessionId, StoredAction},
    store::{Store, action::from_row, entity::action, failure::Failure},
};

/// Rows of a segment that are read at once.
const ROWS_AT_ONCE: usize = 4_096;

/// How long the archive may take to say what it has of a batch.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a session's file is looked for where it is not there: it may have been written anew.
const LOOKS: u32 = 3;

/// How actions that have arrived again compare with what is stored. Those that nothing is said of are the same.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Others are stored under these seqs.
    pub(super) conflicts: Vec<i64>,
    /// Of these there are only placeholders, which stay, and why.
    pub(super) placeholders: Vec<Rejection>,
    /// The seqs of placeholders that can be replaced, in order.
    pub(super) replaceable: Vec<i64>,
    /// Whether any of these is archived.
    pub(super) is_archived: bool,
}

/// What is kept of a stored action: a small batch may repeat the seqs of large actions.
#[derive(Clone, Copy)]
struct Known {
    digest: ContentDigest,
    /// Where it is a placeholder: when.
    placeholder_at: Option<DateTime<Utc>>,
    is_archived: bool,
}

impl Known {
    fn of(action: &Action, is_archived: bool) -> Self {
        let placeholder_at = action.is_placeholder().then_some(action.timestamp);
        Self { digest: action.digest(), placeholder_at, is_archived }
    }
}

/// What the archive has of some actions of a track.
pub struct ArchivedDigests {
    /// Where the session was archived when it was asked.
    files: HashSet<SegmentFile>,
    by_seq: HashMap<i64, Known>,
}

impl std::fmt::Debug for ArchivedDigests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArchivedDigests").finish_non_exhaustive()
    }
}

impl ArchivedDigests {
    /// Whether any action of a batch can take the place of a placeholder here.
    #[must_use]
    pub fn gives_way_to(&self, batch: &Batch) -> bool {
        let mut comparison = Comparison::default();
        for (sent, seq) in batch.actions.iter().zip(batch.first_seq.unwrap_or(1)..) {
            comparison.add(seq, sent, self.by_seq.get(&seq));
        }
        comparison.is_archived
    }
}

/// Compares actions with what is stored under their seqs. None where the rest of it is archived, and the archive was not asked, or
/// not as it is now.
pub(super) async fn compare(
    store: &Store,
    session: SessionId,
    track: i16,
    first_seq: i64,
    actions: &[BatchAction],
    archived: Option<&ArchivedDigests>,
) -> Result<Option<Comparison>, Failure> {
    let connection = &store.write;
    let last_seq = first_seq - 1 + count(actions.len());
    let of_seqs = action::Entity::find()
        .filter(action::Column::SessionId.eq(session.as_uuid()))
        .filter(action::Column::Track.eq(track))
        .filter(action::Column::Seq.between(first_seq, last_seq));
    // The primary key has the timestamp before the seq. What is the same has the same timestamp, so it is found in the
    // range of what arrived; only where something is missing there, the whole session is looked through.
    let times = || actions.iter().map(|action| action.to_store().timestamp);
    let mut known = match (times().min(), times().max()) {
        (Some(first), Some(last)) => {
            known_rows(connection, of_seqs.clone().filter(action::Column::Timestamp.between(first, last))).await?
        }
        _ => HashMap::new(),
    };
    if known.len() < actions.len() {
        let files = match files_of(store, session).await {
            // It was given up. Whoever asks the archive is told; nobody else is.
            Err(Error::SegmentMissing) => return Ok(None),
            files => files?,
        };
        let archived = archived.filter(|archived| archived.files == files);
        if let Some(archived) = archived {
            let of_batch = archived.by_seq.iter().filter(|(seq, _)| (first_seq..=last_seq).contains(seq));
            known.extend(of_batch.map(|(seq, known)| (*seq, *known)));
        }
        if known.len() < actions.len() {
            known.extend(known_rows(connection, of_seqs).await?);
        }
        if known.len() < actions.len() {
            if archived.is_none() && !files.is_empty() {
                return Ok(None);
            }
            // Archived, or brought back, in between: it was looked for where it was not.
            if files_of(store, session).await? != files {
                return Err(Failure::Outdated);
            }
        }
    }
    let mut comparison = Comparison::default();
    for (sent, seq) in actions.iter().zip(first_seq..) {
        comparison.add(seq, sent, known.get(&seq));
    }
    Ok(Some(comparison))
}

/// The files that have something of a session.
async fn files_of(store: &Store, session: SessionId) -> Result<HashSet<SegmentFile>> {
    Ok(store.segments_of(&[session.as_uuid()]).await?.into_keys().collect())
}

impl Comparison {
    fn add(&mut self, seq: i64, sent: &BatchAction, known: Option<&Known>) {
        let Some(known) = known.filter(|known| sent.is_digested_to(known.digest)) else {
            return self.conflicts.push(seq);
        };
        let Some(placeholder_at) = known.placeholder_at else { return };
        let (reason, description) = match sent {
            // It was exported, and is imported.
            BatchAction::Valid(action) if action.is_placeholder() => return,
            BatchAction::Valid(action) if action.timestamp == placeholder_at => {
                self.replaceable.push(seq);
                self.is_archived |= known.is_archived;
                return;
            }
            BatchAction::Valid(_) => {
                let why = "timestamp: was rejected when the action was first sent; its place follows from it, so the \
                           placeholder stays";
                (RejectionReason::InvalidTimestamp, why.to_owned())
            }
            BatchAction::Rejected(rejected) => (rejected.reason, rejected.description.clone()),
        };
        self.placeholders.push(Rejection { seq, reason, description });
    }
}

/// What is known of rows, by seq.
async fn known_rows(
    connection: &DatabaseConnection,
    actions: Select<action::Entity>,
) -> Result<HashMap<i64, Known>, DbErr> {
    let mut rows = actions.stream(connection).await?;
    let mut known = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let StoredAction { seq, action, .. } = from_row(row);
        known.insert(seq, Known::of(&action, false));
    }
    Ok(known)
}

impl Store {
    /// Asks the archive for some actions of a track, by their seqs. Takes as long as the storage does, up to 10 s.
    pub async fn archived_digests(
        &self,
        session: SessionId,
        track: i16,
        seqs: RangeInclusive<i64>,
    ) -> Result<ArchivedDigests> {
        let reading = async {
            let mut looks = 1;
            loop {
                match self.archived_digests_once(session, track, &seqs).await {
                    Err(Error::SegmentMissing) if looks < LOOKS => looks += 1,
                    outcome => break outcome,
                }
            }
        };
        timeout(ARCHIVE_TIMEOUT, reading).await.unwrap_or_else(|_| {
            tracing::warn!("the archive did not say in time what it has of a batch");
            Err(Error::ArchiveUnavailable)
        })
    }

    /// Brings an archived session back, so that a placeholder can give way. It is archived again in its time. Takes up to 10 s, as
    /// [`Store::archived_digests`] does.
    pub async fn session_make_hot(&self, session: SessionId) -> Result<()> {
        let Ok(outcome) = timeout(ARCHIVE_TIMEOUT, self.session_bring_back(session)).await else {
            tracing::warn!(
                session.id = %session,
                "an archived session was not brought back in time, and keeps its placeholders; `reel restore` takes its time"
            );
            return Err(Error::ArchiveUnavailable);
        };
        outcome.map(|_| ())
    }

    async fn archived_digests_once(
        &self,
        session: SessionId,
        track: i16,
        seqs: &RangeInclusive<i64>,
    ) -> Result<ArchivedDigests> {
        let id = session.as_uuid();
        let files = files_of(self, session).await?;
        let mut by_seq = HashMap::new();
        for file in &files {
            let wanted =
                Wanted { sessions: Some(&[id]), with_data: true, rows_at_once: ROWS_AT_ONCE, ..Wanted::default() };
            let mut reader = self.archive()?.read(file, wanted).await?;
            while let Some(actions) = reader.next().await? {
                let of_track = actions.into_iter().map(|action| action.stored).filter(|stored| stored.track == track);
                let of_seqs = of_track.filter(|stored| seqs.contains(&stored.seq));
                by_seq.extend(of_seqs.map(|stored| (stored.seq, Known::of(&stored.action, true))));
            }
        }
        Ok(ArchivedDigests { files, by_seq })
    }
}
