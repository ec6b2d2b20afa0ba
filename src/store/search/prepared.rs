//! A filter made ready: its facets looked up, and turned into statements that choose clean sessions.

use chrono::{DateTime, Utc};
use sea_orm::{
    Condition, DbErr, ExprTrait as _, FromQueryResult, Iterable as _, QueryResult,
    sea_query::{Asterisk, Expr, Func, Iden as _, JoinType, Order, SelectStatement, SimpleExpr},
};
use uuid::Uuid;

use super::{
    condition::{Survey, has_facets, id_range, is_clean, is_one_of, of_sessions, of_summaries, session_column},
    place::{is_after, order_by},
};
use crate::{
    model::{ActionMatch, Between, SessionFilter, SessionOrder, SessionPlace, SessionSearch, Track},
    store::{
        entity::{session, session_facet, track},
        question::Question,
        track::from_row,
    },
};

/// So few dirty sessions are named, rather than looked up one by one.
const FEW: usize = 50;

/// A filter and what had to be looked up to carry it out.
pub(super) struct Prepared<'a> {
    pub(super) filter: &'a SessionFilter,
    now: DateTime<Utc>,
    /// The facets of each match: of `all_of`, of `any_of`, of `none_of` and of the sequence.
    pub(super) facets: [Vec<Option<Vec<i64>>>; 4],
    dirty: Dirty,
    /// Of sessions with lesser ids, the index is not believed what it says of rage clicks.
    pub(super) outdated_below: Option<Uuid>,
}

/// The sessions of which the index does not tell, and which are left out.
#[derive(Clone, Debug)]
enum Dirty {
    Few(Vec<Uuid>),
    Many,
}

/// That it is none of these, if there are any.
fn is_none_of(column: Expr, ids: &[Uuid]) -> Option<SimpleExpr> {
    (!ids.is_empty()).then(|| column.is_not_in(ids.iter().copied()))
}

impl<'a> Prepared<'a> {
    /// `dirty` are the sessions that are left out.
    pub(super) fn new(
        filter: &'a SessionFilter,
        survey: Survey,
        (dirty, outdated_below): (&[Uuid], Option<Uuid>),
        now: DateTime<Utc>,
    ) -> Self {
        let mut facets = survey.facets.into_iter();
        let mut next = |count: usize| facets.by_ref().take(count).collect();
        let facets = [
            next(filter.all_of.len()),
            next(filter.any_of.len()),
            next(filter.none_of.len()),
            next(filter.sequence.len()),
        ];
        let dirty = if dirty.len() <= FEW { Dirty::Few(dirty.to_vec()) } else { Dirty::Many };
        Prepared { filter, now, facets, dirty, outdated_below }
    }

    /// The same for another filter, which differs in its time range only.
    pub(super) fn within<'b>(&self, filter: &'b SessionFilter) -> Prepared<'b> {
        let (facets, dirty) = (self.facets.clone(), self.dirty.clone());
        Prepared { filter, now: self.now, facets, dirty, outdated_below: self.outdated_below }
    }
}

