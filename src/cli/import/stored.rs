//! Keeps an import from adding to a session that turns out to be another: what is stored of a session already is compared
//! before anything else of it is sent, and where it differs nothing else is.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::proto::{ActionBatch, RejectionReason, SessionReceipt, StreamActionsRequest, stream_actions_request::Event};

/// How many actions are compared by one message: a receipt lists so many rejections, so that it shows every conflict.
const MAX_COMPARED: usize = 100;

/// Up to which seq each track of a session is stored, by source.
pub(super) type Cursors = HashMap<String, i64>;

/// A message as it is sent.
pub(super) struct Piece {
    pub(super) message: StreamActionsRequest,
    /// Whether all of it is stored already, if this is the session that is stored, so that it adds nothing.
    compares: bool,
}

/// A session of which something else is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Conflict {
    /// The session.
    pub(in crate::cli) session_id: String,
    /// The track of the first difference.
    pub(in crate::cli) source: String,
    /// The seq of the first difference.
    pub(in crate::cli) seq: i64,
}

/// Decides which messages may be sent when.
#[derive(Default)]
pub(super) struct Sorting {
    /// Sessions of which something was stored before.
    stored: HashMap<String, Stored>,
    /// What is to be sent, in order.
    queue: VecDeque<Piece>,
    conflicts: Vec<Conflict>,
    given_up: HashSet<String>,
}

#[derive(Default)]
struct Stored {
    cursors: Cursors,
    /// How many messages that compare have no receipt.
    comparing_count: usize,
    /// Its start, which waits until something is added: it may change the session's attributes.
    start: Option<StreamActionsRequest>,
}

impl Sorting {
    /// Takes a message, and with a session's first one how far its tracks are stored.
    pub(super) fn take(&mut self, message: StreamActionsRequest, cursors: Option<Cursors>) {
        if let Some(cursors) = cursors
            && cursors.values().any(|seq| *seq > 0)
        {
            self.stored.insert(message.session_id.clone(), Stored { cursors, ..Stored::default() });
        }
        if self.is_given_up(&message.session_id) {
            return;
        }
        let Some(stored) = self.stored.get_mut(&message.session_id) else {
            self.queue.push_back(Piece { message, compares: false });
            return;
        };
        let StreamActionsRequest { session_id, event } = message;
        let message = |event| StreamActionsRequest { session_id: session_id.clone(), event: Some(event) };
        match event {
            Some(Event::Start(start)) => stored.start = Some(message(Event::Start(start))),
            Some(Event::Batch(batch)) => {
                let cursor = stored.cursors.get(&batch.source).copied().unwrap_or(0);
                for (batch, compares) in split(batch, cursor) {
                    self.queue.push_back(Piece { message: message(Event::Batch(batch)), compares });
                }
            }
            event => {
                self.queue.push_back(Piece { message: StreamActionsRequest { session_id, event }, compares: false });
            }
        }
    }

