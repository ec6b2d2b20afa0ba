//! Finding sessions: from the index as far as it goes, and from the actions where only they can tell.
//!
//! Clean sessions are found by their summaries and facets, dirty ones by what [`dirty`] reads of them, all in one view of the
//! database. What only the actions can tell (their data, their time in the session, their order) is asked of the sessions
//! that the index leaves, in the order in which they are wanted, until there are enough.

mod actions;
mod condition;
mod dirty;
mod place;
mod prepared;
mod target;
mod window;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{
    Condition, DbErr, EntityTrait as _, ExprTrait as _, QueryTrait as _,
    sea_query::{Expr, SelectStatement},
};
use uuid::Uuid;

use self::{
    condition::with_users,
    dirty::{is_summary_of, needs_data},
    prepared::{Candidate, Prepared},
};
pub(super) use self::{
    condition::{has_facets, id_range, is_clean, is_one_of, lacks_facets, of_sessions, session_column},
    dirty::{Depth, DirtySession, DirtySessions, SESSIONS_A_STATEMENT, wanted_actions},
    target::action_condition,
};
use super::{
    Store,
    entity::{session, session_facet},
    question::Question,
    session::from_row,
};
use crate::{
    error::{Error, Result},
    model::{
        Evaluation, FoundSession, FoundSessions, SessionFilter, SessionId, SessionOrder, SessionPlace, SessionSearch,
        Summary, Summing, Track,
    },
};

/// The sessions that a filter chooses.
pub(super) struct Matched {
    /// Conditions on `sessions`: each chooses some of the clean sessions, all together each session once.
    pub(super) clean: Vec<Condition>,
    /// Whether the filter chooses by nothing but the start.
    pub(super) is_by_start_only: bool,
    /// The dirty ones.
    pub(super) dirty: Vec<DirtySession>,
}

impl Store {
    /// Finds sessions.
    pub async fn session_search(&self, search: &SessionSearch, now: DateTime<Utc>) -> Result<FoundSessions> {
        asked!(self, async |question| question.sessions(search, now).await)
    }

    /// One session, with what its actions say.
    pub async fn session_describe(&self, id: SessionId) -> Result<FoundSession> {
        asked!(self, lookup, async |question| {
            let row = session::Entity::find_by_id(id.as_uuid()).into_query();
            let rows: Vec<session::Model> = question.models("session by id", &row).await?;
            let row = rows.into_iter().next().ok_or(Error::SessionNotFound)?;
            let tracks = question.tracks(&[row.id]).await?.remove(&row.id).unwrap_or_default();
            let summary = question.summary(&row, &tracks).await?;
            Ok(FoundSession::new(from_row(row, tracks), summary, None))
        })
    }
}

impl Question {
    /// The sessions that a filter chooses, as what else is asked about them needs them.
    pub(super) async fn matched(&self, filter: &SessionFilter, depth: Depth, now: DateTime<Utc>) -> Result<Matched> {
        let filter = &*with_users(self, filter).await?;
        let survey = self.survey(filter.matches(), Some(filter), &[]).await?;
        let DirtySessions { matching: dirty, all } = self.dirty_of(&survey, filter, depth, now).await?;
        let outdated = self.outdated_for(filter).await?;
        let prepared = Prepared::new(filter, survey, (&all, outdated), now);
        let clean = if prepared.needs_actions() {
            let sessions = self.verified(&prepared).await?;
            let id = session_column(session::Column::Id);
            sessions.chunks(1_000).map(|ids| Condition::all().add(id.clone().is_in(ids.iter().copied()))).collect()
        } else {
            vec![prepared.condition(self)]
        };
        let start = SessionFilter {
            started_after: filter.started_after,
            started_before: filter.started_before,
            ..SessionFilter::default()
        };
        Ok(Matched { clean, is_by_start_only: *filter == start, dirty })
    }

