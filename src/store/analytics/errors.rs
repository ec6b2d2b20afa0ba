//! How often errors happen.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use sea_orm::{
    Condition, ExprTrait as _,
    sea_query::{Expr, JoinType, Query, SelectStatement},
};
use uuid::Uuid;

use super::too_much;
use crate::{
    error::Result,
    model::{ErrorFrequency, SessionFilter},
    store::{
        Store,
        entity::{action, session},
        question::Question,
        search::{Depth, id_range},
    },
};

/// Intervals of an answer at most.
const MAX_INTERVALS: usize = 10_000;

impl Store {
    /// How often errors happen: in all, and in each interval of so many seconds that has any.
    ///
    /// Query `errors`. Uses the partial index of errors; what it reads is always exact.
    pub async fn error_frequency(
        &self,
        filter: &SessionFilter,
        target: Option<&str>,
        interval_seconds: i64,
        now: DateTime<Utc>,
    ) -> Result<(ErrorFrequency, Vec<ErrorFrequency>)> {
        self.question(async |question| {
            let matched = question.matched(filter, Depth::Tracks, now).await?;
            let conditions = matched.all(filter, now, question);
            let intervals = match conditions.as_slice() {
                [condition] => {
                    let total = question.errors_in_all(condition, filter, target).await?;
                    (total, question.errors_by_interval(condition, filter, target, interval_seconds).await?)
                }
                conditions => question.errors_of_parts(conditions, filter, target, interval_seconds).await?,
            };
            if intervals.1.len() > MAX_INTERVALS {
                return Err(too_much("interval", MAX_INTERVALS, "intervals"));
            }
            Ok(intervals)
        })
        .await
    }
}

impl Question {
    async fn errors_in_all(
        &self,
        condition: &Condition,
        filter: &SessionFilter,
        target: Option<&str>,
    ) -> Result<ErrorFrequency> {
        let mut query = errors(condition, filter, target);
        query.expr(Expr::cust(COUNTS[0])).expr(Expr::cust(COUNTS[1])).expr(Expr::cust(COUNTS[2]));
        let rows: Vec<(i64, i64, i64)> = self.rows("errors", &query).await?;
        let (error_count, session_count, user_count) = rows.first().copied().unwrap_or_default();
        Ok(ErrorFrequency { start: None, error_count, session_count, user_count })
    }

    async fn errors_by_interval(
        &self,
        condition: &Condition,
        filter: &SessionFilter,
        target: Option<&str>,
        seconds: i64,
    ) -> Result<Vec<ErrorFrequency>> {
        let bucket = self.bucket(seconds);
        let mut query = errors(condition, filter, target);
        query.expr(Expr::cust(bucket.clone()));
        query.expr(Expr::cust(COUNTS[0])).expr(Expr::cust(COUNTS[1])).expr(Expr::cust(COUNTS[2]));
        query.add_group_by([Expr::cust(bucket.clone())]).order_by_expr(Expr::cust(bucket), sea_orm::Order::Asc);
        query.limit(u64::try_from(MAX_INTERVALS + 1).unwrap_or(u64::MAX));
        let rows: Vec<(i64, i64, i64, i64)> = self.rows("errors", &query).await?;
        let frequency = |(number, error_count, session_count, user_count)| {
            let start = start_of(number, seconds);
            ErrorFrequency { start, error_count, session_count, user_count }
        };
        Ok(rows.into_iter().map(frequency).collect())
    }

    /// Where there are several conditions, what is distinct is counted here.
    async fn errors_of_parts(
        &self,
        conditions: &[Condition],
        filter: &SessionFilter,
        target: Option<&str>,
        seconds: i64,
    ) -> Result<(ErrorFrequency, Vec<ErrorFrequency>)> {
        let (mut total, mut intervals) = (Distinct::default(), BTreeMap::<i64, Distinct>::new());
        for condition in conditions {
            let columns = [
                Expr::cust(self.bucket(seconds)),
                Expr::col((action::Entity, action::Column::SessionId)),
                Expr::col((session::Entity, session::Column::UserId)),
            ];
            let mut query = errors(condition, filter, target);
            query.exprs(columns.clone()).expr(Expr::cust("count(*)")).add_group_by(columns);
            let rows: Vec<(i64, Uuid, Option<String>, i64)> = self.rows("errors", &query).await?;
            for (number, session, user, count) in rows {
                intervals.entry(number).or_default().add(session, user.clone(), count);
                total.add(session, user, count);
            }
        }
        let intervals = intervals.into_iter().map(|(number, distinct)| distinct.finish(start_of(number, seconds)));
        Ok((total.finish(None), intervals.collect()))
    }

    /// The number of the interval in which an action happened. Nothing happened before 1970.
    fn bucket(&self, seconds: i64) -> String {
        if self.is_postgres() {
            format!("CAST(floor(extract(epoch FROM \"actions\".\"timestamp\") / {seconds}) AS bigint)")
        } else {
            format!("CAST(strftime('%s', substr(\"actions\".\"timestamp\", 1, 19)) AS integer) / {seconds}")
        }
    }
}

const COUNTS: [&str; 3] =
    ["count(*)", "count(DISTINCT \"actions\".\"session_id\")", "count(DISTINCT \"sessions\".\"user_id\")"];

#[derive(Default)]
struct Distinct {
    errors: i64,
    sessions: HashSet<Uuid>,
    users: HashSet<String>,
}

impl Distinct {
    fn add(&mut self, session: Uuid, user: Option<String>, count: i64) {
        self.errors += count;
        self.sessions.insert(session);
        self.users.extend(user);
    }

    fn finish(self, start: Option<DateTime<Utc>>) -> ErrorFrequency {
        let count = |length| i64::try_from(length).unwrap_or(i64::MAX);
        ErrorFrequency {
            start,
            error_count: self.errors,
            session_count: count(self.sessions.len()),
            user_count: count(self.users.len()),
        }
    }
}

fn start_of(number: i64, seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(number.saturating_mul(seconds), 0)
}

fn errors(condition: &Condition, filter: &SessionFilter, target: Option<&str>) -> SelectStatement {
    let session_id = Expr::col((action::Entity, action::Column::SessionId));
    let mut query = Query::select();
    query
        .from(action::Entity)
        .join(JoinType::InnerJoin, session::Entity, session_id.clone().equals((session::Entity, session::Column::Id)))
        // As the partial index says it.
        .and_where(Expr::cust("\"actions\".\"type\" = 'error'"))
        .cond_where(id_range(session_id, filter))
        .cond_where(condition.clone());
    if let Some(target) = target {
        query.and_where(Expr::col((action::Entity, action::Column::Target)).eq(target));
    }
    query
}
