//! Queries about sessions: starting, ending, finding and changing them.

mod erase;

use std::{collections::HashSet, sync::PoisonError};

use chrono::{DateTime, SubsecRound as _, Utc};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait as _,
    ExprTrait as _, QueryFilter as _, QuerySelect as _, QueryTrait as _, Set,
    sea_query::{Expr, LockType, OnConflict},
};
use uuid::Uuid;

use super::{
    Store,
    entity::{session, tombstone, track},
    failure::{Attempts, Failure},
    retention::too_old,
    track::tracks_of,
    user::{attributes_from_json, attributes_to_json},
};
use crate::{
    error::{Error, Result},
    model::{Attributes, IDLE_END_REASON, Pin, Session, SessionEnd, SessionId, SessionStart, SessionUpdate, Track},
};

/// Sessions that are looked at by one statement.
const SESSIONS_A_STATEMENT: usize = 500;

impl Store {
    /// Starts a session, or finds it started and merges what is known of it.
    pub async fn session_start(&self, start: &SessionStart, now: DateTime<Utc>, max_attributes: usize) -> Result<()> {
        // In transactions of their own and before the session's: distributed PostgreSQL wants it so. Looked at first, so
        // that a start that will be refused leaves nothing of its user behind.
        if let Some(user) = &start.user {
            self.session_check_start(start.id, &user.id, now).await?;
            self.user_upsert(user.clone(), max_attributes).await?;
        }
        self.partition_ensure_for(start.id).await;
        let mut attempts = Attempts::default();
        loop {
            match self.session_start_once(start, now, max_attributes).await {
                Ok(()) => return Ok(()),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    /// Whether a session is there.
    pub async fn session_exists(&self, id: SessionId) -> Result<bool> {
        Ok(!existing(&self.write, &[id.as_uuid()]).await?.is_empty())
    }

    /// Fails if a session cannot be started, or started again, by this user.
    async fn session_check_start(&self, id: SessionId, user_id: &str, now: DateTime<Utc>) -> Result<()> {
        if is_erased(&self.write, id).await? {
            return Err(Error::SessionErased);
        }
        let stored = session::Entity::find_by_id(id.as_uuid()).one(&self.write).await?;
        let Some(stored) = stored else { return too_old(&self.write, id, now).await?.map_or(Ok(()), Err) };
        match stored.user_id {
            Some(owner) if owner != user_id => Err(Error::SessionOfAnotherUser),
            _ => Ok(()),
        }
    }

    async fn session_start_once(
        &self,
        start: &SessionStart,
        now: DateTime<Utc>,
        max_attributes: usize,
    ) -> Result<(), Failure> {
        let user_id = start.user.as_ref().map(|user| user.id.clone());
        let tx = self.begin().await?;
        let new = session::ActiveModel {
            id: Set(start.id.as_uuid()),
            user_id: Set(user_id.clone()),
            started_at: Set(start.id.started_at()),
            ended_at: Set(None),
            end_reason: Set(None),
            attributes: Set(attributes_to_json(&start.attributes)),
            created_at: Set(now),
            // Nothing is known of its actions yet, as the defaults say.
            ..Default::default()
        };
        // Writing first takes the row's lock, or makes the row; an erasure that is under way is waited for.
        let stored = session::Entity::insert(new)
            .on_conflict(OnConflict::column(session::Column::Id).update_column(session::Column::StartedAt).to_owned())
            .exec_with_returning(&tx)
            .await?;
        // Looked at after the row is ours, so that an erasure cannot slip in between.
        if is_erased(&tx, start.id).await? {
            return Err(Error::SessionErased.into());
        }
        // One that is there may be started again, whatever its age: it is pinned.
        let is_new = stored.created_at.trunc_subsecs(6) == now.trunc_subsecs(6);
        if is_new && let Some(error) = too_old(&tx, start.id, now).await? {
            return Err(error.into());
        }
        if stored.user_id.is_some() && user_id.is_some() && stored.user_id != user_id {
            return Err(Error::SessionOfAnotherUser.into());
        }
        let mut attributes = attributes_from_json(stored.attributes);
        attributes.extend(start.attributes.clone());
        check_count(&attributes, max_attributes)?;
        let merged = session::ActiveModel {
            id: Set(stored.id),
            user_id: Set(stored.user_id.or(user_id)),
            attributes: Set(attributes_to_json(&attributes)),
            ..Default::default()
        };
        merged.update(&tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Ends a session, if its tracks are as complete as the sender says. An end by the idle timeout is overruled, any
    /// other stays as it is.
    pub async fn session_end(&self, end: &SessionEnd) -> Result<()> {
        let mut attempts = Attempts::default();
        loop {
            match self.session_end_once(end).await {
                Ok(()) => return Ok(()),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn session_end_once(&self, end: &SessionEnd) -> Result<(), Failure> {
        let tx = self.begin().await?;
        let id = end.id.as_uuid();
        let Some(stored) = session::Entity::find_by_id(id).lock(LockType::NoKeyUpdate).one(&tx).await? else {
            return Err(absent(&tx, end.id).await?.into());
        };
        let tracks = tracks_of(&tx, &[id]).await?.remove(&id).unwrap_or_default();
        for (source, last_seq) in &end.last_seqs {
            let committed_seq = tracks.iter().find(|track| track.source == *source).map_or(0, |track| track.last_seq);
            if committed_seq != *last_seq {
                let (session, source_name, last_seq) = (end.id, source.clone(), *last_seq);
                return Err(Error::TrackIncomplete { session, source_name, committed_seq, last_seq }.into());
            }
        }
        if stored.ended_at.is_none() || stored.end_reason.as_deref() == Some(IDLE_END_REASON) {
            let ended = session::ActiveModel {
                id: Set(id),
                ended_at: Set(Some(end.ended_at.unwrap_or_else(|| default_end(&stored, &tracks)))),
                end_reason: Set(Some(end.reason.clone())),
                ..Default::default()
            };
            ended.update(&tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Ends live sessions of which nothing has arrived since the given time, at most `limit` of them: as of their last
    /// action. Returns which.
    pub async fn session_end_idle(&self, silent_since: DateTime<Utc>, limit: u64) -> Result<Vec<SessionId>> {
        let heard_of = track::Entity::find()
            .select_only()
            .column(track::Column::SessionId)
            .filter(track::Column::LastReceivedAt.gte(silent_since))
            .filter(Expr::col((track::Entity, track::Column::SessionId)).equals((session::Entity, session::Column::Id)))
            .into_query();
        let is_idle = Condition::all()
            .add(session::Column::EndedAt.is_null())
            .add(session::Column::CreatedAt.lt(silent_since))
            .add(Expr::exists(heard_of).not());
        let idle = session::Entity::find().filter(is_idle.clone()).limit(limit).all(&self.read).await?;
        let ids: Vec<_> = idle.iter().map(|session| session.id).collect();
        let tracks = tracks_of(&self.read, &ids).await?;
        let mut ended = Vec::new();
        for session in idle {
            let of_session = tracks.get(&session.id).map(Vec::as_slice).unwrap_or_default();
            let update = session::Entity::update_many()
                .col_expr(session::Column::EndedAt, Expr::value(default_end(&session, of_session)))
                .col_expr(session::Column::EndReason, Expr::value(IDLE_END_REASON))
                .filter(session::Column::Id.eq(session.id))
                .filter(is_idle.clone());
            if update.exec(&self.write).await?.rows_affected > 0 {
                ended.push(SessionId::from_uuid(session.id));
            }
        }
        Ok(ended)
    }

    /// Notes that something was stored of sessions.
    pub(super) fn session_hear_of(&self, sessions: impl Iterator<Item = SessionId>) {
        self.heard_of.lock().unwrap_or_else(PoisonError::into_inner).extend(sessions);
    }

    /// Takes back the end by the idle timeout of the sessions that this process has stored something of since it was last asked.
    /// Returns which.
    pub async fn session_revive(&self) -> Result<Vec<SessionId>> {
        let heard_of = self.heard_of.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut heard_of: Vec<_> = heard_of.into_iter().map(SessionId::as_uuid).collect();
        // In the order in which all take locks.
        heard_of.sort_unstable();
        let mut revived = Vec::new();
        for ids in heard_of.chunks(SESSIONS_A_STATEMENT) {
            let update = session::Entity::update_many()
                .col_expr(session::Column::EndedAt, Expr::cust("NULL"))
                .col_expr(session::Column::EndReason, Expr::cust("NULL"))
                .filter(session::Column::Id.is_in(ids.iter().copied()))
                .filter(session::Column::EndReason.eq(IDLE_END_REASON));
            let rows = update.exec_with_returning(&self.write).await?;
            // Only now: those of which this failed, or was broken off, are looked at again.
            let mut heard_of = self.heard_of.lock().unwrap_or_else(PoisonError::into_inner);
            ids.iter().for_each(|id| {
                heard_of.remove(&SessionId::from_uuid(*id));
            });
            revived.extend(rows.into_iter().map(|row| SessionId::from_uuid(row.id)));
        }
        Ok(revived)
    }

    /// Gives one session with its tracks.
    pub async fn session_get(&self, id: SessionId) -> Result<Session> {
        let row = session::Entity::find_by_id(id.as_uuid()).one(&self.read).await?.ok_or(Error::SessionNotFound)?;
        let sessions = self.with_tracks(vec![row]).await?;
        let session = sessions.into_iter().next().ok_or(Error::SessionNotFound)?;
        // An erasure in between takes the tracks along.
        if session.tracks.is_empty() && self.session_is_ended(id).await?.is_none() {
            return Err(Error::SessionNotFound);
        }
        Ok(session)
    }

    /// Whether a session has ended. None where there is no such session.
    pub async fn session_is_ended(&self, id: SessionId) -> Result<Option<bool>> {
        let row = session::Entity::find_by_id(id.as_uuid()).one(&self.read).await?;
        Ok(row.map(|row| row.ended_at.is_some()))
    }

    async fn with_tracks(&self, rows: Vec<session::Model>) -> Result<Vec<Session>> {
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        let mut tracks = tracks_of(&self.read, &ids).await?;
        let sessions = rows.into_iter().map(|row| {
            let tracks = tracks.remove(&row.id).unwrap_or_default();
            from_row(row, tracks)
        });
        Ok(sessions.collect())
    }

    /// Changes attributes, pin and expiry of a session.
    pub async fn session_update(&self, id: SessionId, update: &SessionUpdate, max_attributes: usize) -> Result<()> {
        let mut attempts = Attempts::default();
        loop {
            match self.session_update_once(id, update, max_attributes).await {
                Ok(()) => return Ok(()),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn session_update_once(
        &self,
        id: SessionId,
        update: &SessionUpdate,
        max_attributes: usize,
    ) -> Result<(), Failure> {
        let tx = self.begin().await?;
        let stored = session::Entity::find_by_id(id.as_uuid()).lock(LockType::NoKeyUpdate).one(&tx).await?;
        let stored = stored.ok_or(Error::SessionNotFound)?;
        let mut attributes = attributes_from_json(stored.attributes);
        attributes.retain(|key, _| !update.removed.contains(key));
        attributes.extend(update.set.clone());
        check_count(&attributes, max_attributes)?;
        let mut changed = session::ActiveModel {
            id: Set(id.as_uuid()),
            attributes: Set(attributes_to_json(&attributes)),
            ..Default::default()
        };
        if let Some(pin) = &update.pin {
            changed.pinned_until = Set(pin.as_ref().map(|pin| pin.until));
            changed.pin_reason = Set(pin.as_ref().map(|pin| pin.reason.clone()));
        }
        if let Some(expires_at) = update.expires_at {
            changed.expires_at = Set(expires_at);
        }
        changed.update(&tx).await?;
        tx.commit().await?;
        Ok(())
    }
}

pub(super) fn from_row(row: session::Model, tracks: Vec<Track>) -> Session {
    Session {
        id: SessionId::from_uuid(row.id),
        user_id: row.user_id,
        ended_at: row.ended_at,
        end_reason: row.end_reason,
        attributes: attributes_from_json(row.attributes),
        pin: row.pinned_until.map(|until| Pin { until, reason: row.pin_reason.unwrap_or_default() }),
        expires_at: row.expires_at,
        action_count: tracks.iter().map(Track::action_count).sum(),
        error_count: tracks.iter().map(|track| track.error_count).sum(),
        last_action_at: tracks.iter().filter_map(|track| track.last_action_at).max(),
        tracks,
    }
}

/// When a session has ended, where nobody says: with its last action, and not before its start.
fn default_end(session: &session::Model, tracks: &[Track]) -> DateTime<Utc> {
    let last_action_at = tracks.iter().filter_map(|track| track.last_action_at).max();
    std::cmp::max(session.started_at, last_action_at.unwrap_or(session.started_at))
}

/// Whether a user has sessions.
pub(super) async fn user_has_sessions(tx: &DatabaseTransaction, user_id: &str) -> Result<bool, DbErr> {
    Ok(session::Entity::find().filter(session::Column::UserId.eq(user_id)).one(tx).await?.is_some())
}

fn check_count(attributes: &Attributes, limit: usize) -> Result<()> {
    let count = attributes.len();
    if count > limit { Err(Error::TooManyAttributes { count, limit }) } else { Ok(()) }
}

async fn is_erased(connection: &impl ConnectionTrait, id: SessionId) -> Result<bool, DbErr> {
    Ok(tombstone::Entity::find_by_id(id.as_uuid()).one(connection).await?.is_some())
}

/// Which of these sessions are there.
pub(super) async fn existing(connection: &impl ConnectionTrait, ids: &[Uuid]) -> Result<HashSet<Uuid>, DbErr> {
    let found = session::Entity::find().select_only().column(session::Column::Id);
    let found = found.filter(session::Column::Id.is_in(ids.iter().copied())).into_tuple().all(connection).await?;
    Ok(found.into_iter().collect())
}

/// Why a session is not there: it was erased, or it never was.
pub(super) async fn absent(connection: &impl ConnectionTrait, id: SessionId) -> Result<Error, DbErr> {
    Ok(if is_erased(connection, id).await? { Error::SessionErased } else { Error::SessionNotFound })
}
