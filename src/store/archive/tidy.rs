//! Tidying up: segments are written anew without what was erased, files that are not read any more go.

use std::collections::HashSet;

use chrono::TimeDelta;
use sea_orm::{ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, Statement};
use uuid::Uuid;

use super::{
    Store, ToArchive,
    files::{advance, forgo, plan},
    seal::{is_in_use, sessions_in},
    write::new_path,
};
use crate::{
    archive::{SegmentFile, Written},
    error::{Error, Result},
    failpoint,
    store::{
        entity::{
            segment,
            segment_file::{self, FileState},
        },
        failure::Failure,
        lease::Lease,
    },
};

/// How long a file that is not used any more stays for questions that began before: longer than questions may take.
const READERS_LEFT: TimeDelta = TimeDelta::minutes(2);

/// How long a file is looked after once it is removed: a writer that was taken for dead may still complete it.
const WRITERS_LEFT: TimeDelta = TimeDelta::hours(1);

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
    pub(in crate::store) async fn segments_tidy(&self, lease: &Lease) -> Result<()> {
        let files = segment_file::Entity::find().filter(segment_file::Column::State.ne(FileState::InUse));
        let files = files.order_by_asc(segment_file::Column::Path).all(&self.write).await?;
        let stale = segment::Entity::find().filter(segment::Column::Stale.ne(0)).order_by_asc(segment::Column::Id);
        let stale = stale.all(&self.write).await?;
        if self.archive.is_none() {
            if !files.is_empty() || !stale.is_empty() {
                tracing::warn!(
                    files = files.len(),
                    segments = stale.len(),
                    "segments are not tidied up: this process runs without --archive"
                );
            }
            return Ok(());
        }
        let mut outcome = Ok(());
        for file in files {
            let tidied = self.file_tidy(&file, lease).await;
            if let Err(error) = &tidied {
                tracing::warn!(%error, path = file.path, "a file of the archive is not tidied up, trying again later");
            }
            outcome = outcome.and(tidied);
        }
        for row in stale {
            let Some(path) = &row.path else { continue };
            let tidied = self.segment_renew(&row, path, lease).await;
            if let Err(error) = &tidied {
                tracing::warn!(%error, segment = row.id, "a segment is not written anew, trying again later");
            }
            outcome = outcome.and(tidied);
        }
        outcome
    }

    /// Brings a file that is not in use nearer to its end.
    async fn file_tidy(&self, file: &segment_file::Model, lease: &Lease) -> Result<()> {
        let waited = lease.now() - file.since;
        match file.state {
            // Its writer would have the lease.
            FileState::Planned | FileState::Written => Ok(self.file_forgo(file, lease).await?),
            FileState::Removing if waited >= READERS_LEFT => self.file_remove(&file.path, lease.now()).await,
            FileState::Gone if waited >= WRITERS_LEFT => {
                self.archive()?.remove(&file.path).await?;
                segment_file::Entity::delete_by_id(&*file.path).exec(&self.write).await?;
                Ok(())
            }
            FileState::InUse | FileState::Removing | FileState::Gone => Ok(()),
        }
    }

    async fn file_forgo(&self, file: &segment_file::Model, lease: &Lease) -> Result<(), Failure> {
        let tx = self.begin().await?;
        lease.check_in_txn(&tx).await?;
        forgo(&tx, &file.path, file.segment_id, lease.now()).await?;
        tx.commit().await?;
        failpoint::reach("file forgone");
        Ok(())
    }

    /// Writes a segment anew with what still belongs to sessions, or gives it up where nothing does.
    async fn segment_renew(&self, row: &segment::Model, path: &str, lease: &Lease) -> Result<()> {
        let sessions = sessions_in(&self.write, row.id).await?;
        if sessions.is_empty() {
            return Ok(self.segment_retire(row.id, path, lease).await?);
        }
        let fresh = new_path(row.day);
        if !self.renewal_plan(row.id, path, &fresh, lease).await? {
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
        let renewed = self.renewal_write(row, path, &fresh, &whole, lease).await;
        if renewed.is_err() {
            self.file_give_up(&fresh, row.id, lease.now()).await;
        }
        renewed
    }

    /// Notes the file that a segment is going to have. Gives whether it still has the old one.
    async fn renewal_plan(&self, segment: i64, path: &str, fresh: &str, lease: &Lease) -> Result<bool, Failure> {
        let tx = self.begin().await?;
        lease.check_in_txn(&tx).await?;
        if !is_in_use(&tx, segment, path).await? {
            return Ok(false);
        }
        plan(&tx, fresh, segment, lease.now()).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn renewal_write(
        &self,
        row: &segment::Model,
        path: &str,
        fresh: &str,
        whole: &[ToArchive],
        lease: &Lease,
    ) -> Result<()> {
        let old = SegmentFile { path: path.to_owned(), bytes: row.bytes.cast_unsigned() };
        let (written, complete) = self.segment_write_file(fresh, whole, Some(&old)).await?;
        if complete.len() < whole.len() {
            tracing::error!(path, "a segment does not have all actions that it should have");
            return Err(Error::SegmentDamaged);
        }
        self.file_written(fresh, lease.now()).await?;
        failpoint::reach("renewal written");
        let kept: HashSet<Uuid> = complete.iter().map(|session| session.id).collect();
        Ok(self.segment_swap(row, path, &written, &kept, lease).await?)
    }

    /// The new file is read from now on, and the old one is not.
    async fn segment_swap(
        &self,
        row: &segment::Model,
        path: &str,
        written: &Written,
        kept: &HashSet<Uuid>,
        lease: &Lease,
    ) -> Result<(), Failure> {
        let tx = self.begin().await?;
        lease.check_in_txn(&tx).await?;
        let is_of_it = is_in_use(&tx, row.id, path).await?;
        let has_all = sessions_in(&tx, row.id).await?.iter().all(|session| kept.contains(&session.id));
        let (fresh, now) = (&written.file.path, lease.now());
        if !is_of_it
            || !has_all
            || !advance(&tx, fresh, &[FileState::Written], FileState::InUse, now).await?
            || !advance(&tx, path, &[FileState::InUse], FileState::Removing, now).await?
        {
            return Err(Error::Contention.into());
        }
        let sql = "UPDATE segments SET path = $1, bytes = $2, action_count = $3, digest = $4, stale = stale - $5 \
             WHERE id = $6";
        let values = [
            fresh.into(),
            written.file.bytes.cast_signed().into(),
            written.actions.cast_signed().into(),
            written.digest.clone().into(),
            row.stale.into(),
            row.id.into(),
        ];
        tx.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
        tx.commit().await?;
        failpoint::reach("renewal swapped");
        Ok(())
    }

    /// Nobody reads a segment any more in which no session is.
    async fn segment_retire(&self, segment: i64, path: &str, lease: &Lease) -> Result<(), Failure> {
        let tx = self.begin().await?;
        lease.check_in_txn(&tx).await?;
        if is_in_use(&tx, segment, path).await?
            && sessions_in(&tx, segment).await?.is_empty()
            && advance(&tx, path, &[FileState::InUse], FileState::Removing, lease.now()).await?
        {
            segment::Entity::delete_by_id(segment).exec(&tx).await?;
        }
        tx.commit().await?;
        failpoint::reach("segment retired");
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
