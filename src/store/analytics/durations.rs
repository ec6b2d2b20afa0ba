//! How long sessions last.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use futures_util::TryStreamExt as _;
use uuid::Uuid;

use super::{sessions_where, too_much};
use crate::{
    error::Result,
    model::{SessionFilter, SessionId, duration_ms},
    store::{Store, entity::session, search::Depth},
};

/// Sessions whose durations are kept at most: 8 bytes each.
const MAX_SESSIONS: usize = 10_000_000;

impl Store {
    /// The durations of sessions in milliseconds, by the day on which they started.
    ///
    /// Query `durations`. Uses `sessions_duration` or what the filter asks for.
    pub async fn session_durations(
        &self,
        filter: &SessionFilter,
        now: DateTime<Utc>,
    ) -> Result<BTreeMap<NaiveDate, Vec<i64>>> {
        asked!(self, async |question| {
            let matched = question.matched(filter, Depth::Tracks, now).await?;
            let mut days: BTreeMap<NaiveDate, Vec<i64>> = BTreeMap::new();
            let mut add = |session: SessionId, duration: i64| {
                days.entry(session.started_at().date_naive()).or_default().push(duration);
            };
            let mut count = matched.dirty.len();
            for session in &matched.dirty {
                add(session.id, duration_ms(session.id, session.last_action_at));
            }
            for condition in matched.clean {
                let mut query = sessions_where(condition);
                query.column((session::Entity, session::Column::Id));
                query.column((session::Entity, session::Column::DurationMs));
                let mut rows = question.stream::<(Uuid, i64)>("durations", &query).await?;
                while let Some((session, duration)) = rows.try_next().await? {
                    add(SessionId::from_uuid(session), duration);
                    count += 1;
                    if count > MAX_SESSIONS {
                        return Err(too_much("filter", MAX_SESSIONS, "sessions"));
                    }
                }
            }
            Ok(days)
        })
    }
}
