//! Counting the actions themselves, which are always exact.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    Condition, ExprTrait as _,
    sea_query::{Expr, JoinType, Query, SelectStatement},
};
use uuid::Uuid;

use super::columns::{Columns, key_of_action};
use crate::{
    archive::ArchivedAction,
    error::Result,
    model::{ActionCounting, ActionView, Dimension, ERROR_TYPE, GroupKey, SessionId},
    store::{
        analytics::{is_not_archived, tally::Tally},
        entity::{action, session, track},
        question::Question,
        search::{Matched, SESSIONS_A_STATEMENT, action_condition, id_range},
    },
};

type Text = Option<String>;

/// The columns of a key, then session, timestamp, type, target and data.
type Each = (Text, Text, Text, Text, Uuid, DateTime<Utc>, String, String, Text);

impl Question {
    /// Counts the actions of all that match.
    pub(super) async fn count_by_actions(
        &self,
        counting: &ActionCounting,
        matched: &Matched,
        now: DateTime<Utc>,
        tally: &mut Tally,
    ) -> Result<()> {
        self.count_actions_of(counting, matched.all(&counting.filter, now, self), tally).await
    }

    /// Counts the actions of the sessions that these conditions choose.
    ///
    /// Query `actions by group`. Uses the partial index of errors where only errors are asked for, else the primary key of
    /// `actions` for the sessions, or the days, that are asked for.
    pub(super) async fn count_actions_of(
        &self,
        counting: &ActionCounting,
        conditions: Vec<Condition>,
        tally: &mut Tally,
    ) -> Result<()> {
        let columns = Columns::of(&counting.group_by, self.backend());
        let archived = self.archived(&conditions).await?;
        self.count_archived(counting, &archived, tally).await?;
        for condition in conditions {
            let mut query = self.actions_to_count(counting);
            query.cond_where(condition).and_where(is_not_archived());
            if counting.action.is_of_facets() {
                columns.select(&mut query, Expr::cust("count(*)"));
                for row in columns.rows(self, "actions by group", &query).await? {
                    tally.add(row.key, row.count)?;
                }
            } else {
                self.count_one_by_one(counting, query, tally).await?;
            }
        }
        Ok(())
    }

    /// The same of sessions that are archived.
    async fn count_archived(
        &self,
        counting: &ActionCounting,
        sessions: &[session::Model],
        tally: &mut Tally,
    ) -> Result<()> {
        let wanted = action_condition(&counting.action, self.is_postgres());
        let with_data = !counting.action.data.is_empty();
        for sessions in sessions.chunks(SESSIONS_A_STATEMENT) {
            let by_id: HashMap<Uuid, &session::Model> = sessions.iter().map(|session| (session.id, session)).collect();
            let ids: Vec<_> = sessions.iter().map(|session| session.id).collect();
            let tracks = self.tracks(&ids).await?;
            let mut actions = self.actions_in_order(&ids, wanted.clone(), with_data).await?;
            while let Some(ArchivedAction { session, stored }) = actions.next().await? {
                let started_at = SessionId::from_uuid(session).started_at();
                if counting.action.matches(started_at, &ActionView::from(&stored.action))
                    && let Some(session) = by_id.get(&session)
                {
                    let tracks = tracks.get(&session.id).map(Vec::as_slice).unwrap_or_default();
                    tally.add(key_of_action(&counting.group_by, session, tracks, &stored), 1)?;
                }
            }
        }
        Ok(())
    }

    fn actions_to_count(&self, counting: &ActionCounting) -> SelectStatement {
        let session_id = Expr::col((action::Entity, action::Column::SessionId));
        let mut query = Query::select();
        query
            .from(action::Entity)
            .join(
                JoinType::InnerJoin,
                session::Entity,
                session_id.clone().equals((session::Entity, session::Column::Id)),
            )
            .cond_where(id_range(session_id.clone(), &counting.filter))
            .cond_where(action_condition(&counting.action, self.is_postgres()));
        if counting.action.kind.as_deref() == Some(ERROR_TYPE) {
            // As the partial index says it.
            query.and_where(Expr::cust("\"actions\".\"type\" = 'error'"));
        }
        if counting.group_by.contains(&Dimension::Source) {
            let number = Expr::col((action::Entity, action::Column::Track));
            let of_track = session_id.equals((track::Entity, track::Column::SessionId));
            let of_track = of_track.and(number.equals((track::Entity, track::Column::Number)));
            query.join(JoinType::InnerJoin, track::Entity, of_track);
        }
        query
    }

    /// Where only the action can tell: its time in the session, or its data.
    async fn count_one_by_one(
        &self,
        counting: &ActionCounting,
        mut query: SelectStatement,
        tally: &mut Tally,
    ) -> Result<()> {
        let columns = Columns::of(&counting.group_by, self.backend());
        columns.select_each(&mut query);
        query.columns([(action::Entity, action::Column::SessionId), (action::Entity, action::Column::Timestamp)]);
        query.columns([(action::Entity, action::Column::Kind), (action::Entity, action::Column::Target)]);
        query.expr(Expr::col((action::Entity, action::Column::Data)).cast_as("text"));
        let mut rows = self.stream::<Each>("actions one by one", &query).await?;
        while let Some((one, two, three, four, session, timestamp, kind, target, data)) = rows.try_next().await? {
            let data = data.unwrap_or_default();
            let view = ActionView { timestamp, kind: &kind, target: &target, data: &data };
            if counting.action.matches(SessionId::from_uuid(session).started_at(), &view) {
                let key: GroupKey = [one, two, three, four].into_iter().take(counting.group_by.len()).collect();
                tally.add(key, 1)?;
            }
        }
        Ok(())
    }
}
