//! Archiving: actions of old sessions go from rows into segments. Sessions stay, with their tracks, summaries and facets.
//!
//! A segment is written, read back and compared with what was to be written, before any row goes. Then, in one transaction,
//! its sessions are said to be in it and their rows go: at no moment is an action in both places, or in none. The row in
//! `segment_files` is there before its file is, so that no file is ever forgotten, whenever the process dies. Each change of
//! its state is a commit of its own, and is made only from the states before it:
//!
//! | `state` | the file | and then |
//! |---|---|---|
//! | `planned` | is being written, by whoever has the lease | `written`; `removing` where its writer failed, or has lost the lease |
//! | `written` | is whole, was read back, and nobody uses it | `in_use`; `removing` as before |
//! | `in_use` | is `segments.path`: what its sessions are read from | `removing` once another file is, or no session is in it |
//! | `removing` | nobody will use it; questions that began before may | `gone` once it is removed |
//! | `gone` | is not there, unless a writer that was taken for dead completes it now | removed once more, then its row goes |

mod files;
mod restore;
mod seal;
mod tidy;
mod write;

use chrono::{DateTime, NaiveDate, Utc};
use sea_orm::{FromQueryResult, Statement};
use uuid::Uuid;

pub(super) use self::seal::make_stale;
pub use self::tidy::SegmentCheck;
use super::{Store, lease::Lease, partition::partition_bytes_of_table, track::ACTIONS_OF_TRACK};
use crate::{
    archive::{SEGMENT_ACTIONS, Written},
    error::Result,
    model::{ExpiredDay, ExpiryReason, Window},
};

/// What keeps a session's actions from being archived: it goes on, it is pinned, it is not in the index as it is, or all of
/// them are archived already. Conditions on `sessions` joined with `tracks`, with the time as first parameter.
const MAY_BE_ARCHIVED: &str =
    "sessions.ended_at IS NOT NULL AND (sessions.pinned_until IS NULL OR sessions.pinned_until <= $1)";
const IS_TO_BE_ARCHIVED: &str = "sum(tracks.last_seq - coalesce(tracks.lost_count, 0)) = sessions.action_count \
    AND sum(CASE WHEN tracks.dirty THEN 1 ELSE 0 END) = 0";

/// A session to be archived, or archived.
#[derive(Clone, Debug, FromQueryResult)]
struct ToArchive {
    id: Uuid,
    user_id: Option<String>,
    segment_id: Option<i64>,
    archived_count: i64,
    actions: i64,
    /// What was read of its actions is what they are as long as the session is not indexed anew.
    index_version: i64,
}

/// A segment that was written and verified.
struct Sealing {
    segment: i64,
    written: Written,
    sessions: Vec<ToArchive>,
}

#[derive(FromQueryResult)]
struct DayRow {
    day: String,
    sessions: i64,
    actions: i64,
}

impl Store {
    /// What could be archived of the sessions of each window that ends before this day, the oldest first. The bytes are those
    /// of the partitions of their actions; unknown, and 0, on SQLite.
    pub(super) async fn windows_to_archive(&self, until: NaiveDate, now: DateTime<Utc>) -> Result<Vec<ExpiredDay>> {
        let day = self.day_of_session();
        let sql = format!(
            "SELECT day, count(*) AS sessions, CAST(sum(actions) AS bigint) AS actions FROM ( \
                 SELECT {day} AS day, sum({ACTIONS_OF_TRACK}) - sessions.archived_count AS actions \
                 FROM sessions JOIN tracks ON tracks.session_id = sessions.id \
                 WHERE sessions.id < $2 AND sessions.action_count > sessions.archived_count AND {MAY_BE_ARCHIVED} \
                 GROUP BY sessions.id HAVING {IS_TO_BE_ARCHIVED}) AS sized GROUP BY day ORDER BY day"
        );
        let values = [now.into(), Window::of_day(until).bounds().0.into()];
        let rows = DayRow::find_by_statement(Statement::from_sql_and_values(self.backend, sql, values));
        let finder = self.window_finder().await?;
        let mut windows: Vec<ExpiredDay> = Vec::new();
        for row in rows.all(&self.read).await? {
            let Ok(day) = row.day.parse() else { continue };
            let window = finder.window_of(day);
            if window.last >= until {
                continue;
            }
            match windows.last_mut().filter(|last| last.window == window) {
                Some(last) => {
                    last.sessions += row.sessions;
                    last.actions += row.actions;
                }
                None => windows.push(ExpiredDay {
                    window,
                    reason: ExpiryReason::Archive,
                    sessions: row.sessions,
                    actions: row.actions,
                    bytes: 0,
                    kept: 0,
                }),
            }
        }
        if self.is_postgres() {
            for window in &mut windows {
                window.bytes = partition_bytes_of_table(&self.read, "actions", window.window).await?;
            }
        }
        Ok(windows)
    }