impl Prepared<'_> {
    /// What chooses the clean sessions, as far as the index can tell.
    pub(super) fn condition(&self, question: &Question) -> Condition {
        self.of_index(question, |_| true)
    }

    /// Whether only the actions themselves can tell which sessions match.
    pub(super) fn needs_actions(&self) -> bool {
        self.filter.needs_actions() || self.outdated_below.is_some()
    }

    /// What is asked of the summaries, as far as they are believed.
    fn of_summaries(&self) -> Condition {
        let Some(below) = self.outdated_below else { return of_summaries(self.filter) };
        let rage_click_count = self.filter.rage_click_count;
        let others = SessionFilter { rage_click_count: Between::default(), ..self.filter.clone() };
        let rage = of_summaries(&SessionFilter { rage_click_count, ..SessionFilter::default() });
        let is_outdated = session_column(session::Column::Id).lt(below);
        of_summaries(&others).add(Condition::any().add(is_outdated).add(rage))
    }

    fn of_index(&self, question: &Question, is_wanted: impl Fn(usize) -> bool) -> Condition {
        let filter = self.filter;
        let [all, any, none, steps] = &self.facets;
        let mut condition = of_sessions(filter, self.now, question.backend()).add(self.of_summaries());
        condition = match &self.dirty {
            Dirty::Few(ids) => condition.add_option(is_none_of(session_column(session::Column::Id), ids)),
            Dirty::Many => condition.add(is_clean(filter.facet_detail())),
        };
        for (index, (wanted, facets)) in filter.all_of.iter().zip(all).enumerate() {
            if is_wanted(index) {
                condition = condition.add(has_facets(facets.as_deref(), necessary_count(wanted), filter));
            }
        }
        for facets in steps {
            condition = condition.add(has_facets(facets.as_deref(), 1, filter));
        }
        if !any.is_empty() {
            let each = filter.any_of.iter().zip(any);
            condition = condition.add(each.fold(Condition::any(), |condition, (wanted, facets)| {
                condition.add(has_facets(facets.as_deref(), necessary_count(wanted), filter))
            }));
        }
        for (wanted, facets) in filter.none_of.iter().zip(none).filter(|(wanted, _)| wanted.is_of_facets()) {
            condition = condition.add(has_facets(facets.as_deref(), wanted.min_count, filter).not());
        }
        condition
    }

    /// The clean sessions that the index leaves, in the order of the search.
    ///
    /// Queries `sessions` and `candidates`. Of each facet that all of them have, the primary key of `session_facets` gives the
    /// sessions in the order of their start; without one, `sessions_user`, the index of the order, or a partial one is used.
    pub(super) fn candidates(
        &self,
        question: &Question,
        order: SessionOrder,
        ascending: bool,
        after: Option<SessionPlace>,
        limit: Option<usize>,
    ) -> SelectStatement {
        let is_by_facets = order == SessionOrder::StartTime && self.asks_for_facets_only();
        let mut query = if is_by_facets {
            let is_it = session_column(session::Column::Id).equals((FACETS, session_facet::Column::SessionId));
            let mut query = SelectStatement::new();
            query
                .from_subquery(self.rows_of_facets(question, ascending, after, limit), FACETS)
                .inner_join(session::Entity, is_it)
                .expr_as(Expr::col((FACETS, session_facet::Column::FirstAt)), FIRST_MATCH);
            query
        } else {
            let mut query = self.joined_for(question);
            query.expr_as(self.first_match(question), FIRST_MATCH);
            query
        };
        query.columns(session::Column::iter().map(|column| (session::Entity, column)));
        if let Some(after) = after {
            query.cond_where(is_after(after, order, ascending));
        }
        order_by(&mut query, order, ascending, self.goes_by_start_column());
        if let Some(limit) = limit {
            query.limit(u64::try_from(limit).unwrap_or(u64::MAX));
        }
        query
    }

    /// The same with their tracks: as many rows a session as it has tracks, in no order.
    ///
    /// Query `sessions`. Uses the primary key of `tracks` too.
    pub(super) fn page(&self, question: &Question, search: &SessionSearch) -> SelectStatement {
        let candidates = self.candidates(question, search.order, search.ascending, search.after, Some(search.limit));
        let mut query = SelectStatement::new();
        query.column(("found", Asterisk));
        for column in track::Column::iter() {
            query.expr_as(Expr::col((track::Entity, column)), format!("{TRACK}{}", column.to_string()));
        }
        query.from_subquery(candidates, "found").left_join(
            track::Entity,
            Expr::col((track::Entity, track::Column::SessionId)).equals(("found", session::Column::Id)),
        );
        query
    }

    /// Where a session matches first, if the joined facets tell.
    fn first_match(&self, question: &Question) -> SimpleExpr {
        if !self.knows_first_matches() {
            return Expr::cust("NULL");
        }
        let firsts: Vec<_> =
            self.single_facets().map(|(index, ..)| Expr::col((alias(index), session_facet::Column::FirstAt))).collect();
        match firsts.as_slice() {
            [first] => first.clone(),
            _ => Func::cust(if question.is_postgres() { "least" } else { "min" }).args(firsts).into(),
        }
    }

    /// Whether the joined facets tell where a session matches first.
    pub(super) fn knows_first_matches(&self) -> bool {
        let all = self.filter.all_of.len();
        all > 0 && self.filter.any_of.is_empty() && self.single_facets().count() == all
    }

    /// Whether nothing is asked for but facets: then the sessions are found without looking at them.
    fn asks_for_facets_only(&self) -> bool {
        let filter = self.filter;
        let only = SessionFilter {
            started_after: filter.started_after,
            started_before: filter.started_before,
            all_of: filter.all_of.clone(),
            ..SessionFilter::default()
        };
        self.knows_first_matches() && *filter == only && matches!(self.dirty, Dirty::Few(_))
    }

    /// The sessions that have all the facets, where nothing else is asked for, and where they match first.
    fn rows_of_facets(
        &self,
        question: &Question,
        ascending: bool,
        after: Option<SessionPlace>,
        limit: Option<usize>,
    ) -> SelectStatement {
        let mut query = self.facets_only();
        let session_id = (alias(0), session_facet::Column::SessionId);
        query.column(session_id.clone()).expr_as(self.first_match(question), session_facet::Column::FirstAt);
        if let Some(after) = after {
            let (id, after) = (Expr::col(session_id.clone()), after.session.as_uuid());
            query.and_where(if ascending { id.gt(after) } else { id.lt(after) });
        }
        query.order_by(session_id, if ascending { Order::Asc } else { Order::Desc });
        if let Some(limit) = limit {
            query.limit(u64::try_from(limit).unwrap_or(u64::MAX));
        }
        query
    }

    /// How many sessions match, where nothing is asked for but facets.
    pub(super) fn number_by_facets(&self) -> Option<SelectStatement> {
        self.asks_for_facets_only().then(|| self.facets_only())
    }

    fn facets_only(&self) -> SelectStatement {
        let mut query = SelectStatement::new();
        for (index, facet, min_count) in self.single_facets() {
            let alias = alias(index);
            let column = |column: session_facet::Column| Expr::col((alias.clone(), column));
            let session_id = column(session_facet::Column::SessionId);
            let mut condition =
                id_range(session_id.clone(), self.filter).add(column(session_facet::Column::FacetId).eq(facet));
            if min_count > 1 {
                condition = condition.add(column(session_facet::Column::Count).gte(min_count));
            }
            if index == 0 {
                if let Dirty::Few(ids) = &self.dirty {
                    condition = condition.add_option(is_none_of(session_id, ids));
                }
                query.from_as(session_facet::Entity, alias).cond_where(condition);
            } else {
                let first = (self::alias(0), session_facet::Column::SessionId);
                let condition = condition.add(session_id.equals(first));
                query.join_as(JoinType::InnerJoin, session_facet::Entity, alias, condition);
            }
        }
        query
    }

    /// The index of users, and the partial ones of errors, rage clicks, dead ends and live sessions, go on with the start.
    fn goes_by_start_column(&self) -> bool {
        let filter = self.filter;
        let has_facet = self.single_facets().next().is_some();
        let is_partial = filter.error_count.min.is_some()
            || filter.rage_click_count.min.is_some()
            || filter.is_dead_end == Some(true)
            || filter.is_live == Some(true);
        !has_facet && (filter.only_user().is_some() || is_partial)
    }

    /// The matches of `all_of` that are of one facet each: index, facet and count.
    fn single_facets(&self) -> impl Iterator<Item = (usize, i64, i64)> {
        let matches = self.filter.all_of.iter().zip(&self.facets[0]).enumerate();
        matches.filter_map(|(index, (wanted, facets))| match facets.as_deref() {
            Some([facet]) => Some((index, *facet, necessary_count(wanted))),
            _ => None,
        })
    }
}

