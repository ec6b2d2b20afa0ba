//! Numbers of actions by what they have in common. Each question takes the cheapest way that is exact:
//!
//! * by type, target and day of the session's start, of all sessions of some days: the roll-up;
//! * by what sessions are, all actions or all errors: the summaries;
//! * by what facets and sessions are: the facets of sessions;
//! * by source, all actions: the tracks;
//! * by anything else: the actions of the sessions, errors by their own index.

mod actions;
mod columns;
mod facets;
mod roll_up;

use chrono::{DateTime, Utc};
use sea_orm::{
    ExprTrait as _,
    sea_query::{Expr, JoinType},
};

use self::columns::{Columns, key_of, key_of_track};
use super::{sessions_where, tally::Tally};
use crate::{
    error::{Error, Result},
    model::{ActionCounting, ActionCounts, Dimension, ERROR_TYPE},
    store::{
        Store,
        entity::{session, track},
        question::Question,
        search::{Depth, Matched},
        track::ACTIONS_OF_TRACK,
    },
};

/// A way to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Facets,
    Summaries,
    Tracks,
    Actions,
}

impl Way {
    fn to(counting: &ActionCounting) -> Self {
        let (action, dimensions) = (&counting.action, &counting.group_by);
        let all = |is_so: fn(&Dimension) -> bool| dimensions.iter().all(is_so);
        let is_all_errors = action.kind.as_deref() == Some(ERROR_TYPE) && action.target.is_none();
        if all(Dimension::is_of_sessions) && (action.is_everything() || (is_all_errors && action.is_of_facets())) {
            Self::Summaries
        } else if all(|dimension| dimension.is_of_facets() || dimension.is_of_sessions()) && action.is_of_facets() {
            Self::Facets
        } else if all(|dimension| *dimension == Dimension::Source || dimension.is_of_sessions())
            && action.is_everything()
        {
            Self::Tracks
        } else {
            Self::Actions
        }
    }
}

impl Store {
    /// Counts actions.
    pub async fn action_counts(&self, counting: &ActionCounting, now: DateTime<Utc>) -> Result<ActionCounts> {
        let way = Way::to(counting);
        if way == Way::Actions && !is_bounded(counting) {
            return Err(Error::invalid(
                "group_by",
                "this reads the actions themselves: give a type or a target to match, an action in filter.all_of, \
                 or both filter.started_after and filter.started_before",
            ));
        }
        asked!(self, async |question| {
            let depth = if way == Way::Facets { Depth::Actions } else { Depth::Tracks };
            let matched = question.matched(&counting.filter, depth, now).await?;
            let mut tally = Tally::default();
            match way {
                Way::Facets => question.count_by_facets(counting, &matched, &mut tally).await?,
                Way::Summaries => question.count_by_summaries(counting, &matched, &mut tally).await?,
                Way::Tracks => question.count_by_tracks(counting, &matched, &mut tally).await?,
                Way::Actions => question.count_by_actions(counting, &matched, now, &mut tally).await?,
            }
            Ok(tally.finish(counting.limit))
        })
    }
}

fn is_bounded(counting: &ActionCounting) -> bool {
    let names_facets = counting.filter.all_of.iter().any(crate::model::ActionMatch::names_facets);
    counting.filter.has_time_range() || names_facets || counting.action.names_facets()
}

impl Question {
    /// Query `summaries by group`.
    async fn count_by_summaries(&self, counting: &ActionCounting, matched: &Matched, tally: &mut Tally) -> Result<()> {
        let counts_errors = counting.action.kind.is_some();
        let column = if counts_errors { session::Column::ErrorCount } else { session::Column::ActionCount };
        for condition in &matched.clean {
            let mut query = sessions_where(condition.clone());
            let columns = Columns::of(&counting.group_by, self.backend());
            columns.select(&mut query, Expr::col((session::Entity, column)).sum());
            for row in columns.rows(self, "summaries by group", &query).await? {
                tally.add(row.key, row.count)?;
            }
        }
        for session in &matched.dirty {
            let count = if counts_errors { session.error_count } else { session.action_count };
            tally.add(key_of(&counting.group_by, session, None, None), count)?;
        }
        Ok(())
    }

    /// Query `tracks by group`.
    async fn count_by_tracks(&self, counting: &ActionCounting, matched: &Matched, tally: &mut Tally) -> Result<()> {
        for condition in &matched.clean {
            let mut query = sessions_where(condition.clone());
            let of_session = Expr::col((track::Entity, track::Column::SessionId));
            let of_session = of_session.equals((session::Entity, session::Column::Id));
            query.join(JoinType::InnerJoin, track::Entity, of_session);
            let columns = Columns::of(&counting.group_by, self.backend());
            columns.select(&mut query, Expr::cust(format!("sum({ACTIONS_OF_TRACK})")));
            for row in columns.rows(self, "tracks by group", &query).await? {
                tally.add(row.key, row.count)?;
            }
        }
        for session in &matched.dirty {
            for track in &session.tracks {
                tally.add(key_of_track(&counting.group_by, session, track), track.action_count())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ActionMatch,
        Dimension::{Attribute, Day, Hour, SessionDay, Source, Target, Type, User},
        SessionFilter,
    };

    #[test]
    fn the_cheapest_exact_way_is_taken() {
        let way = |kind: Option<&str>, from: bool, group_by: &[Dimension]| {
            let action = ActionMatch {
                kind: kind.map(str::to_owned),
                from: from.then(chrono::TimeDelta::zero),
                ..ActionMatch::default()
            };
            Way::to(&ActionCounting { filter: SessionFilter::default(), action, group_by: group_by.to_vec(), limit: 1 })
        };
        assert_eq!(way(None, false, &[]), Way::Summaries);
        assert_eq!(way(Some("error"), false, &[User, SessionDay, Attribute("a".into())]), Way::Summaries);
        assert_eq!(way(Some("click"), false, &[User]), Way::Facets);
        assert_eq!(way(None, false, &[User, Type, Target]), Way::Facets);
        assert_eq!(way(None, false, &[Source, User]), Way::Tracks);
        for reads in [
            way(Some("click"), false, &[Source]),
            way(None, false, &[Day]),
            way(None, false, &[Hour]),
            way(None, true, &[]),
        ] {
            assert_eq!(reads, Way::Actions);
        }
    }
}
