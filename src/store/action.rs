//! Queries about actions.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    ColumnTrait as _, Condition, DbErr, EntityTrait as _, ExprTrait as _, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, QueryTrait as _, Select, StreamTrait as _, TryGetableMany as _,
    sea_query::{Expr, JoinType, Query, SelectStatement, SimpleExpr},
};

use super::{
    Store,
    entity::{action, session},
};
use crate::{
    archive::{Reader, SegmentFile, Wanted},
    error::{Error, Result},
    model::{Action, Position, SessionId, StoredAction},
};

/// Actions of one track by their seqs: those above the one, up to and including the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqWindow {
    /// The track's number.
    pub track: i16,
    /// Not this seq and not those before it.
    pub above: i64,
    /// Not those after this seq.
    pub up_to: i64,
}

/// Which actions of a session to read. All parts are combined with AND.
#[derive(Clone, Debug)]
pub struct ActionQuery<'a> {
    /// The session.
    pub session: SessionId,
    /// Only actions in one of these windows.
    pub windows: &'a [SeqWindow],
    /// Only actions after this place.
    pub after: Option<Position>,
    /// Only actions at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Only actions before this time.
    pub until: Option<DateTime<Utc>>,
    /// Only actions of these types. Empty means all.
    pub types: &'a [String],
}

/// Where a session was found to be archived, and how far it is read.
pub struct KnownSegment {
    id: i64,
    file: SegmentFile,
    rest: Option<Rest>,
}

/// What was read of a segment and is not on a page yet, so that no part of it is read twice.
struct Rest {
    /// The last action of the page before.
    after: Position,
    read: VecDeque<StoredAction>,
    reader: Reader,
}

/// Bytes that are kept until they are asked for. What is larger is read again.
const MAX_REST_BYTES: usize = 2 << 20;

/// Rows that are read of a segment at once: a page of its own for the first page of a playback, and for those that are paced.
const FEW_ROWS: usize = 1_024;
const MANY_ROWS: usize = 4_096;

/// How often a page is looked for in another place, where its session moves.
const PLACES: u32 = 3;

/// Consecutive actions of a session.
pub struct ActionRows {
    /// In the order of playback.
    pub actions: Vec<StoredAction>,
    /// About the bytes that they take.
    pub bytes: usize,
    /// Whether nothing comes after them.
    pub is_last: bool,
}

