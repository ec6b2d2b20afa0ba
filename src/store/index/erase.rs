//! Takes an erased session out of the index.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbErr, FromQueryResult, Statement};

use super::write::write_days;
use crate::model::SessionId;

#[derive(FromQueryResult)]
struct Row {
    facet_id: i64,
    count: i32,
}

/// Removes the rows of a session whose own row is locked or gone, and its share of the roll-up. Uses
/// `session_facets_session`: what it costs depends on the session, not on its day.
pub(in crate::store) async fn in_txn(tx: &DatabaseTransaction, session: SessionId) -> Result<(), DbErr> {
    let delete = "DELETE FROM session_facets WHERE session_id = $1 RETURNING facet_id, count";
    let delete = Statement::from_sql_and_values(tx.get_database_backend(), delete, [session.as_uuid().into()]);
    let removed = Row::find_by_statement(delete).all(tx).await?;
    let day = session.started_at().date_naive();
    let changes = removed.iter().map(|row| ((day, row.facet_id), (-i64::from(row.count), -1)));
    write_days(tx, changes.collect::<BTreeMap<_, _>>()).await
}
