//! Finding actions across sessions.

use chrono::{DateTime, Utc};
use sea_orm::{ExprTrait as _, sea_query::Expr};

use super::target::action_condition;
use crate::{
    archive::ArchivedAction,
    error::Result,
    model::{
        ActionMatch, ActionSearch, ActionView, FoundAction, Position, SessionId, SessionPlace, SessionSearch,
        StoredAction,
    },
    store::{Store, entity::action, question::Question},
};

/// Sessions that are looked at together.
const SESSIONS_AT_ONCE: usize = 20;

impl Store {
    /// Finds actions: those of the sessions that started last come first, those of a session in the order of playback.
    pub async fn action_search(&self, search: &ActionSearch, now: DateTime<Utc>) -> Result<Vec<FoundAction>> {
        asked!(self, async |question| question.actions(search, now).await)
    }
}

impl Question {
    async fn actions(&self, search: &ActionSearch, now: DateTime<Utc>) -> Result<Vec<FoundAction>> {
        let mut found = Vec::new();
        let mut filter = search.filter.clone();
        // Whatever its data or its time: that is looked at below.
        let (kind, target) = (search.action.kind.clone(), search.action.target.clone());
        filter.all_of.push(ActionMatch { kind, target, ..ActionMatch::default() });
        let mut sessions = SessionSearch {
            filter,
            order: crate::model::SessionOrder::StartTime,
            ascending: false,
            after: None,
            limit: SESSIONS_AT_ONCE,
            count_total: false,
        };
        let mut within = None;
        if let Some((session, position)) = search.after {
            // The session itself once more, from there on.
            sessions.after = SessionId::successor(session).map(|session| SessionPlace { key: 0, session });
            within = Some((session, position));
        }
        loop {
            let page = self.sessions(&sessions, now).await?.sessions;
            for session in &page {
                let id = session.session.id;
                let after = within.filter(|(session, _)| *session == id).map(|(_, position)| position);
                let tracks = &session.session.tracks;
                for stored in self.actions_of(id, &search.action, after, search.limit - found.len()).await? {
                    let source = tracks.iter().find(|track| track.number == stored.track);
                    let source = source.map(|track| track.source.clone()).unwrap_or_default();
                    found.push(FoundAction { session: id, source, tracks: tracks.clone(), stored });
                }
                if found.len() >= search.limit {
                    return Ok(found);
                }
            }
            let Some(last) = page.last().filter(|_| page.len() == SESSIONS_AT_ONCE) else { return Ok(found) };
            sessions.after = Some(SessionPlace { key: 0, session: last.session.id });
        }
    }

    /// The matching actions of one session.
    async fn actions_of(
        &self,
        session: SessionId,
        wanted: &ActionMatch,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<StoredAction>> {
        let mut condition = action_condition(wanted, self.is_postgres());
        if let Some(after) = after {
            let columns = [action::Column::Timestamp, action::Column::Track, action::Column::Seq].map(Expr::col);
            let values = [Expr::val(after.timestamp), Expr::val(after.track), Expr::val(after.seq)];
            condition = condition.add(Expr::tuple(columns).gt(Expr::tuple(values)));
        }
        let mut actions = self.actions_in_order(&[session.as_uuid()], condition, true).await?;
        let mut found = Vec::new();
        while found.len() < limit {
            let Some(ArchivedAction { stored, .. }) = actions.next().await? else { break };
            let is_after = after.is_none_or(|after| stored.position() > after);
            if is_after && wanted.matches(session.started_at(), &ActionView::from(&stored.action)) {
                found.push(stored);
            }
        }
        Ok(found)
    }
}
