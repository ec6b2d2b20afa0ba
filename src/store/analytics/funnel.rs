//! How far sessions get along a sequence of steps.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use chrono::{DateTime, Utc};
use sea_orm::Condition;
use uuid::Uuid;

use crate::{
    error::Result,
    model::{ActionMatch, ActionView, FunnelCounting, FunnelStep, SequenceStep, SessionFilter, SessionId},
    store::{
        Store,
        question::Question,
        search::{SESSIONS_A_STATEMENT, has_facets, lacks_facets, wanted_actions},
    },
};

/// An action that comes next, if there is one.
type Exit = Option<(String, String)>;

/// What becomes of a step while sessions are counted.
#[derive(Default)]
struct Counting {
    sessions: i64,
    users: HashSet<String>,
    exits: HashMap<Exit, i64>,
}

impl Store {
    /// Counts how many sessions reach each step. Reads the actions of no session that does not have the facets of the first two
    /// steps, unless exits are asked for.
    pub async fn funnel(&self, counting: &FunnelCounting, now: DateTime<Utc>) -> Result<Vec<FunnelStep>> {
        asked!(self, async |question| question.funnel(counting, now).await)
    }
}

impl Question {
    async fn funnel(&self, counting: &FunnelCounting, now: DateTime<Utc>) -> Result<Vec<FunnelStep>> {
        let mut filter = counting.filter.clone();
        filter.all_of.push(counting.steps[0].action.clone());
        let sessions = self.session_ids(&filter, now, None).await?;
        let mut steps: Vec<Counting> = counting.steps.iter().map(|_| Counting::default()).collect();
        let to_read = self.worth_reading(counting, &filter, &sessions, now).await?;
        let (read, unread): (Vec<_>, Vec<_>) =
            sessions.into_iter().partition(|(id, _)| to_read.as_ref().is_none_or(|ids| ids.contains(id)));
        for (_, user) in unread {
            steps[0].sessions += 1;
            steps[0].users.extend(user);
        }
        let wanted = if counting.exit_limit > 0 {
            Condition::all()
        } else {
            wanted_actions(counting.steps.iter().map(|step| &step.action), self.is_postgres())
        };
        let with_data = counting.steps.iter().any(|step| !step.action.data.is_empty());
        for sessions in read.chunks(SESSIONS_A_STATEMENT) {
            let ids: Vec<_> = sessions.iter().map(|(id, _)| *id).collect();
            let walk = |id: &Uuid| (*id, Walk::new(&counting.steps, SessionId::from_uuid(*id).started_at()));
            let mut walks: HashMap<Uuid, Walk<'_>> = ids.iter().map(walk).collect();
            self.read_actions(&ids, wanted.clone(), with_data, |session, action| {
                if let Some(walk) = walks.get_mut(&session) {
                    walk.push(action);
                }
            })
            .await?;
            for (id, user) in sessions {
                let Some(walk) = walks.remove(id) else { continue };
                walk.count(&mut steps, user.as_ref());
            }
        }
        Ok(steps.into_iter().map(|step| step.finish(counting.exit_limit)).collect())
    }

    /// The sessions that may reach the second step. None means all.
    async fn worth_reading(
        &self,
        counting: &FunnelCounting,
        filter: &SessionFilter,
        sessions: &[(Uuid, Option<String>)],
        now: DateTime<Utc>,
    ) -> Result<Option<HashSet<Uuid>>> {
        let second = &counting.steps[1].action;
        if counting.exit_limit > 0 || sessions.is_empty() {
            return Ok(None);
        }
        let facet = ActionMatch { kind: second.kind.clone(), target: second.target.clone(), ..ActionMatch::default() };
        let facets = self.facets_of(&facet).await?;
        let has_second = Condition::any()
            .add(has_facets(facets.as_deref(), 1, filter))
            .add_option(lacks_facets(facet.facet_detail()));
        // The dirty ones come along: what facets they have by now, their actions will tell.
        let worth = self.session_ids(filter, now, Some(has_second)).await?;
        Ok(Some(worth.into_iter().map(|(id, _)| id).collect()))
    }
}

/// How far one session gets.
struct Walk<'a> {
    steps: &'a [SequenceStep],
    started_at: DateTime<Utc>,
    /// For each step, when it was reached last: of all ways to reach it, that leaves the most time for the next.
    reached: Vec<Option<Reached>>,
}

#[derive(Clone)]
struct Reached {
    at: DateTime<Utc>,
    next: Exit,
}

impl<'a> Walk<'a> {
    fn new(steps: &'a [SequenceStep], started_at: DateTime<Utc>) -> Self {
        Self { steps, started_at, reached: vec![None; steps.len()] }
    }

    fn push(&mut self, action: &ActionView<'_>) {
        for reached in self.reached.iter_mut().flatten().filter(|reached| reached.next.is_none()) {
            reached.next = Some((action.kind.to_owned(), action.target.to_owned()));
        }
        // From the last step on: an action is one step only.
        for (index, step) in self.steps.iter().enumerate().rev() {
            let is_possible = match index.checked_sub(1) {
                None => true,
                Some(before) => self.reached[before]
                    .as_ref()
                    .is_some_and(|before| step.within.is_none_or(|within| action.timestamp - before.at <= within)),
            };
            if is_possible && step.action.matches(self.started_at, action) {
                self.reached[index] = Some(Reached { at: action.timestamp, next: None });
            }
        }
    }

    fn count(self, steps: &mut [Counting], user: Option<&String>) {
        let reached = self.reached.iter().take_while(|reached| reached.is_some()).count();
        for step in &mut steps[..reached] {
            step.sessions += 1;
            step.users.extend(user.cloned());
        }
        if let Some(last) = reached.checked_sub(1)
            && reached < steps.len()
        {
            let exit = self.reached.into_iter().nth(last).flatten().and_then(|reached| reached.next);
            *steps[last].exits.entry(exit).or_default() += 1;
        }
    }
}

impl Counting {
    fn finish(self, exit_limit: usize) -> FunnelStep {
        let mut exits: Vec<_> = if exit_limit > 0 { self.exits.into_iter().collect() } else { Vec::new() };
        exits.sort_by_cached_key(|(exit, count)| (Reverse(*count), exit.clone()));
        let others = exits.split_off(exit_limit.min(exits.len()));
        FunnelStep {
            session_count: self.sessions,
            user_count: i64::try_from(self.users.len()).unwrap_or(i64::MAX),
            exits,
            other_exit_count: others.iter().map(|(_, count)| count).sum(),
        }
    }
}
