//! Queries about tracks.

use std::collections::HashMap;

use sea_orm::{ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _};
use uuid::Uuid;

use super::{Store, entity::track};
use crate::{
    error::{Error, Result},
    model::{SessionId, Track},
};

/// Number of a track's actions in SQL, as far as is known what was deleted by hand.
pub(super) const ACTIONS_OF_TRACK: &str = "(tracks.last_seq - coalesce(tracks.lost_count, 0))";

impl Store {
    /// The tracks of a session by number, and whether it has ended.
    pub async fn track_list(&self, session: SessionId) -> Result<(Vec<Track>, bool)> {
        self.in_time(self.track_list_unlimited(session)).await
    }

    async fn track_list_unlimited(&self, session: SessionId) -> Result<(Vec<Track>, bool)> {
        // The session first: what is committed before it ends is then in the tracks.
        let ended = self.session_is_ended(session).await?.ok_or(Error::SessionNotFound)?;
        let mut tracks = tracks_of(&self.read, &[session.as_uuid()]).await?;
        let tracks = tracks.remove(&session.as_uuid()).unwrap_or_default();
        // An erasure in between takes the tracks along: nothing was there is not the same as nothing is there any more.
        if tracks.is_empty() && self.session_is_ended(session).await?.is_none() {
            return Err(Error::SessionNotFound);
        }
        Ok((tracks, ended))
    }
}

/// The tracks of these sessions, each session's by number.
pub(super) async fn tracks_of(
    connection: &impl ConnectionTrait,
    sessions: &[Uuid],
) -> Result<HashMap<Uuid, Vec<Track>>, DbErr> {
    if sessions.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = track::Entity::find()
        .filter(track::Column::SessionId.is_in(sessions.iter().copied()))
        .order_by_asc(track::Column::SessionId)
        .order_by_asc(track::Column::Number)
        .all(connection)
        .await?;
    let mut tracks: HashMap<Uuid, Vec<Track>> = HashMap::new();
    for row in rows {
        tracks.entry(row.session_id).or_default().push(from_row(row));
    }
    Ok(tracks)
}

pub(super) fn from_row(row: track::Model) -> Track {
    Track {
        number: row.number,
        source: row.source,
        last_seq: row.last_seq,
        accepted_count: row.accepted_count,
        duplicate_count: row.duplicate_count,
        rejected_count: row.rejected_count,
        error_count: row.error_count,
        last_action_at: row.last_action_at,
        is_dirty: row.dirty,
        lost_count: row.lost_count,
        cut: row.cut,
    }
}
