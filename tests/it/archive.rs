//! The archive: sessions whose actions are in segments are found, played, counted and erased as before, and nothing is lost on
//! the way there, whatever dies and whatever fails.

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use reel::model::{ArchivePolicy, RetentionPolicy, RetentionReport};

use crate::harness::Reel;

/// Later than all sessions of tests.
pub fn later() -> DateTime<Utc> {
    "2027-01-01T00:00:00Z".parse().unwrap()
}

/// Archives everything that is older than some days.
pub fn archive_after(days: i64) -> RetentionPolicy {
    let archive = ArchivePolicy { after: Some(TimeDelta::days(days)), keep_for: None };
    RetentionPolicy { archive: Some(archive), ..RetentionPolicy::default() }
}

/// Archives whatever can be archived.
pub async fn archive_all(reel: &Reel) -> RetentionReport {
    let preview = reel.store.retention_preview(&archive_after(0), later()).await.unwrap();
    let report = reel.store.retention_apply(&archive_after(0), later()).await.unwrap();
    let gist = |report: &RetentionReport| -> Vec<_> {
        report.days.iter().map(|day| (day.day, day.reason, day.sessions, day.actions)).collect()
    };
    assert_eq!(gist(&preview), gist(&report), "a dry run says what is done");
    report
}

/// The files below a folder, by name.
pub fn files(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path.to_str().unwrap().to_owned());
        }
    }
    files.sort();
    files
}
