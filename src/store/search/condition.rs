//! Filters as SQL. Values are parameters, but for the numbers of facets, which are our own.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, Utc};
use sea_orm::{
    Condition, DatabaseBackend, EntityTrait as _, ExprTrait, QueryFilter as _, QuerySelect as _, QueryTrait as _,
    sea_query::{
        Alias, BinOper, Expr, Func, LikeExpr, Query, SelectStatement, SimpleExpr, UnionType,
        extension::postgres::PgExpr as _,
    },
};

use super::target::{begins_with, facet_condition};
use crate::{
    error::{Error, Result},
    model::{ActionMatch, AttributeMatch, Between, FacetDetail, SessionFilter, SessionId},
    store::{
        entity::{facet, facet_day, session, session_facet, track, user},
        question::Question,
    },
};

/// Facets that a match may name. A part of a target may be in any number of them.
const MAX_FACETS: usize = 20_000;

/// What has to be looked up before sessions are: facets, and whether the index is all there is.
pub(in crate::store) struct Survey {
    /// The facets that each match names, by id. None where it names none: every action is of one of them.
    pub(in crate::store) facets: Vec<Option<Vec<i64>>>,
    /// Whether any session in the time range is dirty.
    pub(in crate::store) has_dirty: bool,
    /// How many sessions of these days the index has for each match of one type and target, by its number.
    pub(in crate::store) days: Vec<(usize, NaiveDate, i64)>,
}

impl Question {
    /// Looks up the facets of matches, and whether there is anything that is not in the index.
    ///
    /// Query `survey`. Uses the unique index on the type and the digest of the target where both are given, or `facets_target`;
    /// where only a part of the target is given, it reads the facets of the type. Then `tracks_dirty`,
    /// `sessions_facet_detail`, and the primary key of `facet_days`.
    pub(in crate::store) async fn survey<'a>(
        &self,
        matches: impl Iterator<Item = &'a ActionMatch>,
        dirty_of: Option<&SessionFilter>,
        days: &[NaiveDate],
    ) -> Result<Survey> {
        /// The number under which a dirty session is told: matches have theirs, from 0.
        const DIRTY: i32 = -1;
        let mut parts = Vec::new();
        if let Some(filter) = dirty_of {
            for mut dirty in dirty_parts(filter) {
                let mut part = Query::select();
                part.expr_as(Expr::cust(DIRTY.to_string()), "number").expr_as(Expr::cust("CAST(0 AS bigint)"), "id");
                part.exprs(no_day()).from_subquery(dirty.limit(1).to_owned(), "of");
                parts.push(part);
            }
        }
        let mut survey = Survey { facets: Vec::new(), has_dirty: false, days: Vec::new() };
        for (number, wanted) in matches.enumerate() {
            survey.facets.push(wanted.names_facets().then(Vec::new));
            if wanted.names_facets() {
                let mut facets = facet::Entity::find()
                    .select_only()
                    .column(facet::Column::Id)
                    .filter(facet_condition(wanted, self.is_postgres()))
                    .into_query();
                facets.limit(u64::try_from(MAX_FACETS + 1).unwrap_or(u64::MAX));
                let mut part = Query::select();
                part.expr_as(Expr::cust(number.to_string()), "number").column(("of", "id")).from_subquery(facets, "of");
                let day = |column: facet_day::Column| Expr::col((facet_day::Entity, column));
                if wanted.is_of_one_facet() && !days.is_empty() {
                    part.columns([facet_day::Column::Day, facet_day::Column::SessionCount]).left_join(
                        facet_day::Entity,
                        day(facet_day::Column::FacetId)
                            .equals(("of", "id"))
                            .and(day(facet_day::Column::Day).is_in(days.iter().copied())),
                    );
                } else {
                    part.exprs(no_day());
                }
                parts.push(part);
            }
        }
        let mut parts = parts.into_iter();
        let Some(mut query) = parts.next() else { return Ok(survey) };
        query.unions(parts.map(|part| (UnionType::All, part)));
        let rows: Vec<(i32, i64, Option<NaiveDate>, Option<i64>)> = self.rows("survey", &query).await?;
        for (number, id, day, count) in rows {
            let Ok(number) = usize::try_from(number) else {
                survey.has_dirty = true;
                continue;
            };
            survey.days.extend(day.zip(count).map(|(day, count)| (number, day, count)));
            if let Some(Some(facets)) = survey.facets.get_mut(number)
                && facets.last() != Some(&id)
            {
                facets.push(id);
            }
        }
        if survey.facets.iter().flatten().any(|facets| facets.len() > MAX_FACETS) {
            let description =
                format!("a part of a target is in more than {MAX_FACETS} different targets: give more of it");
            return Err(Error::invalid("filter", description));
        }
        Ok(survey)
    }

    /// The facets that one match names.
    pub(in crate::store) async fn facets_of(&self, wanted: &ActionMatch) -> Result<Option<Vec<i64>>> {
        Ok(self.survey(std::iter::once(wanted), None, &[]).await?.facets.pop().flatten())
    }
}

