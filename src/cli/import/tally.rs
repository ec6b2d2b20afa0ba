//! Counts what the service did with an import.

use std::fmt;

use indicatif::HumanCount;

use super::batches::ImportedSession;
use crate::proto::{Rejection, RejectionReason, SessionReceipt};

/// How many rejections are told.
const MAX_TOLD: usize = 10;

/// What the service did with the actions of a recording.
#[derive(Default)]
pub(in crate::cli) struct Tally {
    /// Newly stored.
    pub(in crate::cli) new_count: u64,
    /// Stored before.
    pub(in crate::cli) known_count: u64,
    /// Not stored as they were sent.
    pub(in crate::cli) rejected_count: u64,
    /// Of those stored before, the ones of which there is only a placeholder.
    pub(in crate::cli) placeholder_count: u64,
    /// Of the new ones, those that took the place of a placeholder.
    pub(in crate::cli) replaced_count: u64,
    rejected: Vec<Rejected>,
}

/// An action that was not stored as it was sent: now, or before.
struct Rejected {
    outcome: &'static str,
    session_id: String,
    source: String,
    rejection: Rejection,
}

impl Tally {
    /// Counts a receipt in.
    pub(super) fn add(&mut self, receipt: SessionReceipt) {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        for track in receipt.tracks {
            self.new_count += count(track.accepted_count);
            self.known_count += count(track.duplicate_count);
            self.rejected_count += count(track.rejected_count);
            self.placeholder_count += count(track.placeholder_count);
            self.replaced_count += count(track.replaced_count);
            for (outcome, listed) in [("rejected", track.rejections), ("still a placeholder", track.placeholders)] {
                let room = MAX_TOLD - self.rejected.len();
                self.rejected.extend(listed.into_iter().take(room).map(|rejection| Rejected {
                    outcome,
                    session_id: receipt.session_id.clone(),
                    source: track.source.clone(),
                    rejection,
                }));
            }
        }
    }

    /// Number of actions that the service has answered for.
    pub(in crate::cli) fn action_count(&self) -> u64 {
        self.new_count + self.known_count + self.rejected_count
    }

    /// What was not stored as it was sent, now or before. None where everything is.
    pub(super) fn fault(&self) -> Option<String> {
        let rejected =
            (self.rejected_count > 0).then(|| format!("{} rejected", counted(self.rejected_count, "action")));
        let kept = (self.placeholder_count > 0)
            .then(|| format!("{} stored as no more than a placeholder", counted(self.placeholder_count, "action")));
        let faults: Vec<_> = rejected.into_iter().chain(kept).collect();
        (!faults.is_empty()).then(|| faults.join(", "))
    }

    /// Adds what another recording came to.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.rejected_count += other.rejected_count;
        self.placeholder_count += other.placeholder_count;
    }

    /// A line for each of the first rejections and placeholders.
    pub(super) fn rejections(&self, sessions: &[ImportedSession]) -> impl Iterator<Item = String> {
        self.rejected.iter().map(|Rejected { outcome, session_id, source, rejection }| {
            let name = sessions.iter().find(|session| session.id.to_string() == *session_id);
            let name = name.map_or("", |session| &session.name);
            let reason = RejectionReason::try_from(rejection.reason).unwrap_or_default().as_str_name();
            let reason = reason.trim_start_matches("REJECTION_REASON_");
            let Rejection { seq, description, .. } = rejection;
            format!("  {outcome}: session {session_id} ({name}), source {source}, seq {seq}: {reason}: {description}")
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} new, {} already stored, {} rejected",
            counted(self.action_count(), "action"),
            HumanCount(self.new_count),
            HumanCount(self.known_count),
            HumanCount(self.rejected_count),
        )?;
        if self.replaced_count > 0 {
            write!(f, "; {} in the place of placeholders", HumanCount(self.replaced_count))?;
        }
        if self.placeholder_count > 0 {
            write!(f, "; {} still placeholders", HumanCount(self.placeholder_count))?;
        }
        Ok(())
    }
}

/// A number with its noun, as people write it.
pub(in crate::cli) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", HumanCount(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::TrackReceipt;

    #[test]
    fn receipts_are_added_up_and_the_first_rejections_told() {
        let mut tally = Tally::default();
        for seq in 1..=6 {
            let rejection = |seq| Rejection { seq, reason: 1, description: "differs".to_owned() };
            let track = TrackReceipt {
                source: "main".to_owned(),
                accepted_count: 1_000,
                duplicate_count: 1,
                rejected_count: 2,
                rejections: vec![rejection(seq * 2), rejection(seq * 2 + 1)],
                ..TrackReceipt::default()
            };
            let session_id = "id".to_owned();
            tally.add(SessionReceipt { session_id, tracks: vec![track], started: false, ended: false });
        }
        assert_eq!(tally.to_string(), "6,018 actions: 6,000 new, 6 already stored, 12 rejected");
        let told: Vec<_> = tally.rejections(&[]).collect();
        assert_eq!(told.len(), MAX_TOLD);
        assert_eq!(told[0], "  rejected: session id (), source main, seq 2: CONFLICT: differs");
    }
}