    /// Archives what can be archived of a window. Broken off, it has archived whole sessions, or none.
    pub(super) async fn window_archive(&self, window: Window, lease: &Lease) -> Result<ExpiredDay> {
        let mut gone = ExpiredDay { window, reason: ExpiryReason::Archive, sessions: 0, actions: 0, bytes: 0, kept: 0 };
        let sessions = self.sessions_to_archive(window, lease.now()).await?;
        let drops = self.may_drop_actions(window, &sessions).await?;
        let mut sealing = Vec::new();
        let portions: Vec<_> = portions(&sessions).collect();
        for portion in portions {
            let Some(written) = self.segment_write(portion, lease).await? else { continue };
            if drops {
                sealing.push(written);
            } else {
                self.segment_seal(written, lease, &mut gone).await?;
            }
        }
        if !sealing.is_empty() {
            self.segments_seal_with_window(window, sealing, lease, &mut gone).await?;
        }
        Ok(gone)
    }

    async fn sessions_to_archive(&self, window: Window, now: DateTime<Utc>) -> Result<Vec<ToArchive>> {
        let (from, to) = window.bounds();
        let sql = format!(
            "SELECT sessions.id, sessions.user_id, sessions.segment_id, sessions.archived_count, \
                 sessions.index_version, CAST(sum({ACTIONS_OF_TRACK}) AS bigint) AS actions \
             FROM sessions JOIN tracks ON tracks.session_id = sessions.id \
             WHERE sessions.id >= $2 AND sessions.id < $3 AND sessions.action_count > sessions.archived_count \
                 AND {MAY_BE_ARCHIVED} \
             GROUP BY sessions.id HAVING {IS_TO_BE_ARCHIVED} ORDER BY sessions.id"
        );
        let values = [now.into(), from.into(), to.into()];
        let rows = ToArchive::find_by_statement(Statement::from_sql_and_values(self.backend, sql, values));
        Ok(rows.all(&self.read).await?)
    }
}

/// Cuts sessions into what one segment takes.
fn portions(sessions: &[ToArchive]) -> impl Iterator<Item = &[ToArchive]> {
    let mut actions = 0;
    sessions.chunk_by(move |session, _| {
        actions += session.actions.cast_unsigned();
        let goes_on = actions < SEGMENT_ACTIONS;
        if !goes_on {
            actions = 0;
        }
        goes_on
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_ends_with_the_session_that_fills_it() {
        let session = |actions| ToArchive {
            id: Uuid::nil(),
            user_id: None,
            segment_id: None,
            archived_count: 0,
            actions,
            index_version: 0,
        };
        let lengths = |actions: &[i64]| {
            let sessions: Vec<_> = actions.iter().copied().map(session).collect();
            portions(&sessions).map(<[_]>::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&[5, 5, 5]), [3]);
        assert_eq!(lengths(&[1_000_000, 5, 5]), [1, 2]);
        assert_eq!(lengths(&[100_000, 100_000, 100_000, 299_999, 1, 7]), [3, 2, 1]);
    }
}
