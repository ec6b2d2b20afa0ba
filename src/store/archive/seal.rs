//! Putting a segment in use: its sessions are in it from then on, and their rows go.

use std::collections::{BTreeSet, HashSet};

use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbErr, EntityTrait as _, FromQueryResult,
    QueryFilter as _, QuerySelect as _, Statement, sea_query::LockType,
};
use uuid::Uuid;

use super::{Sealing, Store, ToArchive, files::advance};
use crate::{
    archive::Written,
    error::{Error, Result},
    failpoint,
    model::{ExpiredDay, Track, Window},
    store::{
        entity::{segment_file::FileState, session, track},
        failure::{Attempts, Failure},
        hand_deletes::delete_actions_in_txn,
        index::Table,
        lease::Lease,
        partition::{count_drop, detach, partition_bytes_of_table, partition_name, windows_of_table},
        track::{ACTIONS_OF_TRACK, from_row as track_from_row},
    },
};

/// Rows of others that are moved aside at most when a partition is dropped: everybody waits meanwhile.
const MAX_ASIDE: i64 = 200_000;

/// Says of sessions which segment they are in, unless somebody else has, or they were indexed anew since they were read:
/// placeholders may have been replaced.
const CLAIM: Table = Table {
    columns: &[
        ("id", "uuid"),
        ("segment_id", "bigint"),
        ("actions", "bigint"),
        ("before", "bigint"),
        ("segment_before", "bigint"),
        ("version", "bigint"),
    ],
    head: "UPDATE sessions SET segment_id = given.segment_id, archived_count = given.actions, \
           index_version = index_version + 1 FROM ",
    tail: " WHERE sessions.id = given.id AND sessions.archived_count = given.before \
           AND coalesce(sessions.segment_id, 0) = given.segment_before \
           AND sessions.index_version = given.version RETURNING sessions.id",
};

/// The reverse.
const UNCLAIM: Table = Table {
    columns: &[("id", "uuid"), ("segment_id", "bigint"), ("before", "bigint")],
    head: "UPDATE sessions SET segment_id = nullif(given.segment_id, 0), archived_count = given.before FROM ",
    tail: " WHERE sessions.id = given.id",
};

#[derive(FromQueryResult)]
struct Id {
    id: Uuid,
}

impl Store {
    /// Whether the window's actions have a partition that can be dropped once these sessions are archived.
    pub(super) async fn may_drop_actions(&self, window: Window, sessions: &[ToArchive]) -> Result<bool> {
        #[derive(FromQueryResult)]
        struct Count {
            actions: i64,
        }
        if !self.is_postgres() || !windows_of_table(&self.read, "actions").await?.contains(&window) {
            return Ok(false);
        }
        let (from, to) = window.bounds();
        let sql = format!(
            "SELECT CAST(coalesce(sum({ACTIONS_OF_TRACK}), 0) - \
                 (SELECT coalesce(sum(archived_count), 0) FROM sessions WHERE id >= $1 AND id < $2) AS bigint) AS actions \
             FROM tracks WHERE session_id >= $1 AND session_id < $2"
        );
        let row = Count::find_by_statement(Statement::from_sql_and_values(self.backend, sql, [from.into(), to.into()]));
        let rows = row.one(&self.read).await?.map_or(0, |row| row.actions);
        let archived: i64 = sessions.iter().map(|session| session.actions - session.archived_count).sum();
        Ok(rows - archived <= MAX_ASIDE)
    }

