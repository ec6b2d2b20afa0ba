//! Sessions that are not in the index as they are: few, at most those of the last seconds. And those of whose facets the index
//! has too little for what is asked, because they have too many. What is asked of them is answered from their tracks and their
//! actions.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, Condition, DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _, QueryTrait as _,
    sea_query::ExprTrait as _,
};
use uuid::Uuid;

use super::{
    condition::{Survey, dirty_sessions, of_sessions, session_column},
    target::action_condition,
};
use crate::{
    archive::ArchivedAction,
    error::Result,
    model::{
        ActionMatch, ActionView, Attributes, Evaluation, FacetDetail, Facets, SessionFilter, SessionId, StoredAction,
        Summary, Summing, Track, duration_ms,
    },
    store::{
        entity::{session, track},
        question::Question,
        track::from_row,
        user::attributes_from_json,
    },
};

/// What of the dirty sessions has to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Depth {
    /// What their tracks say: counts, and the last action. Where somebody has deleted actions by hand, only actions do.
    Tracks,
    /// Their summary and facets too.
    Actions,
}

/// A matching session of which the index does not tell.
pub(in crate::store) struct DirtySession {
    pub(in crate::store) row: session::Model,
    pub(in crate::store) tracks: Vec<Track>,
    pub(in crate::store) id: SessionId,
    pub(in crate::store) user_id: Option<String>,
    pub(in crate::store) attributes: Attributes,
    pub(in crate::store) action_count: i64,
    pub(in crate::store) error_count: i64,
    pub(in crate::store) last_action_at: Option<DateTime<Utc>>,
    /// With [`Depth::Actions`], or where the filter asks for it.
    pub(in crate::store) summary: Option<Summary>,
    /// With [`Depth::Actions`], as far as they are kept.
    pub(in crate::store) facets: Facets,
    /// Where it matches, if the filter asks for actions.
    pub(in crate::store) first_match: Option<DateTime<Utc>>,
    /// How often it was indexed before.
    pub(in crate::store) index_version: i64,
}

/// A look at the actions of a session.
struct Look<'a> {
    evaluation: Evaluation<'a>,
    summing: Summing,
    /// Number of actions, by the track's number.
    of_tracks: HashMap<i16, i64>,
}

impl<'a> Look<'a> {
    fn new(filter: &'a SessionFilter, session: Uuid, facets: Facets) -> Self {
        let evaluation = Evaluation::new(filter, SessionId::from_uuid(session).started_at());
        Self { evaluation, summing: Summing::with(facets), of_tracks: HashMap::new() }
    }
}

/// The dirty sessions of a filter.
pub(in crate::store) struct DirtySessions {
    /// Those that match.
    pub(in crate::store) matching: Vec<DirtySession>,
    /// All that may match by what is asked of the sessions themselves.
    pub(in crate::store) all: Vec<Uuid>,
}

/// Sessions whose actions are read by one statement.
pub(in crate::store) const SESSIONS_A_STATEMENT: usize = 200;

impl Question {
    /// The dirty sessions that match a filter, if a survey says that there may be any.
    pub(in crate::store) async fn dirty_of(
        &self,
        survey: &Survey,
        filter: &SessionFilter,
        depth: Depth,
        now: DateTime<Utc>,
    ) -> Result<DirtySessions> {
        if !survey.has_dirty {
            return Ok(DirtySessions { matching: Vec::new(), all: Vec::new() });
        }
        self.dirty(filter, depth, now).await
    }

    /// The dirty sessions that match a filter.
    ///
    /// Query `dirty sessions`. Uses `tracks_dirty` and `sessions_facet_detail`, then the primary key of `sessions`.
    async fn dirty(&self, filter: &SessionFilter, depth: Depth, now: DateTime<Utc>) -> Result<DirtySessions> {
        let rows = session::Entity::find()
            .filter(of_sessions(filter, now, self.backend()))
            .filter(session_column(session::Column::Id).in_subquery(dirty_sessions(filter)))
            .into_query();
        let rows: Vec<session::Model> = self.models("dirty sessions", &rows).await?;
        let all: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let mut tracks = self.tracks(&all).await?;
        let sessions = rows.into_iter().map(|row| DirtySession::new(tracks.remove(&row.id).unwrap_or_default(), row));
        let (cut, mut matching): (Vec<_>, Vec<_>) =
            sessions.partition(|session| session.tracks.iter().any(Track::is_cut));
        matching.retain(|session| session.may_match(filter));
        let needs_summary = depth == Depth::Actions || filter.asks_for_summary();
        if needs_summary || filter.asks_for_actions() {
            matching = self.look_at_actions(matching, filter, (depth, needs_summary)).await?;
        }
        matching.extend(self.look_at_actions(cut, filter, (depth, true)).await?);
        matching.retain(|session| session.may_match(filter));
        Ok(DirtySessions { matching, all })
    }

