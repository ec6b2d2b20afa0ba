//! Reports of retention.

use super::reply::timestamp;
use crate::{
    model::{ExpiredDay, ExpiryReason, RetentionPolicy, RetentionReport, StorageStats, StoredDay, TableBytes, Window},
    proto,
};

/// What goes, or went.
#[must_use]
pub fn retention_report_to_proto(report: &RetentionReport) -> proto::RetentionReport {
    proto::RetentionReport {
        session_count: report.days.iter().map(|day| day.sessions).sum(),
        action_count: report.days.iter().map(|day| day.actions).sum(),
        days: report.days.iter().map(expired_day_to_proto).collect(),
        user_count: report.users,
        bytes_before: report.bytes_before,
        bytes_after: report.bytes_after,
    }
}

fn expired_day_to_proto(day: &ExpiredDay) -> proto::ExpiredDay {
    let reason = match day.reason {
        ExpiryReason::Age => proto::ExpiryReason::Age,
        ExpiryReason::Bytes => proto::ExpiryReason::Bytes,
        ExpiryReason::Own => proto::ExpiryReason::Own,
        ExpiryReason::Archive => proto::ExpiryReason::Archive,
    };
    proto::ExpiredDay {
        day: day.window.first.to_string(),
        last_day: day.window.last.to_string(),
        reason: reason.into(),
        session_count: day.sessions,
        action_count: day.actions,
        bytes: day.bytes,
        kept_session_count: day.kept,
    }
}

/// What is stored, and what a policy forgets of it next.
#[must_use]
pub fn storage_stats_to_proto(stats: &StorageStats, policy: &RetentionPolicy) -> proto::GetStorageStatsResponse {
    let next = stats.days.iter().find(|day| day.sessions > day.kept).map(|day| day.window);
    let next = policy.forgets_after().zip(next);
    let next = next.and_then(|(keep_for, window)| Some((window.end().checked_add_signed(keep_for)?, window)));
    let table = |table: &TableBytes| proto::TableSize {
        name: table.name.clone(),
        table_bytes: table.table_bytes,
        index_bytes: table.index_bytes,
    };
    proto::GetStorageStatsResponse {
        session_count: stats.days.iter().map(|day| day.sessions).sum(),
        kept_session_count: stats.days.iter().map(|day| day.kept).sum(),
        action_count: stats.days.iter().map(|day| day.actions).sum(),
        user_count: stats.users,
        bytes: stats.tables.iter().map(|table| table.table_bytes + table.index_bytes).sum(),
        free_bytes: stats.free_bytes,
        tables: stats.tables.iter().map(table).collect(),
        days: stats.days.iter().map(stored_day_to_proto).collect(),
        oldest_start_time: stats.oldest.map(timestamp),
        newest_start_time: stats.newest.map(timestamp),
        next_expiry_time: next.map(|(time, _)| timestamp(time)),
        next_expiry: next.map(|(_, window)| stored_window_to_proto(stats, window)),
        archive: Some(proto::ArchiveSize {
            segment_count: stats.archive.segments,
            bytes: stats.archive.bytes,
            session_count: stats.archive.sessions,
            action_count: stats.archive.actions,
        }),
    }
}

/// All of the days that go together, by the first of them that there is.
fn stored_window_to_proto(stats: &StorageStats, window: Window) -> proto::StoredDay {
    let days = stats.days.iter().filter(|day| day.window == window).map(stored_day_to_proto);
    let together = days.reduce(|first, next| proto::StoredDay {
        session_count: first.session_count + next.session_count,
        kept_session_count: first.kept_session_count + next.kept_session_count,
        action_count: first.action_count + next.action_count,
        bytes: first.bytes + next.bytes,
        ..first
    });
    together.unwrap_or_default()
}

fn stored_day_to_proto(day: &StoredDay) -> proto::StoredDay {
    proto::StoredDay {
        day: day.day.to_string(),
        session_count: day.sessions,
        kept_session_count: day.kept,
        action_count: day.actions,
        bytes: day.bytes,
    }
}
