//! One action of a recording, before it is known where it goes: a line of JSON Lines, or an rrweb event.

use std::{borrow::Cow, collections::HashMap};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{
    archive::TableRow,
    cli::time,
    model::{DEFAULT_SOURCE, SessionId},
    proto::{Action, User},
};

/// The type of actions that are rrweb events.
const RRWEB_TYPE: &str = "rrweb";

/// One action and what the recording says of its session.
pub(in crate::cli) struct Entry<'a> {
    /// The session's id or name.
    pub(in crate::cli) session: Cow<'a, str>,
    /// The session's id, where it is not made of its start, name and user.
    pub(in crate::cli) id: Option<SessionId>,
    /// Whoever the session belongs to, where this line says so.
    pub(in crate::cli) user: Option<User>,
    /// What else this line says of the session, if it does.
    pub(in crate::cli) about: Option<About>,
    /// The track.
    pub(in crate::cli) source: Cow<'a, str>,
    /// Its number on the track, where the recording has one: 1 or more.
    pub(in crate::cli) seq: Option<i64>,
    /// What happened. None where the line is about the session only.
    pub(in crate::cli) action: Option<(i64, Action)>,
}

/// What a recording says of a session, beside its actions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct About {
    /// Its attributes.
    pub(in crate::cli) attributes: HashMap<String, String>,
    /// When it ended, in microseconds since 1970, and why. None where it goes on.
    pub(in crate::cli) end: Option<(i64, String)>,
}

#[derive(Deserialize)]
#[serde(expecting = "an action, as a JSON object")]
struct Line<'a> {
    #[serde(borrow)]
    session: Cow<'a, str>,
    user: Option<LineUser>,
    #[serde(borrow)]
    source: Option<Cow<'a, str>>,
    seq: Option<i64>,
    /// Only where the line is about the session, and about no action.
    attributes: Option<HashMap<String, String>>,
    end: Option<LineEnd<'a>>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    r#type: Option<String>,
    target: Option<String>,
    #[serde(borrow, default, deserialize_with = "raw")]
    data: Option<&'a RawValue>,
    /// The same as a text, where it cannot be a part of the line.
    data_text: Option<String>,
}

#[derive(Deserialize)]
#[serde(expecting = "`end` must be an object with a timestamp and a reason")]
struct LineEnd<'a> {
    #[serde(borrow)]
    timestamp: &'a RawValue,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`user` must be an id, or an object with one and texts")]
enum LineUser {
    Id(String),
    User {
        id: String,
        #[serde(default)]
        email: String,
        #[serde(default)]
        name: String,
        #[serde(default)]
        attributes: HashMap<String, String>,
    },
}

/// Takes `null` for the data that it is, and not for none.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

impl<'a> Entry<'a> {
    /// Reads a line of JSON Lines. Says for people what is wrong with it.
    pub(in crate::cli) fn from_line(line: &'a [u8]) -> Result<Self, String> {
        let line: Line<'a> = serde_json::from_slice(line).map_err(|error| describe(&error))?;
        if line.session.is_empty() {
            return Err("`session` must not be empty".to_owned());
        }
        if line.seq.is_some_and(|seq| seq < 1) {
            return Err("`seq` must be 1 or more".to_owned());
        }
        let action = match (line.r#type, line.timestamp) {
            (Some(kind), Some(timestamp)) => {
                let micros = micros(timestamp)?;
                let data = line.data.map(RawValue::get).or(line.data_text.as_deref()).unwrap_or_default();
                Some((micros, action(micros, kind, line.target.unwrap_or_default(), data)))
            }
            (None, None) if line.attributes.is_some() => None,
            (None, _) => return Err("missing field `type`".to_owned()),
            (_, None) => return Err("missing field `timestamp`".to_owned()),
        };
        let about = match (line.attributes, line.end) {
            (None, None) => None,
            (attributes, end) => Some(About {
                attributes: attributes.unwrap_or_default(),
                end: end.map(|end| Ok::<_, String>((micros(end.timestamp)?, end.reason))).transpose()?,
            }),
        };
        let user = line.user.map(|user| match user {
            LineUser::Id(id) => User { id, ..User::default() },
            LineUser::User { id, email, name, attributes } => User { id, email, name, attributes, create_time: None },
        });
        let source = line.source.filter(|source| !source.is_empty()).unwrap_or(Cow::Borrowed(DEFAULT_SOURCE));
        let user = user.filter(|user| !user.id.is_empty());
        Ok(Self { session: line.session, id: None, user, about, source, seq: line.seq, action })
    }