/// The columns of a day and its number of sessions, where there is none. Said with their types: of a union of three, the
/// database looks at two.
fn no_day() -> [Expr; 2] {
    ["date", "bigint"].map(|kind| Expr::cust(format!("CAST(NULL AS {kind})")))
}

/// The ids of the sessions that a filter's time range lets through: an id carries its session's start. For any column of such
/// ids; it tells PostgreSQL which partitions to read.
pub(in crate::store) fn id_range(column: Expr, filter: &SessionFilter) -> Condition {
    let mut condition = Condition::all();
    if let Some(after) = filter.started_after {
        condition = condition.add(column.clone().gte(SessionId::least_at(after)));
    }
    if let Some(before) = filter.started_before {
        condition = condition.add(column.lt(SessionId::least_at(before)));
    }
    condition
}

pub(in crate::store) fn session_column(column: session::Column) -> Expr {
    Expr::col((session::Entity, column))
}

/// What a filter asks of the sessions themselves, and not of their actions. Always exact.
pub(in crate::store) fn of_sessions(filter: &SessionFilter, now: DateTime<Utc>, backend: DatabaseBackend) -> Condition {
    let is_postgres = backend == DatabaseBackend::Postgres;
    let mut condition = id_range(session_column(session::Column::Id), filter);
    if let Some(user) = filter.only_user() {
        condition = condition.add(session_column(session::Column::UserId).eq(user));
        // The index on users goes on with the start.
        let started_at = session_column(session::Column::StartedAt);
        if let Some(after) = filter.started_after {
            condition = condition.add(started_at.clone().gte(after));
        }
        if let Some(before) = filter.started_before {
            condition = condition.add(started_at.lt(before));
        }
    }
    match filter.users.as_deref() {
        Some([only]) if filter.only_user() == Some(only) => {}
        Some(users) => {
            let users = users.iter().map(String::as_str);
            condition = condition.add(session_column(session::Column::UserId).is_in(users));
        }
        None if filter.asks_for_email() => {
            let users = users_with_email(filter, is_postgres);
            condition = condition.add(session_column(session::Column::UserId).in_subquery(users));
        }
        None => {}
    }
    for attribute in &filter.attributes {
        condition = condition.add(has_attribute(attribute, is_postgres));
    }
    if let Some(is_live) = filter.is_live {
        let ended_at = session_column(session::Column::EndedAt);
        condition = condition.add(if is_live { ended_at.is_null() } else { ended_at.is_not_null() });
    }
    if let Some(is_pinned) = filter.is_pinned {
        let pinned_until = session_column(session::Column::PinnedUntil);
        let is_so = pinned_until.clone().is_not_null().and(pinned_until.clone().gt(now));
        let is_not = pinned_until.clone().is_null().or(pinned_until.lte(now));
        condition = condition.add(if is_pinned { is_so } else { is_not });
    }
    condition
}

/// Users that are looked up before their sessions are. Of more, the database finds its own way.
const MAX_USERS: u64 = 1_000;

