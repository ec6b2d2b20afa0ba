//! Values that must not be stored: found by name, by path or by pattern, and replaced before anything else sees them.
//!
//! What is not replaced keeps its bytes. The walk goes over JSON that was checked before, once, without recursion.

mod text;

use std::{borrow::Cow, collections::HashSet, str::FromStr};

use regex::Regex;

use self::text::Text;
use crate::model::{DataPath, DataStep};

/// What stands where a value was.
pub(super) const REDACTED: &str = "[redacted]";

/// Which values are replaced.
#[derive(Clone, Debug)]
pub enum RedactionRule {
    /// Those of every field of this name, in any letter case, however deep.
    Name(String),
    /// The one at this place.
    Path(DataPath),
    /// What of a text matches this, in data and in targets; and numbers that do.
    Pattern(Regex),
}

/// The text is no rule.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRule {
    /// It says nothing, or matches everything.
    #[error(
        "must be a name, a path such as $.card.number, or a pattern such as /[0-9]{{16}}/ that does not match nothing"
    )]
    Empty,
    /// It begins like a path.
    #[error("not a path: {0}")]
    Path(#[from] crate::model::NotAPath),
    /// It begins and ends like a pattern.
    #[error("not a pattern: {0}")]
    Pattern(#[from] regex::Error),
}

impl FromStr for RedactionRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        if text.starts_with('$') {
            return Ok(Self::Path(text.parse()?));
        }
        if let Some(pattern) = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
            let pattern = Regex::new(pattern)?;
            return if pattern.is_match("") { Err(InvalidRule::Empty) } else { Ok(Self::Pattern(pattern)) };
        }
        if text.trim().is_empty() { Err(InvalidRule::Empty) } else { Ok(Self::Name(text.to_lowercase())) }
    }
}

/// All rules, made ready.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    names: HashSet<String>,
    paths: Vec<DataPath>,
    patterns: Vec<Regex>,
}

impl FromIterator<RedactionRule> for Redaction {
    fn from_iter<I: IntoIterator<Item = RedactionRule>>(rules: I) -> Self {
        let mut redaction = Self::default();
        for rule in rules {
            match rule {
                RedactionRule::Name(name) => {
                    redaction.names.insert(name);
                }
                RedactionRule::Path(path) => redaction.paths.push(path),
                RedactionRule::Pattern(pattern) => redaction.patterns.push(pattern),
            }
        }
        redaction
    }
}

impl Redaction {
    /// JSON without what must not be stored. None where there is nothing such in it. It has been checked.
    pub(super) fn data(&self, json: &str) -> Option<String> {
        if self.names.is_empty() && self.paths.is_empty() && self.patterns.is_empty() {
            return None;
        }
        Walk { rules: self, json, at: 0, copied: 0, output: String::new(), trail: Vec::new(), open: Vec::new() }.run()
    }

    /// A text without what matches a pattern. None where nothing does.
    pub(super) fn text(&self, text: &str) -> Option<String> {
        let mut redacted = Cow::Borrowed(text);
        for pattern in &self.patterns {
            if let Cow::Owned(changed) = pattern.replace_all(&redacted, REDACTED) {
                redacted = Cow::Owned(changed);
            }
        }
        match redacted {
            Cow::Owned(redacted) => Some(redacted),
            Cow::Borrowed(_) => None,
        }
    }

    fn is_named(&self, trail: &[DataStep<'_>]) -> bool {
        let is_name = !self.names.is_empty()
            && matches!(trail.last(), Some(DataStep::Name(name)) if self.names.contains(&name.to_lowercase()));
        is_name || self.paths.iter().any(|path| path.is(trail))
    }
}

/// What is open around a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// An object, in which a name comes next.
    Names,
    /// An object, in which a value comes next.
    Value,
    Array,
}

struct Walk<'a> {
    rules: &'a Redaction,
    json: &'a str,
    at: usize,
    /// How far the output has the input.
    copied: usize,
    output: String,
    /// Where `at` is.
    trail: Vec<DataStep<'a>>,
    open: Vec<Open>,
}

