//! Queries about actions.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, ExprTrait as _, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, QueryTrait as _, Select,
    sea_query::{Expr, SimpleExpr},
};

use super::{
    Store,
    entity::{action, session},
};
use crate::{
    archive::{SegmentFile, Wanted},
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

/// Where a session was found to be archived.
#[derive(Clone, Debug)]
pub struct KnownSegment {
    id: i64,
    file: SegmentFile,
}

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
            let known = match segment.take().filter(|known| known.id == id) {
                Some(known) => known,
                // Archived anew meanwhile: its rows are elsewhere too.
                None => match self.in_time(self.segment_file(id)).await? {
                    Some(file) => KnownSegment { id, file },
                    None => continue,
                },
            };
            match self.segment_page(query, max_rows, max_bytes, &known.file).await {
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

    /// A page of rows, and the segment of the session when they were read.
    async fn row_page(
        &self,
        query: &ActionQuery<'_>,
        max_rows: u64,
        max_bytes: usize,
    ) -> Result<(ActionRows, Option<i64>)> {
        let of_session = session::Entity::find_by_id(query.session.as_uuid())
            .select_only()
            .column(session::Column::SegmentId)
            .into_query();
        // By index, not by name: looking up the names takes longer than decoding the values.
        let mut rows = select(query)
            .select_only()
            .columns([
                action::Column::Timestamp,
                action::Column::Track,
                action::Column::Seq,
                action::Column::Kind,
                action::Column::Target,
                action::Column::Data,
            ])
            .expr(SimpleExpr::SubQuery(None, Box::new(of_session.into())))
            .order_by_asc(action::Column::Timestamp)
            .order_by_asc(action::Column::Track)
            .order_by_asc(action::Column::Seq)
            .limit(max_rows)
            .into_tuple::<ActionColumns>()
            .stream(&self.read)
            .await?;
        let mut page = ActionRows { actions: Vec::with_capacity(rows_as_length(max_rows)), bytes: 0, is_last: false };
        let mut place = None;
        while page.bytes < max_bytes {
            let Some((timestamp, track, seq, kind, target, data, segment)) = rows.try_next().await? else {
                page.is_last = page.actions.len() < rows_as_length(max_rows);
                break;
            };
            place = Some(segment);
            let action =
                Action { timestamp, kind: kind.into(), target: target.into(), data: data.unwrap_or_default().into() };
            page.push(StoredAction { track, seq, action });
        }
        drop(rows);
        let place = match place {
            Some(place) => place,
            // No row says it.
            None => session::Entity::find_by_id(query.session.as_uuid())
                .one(&self.read)
                .await?
                .and_then(|session| session.segment_id),
        };
        Ok((page, place))
    }

    /// A page of what is archived.
    async fn segment_page(
        &self,
        query: &ActionQuery<'_>,
        max_rows: u64,
        max_bytes: usize,
        file: &SegmentFile,
    ) -> Result<ActionRows> {
        let session = query.session.as_uuid();
        let from = std::cmp::max(query.from, query.after.map(|place| place.timestamp));
        let rows_at_once = rows_as_length(max_rows).max(256);
        let wanted = Wanted { sessions: Some(&[session]), from, until: query.until, with_data: true, rows_at_once };
        let mut reader = self.archive()?.read(file, wanted).await?;
        let mut page = ActionRows { actions: Vec::new(), bytes: 0, is_last: false };
        loop {
            let Some(actions) = reader.next().await? else {
                page.is_last = true;
                return Ok(page);
            };
            for action in actions.into_iter().filter(|action| query.has(&action.stored)) {
                if page.actions.len() >= rows_as_length(max_rows) || page.bytes >= max_bytes {
                    return Ok(page);
                }
                page.push(action.stored);
            }
        }
    }

    /// Counts actions, in the index alone where no types are asked for.
    pub async fn action_count(&self, query: &ActionQuery<'_>) -> Result<u64> {
        self.in_time(async { Ok(select(query).count(&self.read).await?) }).await
    }
}

/// Timestamp, track, seq, type, target and data, and the session's segment.
type ActionColumns = (DateTime<Utc>, i16, i64, String, String, Option<String>, Option<i64>);

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
