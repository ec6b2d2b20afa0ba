//! Counting over many sessions: from the roll-up, the facets and the summaries of clean sessions as far as they can tell, and
//! from what is read of the dirty ones; all of one moment.

mod counts;
mod durations;
mod errors;
mod funnel;
mod tally;
mod transitions;

use chrono::{DateTime, Utc};
use sea_orm::{
    Condition, EntityTrait as _, QueryFilter as _, QueryTrait as _,
    sea_query::{ExprTrait as _, Query, SelectStatement, SimpleExpr},
};
use uuid::Uuid;

use super::{
    entity::session,
    question::Question,
    search::{Depth, Matched, of_sessions, session_column},
};
use crate::{
    error::{Error, Result},
    model::SessionFilter,
};

/// Sessions that are named in one condition.
const SESSIONS_A_CONDITION: usize = 1_000;

impl Matched {
    /// Conditions on `sessions`: each chooses some of the matching sessions, dirty or clean, all together each once.
    fn all(&self, filter: &SessionFilter, now: DateTime<Utc>, question: &Question) -> Vec<Condition> {
        if self.is_by_start_only {
            return vec![of_sessions(filter, now, question.backend())];
        }
        let mut conditions = self.clean.clone();
        let id = session_column(session::Column::Id);
        let dirty: Vec<_> = self.dirty.iter().map(|session| session.id.as_uuid()).collect();
        match (conditions.as_mut_slice(), dirty.as_slice()) {
            (_, []) => {}
            // One condition is one statement, which can count what is distinct.
            ([clean], dirty) if dirty.len() <= SESSIONS_A_CONDITION => {
                *clean = Condition::any().add(clean.clone()).add(id.is_in(dirty.iter().copied()));
            }
            (_, dirty) => conditions.extend(are(dirty)),
        }
        conditions
    }
}

/// Conditions on `sessions` that choose these.
fn are(sessions: &[Uuid]) -> Vec<Condition> {
    let id = session_column(session::Column::Id);
    let chunks = sessions.chunks(SESSIONS_A_CONDITION);
    chunks.map(|ids| Condition::all().add(id.clone().is_in(ids.iter().copied()))).collect()
}

/// That a session's actions are rows, all of them.
fn is_not_archived() -> SimpleExpr {
    session_column(session::Column::SegmentId).is_null()
}

impl Question {
    /// Those of the sessions that these conditions choose which are archived.
    ///
    /// Query `archived sessions`.
    async fn archived(&self, conditions: &[Condition]) -> Result<Vec<session::Model>> {
        let mut sessions = Vec::new();
        for condition in conditions {
            let query = session::Entity::find().filter(condition.clone()).filter(is_not_archived().not()).into_query();
            sessions.extend(self.models::<session::Model>("archived sessions", &query).await?);
        }
        Ok(sessions)
    }

    /// Matching sessions with their users, dirty or clean.
    ///
    /// Query `ids of sessions`.
    async fn session_ids(
        &self,
        filter: &SessionFilter,
        now: DateTime<Utc>,
        further: Option<Condition>,
    ) -> Result<Vec<(Uuid, Option<String>)>> {
        let matched = self.matched(filter, Depth::Tracks, now).await?;
        let mut sessions: Vec<_> =
            matched.dirty.iter().map(|session| (session.id.as_uuid(), session.user_id.clone())).collect();
        for condition in matched.clean {
            let mut query = sessions_where(condition);
            query.column((session::Entity, session::Column::Id)).column((session::Entity, session::Column::UserId));
            if let Some(further) = &further {
                query.cond_where(further.clone());
            }
            sessions.extend(self.rows::<(Uuid, Option<String>)>("ids of sessions", &query).await?);
        }
        Ok(sessions)
    }
}

fn sessions_where(condition: Condition) -> SelectStatement {
    Query::select().from(session::Entity).cond_where(condition).to_owned()
}

/// More than can be kept in memory.
fn too_much(field: &str, limit: usize, what: &str) -> Error {
    Error::invalid(field, format!("more than {limit} {what}: give a shorter time range, or choose fewer sessions"))
}