impl Store {
    /// Reads actions in the order of playback: at most `max_rows`, and none after those that reach `max_bytes`. Uses the
    /// primary key: the cost does not depend on how far into the session the page lies. `segment` is the caller's memory of
    /// where the session is archived.
    pub async fn action_page(
        &self,
        query: &ActionQuery<'_>,
        max_rows: u64,
        max_bytes: usize,
        segment: &mut Option<KnownSegment>,
    ) -> Result<ActionRows> {
        for _ in 0..PLACES {
            let (rows, place) = self.in_time(self.row_page(query, max_rows, max_bytes)).await?;
            let Some(id) = place else { return Ok(rows) };
            let mut known = match segment.take().filter(|known| known.id == id) {
                Some(known) => known,
                // Archived anew meanwhile: its rows are elsewhere too.
                None => match self.in_time(self.segment_file(id)).await? {
                    Some(file) => KnownSegment { id, file, rest: None },
                    None => continue,
                },
            };
            match self.segment_page(query, max_rows, max_bytes, &mut known).await {
                Ok(archived) => {
                    *segment = Some(known);
                    return Ok(rows.merge(archived, max_rows, max_bytes));
                }
                // Written anew meanwhile, and known by its old name.
                Err(Error::SegmentMissing) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::SegmentMissing)
    }

    /// A page of rows, and the segment of the session at the moment at which they were read.
    async fn row_page(
        &self,
        query: &ActionQuery<'_>,
        max_rows: u64,
        max_bytes: usize,
    ) -> Result<(ActionRows, Option<i64>)> {
        let of_session = session::Entity::find_by_id(query.session.as_uuid()).select_only();
        let segment = of_session.column(session::Column::SegmentId).into_query();
        let mut rows = page_of(query, max_rows);
        rows.expr(SimpleExpr::SubQuery(None, Box::new(segment.into())));
        let read = self.read_page(rows, max_rows, max_bytes).await?;
        if let (page, Some(segment)) = read {
            return Ok((page, segment));
        }
        // No row says it. Asked for apart, it could be that of another moment.
        let mut page = Query::select();
        for name in PAGE_COLUMNS {
            page.column(("page", name));
        }
        page.column((session::Entity, session::Column::SegmentId))
            .from(session::Entity)
            .join_subquery(JoinType::LeftJoin, page_of(query, max_rows), "page", Expr::cust("1 = 1"))
            .and_where(Expr::col((session::Entity, session::Column::Id)).eq(query.session.as_uuid()));
        let (page, segment) = self.read_page(page, max_rows, max_bytes).await?;
        Ok((page, segment.flatten()))
    }

    /// Reads a page, and what its rows say of the segment. None where there are none.
    async fn read_page(
        &self,
        query: SelectStatement,
        max_rows: u64,
        max_bytes: usize,
    ) -> Result<(ActionRows, Option<Option<i64>>), DbErr> {
        let limit = rows_as_length(max_rows);
        let mut rows = self.read.stream_raw(self.backend.build(&query)).await?;
        let mut page = ActionRows { actions: Vec::with_capacity(limit), bytes: 0, is_last: false };
        let mut place = None;
        while page.bytes < max_bytes {
            let Some(row) = rows.try_next().await? else {
                page.is_last = page.actions.len() < limit;
                break;
            };
            // By index, not by name: looking up the names takes longer than decoding the values.
            let (timestamp, track, seq, kind, target, data, segment) = ActionColumns::try_get_many_by_index(&row)?;
            place = Some(segment);
            let (Some(timestamp), Some(track), Some(seq)) = (timestamp, track, seq) else { continue };
            let text = |text: Option<String>| text.unwrap_or_default().into();
            let action = Action { timestamp, kind: text(kind), target: text(target), data: text(data) };
            page.push(StoredAction { track, seq, action });
        }
        Ok((page, place))
    }

    /// A page of what is archived.
    async fn segment_page(
        &self,
        query: &ActionQuery<'_>,
        max_rows: u64,
        max_bytes: usize,
        segment: &mut KnownSegment,
    ) -> Result<ActionRows> {
        let limit = rows_as_length(max_rows);
        let Rest { mut read, mut reader, .. } = match segment.rest.take().filter(|rest| query.after == Some(rest.after))
        {
            Some(rest) => rest,
            None => self.segment_open(query, &segment.file).await?,
        };
        reader.read_at_once(if limit < FEW_ROWS / 2 { FEW_ROWS } else { MANY_ROWS });
        let mut page = ActionRows { actions: Vec::new(), bytes: 0, is_last: false };
        while page.actions.len() < limit && page.bytes < max_bytes {
            if let Some(stored) = read.pop_front() {
                page.push(stored);
                continue;
            }
            let Some(actions) = reader.next().await? else {
                page.is_last = true;
                return Ok(page);
            };
            let actions = actions.into_iter().map(|action| action.stored);
            read.extend(actions.filter(|stored| query.has(stored)));
        }
        let bytes: usize = read.iter().map(StoredAction::size).sum();
        let after = page.actions.last().map(StoredAction::position);
        segment.rest = after.filter(|_| bytes <= MAX_REST_BYTES).map(|after| Rest { after, read, reader });
        Ok(page)
    }

    async fn segment_open(&self, query: &ActionQuery<'_>, file: &SegmentFile) -> Result<Rest> {
        let session = query.session.as_uuid();
        // Where the page before ended, as far as times tell.
        let from = std::cmp::max(query.from, query.after.map(|place| place.timestamp));
        let wanted =
            Wanted { sessions: Some(&[session]), from, until: query.until, with_data: true, rows_at_once: FEW_ROWS };
        let reader = self.archive()?.read(file, wanted).await?;
        let after = query.after.unwrap_or(Position { timestamp: DateTime::UNIX_EPOCH, track: 0, seq: 0 });
        Ok(Rest { after, read: VecDeque::new(), reader })
    }

    /// Counts actions, in the index alone where no types are asked for.
    pub async fn action_count(&self, query: &ActionQuery<'_>) -> Result<u64> {
        self.in_time(async { Ok(select(query).count(&self.read).await?) }).await
    }
}

/// The columns of a page, and the session's segment.
type ActionColumns =
    (Option<DateTime<Utc>>, Option<i16>, Option<i64>, Option<String>, Option<String>, Option<String>, Option<i64>);

const PAGE_COLUMNS: [&str; 6] = ["timestamp", "track", "seq", "type", "target", "data"];

/// The rows of a page in the order of playback.
fn page_of(query: &ActionQuery<'_>, max_rows: u64) -> SelectStatement {
    select(query)
        .select_only()
        .columns([
            action::Column::Timestamp,
            action::Column::Track,
            action::Column::Seq,
            action::Column::Kind,
            action::Column::Target,
        ])
        .expr_as(Expr::col((action::Entity, action::Column::Data)).cast_as("text"), "data")
        .order_by_asc(action::Column::Timestamp)
        .order_by_asc(action::Column::Track)
        .order_by_asc(action::Column::Seq)
        .limit(max_rows)
        .into_query()
}

fn rows_as_length(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}

impl ActionQuery<'_> {
    /// Whether an action is among those that are asked for.
    fn has(&self, stored: &StoredAction) -> bool {
        let is_in = |window: &SeqWindow| {
            window.track == stored.track && stored.seq > window.above && stored.seq <= window.up_to
        };
        self.after.is_none_or(|after| stored.position() > after)
            && self.from.is_none_or(|from| stored.action.timestamp >= from)
            && self.until.is_none_or(|until| stored.action.timestamp < until)
            && (self.types.is_empty() || self.types.iter().any(|kind| *kind == *stored.action.kind))
            && self.windows.iter().any(is_in)
    }
}

