//! What a database holds, to be compared with another that should hold the same.

use super::{Backend, TestDatabase};

/// Everything that sets a recording apart, as lines of text: all columns but the times of arrival, the counts of what came
/// twice, and the numbers of tracks, which go by whose first batch was there first.
async fn contents(database: &TestDatabase) -> Vec<String> {
    // SQLite keeps ids as bytes.
    let text = |column: &str| match database.backend() {
        Backend::Sqlite => format!("hex({column})"),
        Backend::Postgres => format!("CAST({column} AS text)"),
    };
    let (id, session_id) = (text("id"), text("tracks.session_id"));
    let mut lines = Vec::new();
    for sql in [
        "SELECT id || '|' || coalesce(email, '') || '|' || CAST(attributes AS text) FROM users ORDER BY id".to_owned(),
        format!(
            "SELECT {id} || '|' || coalesce(user_id, '') || '|' || CAST(started_at AS text) || '|' || \
             coalesce(CAST(ended_at AS text), 'live') || '|' || coalesce(end_reason, '') || '|' || \
             CAST(attributes AS text) FROM sessions ORDER BY id"
        ),
        format!(
            "SELECT {session_id} || '|' || source || '|' || last_seq || '|' || error_count \
             FROM tracks ORDER BY session_id, source"
        ),
        format!(
            "SELECT {session_id} || '|' || CAST(timestamp AS text) || '|' || source || '|' || seq || '|' || type || '|' || \
             target || '|' || coalesce(CAST(data AS text), 'none') FROM actions JOIN tracks \
             ON tracks.session_id = actions.session_id AND tracks.number = actions.track \
             ORDER BY tracks.session_id, source, seq, timestamp"
        ),
    ] {
        lines.extend(database.texts(&sql).await);
    }
    lines
}

/// Checks that the database holds what one has to which the same was sent without trouble.
pub async fn check_same_as_undisturbed(database: &TestDatabase, undisturbed: &TestDatabase) {
    let (disturbed, undisturbed) = (contents(database).await, contents(undisturbed).await);
    let differing = disturbed.iter().zip(&undisturbed).find(|(one, other)| one != other);
    assert_eq!(differing, None);
    assert_eq!(disturbed.len(), undisturbed.len());
}

/// Checks what every database has to hold, whatever was sent to it: the tracks know their rows, every row has its track,
/// and no seq is there twice.
pub async fn check_tracks_agree_with_actions(database: &TestDatabase) {
    let differing = database
        .texts(
            "SELECT source || ' in session ' || CAST(session_id AS text) || ': last_seq ' || last_seq || ', ' || rows || ' rows, ' \
             || seqs || ' seqs up to ' || latest || ', ' || error_count || ' errors counted, ' || errors || ' there' FROM ( \
               SELECT tracks.session_id, source, last_seq, accepted_count, rejected_count, error_count, last_action_at, \
                 count(seq) AS rows, count(DISTINCT seq) AS seqs, coalesce(max(seq), 0) AS latest, \
                 count(CASE WHEN type = 'error' THEN 1 END) AS errors, \
                 count(CASE WHEN type = 'reel.rejected' THEN 1 END) AS rejected, max(timestamp) AS last_at \
               FROM tracks LEFT JOIN actions ON actions.session_id = tracks.session_id AND track = number \
               GROUP BY tracks.session_id, number, source, last_seq, accepted_count, rejected_count, error_count, \
                 last_action_at \
             ) AS summed WHERE last_seq <> rows OR last_seq <> seqs OR last_seq <> latest OR error_count <> errors \
               OR accepted_count <> rows - rejected OR rejected_count < rejected OR last_action_at IS DISTINCT FROM last_at",
        )
        .await;
    assert_eq!(differing, Vec::<String>::new());
    let orphans = "SELECT count(*) FROM actions WHERE NOT EXISTS \
                   (SELECT 1 FROM tracks WHERE tracks.session_id = actions.session_id AND number = track)";
    assert_eq!(database.number(orphans).await, 0, "actions without a track");
}
