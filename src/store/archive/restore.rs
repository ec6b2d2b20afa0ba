//! Bringing sessions back from the archive: their actions become rows again.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Set, Value, sea_query::LockType,
};

use super::{Store, seal::make_stale};
use crate::{
    archive::{ArchivedAction, SegmentFile, Wanted},
    error::{Error, Result},
    model::{Pin, SessionId},
    store::{
        entity::session,
        failure::{Attempts, Failure},
        index::Table,
    },
};

/// Rows of a statement. SQLite takes 32,766 parameters.
const ROWS_A_STATEMENT: usize = 500;

const COLUMNS: &[(&str, &str)] = &[
    ("session_id", "uuid"),
    ("timestamp", "timestamptz"),
    ("track", "smallint"),
    ("seq", "bigint"),
    ("type", "text"),
    ("target", "text"),
    ("data", "text"),
];

const POSTGRES_ROWS: Table = Table {
    columns: COLUMNS,
    head: "INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) \
           SELECT session_id, timestamp, track, seq, type, target, CAST(nullif(data, '') AS json) FROM ",
    tail: "",
};

const SQLITE_ROWS: Table = Table {
    columns: COLUMNS,
    head: "INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) \
           SELECT session_id, timestamp, track, seq, type, target, nullif(data, '') FROM ",
    tail: "",
};

/// How often a segment is looked for where its file is not there: it may have been written anew.
const LOOKS: u32 = 3;

/// Rows that are read at once.
const ROWS_AT_ONCE: usize = 4_096;

impl Store {
    /// Brings a session back, and pins it, for otherwise it would be archived again. Gives how many actions came back: none
    /// where it is not archived.
    pub async fn session_restore(&self, id: SessionId, pin: &Pin) -> Result<i64> {
        self.session_restore_with(id, Some(pin)).await
    }

    /// Brings a session back for now: it is archived again in its time, with what it has then.
    pub(in crate::store) async fn session_bring_back(&self, id: SessionId) -> Result<i64> {
        self.session_restore_with(id, None).await
    }

    async fn session_restore_with(&self, id: SessionId, pin: Option<&Pin>) -> Result<i64> {
        self.partition_ensure_for(id).await;
        let (mut attempts, mut looks) = (Attempts::default(), 1);
        loop {
            match self.session_restore_once(id, pin).await {
                Ok(actions) => return Ok(actions),
                Err(Failure::Refused(Error::SegmentMissing)) if looks < LOOKS => looks += 1,
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn session_restore_once(&self, id: SessionId, pin: Option<&Pin>) -> Result<i64, Failure> {
        let uuid = id.as_uuid();
        let tx = self.begin_long().await?;
        if self.is_postgres() {
            // However long the storage takes.
            tx.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        }
        let row = session::Entity::find_by_id(uuid).lock(LockType::Update).one(&tx).await?;
        let row = row.ok_or(Error::SessionNotFound)?;
        let Some(segment) = row.segment_id else { return Ok(0) };
        let file: SegmentFile = self.segment_file(segment).await?.ok_or(Error::SegmentMissing)?;
        let wanted =
            Wanted { sessions: Some(&[uuid]), with_data: true, rows_at_once: ROWS_AT_ONCE, ..Wanted::default() };
        let mut reader = self.archive()?.read(&file, wanted).await?;
        let mut restored = 0;
        while let Some(actions) = reader.next().await? {
            for actions in actions.chunks(ROWS_A_STATEMENT) {
                let table = if self.is_postgres() { &POSTGRES_ROWS } else { &SQLITE_ROWS };
                table.run(&tx, actions.iter().map(to_row).collect()).await?;
                restored += i64::try_from(actions.len()).unwrap_or(0);
            }
        }
        if restored != row.archived_count {
            tracing::error!(path = file.path, "a segment does not have all actions of a session");
            return Err(Error::SegmentDamaged.into());
        }
        let mut changed = session::ActiveModel {
            id: Set(uuid),
            segment_id: Set(None),
            archived_count: Set(0),
            index_version: Set(row.index_version + 1),
            ..Default::default()
        };
        if let Some(pin) = pin.filter(|pin| row.pinned_until.is_none_or(|until| until < pin.until)) {
            changed.pinned_until = Set(Some(pin.until));
            changed.pin_reason = Set(Some(pin.reason.clone()));
        }
        changed.update(&tx).await?;
        make_stale(&tx, segment).await?;
        tx.commit().await?;
        Ok(restored)
    }

    /// The archived sessions that started at one time or later, and before another.
    pub async fn sessions_archived(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<Vec<SessionId>> {
        let ids = session::Entity::find()
            .select_only()
            .column(session::Column::Id)
            .filter(session::Column::Id.gte(SessionId::least_at(from)))
            .filter(session::Column::Id.lt(SessionId::least_at(to)))
            .filter(session::Column::SegmentId.is_not_null())
            .order_by_asc(session::Column::Id)
            .into_tuple()
            .all(&self.read)
            .await?;
        Ok(ids.into_iter().map(SessionId::from_uuid).collect())
    }
}

fn to_row(ArchivedAction { session, stored }: &ArchivedAction) -> Vec<Value> {
    let action = &stored.action;
    vec![
        (*session).into(),
        action.timestamp.into(),
        stored.track.into(),
        stored.seq.into(),
        (&*action.kind).into(),
        (&*action.target).into(),
        (&*action.data).into(),
    ]
}