impl<'a> Walk<'a> {
    fn run(mut self) -> Option<String> {
        while let Some(byte) = self.peek() {
            match (byte, self.open.last()) {
                (b',', Some(Open::Array)) => {
                    if let Some(DataStep::Index(index)) = self.trail.last_mut() {
                        *index += 1;
                    }
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\n' | b'\r' | b':' | b',', _) => self.at += 1,
                (b'}', _) => self.close(),
                (b']', _) => {
                    self.trail.pop();
                    self.close();
                }
                (b'"', Some(Open::Names)) => {
                    let name = self.string();
                    self.trail.push(DataStep::Name(Text::read(inner(name)).said));
                    self.expect(Open::Value);
                }
                _ => self.value(byte),
            }
        }
        (self.copied > 0).then(|| {
            self.output.push_str(self.json.get(self.copied..).unwrap_or_default());
            self.output
        })
    }

    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn value(&mut self, first: u8) {
        let from = self.at;
        if self.rules.is_named(&self.trail) {
            self.skip();
            self.replace(from, &format!("\"{REDACTED}\""));
            return self.ended();
        }
        match first {
            b'{' => {
                self.at += 1;
                self.open.push(Open::Names);
            }
            b'[' => {
                self.at += 1;
                self.open.push(Open::Array);
                self.trail.push(DataStep::Index(0));
            }
            b'"' => {
                let written = inner(self.string());
                if let Some(redacted) = text::redact(&self.rules.patterns, written) {
                    self.replace(from, &format!("\"{redacted}\""));
                }
                self.ended();
            }
            _ => {
                self.skip();
                let scalar = self.json.get(from..self.at).unwrap_or_default();
                if self.rules.text(scalar).is_some() {
                    self.replace(from, &format!("\"{REDACTED}\""));
                }
                self.ended();
            }
        }
    }

    /// An object or an array is over.
    fn close(&mut self) {
        self.at += 1;
        self.open.pop();
        self.ended();
    }

    /// A value is over.
    fn ended(&mut self) {
        if self.open.last() == Some(&Open::Value) {
            self.trail.pop();
            self.expect(Open::Names);
        }
    }

    fn expect(&mut self, next: Open) {
        if let Some(last) = self.open.last_mut() {
            *last = next;
        }
    }

    /// Goes over a string. Gives it with its quotes.
    fn string(&mut self) -> &'a str {
        let from = self.at;
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += match byte {
                b'"' => break,
                b'\\' => 2,
                _ => 1,
            };
        }
        self.at = (self.at + 1).min(self.json.len());
        self.json.get(from..self.at).unwrap_or_default()
    }

    /// Goes over a value, whatever is in it.
    fn skip(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.string();
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return,
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn replace(&mut self, from: usize, replacement: &str) {
        self.output.push_str(self.json.get(self.copied..from).unwrap_or_default());
        self.output.push_str(replacement);
        self.copied = self.at;
    }
}

