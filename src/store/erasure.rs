//! Erasing users with everything that is theirs: session by session, each whole. How far it is is written down with every
//! session, so that it can be asked for, and goes on when the process that did it has gone. The same of single sessions.

mod finish;
mod vacuum;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DatabaseBackend, DatabaseTransaction, DbErr, EntityTrait as _,
    ExprTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, Set,
    sea_query::{Expr, OnConflict},
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

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
    /// Erases a user and all of the user's sessions, one transaction a session, so that no answer shows them. Broken off, it
    /// leaves whole sessions only, and goes on with [`Store::erasures_resume`], or when it is asked for again. `tell` hears of
    /// each session that is gone. What is not in answers any more, but elsewhere, is for [`Store::erasures_finish`].
    pub async fn user_erase(
        &self,
        user_id: &str,
        now: DateTime<Utc>,
        tell: impl FnMut(SessionId) + Send,
    ) -> Result<Erasure> {
        self.erasure_begin(user_id, now).await?;
        self.erasure_carry_out(user_id, now, tell).await?;
        self.erasure_of(&digest(user_id)).await
    }

    /// Goes on with the erasures that are not finished, and finishes those of which all sessions are gone. One that fails
    /// stops none of the others.
    pub async fn erasures_resume(&self, now: DateTime<Utc>, mut tell: impl FnMut(SessionId) + Send) -> Result<()> {
        let unfinished = erasure::Entity::find().filter(erasure::Column::GoneAt.is_null());
        let unfinished = unfinished.filter(erasure::Column::FinishedAt.is_null()).all(&self.write).await?;
        let mut outcome = Ok(());
        for user_id in unfinished.into_iter().filter_map(|row| row.user_id) {
            let carried_out = self.erasure_carry_out(&user_id, now, &mut tell).await;
            if let Err(error) = &carried_out {
                tracing::warn!(%error, "a user is not erased yet, trying again later");
            }
            outcome = outcome.and(carried_out);
        }
        outcome.and(self.erasures_finish(now).await)
    }

    /// Returns when an erasure waits to be finished.
    pub async fn erasures_wake(&self) {
        self.erasures_wake.notified().await;
    }

    /// How far the erasure of a user is.
    pub async fn erasure_get(&self, user_id: &str) -> Result<Erasure> {
        self.erasure_of(&digest(user_id)).await
    }

    /// How far the erasure of a session is that was erased alone.
    pub async fn erasure_get_of_session(&self, session: SessionId) -> Result<Erasure> {
        self.erasure_of(&session.to_string()).await
    }

    async fn erasure_of(&self, key: &str) -> Result<Erasure> {
        let row = erasure::Entity::find_by_id(key).one(&self.write).await?.ok_or(Error::ErasureNotFound)?;
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
            gone_at: Set(None),
            finished_at: Set(None),
            session_total: Set(i64::try_from(sessions).unwrap_or(i64::MAX)),
            session_count: Set(0),
            action_count: Set(0),
        };
        // One that was finished before there was a word for it has the later time only.
        let is_over = Expr::col((erasure::Entity, erasure::Column::FinishedAt)).is_not_null();
        let is_over = is_over.or(Expr::col((erasure::Entity, erasure::Column::GoneAt)).is_not_null());
        let begun = OnConflict::column(erasure::Column::UserDigest)
            .update_columns([
                erasure::Column::UserId,
                erasure::Column::RequestedAt,
                erasure::Column::GoneAt,
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
            let (mut after, mut outcome) = (Uuid::nil(), Ok(()));
            loop {
                let sessions = session::Entity::find()
                    .filter(session::Column::UserId.eq(user_id))
                    .filter(session::Column::Id.gt(after))
                    .order_by_asc(session::Column::Id)
                    .limit(ERASURE_STEP)
                    .all(&self.write)
                    .await?;
                let Some(last) = sessions.last() else { break };
                after = last.id;
                for session in &sessions {
                    let id = SessionId::from_uuid(session.id);
                    match self.session_erase_for(id, user_id, now).await {
                        Ok(_) => {
                            tell(id);
                            failpoint::reach("session of a user erased");
                        }
                        // Somebody else erased it first.
                        Err(Error::SessionNotFound) => {}
                        // The others go all the same.
                        Err(error) => outcome = outcome.and(Err(error)),
                    }
                }
            }
            outcome?;
            if self.user_delete(user_id).await? {
                return self.erasure_gone(&digest(user_id), now).await;
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

/// Whose erasure a session's is a part of.
#[derive(Clone, Copy)]
pub(super) enum Whose<'a> {
    /// Its user's.
    User(&'a str),
    /// Its own.
    Own,
}

/// Notes that a session is erased.
pub(super) async fn note_in_txn(
    tx: &DatabaseTransaction,
    whose: Whose<'_>,
    session: SessionId,
    actions: i64,
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let key = match whose {
        Whose::User(user_id) => {
            let key = digest(user_id);
            let add = |column: erasure::Column, count: i64| Expr::col(column).add(count);
            erasure::Entity::update_many()
                .col_expr(erasure::Column::SessionCount, add(erasure::Column::SessionCount, 1))
                .col_expr(erasure::Column::ActionCount, add(erasure::Column::ActionCount, actions))
                .filter(erasure::Column::UserDigest.eq(&*key))
                .exec(tx)
                .await?;
            key
        }
        Whose::Own => {
            let key = session.to_string();
            // There is one where the id was used again when it was forgotten that it had been.
            erasure::Entity::delete_by_id(&*key).exec(tx).await?;
            let row = erasure::ActiveModel {
                user_digest: Set(key.clone()),
                user_id: Set(None),
                requested_at: Set(now),
                gone_at: Set(None),
                finished_at: Set(None),
                session_total: Set(1),
                session_count: Set(1),
                action_count: Set(actions),
            };
            erasure::Entity::insert(row).exec_without_returning(tx).await?;
            key
        }
    };
    if tx.get_database_backend() == DatabaseBackend::Postgres {
        finish::note(tx, &key, finish::DAY, &session.started_at().date_naive().to_string()).await?;
    }
    Ok(())
}
