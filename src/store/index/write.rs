//! Writes what was read into the index, as the difference to what was there.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::{DateTime, NaiveDate, Utc};
use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseTransaction, DbErr, FromQueryResult, Statement, Value};
use uuid::Uuid;

use super::{FacetIds, Reading};
use crate::{
    error::Error,
    model::{FacetCount, SessionId, duration_ms},
    store::failure::Failure,
};

/// Rows of a statement on SQLite, which takes 32,766 parameters.
const ROWS_A_STATEMENT: usize = 200;

/// What is written of a session, if nobody has written of it since it was read. The row's lock keeps an erasure out.
const SESSIONS: Table = Table {
    columns: &[
        ("id", "uuid"),
        ("index_version", "bigint"),
        ("action_count", "bigint"),
        ("error_count", "bigint"),
        ("duration_ms", "bigint"),
        ("active_ms", "bigint"),
        ("rage_click_count", "bigint"),
        ("is_dead_end", "boolean"),
        ("first_action_at", "timestamptz"),
        ("last_action_at", "timestamptz"),
        ("facet_detail", "smallint"),
    ],
    head: "UPDATE sessions SET index_version = sessions.index_version + 1, action_count = given.action_count, \
           error_count = given.error_count, duration_ms = given.duration_ms, active_ms = given.active_ms, \
           rage_click_count = given.rage_click_count, is_dead_end = given.is_dead_end, facet_detail = given.facet_detail, \
           first_action_at = CASE WHEN given.action_count > 0 THEN given.first_action_at END, \
           last_action_at = CASE WHEN given.action_count > 0 THEN given.last_action_at END FROM ",
    tail: " WHERE sessions.id = given.id AND sessions.index_version = given.index_version RETURNING sessions.id",
};

const FACETS_THERE: Table = Table {
    columns: &[("id", "bigint")],
    head: "SELECT count(*) AS count FROM ",
    tail: " JOIN facets ON facets.id = given.id",
};

/// Uses `session_facets_session`.
const FACETS_BEFORE: Table = Table {
    columns: &[("session_id", "uuid")],
    head: "SELECT rows.facet_id, rows.session_id, rows.count, rows.first_at FROM ",
    tail: " JOIN session_facets AS rows ON rows.session_id = given.session_id",
};

/// Facets that a session had and has not any more: it has too many by now, or somebody has deleted actions by hand.
const FACETS_GONE: Table = Table {
    columns: &[("facet_id", "bigint"), ("session_id", "uuid")],
    head: "DELETE FROM session_facets WHERE (facet_id, session_id) IN (SELECT given.facet_id, given.session_id FROM ",
    tail: ")",
};

const SESSION_FACETS: Table = Table {
    columns: &[("facet_id", "bigint"), ("session_id", "uuid"), ("count", "integer"), ("first_at", "timestamptz")],
    head: "INSERT INTO session_facets (facet_id, session_id, count, first_at) \
           SELECT given.facet_id, given.session_id, given.count, given.first_at FROM ",
    tail: " WHERE true ON CONFLICT (facet_id, session_id) DO UPDATE SET count = excluded.count, first_at = excluded.first_at",
};

const FACET_DAYS: Table = Table {
    columns: &[("day", "date"), ("facet_id", "bigint"), ("action_count", "bigint"), ("session_count", "bigint")],
    head: "INSERT INTO facet_days (day, facet_id, action_count, session_count) \
           SELECT given.day, given.facet_id, given.action_count, given.session_count FROM ",
    tail: " WHERE true ON CONFLICT (day, facet_id) DO UPDATE SET \
           action_count = facet_days.action_count + excluded.action_count, \
           session_count = facet_days.session_count + excluded.session_count",
};

/// An upsert that only ever updates: it takes the locks one after the other in the order of the rows given, as the writers of
/// actions do. The rows are there: their sessions are locked.
const TRACKS: Table = Table {
    columns: &[
        ("session_id", "uuid"),
        ("number", "smallint"),
        ("source", "text"),
        ("last_seq", "bigint"),
        ("lost_count", "bigint"),
        ("cut", "bigint"),
    ],
    head: "INSERT INTO tracks (session_id, number, source, last_seq, accepted_count, duplicate_count, rejected_count, \
           error_count, last_received_at, lost_count, cut) \
           SELECT given.session_id, given.number, given.source, given.last_seq, 0, 0, 0, 0, '1970-01-01T00:00:00+00:00', \
           given.lost_count, given.cut FROM ",
    tail: " WHERE true ON CONFLICT (session_id, source) DO UPDATE SET dirty = false, lost_count = excluded.lost_count \
           WHERE tracks.last_seq = excluded.last_seq AND tracks.cut = excluded.cut",
};

