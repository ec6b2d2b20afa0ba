//! Tidying up: segments are written anew without what was erased, files that are not read any more go.

use std::collections::HashSet;

use chrono::TimeDelta;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, Statement,
    sea_query::Expr,
};
use uuid::Uuid;

use super::{
    Store, ToArchive,
    files::{advance, forgo, plan},
    seal::{is_in_use, sessions_in},
    write::{new_path, segment_new},
};
use crate::{
    archive::{SegmentFile, Written},
    error::{Error, Result},
    failpoint,
    model::SessionId,
    store::{
        entity::{
            segment,
            segment_file::{self, FileState},
            session,
        },
        failure::Failure,
        lease::Lease,
        segment::Actions,
    },
};

/// How long a file that is not used any more stays for questions that began before: longer than questions may take.
const READERS_LEFT: TimeDelta = TimeDelta::minutes(2);

/// How long a file is looked after once it is removed: a writer that was taken for dead may still complete it.
const WRITERS_LEFT: TimeDelta = TimeDelta::hours(1);

/// How long a damaged file is left as it is: it may be put back from a backup.
const REPAIR_LEFT: TimeDelta = TimeDelta::hours(24);

/// What was found of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentCheck {
    /// Its file, or its number where it has none any more.
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
            let tidied = match &row.path {
                Some(path) => self.segment_renew(&row, path, lease).await,
                None => self.segment_forget(row.id).await.map_err(Error::from),
            };
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
        if renewed == Err(Error::SegmentDamaged) {
            self.segment_damaged(row, path, &whole, lease).await?;
        }
        renewed
    }

    /// One damaged session must not keep what was erased in the file for ever. When there was time to put the file back,
    /// what cannot be read of it is given up; the next time it is written anew without that.
    async fn segment_damaged(
        &self,
        row: &segment::Model,
        path: &str,
        sessions: &[ToArchive],
        lease: &Lease,
    ) -> Result<()> {
        if row.damaged_at.is_some_and(|since| lease.now() - since < REPAIR_LEFT) {
            return Ok(());
        }
        let file = SegmentFile { path: path.to_owned(), bytes: row.bytes.cast_unsigned() };
        let mut lost = Vec::new();
        for session in sessions {
            match self.session_is_whole(&file, session).await {
                Ok(true) => {}
                Ok(false) | Err(Error::SegmentDamaged) => lost.push(session.id),
                Err(error) => return Err(error),
            }
        }
        // Else it is the new file that is not what was written.
        if lost.is_empty() {
            return Ok(());
        }
        if row.damaged_at.is_some() {
            return Ok(self.sessions_give_up(row, path, lost, lease).await?);
        }
        let sql = "UPDATE segments SET damaged_at = $1 WHERE id = $2 AND path = $3";
        let values = [lease.now().into(), row.id.into(), path.into()];
        self.write.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
        tracing::error!(
            path,
            sessions = lost.len(),
            until = %(lease.now() + REPAIR_LEFT),
            "a segment is damaged that has to be written anew: put its file back until then, or these sessions are given up"
        );
        Ok(())
    }

    /// Whether a file has all of a session.
    async fn session_is_whole(&self, file: &SegmentFile, session: &ToArchive) -> Result<bool> {
        let mut actions = Actions::of_file(self.archive()?, file, std::slice::from_ref(&session.id))?;
        let mut count = 0;
        while actions.next().await?.is_some() {
            count += 1;
        }
        Ok(count == session.actions)
    }

    /// Says for good that a file does not have some of its sessions: they are in a segment that has none. What is asked of them is
    /// answered with the loss of data, as before.
    async fn sessions_give_up(
        &self,
        row: &segment::Model,
        path: &str,
        lost: Vec<Uuid>,
        lease: &Lease,
    ) -> Result<(), Failure> {
        let tx = self.begin().await?;
        lease.check_in_txn(&tx).await?;
        if !is_in_use(&tx, row.id, path).await? {
            return Ok(());
        }
        let nowhere = segment_new(&tx, row.day).await?;
        session::Entity::update_many()
            .col_expr(session::Column::SegmentId, Expr::value(nowhere))
            .filter(session::Column::SegmentId.eq(row.id))
            .filter(session::Column::Id.is_in(lost.iter().copied()))
            .exec(&tx)
            .await?;
        tx.commit().await?;
        for session in lost {
            tracing::error!(path, session = %SessionId::from_uuid(session), "archived actions that cannot be read are given up");
        }
        Ok(())
    }

    /// Of a segment without a file nothing is left when no session is in it.
    async fn segment_forget(&self, segment: i64) -> Result<(), Failure> {
        let tx = self.begin().await?;
        if sessions_in(&tx, segment).await?.is_empty() {
            segment::Entity::delete_by_id(segment).filter(segment::Column::Path.is_null()).exec(&tx).await?;
        }
        tx.commit().await?;
        Ok(())
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
        let sql = "UPDATE segments SET path = $1, bytes = $2, action_count = $3, digest = $4, stale = stale - $5, \
                 damaged_at = NULL \
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
        let segments = segment::Entity::find().order_by_asc(segment::Column::Id).all(&self.read).await?;
        for row in segments {
            let (Some(path), Some(digest)) = (row.path, row.digest) else {
                // None where it is being written now.
                let lost = sessions_in(&self.read, row.id).await?;
                if !lost.is_empty() {
                    let actions = lost.iter().map(|session| session.archived_count).sum();
                    let path = format!("segment {}", row.id);
                    tell(SegmentCheck { path, actions, outcome: Err(Error::SegmentMissing) });
                }
                continue;
            };
            let file = SegmentFile { path: path.clone(), bytes: row.bytes.cast_unsigned() };
            let outcome = self.segment_verify(&file, &digest).await;
            tell(SegmentCheck { path, actions: row.action_count, outcome });
        }
        Ok(())
    }
}
