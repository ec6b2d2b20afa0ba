//! Queries about actions.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, ExprTrait as _, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, Select, sea_query::Expr,
};

use super::{Store, entity::action};
use crate::{
    error::Result,
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
    /// primary key: the cost does not depend on how far into the session the page lies.
    pub async fn action_page(&self, query: &ActionQuery<'_>, max_rows: u64, max_bytes: usize) -> Result<ActionRows> {
        self.in_time(self.action_page_unlimited(query, max_rows, max_bytes)).await
    }

    async fn action_page_unlimited(
        &self,
        query: &ActionQuery<'_>,
        max_rows: u64,
        max_bytes: usize,
    ) -> Result<ActionRows> {
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
            .order_by_asc(action::Column::Timestamp)
            .order_by_asc(action::Column::Track)
            .order_by_asc(action::Column::Seq)
            .limit(max_rows)
            .into_tuple::<ActionColumns>()
            .stream(&self.read)
            .await?;
        let (mut actions, mut bytes) = (Vec::with_capacity(usize::try_from(max_rows).unwrap_or(0)), 0);
        while bytes < max_bytes {
            let Some((timestamp, track, seq, kind, target, data)) = rows.try_next().await? else {
                let is_last = u64::try_from(actions.len()).is_ok_and(|count| count < max_rows);
                return Ok(ActionRows { actions, bytes, is_last });
            };
            let action =
                Action { timestamp, kind: kind.into(), target: target.into(), data: data.unwrap_or_default().into() };
            let stored = StoredAction { track, seq, action };
            bytes += stored.size();
            actions.push(stored);
        }
        Ok(ActionRows { actions, bytes, is_last: false })
    }

    /// Counts actions, in the index alone where no types are asked for.
    pub async fn action_count(&self, query: &ActionQuery<'_>) -> Result<u64> {
        self.in_time(async { Ok(select(query).count(&self.read).await?) }).await
    }
}

/// Timestamp, track, seq, type, target and data.
type ActionColumns = (DateTime<Utc>, i16, i64, String, String, Option<String>);

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
