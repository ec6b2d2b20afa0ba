//! What follows what.

use std::{cmp::Reverse, collections::HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    ExprTrait as _,
    sea_query::{Expr, Order, Query},
};
use uuid::Uuid;

use super::{sessions_where, too_much};
use crate::{
    error::Result,
    model::{Transition, TransitionCounting, Transitions},
    store::{
        Store,
        entity::{action, session},
        search::{Depth, id_range},
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

impl Store {
    /// Counts what follows what.
    ///
    /// Query `actions in order`. Uses the primary key of `actions`, of the sessions that are asked for only.
    pub async fn transitions(&self, counting: &TransitionCounting, now: DateTime<Utc>) -> Result<Transitions> {
        self.question(async |question| {
            let matched = question.matched(&counting.filter, Depth::Tracks, now).await?;
            let (mut names, mut gaps) = (Names::default(), HashMap::<(u32, u32), Vec<TimeDelta>>::new());
            let mut count = 0;
            for condition in matched.all(&counting.filter, now, question) {
                let mut sessions = sessions_where(condition);
                sessions.column((session::Entity, session::Column::Id));
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
                let mut before: Option<(Uuid, DateTime<Utc>, u32)> = None;
                while let Some((session, timestamp, kind, target)) = rows.try_next().await? {
                    let facet = names.number(kind, target);
                    if let Some((_, at, from)) = before.filter(|(of, ..)| *of == session)
                        && counting.from_target.as_ref().is_none_or(|wanted| *wanted == names.facets[from as usize].1)
                    {
                        gaps.entry((from, facet)).or_default().push(timestamp - at);
                        count += 1;
                    }
                    before = Some((session, timestamp, facet));
                    if count > MAX_TRANSITIONS {
                        return Err(too_much("filter", MAX_TRANSITIONS, "transitions"));
                    }
                    if gaps.len() > MAX_KINDS {
                        return Err(too_much("filter", MAX_KINDS, "kinds of transitions"));
                    }
                }
            }
            Ok(most_frequent(gaps, &names.facets, counting.limit))
        })
        .await
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