/// The filter with the users that have the e-mail address it asks for: how many they are decides how their sessions are best
/// found, and the database would only guess.
///
/// Query `users with an e-mail`. Uses `users_email`, or `users_email_prefix`.
pub(in crate::store) async fn with_users<'a>(
    question: &Question,
    filter: &'a SessionFilter,
) -> Result<Cow<'a, SessionFilter>> {
    if !filter.asks_for_email() {
        return Ok(Cow::Borrowed(filter));
    }
    let mut users = users_with_email(filter, question.is_postgres());
    users.limit(MAX_USERS + 1);
    let users: Vec<(String,)> = question.rows("users with an e-mail", &users).await?;
    if u64::try_from(users.len()).is_ok_and(|count| count > MAX_USERS) {
        return Ok(Cow::Borrowed(filter));
    }
    let users = Some(users.into_iter().map(|(id,)| id).collect());
    Ok(Cow::Owned(SessionFilter { users, ..filter.clone() }))
}

fn users_with_email(filter: &SessionFilter, is_postgres: bool) -> SelectStatement {
    let email = Expr::col((user::Entity, user::Column::Email));
    let mut condition = Condition::all();
    if let Some(wanted) = &filter.email {
        condition = condition.add(email.clone().eq(wanted.as_str()));
    }
    if let Some(prefix) = &filter.email_prefix {
        if is_postgres {
            // The database's collation is any; the index is by characters.
            let escaped = prefix.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
            condition = condition.add(email.like(LikeExpr::new(format!("{escaped}%"))));
        } else {
            condition = begins_with(condition, &email, prefix);
        }
    }
    user::Entity::find().select_only().column(user::Column::Id).filter(condition).into_query()
}

fn has_attribute(wanted: &AttributeMatch, is_postgres: bool) -> Condition {
    if is_postgres {
        let attributes = session_column(session::Column::Attributes);
        if wanted.values.is_empty() {
            return Condition::all().add(attributes.binary(BinOper::Custom("?"), wanted.key.as_str()));
        }
        return wanted.values.iter().fold(Condition::any(), |any, value| {
            let pair = serde_json::json!({ wanted.key.as_str(): value });
            any.add(attributes.clone().contains(Expr::val(pair)))
        });
    }
    let mut entries = Query::select();
    let entry = |column: &'static str| Expr::col((Alias::new("entry"), Alias::new(column)));
    entries
        .expr(Expr::val(1))
        .from_function(Func::cust("json_each").arg(session_column(session::Column::Attributes)), "entry")
        .and_where(entry("key").eq(wanted.key.as_str()));
    if !wanted.values.is_empty() {
        entries.and_where(entry("value").is_in(wanted.values.iter().map(String::as_str)));
    }
    Condition::all().add(Expr::exists(entries))
}

/// What a filter asks of the sessions' summaries. Exact for clean sessions.
pub(in crate::store) fn of_summaries(filter: &SessionFilter) -> Condition {
    let mut condition = Condition::all();
    for (column, wanted) in [
        (session::Column::DurationMs, filter.duration_ms),
        (session::Column::ActiveMs, filter.active_ms),
        (session::Column::ActionCount, filter.action_count),
        (session::Column::ErrorCount, filter.error_count),
        (session::Column::RageClickCount, filter.rage_click_count),
    ] {
        condition = condition.add(is_between(column, wanted));
    }
    // Said as the partial indexes say it.
    if filter.error_count.min.is_some() {
        condition = condition.add(Expr::cust("\"sessions\".\"error_count\" > 0"));
    }
    if filter.rage_click_count.min.is_some() {
        condition = condition.add(Expr::cust("\"sessions\".\"rage_click_count\" > 0"));
    }
    match filter.is_dead_end {
        None => condition,
        Some(true) => condition.add(Expr::cust("\"sessions\".\"is_dead_end\"")),
        Some(false) => condition.add(Expr::cust("NOT \"sessions\".\"is_dead_end\"")),
    }
}

