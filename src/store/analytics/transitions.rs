//! What follows what.

use std::{cmp::Reverse, collections::HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    Condition, ExprTrait as _,
    sea_query::{Expr, Order, Query},
};
use uuid::Uuid;

use super::{is_not_archived, sessions_where, too_much};
use crate::{
    archive::ArchivedAction,
    error::Result,
    model::{StoredAction, Transition, TransitionCounting, Transitions},
    store::{
        Store,
        entity::{action, session},
        search::{Depth, SESSIONS_A_STATEMENT, id_range},
    },
};

/// Transitions that are looked at: the time of each is kept, for the median.
const MAX_TRANSITIONS: usize = 10_000_000;

/// Kinds of transitions that are kept at most.
const MAX_KINDS: usize = 200_000;

/// Names of facets, each kept once.
#[derive(Default)]
struct Names {
    numbers: HashMap<String, HashMap<String, u32>>,
    facets: Vec<(String, String)>,
}

impl Names {
    fn number(&mut self, kind: String, target: String) -> u32 {
        if let Some(number) = self.numbers.get(&kind).and_then(|targets| targets.get(&target)) {
            return *number;
        }
        let number = u32::try_from(self.facets.len()).unwrap_or(u32::MAX);
        self.facets.push((kind.clone(), target.clone()));
        self.numbers.entry(kind).or_default().insert(target, number);
        number
    }
}

/// Looks at actions in their order.
struct Following<'a> {
    counting: &'a TransitionCounting,
    names: Names,
    gaps: HashMap<(u32, u32), Vec<TimeDelta>>,
    count: usize,
    /// The last one: its session, its time and its facet.
    before: Option<(Uuid, DateTime<Utc>, u32)>,
}

impl Following<'_> {
    fn push(&mut self, session: Uuid, timestamp: DateTime<Utc>, kind: String, target: String) -> Result<()> {
        let facet = self.names.number(kind, target);
        let from_target = self.counting.from_target.as_ref();
        if let Some((_, at, from)) = self.before.filter(|(of, ..)| *of == session)
            && from_target.is_none_or(|wanted| *wanted == self.names.facets[from as usize].1)
        {
            self.gaps.entry((from, facet)).or_default().push(timestamp - at);
            self.count += 1;
        }
        self.before = Some((session, timestamp, facet));
        if self.count > MAX_TRANSITIONS {
            return Err(too_much("filter", MAX_TRANSITIONS, "transitions"));
        }
        if self.gaps.len() > MAX_KINDS {
            return Err(too_much("filter", MAX_KINDS, "kinds of transitions"));
        }
        Ok(())
    }
}

impl Store {
    /// Counts what follows what.
    ///
    /// Query `actions in order`. Uses the primary key of `actions`, of the sessions that are asked for only.
    pub async fn transitions(&self, counting: &TransitionCounting, now: DateTime<Utc>) -> Result<Transitions> {
        asked!(self, async |question| {
            let matched = question.matched(&counting.filter, Depth::Tracks, now).await?;
            let mut following =
                Following { counting, names: Names::default(), gaps: HashMap::new(), count: 0, before: None };
            let conditions = matched.all(&counting.filter, now, question);
            let archived = question.archived(&conditions).await?;
            for sessions in archived.chunks(SESSIONS_A_STATEMENT) {
                let ids: Vec<_> = sessions.iter().map(|session| session.id).collect();
                let mut actions = question.actions_in_order(&ids, Condition::all(), false).await?;
                while let Some(ArchivedAction { session, stored: StoredAction { action, .. } }) = actions.next().await?
                {
                    if counting.types.is_empty() || counting.types.iter().any(|kind| *kind == *action.kind) {
                        following.push(session, action.timestamp, action.kind.into(), action.target.into())?;
                    }
                }
            }
            for condition in conditions {
                let mut sessions = sessions_where(condition);
                sessions.column((session::Entity, session::Column::Id)).and_where(is_not_archived());
                let mut query = Query::select();
                let column = |column| (action::Entity, column);
                let session_id = Expr::col(column(action::Column::SessionId));
                query
                    .columns([
                        column(action::Column::SessionId),
                        column(action::Column::Timestamp),
                        column(action::Column::Kind),
                        column(action::Column::Target),
                    ])
                    .from(action::Entity)
                    .cond_where(id_range(session_id.clone(), &counting.filter))
                    .and_where(session_id.in_subquery(sessions));
                if !counting.types.is_empty() {
                    let types = counting.types.iter().map(String::as_str);
                    query.and_where(Expr::col(column(action::Column::Kind)).is_in(types));
                }
                for order in
                    [action::Column::SessionId, action::Column::Timestamp, action::Column::Track, action::Column::Seq]
                {
                    query.order_by(column(order), Order::Asc);
                }
                let mut rows =
                    question.stream::<(Uuid, DateTime<Utc>, String, String)>("actions in order", &query).await?;
                while let Some((session, timestamp, kind, target)) = rows.try_next().await? {
                    following.push(session, timestamp, kind, target)?;
                }
            }
            let Following { gaps, names, .. } = following;
            Ok(most_frequent(gaps, &names.facets, counting.limit))
        })
    }
}

fn most_frequent(gaps: HashMap<(u32, u32), Vec<TimeDelta>>, facets: &[(String, String)], limit: usize) -> Transitions {
    let mut kinds: Vec<_> = gaps.into_iter().collect();
    let name = |number: u32| &facets[number as usize];
    kinds.sort_by_cached_key(|((from, to), gaps)| (Reverse(gaps.len()), name(*from).clone(), name(*to).clone()));
    let others = kinds.split_off(limit.min(kinds.len()));
    let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    let transition = |((from, to), mut gaps): ((u32, u32), Vec<TimeDelta>)| {
        // By nearest rank: the least that half of them do not exceed.
        let middle = (gaps.len() - 1) / 2;
        let (_, median, _) = gaps.select_nth_unstable(middle);
        let median = *median;
        Transition { from: name(from).clone(), to: name(to).clone(), count: count(gaps.len()), median }
    };
    Transitions {
        transitions: kinds.into_iter().map(transition).collect(),
        other_transition_count: count(others.len()),
        other_count: others.iter().map(|(_, gaps)| count(gaps.len())).sum(),
    }
}
