//! `reel archive` and `reel restore`: moves actions of sessions to the archive and back, by hand.

use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use clap::Args;

use super::{Failure, open_store, retention};
use crate::{
    archive::{Archive, ArchiveUrl},
    config::DatabaseArgs,
    error::Error,
    model::{ArchivePolicy, Pin, RetentionPolicy, SessionId},
    store::{SegmentCheck, Store},
};

/// Which database, and where its archive is.
#[derive(Args, Debug)]
struct Places {
    /// Which database.
    #[command(flatten)]
    database: DatabaseArgs,
    /// A folder, or s3://BUCKET/PREFIX, with keys, region and endpoint from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    /// AWS_REGION and AWS_ENDPOINT_URL
    #[arg(long, env = "REEL_ARCHIVE", value_name = "URL")]
    archive: ArchiveUrl,
}

/// What to archive.
#[derive(Args, Debug)]
pub(super) struct ArchiveArgs {
    #[command(flatten)]
    places: Places,
    /// Archive the sessions that started before this day (UTC), as 2026-11-25; of partitions of several days, those that end
    /// before it [default: today]
    #[arg(long, value_name = "DAY")]
    before: Option<NaiveDate>,
    /// Say what would go, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Archive nothing: read every segment, and compare it with what was written
    #[arg(long, conflicts_with_all = ["before", "dry_run"])]
    verify: bool,
}

/// What to bring back.
#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    places: Places,
    /// Ids of sessions
    #[arg(required_unless_present = "from", value_name = "SESSION")]
    sessions: Vec<SessionId>,
    /// The sessions that started on this day (UTC) or later, as 2026-11-25
    #[arg(long, value_name = "DAY", requires = "to")]
    from: Option<NaiveDate>,
    /// The sessions that started on this day or earlier
    #[arg(long, value_name = "DAY", requires = "from")]
    to: Option<NaiveDate>,
    /// How long they are pinned, for otherwise they would be archived again
    #[arg(long, default_value = "7days", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pin_for: Duration,
}

impl Places {
    async fn open(&self) -> Result<Store, Failure> {
        let archive = Archive::open(&self.archive)?;
        let store = open_store(&self.database, Some(archive)).await?;
        store.prepare().await?;
        Ok(store)
    }
}

/// Runs `reel archive`.
pub(super) async fn archive(args: ArchiveArgs) -> Result<(), Failure> {
    let store = args.places.open().await?;
    let outcome = if args.verify { verify(&store).await } else { archive_before(&store, &args).await };
    store.close().await;
    outcome
}

async fn archive_before(store: &Store, args: &ArchiveArgs) -> Result<(), Failure> {
    let now = store.now();
    let before = args.before.unwrap_or(now.date_naive());
    let after = (now - midnight(before)).max(TimeDelta::zero());
    let archive = Some(ArchivePolicy { after: Some(after), keep_for: None });
    let policy = RetentionPolicy { keep_for: None, max_bytes: None, archive };
    let report = if args.dry_run {
        store.retention_preview(&policy, now).await?
    } else {
        store.retention_apply(&policy, now).await?
    };
    retention::print(&report, args.dry_run);
    Ok(())
}

async fn verify(store: &Store) -> Result<(), Failure> {
    let (mut segments, mut actions, mut wrong) = (0, 0, 0);
    let tell = |check: SegmentCheck| {
        segments += 1;
        actions += check.actions;
        if let Err(error) = check.outcome {
            wrong += 1;
            println!("{}: {error}", check.path);
        }
    };
    store.segments_check(tell).await?;
    println!("{segments} segments, {actions} actions, {wrong} segments are not what was written");
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} segments are not what was written").into()) }
}

/// Runs `reel restore`.
pub(super) async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let store = args.places.open().await?;
    let outcome = restore_all(&store, &args).await;
    store.close().await;
    outcome
}

async fn restore_all(store: &Store, args: &RestoreArgs) -> Result<(), Failure> {
    let mut sessions = args.sessions.clone();
    if let Some((from, to)) = args.from.zip(args.to) {
        let end = to.checked_add_days(Days::new(1)).unwrap_or(NaiveDate::MAX);
        sessions.extend(store.sessions_archived(midnight(from), midnight(end)).await?);
    }
    let pin_for = TimeDelta::from_std(args.pin_for).unwrap_or(TimeDelta::MAX);
    let until = store.now().checked_add_signed(pin_for).ok_or("--pin-for is too long")?;
    let pin = Pin { until, reason: "restored from the archive".to_owned() };
    let (mut restored, mut actions) = (0, 0);
    for session in sessions {
        match store.session_restore(session, &pin).await {
            Ok(0) => println!("{session} is not archived"),
            Ok(count) => {
                restored += 1;
                actions += count;
            }
            Err(Error::SessionNotFound) => return Err(format!("{session}: there is no such session").into()),
            Err(error) => return Err(error.into()),
        }
    }
    println!("{restored} sessions, {actions} actions came back, pinned until {until}");
    Ok(())
}

fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}