    /// Puts the segments of a window in use, and drops its partition of actions.
    pub(super) async fn segments_seal_with_window(
        &self,
        window: Window,
        sealing: Vec<Sealing>,
        lease: &Lease,
        gone: &mut ExpiredDay,
    ) -> Result<()> {
        let mut attempts = Attempts::default();
        loop {
            match self.segments_seal_with_window_once(window, &sealing, lease).await {
                Ok((sessions, actions, bytes)) => {
                    gone.sessions += sessions;
                    gone.actions += actions;
                    gone.bytes += bytes;
                    failpoint::reach("segments sealed");
                    return Ok(());
                }
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn segments_seal_with_window_once(
        &self,
        window: Window,
        sealing: &[Sealing],
        lease: &Lease,
    ) -> Result<(i64, i64, i64), Failure> {
        self.partitions_are_free().await?;
        let tx = self.begin_long().await?;
        let (from, to) = window.bounds();
        lease.check_in_txn(&tx).await?;
        for Sealing { segment, written, .. } in sealing {
            seal(&tx, *segment, written, 0, lease).await?;
        }
        count_drop(&tx).await?;
        let mut claimed = HashSet::new();
        for Sealing { segment, sessions, .. } in sealing {
            claimed.extend(claim(&tx, *segment, sessions).await?);
        }
        let bytes = partition_bytes_of_table(&tx, "actions", window).await?;
        let partition = partition_name("actions", window);
        detach(&tx, &[("actions", partition.clone())]).await?;
        failpoint::reach("actions detached");
        // Nobody is writing actions now. Whatever was committed after a segment was written is not in it, nor are
        // placeholders that were replaced.
        let segments: Vec<_> = sealing.iter().map(|sealing| sealing.segment.to_string()).collect();
        let segments = segments.join(", ");
        let grown = format!(
            "SELECT sessions.id FROM sessions JOIN tracks ON tracks.session_id = sessions.id \
             WHERE sessions.id >= $1 AND sessions.id < $2 AND sessions.segment_id IN ({segments}) \
             GROUP BY sessions.id HAVING sum({ACTIONS_OF_TRACK}) <> sessions.archived_count \
                 OR sum(CASE WHEN tracks.dirty THEN 1 ELSE 0 END) > 0"
        );
        let grown = Statement::from_sql_and_values(self.backend, grown, [from.into(), to.into()]);
        let grown: HashSet<Uuid> = Id::find_by_statement(grown).all(&tx).await?.into_iter().map(|row| row.id).collect();
        let all: Vec<&ToArchive> = sealing.iter().flat_map(|sealing| &sealing.sessions).collect();
        let unclaimed = all.iter().filter(|session| grown.contains(&session.id));
        let unclaimed = unclaimed.map(|session| session.as_before()).collect();
        UNCLAIM.run(&tx, unclaimed).await?;
        claimed.retain(|id| !grown.contains(id));
        tx.execute_unprepared(&format!(
            "INSERT INTO actions SELECT rows.* FROM {partition} AS rows JOIN sessions ON sessions.id = rows.session_id \
             WHERE sessions.segment_id IS NULL OR sessions.segment_id NOT IN ({segments})"
        ))
        .await?;
        tx.execute_unprepared(&format!("DROP TABLE {partition}")).await?;
        for Sealing { segment, sessions, .. } in sealing {
            let missing = sessions.iter().filter(|session| !claimed.contains(&session.id)).count();
            if missing > 0 {
                make_stale(&tx, *segment).await?;
            }
        }
        let archived: Vec<_> = all.into_iter().filter(|session| claimed.contains(&session.id)).collect();
        leave(&tx, archived.iter().filter_map(|session| session.segment_id).collect()).await?;
        let actions = archived.iter().map(|session| session.actions - session.archived_count).sum();
        let sessions = i64::try_from(archived.len()).unwrap_or(0);
        failpoint::reach("actions dropped");
        tx.commit().await?;
        Ok((sessions, actions, bytes))
    }

    /// Puts a segment in use, and removes the rows of its sessions one session at a time.
    pub(super) async fn segment_seal(&self, sealing: Sealing, lease: &Lease, gone: &mut ExpiredDay) -> Result<()> {
        let Sealing { segment, written, sessions } = sealing;
        let tx = self.begin().await?;
        lease.check_in_txn(&tx).await.map_err(Error::from)?;
        // Until all are in it, it has what is of no use.
        seal(&tx, segment, &written, 1, lease).await.map_err(Error::from)?;
        tx.commit().await?;
        failpoint::reach("segment sealed");
        let mut is_complete = true;
        for session in &sessions {
            let mut attempts = Attempts::default();
            let is_in_it = loop {
                match self.session_archive_once(segment, &written.file.path, session).await {
                    Ok(is_in_it) => break is_in_it,
                    Err(failure) => attempts.again_after(failure).await?,
                }
            };
            failpoint::reach("session archived");
            if is_in_it {
                gone.sessions += 1;
                gone.actions += session.actions - session.archived_count;
            }
            is_complete &= is_in_it;
        }
        if is_complete {
            let sql = "UPDATE segments SET stale = stale - 1 WHERE id = $1";
            self.write.execute_raw(Statement::from_sql_and_values(self.backend, sql, [segment.into()])).await?;
        }
        self.give_back().await
    }

    /// Removes the rows of a session that is in a segment now. Gives whether it is: not where it has changed meanwhile.
    async fn session_archive_once(&self, segment: i64, path: &str, archived: &ToArchive) -> Result<bool, Failure> {
        let tx = self.begin().await?;
        // The tracks' locks keep writers out, as when a session is erased.
        let tracks =
            track::Entity::find().filter(track::Column::SessionId.eq(archived.id)).lock_exclusive().all(&tx).await?;
        let tracks: Vec<_> = tracks.into_iter().map(track_from_row).collect();
        let actions: i64 = tracks.iter().map(Track::action_count).sum();
        let is_changed = actions != archived.actions || tracks.iter().any(|track| track.is_dirty);
        if is_changed || !is_in_use(&tx, segment, path).await? {
            return Ok(false);
        }
        if claim(&tx, segment, std::slice::from_ref(archived)).await?.is_empty() {
            return Ok(false);
        }
        delete_actions_in_txn(&tx, archived.id).await?;
        leave(&tx, archived.segment_id.into_iter().collect()).await?;
        tx.commit().await?;
        Ok(true)
    }
}

impl ToArchive {
    fn as_before(&self) -> Vec<sea_orm::Value> {
        vec![self.id.into(), self.segment_id.unwrap_or(0).into(), self.archived_count.into()]
    }
}

/// The file is read from now on.
async fn seal(
    tx: &DatabaseTransaction,
    segment: i64,
    written: &Written,
    stale: i64,
    lease: &Lease,
) -> Result<(), Failure> {
    let path = &written.file.path;
    let sql = "UPDATE segments SET path = $1, bytes = $2, action_count = $3, digest = $4, stale = $5 \
         WHERE id = $6 AND path IS NULL";
    let values = [
        path.into(),
        written.file.bytes.cast_signed().into(),
        written.actions.cast_signed().into(),
        written.digest.clone().into(),
        stale.into(),
        segment.into(),
    ];
    let is_unused = advance(tx, path, &[FileState::Written], FileState::InUse, lease.now()).await?;
    let sealed = tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), sql, values)).await?;
    // Somebody else took its writer for dead.
    if is_unused && sealed.rows_affected() == 1 { Ok(()) } else { Err(Error::Contention.into()) }
}

