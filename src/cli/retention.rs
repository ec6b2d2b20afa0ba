//! `reel retention`: forgets by hand what is not kept, or says what would go.

use clap::Args;

use super::{Failure, open_store};
use crate::{
    config::{DatabaseArgs, RetentionArgs},
    error::Result,
    model::{ExpiryReason, RetentionReport},
    store::Store,
};

/// What to forget.
#[derive(Args, Debug)]
pub(super) struct RetentionCommand {
    /// Which database.
    #[command(flatten)]
    database: DatabaseArgs,
    /// How long sessions are kept.
    #[command(flatten)]
    retention: RetentionArgs,
    /// Say what would go, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// The clock and this policy are right, whatever goes: services that have stopped to forget go on. Give it the
    /// arguments of the service that has stopped
    #[arg(long, conflicts_with = "dry_run")]
    confirm: bool,
}

/// Runs the subcommand.
pub(super) async fn retention(args: RetentionCommand) -> Result<(), Failure> {
    let store = open_store(&args.database, args.retention.open_archive()?).await?;
    store.prepare().await?;
    let outcome = apply(&store, &args).await;
    store.close().await;
    print(&outcome?, args.dry_run);
    Ok(())
}

async fn apply(store: &Store, args: &RetentionCommand) -> Result<RetentionReport> {
    let (policy, now) = (args.retention.policy(), store.now());
    if args.dry_run {
        return store.retention_preview(&policy, now).await;
    }
    if args.confirm {
        return store.retention_confirm(&policy, now).await;
    }
    store.retention_check_clock(&policy, now).await?;
    store.retention_apply(&policy, now).await
}

pub(super) fn print(report: &RetentionReport, is_dry_run: bool) {
    for day in &report.days {
        let reason = match day.reason {
            ExpiryReason::Age => "too old",
            ExpiryReason::Bytes => "too much",
            ExpiryReason::Own => "their own time has come",
            ExpiryReason::Archive => "to the archive",
        };
        let kept = if day.kept > 0 { format!(", {} pinned or later ones stay", day.kept) } else { String::new() };
        println!(
            "{}: {} sessions, {} actions, {} bytes: {reason}{kept}",
            day.window, day.sessions, day.actions, day.bytes
        );
    }
    let sessions: i64 = report.days.iter().map(|day| day.sessions).sum();
    let actions: i64 = report.days.iter().map(|day| day.actions).sum();
    let verb = if is_dry_run { "would go" } else { "went" };
    let users = if report.users > 0 { format!(", {} users without sessions", report.users) } else { String::new() };
    println!(
        "{sessions} sessions, {actions} actions{users} {verb}; the database takes {} bytes, {} before",
        report.bytes_after, report.bytes_before
    );
}