fn is_between(column: session::Column, wanted: Between) -> Condition {
    let mut condition = Condition::all();
    if let Some(min) = wanted.min {
        condition = condition.add(session_column(column).gte(min));
    }
    if let Some(max) = wanted.max {
        condition = condition.add(session_column(column).lte(max));
    }
    condition
}

/// That a session is in the index as it is, with so much of its facets.
pub(in crate::store) fn is_clean(detail: FacetDetail) -> Condition {
    let mut dirty = Query::select();
    dirty
        .expr(Expr::val(1))
        .from(track::Entity)
        .and_where(Expr::col((track::Entity, track::Column::SessionId)).equals((session::Entity, session::Column::Id)))
        .and_where(Expr::cust("\"tracks\".\"dirty\""));
    Condition::all().add(Expr::exists(dirty).not()).add_option(lacks_facets(detail).map(ExprTrait::not))
}

/// That the index has less than so much of a session's facets, if that may be. Said as the partial index says it.
pub(in crate::store) fn lacks_facets(detail: FacetDetail) -> Option<SimpleExpr> {
    let number = detail.number();
    let sql = format!("(\"sessions\".\"facet_detail\" < 2 AND \"sessions\".\"facet_detail\" < {number})");
    (number > 0).then(|| Expr::cust(sql))
}

/// The ids of the sessions in a filter's time range that are not in the index as they are, and of those of which the index has
/// less than what the filter asks for. Uses `tracks_dirty` and `sessions_facet_detail`.
fn dirty_parts(filter: &SessionFilter) -> Vec<SelectStatement> {
    let session_id = (track::Entity, track::Column::SessionId);
    let mut dirty = Query::select();
    dirty
        .column(session_id)
        .from(track::Entity)
        .and_where(Expr::cust("\"tracks\".\"dirty\""))
        .cond_where(id_range(Expr::col(session_id), filter));
    let lacking = lacks_facets(filter.facet_detail()).map(|lacks| {
        let id = (session::Entity, session::Column::Id);
        let mut lacking = Query::select();
        lacking.column(id).from(session::Entity).and_where(lacks).cond_where(id_range(Expr::col(id), filter));
        lacking
    });
    std::iter::once(dirty).chain(lacking).collect()
}

/// All of these together.
pub(in crate::store) fn dirty_sessions(filter: &SessionFilter) -> SelectStatement {
    let mut parts = dirty_parts(filter).into_iter();
    let mut dirty = parts.next().unwrap_or_default();
    dirty.unions(parts.map(|part| (UnionType::All, part)));
    dirty
}

/// One of these facets. More than one are numbers in the text of the statement: they are our own, and may be more than
/// parameters may be.
pub(in crate::store) fn is_one_of(column: Expr, facets: &[i64]) -> SimpleExpr {
    match facets {
        [] => Expr::cust("1 = 0"),
        [facet] => column.eq(*facet),
        _ => column.is_in(facets.iter().map(|facet| Expr::cust(facet.to_string()))),
    }
}

/// That a session has so many actions of these facets. Exact for clean sessions.
pub(in crate::store) fn has_facets(facets: Option<&[i64]>, min_count: i64, filter: &SessionFilter) -> SimpleExpr {
    let Some(facets) = facets else { return session_column(session::Column::ActionCount).gte(min_count) };
    let mut rows = Query::select();
    let session_id = Expr::col((session_facet::Entity, session_facet::Column::SessionId));
    rows.from(session_facet::Entity)
        .and_where(is_one_of(Expr::col((session_facet::Entity, session_facet::Column::FacetId)), facets))
        .and_where(session_id.clone().equals((session::Entity, session::Column::Id)))
        .cond_where(id_range(session_id, filter));
    let count = Expr::col((session_facet::Entity, session_facet::Column::Count));
    if facets.len() <= 1 || min_count <= 1 {
        rows.expr(Expr::val(1));
        if min_count > 1 {
            rows.and_where(count.gte(min_count));
        }
        return Expr::exists(rows);
    }
    rows.expr(Func::coalesce([count.sum(), Expr::val(0)]));
    SimpleExpr::SubQuery(None, Box::new(rows.into())).gte(min_count)
}
