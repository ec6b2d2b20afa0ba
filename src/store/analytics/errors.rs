//! How often errors happen.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sea_orm::{
    Condition, ExprTrait as _,
    sea_query::{Expr, JoinType, Query, SelectStatement, SimpleExpr},
};
use uuid::Uuid;

use super::{is_not_archived, too_much};
use crate::{
    error::Result,
    model::{ERROR_TYPE, ErrorFrequency, SessionFilter},
    store::{
        Store,
        entity::{action, session},
        question::Question,
        search::{Depth, SESSIONS_A_STATEMENT, id_range, session_column},
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
        asked!(self, async |question| {
            let matched = question.matched(filter, Depth::Tracks, now).await?;
            let conditions = matched.all(filter, now, question);
            let has_errors = |condition: &Condition| Condition::all().add(condition.clone()).add(may_have_errors());
            let archived = question.archived(&conditions.iter().map(has_errors).collect::<Vec<_>>()).await?;
            let intervals = match conditions.as_slice() {
                [condition] if archived.is_empty() => {
                    let total = question.errors_in_all(condition, filter, target).await?;
                    (total, question.errors_by_interval(condition, filter, target, interval_seconds).await?)
                }
                conditions => {
                    let mut parts = Parts { seconds: interval_seconds, ..Parts::default() };
                    question.errors_of_rows(conditions, filter, target, &mut parts).await?;
                    question.errors_of_archived(&archived, target, &mut parts).await?;
                    parts.finish()
                }
            };
            if intervals.1.len() > MAX_INTERVALS {
                return Err(too_much("interval", MAX_INTERVALS, "intervals"));
            }
            Ok(intervals)
        })
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
    async fn errors_of_rows(
        &self,
        conditions: &[Condition],
        filter: &SessionFilter,
        target: Option<&str>,
        parts: &mut Parts,
    ) -> Result<()> {
        for condition in conditions {
            let columns = [
                Expr::cust(self.bucket(parts.seconds)),
                Expr::col((action::Entity, action::Column::SessionId)),
                Expr::col((session::Entity, session::Column::UserId)),
            ];
            let mut query = errors(condition, filter, target);
            query.and_where(may_have_errors().and(is_not_archived().not()).not());
            query.exprs(columns.clone()).expr(Expr::cust("count(*)")).add_group_by(columns);
            let rows: Vec<(i64, Uuid, Option<String>, i64)> = self.rows("errors", &query).await?;
            for (number, session, user, count) in rows {
                parts.add(number, session, user, count);
            }
        }
        Ok(())
    }

    /// The same of sessions that are archived.
    async fn errors_of_archived(
        &self,
        sessions: &[session::Model],
        target: Option<&str>,
        parts: &mut Parts,
    ) -> Result<()> {
        for sessions in sessions.chunks(SESSIONS_A_STATEMENT) {
            let users: HashMap<Uuid, Option<&String>> =
                sessions.iter().map(|session| (session.id, session.user_id.as_ref())).collect();
            let ids: Vec<_> = sessions.iter().map(|session| session.id).collect();
            let seconds = parts.seconds;
            self.read_actions(&ids, Condition::all(), false, |session, action| {
                if action.kind == ERROR_TYPE && target.is_none_or(|target| action.target == target) {
                    let number = action.timestamp.timestamp().div_euclid(seconds);
                    parts.add(number, session, users.get(&session).copied().flatten().cloned(), 1);
                }
            })
            .await?;
        }
        Ok(())
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

/// That a session has errors, as the index says: what it does not know yet are rows.
fn may_have_errors() -> SimpleExpr {
    session_column(session::Column::ErrorCount).gt(0)
}

/// What is distinct in all, and in each interval.
#[derive(Default)]
struct Parts {
    seconds: i64,
    total: Distinct,
    intervals: BTreeMap<i64, Distinct>,
}

impl Parts {
    fn add(&mut self, number: i64, session: Uuid, user: Option<String>, count: i64) {
        self.intervals.entry(number).or_default().add(session, user.clone(), count);
        self.total.add(session, user, count);
    }

    fn finish(self) -> (ErrorFrequency, Vec<ErrorFrequency>) {
        let start = |number| start_of(number, self.seconds);
        let intervals = self.intervals.into_iter().map(|(number, distinct)| distinct.finish(start(number)));
        (self.total.finish(None), intervals.collect())
    }
}

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
