//! Erasing users with everything that is theirs: session by session, each whole. How far it is is written down with every
//! session, so that it can be asked for, and goes on when the process that did it has gone.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, DatabaseTransaction, DbErr, EntityTrait as _, ExprTrait as _, PaginatorTrait as _,
    QueryFilter as _, QuerySelect as _, Set,
    sea_query::{Expr, OnConflict},
};
use sha2::{Digest as _, Sha256};

use super::{
    Store,
    entity::{erasure, session, user},
};
use crate::{
    error::{Error, Result},
    failpoint,
    model::{Erasure, SessionId},
};

/// How many of a user's sessions are erased between two looks at what is left.
const ERASURE_STEP: u64 = 100;

impl Store {
    /// Erases a user and all of the user's sessions, one transaction a session. Broken off, it leaves whole sessions only,
    /// and goes on with [`Store::erasures_resume`], or when it is asked for again. `tell` hears of each session that is gone.
    pub async fn user_erase(
        &self,
        user_id: &str,
        now: DateTime<Utc>,
        tell: impl FnMut(SessionId) + Send,
    ) -> Result<Erasure> {
        self.erasure_begin(user_id, now).await?;
        self.erasure_carry_out(user_id, now, tell).await?;
        self.erasure_get(user_id).await
    }

    /// Goes on with the erasures that are not finished.
    pub async fn erasures_resume(&self, now: DateTime<Utc>, mut tell: impl FnMut(SessionId) + Send) -> Result<()> {
        let unfinished = erasure::Entity::find().filter(erasure::Column::FinishedAt.is_null());
        for user_id in unfinished.all(&self.read).await?.into_iter().filter_map(|row| row.user_id) {
            self.erasure_carry_out(&user_id, now, &mut tell).await?;
        }
        Ok(())
    }

    /// How far the erasure of a user is.
    pub async fn erasure_get(&self, user_id: &str) -> Result<Erasure> {
        let row = erasure::Entity::find_by_id(digest(user_id)).one(&self.write).await?.ok_or(Error::ErasureNotFound)?;
        Ok(Erasure {
            requested_at: row.requested_at,
            finished_at: row.finished_at,
            session_total: row.session_total,
            sessions: row.session_count,
            actions: row.action_count,
        })
    }

    /// Writes down that a user is to be erased. One that is being erased is so already; one that has been, and has come back,
    /// is anew.
    async fn erasure_begin(&self, user_id: &str, now: DateTime<Utc>) -> Result<()> {
        if user::Entity::find_by_id(user_id).one(&self.write).await?.is_none() {
            return Err(Error::UserNotFound);
        }
        let sessions = session::Entity::find().filter(session::Column::UserId.eq(user_id)).count(&self.read).await?;
        let row = erasure::ActiveModel {
            user_digest: Set(digest(user_id)),
            user_id: Set(Some(user_id.to_owned())),
            requested_at: Set(now),
            finished_at: Set(None),
            session_total: Set(i64::try_from(sessions).unwrap_or(i64::MAX)),
            session_count: Set(0),
            action_count: Set(0),
        };
        let is_over = Expr::col((erasure::Entity, erasure::Column::FinishedAt)).is_not_null();
        let begun = OnConflict::column(erasure::Column::UserDigest)
            .update_columns([
                erasure::Column::UserId,
                erasure::Column::RequestedAt,
                erasure::Column::FinishedAt,
                erasure::Column::SessionTotal,
                erasure::Column::SessionCount,
                erasure::Column::ActionCount,
            ])
            .action_and_where(is_over)
            .to_owned();
        erasure::Entity::insert(row).on_conflict(begun).exec_without_returning(&self.write).await?;
        Ok(())
    }

    async fn erasure_carry_out(
        &self,
        user_id: &str,
        now: DateTime<Utc>,
        mut tell: impl FnMut(SessionId) + Send,
    ) -> Result<()> {
        loop {
            let sessions = session::Entity::find()
                .filter(session::Column::UserId.eq(user_id))
                .limit(ERASURE_STEP)
                .all(&self.write)
                .await?;
            for session in &sessions {
                let id = SessionId::from_uuid(session.id);
                match self.session_erase_for(id, user_id, now).await {
                    Ok(_) => {
                        tell(id);
                        failpoint::reach("session of a user erased");
                    }
                    // Somebody else erased it first.
                    Err(Error::SessionNotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            if sessions.is_empty() && self.user_delete(user_id).await? {
                erasure::Entity::update_many()
                    .col_expr(erasure::Column::FinishedAt, Expr::val(self.now()))
                    .col_expr(erasure::Column::UserId, Expr::val(None::<String>))
                    .filter(erasure::Column::UserDigest.eq(digest(user_id)))
                    .filter(erasure::Column::FinishedAt.is_null())
                    .exec(&self.write)
                    .await?;
                return Ok(());
            }
        }
    }
}

/// What a user's id is known by when nothing else is kept of it.
fn digest(user_id: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(user_id.as_bytes()).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Notes that a session of a user is erased.
pub(super) async fn note_in_txn(tx: &DatabaseTransaction, user_id: &str, actions: i64) -> Result<(), DbErr> {
    let add = |column: erasure::Column, count: i64| Expr::col(column).add(count);
    erasure::Entity::update_many()
        .col_expr(erasure::Column::SessionCount, add(erasure::Column::SessionCount, 1))
        .col_expr(erasure::Column::ActionCount, add(erasure::Column::ActionCount, actions))
        .filter(erasure::Column::UserDigest.eq(digest(user_id)))
        .exec(tx)
        .await?;
    Ok(())
}
