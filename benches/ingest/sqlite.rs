//! Ingest into an embedded database beside a bare loop of prepared inserts through the same driver.
//!
//! Both write into a new file each time, made by `reel migrate`, with the settings that the service uses: WAL and
//! `synchronous=FULL`. The loop commits after every 2,000 rows. It is tried with a row and with 100 rows a statement; the faster
//! of the two is the limit.

use std::time::{Duration, Instant};

use reel::model::SessionId;
use sea_orm::sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, SqliteConnection, query, query_scalar,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tempfile::TempDir;

use crate::{
    ingest::{disk::plan, lab::workload},
    support::{
        Result,
        accounting::{cpu, peak_memory_mib},
        arguments::Arguments,
        copy::ROWS_A_TRANSACTION,
        figure::{Figure, Goal, print},
        progress,
        reel::{Reel, migrate},
        sender::{Rpc, Upload, start_sessions},
        statistics::{Rounds, mean},
        workload::{Workload, from_proto},
    },
};

/// Rows of a statement, in the two loops.
const ROWS_A_STATEMENT: [usize; 2] = [1, 100];

/// What was measured of the service.
struct Sent {
    rate: f64,
    server_us: f64,
    client_us: f64,
    peak_mib: f64,
}

pub async fn measure(arguments: &Arguments) -> Result<()> {
    let mut figures = Vec::new();
    for (senders, batch) in [(1, 200), (8, 200), (64, 20)] {
        progress(format_args!("SQLite, {senders} senders, batches of {batch}"));
        let least = senders * batch * 2;
        let tried = send(&workload(arguments.seed, senders, batch, least.max(4_000))).await?;
        let actions = ((tried.rate * arguments.measurement().as_secs_f64()) as usize).max(least);
        let mut rates = Rounds::default();
        let mut all = Vec::new();
        for round in 0..arguments.rounds() {
            let workload = workload(arguments.seed + round as u64, senders, batch, actions);
            let by_one = insert(&workload, ROWS_A_STATEMENT[round % 2]).await?;
            let sent = send(&workload).await?;
            let by_other = insert(&workload, ROWS_A_STATEMENT[(round + 1) % 2]).await?;
            rates.add(sent.rate, by_one.max(by_other));
            all.push(sent);
        }
        let name = format!("bidi, {senders} senders, batches of {batch}");
        let of_all = |what: fn(&Sent) -> f64| mean(&all.iter().map(what).collect::<Vec<_>>());
        figures.extend([
            Figure::of_rounds(&name, &rates, "actions/s").goal(Goal::RatioAtLeast(0.8)),
            Figure::new(format!("{name}: client CPU"), of_all(|sent| sent.client_us), "µs"),
            Figure::new(format!("{name}: server CPU"), of_all(|sent| sent.server_us), "µs"),
            Figure::new(format!("{name}: peak memory"), of_all(|sent| sent.peak_mib), "MiB"),
        ]);
    }
    print("ingest, SQLite ÷ bare loop of inserts", &figures, arguments.json);
    disk(arguments).await
}

/// Bytes of the file after a session's life, with everything in it.
async fn disk(arguments: &Arguments) -> Result<()> {
    let workload = Workload::generate(&plan(arguments));
    let folder = TempDir::new()?;
    let file = folder.path().join("reel.db");
    record(&workload, &file).await?;
    let count = workload.actions() as f64;
    let bytes = std::fs::metadata(&file)?.len() as f64;
    let json_lines = workload.json_lines_bytes() as f64;
    let figure = Figure::new("the file", bytes / count, "bytes").beside(json_lines / count);
    print("disk an action, SQLite ÷ JSON Lines", &[figure.goal(Goal::RatioAtMost(1.1))], arguments.json);
    Ok(())
}

async fn send(workload: &Workload) -> Result<Sent> {
    let folder = TempDir::new()?;
    record(workload, &folder.path().join("reel.db")).await
}

/// By the service, into a new file.
async fn record(workload: &Workload, file: &std::path::Path) -> Result<Sent> {
    let reel = Reel::serve(&format!("sqlite://{}", file.display())).await?;
    let channels = reel.connect(8).await?;
    let ids = workload.mint();
    start_sessions(&channels, &ids).await?;
    let upload = Upload::new(Rpc::StreamActions, workload, &ids);
    let before = cpu(reel.pid()?, None)?;
    let took = upload.send(&channels).await?;
    let used = cpu(reel.pid()?, None)? - before;
    let peak_mib = peak_memory_mib(reel.pid()?)?;
    reel.stop().await?;
    check_stored(file, workload).await?;
    let count = workload.actions() as f64;
    Ok(Sent {
        rate: count / took.as_secs_f64(),
        server_us: used.server * 1e6 / count,
        client_us: used.client * 1e6 / count,
        peak_mib,
    })
}

/// By the loop, into a new file. Gives the actions a second.
async fn insert(workload: &Workload, rows_a_statement: usize) -> Result<f64> {
    let folder = TempDir::new()?;
    let file = folder.path().join("bare.db");
    migrate(&format!("sqlite://{}", file.display())).await?;
    let mut connection = open(&file).await?;
    let ids = workload.mint();
    let rows: Vec<_> = workload
        .in_order_of_arrival()
        .flat_map(|batch| batch.actions.iter().zip(batch.first_seq..).map(|(action, seq)| (batch.session, action, seq)))
        .collect();
    let sql = |rows: usize| {
        let values = vec!["(?, ?, ?, ?, ?, ?, ?)"; rows].join(", ");
        format!("INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) VALUES {values}")
    };
    let full = sql(rows_a_statement);
    let begun = Instant::now();
    for transaction in rows.chunks(ROWS_A_TRANSACTION) {
        connection.execute("BEGIN IMMEDIATE").await?;
        for rows in transaction.chunks(rows_a_statement) {
            let sql = if rows.len() == rows_a_statement { full.clone() } else { sql(rows.len()) };
            let mut insert = query(AssertSqlSafe(sql));
            for (session, action, seq) in rows {
                let id: SessionId = ids[*session];
                insert = insert
                    .bind(id.as_uuid())
                    .bind(action.timestamp.map(from_proto))
                    .bind(0_i16)
                    .bind(*seq)
                    .bind(action.r#type.as_str())
                    .bind(action.target.as_str())
                    .bind(action.data.as_str());
            }
            insert.execute(&mut connection).await?;
        }
        connection.execute("COMMIT").await?;
    }
    let took: Duration = begun.elapsed();
    connection.close().await?;
    check_stored(&file, workload).await?;
    Ok(rows.len() as f64 / took.as_secs_f64())
}

async fn open(file: &std::path::Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    Ok(SqliteConnection::connect_with(&options).await?)
}

async fn check_stored(file: &std::path::Path, workload: &Workload) -> Result<()> {
    let mut connection = open(file).await?;
    let stored: i64 = query_scalar("SELECT count(*) FROM actions").fetch_one(&mut connection).await?;
    connection.close().await?;
    if usize::try_from(stored).is_ok_and(|stored| stored == workload.actions()) {
        return Ok(());
    }
    Err(format!("{stored} actions are stored, not {}", workload.actions()).into())
}