/// A statement over rows that are given.
pub(in crate::store) struct Table {
    pub(in crate::store) columns: &'static [(&'static str, &'static str)],
    pub(in crate::store) head: &'static str,
    pub(in crate::store) tail: &'static str,
}

/// Writes readings into the index.
pub(super) async fn in_txn(tx: &DatabaseTransaction, readings: &[Reading], ids: &FacetIds) -> Result<(), Failure> {
    let ours = write_sessions(tx, readings).await?;
    let ours: Vec<_> = readings.iter().filter(|reading| ours.contains(&reading.row.id)).collect();
    let facets = facets_of(&ours, ids)?;
    if !are_there(tx, facets.keys().map(|(facet, _)| *facet).collect()).await? {
        return Err(Failure::Outdated);
    }
    let known = ours.iter().filter(|reading| reading.row.index_version > 0).map(|reading| reading.row.id);
    let mut before = facets_before(tx, known).await?;
    let mut days: BTreeMap<(NaiveDate, i64), (i64, i64)> = BTreeMap::new();
    let mut changed = Vec::new();
    for ((facet, session), (count, first_at)) in facets {
        let old = before.remove(&(facet, session));
        if old == Some((count, first_at)) {
            continue;
        }
        changed.push(vec![facet.into(), session.into(), count.into(), first_at.into()]);
        let totals = days.entry((day_of(session), facet)).or_default();
        totals.0 += i64::from(count) - old.map_or(0, |(count, _)| i64::from(count));
        totals.1 += i64::from(old.is_none());
    }
    let mut gone = Vec::new();
    for ((facet, session), (count, _)) in before {
        gone.push(vec![facet.into(), session.into()]);
        let totals = days.entry((day_of(session), facet)).or_default();
        totals.0 -= i64::from(count);
        totals.1 -= 1;
    }
    FACETS_GONE.run(tx, gone).await?;
    SESSION_FACETS.run(tx, changed).await?;
    write_days(tx, days).await?;
    clean_tracks(tx, &ours).await
}

fn day_of(session: Uuid) -> NaiveDate {
    SessionId::from_uuid(session).started_at().date_naive()
}

/// Adds to the roll-up: to the actions and to the sessions of each facet of a day.
pub(super) async fn write_days(
    tx: &DatabaseTransaction,
    changes: BTreeMap<(NaiveDate, i64), (i64, i64)>,
) -> Result<(), DbErr> {
    let changes = changes.into_iter().filter(|(_, (actions, sessions))| (*actions, *sessions) != (0, 0));
    let rows = changes
        .map(|((day, facet), (actions, sessions))| vec![day.into(), facet.into(), actions.into(), sessions.into()]);
    FACET_DAYS.run(tx, rows.collect()).await
}

#[derive(FromQueryResult)]
struct Written {
    id: Uuid,
}

async fn write_sessions(tx: &DatabaseTransaction, readings: &[Reading]) -> Result<HashSet<Uuid>, DbErr> {
    let mut rows: Vec<_> = readings
        .iter()
        .map(|Reading { row, summary, facets, .. }| {
            vec![
                row.id.into(),
                row.index_version.into(),
                summary.action_count.into(),
                summary.error_count.into(),
                duration_ms(SessionId::from_uuid(row.id), summary.last_action_at).into(),
                summary.active_ms.into(),
                summary.rage_click_count.into(),
                summary.is_dead_end.into(),
                // Arrays have no room for nothing.
                summary.first_action_at.unwrap_or(row.started_at).into(),
                summary.last_action_at.unwrap_or(row.started_at).into(),
                facets.detail().number().into(),
            ]
        })
        .collect();
    rows.sort_by_key(|row| match row.first() {
        Some(Value::Uuid(id)) => *id,
        _ => None,
    });
    let rows: Vec<Written> = SESSIONS.rows(tx, rows).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Whether these facets are still there: one that no session had for a time may have been swept away.
async fn are_there(tx: &DatabaseTransaction, facets: BTreeSet<i64>) -> Result<bool, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        count: i64,
    }
    let wanted = facets.len();
    let rows = facets.into_iter().map(|facet| vec![facet.into()]).collect();
    let counts: Vec<Row> = FACETS_THERE.rows(tx, rows).await?;
    Ok(usize::try_from(counts.iter().map(|row| row.count).sum::<i64>()).is_ok_and(|count| count == wanted))
}

type FacetRows = BTreeMap<(i64, Uuid), (i32, DateTime<Utc>)>;

