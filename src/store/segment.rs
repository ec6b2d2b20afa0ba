//! Which sessions are in which segments, and reading actions wherever they are.

use std::collections::{HashMap, HashSet, VecDeque};

use chrono::{DateTime, Utc};
use futures_util::{
    StreamExt as _, TryStreamExt as _, future,
    stream::{self, BoxStream},
};
use sea_orm::{
    ColumnTrait as _, Condition, ConnectionTrait as _, DbErr, EntityTrait as _, ExprTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, QueryTrait as _, StreamTrait as _, TryGetableMany as _,
    sea_query::{Expr, JoinType, Query, SelectStatement},
};
use uuid::Uuid;

use super::{
    Store,
    entity::{action, segment, session},
    question::Question,
};
use crate::{
    archive::{Archive, ArchivedAction, Reader, SegmentFile, Wanted},
    error::{Error, Result},
    model::{Action, Position, StoredAction},
};

/// Rows of a segment that are read at once where many sessions are read.
const ROWS_AT_ONCE: usize = 8_192;

/// Rows of the database that are read at once, at most, and bytes of them.
const PAGE_ROWS: u64 = 2_000;
const PAGE_BYTES: usize = 4 << 20;

/// The files of sessions, and which sessions are in each.
pub(super) type Segments = HashMap<SegmentFile, Vec<Uuid>>;

/// A session's number, its segment's file and the file's bytes.
type Place = (Uuid, Option<String>, i64);

/// Timestamp, track, seq, type, target and data of an action of a session.
type Row = (Uuid, DateTime<Utc>, i16, i64, String, String, Option<String>);

/// Actions of some sessions from their rows and their segments, by session, those of a session in the order of playback.
pub(super) struct Actions<'a> {
    rows: BoxStream<'a, Result<Row, DbErr>>,
    /// The next of the rows, once it is read.
    next_row: Option<ArchivedAction>,
    is_read: bool,
    segments: Vec<Segment>,
}

/// A segment, read when the first of its sessions comes.
struct Segment {
    archive: Archive,
    file: SegmentFile,
    /// In the order of their ids.
    sessions: Vec<Uuid>,
    with_data: bool,
    reader: Option<Reader>,
    read: VecDeque<ArchivedAction>,
    is_read: bool,
}

impl<'a> Actions<'a> {
    fn open(
        rows: BoxStream<'a, Result<Row, DbErr>>,
        archive: Option<&Archive>,
        segments: &Segments,
        with_data: bool,
    ) -> Result<Self> {
        let mut places: Vec<Segment> = Vec::new();
        for (file, sessions) in segments {
            let archive = archive.ok_or(Error::ArchiveNotConfigured)?.clone();
            let (file, mut sessions) = (file.clone(), sessions.clone());
            sessions.sort_unstable();
            let read = VecDeque::new();
            places.push(Segment { archive, file, sessions, with_data, reader: None, read, is_read: false });
        }
        Ok(Self { rows, next_row: None, is_read: false, segments: places })
    }

    /// What a file has of sessions.
    pub(super) fn of_file(archive: &Archive, file: &SegmentFile, sessions: &[Uuid]) -> Result<Self> {
        let segments = [(file.clone(), sessions.to_vec())].into();
        Self::open(stream::empty().boxed(), Some(archive), &segments, true)
    }

    /// The next one. None after the last.
    pub(super) async fn next(&mut self) -> Result<Option<ArchivedAction>> {
        if self.next_row.is_none() && !self.is_read {
            self.next_row = self.rows.next().await.transpose()?.map(from_row);
            self.is_read = self.next_row.is_none();
        }
        let row = self.next_row.as_ref().map(place_of);
        let mut first: Option<(usize, (Uuid, Position))> = None;
        for (index, segment) in self.segments.iter_mut().enumerate() {
            // The first session so far, if any.
            let session = first.iter().map(|(_, place)| place.0).chain(row.map(|place| place.0)).min();
            if session.is_some_and(|session| segment.begins_after(session)) {
                continue;
            }
            let Some(next) = segment.peek().await? else { continue };
            if first.is_none_or(|(_, place)| next < place) {
                first = Some((index, next));
            }
        }
        match (first, row) {
            (Some((index, archived)), row) if row.is_none_or(|row| archived < row) => {
                Ok(self.segments[index].read.pop_front())
            }
            _ => Ok(self.next_row.take()),
        }
    }
}

