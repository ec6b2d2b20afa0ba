//! The states of files: each change is a commit of its own, and is made only from the states that it may be made from.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait as _, QueryFilter as _, Set,
    sea_query::Expr,
};

use super::Store;
use crate::{
    error::{Error, Result},
    failpoint,
    store::{
        entity::{
            segment,
            segment_file::{self, FileState},
        },
        failure::Failure,
    },
};

/// States of a file that nobody uses yet.
pub(super) const UNUSED: [FileState; 2] = [FileState::Planned, FileState::Written];

/// Notes a file that is going to be written for a segment.
pub(super) async fn plan(tx: &DatabaseTransaction, path: &str, segment: i64, now: DateTime<Utc>) -> Result<(), DbErr> {
    let row = segment_file::ActiveModel {
        path: Set(path.to_owned()),
        segment_id: Set(segment),
        state: Set(FileState::Planned),
        since: Set(now),
    };
    segment_file::Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}

/// Brings a file from one of some states into another. Gives whether it was in one of them.
pub(super) async fn advance(
    connection: &impl ConnectionTrait,
    path: &str,
    from: &[FileState],
    to: FileState,
    now: DateTime<Utc>,
) -> Result<bool, DbErr> {
    let advanced = segment_file::Entity::update_many()
        .col_expr(segment_file::Column::State, Expr::value(to))
        .col_expr(segment_file::Column::Since, Expr::value(now))
        .filter(segment_file::Column::Path.eq(path))
        .filter(segment_file::Column::State.is_in(from.iter().copied()));
    Ok(advanced.exec(connection).await?.rows_affected == 1)
}

/// Says that a file will not be used, which it was not, nor its segment, if that has no other. Gives whether that is so now.
pub(super) async fn forgo(
    tx: &DatabaseTransaction,
    path: &str,
    segment: i64,
    now: DateTime<Utc>,
) -> Result<bool, DbErr> {
    let is_forgone = advance(tx, path, &UNUSED, FileState::Removing, now).await?;
    if is_forgone {
        let never_used = segment::Entity::delete_many().filter(segment::Column::Id.eq(segment));
        never_used.filter(segment::Column::Path.is_null()).exec(tx).await?;
    }
    Ok(is_forgone)
}

impl Store {
    /// The file is whole. Fails where somebody else has said meanwhile that it will not be used.
    pub(super) async fn file_written(&self, path: &str, now: DateTime<Utc>) -> Result<()> {
        let is_ours = advance(&self.write, path, &[FileState::Planned], FileState::Written, now).await?;
        failpoint::reach("segment noted");
        if is_ours { Ok(()) } else { Err(Error::Contention) }
    }

    /// Gives up a file that this process has written, or has begun to. What cannot be done now is left to the next tidying up.
    pub(super) async fn file_give_up(&self, path: &str, segment: i64, now: DateTime<Utc>) {
        let given_up = async {
            let tx = self.begin().await?;
            if !forgo(&tx, path, segment, now).await? {
                let row = segment_file::Entity::find_by_id(path).one(&tx).await?;
                // It is in use after all: the connection broke when that was committed.
                if row.is_some_and(|row| row.state == FileState::InUse) {
                    return Ok(());
                }
            }
            tx.commit().await?;
            // Not one that others have removed already either: it was completed after that.
            Ok::<_, Failure>(self.file_remove(path, now).await?)
        };
        if let Err(error) = given_up.await.map_err(Error::from) {
            tracing::warn!(%error, path, "a file of the archive that is not needed is left for later");
        }
    }

    /// Removes a file of which it is committed that nobody will use it.
    pub(super) async fn file_remove(&self, path: &str, now: DateTime<Utc>) -> Result<()> {
        self.archive()?.remove(path).await?;
        failpoint::reach("file removed");
        advance(&self.write, path, &[FileState::Removing], FileState::Gone, now).await?;
        Ok(())
    }
}
