//! Requests, field by field.

use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

use super::{
    action::{latest_time, parse_batch, read_texts},
    filter::{parse_action_match, parse_session_filter},
    redact::Redaction,
    token::{PageToken, Scope},
    upload::{UploadEvent, UploadMessage},
};
use crate::{
    config::Limits,
    error::{Error, Result},
    model::{
        ActionSearch, DEFAULT_END_REASON, IngestEvent, LATEST_TIME, Pin, Position, SessionEnd, SessionId, SessionOrder,
        SessionPlace, SessionSearch, SessionStart, SessionUpdate, User,
    },
    playback::{Begin, Cursor, PlayRequest},
    proto,
};

/// How many types, sources or attribute keys a request may list.
pub(super) const MAX_LISTED: usize = 64;

/// The largest page of a list.
const MAX_PAGE_SIZE: u64 = 1_000;

/// The page of a list where none is asked for.
const DEFAULT_PAGE_SIZE: u64 = 50;

/// The highest speed of a playback.
const MAX_SPEED: f64 = 1_000.0;

/// Takes one message of an upload, without what must not be stored. `current` is the session that its stream started last.
pub fn parse_event(
    mut request: UploadMessage,
    current: Option<SessionId>,
    (limits, redaction): (&Limits, &Redaction),
    now: DateTime<Utc>,
) -> Result<IngestEvent> {
    // What is no text makes a message that cannot be decoded, whatever else it says.
    let actions = match &mut request.event {
        Some(UploadEvent::Batch(batch)) => read_texts(std::mem::take(&mut batch.actions))?,
        _ => Vec::new(),
    };
    let named = match request.session_id.as_str() {
        "" => None,
        id => Some(parse_session_id(id)?),
    };
    let known = || {
        named.or(current).ok_or_else(|| Error::invalid("session_id", "must be set: this stream has started no session"))
    };
    match request.event {
        None => Err(Error::invalid("event", "must be one of start, batch and end")),
        Some(UploadEvent::Start(start)) => Ok(IngestEvent::Start(parse_start(named, start, limits, now)?)),
        Some(UploadEvent::Batch(batch)) => {
            Ok(IngestEvent::Batch(parse_batch(known()?, batch, actions, (limits, redaction), now)?))
        }
        Some(UploadEvent::End(end)) => Ok(IngestEvent::End(parse_end(known()?, end, limits)?)),
    }
}

fn parse_start(
    named: Option<SessionId>,
    start: proto::SessionStart,
    limits: &Limits,
    now: DateTime<Utc>,
) -> Result<SessionStart> {
    let start_time = start.start_time.map(|time| {
        parse_timestamp(&time)
            .filter(|time| *time >= DateTime::UNIX_EPOCH)
            .map(|time| time.trunc_subsecs(3))
            .ok_or_else(|| Error::invalid("start.start_time", "malformed, or before 1970"))
    });
    let start_time = start_time.transpose()?;
    let id = named.unwrap_or_else(|| SessionId::mint(start_time.unwrap_or(now)));
    if start_time.is_some_and(|time| time != id.started_at()) {
        return Err(Error::invalid("start.start_time", "must agree with the time part of session_id, or be left out"));
    }
    if id.started_at() > latest_time(limits, now) {
        let field = if start_time.is_some() { "start.start_time" } else { "session_id" };
        return Err(Error::invalid(field, "the session starts too far ahead of the service's clock"));
    }
    check_attributes("start.attributes", &start.attributes, limits)?;
    let user = start.user.map(|user| parse_user("start.user", user, limits, now)).transpose()?;
    Ok(SessionStart { id, user, attributes: start.attributes.into_iter().collect() })
}

fn parse_end(id: SessionId, end: proto::SessionEnd, limits: &Limits) -> Result<SessionEnd> {
    let ended_at = optional_timestamp("end.end_time", end.end_time.as_ref())?;
    if ended_at.is_some_and(|time| time < id.started_at()) {
        return Err(Error::invalid("end.end_time", "must not be before the session's start"));
    }
    let reason = if end.reason.is_empty() { DEFAULT_END_REASON.to_owned() } else { end.reason };
    check_name("end.reason", &reason, limits.max_type_bytes)?;
    if end.last_seqs.len() > limits.max_tracks {
        return Err(Error::invalid("end.last_seqs", format!("at most {} entries", limits.max_tracks)));
    }
    for (source, last_seq) in &end.last_seqs {
        check_name("end.last_seqs", source, limits.max_type_bytes)?;
        if *last_seq < 0 {
            return Err(Error::invalid("end.last_seqs", "must not be negative"));
        }
    }
    Ok(SessionEnd { id, ended_at, reason, last_seqs: end.last_seqs.into_iter().collect() })
}