impl Segment {
    /// Whether all that it has comes after this session, and nothing of it is read yet.
    fn begins_after(&self, session: Uuid) -> bool {
        self.reader.is_none() && self.sessions.first().is_some_and(|first| *first > session)
    }

    async fn peek(&mut self) -> Result<Option<(Uuid, Position)>> {
        while self.read.is_empty() && !self.is_read {
            let reader = if let Some(reader) = &mut self.reader {
                reader
            } else {
                let wanted = Wanted {
                    sessions: Some(&self.sessions),
                    with_data: self.with_data,
                    rows_at_once: ROWS_AT_ONCE,
                    ..Wanted::default()
                };
                self.reader.insert(self.archive.read(&self.file, wanted).await?)
            };
            match reader.next().await? {
                Some(actions) => self.read.extend(actions),
                None => self.is_read = true,
            }
        }
        Ok(self.read.front().map(place_of))
    }
}

fn place_of(action: &ArchivedAction) -> (Uuid, Position) {
    (action.session, action.stored.position())
}

fn from_row((session, timestamp, track, seq, kind, target, data): Row) -> ArchivedAction {
    let action = Action { timestamp, kind: kind.into(), target: target.into(), data: data.unwrap_or_default().into() };
    ArchivedAction { session, stored: StoredAction { track, seq, action } }
}

/// The rows of some actions.
fn rows_of(wanted: Condition, with_data: bool) -> SelectStatement {
    let query = action::Entity::find()
        .select_only()
        .columns([
            action::Column::SessionId,
            action::Column::Timestamp,
            action::Column::Track,
            action::Column::Seq,
            action::Column::Kind,
            action::Column::Target,
        ])
        .filter(wanted)
        .order_by_asc(action::Column::SessionId)
        .order_by_asc(action::Column::Timestamp)
        .order_by_asc(action::Column::Track)
        .order_by_asc(action::Column::Seq);
    let query = if with_data {
        query.column(action::Column::Data)
    } else {
        query.column_as(Expr::cust("CAST(NULL AS text)"), "data")
    };
    query.into_query()
}

/// The places of those of some sessions that are archived.
fn places_of(sessions: &[Uuid]) -> SelectStatement {
    let is_its_segment =
        Expr::col((segment::Entity, segment::Column::Id)).equals((session::Entity, session::Column::SegmentId));
    Query::select()
        .column((session::Entity, session::Column::Id))
        .column((segment::Entity, segment::Column::Path))
        .column((segment::Entity, segment::Column::Bytes))
        .from(session::Entity)
        .join(JoinType::InnerJoin, segment::Entity, is_its_segment)
        .and_where(Expr::col((session::Entity, session::Column::Id)).is_in(sessions.iter().copied()))
        .to_owned()
}

fn by_file(places: Vec<Place>) -> Result<Segments> {
    let mut segments = Segments::new();
    for (session, path, bytes) in places {
        let file = SegmentFile { path: path.ok_or(Error::SegmentMissing)?, bytes: bytes.cast_unsigned() };
        segments.entry(file).or_default().push(session);
    }
    Ok(segments)
}

impl Question {
    /// The actions of sessions; of those that are rows, only the wanted ones.
    ///
    /// Queries `segments of sessions` and `actions of sessions`. Use the primary keys.
    pub(super) async fn actions_in_order<'a>(
        &'a self,
        sessions: &[Uuid],
        wanted: Condition,
        with_data: bool,
    ) -> Result<Actions<'a>> {
        let places: Vec<Place> = self.rows("segments of sessions", &places_of(sessions)).await?;
        let segments = by_file(places)?;
        let of_sessions = action::Column::SessionId.is_in(sessions.iter().copied());
        let query = rows_of(Condition::all().add(of_sessions).add(wanted), with_data);
        let rows = self.stream::<Row>("actions of sessions", &query).await?;
        Actions::open(rows, self.archive.as_ref(), &segments, with_data)
    }
}

