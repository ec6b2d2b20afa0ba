//! Writing a segment, and reading it back.

use std::collections::HashMap;

use chrono::NaiveDate;
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, FromQueryResult, Statement};
use uuid::Uuid;

use super::{Sealing, Store, ToArchive, files::plan};
use crate::{
    archive::{ArchivedAction, RowDigest, SegmentFile, SegmentWriter, Wanted, Written},
    error::{Error, Result},
    failpoint,
    model::SessionId,
    store::{failure::Failure, lease::Lease, segment::Actions, track::tracks_of},
};

/// Sessions that are read by one statement.
const SESSIONS_A_STATEMENT: usize = 200;

/// Rows that are read back at once.
const ROWS_AT_ONCE: usize = 8_192;

#[derive(FromQueryResult)]
struct NewSegment {
    id: i64,
}

impl Store {
    /// Writes a segment of sessions, and verifies it. Gives those of them whose actions it has, all of them; none where there
    /// are no such.
    pub(super) async fn segment_write(&self, sessions: &[ToArchive], lease: &Lease) -> Result<Option<Sealing>> {
        let Some(first) = sessions.first() else { return Ok(None) };
        // Where a partition has several days, so may a segment. It goes by the first of them.
        let day = SessionId::from_uuid(first.id).started_at().date_naive();
        let path = new_path(day);
        let segment = self.segment_plan(day, &path, lease).await?;
        failpoint::reach("segment planned");
        let sealing = self.segment_prepare(segment, &path, sessions, lease).await;
        if !matches!(sealing, Ok(Some(_))) {
            self.file_give_up(&path, segment, lease.now()).await;
        }
        sealing
    }

    async fn segment_prepare(
        &self,
        segment: i64,
        path: &str,
        sessions: &[ToArchive],
        lease: &Lease,
    ) -> Result<Option<Sealing>> {
        let (written, sessions) = self.segment_write_file(path, sessions, None).await?;
        if sessions.is_empty() {
            return Ok(None);
        }
        self.file_written(path, lease.now()).await?;
        Ok(Some(Sealing { segment, written, sessions }))
    }

    /// Notes a segment, and the file that it is going to have.
    async fn segment_plan(&self, day: NaiveDate, path: &str, lease: &Lease) -> Result<i64, Failure> {
        let tx = self.begin().await?;
        lease.check_in_txn(&tx).await?;
        let segment = segment_new(&tx, day).await?;
        plan(&tx, path, segment, lease.now()).await?;
        tx.commit().await?;
        Ok(segment)
    }

    /// Writes and verifies a file: of all actions of sessions, or of what another file has of them. Gives the sessions that it
    /// has whole.
    pub(super) async fn segment_write_file(
        &self,
        path: &str,
        sessions: &[ToArchive],
        from: Option<&SegmentFile>,
    ) -> Result<(Written, Vec<ToArchive>)> {
        let mut writer = self.archive()?.write(path)?;
        let filled = async {
            let counts = self.segment_fill(&mut writer, sessions, from).await?;
            Ok::<_, Error>((writer.finish().await?, counts))
        };
        let (written, counts) = match filled.await {
            Ok(filled) => filled,
            Err(error) => {
                writer.abort().await;
                return Err(error);
            }
        };
        failpoint::reach("segment written");
        self.segment_verify(&written.file, &written.digest).await?;
        failpoint::reach("segment verified");
        let (whole, others): (Vec<_>, Vec<_>) =
            sessions.iter().cloned().partition(|session| counts.get(&session.id) == Some(&session.actions));
        if !others.is_empty() {
            tracing::warn!(
                sessions = others.len(),
                "sessions changed while they were archived, and are left as they are"
            );
        }
        Ok((written, whole))
    }

    /// Writes actions of sessions. Gives how many of each.
    async fn segment_fill(
        &self,
        writer: &mut SegmentWriter,
        sessions: &[ToArchive],
        from: Option<&SegmentFile>,
    ) -> Result<HashMap<Uuid, i64>> {
        let mut counts: HashMap<Uuid, i64> = HashMap::new();
        for sessions in sessions.chunks(SESSIONS_A_STATEMENT) {
            let ids: Vec<_> = sessions.iter().map(|session| session.id).collect();
            let users: HashMap<Uuid, Option<&str>> =
                sessions.iter().map(|session| (session.id, session.user_id.as_deref())).collect();
            let tracks = tracks_of(&self.read, &ids).await?;
            let mut actions = match from {
                None => self.actions_in_order(&ids, true).await?,
                Some(file) => Actions::of_file(self.archive()?, file, &ids)?,
            };
            while let Some(ArchivedAction { session, stored }) = actions.next().await? {
                let tracks = tracks.get(&session).map(Vec::as_slice).unwrap_or_default();
                let source = tracks.iter().find(|track| track.number == stored.track);
                let source = source.map_or("", |track| track.source.as_str());
                let user = users.get(&session).copied().flatten();
                writer.push(session, user, source, &stored).await?;
                *counts.entry(session).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Reads a segment from its storage, all of it, and compares it with what was written.
    pub(super) async fn segment_verify(&self, file: &SegmentFile, digest: &str) -> Result<()> {
        let wanted = Wanted { with_data: true, rows_at_once: ROWS_AT_ONCE, ..Wanted::default() };
        let mut reader = self.archive()?.read(file, wanted).await?;
        let mut read = RowDigest::default();
        while let Some(actions) = reader.next().await? {
            actions.iter().for_each(|action| read.push(action.session, &action.stored));
        }
        if read.finish() == digest {
            return Ok(());
        }
        tracing::error!(path = file.path, "a segment is not what was written");
        Err(Error::SegmentDamaged)
    }
}

/// Makes a segment, which has no file yet.
pub(super) async fn segment_new(tx: &DatabaseTransaction, day: NaiveDate) -> Result<i64, Failure> {
    let sql = "INSERT INTO segments (day) VALUES ($1) RETURNING id";
    let row =
        NewSegment::find_by_statement(Statement::from_sql_and_values(tx.get_database_backend(), sql, [day.into()]));
    Ok(row.one(tx).await?.ok_or(Error::Internal)?.id)
}

/// A key that no other file has ever had.
pub(super) fn new_path(day: NaiveDate) -> String {
    format!("{day}/{}.parquet", Uuid::now_v7())
}