/// Takes a user. `field` is where it stands in the request.
pub fn parse_user(field: &str, user: proto::User, limits: &Limits, now: DateTime<Utc>) -> Result<User> {
    let id = parse_user_id(&format!("{field}.id"), user.id)?;
    let email = parse_user_email(&format!("{field}.email"), &user.email)?;
    check_text(&format!("{field}.name"), &user.name, 256)?;
    check_attributes(&format!("{field}.attributes"), &user.attributes, limits)?;
    Ok(User { id, email, name: user.name, attributes: user.attributes.into_iter().collect(), created_at: micros(now) })
}

/// Takes a user's id.
pub fn parse_user_id(field: &str, id: String) -> Result<String> {
    if id.is_empty() {
        return Err(Error::invalid(field, "must be set"));
    }
    check_text(field, &id, 256)?;
    Ok(id)
}

/// Takes an e-mail address, or the beginning of one, as it is stored and compared: in lower case, each letter by itself. (In
/// words, a sigma is another letter at the end than before, so that the beginning of an address would not be one.)
pub fn parse_user_email(field: &str, email: &str) -> Result<String> {
    check_text(field, email, 320)?;
    let lower = email.chars().flat_map(char::to_lowercase);
    Ok(lower.map(|letter| if letter == 'ς' { 'σ' } else { letter }).collect())
}

/// Takes a session's id.
pub fn parse_session_id(id: &str) -> Result<SessionId> {
    id.parse().map_err(|error| Error::invalid("session_id", format!("{error}")))
}

/// Takes a request for cursors: the session, and the source where one is asked for.
pub fn parse_cursor_request(
    request: proto::GetIngestCursorRequest,
    limits: &Limits,
) -> Result<(SessionId, Option<String>)> {
    let id = parse_session_id(&request.session_id)?;
    if request.source.is_empty() {
        return Ok((id, None));
    }
    check_name("source", &request.source, limits.max_type_bytes)?;
    Ok((id, Some(request.source)))
}

/// Takes a request for a playback.
pub fn parse_play(request: proto::PlaySessionRequest) -> Result<PlayRequest> {
    use proto::play_session_request::Begin as ProtoBegin;

    let session = parse_session_id(&request.session_id)?;
    let begin = match request.begin {
        None => Begin::FirstAction,
        Some(ProtoBegin::From(from)) => Begin::Offset(parse_duration("from", &from)?),
        Some(ProtoBegin::Cursor(cursor)) => Begin::Cursor(Cursor::decode(&cursor, session)?),
    };
    let until = request.until.map(|until| parse_duration("until", &until)).transpose()?;
    if let (Begin::Offset(from), Some(until)) = (&begin, until)
        && until <= *from
    {
        return Err(Error::invalid("until", "must be more than `from`"));
    }
    let speed = request.speed;
    if !(0.0..=MAX_SPEED).contains(&speed) {
        return Err(Error::invalid("speed", format!("must be from 0 to {MAX_SPEED}")));
    }
    let max_idle = request.max_idle.map(|idle| parse_duration("max_idle", &idle)).transpose()?;
    if max_idle == Some(Duration::ZERO) {
        return Err(Error::invalid("max_idle", "must be more than 0"));
    }
    for (field, list) in [("types", &request.types), ("sources", &request.sources)] {
        if list.len() > MAX_LISTED {
            return Err(Error::invalid(field, format!("at most {MAX_LISTED}")));
        }
        if list.iter().any(|name| name.is_empty() || name.contains('\0')) {
            return Err(Error::invalid(field, "must not be empty or contain NUL"));
        }
    }
    let (types, sources) = (request.types, request.sources);
    Ok(PlayRequest { session, begin, until, types, sources, speed, max_idle, follow: request.follow })
}

