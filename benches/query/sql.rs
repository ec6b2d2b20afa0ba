//! The same questions in SQL: one statement each, as an expert would write it who knows what the tables hold, and who wants the
//! same back: sessions with their tracks, or groups.

/// The newest 50 of some sessions with their tracks. `sessions` gives `id` and `first_at`.
pub fn page(sessions: &str) -> String {
    format!(
        "SELECT s.id, s.user_id, s.started_at, s.ended_at, s.end_reason, s.attributes, s.action_count, s.error_count, \
             s.duration_ms, s.active_ms, s.rage_click_count, s.is_dead_end, s.first_action_at, s.last_action_at, \
             found.first_at, t.number, t.source, t.last_seq, t.accepted_count, t.duplicate_count, t.rejected_count, \
             t.error_count AS track_errors, t.last_action_at AS track_last \
         FROM ({sessions}) AS found JOIN sessions s ON s.id = found.id JOIN tracks t ON t.session_id = s.id \
         ORDER BY s.id DESC, t.number"
    )
}

fn facet(kind: &str, target: &str) -> String {
    let digest = format!("sha256(convert_to('{target}', 'UTF8'))");
    format!("(SELECT id FROM facets WHERE type = '{kind}' AND target_sha256 = {digest})")
}

pub fn by_facet(kind: &str, target: &str) -> String {
    page(&format!(
        "SELECT session_id AS id, first_at FROM session_facets WHERE facet_id = {} ORDER BY session_id DESC LIMIT 50",
        facet(kind, target)
    ))
}

pub fn by_two_facets(one: (&str, &str), other: (&str, &str)) -> String {
    page(&format!(
        "SELECT a.session_id AS id, least(a.first_at, b.first_at) AS first_at \
         FROM session_facets a JOIN session_facets b ON b.session_id = a.session_id AND b.facet_id = {} \
         WHERE a.facet_id = {} ORDER BY a.session_id DESC LIMIT 50",
        facet(other.0, other.1),
        facet(one.0, one.1)
    ))
}

pub fn number_by_facet(kind: &str, target: &str) -> String {
    format!("SELECT count(*) FROM session_facets WHERE facet_id = {}", facet(kind, target))
}

/// The newest 50 sessions of the table itself for which this is so.
pub fn by_session(condition: &str, order: &str) -> String {
    page(&format!("SELECT id, NULL::timestamptz AS first_at FROM sessions WHERE {condition} ORDER BY {order} LIMIT 50"))
}

/// A click on one thing, then an error within ten seconds.
pub fn by_sequence(target: &str) -> String {
    page(&format!(
        "SELECT a.session_id AS id, min(click.timestamp) AS first_at \
         FROM session_facets a \
         JOIN actions click ON click.session_id = a.session_id AND click.type = 'click' AND click.target = '{target}' \
         JOIN actions failure ON failure.session_id = a.session_id AND failure.type = 'error' \
             AND failure.timestamp > click.timestamp AND failure.timestamp <= click.timestamp + interval '10 s' \
         WHERE a.facet_id = {} GROUP BY a.session_id ORDER BY a.session_id DESC LIMIT 50",
        facet("click", target)
    ))
}

/// The sessions of some days: ids carry the time.
pub fn range(from: uuid::Uuid, to: uuid::Uuid) -> String {
    format!("session_id >= '{from}' AND session_id < '{to}'")
}

pub fn most_common(from: &str, to: &str) -> String {
    format!(
        "SELECT f.type, f.target, n, sum(n) OVER (), count(*) OVER () FROM ( \
             SELECT facet_id, sum(action_count) AS n FROM facet_days WHERE day >= '{from}' AND day < '{to}' GROUP BY 1 \
         ) AS counted JOIN facets f ON f.id = facet_id ORDER BY n DESC LIMIT 20"
    )
}

pub fn most_common_of_actions(range: &str) -> String {
    format!("SELECT type, target, count(*) AS n FROM actions WHERE {range} GROUP BY 1, 2 ORDER BY n DESC LIMIT 20")
}

pub const PER_USER: &str = "
SELECT user_id, sum(action_count) AS n, sum(sum(action_count)) OVER (), count(*) OVER ()
FROM sessions GROUP BY 1 ORDER BY n DESC LIMIT 20";

pub const PER_USER_OF_ACTIONS: &str = "
SELECT s.user_id, count(*) AS n FROM actions a JOIN sessions s ON s.id = a.session_id GROUP BY 1 ORDER BY n DESC LIMIT 20";

pub fn errors_by_hour(range: &str) -> String {
    format!(
        "SELECT date_trunc('hour', a.timestamp), count(*), count(DISTINCT a.session_id), count(DISTINCT s.user_id) \
         FROM actions a JOIN sessions s ON s.id = a.session_id WHERE a.type = 'error' AND {} GROUP BY 1 ORDER BY 1",
        range.replace("session_id", "a.session_id")
    )
}

/// The same where no index of errors could help.
pub fn errors_by_hour_of_actions(range: &str) -> String {
    errors_by_hour(range).replace("a.type = 'error'", "a.type || '' = 'error'")
}

pub const DURATIONS: &str = "
SELECT started_at::date, count(*), avg(duration_ms), max(duration_ms),
    percentile_disc(ARRAY[0.5, 0.75, 0.9, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms)
FROM sessions GROUP BY 1 ORDER BY 1";

pub fn transitions(range: &str) -> String {
    format!(
        "SELECT type, target, next_type, next_target, count(*) AS n, \
             percentile_disc(0.5) WITHIN GROUP (ORDER BY gap) FROM ( \
             SELECT type, target, lead(type) OVER w AS next_type, lead(target) OVER w AS next_target, \
                 lead(timestamp) OVER w - timestamp AS gap FROM actions WHERE {range} AND type IN ('click', 'navigation') \
             WINDOW w AS (PARTITION BY session_id ORDER BY timestamp, track, seq) \
         ) AS pairs WHERE next_type IS NOT NULL GROUP BY 1, 2, 3, 4 ORDER BY n DESC LIMIT 20"
    )
}

/// One thing clicked, then another, then an error.
pub fn funnel(range: &str, one: &str, other: &str) -> String {
    format!(
        "WITH one AS (SELECT session_id, min(timestamp) AS at FROM actions \
             WHERE {range} AND type = 'click' AND target = '{one}' \
                 AND session_id IN (SELECT session_id FROM session_facets WHERE {range} AND facet_id = {}) GROUP BY 1), \
         two AS (SELECT a.session_id, min(a.timestamp) AS at FROM actions a \
             JOIN one ON one.session_id = a.session_id AND a.timestamp > one.at \
             WHERE a.type = 'click' AND a.target = '{other}' GROUP BY 1), \
         three AS (SELECT DISTINCT a.session_id FROM actions a JOIN two ON two.session_id = a.session_id \
             AND a.timestamp > two.at WHERE a.type = 'error') \
         SELECT (SELECT count(*) FROM one), (SELECT count(*) FROM two), (SELECT count(*) FROM three), \
             (SELECT count(DISTINCT user_id) FROM sessions JOIN one ON one.session_id = id)",
        facet("click", one)
    )
}
