//! Actions on their way in. A bad action does not fail its batch: it becomes a [`RejectedAction`].

use bytestring::ByteString;
use chrono::{DateTime, TimeDelta, Utc};
use prost_types::Timestamp;

use super::{
    redact::{REDACTED, Redaction},
    request::{check_name, parse_timestamp},
    upload::{UploadAction, UploadBatch},
};
use crate::{
    config::Limits,
    error::{Error, Result},
    json,
    model::{
        Action, Batch, BatchAction, ContentDigest, DEFAULT_SOURCE, REJECTED_TYPE, RejectedAction, RejectionReason,
        SessionId,
    },
};

/// Types that begin with this belong to the service.
const RESERVED_TYPE_PREFIX: &str = "reel.";

/// Takes a batch, each action as it can be stored or as it is refused.
pub(super) fn parse_batch(
    session: SessionId,
    batch: UploadBatch,
    actions: Vec<SentAction>,
    (limits, redaction): (&Limits, &Redaction),
    now: DateTime<Utc>,
) -> Result<Batch> {
    let source = if batch.source.is_empty() { DEFAULT_SOURCE.to_owned() } else { batch.source };
    check_name("batch.source", &source, limits.max_type_bytes)?;
    let first_seq = match batch.first_seq {
        0 => None,
        seq if seq > 0 => Some(seq),
        _ => return Err(Error::invalid("batch.first_seq", "must not be negative")),
    };
    if batch.action_count > limits.max_batch_actions {
        let limit = limits.max_batch_actions;
        return Err(Error::invalid("batch.actions", format!("has {}, the limit is {limit}", batch.action_count)));
    }
    let latest = latest_time(limits, now);
    // A rejected action without a usable time of its own stands beside its neighbour.
    let mut neighbour = first_time(&actions, latest).unwrap_or_else(|| session.started_at());
    let parsed = actions.into_iter().map(|action| {
        let action = parse_action(action, limits, redaction, latest, neighbour);
        neighbour = match &action {
            BatchAction::Valid(action) => action.timestamp,
            BatchAction::Rejected(rejected) => rejected.placeholder.timestamp,
        };
        action
    });
    let actions = parsed.collect();
    Ok(Batch { session, source, first_seq, actions })
}