fn facets_of(readings: &[&Reading], ids: &FacetIds) -> Result<FacetRows, Error> {
    let mut rows = FacetRows::new();
    for reading in readings {
        for (kind, target, FacetCount { count, first_at }) in reading.facets.iter() {
            let facet = ids.get(kind, target).ok_or(Error::Internal)?;
            rows.insert((facet, reading.row.id), (i32::try_from(count).unwrap_or(i32::MAX), first_at));
        }
    }
    Ok(rows)
}

/// What the index has of these sessions.
async fn facets_before(tx: &DatabaseTransaction, sessions: impl Iterator<Item = Uuid>) -> Result<FacetRows, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        facet_id: i64,
        session_id: Uuid,
        count: i32,
        first_at: DateTime<Utc>,
    }
    let rows: Vec<Row> = FACETS_BEFORE.rows(tx, sessions.map(|session| vec![session.into()]).collect()).await?;
    Ok(rows.into_iter().map(|row| ((row.facet_id, row.session_id), (row.count, row.first_at))).collect())
}

async fn clean_tracks(tx: &DatabaseTransaction, readings: &[&Reading]) -> Result<(), Failure> {
    let tracks = readings.iter().flat_map(|reading| reading.tracks.iter().map(move |track| (reading, track)));
    let mut tracks: Vec<_> = tracks.collect();
    tracks.sort_by(|(one, one_track), (other, other_track)| {
        (one.row.id, &one_track.source).cmp(&(other.row.id, &other_track.source))
    });
    let rows = tracks.into_iter().map(|(reading, track)| {
        vec![
            reading.row.id.into(),
            track.number.into(),
            track.source.clone().into(),
            track.last_seq.into(),
            reading.lost_count(track).into(),
            track.cut.into(),
        ]
    });
    Ok(TRACKS.run(tx, rows.collect()).await?)
}

impl Table {
    pub(in crate::store) async fn run(
        &self,
        connection: &impl ConnectionTrait,
        rows: Vec<Vec<Value>>,
    ) -> Result<(), DbErr> {
        for statement in self.statements(connection.get_database_backend(), rows) {
            connection.execute_raw(statement).await?;
        }
        Ok(())
    }

    pub(in crate::store) async fn rows<T: FromQueryResult>(
        &self,
        connection: &impl ConnectionTrait,
        rows: Vec<Vec<Value>>,
    ) -> Result<Vec<T>, DbErr> {
        let mut found = Vec::new();
        for statement in self.statements(connection.get_database_backend(), rows) {
            found.extend(T::find_by_statement(statement).all(connection).await?);
        }
        Ok(found)
    }

    /// On PostgreSQL one statement, with an array for each column; on SQLite some rows a statement.
    fn statements(&self, backend: DatabaseBackend, rows: Vec<Vec<Value>>) -> Vec<Statement> {
        if rows.is_empty() {
            return Vec::new();
        }
        let names: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
        if backend == DatabaseBackend::Postgres {
            let arrays = self.columns.iter().zip(1..).map(|((_, kind), number)| format!("${number}::{kind}[]"));
            let arrays: Vec<_> = arrays.collect();
            let given = format!("unnest({}) AS given ({})", arrays.join(", "), names.join(", "));
            return vec![Statement::from_sql_and_values(
                backend,
                format!("{}{given}{}", self.head, self.tail),
                columns_of(rows),
            )];
        }
        let row = format!("({})", vec!["?"; names.len()].join(", "));
        let columns: Vec<_> = names.iter().zip(1..).map(|(name, number)| format!("column{number} AS {name}")).collect();
        let statements = rows.chunks(ROWS_A_STATEMENT).map(|rows| {
            let values = vec![row.as_str(); rows.len()].join(", ");
            let given = format!("(SELECT {} FROM (VALUES {values})) AS given", columns.join(", "));
            let sql = format!("{}{given}{}", self.head, self.tail);
            Statement::from_sql_and_values(backend, sql, rows.iter().flatten().cloned())
        });
        statements.collect()
    }
}

/// Rows as an array for each column.
fn columns_of(rows: Vec<Vec<Value>>) -> Vec<Value> {
    let width = rows.first().map_or(0, Vec::len);
    let mut columns: Vec<Vec<Value>> = (0..width).map(|_| Vec::with_capacity(rows.len())).collect();
    for row in rows {
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    let array = |column: Vec<Value>| {
        let kind = column.first().map(Value::array_type);
        kind.map_or(Value::Int(None), |kind| Value::Array(kind, Some(Box::new(column))))
    };
    columns.into_iter().map(array).collect()
}