    /// The clean sessions that match where actions have to be read to tell.
    async fn verified(&self, prepared: &Prepared<'_>) -> Result<Vec<Uuid>> {
        let mut sessions = Vec::new();
        let mut after = None;
        loop {
            let candidates =
                prepared.candidates(self, SessionOrder::StartTime, false, after, Some(SESSIONS_A_STATEMENT));
            let rows: Vec<session::Model> = self.models("candidates", &candidates).await?;
            let verdicts = self.verify(prepared, &rows).await?;
            sessions.extend(rows.iter().map(|row| row.id).filter(|id| verdicts.contains_key(id)));
            let Some(last) = rows.last().filter(|_| rows.len() == SESSIONS_A_STATEMENT) else { return Ok(sessions) };
            after = Some(SessionPlace { key: 0, session: SessionId::from_uuid(last.id) });
        }
    }

    /// Which of these sessions match by their actions, and where.
    async fn verify(
        &self,
        prepared: &Prepared<'_>,
        rows: &[session::Model],
    ) -> Result<HashMap<Uuid, Option<DateTime<Utc>>>> {
        let filter = prepared.filter;
        let is_outdated = |id: Uuid| prepared.outdated_below.is_some_and(|below| id < below);
        let mut matching = HashMap::new();
        for rows in rows.chunks(SESSIONS_A_STATEMENT) {
            let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
            let mut evaluations: HashMap<Uuid, Evaluation<'_>> =
                ids.iter().map(|id| (*id, Evaluation::new(filter, SessionId::from_uuid(*id).started_at()))).collect();
            let mut summings: HashMap<Uuid, Summing> =
                ids.iter().filter(|id| is_outdated(**id)).map(|id| (*id, Summing::default())).collect();
            let wanted = if summings.is_empty() {
                wanted_actions(filter.matches(), self.is_postgres())
            } else {
                Condition::all()
            };
            self.read_actions(&ids, wanted, needs_data(filter), |session, action| {
                if let Some(evaluation) = evaluations.get_mut(&session) {
                    evaluation.push(action);
                }
                if let Some(summing) = summings.get_mut(&session) {
                    summing.push(action.timestamp, action.kind, action.target);
                }
            })
            .await?;
            summings.retain(|_, summing| !is_summary_of(&std::mem::take(summing).finish().0, filter));
            evaluations.retain(|id, _| !summings.contains_key(id));
            let verdicts = evaluations.into_iter().map(|(id, evaluation)| (id, evaluation.finish()));
            matching
                .extend(verdicts.filter(|(_, verdict)| verdict.matches).map(|(id, verdict)| (id, verdict.first_at)));
        }
        Ok(matching)
    }

    async fn sessions(&self, search: &SessionSearch, now: DateTime<Utc>) -> Result<FoundSessions> {
        let filter = &*with_users(self, &search.filter).await?;
        let asks_the_index = filter.asks_for_actions()
            || filter.asks_for_summary()
            || !(filter.duration_ms.is_open() && filter.action_count.is_open() && filter.error_count.is_open())
            || search.order != SessionOrder::StartTime;
        let days = if self.is_postgres() { window::days(search, now) } else { Vec::new() };
        let survey = self.survey(filter.matches(), asks_the_index.then_some(filter), &days).await?;
        let window = window::choose(search, &survey);
        let DirtySessions { matching, all } = self.dirty_of(&survey, filter, Depth::Tracks, now).await?;
        let outdated = self.outdated_for(filter).await?;
        let prepared = Prepared::new(filter, survey, (&all, outdated), now);
        let mut page = self.clean_page(&prepared, search, window).await?;
        let total = if search.count_total {
            Some(self.total(&prepared).await? + i64::try_from(matching.len()).unwrap_or(i64::MAX))
        } else {
            None
        };
        page.extend(matching.into_iter().map(|dirty| Found::dirty(dirty, search.order)).filter(|found| {
            search.after.is_none_or(|after| if search.ascending { found.place > after } else { found.place < after })
        }));
        let in_order = |one: &Found, other: &Found| one.place.cmp(&other.place);
        page.sort_by(|one, other| if search.ascending { in_order(one, other) } else { in_order(other, one) });
        page.truncate(search.limit);
        if !prepared.needs_actions() && !prepared.knows_first_matches() {
            self.find_first_matches(&prepared, &mut page).await?;
        }
        let mut sessions = Vec::with_capacity(page.len());
        for Found { row, tracks, first_match, summary, .. } in page {
            let summary = match summary {
                Some(summary) => summary,
                None => self.summary(&row, &tracks).await?,
            };
            sessions.push(FoundSession::new(from_row(row, tracks), summary, first_match));
        }
        Ok(FoundSessions { sessions, total })
    }