/// The name under which the rows of the facet of a match are joined.
fn alias(index: usize) -> String {
    format!("facet_{index}")
}

/// A session that the index finds, and one of its tracks.
pub(super) struct Candidate {
    pub(super) row: session::Model,
    /// Where it matches first, if the query tells.
    pub(super) first_match: Option<DateTime<Utc>>,
    pub(super) track: Option<Track>,
}

/// The column of that name.
const FIRST_MATCH: &str = "first_match_at";

/// The name of the sessions that have all the facets.
const FACETS: &str = "facets_found";

/// What the names of a track's columns begin with.
const TRACK: &str = "track_";

impl FromQueryResult for Candidate {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        Ok(Self {
            row: session::Model::from_query_result(row, prefix)?,
            first_match: row.try_get(prefix, FIRST_MATCH)?,
            track: track::Model::from_query_result_optional(row, TRACK)?.map(from_row),
        })
    }
}

/// How many actions of its facets a session has at least where a match is fulfilled.
fn necessary_count(wanted: &ActionMatch) -> i64 {
    wanted.min_count
}

impl Prepared<'_> {
    /// The table of sessions, joined with the rows of each facet that all of them have: the database begins with the rarest.
    pub(super) fn joined_for(&self, question: &Question) -> SelectStatement {
        let joined: Vec<_> = self.single_facets().collect();
        let mut query = SelectStatement::new();
        query.from(session::Entity);
        for (index, facet, min_count) in &joined {
            let alias = alias(*index);
            let column = |column: session_facet::Column| Expr::col((alias.clone(), column));
            let session_id = column(session_facet::Column::SessionId);
            let mut on = Condition::all()
                .add(is_one_of(column(session_facet::Column::FacetId), &[*facet]))
                .add(session_id.clone().equals((session::Entity, session::Column::Id)))
                .add(id_range(session_id, self.filter));
            if *min_count > 1 {
                on = on.add(column(session_facet::Column::Count).gte(*min_count));
            }
            query.join_as(JoinType::InnerJoin, session_facet::Entity, alias.clone(), on);
        }
        query.cond_where(self.of_index(question, |index| !joined.iter().any(|(joined, ..)| *joined == index)));
        query
    }
}
