//! What it costs to forget a day.
//!
//! In one database the day expires as the service does it; in the other the same is deleted with the best statements that we
//! know: one for each table, by the range of ids that the day has, without the trigger that makes a DELETE of sessions
//! complete. A DELETE gives nothing back before a VACUUM, which is measured too. What no expiry can be quicker than is a bare
//! DROP of the partitions: most of that is the file system's, which takes the files' pages back.
//!
//! Nobody has looked at a day that expires for a fortnight: each is forgotten by a server that has just been started, with
//! nothing of it in memory. Write-ahead log is counted after a checkpoint, as it would be in the night after; the bytes that
//! come back are what the tables take less.

use chrono::{DateTime, TimeDelta, Utc};
use reel::{
    model::{RetentionPolicy, SessionId},
    store::Store,
};
use sea_orm::sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, query_scalar};
use tokio::time::Instant;

use crate::support::{
    Result,
    figure::{Figure, Goal},
    postgres::Postgres,
};

/// What it took, and what came back.
struct Cost {
    seconds: f64,
    log_bytes: f64,
    freed_bytes: f64,
}

/// Forgets the day before this time.
pub async fn measure(
    postgres: &mut Postgres,
    [expired, deleted, dropped]: [&str; 3],
    until: DateTime<Utc>,
    (actions, in_session): (usize, usize),
) -> Result<Vec<Figure>> {
    let day = (until - TimeDelta::days(1), until);
    postgres.start_cold().await?;
    let store = Store::open(&postgres.url(expired).parse()?, 4).await?;
    let policy = RetentionPolicy { keep_for: Some(TimeDelta::days(7)), ..RetentionPolicy::default() };
    // It knows the way then, as a service that applies it every minute does.
    store.retention_confirm(&policy, day.1 + TimeDelta::days(6)).await?;
    let mut connection = PgConnection::connect(&postgres.url(expired)).await?;
    let stored = bytes(&mut connection).await?;
    let expired = cost(&mut connection, async |_| {
        let report = store.retention_keep_up(&policy, day.1 + TimeDelta::days(7)).await?;
        let gone: i64 = report.days.iter().map(|day| day.actions).sum();
        if gone == actions as i64 { Ok(()) } else { Err(format!("{gone} actions went").into()) }
    })
    .await?;
    store.close().await;

    postgres.start_cold().await?;
    let mut connection = PgConnection::connect(&postgres.url(deleted)).await?;
    // What a plan needs is in memory then too.
    connection.execute("SELECT count(*) FROM sessions").await?;
    let range = (SessionId::least_at(day.0), SessionId::least_at(day.1));
    let deleted = cost(&mut connection, async |connection| {
        let statements = [
            "BEGIN; SET LOCAL reel.expiring = 'on'".to_owned(),
            format!("DELETE FROM actions WHERE session_id >= '{}' AND session_id < '{}'", range.0, range.1),
            format!("DELETE FROM session_facets WHERE session_id >= '{}' AND session_id < '{}'", range.0, range.1),
            format!("DELETE FROM facet_days WHERE day = '{}'", day.0.date_naive()),
            format!("DELETE FROM sessions WHERE id >= '{}' AND id < '{}'", range.0, range.1),
            "COMMIT".to_owned(),
        ];
        for statement in statements {
            connection.execute(AssertSqlSafe(statement)).await?;
        }
        Ok(())
    })
    .await?;
    let vacuumed = cost(&mut connection, async |connection| {
        connection.execute("VACUUM").await?;
        Ok(())
    })
    .await?;

    postgres.start_cold().await?;
    let mut connection = PgConnection::connect(&postgres.url(dropped)).await?;
    let dropped = cost(&mut connection, async |connection| {
        let name = day.0.format("%Y%m%d");
        let drop = format!("DROP TABLE actions_{name}, session_facets_{name}");
        connection.execute(AssertSqlSafe(drop)).await?;
        Ok(())
    })
    .await?;

    let an_action = |bytes: f64| bytes / actions as f64;
    let name = |text: &str| format!("{text}, sessions of {in_session}");
    Ok(vec![
        Figure::new(name("time to expire ÷ to DELETE"), expired.seconds, "s")
            .beside(deleted.seconds)
            .goal(Goal::RatioAtMost(0.1)),
        Figure::new(name("… to drop actions and index only, and no more"), dropped.seconds, "s")
            .beside(deleted.seconds),
        Figure::new(name("… to expire ÷ to DELETE and VACUUM"), expired.seconds, "s")
            .beside(deleted.seconds + vacuumed.seconds),
        Figure::new(name("write-ahead log to expire ÷ to DELETE"), an_action(expired.log_bytes), "bytes")
            .beside(an_action(deleted.log_bytes))
            .goal(Goal::RatioAtMost(0.01)),
        Figure::new(name("bytes that come back ÷ stored, by expiry"), an_action(expired.freed_bytes), "bytes")
            .beside(an_action(stored)),
        Figure::new(name("… by DELETE"), an_action(deleted.freed_bytes), "bytes").beside(an_action(stored)),
        Figure::new(name("… by DELETE and VACUUM"), an_action(deleted.freed_bytes + vacuumed.freed_bytes), "bytes")
            .beside(an_action(stored)),
    ])
}

async fn cost(
    connection: &mut PgConnection,
    forget: impl AsyncFnOnce(&mut PgConnection) -> Result<()>,
) -> Result<Cost> {
    connection.execute("CHECKPOINT").await?;
    let (stored, log) = (bytes(connection).await?, log_position(connection).await?);
    let begun = Instant::now();
    forget(connection).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let log_bytes = log_position(connection).await? - log;
    Ok(Cost { seconds, log_bytes, freed_bytes: stored - bytes(connection).await? })
}

async fn log_position(connection: &mut PgConnection) -> Result<f64> {
    Ok(query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8").fetch_one(connection).await?)
}

/// Bytes of all tables.
pub async fn bytes(connection: &mut PgConnection) -> Result<f64> {
    let sql = "SELECT sum(pg_total_relation_size(c.oid))::float8 FROM pg_class c \
               WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace";
    Ok(query_scalar(sql).fetch_one(connection).await?)
}