    /// The clean sessions of a page, in no order.
    ///
    /// `window` says since when there probably are enough of them.
    async fn clean_page(
        &self,
        prepared: &Prepared<'_>,
        search: &SessionSearch,
        window: Option<DateTime<Utc>>,
    ) -> Result<Vec<Found>> {
        if prepared.needs_actions() {
            return self.verified_page(prepared, search).await;
        }
        if window > prepared.filter.started_after {
            let filter = SessionFilter { started_after: window, ..prepared.filter.clone() };
            let page = self.index_page(&prepared.within(&filter), search).await?;
            if page.len() >= search.limit {
                return Ok(page);
            }
        }
        self.index_page(prepared, search).await
    }

    /// The same as far as the index tells.
    async fn index_page(&self, prepared: &Prepared<'_>, search: &SessionSearch) -> Result<Vec<Found>> {
        let rows: Vec<Candidate> = self.models("sessions", &prepared.page(self, search)).await?;
        let mut page: Vec<Found> = Vec::with_capacity(rows.len());
        let mut places = HashMap::with_capacity(rows.len());
        for Candidate { row, first_match, track } in rows {
            let place = *places.entry(row.id).or_insert(page.len());
            if place == page.len() {
                page.push(Found::clean(row, first_match, search.order));
            }
            if let Some(found) = page.get_mut(place) {
                found.tracks.extend(track);
            }
        }
        page.iter_mut().for_each(|found| found.tracks.sort_unstable_by_key(|track| track.number));
        Ok(page)
    }

    /// The same where only the actions tell which match.
    async fn verified_page(&self, prepared: &Prepared<'_>, search: &SessionSearch) -> Result<Vec<Found>> {
        let mut page: Vec<Found> = Vec::new();
        let limit = search.limit.max(SESSIONS_A_STATEMENT);
        let mut after = search.after;
        loop {
            let candidates = prepared.candidates(self, search.order, search.ascending, after, Some(limit));
            let rows: Vec<session::Model> = self.models("candidates", &candidates).await?;
            after = rows.last().map(|row| place_of_row(row, search.order));
            let is_last = rows.len() < limit;
            let firsts = self.verify(prepared, &rows).await?;
            page.extend(rows.into_iter().filter_map(|row| {
                let first_match = *firsts.get(&row.id)?;
                Some(Found::clean(row, first_match, search.order))
            }));
            if is_last || page.len() >= search.limit {
                break;
            }
        }
        page.truncate(search.limit);
        let ids: Vec<_> = page.iter().map(|found| found.row.id).collect();
        let mut tracks = self.tracks(&ids).await?;
        for found in &mut page {
            found.tracks = tracks.remove(&found.row.id).unwrap_or_default();
        }
        Ok(page)
    }

    /// How many clean sessions match.
    async fn total(&self, prepared: &Prepared<'_>) -> Result<i64> {
        if prepared.needs_actions() {
            return Ok(i64::try_from(self.verified(prepared).await?.len()).unwrap_or(i64::MAX));
        }
        let mut count = prepared.number_by_facets().unwrap_or_else(|| prepared.joined_for(self));
        count.expr(Expr::cust("count(*)"));
        let counts: Vec<(i64,)> = self.rows("number of sessions", &count).await?;
        Ok(counts.first().map_or(0, |(count,)| *count))
    }

