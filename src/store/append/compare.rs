//! Tells actions that have arrived again from others that were given the same seqs.

use std::{collections::HashMap, ops::RangeInclusive};

use futures_util::TryStreamExt as _;
use sea_orm::{ColumnTrait as _, DatabaseConnection, DbErr, EntityTrait as _, QueryFilter as _, Select};

use super::plan::count;
use crate::{
    archive::Wanted,
    error::Error,
    model::{BatchAction, SessionId, StoredAction},
    store::{Store, action::from_row, entity::action, failure::Failure},
};

/// Rows of a segment that are read at once.
const ROWS_AT_ONCE: usize = 4_096;

/// Which of these actions, by seq, are not what is stored.
pub(super) async fn conflicts(
    store: &Store,
    session: SessionId,
    track: i16,
    first_seq: i64,
    actions: &[BatchAction],
) -> Result<Vec<i64>, Failure> {
    let connection = &store.write;
    let last_seq = first_seq - 1 + count(actions.len());
    let of_seqs = action::Entity::find()
        .filter(action::Column::SessionId.eq(session.as_uuid()))
        .filter(action::Column::Track.eq(track))
        .filter(action::Column::Seq.between(first_seq, last_seq));
    // The primary key has the timestamp before the seq. What is the same has the same timestamp, so it is found in the
    // range of what arrived; only where something is missing there, the whole session is looked through.
    let times = || actions.iter().map(|action| action.to_store().timestamp);
    let mut digests = match (times().min(), times().max()) {
        (Some(first), Some(last)) => {
            stored_digests(connection, of_seqs.clone().filter(action::Column::Timestamp.between(first, last))).await?
        }
        _ => HashMap::new(),
    };
    if digests.len() < actions.len() {
        digests.extend(archived_digests(store, session, track, first_seq..=last_seq).await?);
    }
    if digests.len() < actions.len() {
        digests.extend(stored_digests(connection, of_seqs).await?);
    }
    let numbered = actions.iter().zip(first_seq..);
    let differing = numbered.filter(|(action, seq)| digests.get(seq) != Some(&action.digest().to_string()));
    Ok(differing.map(|(_, seq)| seq).collect())
}

/// The digests of stored actions by seq. Keeps no more than that of them: a small batch may repeat the seqs of large
/// actions.
async fn stored_digests(
    connection: &DatabaseConnection,
    actions: Select<action::Entity>,
) -> Result<HashMap<i64, String>, DbErr> {
    let mut rows = actions.stream(connection).await?;
    let mut digests = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let StoredAction { seq, action, .. } = from_row(row);
        digests.insert(seq, action.digest().to_string());
    }
    Ok(digests)
}

/// The same of actions that are archived.
async fn archived_digests(
    store: &Store,
    session: SessionId,
    track: i16,
    seqs: RangeInclusive<i64>,
) -> Result<HashMap<i64, String>, Error> {
    let id = session.as_uuid();
    let mut digests = HashMap::new();
    for file in store.segments_of(&[id]).await?.into_keys() {
        let wanted = Wanted { sessions: Some(&[id]), with_data: true, rows_at_once: ROWS_AT_ONCE, ..Wanted::default() };
        let mut reader = store.archive()?.read(&file, wanted).await?;
        while let Some(actions) = reader.next().await? {
            let of_track = actions.into_iter().map(|action| action.stored).filter(|stored| stored.track == track);
            let of_seqs = of_track.filter(|stored| seqs.contains(&stored.seq));
            digests.extend(of_seqs.map(|stored| (stored.seq, stored.action.digest().to_string())));
        }
    }
    Ok(digests)
}