/// A string of JSON without its quotes.
fn inner(quoted: &str) -> &str {
    quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
    use serde_json::{Value, json};

    use super::*;

    fn redaction(rules: &[&str]) -> Redaction {
        rules.iter().map(|rule| rule.parse::<RedactionRule>().expect("a rule")).collect()
    }

    #[test]
    fn values_are_replaced_and_everything_else_keeps_its_bytes() {
        let rules = redaction(&["password", "$.card.number", "$.list[1]", "/[0-9]{4}-[0-9]{4}/", "$[\"a.b\"]"]);
        for (json, redacted) in [
            (r#"{"password": "x", "b" : 1.50}"#, r#"{"password": "[redacted]", "b" : 1.50}"#),
            (r#"{"user":{"PassWord":{"a":["}"]}},"c":[]}"#, r#"{"user":{"PassWord":"[redacted]"},"c":[]}"#),
            (r#"{"p\u0061ssword":null}"#, r#"{"p\u0061ssword":"[redacted]"}"#),
            (
                r#"{"card":{"number":4,"name":"n"},"number":5}"#,
                r#"{"card":{"number":"[redacted]","name":"n"},"number":5}"#,
            ),
            (r#" {"list":[1, [2,3] ,4]}"#, r#" {"list":[1, "[redacted]" ,4]}"#),
            (r#"["my 1234-5678 \"card\"", "\ud800"]"#, r#"["my [redacted] \"card\"", "\ud800"]"#),
            (r#"{"a.b":true}"#, r#"{"a.b":"[redacted]"}"#),
            (r#"[{"password":1},{"password":[]}]"#, r#"[{"password":"[redacted]"},{"password":"[redacted]"}]"#),
            (r#""1234-5678""#, r#""[redacted]""#),
        ] {
            assert_eq!(rules.data(json).as_deref(), Some(redacted), "{json}");
        }
        for kept in [
            "",
            "1",
            "null",
            r#"{"pass":"word"}"#,
            r#"{"a":{"card":{"number":4}}}"#,
            r#"["password"]"#,
            r#"{"list":[1]}"#,
        ] {
            assert_eq!(rules.data(kept), None, "{kept}");
        }
        assert_eq!(redaction(&[]).data(r#"{"password":1}"#), None);
        assert_eq!(
            redaction(&["/^4[0-9]{3}$/"]).data(r#"{"n":4111,"m":5111}"#).as_deref(),
            Some(r#"{"n":"[redacted]","m":5111}"#)
        );
        assert_eq!(redaction(&["$"]).data("[1]").as_deref(), Some("\"[redacted]\""));
        let deep = format!("{}{}", "[".repeat(4_000), "]".repeat(4_000));
        assert_eq!(rules.data(&deep), None);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for wrong in ["", " ", "$card", "$.a[", "/(/", "//", "/.*/", "/x?/"] {
            assert!(wrong.parse::<RedactionRule>().is_err(), "{wrong}");
        }
    }

    /// A plain way to the same.
    fn model(value: Value, is_named: bool) -> Value {
        match value {
            _ if is_named => json!(REDACTED),
            Value::Object(entries) => entries
                .into_iter()
                .map(|(name, value)| {
                    let is = name == "secret";
                    (name, model(value, is))
                })
                .collect(),
            Value::Array(values) => values.into_iter().map(|value| model(value, false)).collect(),
            Value::String(text) => json!(text.replace("42", REDACTED)),
            other => other,
        }
    }

    fn random_value(rng: &mut StdRng, depth: u32) -> Value {
        match rng.random_range(0..if depth == 0 { 4 } else { 6 }) {
            0 => json!(null),
            1 => json!(rng.random_bool(0.5)),
            2 => json!(rng.random_range(-3..3)),
            3 => json!(["42", "a42b\"", "\\u0034\n", "}{][,:", "é🎬", ""][rng.random_range(0..6)]),
            4 => (0..rng.random_range(0..4)).map(|_| random_value(rng, depth - 1)).collect(),
            _ => {
                let names = ["secret", "a", "b\"c", "{\\", ""];
                (0..rng.random_range(0..4))
                    .map(|_| (names[rng.random_range(0..5)].to_owned(), random_value(rng, depth - 1)))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }
        }
    }

    #[test]
    fn random_data_is_redacted_as_a_plain_model_does_it() {
        let rules = redaction(&["SECRET", "/42/"]);
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..4_000 {
            let value = random_value(&mut rng, 4);
            let text = if rng.random_bool(0.5) { value.to_string() } else { format!("{value:#}") };
            let redacted = rules.data(&text).unwrap_or_else(|| text.clone());
            let redacted: Value = serde_json::from_str(&redacted).unwrap_or_else(|error| panic!("{error}: {redacted}"));
            assert_eq!(redacted, model(value, false), "{text}");
        }
    }
}