    /// Finds where the clean sessions of a page match first, by their facets.
    ///
    /// Query `first matches`. Uses the primary key of `session_facets`.
    async fn find_first_matches(&self, prepared: &Prepared<'_>, page: &mut [Found]) -> Result<(), DbErr> {
        let [all, any, ..] = &prepared.facets;
        let wanted: Vec<_> = all.iter().chain(any).collect();
        let clean: Vec<_> = page.iter().filter(|found| !found.is_dirty).map(|found| found.row.id).collect();
        if wanted.is_empty() || clean.is_empty() {
            return Ok(());
        }
        let mut firsts = HashMap::new();
        let is_any_action = wanted.iter().any(|facets| facets.is_none());
        if !is_any_action {
            let mut facets: Vec<i64> = wanted.into_iter().flatten().flatten().copied().collect();
            facets.sort_unstable();
            facets.dedup();
            let session_id = Expr::col((session_facet::Entity, session_facet::Column::SessionId));
            let mut query = SelectStatement::new();
            query
                .column((session_facet::Entity, session_facet::Column::SessionId))
                .expr(Expr::col((session_facet::Entity, session_facet::Column::FirstAt)).min())
                .from(session_facet::Entity)
                .and_where(is_one_of(Expr::col((session_facet::Entity, session_facet::Column::FacetId)), &facets))
                .and_where(session_id.is_in(clean))
                .add_group_by([Expr::col((session_facet::Entity, session_facet::Column::SessionId))]);
            firsts.extend(self.rows::<(Uuid, DateTime<Utc>)>("first matches", &query).await?);
        }
        for found in page.iter_mut().filter(|found| !found.is_dirty) {
            found.first_match =
                if is_any_action { found.row.first_action_at } else { firsts.get(&found.row.id).copied() };
        }
        Ok(())
    }

    /// What a session's actions say: what the index says, if that is all of them.
    async fn summary(&self, row: &session::Model, tracks: &[Track]) -> Result<Summary> {
        let is_indexed = !tracks.iter().any(|track| track.is_dirty);
        if is_indexed && self.outdated_below().await?.is_none_or(|below| row.id >= below) {
            return Ok(summary_of_row(row));
        }
        let mut summing = Summing::default();
        self.read_actions(&[row.id], Condition::all(), false, |_, action| {
            summing.push(action.timestamp, action.kind, action.target);
        })
        .await?;
        Ok(summing.finish().0)
    }
}

/// A session of a page.
struct Found {
    place: SessionPlace,
    row: session::Model,
    tracks: Vec<Track>,
    first_match: Option<DateTime<Utc>>,
    /// None where the index may tell.
    summary: Option<Summary>,
    is_dirty: bool,
}

impl Found {
    fn clean(row: session::Model, first_match: Option<DateTime<Utc>>, order: SessionOrder) -> Self {
        let place = place_of_row(&row, order);
        Self { place, row, tracks: Vec::new(), first_match, summary: None, is_dirty: false }
    }

    fn dirty(session: DirtySession, order: SessionOrder) -> Self {
        let DirtySession { id, action_count, error_count, last_action_at, first_match, summary, .. } = session;
        let place = SessionPlace::of(id, order, action_count, error_count, last_action_at);
        Self { place, row: session.row, tracks: session.tracks, first_match, summary, is_dirty: true }
    }
}

fn place_of_row(row: &session::Model, order: SessionOrder) -> SessionPlace {
    SessionPlace::of(SessionId::from_uuid(row.id), order, row.action_count, row.error_count, row.last_action_at)
}

pub(super) fn summary_of_row(row: &session::Model) -> Summary {
    Summary {
        action_count: row.action_count,
        error_count: row.error_count,
        first_action_at: row.first_action_at,
        last_action_at: row.last_action_at,
        active_ms: row.active_ms,
        rage_click_count: row.rage_click_count,
        is_dead_end: row.is_dead_end,
    }
}
