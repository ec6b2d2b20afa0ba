//! Tells actions that have arrived again from others that were given the same seqs, and finds the placeholders that they can
//! replace.

use std::{collections::HashMap, ops::RangeInclusive};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{ColumnTrait as _, DatabaseConnection, DbErr, EntityTrait as _, QueryFilter as _, Select};

use super::plan::count;
use crate::{
    archive::Wanted,
    error::Error,
    model::{Action, BatchAction, ContentDigest, Rejection, RejectionReason, SessionId, StoredAction},
    store::{Store, action::from_row, entity::action, failure::Failure},
};

/// Rows of a segment that are read at once.
const ROWS_AT_ONCE: usize = 4_096;

/// How actions that have arrived again compare with what is stored. Those that nothing is said of are the same.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Others are stored under these seqs.
    pub(super) conflicts: Vec<i64>,
    /// Of these there are only placeholders, which stay, and why.
    pub(super) placeholders: Vec<Rejection>,
    /// The seqs of placeholders that can be replaced, in order.
    pub(super) replaceable: Vec<i64>,
    /// Whether any of what can be replaced is archived.
    pub(super) is_archived: bool,
}

/// What is kept of a stored action: a small batch may repeat the seqs of large actions.
#[derive(Clone, Copy)]
struct Known {
    digest: ContentDigest,
    /// Where it is a placeholder: when.
    placeholder_at: Option<DateTime<Utc>>,
    is_archived: bool,
}

impl Known {
    fn of(action: &Action, is_archived: bool) -> Self {
        let placeholder_at = action.is_placeholder().then_some(action.timestamp);
        Self { digest: action.digest(), placeholder_at, is_archived }
    }
}

/// Compares actions with what is stored under their seqs.
pub(super) async fn compare(
    store: &Store,
    session: SessionId,
    track: i16,
    first_seq: i64,
    actions: &[BatchAction],
) -> Result<Comparison, Failure> {
    let connection = &store.write;
    let last_seq = first_seq - 1 + count(actions.len());
    let of_seqs = action::Entity::find()
        .filter(action::Column::SessionId.eq(session.as_uuid()))
        .filter(action::Column::Track.eq(track))
        .filter(action::Column::Seq.between(first_seq, last_seq));
    // The primary key has the timestamp before the seq. What is the same has the same timestamp, so it is found in the
    // range of what arrived; only where something is missing there, the whole session is looked through.
    let times = || actions.iter().map(|action| action.to_store().timestamp);
    let mut known = match (times().min(), times().max()) {
        (Some(first), Some(last)) => {
            known_rows(connection, of_seqs.clone().filter(action::Column::Timestamp.between(first, last))).await?
        }
        _ => HashMap::new(),
    };
    if known.len() < actions.len() {
        known.extend(known_archived(store, session, track, first_seq..=last_seq).await?);
    }
    if known.len() < actions.len() {
        known.extend(known_rows(connection, of_seqs).await?);
    }
    let mut comparison = Comparison::default();
    for (sent, seq) in actions.iter().zip(first_seq..) {
        comparison.add(seq, sent, known.get(&seq));
    }
    Ok(comparison)
}

impl Comparison {
    fn add(&mut self, seq: i64, sent: &BatchAction, known: Option<&Known>) {
        let Some(known) = known.filter(|known| sent.is_digested_to(known.digest)) else {
            return self.conflicts.push(seq);
        };
        let Some(placeholder_at) = known.placeholder_at else { return };
        let (reason, description) = match sent {
            // It was exported, and is imported.
            BatchAction::Valid(action) if action.is_placeholder() => return,
            BatchAction::Valid(action) if action.timestamp == placeholder_at => {
                self.replaceable.push(seq);
                self.is_archived |= known.is_archived;
                return;
            }
            BatchAction::Valid(_) => {
                let why = "timestamp: was rejected when the action was first sent; its place follows from it, so the \
                           placeholder stays";
                (RejectionReason::InvalidTimestamp, why.to_owned())
            }
            BatchAction::Rejected(rejected) => (rejected.reason, rejected.description.clone()),
        };
        self.placeholders.push(Rejection { seq, reason, description });
    }
}