/// Takes a request for sessions. Gives the search, for one session more than the page has, the page's size and what its
/// tokens are bound to.
pub fn parse_list_sessions(request: proto::ListSessionsRequest) -> Result<(SessionSearch, u64, Scope)> {
    use proto::SessionOrder as Proto;

    let size = page_size(request.page_size)?;
    let order = match request.order_by() {
        Proto::Unspecified if request.order_by != 0 => return Err(Error::invalid("order_by", "is no order")),
        Proto::Unspecified | Proto::StartTime => SessionOrder::StartTime,
        Proto::Duration => SessionOrder::Duration,
        Proto::ActionCount => SessionOrder::ActionCount,
        Proto::ErrorCount => SessionOrder::ErrorCount,
        Proto::LastActionTime => SessionOrder::LastActionTime,
    };
    let (ascending, count_total) = (request.ascending, request.count_total);
    let scope = Scope::of_sessions(&request);
    let filter = parse_session_filter(request.filter)?;
    let after = PageToken::parse(&request.page_token, &scope, |place| parse_place(&place))?;
    Ok((SessionSearch { filter, order, ascending, after, limit: one_more(size), count_total }, size, scope))
}

/// One more than is asked for tells whether there is a next page.
fn one_more(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1)
}

fn parse_place(place: &str) -> Option<SessionPlace> {
    let (key, session) = place.split_once(' ')?;
    Some(SessionPlace { key: key.parse().ok()?, session: session.parse().ok()? })
}

/// A place as it is sealed in a page token.
#[must_use]
pub fn place_to_text(place: SessionPlace) -> String {
    format!("{} {}", place.key, place.session)
}

/// Takes a request for actions. Gives the search, for one action more than the page has, the page's size and what its tokens
/// are bound to.
pub fn parse_list_actions(request: proto::ListActionsRequest) -> Result<(ActionSearch, u64, Scope)> {
    let size = page_size(request.page_size)?;
    let scope = Scope::of_actions(&request);
    let filter = parse_session_filter(request.filter)?;
    let action = parse_action_match("match", request.r#match)?.unwrap_or_default();
    if !action.names_facets() && !filter.has_time_range() {
        let description = "give a type or a target, or both filter.started_after and filter.started_before";
        return Err(Error::invalid("match", description));
    }
    let after = PageToken::parse(&request.page_token, &scope, |place| parse_action_place(&place))?;
    Ok((ActionSearch { filter, action, after, limit: one_more(size) }, size, scope))
}

fn parse_action_place(place: &str) -> Option<(SessionId, Position)> {
    let mut parts = place.split(' ');
    let session = parts.next()?.parse().ok()?;
    let timestamp = DateTime::from_timestamp_micros(parts.next()?.parse().ok()?)?;
    let position = Position { timestamp, track: parts.next()?.parse().ok()?, seq: parts.next()?.parse().ok()? };
    Some((session, position)).filter(|_| parts.next().is_none() && timestamp <= LATEST_TIME)
}

/// An action's place as it is sealed in a page token.
#[must_use]
pub fn action_place_to_text(session: SessionId, position: Position) -> String {
    format!("{session} {} {} {}", position.timestamp.timestamp_micros(), position.track, position.seq)
}

/// What UpdateSession asks for.
pub struct SessionChanges {
    /// The session.
    pub session: SessionId,
    /// What is to change.
    pub update: SessionUpdate,
}

/// Takes the changes to a session.
pub fn parse_update_session(request: proto::UpdateSessionRequest, limits: &Limits) -> Result<SessionChanges> {
    let session = parse_session_id(&request.session_id)?;
    check_attributes("attributes", &request.attributes, limits)?;
    if request.removed_attributes.len() > MAX_LISTED {
        return Err(Error::invalid("removed_attributes", format!("at most {MAX_LISTED}")));
    }
    let pin = request.pin.map(parse_pin).transpose()?;
    let expiry = request.expiry.map(|expiry| optional_timestamp("expiry.expire_time", expiry.expire_time.as_ref()));
    let expires_at = expiry.transpose()?;
    let (removed, set) = (request.removed_attributes, request.attributes.into_iter().collect());
    Ok(SessionChanges { session, update: SessionUpdate { removed, set, pin, expires_at } })
}

fn parse_pin(pin: proto::Pin) -> Result<Option<Pin>> {
    check_text("pin.reason", &pin.reason, 256)?;
    let until = optional_timestamp("pin.expire_time", pin.expire_time.as_ref())?;
    if until.is_none() && !pin.reason.is_empty() {
        return Err(Error::invalid("pin.reason", "must be empty where expire_time is left out"));
    }
    Ok(until.map(|until| Pin { until, reason: pin.reason }))
}

/// The number of entries of a page.
pub fn page_size(asked: i32) -> Result<u64> {
    match u64::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
        Err(_) => Err(Error::invalid("page_size", "must not be negative")),
    }
}