/// Whether a segment is read from this file. It is not changed until the transaction ends.
pub(super) async fn is_in_use(tx: &DatabaseTransaction, segment: i64, path: &str) -> Result<bool, DbErr> {
    use crate::store::entity::segment;
    let row = segment::Entity::find_by_id(segment).lock(LockType::Update).one(tx).await?;
    Ok(row.is_some_and(|row| row.path.as_deref() == Some(path)))
}

/// Says which segment sessions are in. Gives those of which nobody else has said so.
async fn claim(tx: &DatabaseTransaction, segment: i64, sessions: &[ToArchive]) -> Result<Vec<Uuid>, DbErr> {
    let row = |session: &ToArchive| {
        vec![
            session.id.into(),
            segment.into(),
            session.actions.into(),
            session.archived_count.into(),
            session.segment_id.unwrap_or(0).into(),
            session.index_version.into(),
        ]
    };
    let claimed: Vec<Id> = CLAIM.rows(tx, sessions.iter().map(row).collect()).await?;
    Ok(claimed.into_iter().map(|row| row.id).collect())
}

/// What sessions leave behind in the segments that they were in before.
async fn leave(tx: &DatabaseTransaction, segments: BTreeSet<i64>) -> Result<(), DbErr> {
    for segment in segments {
        make_stale(tx, segment).await?;
    }
    Ok(())
}

/// Something in a segment does not belong to a session any more.
pub(in crate::store) async fn make_stale(tx: &DatabaseTransaction, segment: i64) -> Result<(), DbErr> {
    let sql = "UPDATE segments SET stale = stale + 1 WHERE id = $1";
    tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), sql, [segment.into()])).await?;
    Ok(())
}

/// Which sessions are in a segment.
pub(super) async fn sessions_in(
    connection: &impl sea_orm::ConnectionTrait,
    segment: i64,
) -> Result<Vec<session::Model>, DbErr> {
    use sea_orm::QueryOrder as _;
    let in_it = session::Entity::find().filter(session::Column::SegmentId.eq(segment));
    in_it.order_by_asc(session::Column::Id).all(connection).await
}