impl ActionRows {
    fn push(&mut self, stored: StoredAction) {
        self.bytes += stored.size();
        self.actions.push(stored);
    }

    /// The page of both.
    fn merge(self, other: Self, max_rows: u64, max_bytes: usize) -> Self {
        if self.actions.is_empty() && self.is_last {
            return other;
        }
        // Beyond the end of a page that is not the last, the other's actions may not be the next ones.
        let end = |page: &Self| page.actions.last().filter(|_| !page.is_last).map(StoredAction::position);
        let end = match (end(&self), end(&other)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let is_last = self.is_last && other.is_last;
        let mut all: Vec<_> = self.actions.into_iter().chain(other.actions).collect();
        all.sort_by_key(StoredAction::position);
        let mut page = Self { actions: Vec::with_capacity(all.len()), bytes: 0, is_last };
        for stored in all {
            let is_beyond = end.is_some_and(|end| stored.position() > end);
            if is_beyond || page.actions.len() >= rows_as_length(max_rows) || page.bytes >= max_bytes {
                page.is_last = false;
                break;
            }
            page.push(stored);
        }
        page
    }
}

fn select(query: &ActionQuery<'_>) -> Select<action::Entity> {
    let mut condition = Condition::all().add(action::Column::SessionId.eq(query.session.as_uuid()));
    let mut windows = Condition::any();
    for window in query.windows {
        let mut of_track =
            Condition::all().add(action::Column::Track.eq(window.track)).add(action::Column::Seq.lte(window.up_to));
        if window.above > 0 {
            of_track = of_track.add(action::Column::Seq.gt(window.above));
        }
        windows = windows.add(of_track);
    }
    condition = condition.add(windows);
    if let Some(after) = query.after {
        let columns = [action::Column::Timestamp, action::Column::Track, action::Column::Seq].map(Expr::col);
        let values = [Expr::value(after.timestamp), Expr::value(after.track), Expr::value(after.seq)];
        condition = condition.add(Expr::tuple(columns).gt(Expr::tuple(values)));
    }
    if let Some(from) = query.from {
        condition = condition.add(action::Column::Timestamp.gte(from));
    }
    if let Some(until) = query.until {
        condition = condition.add(action::Column::Timestamp.lt(until));
    }
    if !query.types.is_empty() {
        condition = condition.add(action::Column::Kind.is_in(query.types));
    }
    action::Entity::find().filter(condition)
}

pub(super) fn from_row(row: action::Model) -> StoredAction {
    StoredAction {
        track: row.track,
        seq: row.seq,
        action: Action {
            timestamp: row.timestamp,
            kind: row.kind.into(),
            target: row.target.into(),
            data: row.data.unwrap_or_default().into(),
        },
    }
}
