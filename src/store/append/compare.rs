//! Tells actions that have arrived again from others that were given the same seqs.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    time::Duration,
};

use futures_util::TryStreamExt as _;
use sea_orm::{ColumnTrait as _, DatabaseConnection, DbErr, EntityTrait as _, QueryFilter as _, Select};
use tokio::time::timeout;

use super::plan::count;
use crate::{
    archive::{SegmentFile, Wanted},
    error::{Error, Result},
    model::{BatchAction, SessionId, StoredAction},
    store::{Store, action::from_row, entity::action, failure::Failure},
};

/// Rows of a segment that are read at once.
const ROWS_AT_ONCE: usize = 4_096;

/// How long the archive may take to say what it has of a batch.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a session's file is looked for where it is not there: it may have been written anew.
const LOOKS: u32 = 3;

/// What comparing a batch with what is stored has shown.
pub(super) enum Comparison {
    /// These seqs are taken by other actions.
    Conflicts(Vec<i64>),
    /// The rest of it is archived, and the archive was not asked, or not as it is now.
    NeedsArchive,
}

/// What the archive has of some actions of a track.
#[derive(Debug)]
pub struct ArchivedDigests {
    /// Where the session was archived when it was asked.
    files: HashSet<SegmentFile>,
    by_seq: HashMap<i64, String>,
}

/// Tells which of these actions, by seq, are not what is stored.
pub(super) async fn compare(
    store: &Store,
    session: SessionId,
    track: i16,
    first_seq: i64,
    actions: &[BatchAction],
    archived: Option<&ArchivedDigests>,
) -> Result<Comparison, Failure> {
    let connection = &store.write;
    let last_seq = first_seq - 1 + count(actions.len());
    let of_seqs = action::Entity::find()
        .filter(action::Column::SessionId.eq(session.as_uuid()))
        .filter(action::Column::Track.eq(track))
        .filter(action::Column::Seq.between(first_seq, last_seq));
    // The primary key has the timestamp before the seq. What is the same has the same timestamp, so it is found in the
    // range of what arrived; only where something is missing there, the whole session is looked through.
    let times = || actions.iter().map(|action| action.to_store().timestamp);
    let mut digests = match (times().min(), times().max()) {
        (Some(first), Some(last)) => {
            stored_digests(connection, of_seqs.clone().filter(action::Column::Timestamp.between(first, last))).await?
        }
        _ => HashMap::new(),
    };
    if digests.len() < actions.len() {
        let files = files_of(store, session).await?;
        let archived = archived.filter(|archived| archived.files == files);
        if let Some(archived) = archived {
            let of_batch = archived.by_seq.iter().filter(|(seq, _)| (first_seq..=last_seq).contains(seq));
            digests.extend(of_batch.map(|(seq, digest)| (*seq, digest.clone())));
        }
        if digests.len() < actions.len() {
            digests.extend(stored_digests(connection, of_seqs).await?);
        }
        if digests.len() < actions.len() {
            if archived.is_none() && !files.is_empty() {
                return Ok(Comparison::NeedsArchive);
            }
            // Archived, or brought back, in between: it was looked for where it was not.
            if files_of(store, session).await? != files {
                return Err(Failure::Outdated);
            }
        }
    }
    let numbered = actions.iter().zip(first_seq..);
    let differing = numbered.filter(|(action, seq)| digests.get(seq) != Some(&action.digest().to_string()));
    Ok(Comparison::Conflicts(differing.map(|(_, seq)| seq).collect()))
}

/// The files that have something of a session.
async fn files_of(store: &Store, session: SessionId) -> Result<HashSet<SegmentFile>> {
    Ok(store.segments_of(&[session.as_uuid()]).await?.into_keys().collect())
}

/// The digests of stored actions by seq. Keeps no more than that of them: a small batch may repeat the seqs of large
/// actions.
async fn stored_digests(
    connection: &DatabaseConnection,
    actions: Select<action::Entity>,
) -> Result<HashMap<i64, String>, DbErr> {
    let mut rows = actions.stream(connection).await?;
    let mut digests = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let StoredAction { seq, action, .. } = from_row(row);
        digests.insert(seq, action.digest().to_string());
    }
    Ok(digests)
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
                by_seq.extend(of_seqs.map(|stored| (stored.seq, stored.action.digest().to_string())));
            }
        }
        Ok(ArchivedDigests { files, by_seq })
    }
}