/// A timestamp with microsecond precision, if it is one: from year 1 to 9999, nanos from 0 to 999,999,999.
pub(super) fn parse_timestamp(timestamp: &prost_types::Timestamp) -> Option<DateTime<Utc>> {
    const FIRST: i64 = -62_135_596_800;
    const LAST: i64 = 253_402_300_799;
    if !(FIRST..=LAST).contains(&timestamp.seconds) || !(0..1_000_000_000).contains(&timestamp.nanos) {
        return None;
    }
    let nanos = u32::try_from(timestamp.nanos).ok()?;
    DateTime::from_timestamp(timestamp.seconds, nanos).map(micros)
}

/// PostgreSQL keeps microseconds.
fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    time.trunc_subsecs(6)
}

pub(super) fn optional_timestamp(
    field: &str,
    timestamp: Option<&prost_types::Timestamp>,
) -> Result<Option<DateTime<Utc>>> {
    let parse = |time| {
        parse_timestamp(time)
            .filter(|time| *time >= DateTime::UNIX_EPOCH)
            .ok_or_else(|| Error::invalid(field, "malformed, or before 1970"))
    };
    timestamp.map(parse).transpose()
}

/// A duration of at most the protobuf maximum, about 10,000 years.
pub(super) fn parse_duration(field: &str, duration: &prost_types::Duration) -> Result<Duration> {
    let parsed = match (u64::try_from(duration.seconds), u32::try_from(duration.nanos)) {
        (Ok(seconds), Ok(nanos)) if seconds <= 315_576_000_000 && nanos < 1_000_000_000 => {
            Some(Duration::new(seconds, nanos))
        }
        _ => None,
    };
    let parsed = parsed.filter(|parsed| TimeDelta::from_std(*parsed).is_ok());
    parsed.ok_or_else(|| Error::invalid(field, "malformed, or negative"))
}

fn check_attributes<'a>(
    field: &str,
    attributes: impl IntoIterator<Item = (&'a String, &'a String), IntoIter: ExactSizeIterator>,
    limits: &Limits,
) -> Result<()> {
    let attributes = attributes.into_iter();
    if attributes.len() > limits.max_attributes {
        return Err(Error::invalid(field, format!("has {}, the limit is {}", attributes.len(), limits.max_attributes)));
    }
    for (key, value) in attributes {
        if key.is_empty() || key.len() > limits.max_attribute_key_bytes {
            let limit = limits.max_attribute_key_bytes;
            return Err(Error::invalid(field, format!("keys must have from 1 to {limit} bytes")));
        }
        if value.len() > limits.max_attribute_value_bytes {
            let limit = limits.max_attribute_value_bytes;
            return Err(Error::invalid(field, format!("values must have at most {limit} bytes")));
        }
        if key.contains('\0') || value.contains('\0') {
            return Err(Error::invalid(field, "must not contain NUL"));
        }
    }
    Ok(())
}

/// Text for people: of limited size and without control characters.
pub(super) fn check_text(field: &str, text: &str, limit: usize) -> Result<()> {
    if text.len() > limit {
        return Err(Error::invalid(field, format!("has {} bytes, the limit is {limit}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, "must not contain control characters"));
    }
    Ok(())
}

/// Text for programs: a source, a reason.
pub(super) fn check_name(field: &str, name: &str, limit: usize) -> Result<()> {
    name_fault(name, limit).map_or(Ok(()), |fault| Err(Error::invalid(field, fault)))
}

/// What is wrong with a text for programs.
pub(super) fn name_fault(name: &str, limit: usize) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    if name.is_empty() {
        Some("must be set".to_owned())
    } else if name.len() > limit {
        Some(format!("has {} bytes, the limit is {limit}", name.len()))
    } else if name.bytes().all(allowed) {
        None
    } else {
        Some("must consist of ASCII letters, digits and _ . : / -".to_owned())
    }
}
