//! Takes an erased session out of the index.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbErr, FromQueryResult, Statement};

use super::write::write_days;
use crate::model::SessionId;

#[derive(FromQueryResult)]
struct Row {
    facet_id: i32,
    count: i32,
}

/// Removes the rows of a session, whose actions are still there and whose own row is locked or gone: no index leads from a
/// session to its facets, but its actions do; or, where they are archived, the facets of its day.
pub(in crate::store) async fn in_txn(
    tx: &DatabaseTransaction,
    session: SessionId,
    is_archived: bool,
) -> Result<(), DbErr> {
    let (backend, collation) = match tx.get_database_backend() {
        sea_orm::DatabaseBackend::Postgres => (sea_orm::DatabaseBackend::Postgres, "COLLATE \"C\""),
        other => (other, ""),
    };
    let day = session.started_at().date_naive();
    let of_day =
        if is_archived { format!("UNION SELECT facet_id FROM facet_days WHERE day = '{day}'") } else { String::new() };
    let rows = format!(
        "session_id = $1 AND facet_id IN (SELECT facets.id FROM actions JOIN facets \
         ON facets.type = actions.type {collation} AND facets.target = actions.target {collation} \
         WHERE actions.session_id = $1 {of_day})"
    );
    let session = session.as_uuid();
    let select = format!("SELECT facet_id, count FROM session_facets WHERE {rows}");
    let found =
        Row::find_by_statement(Statement::from_sql_and_values(backend, select, [session.into()])).all(tx).await?;
    if found.is_empty() {
        return Ok(());
    }
    let delete = format!("DELETE FROM session_facets WHERE {rows}");
    tx.execute_raw(Statement::from_sql_and_values(backend, delete, [session.into()])).await?;
    let changes: BTreeMap<_, _> = found.iter().map(|row| ((day, row.facet_id), (-i64::from(row.count), -1))).collect();
    write_days(tx, changes).await
}
