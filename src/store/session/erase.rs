//! Erasing sessions: by request, as a part of the erasure of their user, and because they are not kept any longer.

use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, Condition, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QuerySelect as _, Set,
    sea_query::OnConflict,
};

use crate::{
    error::{Error, Result},
    model::SessionId,
    store::{
        Store,
        archive::make_stale,
        changes::{Erased, notify_erased_in_txn},
        entity::{action, session, tombstone, track},
        erasure::{self, Whose},
        failure::{Attempts, Failure},
        hand_deletes::{own_deletes_begin, own_deletes_end},
        index,
        track::from_row as track_from_row,
    },
};

impl Store {
    /// Erases a session and its actions, so that no answer shows them, and keeps its id so that nothing is stored under it
    /// again. Returns the number of actions erased. The rest is for [`Store::erasures_finish`].
    pub async fn session_erase(&self, id: SessionId, now: DateTime<Utc>) -> Result<i64> {
        let actions = self.session_remove(id, Condition::all(), Some(Whose::Own), now).await?;
        // It is gone, whatever comes of this.
        if let Err(error) = self.erasure_gone(&id.to_string(), now).await {
            tracing::warn!(%error, "an erasure is not noted as gone, trying again later");
        }
        Ok(actions)
    }

    /// The same, as a part of the erasure of its user.
    pub(in crate::store) async fn session_erase_for(
        &self,
        id: SessionId,
        user_id: &str,
        now: DateTime<Utc>,
    ) -> Result<i64> {
        self.session_remove(id, Condition::all(), Some(Whose::User(user_id)), now).await
    }

    /// The same, unless it is pinned or its own time has not come: then it is as if it were not there. With `only_own`, nor
    /// is one that has no time of its own.
    pub(in crate::store) async fn session_expire(
        &self,
        id: SessionId,
        only_own: bool,
        now: DateTime<Utc>,
    ) -> Result<i64> {
        let (pinned_until, expires_at) = (session::Column::PinnedUntil, session::Column::ExpiresAt);
        let is_not_pinned = Condition::any().add(pinned_until.is_null()).add(pinned_until.lte(now));
        let mut has_come = Condition::any().add(expires_at.lte(now));
        if !only_own {
            has_come = has_come.add(expires_at.is_null());
        }
        self.session_remove(id, Condition::all().add(is_not_pinned).add(has_come), None, now).await
    }

    async fn session_remove(
        &self,
        id: SessionId,
        condition: Condition,
        erasure: Option<Whose<'_>>,
        now: DateTime<Utc>,
    ) -> Result<i64> {
        let mut attempts = Attempts::default();
        loop {
            match self.session_remove_once(id, condition.clone(), erasure, now).await {
                Ok(actions) => {
                    self.has_erased.store(true, Ordering::Release);
                    self.tell_erased(Erased::Session(id));
                    return Ok(actions);
                }
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn session_remove_once(
        &self,
        id: SessionId,
        condition: Condition,
        erasure: Option<Whose<'_>>,
        now: DateTime<Utc>,
    ) -> Result<i64, Failure> {
        let tx = self.begin().await?;
        if self.is_postgres() {
            // However large the session is.
            tx.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
        }
        let uuid = id.as_uuid();
        // The tracks' locks keep writers out until the session is gone; then its foreign key does.
        let locked = track::Entity::find().filter(track::Column::SessionId.eq(uuid)).lock_exclusive().all(&tx).await?;
        let actions = locked.into_iter().map(|row| track_from_row(row).action_count()).sum();
        let row = session::Entity::find_by_id(uuid).lock_exclusive().one(&tx).await?;
        let segment = row.and_then(|row| row.segment_id);
        // On SQLite its actions go along with it.
        own_deletes_begin(&tx, uuid).await?;
        let gone = session::Entity::delete_by_id(uuid).filter(condition).exec(&tx).await?;
        if gone.rows_affected == 0 {
            return Err(Error::SessionNotFound.into());
        }
        let tombstone = tombstone::ActiveModel { session_id: Set(uuid), erased_at: Set(now) };
        tombstone::Entity::insert(tombstone)
            .on_conflict(OnConflict::column(tombstone::Column::SessionId).do_nothing().to_owned())
            .exec_without_returning(&tx)
            .await?;
        index::erase::in_txn(&tx, id).await?;
        if let Some(segment) = segment {
            make_stale(&tx, segment).await?;
        }
        action::Entity::delete_many().filter(action::Column::SessionId.eq(uuid)).exec(&tx).await?;
        own_deletes_end(&tx).await?;
        if let Some(whose) = erasure {
            erasure::note_in_txn(&tx, whose, id, actions, now).await?;
        }
        notify_erased_in_txn(&tx, Erased::Session(id)).await?;
        tx.commit().await?;
        Ok(actions)
    }
}
