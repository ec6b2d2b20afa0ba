//! Counting by the daily roll-up. It is the sum of what the index has of the sessions of a day, dirty ones included: of those,
//! what it has is taken away again.

use std::collections::{HashMap, HashSet};

use chrono::{Days, NaiveDate, NaiveTime};
use futures_util::TryStreamExt as _;
use sea_orm::{
    DbErr, EntityTrait as _, ExprTrait as _, QueryFilter as _, QuerySelect as _, QueryTrait as _,
    sea_query::{Expr, Query},
};
use uuid::Uuid;

use super::columns::Row;
use crate::{
    error::Result,
    model::{ActionCounting, Dimension, SessionFilter, SessionId},
    store::{
        entity::{facet_day, session_facet},
        question::Question,
        search::{Matched, is_one_of},
    },
};

/// Dirty sessions whose rows are looked up by one statement.
const SESSIONS_A_STATEMENT: usize = 200;

/// The whole days of a time range.
pub(super) struct WholeDays {
    from: Option<NaiveDate>,
    to: Option<NaiveDate>,
}

/// The whole days of a filter's time range. None if there are none.
pub(super) fn whole_days(filter: &SessionFilter) -> Option<WholeDays> {
    let from = filter.started_after.map(|after| {
        let day = after.date_naive();
        if after.time() == NaiveTime::MIN { day } else { day.checked_add_days(Days::new(1)).unwrap_or(day) }
    });
    let to = filter.started_before.map(|before| before.date_naive());
    let is_some = from.zip(to).is_none_or(|(from, to)| from < to);
    is_some.then_some(WholeDays { from, to })
}

impl WholeDays {
    /// What of the time range is before and after the whole days.
    pub(super) fn edges(&self, filter: &SessionFilter) -> Vec<SessionFilter> {
        let midnight = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
        let mut edges = Vec::new();
        if let (Some(after), Some(from)) = (filter.started_after, self.from.map(midnight))
            && after < from
        {
            edges.push(SessionFilter { started_before: Some(from), ..filter.clone() });
        }
        if let (Some(before), Some(to)) = (filter.started_before, self.to.map(midnight))
            && to < before
        {
            edges.push(SessionFilter { started_after: Some(to), ..filter.clone() });
        }
        edges
    }

    fn contains(&self, session: SessionId) -> bool {
        let day = session.started_at().date_naive();
        self.from.is_none_or(|from| day >= from) && self.to.is_none_or(|to| day < to)
    }
}

impl Question {
    /// Query `roll-up`. Uses the primary key of `facet_days`.
    pub(super) async fn count_by_days(
        &self,
        counting: &ActionCounting,
        facets: Option<&[i64]>,
        days: &WholeDays,
    ) -> Result<Vec<Row>, DbErr> {
        let day = Expr::col((facet_day::Entity, facet_day::Column::Day));
        let by_facet = counting.group_by.iter().any(Dimension::is_of_facets);
        let by_day = counting.group_by.contains(&Dimension::SessionDay);
        let mut query = Query::select();
        // What no session has any more is to be swept, and its name may have gone before.
        query.from(facet_day::Entity).and_where(Expr::col((facet_day::Entity, facet_day::Column::SessionCount)).gt(0));
        for (is_wanted, column, nothing) in
            [(by_facet, facet_day::Column::FacetId, "bigint"), (by_day, facet_day::Column::Day, "date")]
        {
            if is_wanted {
                query.column((facet_day::Entity, column)).group_by_col((facet_day::Entity, column));
            } else {
                query.expr(Expr::cust(format!("CAST(NULL AS {nothing})")));
            }
        }
        query.expr(Expr::cust("CAST(coalesce(sum(\"facet_days\".\"action_count\"), 0) AS bigint)"));
        if let Some(from) = days.from {
            query.and_where(day.clone().gte(from));
        }
        if let Some(to) = days.to {
            query.and_where(day.lt(to));
        }
        if let Some(facets) = facets {
            query.and_where(is_one_of(Expr::col((facet_day::Entity, facet_day::Column::FacetId)), facets));
        }
        let rows: Vec<(Option<i64>, Option<NaiveDate>, i64)> = self.rows("roll-up", &query).await?;
        let row = |(facet, day, count): (_, Option<NaiveDate>, _)| {
            let key = day.map(|day| Some(day.to_string())).into_iter().collect();
            Row { key, facet, count }
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// What the roll-up of these days has of dirty sessions, to be taken away.
    ///
    /// Query `roll-up of dirty sessions`. Uses `session_facets_session`.
    pub(super) async fn roll_up_of_dirty(
        &self,
        counting: &ActionCounting,
        facets: Option<&[i64]>,
        days: &WholeDays,
        matched: &Matched,
    ) -> Result<Vec<Row>> {
        let indexed: Vec<_> =
            matched.dirty.iter().filter(|session| session.index_version > 0 && days.contains(session.id)).collect();
        let by_facet = counting.group_by.iter().any(Dimension::is_of_facets);
        let by_day = counting.group_by.contains(&Dimension::SessionDay);
        let wanted: Option<HashSet<i64>> = facets.map(|facets| facets.iter().copied().collect());
        let mut counts: HashMap<(Option<NaiveDate>, Option<i64>), i64> = HashMap::new();
        for sessions in indexed.chunks(SESSIONS_A_STATEMENT) {
            let query = session_facet::Entity::find()
                .select_only()
                .columns([
                    session_facet::Column::FacetId,
                    session_facet::Column::SessionId,
                    session_facet::Column::Count,
                ])
                .filter(
                    Expr::col((session_facet::Entity, session_facet::Column::SessionId))
                        .is_in(sessions.iter().map(|session| session.id.as_uuid())),
                )
                .into_query();
            let mut rows = self.stream::<(i64, Uuid, i32)>("roll-up of dirty sessions", &query).await?;
            while let Some((facet, session, count)) = rows.try_next().await? {
                if wanted.as_ref().is_none_or(|wanted| wanted.contains(&facet)) {
                    let day = by_day.then(|| SessionId::from_uuid(session).started_at().date_naive());
                    *counts.entry((day, by_facet.then_some(facet))).or_default() -= i64::from(count);
                }
            }
        }
        let rows = counts.into_iter().map(|((day, facet), count)| {
            let key = day.map(|day| Some(day.to_string())).into_iter().collect();
            Row { key, facet, count }
        });
        Ok(rows.collect())
    }
}