impl Store {
    /// The archive.
    pub(super) fn archive(&self) -> Result<&Archive> {
        self.archive.as_ref().ok_or(Error::ArchiveNotConfigured)
    }

    /// All actions of sessions that have started one after the other. Where one is archived meanwhile, some may be missing:
    /// what is read here has to be compared with what is known of the session. However slowly it is taken, the database does
    /// not wait for it.
    pub(super) async fn actions_in_order(&self, sessions: &[Uuid], with_data: bool) -> Result<Actions<'static>> {
        let segments = self.segments_of(sessions).await?;
        let rows = self.clone().rows_in_order(sessions, with_data);
        Actions::open(rows, self.archive.as_ref(), &segments, with_data)
    }

    fn rows_in_order(self, sessions: &[Uuid], with_data: bool) -> BoxStream<'static, Result<Row, DbErr>> {
        let wanted: HashSet<Uuid> = sessions.iter().copied().collect();
        let range = sessions.iter().min().copied().zip(sessions.iter().max().copied());
        let pages = stream::try_unfold((self, range, None), move |(store, range, after)| async move {
            let Some((first, last)) = range else { return Ok(None) };
            let page = store.rows_between(first, last, after, with_data).await?;
            let end = page.last().map(|(session, timestamp, track, seq, ..)| (*session, *timestamp, *track, *seq));
            let rest = end.map(|(session, ..)| (session, last));
            Ok::<_, DbErr>(Some((stream::iter(page).map(Ok), (store, rest, end))))
        });
        pages.try_flatten().try_filter(move |(session, ..)| future::ready(wanted.contains(session))).boxed()
    }

    /// The next rows of a range of sessions. None after the last. Uses the primary key.
    async fn rows_between(
        &self,
        first: Uuid,
        last: Uuid,
        after: Option<(Uuid, DateTime<Utc>, i16, i64)>,
        with_data: bool,
    ) -> Result<Vec<Row>, DbErr> {
        let mut range = Condition::all().add(action::Column::SessionId.between(first, last));
        if let Some((session, timestamp, track, seq)) = after {
            let place =
                [action::Column::SessionId, action::Column::Timestamp, action::Column::Track, action::Column::Seq];
            let values = [Expr::val(session), Expr::val(timestamp), Expr::val(track), Expr::val(seq)];
            range = range.add(Expr::tuple(place.map(Expr::col)).gt(Expr::tuple(values)));
        }
        let mut query = rows_of(range, with_data);
        query.limit(PAGE_ROWS);
        let mut rows = self.read.stream_raw(self.backend.build(&query)).await?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES {
            let Some(row) = rows.try_next().await? else { break };
            let row = Row::try_get_many_by_index(&row)?;
            bytes += row.4.len() + row.5.len() + row.6.as_ref().map_or(0, String::len);
            page.push(row);
        }
        Ok(page)
    }

    /// The segments of those of some sessions that are archived.
    pub(super) async fn segments_of(&self, sessions: &[Uuid]) -> Result<Segments> {
        let rows = self.read.query_all_raw(self.backend.build(&places_of(sessions))).await?;
        let places: Result<_, DbErr> = rows.iter().map(|row| Ok(Place::try_get_many_by_index(row)?)).collect();
        by_file(places?)
    }

    /// The file of a segment. None where it has been superseded.
    pub(super) async fn segment_file(&self, id: i64) -> Result<Option<SegmentFile>> {
        let row = segment::Entity::find_by_id(id).one(&self.read).await?;
        Ok(row.and_then(|row| Some(SegmentFile { path: row.path?, bytes: row.bytes.cast_unsigned() })))
    }
}
