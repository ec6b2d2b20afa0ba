//! Finding actions across sessions.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, ExprTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, sea_query::Expr,
};

use super::condition::action_condition;
use crate::{
    error::Result,
    model::{
        Action, ActionMatch, ActionSearch, ActionView, FoundAction, Position, SessionId, SessionPlace, SessionSearch,
        StoredAction,
    },
    store::{Store, entity::action, question::Question},
};

/// Sessions that are looked at together.
const SESSIONS_AT_ONCE: usize = 20;

impl Store {
    /// Finds actions: those of the sessions that started last come first, those of a session in the order of playback.
    pub async fn action_search(&self, search: &ActionSearch, now: DateTime<Utc>) -> Result<Vec<FoundAction>> {
        self.question(async |question| question.actions(search, now).await).await
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
    ///
    /// Query `actions of a session`. Uses the primary key.
    async fn actions_of(
        &self,
        session: SessionId,
        wanted: &ActionMatch,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<StoredAction>> {
        let mut query = action::Entity::find()
            .select_only()
            .columns([
                action::Column::Timestamp,
                action::Column::Track,
                action::Column::Seq,
                action::Column::Kind,
                action::Column::Target,
                action::Column::Data,
            ])
            .filter(action::Column::SessionId.eq(session.as_uuid()))
            .filter(action_condition(wanted, self.is_postgres()))
            .order_by_asc(action::Column::Timestamp)
            .order_by_asc(action::Column::Track)
            .order_by_asc(action::Column::Seq);
        if let Some(after) = after {
            let columns = [action::Column::Timestamp, action::Column::Track, action::Column::Seq].map(Expr::col);
            let values = [Expr::val(after.timestamp), Expr::val(after.track), Expr::val(after.seq)];
            query = query.filter(Expr::tuple(columns).gt(Expr::tuple(values)));
        }
        let query = query.into_query();
        let mut rows = self
            .stream::<(DateTime<Utc>, i16, i64, String, String, Option<String>)>("actions of a session", &query)
            .await?;
        let mut found = Vec::new();
        while found.len() < limit {
            let Some((timestamp, track, seq, kind, target, data)) = rows.try_next().await? else { break };
            let data = data.unwrap_or_default();
            let view = ActionView { timestamp, kind: &kind, target: &target, data: &data };
            if wanted.matches(session.started_at(), &view) {
                let action = Action { timestamp, kind: kind.into(), target: target.into(), data: data.into() };
                found.push(StoredAction { track, seq, action });
            }
        }
        Ok(found)
    }
}