/// What is known of rows, by seq.
async fn known_rows(
    connection: &DatabaseConnection,
    actions: Select<action::Entity>,
) -> Result<HashMap<i64, Known>, DbErr> {
    let mut rows = actions.stream(connection).await?;
    let mut known = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let StoredAction { seq, action, .. } = from_row(row);
        known.insert(seq, Known::of(&action, false));
    }
    Ok(known)
}

/// The same of actions that are archived.
async fn known_archived(
    store: &Store,
    session: SessionId,
    track: i16,
    seqs: RangeInclusive<i64>,
) -> Result<HashMap<i64, Known>, Error> {
    let id = session.as_uuid();
    let mut known = HashMap::new();
    for file in store.segments_of(&[id]).await?.into_keys() {
        let wanted = Wanted { sessions: Some(&[id]), with_data: true, rows_at_once: ROWS_AT_ONCE, ..Wanted::default() };
        let mut reader = store.archive()?.read(&file, wanted).await?;
        while let Some(actions) = reader.next().await? {
            let of_track = actions.into_iter().map(|action| action.stored).filter(|stored| stored.track == track);
            let of_seqs = of_track.filter(|stored| seqs.contains(&stored.seq));
            known.extend(of_seqs.map(|stored| (stored.seq, Known::of(&stored.action, true))));
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use bytestring::ByteString;

    use super::*;
    use crate::model::RejectedAction;

    fn action(kind: &str, data: String, micros: i64) -> Action {
        let timestamp = DateTime::from_timestamp_micros(micros).expect("in range");
        Action { timestamp, kind: kind.into(), target: ByteString::new(), data: data.into() }
    }

    fn placeholder_of(action: &Action, micros: i64) -> Action {
        let data = format!(r#"{{"reason":"TOO_LARGE","description":"","sha256":"{}"}}"#, action.digest());
        self::action("reel.rejected", data, micros)
    }

    #[test]
    fn a_placeholder_gives_way_to_its_action_in_the_same_place_only() {
        let sent = action("click", "{}".to_owned(), 7);
        let in_place = placeholder_of(&sent, 7);
        let elsewhere = placeholder_of(&sent, 8);
        let rejected = |digest, digest_as_sent| {
            let (reason, description) = (RejectionReason::TooLarge, "too large".to_owned());
            BatchAction::Rejected(RejectedAction {
                reason,
                description,
                digest,
                digest_as_sent,
                placeholder: in_place.clone(),
            })
        };
        let other = action("tap", "{}".to_owned(), 7);
        let cases = [
            (BatchAction::Valid(sent.clone()), &in_place, [0, 0, 1]),
            (BatchAction::Valid(sent.clone()), &elsewhere, [0, 1, 0]),
            (BatchAction::Valid(sent.clone()), &sent, [0, 0, 0]),
            (BatchAction::Valid(other.clone()), &in_place, [1, 0, 0]),
            // What was exported and is imported, before and after the action itself has come.
            (BatchAction::Valid(in_place.clone()), &in_place, [0, 0, 0]),
            (BatchAction::Valid(in_place.clone()), &sent, [0, 0, 0]),
            (rejected(sent.digest(), None), &in_place, [0, 1, 0]),
            (rejected(other.digest(), Some(sent.digest())), &in_place, [0, 1, 0]),
            (rejected(sent.digest(), None), &sent, [0, 0, 0]),
            (rejected(other.digest(), None), &in_place, [1, 0, 0]),
        ];
        for (number, (sent, stored, expected)) in cases.into_iter().enumerate() {
            let mut comparison = Comparison::default();
            comparison.add(3, &sent, Some(&Known::of(stored, true)));
            let Comparison { conflicts, placeholders, replaceable, is_archived } = comparison;
            assert_eq!([conflicts.len(), placeholders.len(), replaceable.len()], expected, "case {number}");
            assert_eq!(is_archived, !replaceable.is_empty(), "case {number}");
        }
    }
}