    /// Takes the end of the recording: starts that were held back for nothing are sent.
    pub(super) fn finish(&mut self) {
        let starts = self.stored.values_mut().filter_map(|stored| stored.start.take());
        self.queue.extend(starts.map(|message| Piece { message, compares: false }));
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What is sent next. None where a comparison has to be over before.
    pub(super) fn next(&mut self) -> Option<Piece> {
        let front = self.queue.front()?;
        if let Some(stored) = self.stored.get_mut(&front.message.session_id) {
            if front.compares {
                stored.comparing_count += 1;
            } else if stored.comparing_count > 0 {
                return None;
            } else if let Some(message) = stored.start.take() {
                return Some(Piece { message, compares: false });
            }
        }
        self.queue.pop_front()
    }

    /// Takes the receipt of a piece.
    pub(super) fn receive(&mut self, piece: &Piece, receipt: &SessionReceipt) {
        let session_id = &piece.message.session_id;
        if piece.compares
            && let Some(stored) = self.stored.get_mut(session_id)
        {
            stored.comparing_count -= 1;
        }
        let Some((source, seq)) = first_conflict(receipt) else { return };
        if !self.given_up.insert(session_id.clone()) {
            return;
        }
        self.queue.retain(|queued| queued.message.session_id != *session_id);
        if let Some(stored) = self.stored.get_mut(session_id) {
            stored.start = None;
        }
        self.conflicts.push(Conflict { session_id: session_id.clone(), source, seq });
    }

    /// Whether nothing more of the session is sent.
    pub(super) fn is_given_up(&self, session_id: &str) -> bool {
        self.given_up.contains(session_id)
    }

    /// The sessions that were given up.
    pub(super) fn into_conflicts(self) -> Vec<Conflict> {
        self.conflicts
    }
}

/// Cuts a batch into what the cursor says is stored, and what is not.
fn split(batch: ActionBatch, cursor: i64) -> Vec<(ActionBatch, bool)> {
    let ActionBatch { source, mut first_seq, mut actions } = batch;
    let mut parts = Vec::new();
    while first_seq <= cursor && !actions.is_empty() {
        let known = usize::try_from(cursor - first_seq + 1).unwrap_or(usize::MAX);
        let rest = actions.split_off(known.min(MAX_COMPARED).min(actions.len()));
        let count = i64::try_from(actions.len()).unwrap_or(0);
        parts.push((ActionBatch { source: source.clone(), first_seq, actions }, true));
        first_seq += count;
        actions = rest;
    }
    if !actions.is_empty() {
        parts.push((ActionBatch { source, first_seq, actions }, false));
    }
    parts
}

fn first_conflict(receipt: &SessionReceipt) -> Option<(String, i64)> {
    receipt.tracks.iter().find_map(|track| {
        let mut rejections = track.rejections.iter();
        let conflict = rejections.find(|rejection| rejection.reason() == RejectionReason::Conflict)?;
        Some((track.source.clone(), conflict.seq))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Action, Rejection, SessionEnd, SessionStart, TrackReceipt};

    fn message(event: Event) -> StreamActionsRequest {
        StreamActionsRequest { session_id: "s".to_owned(), event: Some(event) }
    }

    fn batch(first_seq: i64, count: usize) -> StreamActionsRequest {
        message(Event::Batch(ActionBatch {
            source: "main".to_owned(),
            first_seq,
            actions: vec![Action::default(); count],
        }))
    }

    fn taken(cursor: i64, count: usize) -> Sorting {
        let mut sorting = Sorting::default();
        let cursors = Cursors::from([("main".to_owned(), cursor)]);
        sorting.take(message(Event::Start(SessionStart::default())), Some(cursors));
        sorting.take(batch(1, count), None);
        sorting.take(message(Event::End(SessionEnd::default())), None);
        sorting
    }

    /// What may be sent now, in short.
    fn sent(sorting: &mut Sorting) -> (Vec<Piece>, Vec<String>) {
        let pieces: Vec<_> = std::iter::from_fn(|| sorting.next()).collect();
        let short = pieces.iter().map(|piece| match &piece.message.event {
            Some(Event::Start(_)) => "start".to_owned(),
            Some(Event::Batch(batch)) => format!("{}+{}", batch.first_seq, batch.actions.len()),
            _ => "end".to_owned(),
        });
        let short = short.collect();
        (pieces, short)
    }

    fn receipt(conflict: bool) -> SessionReceipt {
        let rejection = Rejection { seq: 7, reason: RejectionReason::Conflict.into(), description: String::new() };
        let rejections = if conflict { vec![rejection] } else { Vec::new() };
        let track = TrackReceipt { source: "main".to_owned(), rejections, ..Default::default() };
        SessionReceipt { tracks: vec![track], ..Default::default() }
    }

    #[test]
    fn of_a_new_session_everything_is_sent_at_once() {
        assert_eq!(sent(&mut taken(0, 500)).1, ["start", "1+500", "end"]);
    }

    #[test]
    fn what_is_stored_is_compared_before_anything_is_added() {
        for (cursor, compared, added) in [
            (1, vec!["1+1"], vec!["start", "2+249", "end"]),
            (100, vec!["1+100"], vec!["start", "101+150", "end"]),
            (101, vec!["1+100", "101+1"], vec!["start", "102+149", "end"]),
            (250, vec!["1+100", "101+100", "201+50"], vec!["start", "end"]),
            (9_999, vec!["1+100", "101+100", "201+50"], vec!["start", "end"]),
        ] {
            let mut sorting = taken(cursor, 250);
            let (pieces, short) = sent(&mut sorting);
            assert_eq!(short, compared);
            for (index, piece) in pieces.iter().enumerate() {
                assert!(sent(&mut sorting).1.is_empty(), "after {index} receipts");
                sorting.receive(piece, &receipt(false));
            }
            assert_eq!(sent(&mut sorting).1, added);
            assert!(sorting.is_empty());
        }
    }

    #[test]
    fn after_a_conflict_nothing_is_added_to_that_session() {
        let mut sorting = taken(250, 300);
        let other = StreamActionsRequest { session_id: "other".to_owned(), ..batch(1, 1) };
        sorting.take(other, Some(Cursors::new()));
        let (pieces, _) = sent(&mut sorting);
        sorting.receive(&pieces[0], &receipt(false));
        sorting.receive(&pieces[1], &receipt(true));
        sorting.receive(&pieces[2], &receipt(true));
        sorting.take(batch(301, 5), None);
        sorting.finish();
        assert_eq!(sent(&mut sorting).1, ["1+1"], "of the other session");
        let conflict = Conflict { session_id: "s".to_owned(), source: "main".to_owned(), seq: 7 };
        assert_eq!(sorting.into_conflicts(), [conflict]);
    }

    #[test]
    fn a_start_is_sent_though_nothing_is_added() {
        let mut sorting = Sorting::default();
        let cursors = Cursors::from([("main".to_owned(), 3)]);
        sorting.take(message(Event::Start(SessionStart::default())), Some(cursors));
        sorting.finish();
        assert_eq!(sent(&mut sorting).1, ["start"]);
    }
}