    async fn look_at_actions(
        &self,
        sessions: Vec<DirtySession>,
        filter: &SessionFilter,
        (depth, needs_summary): (Depth, bool),
    ) -> Result<Vec<DirtySession>> {
        let wanted =
            if needs_summary { Condition::all() } else { wanted_actions(filter.matches(), self.is_postgres()) };
        let mut matching = Vec::new();
        let mut sessions = sessions.into_iter().peekable();
        while sessions.peek().is_some() {
            let chunk: Vec<_> = sessions.by_ref().take(SESSIONS_A_STATEMENT).collect();
            let ids: Vec<_> = chunk.iter().map(|session| session.id.as_uuid()).collect();
            let facets = if depth == Depth::Actions { FacetDetail::Targets } else { FacetDetail::Nothing };
            let look = |id: &Uuid| (*id, Look::new(filter, *id, Facets::new(facets, self.max_session_facets)));
            let mut looks: HashMap<Uuid, Look<'_>> = ids.iter().map(look).collect();
            let mut actions = self.actions_in_order(&ids, wanted.clone(), needs_data(filter)).await?;
            while let Some(ArchivedAction { session, stored }) = actions.next().await? {
                let Some(look) = looks.get_mut(&session) else { continue };
                let action = ActionView::from(&stored.action);
                look.evaluation.push(&action);
                if needs_summary {
                    look.summing.push(action.timestamp, action.kind, action.target);
                    *look.of_tracks.entry(stored.track).or_default() += 1;
                }
            }
            for mut session in chunk {
                let Some(Look { evaluation, summing, of_tracks }) = looks.remove(&session.id.as_uuid()) else {
                    continue;
                };
                let verdict = evaluation.finish();
                session.first_match = verdict.first_at;
                if needs_summary {
                    let (summary, facets) = summing.finish();
                    if !is_summary_of(&summary, filter) {
                        continue;
                    }
                    session.learn(summary, facets, &of_tracks);
                }
                if verdict.matches {
                    matching.push(session);
                }
            }
        }
        Ok(matching)
    }

    /// Looks at the actions of sessions, each session's in the order of playback: at least at the wanted ones.
    pub(in crate::store) async fn read_actions(
        &self,
        sessions: &[Uuid],
        wanted: Condition,
        with_data: bool,
        mut look: impl FnMut(Uuid, &ActionView<'_>) + Send,
    ) -> Result<()> {
        let mut actions = self.actions_in_order(sessions, wanted, with_data).await?;
        while let Some(ArchivedAction { session, stored: StoredAction { action, .. } }) = actions.next().await? {
            look(session, &ActionView::from(&action));
        }
        Ok(())
    }

    /// The tracks of sessions, each session's by number.
    ///
    /// Query `tracks of sessions`. Uses the primary key.
    pub(in crate::store) async fn tracks(&self, sessions: &[Uuid]) -> Result<HashMap<Uuid, Vec<Track>>, DbErr> {
        let mut tracks: HashMap<Uuid, Vec<Track>> = HashMap::new();
        for sessions in sessions.chunks(1_000) {
            let rows = track::Entity::find()
                .filter(track::Column::SessionId.is_in(sessions.iter().copied()))
                .order_by_asc(track::Column::SessionId)
                .order_by_asc(track::Column::Number)
                .into_query();
            let rows: Vec<track::Model> = self.models("tracks of sessions", &rows).await?;
            for row in rows {
                tracks.entry(row.session_id).or_default().push(from_row(row));
            }
        }
        Ok(tracks)
    }
}

/// The actions that any of these matches may be about.
pub(in crate::store) fn wanted_actions<'a>(
    mut matches: impl Iterator<Item = &'a ActionMatch> + Clone,
    is_postgres: bool,
) -> Condition {
    if matches.clone().any(|wanted| !wanted.names_facets()) {
        return Condition::all();
    }
    matches.by_ref().fold(Condition::any(), |any, wanted| any.add(action_condition(wanted, is_postgres)))
}

/// Whether a filter looks into the data of actions.
pub(super) fn needs_data(filter: &SessionFilter) -> bool {
    filter.matches().any(|wanted| !wanted.data.is_empty())
}

/// Whether a summary is as a filter asks.
pub(super) fn is_summary_of(summary: &Summary, filter: &SessionFilter) -> bool {
    filter.active_ms.contains(summary.active_ms)
        && filter.rage_click_count.contains(summary.rage_click_count)
        && filter.is_dead_end.is_none_or(|wanted| wanted == summary.is_dead_end)
}

impl DirtySession {
    fn new(tracks: Vec<Track>, row: session::Model) -> Self {
        Self {
            id: SessionId::from_uuid(row.id),
            user_id: row.user_id.clone(),
            attributes: attributes_from_json(row.attributes.clone()),
            action_count: tracks.iter().map(Track::action_count).sum(),
            error_count: tracks.iter().map(|track| track.error_count).sum(),
            last_action_at: tracks.iter().filter_map(|track| track.last_action_at).max(),
            summary: None,
            facets: Facets::default(),
            first_match: None,
            index_version: row.index_version,
            row,
            tracks,
        }
    }

    /// Takes note of what all of its actions say.
    fn learn(&mut self, summary: Summary, facets: Facets, of_tracks: &HashMap<i16, i64>) {
        for track in &mut self.tracks {
            track.lost_count = Some(track.last_seq - of_tracks.get(&track.number).copied().unwrap_or(0));
        }
        self.action_count = summary.action_count;
        self.error_count = summary.error_count;
        self.last_action_at = summary.last_action_at;
        (self.summary, self.facets) = (Some(summary), facets);
    }

    /// Whether it matches as far as its tracks can tell, or all of its actions have.
    fn may_match(&self, filter: &SessionFilter) -> bool {
        filter.action_count.contains(self.action_count)
            && filter.error_count.contains(self.error_count)
            && filter.duration_ms.contains(duration_ms(self.id, self.last_action_at))
    }
}
