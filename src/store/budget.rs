//! How many connections to PostgreSQL this process makes: as many as it was asked to, or fewer where the server has not so many for
//! it. A pool that is promised more than can be had waits for a connection that is not there while others of its own are idle.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sea_orm::sqlx::{
    self, AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool, Postgres, pool::PoolConnection,
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use super::{
    Store,
    connect::{FIND_OUT_WITHIN, Shares, postgres_options},
};
use crate::config::DatabaseUrl;

/// How many connections the server has left for us: it, the role and the database may each have a limit. What is kept for
/// superusers is not for us.
const LEFT: &str = "least( \
         current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint \
             - coalesce(current_setting('reserved_connections', true)::bigint, 0) \
             - (SELECT sum(numbackends) FROM pg_stat_database), \
         (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()) \
             - (SELECT numbackends FROM pg_stat_database WHERE datname = current_database()), \
         (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user) \
             - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user))::bigint";

/// How many connections the server has left, before there are pools. None if it cannot be asked now.
pub(super) async fn slots_left_at_start(url: &DatabaseUrl) -> Option<u32> {
    let asking = async {
        let mut connection = PgConnection::connect_with(&postgres_options(url).ok()?).await.ok()?;
        let left = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {LEFT}")));
        let left: i64 = left.fetch_one(&mut connection).await.ok()?;
        drop(connection.close().await);
        // This one is left again.
        Some(u32::try_from(left.max(-1) + 1).unwrap_or(u32::MAX))
    };
    timeout(FIND_OUT_WITHIN, asking).await.ok().flatten()
}

/// The server's processes that work for us. A pool does not say how many connections it has: those that it tries to make
/// count, too.
#[derive(Clone, Debug, Default)]
pub(super) struct Backends(Arc<std::sync::Mutex<BTreeSet<i32>>>);

impl Backends {
    /// Notes that of a new connection.
    pub(super) async fn note(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Ok(())
    }

    /// Counts them, and what the server has left.
    pub(super) async fn count(&self, connection: &mut PgConnection) -> Result<Slots, sqlx::Error> {
        let known: Vec<i32> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let sql = format!("SELECT ARRAY(SELECT pid FROM pg_stat_activity WHERE pid = ANY($1)), {LEFT}");
        let row = sqlx::query_as(AssertSqlSafe(sql)).bind(&known).fetch_one(connection).await?;
        let (alive, left): (Vec<i32>, i64) = row;
        let mut backends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that were made meanwhile were not asked about.
        known.iter().filter(|pid| !alive.contains(pid)).for_each(|pid| {
            backends.remove(pid);
        });
        Ok(Slots { open: u32::try_from(backends.len()).unwrap_or(u32::MAX), left })
    }
}

/// What a server has of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// Ours.
    open: u32,
    /// Those that could be made. Below zero, those that are kept for superusers are in use.
    left: i64,
}

/// After so many looks in a row, one a second, at which the server had fewer connections for us than are wanted, no more are
/// wanted; and after so many at which it had more again, these are.
const LOWER_AFTER: u32 = 3;
const RAISE_AFTER: u32 = 60;

/// How long taking one place from a pool may take at one look.
const RETIRE_WITHIN: Duration = Duration::from_millis(250);

/// What this process may have, and has.
#[derive(Debug)]
pub(super) struct Budget {
    /// How many connections are wanted, in all.
    wanted: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the pools were promised, may have now, and shall have.
    promised: Shares,
    shares: Shares,
    goal: Shares,
    /// How many looks in a row have found that it should be fewer, or could be more.
    fewer: u32,
    more: u32,
    /// Places in the pools for writing and for reading that nobody gets now. Their connections are closed.
    retired: [Vec<PoolConnection<Postgres>>; 2],
    /// Whether the pools are being closed.
    has_ended: bool,
}

impl Budget {
    pub(super) fn new(shares: Shares) -> Self {
        let state = State {
            promised: shares,
            shares,
            goal: shares,
            fewer: 0,
            more: 0,
            retired: [Vec::new(), Vec::new()],
            has_ended: false,
        };
        Self { wanted: AtomicU32::new(shares.total()), state: Mutex::new(state) }
    }

    /// Gives the places back, without which a pool cannot be closed.
    pub(super) async fn end(&self) {
        let mut state = self.state.lock().await;
        state.has_ended = true;
        state.retired.iter_mut().for_each(Vec::clear);
    }
}