    /// Takes a row of a table. Says for people what is wrong with it.
    pub(in crate::cli) fn from_row(row: TableRow) -> Result<Entry<'static>, String> {
        if row.session.is_empty() {
            return Err("session_id must not be empty".to_owned());
        }
        if row.seq.is_some_and(|seq| seq < 1) {
            return Err("seq must be 1 or more".to_owned());
        }
        let attributes = |json: Option<String>| match json {
            None => Ok(HashMap::new()),
            Some(json) => serde_json::from_str(&json).map_err(|error| describe(&error)),
        };
        let end = row.ended_at.map(|ended_at| (ended_at, row.end_reason.unwrap_or_default()));
        let about = match row.session_attributes {
            None => None,
            given => Some(About { attributes: attributes(given)?, end }),
        };
        let user = match row.user_id.filter(|id| !id.is_empty()) {
            None => None,
            Some(id) => Some(User {
                id,
                email: row.user_email.unwrap_or_default(),
                name: row.user_name.unwrap_or_default(),
                attributes: attributes(row.user_attributes)?,
                create_time: None,
            }),
        };
        let action = match (row.kind, row.timestamp) {
            (Some(kind), Some(micros)) => {
                let data = row.data.unwrap_or_default();
                Some((micros, action(micros, kind, row.target.unwrap_or_default(), &data)))
            }
            (None, None) if about.is_some() => None,
            _ => return Err("timestamp and type must both be there".to_owned()),
        };
        let source = row.source.filter(|source| !source.is_empty());
        let source = source.map_or(Cow::Borrowed(DEFAULT_SOURCE), Cow::Owned);
        Ok(Entry { session: Cow::Owned(row.session), id: None, user, about, source, seq: row.seq, action })
    }

    /// Takes an rrweb event of the session of this name and id. Says for people what is wrong with it.
    pub(in crate::cli) fn from_rrweb(
        session: &'a str,
        id: Option<SessionId>,
        event: &RawValue,
    ) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(expecting = "an rrweb event, as a JSON object")]
        struct Event<'a> {
            #[serde(borrow)]
            timestamp: &'a RawValue,
        }
        let Event { timestamp } = serde_json::from_str(event.get()).map_err(|error| describe(&error))?;
        let micros = micros(timestamp)?;
        Ok(Self {
            session: Cow::Borrowed(session),
            id,
            user: None,
            about: None,
            source: Cow::Borrowed(DEFAULT_SOURCE),
            seq: None,
            action: Some((micros, action(micros, RRWEB_TYPE.to_owned(), String::new(), event.get()))),
        })
    }
}

fn micros(timestamp: &RawValue) -> Result<i64, String> {
    let json = timestamp.get();
    let read = if json.starts_with('"') {
        serde_json::from_str::<Cow<'_, str>>(json).ok().and_then(|text| time::micros_from_text(&text))
    } else {
        time::micros_from_json(json)
    };
    read.ok_or_else(|| "`timestamp` must be Unix milliseconds, or RFC 3339, in the years 1970 to 9999".to_owned())
}

fn action(micros: i64, kind: String, target: String, data: &str) -> Action {
    let timestamp = Some(time::to_proto(micros));
    Action { timestamp, r#type: kind, target, data: data.to_owned(), seq: 0, source: String::new() }
}

/// What is wrong with a line. serde counts lines from the line's own beginning, which would mislead.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let fault = text.rsplit_once(" at line ").map_or(text.as_str(), |(fault, _)| fault);
    format!("{fault} (column {})", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Entry<'_>, String> {
        Entry::from_line(text.as_bytes())
    }

    #[test]
    fn data_is_kept_as_it_stands_in_the_file() {
        for data in ["null", "{ \"a\" : 1.0,\"a\":2}", r#""\u0000\/""#, "1e400", "[]"] {
            let text = format!(r#"{{"session":"s","timestamp":1,"type":"t","data": {data} }}"#);
            assert_eq!(line(&text).map(|entry| entry.action.expect("an action").1.data), Ok(data.to_owned()));
        }
        let none = line(r#"{"session":"s","timestamp":1,"type":"t","unknown":[[]]}"#);
        assert_eq!(none.map(|entry| entry.action.expect("an action").1.data), Ok(String::new()));
    }

    #[test]
    fn a_user_is_an_id_or_an_object() {
        let user = |user: &str| {
            line(&format!(r#"{{"session":"s","timestamp":1,"type":"t","user":{user}}}"#))
                .map(|entry| entry.user.map(|user| (user.id, user.email)))
        };
        assert_eq!(user("null"), Ok(None));
        assert_eq!(user(r#""""#), Ok(None));
        assert_eq!(user(r#""ada""#), Ok(Some(("ada".to_owned(), String::new()))));
        let object = r#"{"id":"ada","email":"ada@example.com","attributes":{"plan":"free"}}"#;
        assert_eq!(user(object), Ok(Some(("ada".to_owned(), "ada@example.com".to_owned()))));
        assert!(user("7").is_err());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_column() {
        for (text, fault) in [
            ("{", "EOF while parsing an object (column 1)"),
            (r#"{"timestamp":1,"type":"t"}"#, "missing field `session` (column 26)"),
            (r#"{"session":"","timestamp":1,"type":"t"}"#, "`session` must not be empty"),
            (r#"{"session":"s","timestamp":1,"type":"t","seq":0}"#, "`seq` must be 1 or more"),
        ] {
            assert_eq!(line(text).err().as_deref(), Some(fault));
        }
        assert!(line(r#"{"session":"s","timestamp":-1,"type":"t"}"#).is_err());
        assert!(line(r#"{"session":"s","timestamp":"yesterday","type":"t"}"#).is_err());
    }
}
