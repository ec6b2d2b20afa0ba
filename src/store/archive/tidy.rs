//! Tidying up: segments are written anew without what was erased, files that are not read any more go.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait as _, Condition, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, Statement,
};
use uuid::Uuid;

use super::{
    Store, ToArchive,
    seal::{is_in_use, sessions_in},
    write::new_path,
};
use crate::{
    archive::{SegmentFile, Written},
    error::{Error, Result},
    failpoint,
    store::{entity::segment, failure::Failure},
};

/// How long a file that is not read any more stays for questions that still see it: longer than questions may take.
const READERS_LEFT: TimeDelta = TimeDelta::minutes(2);

/// How long a file may take to be written. Longer than that, its writer is taken for dead.
const WRITERS_LEFT: TimeDelta = TimeDelta::minutes(10);

/// What was found of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentCheck {
    /// Its file.
    pub path: String,
    /// Number of its actions.
    pub actions: i64,
    /// What is wrong with it, if anything is.
    pub outcome: Result<()>,
}

impl Store {
    /// Makes segments and their files agree with the sessions. What fails is tried again the next time.
    pub(in crate::store) async fn segments_tidy(&self, now: DateTime<Utc>) -> Result<()> {
        let is_untidy =
            Condition::any().add(segment::Column::SparePath.is_not_null()).add(segment::Column::Stale.ne(0));
        let untidy = segment::Entity::find().filter(is_untidy).order_by_asc(segment::Column::Id);
        let untidy = untidy.all(&self.write).await?;
        if self.archive.is_none() {
            if !untidy.is_empty() {
                tracing::warn!(
                    segments = untidy.len(),
                    "segments are not tidied up: this process runs without --archive"
                );
            }
            return Ok(());
        }
        let mut outcome = Ok(());
        for row in untidy {
            let tidied = match (&row.path, &row.spare_path) {
                (_, Some(spare)) => self.spare_remove(&row, spare, now).await,
                (Some(path), None) => self.segment_renew(&row, path, now).await,
                (None, None) => Ok(()),
            };
            if let Err(error) = &tidied {
                tracing::warn!(%error, segment = row.id, "a segment is not tidied up, trying again later");
            }
            outcome = outcome.and(tidied);
        }
        outcome
    }

    /// Removes a file that nobody reads.
    async fn spare_remove(&self, row: &segment::Model, spare: &str, now: DateTime<Utc>) -> Result<()> {
        // One without a digest was not completed.
        let left =
            if row.digest.is_none() || row.path.is_some() && row.stale != 0 { WRITERS_LEFT } else { READERS_LEFT };
        if row.spare_since.is_some_and(|since| now - since < left) {
            return Ok(());
        }
        self.spare_discard(row.id, spare).await
    }

    async fn spare_discard(&self, segment: i64, spare: &str) -> Result<()> {
        self.archive()?.remove(spare).await?;
        failpoint::reach("spare removed");
        for sql in [
            "DELETE FROM segments WHERE id = $1 AND path IS NULL AND spare_path = $2",
            "UPDATE segments SET spare_path = NULL, spare_since = NULL WHERE id = $1 AND spare_path = $2",
        ] {
            let values = [segment.into(), spare.into()];
            self.write.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
        }
        Ok(())
    }

    /// Writes a segment anew with what still belongs to sessions, or gives it up where nothing does.
    async fn segment_renew(&self, row: &segment::Model, path: &str, now: DateTime<Utc>) -> Result<()> {
        let sessions = sessions_in(&self.write, row.id).await?;
        if sessions.is_empty() {
            return Ok(self.segment_retire(row.id, path, now).await?);
        }
        let fresh = new_path(row.day);
        let sql =
            "UPDATE segments SET spare_path = $1, spare_since = $2 WHERE id = $3 AND path = $4 AND spare_path IS NULL";
        let values = [fresh.clone().into(), now.into(), row.id.into(), path.into()];
        let noted = self.write.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
        if noted.rows_affected() == 0 {
            return Ok(());
        }
        failpoint::reach("renewal planned");
        let whole = sessions.into_iter().map(|session| ToArchive {
            id: session.id,
            user_id: session.user_id,
            segment_id: None,
            archived_count: session.archived_count,
            actions: session.archived_count,
            index_version: session.index_version,
        });
        let whole: Vec<_> = whole.collect();
        let old = SegmentFile { path: path.to_owned(), bytes: row.bytes.cast_unsigned() };
        let (written, complete) = match self.segment_write_file(&fresh, &whole, Some(&old)).await {
            Ok((_, complete)) if complete.len() < whole.len() => {
                tracing::error!(path, "a segment does not have all actions that it should have");
                self.spare_discard(row.id, &fresh).await?;
                return Err(Error::SegmentDamaged);
            }
            Ok(written) => written,
            Err(error) => {
                self.spare_discard(row.id, &fresh).await?;
                return Err(error);
            }
        };
        failpoint::reach("renewal written");
        let kept: HashSet<Uuid> = complete.iter().map(|session| session.id).collect();
        Ok(self.segment_swap(row, path, &written, &kept, now).await?)
    }

    /// The new file is read from now on, and the old one is not.
    async fn segment_swap(
        &self,
        row: &segment::Model,
        path: &str,
        written: &Written,
        kept: &HashSet<Uuid>,
        now: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let tx = self.begin().await?;
        let is_of_it = is_in_use(&tx, row.id, path).await?;
        let has_all = sessions_in(&tx, row.id).await?.iter().all(|session| kept.contains(&session.id));
        if !is_of_it || !has_all {
            return Err(Error::Contention.into());
        }
        let sql = "UPDATE segments SET path = spare_path, spare_path = path, spare_since = $1, bytes = $2, \
             action_count = $3, digest = $4, stale = stale - $5 WHERE id = $6 AND spare_path = $7";
        let values = [
            now.into(),
            written.file.bytes.cast_signed().into(),
            written.actions.cast_signed().into(),
            written.digest.clone().into(),
            row.stale.into(),
            row.id.into(),
            written.file.path.clone().into(),
        ];
        let swapped = tx.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
        if swapped.rows_affected() == 0 {
            return Err(Error::Contention.into());
        }
        tx.commit().await?;
        failpoint::reach("renewal swapped");
        Ok(())
    }

    /// Nobody reads a segment any more in which no session is.
    async fn segment_retire(&self, segment: i64, path: &str, now: DateTime<Utc>) -> Result<(), Failure> {
        let tx = self.begin().await?;
        if is_in_use(&tx, segment, path).await? && sessions_in(&tx, segment).await?.is_empty() {
            let sql = "UPDATE segments SET path = NULL, spare_path = path, spare_since = $1, stale = 0 WHERE id = $2";
            tx.execute_raw(Statement::from_sql_and_values(self.backend, sql, [now.into(), segment.into()])).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Reads all segments from their storage, and compares them with what was written. `tell` hears of each.
    pub async fn segments_check(&self, mut tell: impl FnMut(SegmentCheck) + Send) -> Result<()> {
        let mut segments = segment::Entity::find().order_by_asc(segment::Column::Id).all(&self.read).await?;
        segments.retain(|row| row.path.is_some());
        for row in segments {
            let (Some(path), Some(digest)) = (row.path, row.digest) else { continue };
            let file = SegmentFile { path: path.clone(), bytes: row.bytes.cast_unsigned() };
            let outcome = self.segment_verify(&file, &digest).await;
            tell(SegmentCheck { path, actions: row.action_count, outcome });
        }
        Ok(())
    }
}
