//! The write: one batch of one track, in one transaction. What is stored already is compared and not written again; what
//! would leave a gap is refused.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbErr, EntityTrait as _,
    IntoActiveModel as _, PaginatorTrait as _, QueryFilter as _, QuerySelect as _, Select, Set, Statement, Value,
    sea_query::{Expr, LockType, Query},
};

use super::{
    Store,
    action::from_row,
    entity::{action, session, track},
    failure::{Attempts, Failure},
    session::absent,
};
use crate::{
    error::{Error, Result},
    model::{
        Action, Batch, BatchAction, ContentDigest, ERROR_TYPE, REJECTED_TYPE, Rejection, RejectionReason, SessionId,
        TrackReceipt,
    },
};

/// SQLite takes 32,766 parameters a statement, an action has 7. Few enough for the statement cache to be of use.
const SQLITE_ROWS_A_STATEMENT: usize = 100;

impl Store {
    /// Stores what is new of a batch. When this returns a receipt, everything it speaks of is committed.
    pub async fn batch_append(&self, batch: &Batch, now: DateTime<Utc>, max_tracks: usize) -> Result<TrackReceipt> {
        let mut attempts = Attempts::default();
        loop {
            match self.batch_append_once(batch, now, max_tracks).await {
                Ok(receipt) => return Ok(receipt),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn batch_append_once(
        &self,
        batch: &Batch,
        now: DateTime<Utc>,
        max_tracks: usize,
    ) -> Result<TrackReceipt, Failure> {
        let tx = self.begin().await?;
        let track = lock_track(&tx, batch, now, max_tracks).await?;
        let first_seq = batch.first_seq.unwrap_or(track.last_seq + 1);
        if first_seq > track.last_seq + 1 {
            return Err(Error::SequenceGap {
                session: batch.session,
                source_name: batch.source.clone(),
                expected_seq: track.last_seq + 1,
                received_seq: first_seq,
            }
            .into());
        }
        let stored = usize::try_from(track.last_seq + 1 - first_seq).unwrap_or(usize::MAX).min(batch.actions.len());
        let (known, new) = batch.actions.split_at(stored);

        let mut receipt = TrackReceipt { source: batch.source.clone(), ..Default::default() };
        if !known.is_empty() {
            compare(&tx, batch.session, track.number, first_seq, known, &mut receipt).await?;
        }
        let first_new = first_seq + i64::try_from(stored).unwrap_or(i64::MAX);
        for (action, seq) in new.iter().zip(first_new..) {
            match action {
                BatchAction::Valid(_) => receipt.accepted_count += 1,
                BatchAction::Rejected(rejected) => receipt.reject(Rejection {
                    seq,
                    reason: rejected.reason,
                    description: rejected.description.clone(),
                }),
            }
        }
        self.insert(&tx, batch.session, track.number, first_new, new).await?;
        receipt.committed_seq = first_new - 1 + i64::try_from(new.len()).unwrap_or(0);
        receipt.committed_seq = receipt.committed_seq.max(track.last_seq);
        if !batch.actions.is_empty() {
            advance(track, &receipt, new, now).update(&tx).await?;
        }
        tx.commit().await?;
        Ok(receipt)
    }

    async fn insert(
        &self,
        tx: &DatabaseTransaction,
        session: SessionId,
        track: i16,
        first_seq: i64,
        actions: &[BatchAction],
    ) -> Result<(), Failure> {
        if actions.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = actions.iter().map(BatchAction::to_store).zip(first_seq..).collect();
        if self.is_postgres() {
            tx.execute_raw(insert_on_postgres(session, track, &rows)).await?;
            return Ok(());
        }
        for rows in rows.chunks(SQLITE_ROWS_A_STATEMENT) {
            let mut insert = Query::insert();
            insert.into_table(action::Entity).columns([
                action::Column::SessionId,
                action::Column::Timestamp,
                action::Column::Track,
                action::Column::Seq,
                action::Column::Kind,
                action::Column::Target,
                action::Column::Data,
            ]);
            for (action, seq) in rows {
                insert.values_panic([
                    Expr::value(session.as_uuid()),
                    Expr::value(action.timestamp),
                    Expr::value(track),
                    Expr::value(*seq),
                    Expr::value(action.kind.as_str()),
                    Expr::value(action.target.as_str()),
                    Expr::value((!action.data.is_empty()).then_some(action.data.as_str())),
                ]);
            }
            tx.execute(&insert).await?;
        }
        Ok(())
    }
}

impl BatchAction {
    /// What is stored of it.
    fn to_store(&self) -> &Action {
        match self {
            Self::Valid(action) => action,
            Self::Rejected(rejected) => &rejected.placeholder,
        }
    }

    fn digest(&self) -> ContentDigest {
        match self {
            Self::Valid(action) => action.digest(),
            Self::Rejected(rejected) => rejected.digest,
        }
    }
}

/// Takes the lock of the track's row, or makes the row. Whoever holds it is the only one to write to the track, and no one
/// can erase the session meanwhile.
async fn lock_track(
    tx: &DatabaseTransaction,
    batch: &Batch,
    now: DateTime<Utc>,
    max_tracks: usize,
) -> Result<track::Model, Failure> {
    let session = batch.session.as_uuid();
    let known = track::Entity::find()
        .filter(track::Column::SessionId.eq(session))
        .filter(track::Column::Source.eq(&batch.source))
        .lock_exclusive()
        .one(tx)
        .await?;
    if let Some(known) = known {
        return Ok(known);
    }
    // One new track at a time: each wants the next number.
    if session::Entity::find_by_id(session).lock(LockType::NoKeyUpdate).one(tx).await?.is_none() {
        return Err(absent(tx, batch.session).await?.into());
    }
    let count = track::Entity::find().filter(track::Column::SessionId.eq(session)).count(tx).await?;
    if usize::try_from(count).is_ok_and(|count| count >= max_tracks) {
        return Err(Error::TooManyTracks { limit: max_tracks }.into());
    }
    let new = track::Model {
        session_id: session,
        number: i16::try_from(count).map_err(|_| Error::TooManyTracks { limit: max_tracks })?,
        source: batch.source.clone(),
        last_seq: 0,
        accepted_count: 0,
        duplicate_count: 0,
        rejected_count: 0,
        error_count: 0,
        last_action_at: None,
        last_received_at: now,
    };
    let expected_first = batch.first_seq.is_none_or(|first_seq| first_seq == 1);
    if expected_first && !batch.actions.is_empty() {
        // Overtaken by another sender of a new track, this violates a key, and the transaction is tried again.
        track::Entity::insert(new.clone().into_active_model()).exec_without_returning(tx).await?;
    }
    Ok(new)
}

/// Compares what arrived again with what is stored.
async fn compare(
    tx: &DatabaseTransaction,
    session: SessionId,
    track: i16,
    first_seq: i64,
    actions: &[BatchAction],
    receipt: &mut TrackReceipt,
) -> Result<(), Failure> {
    let last_seq = first_seq - 1 + i64::try_from(actions.len()).unwrap_or(0);
    let of_seqs = action::Entity::find()
        .filter(action::Column::SessionId.eq(session.as_uuid()))
        .filter(action::Column::Track.eq(track))
        .filter(action::Column::Seq.between(first_seq, last_seq));
    // The primary key has the timestamp before the seq. What is the same has the same timestamp, so it is found in the
    // range of what arrived; only where something is missing there, the whole session is looked through.
    let times = || actions.iter().map(|action| action.to_store().timestamp);
    let mut digests = match (times().min(), times().max()) {
        (Some(first), Some(last)) => {
            stored_digests(tx, of_seqs.clone().filter(action::Column::Timestamp.between(first, last))).await?
        }
        _ => HashMap::new(),
    };
    if digests.len() < actions.len() {
        digests = stored_digests(tx, of_seqs).await?;
    }
    for (action, seq) in actions.iter().zip(first_seq..) {
        if digests.get(&seq) == Some(&action.digest().to_string()) {
            receipt.duplicate_count += 1;
        } else {
            receipt.reject(Rejection {
                seq,
                reason: RejectionReason::Conflict,
                description: "another action is stored under this seq".to_owned(),
            });
        }
    }
    Ok(())
}

/// The digests of stored actions by seq. Keeps no more than that of them: a small batch may repeat the seqs of large
/// actions.
async fn stored_digests(
    tx: &DatabaseTransaction,
    actions: Select<action::Entity>,
) -> Result<HashMap<i64, String>, DbErr> {
    let mut rows = actions.stream(tx).await?;
    let mut digests = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        digests.insert(row.seq, stored_digest(row));
    }
    Ok(digests)
}

/// The digest of what was sent when this row was stored.
fn stored_digest(row: action::Model) -> String {
    let action = from_row(row).action;
    if action.kind == REJECTED_TYPE {
        #[derive(serde::Deserialize)]
        struct Placeholder {
            sha256: String,
        }
        if let Ok(placeholder) = serde_json::from_str::<Placeholder>(&action.data) {
            return placeholder.sha256;
        }
    }
    action.digest().to_string()
}

/// One text for any number of rows, so that it is prepared once.
fn insert_on_postgres(session: SessionId, track: i16, rows: &[(&Action, i64)]) -> Statement {
    let sql = "INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) \
               SELECT $1, t.timestamp, $2, t.seq, t.type, t.target, NULLIF(t.data, '')::json \
               FROM unnest($3::timestamptz[], $4::bigint[], $5::text[], $6::text[], $7::text[]) \
               AS t (timestamp, seq, type, target, data)";
    let values: [Value; 7] = [
        session.as_uuid().into(),
        track.into(),
        rows.iter().map(|(action, _)| action.timestamp).collect::<Vec<_>>().into(),
        rows.iter().map(|(_, seq)| *seq).collect::<Vec<_>>().into(),
        rows.iter().map(|(action, _)| action.kind.clone()).collect::<Vec<_>>().into(),
        rows.iter().map(|(action, _)| action.target.clone()).collect::<Vec<_>>().into(),
        rows.iter().map(|(action, _)| action.data.clone()).collect::<Vec<_>>().into(),
    ];
    Statement::from_sql_and_values(sea_orm::DatabaseBackend::Postgres, sql, values)
}

/// The track after the batch.
fn advance(track: track::Model, receipt: &TrackReceipt, new: &[BatchAction], now: DateTime<Utc>) -> track::ActiveModel {
    let errors = new.iter().filter(|action| action.to_store().kind == ERROR_TYPE).count();
    let last_action_at = new.iter().map(|action| action.to_store().timestamp).max().max(track.last_action_at);
    track::ActiveModel {
        last_seq: Set(receipt.committed_seq),
        accepted_count: Set(track.accepted_count + receipt.accepted_count),
        duplicate_count: Set(track.duplicate_count + receipt.duplicate_count),
        rejected_count: Set(track.rejected_count + receipt.rejected_count),
        error_count: Set(track.error_count + i64::try_from(errors).unwrap_or(0)),
        last_action_at: Set(last_action_at),
        last_received_at: Set(now),
        ..track.into_active_model()
    }
}