impl State {
    /// Takes in how many connections there can be.
    fn note(&mut self, affordable: u32) {
        let goal = Shares::of(affordable.min(self.promised.total()));
        let (now, then) = (self.goal.total(), goal.total());
        self.fewer = if then < now { self.fewer + 1 } else { 0 };
        self.more = if then > now { self.more + 1 } else { 0 };
        if self.fewer < LOWER_AFTER && self.more < RAISE_AFTER {
            return;
        }
        tracing::warn!(
            promised = self.promised.total(),
            before = now,
            now = then,
            "the server has another number of connections for this process than before"
        );
        self.goal = if then == self.promised.total() { self.promised } else { goal };
        (self.fewer, self.more) = (0, 0);
    }
}

impl Store {
    /// How many connections to PostgreSQL this process would make. Fewer than it was opened with where the server has not so many.
    #[must_use]
    pub fn connections_wanted(&self) -> u32 {
        self.budget.wanted.load(Ordering::Acquire)
    }

    /// Takes in how many connections there are. Where the server has none left, those that nobody uses are given back: another pool may
    /// want one now, and goes on trying for longer than the next look takes to come. Where the server has fewer than are wanted
    /// for some looks, no more are wanted than there are.
    pub(super) async fn budget_look(&self, Slots { open, left }: Slots) {
        // One at a time.
        let Ok(mut state) = self.budget.state.try_lock() else { return };
        if state.has_ended {
            return;
        }
        state.note(open.saturating_add(u32::try_from(left.max(0)).unwrap_or(u32::MAX)));
        if left <= 0 {
            // Not the one that looks: it would have to be made again for the next look.
            let closed = self.make_room().await;
            if closed > 0 {
                tracing::warn!(closed, "the server has no connections left: those that were idle are closed");
            }
        }
        self.budget_keep(&mut state).await;
    }

    /// Brings the pools nearer to what they shall have. What is in use now is left to the next look.
    async fn budget_keep(&self, state: &mut State) {
        let State { shares, goal, retired: [write, read], .. } = state;
        if *shares == *goal {
            return;
        }
        retire(self.write.get_postgres_connection_pool(), &mut shares.write, goal.write, write).await;
        retire(self.read.get_postgres_connection_pool(), &mut shares.read, goal.read, read).await;
        permit(self.desk.permits(), &mut shares.questions, goal.questions);
        if let Some(copy) = &self.copy {
            permit(&copy.permits, &mut shares.copy, goal.copy);
        }
        self.budget.wanted.store(shares.total(), Ordering::Release);
    }

    /// The pools of connections to PostgreSQL by which requests are answered.
    pub(super) fn pools(&self) -> Vec<PgPool> {
        let questions = self.desk.connection();
        let connections = [&self.write, &self.read].into_iter().chain(&questions);
        let pools = connections.map(|connection| connection.get_postgres_connection_pool().clone());
        pools.chain(self.copy.iter().map(|copy| copy.pool.clone())).collect()
    }
}

/// Takes places from a pool, as far as that can be done now, or gives them back. A place is taken by a connection that is not
/// given back, and is closed by the server: the driver knows no other way.
async fn retire(pool: &PgPool, places: &mut u32, goal: u32, retired: &mut Vec<PoolConnection<Postgres>>) {
    while *places < goal {
        drop(retired.pop());
        *places += 1;
    }
    while *places > goal {
        let Ok(Ok(mut connection)) = timeout(RETIRE_WITHIN, pool.acquire()).await else { return };
        let ended = connection.execute("SELECT pg_terminate_backend(pg_backend_pid())");
        drop(timeout(RETIRE_WITHIN, ended).await);
        retired.push(connection);
        *places -= 1;
    }
}

/// Takes permits away that nobody has now, or gives them back.
fn permit(permits: &Semaphore, count: &mut u32, goal: u32) {
    let places = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    if *count < goal {
        permits.add_permits(places(goal - *count));
        *count = goal;
    } else {
        let forgotten = permits.forget_permits(places(*count - goal));
        *count -= u32::try_from(forgotten).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_are_wanted_soon_and_more_when_they_have_been_there_for_long() {
        let mut state = Budget::new(Shares::of(20)).state.into_inner();
        let mut look = |affordable, times| {
            (0..times).for_each(|_| state.note(affordable));
            state.goal.total()
        };
        assert_eq!(look(15, 2), 20);
        assert_eq!(look(20, 1), 20, "a moment does not count");
        assert_eq!(look(15, 2), 20);
        assert_eq!(look(13, 1), 13);
        assert_eq!(look(1, 3), Shares::FEWEST);
        assert_eq!(look(100, 59), Shares::FEWEST);
        assert_eq!(look(10, 60), 10);
        assert_eq!(look(100, 60), 20);
        assert_eq!(state.goal, state.promised);
    }
}