/// The latest timestamp that is accepted.
pub(super) fn latest_time(limits: &Limits, now: DateTime<Utc>) -> DateTime<Utc> {
    let lead = TimeDelta::from_std(limits.max_clock_lead).unwrap_or(TimeDelta::MAX);
    now.checked_add_signed(lead).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn first_time(actions: &[SentAction], latest: DateTime<Utc>) -> Option<DateTime<Utc>> {
    actions.iter().find_map(|action| accepted_time(action.timestamp.as_ref(), latest).ok())
}

/// An action whose texts are texts.
pub(super) struct SentAction {
    timestamp: Option<Timestamp>,
    kind: ByteString,
    target: ByteString,
    data: ByteString,
}

/// Takes the texts of actions for texts, if they all are.
pub(super) fn read_texts(actions: Vec<UploadAction>) -> Result<Vec<SentAction>> {
    actions.into_iter().map(SentAction::read).collect()
}

impl SentAction {
    fn read(action: UploadAction) -> Result<Self> {
        let text = |bytes| ByteString::try_from(bytes).map_err(|_| Error::Undecodable);
        let UploadAction { timestamp, kind, target, data } = action;
        Ok(Self { timestamp, kind: text(kind)?, target: text(target)?, data: text(data)? })
    }
}

fn parse_action(
    action: SentAction,
    limits: &Limits,
    redaction: &Redaction,
    latest: DateTime<Utc>,
    neighbour: DateTime<Utc>,
) -> BatchAction {
    match check_action(&action, limits, latest) {
        Ok(timestamp) => {
            let target = redact_target(&action.target, limits, redaction);
            let data = redaction.data(&action.data);
            BatchAction::Valid(Action {
                timestamp,
                kind: action.kind,
                target: target.map_or(action.target, ByteString::from),
                data: data.map_or(action.data, ByteString::from),
            })
        }
        Err((reason, description)) => {
            let timestamp = accepted_time(action.timestamp.as_ref(), latest).unwrap_or(neighbour);
            let digests = digests(&action, limits, redaction);
            BatchAction::Rejected(reject(&action, reason, description, timestamp, digests))
        }
    }
}

/// A target without what must not be stored, if there is such in it. Where that makes it too long, nothing of it is left.
fn redact_target(target: &str, limits: &Limits, redaction: &Redaction) -> Option<String> {
    let redacted = redaction.text(target)?;
    let is_too_long = redacted.len() > limits.max_target_bytes && target.len() <= limits.max_target_bytes;
    Some(if is_too_long { REDACTED.to_owned() } else { redacted })
}

type Fault = (RejectionReason, String);

fn check_action(action: &SentAction, limits: &Limits, latest: DateTime<Utc>) -> Result<DateTime<Utc>, Fault> {
    let size = size(action);
    if size > limits.max_action_bytes {
        let limit = limits.max_action_bytes;
        return Err((RejectionReason::TooLarge, format!("the action has {size} bytes, the limit is {limit}")));
    }
    let timestamp = accepted_time(action.timestamp.as_ref(), latest)?;
    // What stands in the place of an action that was refused comes back when it was exported and is imported.
    if ContentDigest::of_refused(&action.kind, &action.target, &action.data).is_none() {
        check_type(&action.kind, limits.max_type_bytes)
            .map_err(|description| (RejectionReason::InvalidType, description))?;
    }
    check_target(&action.target, limits.max_target_bytes)
        .map_err(|description| (RejectionReason::InvalidTarget, description))?;
    check_json(&action.data, limits.max_json_depth)
        .map_err(|description| (RejectionReason::InvalidData, description))?;
    Ok(timestamp)
}

fn size(action: &SentAction) -> usize {
    action.kind.len() + action.target.len() + action.data.len()
}

fn accepted_time(timestamp: Option<&Timestamp>, latest: DateTime<Utc>) -> Result<DateTime<Utc>, Fault> {
    let fault = |description: String| (RejectionReason::InvalidTimestamp, description);
    let timestamp = timestamp.ok_or_else(|| fault("timestamp: must be set".to_owned()))?;
    let timestamp = parse_timestamp(timestamp).ok_or_else(|| fault("timestamp: malformed".to_owned()))?;
    if timestamp < DateTime::UNIX_EPOCH {
        return Err(fault("timestamp: must not be before 1970".to_owned()));
    }
    if timestamp > latest {
        return Err(fault("timestamp: too far ahead of the service's clock".to_owned()));
    }
    Ok(timestamp)
}

fn check_type(kind: &str, limit: usize) -> Result<(), String> {
    if kind.starts_with(RESERVED_TYPE_PREFIX) {
        return Err(format!("type: types that begin with {RESERVED_TYPE_PREFIX} belong to the service"));
    }
    super::request::name_fault(kind, limit).map_or(Ok(()), |fault| Err(format!("type: {fault}")))
}

fn check_target(target: &str, limit: usize) -> Result<(), String> {
    if target.len() > limit {
        return Err(format!("target: has {} bytes, the limit is {limit}", target.len()));
    }
    if target.contains('\0') { Err("target: must not contain NUL".to_owned()) } else { Ok(()) }
}

/// Checks the syntax and nothing else: lone surrogates, huge numbers and duplicate keys are kept as they are.
fn check_json(data: &str, max_depth: usize) -> Result<(), String> {
    if data.is_empty() {
        return Ok(());
    }
    json::check(data, max_depth).map_err(|fault| match fault {
        json::Fault::TooDeep => format!("data: nested deeper than {max_depth}"),
        json::Fault::Syntax(at) => {
            let (line, column) = json::line_and_column(data, at);
            format!("data: not JSON, at line {line} column {column}")
        }
    })
}

fn reject(
    action: &SentAction,
    reason: RejectionReason,
    description: String,
    timestamp: DateTime<Utc>,
    (digest, digest_as_sent): (ContentDigest, Option<ContentDigest>),
) -> RejectedAction {
    let data = serde_json::json!({
        "reason": reason.name(),
        "description": description,
        "size_bytes": size(action),
        "sha256": digest.to_string(),
    });
    let placeholder = Action {
        timestamp,
        kind: ByteString::from_static(REJECTED_TYPE),
        target: ByteString::new(),
        data: data.to_string().into(),
    };
    RejectedAction { reason, description, digest, digest_as_sent, placeholder }
}

/// The same digest as [`Action::digest`] where the timestamp can be told, so that a resent action is recognised even if it
/// would be accepted now: after redaction, as what is accepted is. And the one before redaction, if it is another.
fn digests(action: &SentAction, limits: &Limits, redaction: &Redaction) -> (ContentDigest, Option<ContentDigest>) {
    let timestamp = match (&action.timestamp, action.timestamp.as_ref().and_then(parse_timestamp)) {
        (_, Some(timestamp)) => timestamp.timestamp_micros().to_be_bytes().to_vec(),
        (Some(malformed), None) => {
            [malformed.seconds.to_be_bytes().as_slice(), &malformed.nanos.to_be_bytes()].concat()
        }
        (None, None) => Vec::new(),
    };
    let as_sent = ContentDigest::of(&timestamp, &action.kind, &action.target, &action.data);
    let target = redact_target(&action.target, limits, redaction);
    // What is no JSON has neither names nor paths. It is never accepted; its digest must not give away what matches all the same.
    let data = match json::check(&action.data, usize::MAX) {
        Ok(()) => redaction.data(&action.data),
        Err(_) => redaction.text(&action.data),
    };
    if target.is_none() && data.is_none() {
        return (as_sent, None);
    }
    let (target, data) = (target.as_deref().unwrap_or(&action.target), data.as_deref().unwrap_or(&action.data));
    (ContentDigest::of(&timestamp, &action.kind, target, data), Some(as_sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_checked_by_grammar_alone() {
        for right in [
            "",
            "null",
            " 1 ",
            "1e400",
            "9223372036854775808",
            r#""\u0000""#,
            r#""\ud800""#,
            r#"{"a":1,"a":2}"#,
            "[]",
            r#""[[[""#,
            r#""\"[""#,
        ] {
            assert_eq!(check_json(right, 1), Ok(()), "{right}");
        }
        for wrong in [" ", "nul", "{", "[1,]", "{'a':1}", "\"\0\"", "\"\u{1}\"", "1 2", "01", "NaN", r#""\ud80""#, "]"]
        {
            assert!(check_json(wrong, 8).is_err(), "{wrong}");
        }
    }

    #[test]
    fn depth_is_allowed_up_to_the_limit() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check_json(&nested(128), 128), Ok(()));
        assert!(check_json(&nested(129), 128).is_err());
        assert!(check_json(&nested(1_000_000), 128).is_err());
    }
}
