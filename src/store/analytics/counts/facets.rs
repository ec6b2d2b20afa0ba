//! Counting by facets.

use std::collections::HashMap;

use sea_orm::{
    Condition, DbErr, EntityTrait as _, ExprTrait as _, QueryFilter as _, QuerySelect as _, QueryTrait as _,
    sea_query::{Expr, JoinType, Query},
};
use uuid::Uuid;

use super::{
    columns::{Columns, Row, key_of},
    roll_up::whole_days,
};
use crate::{
    error::{Error, Result},
    model::{ActionCounting, Dimension, FacetDetail, GroupKey, SessionFilter},
    store::{
        analytics::{are, sessions_where, tally::Tally},
        entity::{facet, session, session_facet},
        question::Question,
        search::{Matched, id_range, is_one_of, lacks_facets},
    },
};

/// So many facets are named in a statement; of more, all are read.
const FEW_FACETS: usize = 5_000;

impl Question {
    pub(super) async fn count_by_facets(
        &self,
        counting: &ActionCounting,
        matched: &Matched,
        tally: &mut Tally,
    ) -> Result<()> {
        let detail = counting.facet_detail();
        let facets = self.facets_of(&counting.action).await?;
        let of_days = |dimension: &Dimension| dimension.is_of_facets() || *dimension == Dimension::SessionDay;
        let days =
            whole_days(&counting.filter).filter(|_| matched.is_by_start_only && counting.group_by.iter().all(of_days));
        let mut rows = Vec::new();
        if let Some(days) = days {
            rows.extend(self.count_by_days(counting, facets.as_deref(), &days).await?);
            for edge in days.edges(&counting.filter) {
                rows.extend(self.count_by_session_facets(counting, facets.as_deref(), &edge, &matched.clean).await?);
            }
            rows.extend(self.roll_up_of_dirty(counting, facets.as_deref(), &days, matched).await?);
        } else {
            let filter = &counting.filter;
            rows.extend(self.count_by_session_facets(counting, facets.as_deref(), filter, &matched.clean).await?);
        }
        let names = self.names(&rows).await?;
        for row in rows {
            let name = row.facet.map(|facet| names.get(&facet).ok_or(Error::Internal)).transpose()?;
            if name.is_some_and(|(_, target)| target.is_none()) && detail == FacetDetail::Targets {
                // Of a session whose actions are counted below.
                continue;
            }
            tally.add(key(&counting.group_by, &row, name), row.count)?;
        }
        let (known, unknown): (Vec<_>, Vec<_>) =
            matched.dirty.iter().partition(|session| session.facets.detail() >= detail);
        for session in known {
            for (kind, target, facet) in session.facets.iter() {
                if counting.action.has_facet(kind, target.unwrap_or_default()) {
                    tally.add(key_of(&counting.group_by, session, Some(kind), target), facet.count)?;
                }
            }
        }
        let mut to_read: Vec<Uuid> = unknown.iter().map(|session| session.id.as_uuid()).collect();
        to_read.extend(self.lacking(detail, &matched.clean).await?);
        self.count_actions_of(counting, are(&to_read), tally).await
    }

    /// Those of the sessions that these conditions choose of which the index has less than so much of their facets.
    ///
    /// Query `sessions without facets`. Uses `sessions_facet_detail`.
    async fn lacking(&self, detail: FacetDetail, clean: &[Condition]) -> Result<Vec<Uuid>, DbErr> {
        let mut sessions = Vec::new();
        let Some(lacks) = lacks_facets(detail) else { return Ok(sessions) };
        for condition in clean {
            let mut query = sessions_where(Condition::all().add(condition.clone()).add(lacks.clone()));
            query.column((session::Entity, session::Column::Id));
            let rows: Vec<(Uuid,)> = self.rows("sessions without facets", &query).await?;
            sessions.extend(rows.into_iter().map(|(id,)| id));
        }
        Ok(sessions)
    }

    /// Query `facets by group`. Uses the primary key of `session_facets` for the facets that are asked for, else reads those
    /// of the sessions' days.
    async fn count_by_session_facets(
        &self,
        counting: &ActionCounting,
        facets: Option<&[i64]>,
        range: &SessionFilter,
        clean: &[Condition],
    ) -> Result<Vec<Row>, DbErr> {
        let mut rows = Vec::new();
        for condition in clean {
            let session_id = Expr::col((session_facet::Entity, session_facet::Column::SessionId));
            let mut query = Query::select();
            query.from(session_facet::Entity);
            query.join(
                JoinType::InnerJoin,
                session::Entity,
                session_id.clone().equals((session::Entity, session::Column::Id)),
            );
            query.cond_where(id_range(session_id, range)).cond_where(condition.clone());
            if let Some(facets) = facets {
                query.and_where(is_one_of(Expr::col((session_facet::Entity, session_facet::Column::FacetId)), facets));
            }
            let columns = Columns::with_facet(&counting.group_by, self.backend());
            columns.select(&mut query, Expr::col((session_facet::Entity, session_facet::Column::Count)).sum());
            rows.extend(columns.rows(self, "facets by group", &query).await?);
        }
        Ok(rows)
    }

    /// The names of the facets of these rows.
    ///
    /// Query `names of facets`. Uses the primary key.
    async fn names(&self, rows: &[Row]) -> Result<HashMap<i64, (String, Option<String>)>, DbErr> {
        let mut ids: Vec<_> = rows.iter().filter_map(|row| row.facet).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut query = facet::Entity::find().select_only().columns([
            facet::Column::Id,
            facet::Column::Kind,
            facet::Column::Target,
        ]);
        if ids.len() <= FEW_FACETS {
            query = query.filter(is_one_of(Expr::col((facet::Entity, facet::Column::Id)), &ids));
        }
        let names: Vec<(i64, String, Option<String>)> = self.rows("names of facets", &query.into_query()).await?;
        Ok(names.into_iter().map(|(id, kind, target)| (id, (kind, target))).collect())
    }
}

/// A key with the names of the facet in it.
fn key(dimensions: &[Dimension], row: &Row, name: Option<&(String, Option<String>)>) -> GroupKey {
    let mut others = row.key.iter();
    let part = |dimension: &Dimension| match (dimension, name) {
        (Dimension::Type, Some((kind, _))) => Some(kind.clone()),
        (Dimension::Target, Some((_, target))) => target.clone(),
        _ => others.next().cloned().flatten(),
    };
    dimensions.iter().map(part).collect()
}
