//! `reel retention`: forgets by hand what is not kept, or says what would go.

use clap::Args;

use super::{Failure, open_store};
use crate::{
    config::{DatabaseArgs, RetentionArgs},
    model::{ExpiryReason, RetentionReport},
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
}

/// Runs the subcommand.
pub(super) async fn retention(args: RetentionCommand) -> Result<(), Failure> {
    let store = open_store(&args.database, args.retention.open_archive()?).await?;
    store.prepare().await?;
    let (policy, now) = (args.retention.policy(), store.now());
    let report = if args.dry_run {
        store.retention_preview(&policy, now).await
    } else {
        store.retention_apply(&policy, now).await
    };
    store.close().await;
    print(&report?, args.dry_run);
    Ok(())
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
