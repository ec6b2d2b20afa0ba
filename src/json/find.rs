//! Reading single values of a JSON text, without building the others.

use std::borrow::Cow;

use super::{Fault, Nesting, Scanner};

/// A step on the way to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// Into the field of an object; of several with this name, the last.
    Name(&'a str),
    /// Into the element of an array, counted from 0.
    Index(usize),
}

/// A value, as far as anybody looks at it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// A text in UTF-8, but for escaped surrogates that stand alone: those are encoded as if they were characters (WTF-8).
    Text(Cow<'a, [u8]>),
    /// The double that is nearest; beyond all of them, an infinity.
    Number(f64),
    /// True or false.
    Boolean(bool),
    /// An array, the arrays in which are [`Value::Other`].
    Array(Vec<Value<'a>>),
    /// Null, an object, or an array in an array.
    Other,
}

/// The value at the end of these steps. None where there is none, and where the text is no JSON as far as it has to be read.
pub(crate) fn find<'a, 'p>(text: &'a str, path: impl IntoIterator<Item = Step<'p>>) -> Option<Value<'a>> {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    for step in path {
        if !scanner.step_into(step).ok()? {
            return None;
        }
    }
    scanner.read().ok()
}

impl<'a> Scanner<'a> {
    /// Goes to where the value of a step begins. False where there is none.
    fn step_into(&mut self, step: Step<'_>) -> Result<bool, Fault> {
        match (step, self.token()) {
            (Step::Name(name), Some(b'{')) => self.field(name),
            (Step::Index(index), Some(b'[')) => self.element(index),
            _ => Ok(false),
        }
    }

    fn field(&mut self, wanted: &str) -> Result<bool, Fault> {
        self.at += 1;
        let mut found = None;
        if self.token() == Some(b'}') {
            return Ok(false);
        }
        loop {
            if self.token() != Some(b'"') {
                return self.fault();
            }
            let name = self.text()?;
            self.expect(b':')?;
            if *name == *wanted.as_bytes() {
                found = Some(self.at);
            }
            self.pass()?;
            if !self.goes_on(b'}')? {
                break;
            }
        }
        self.at = found.unwrap_or(self.at);
        Ok(found.is_some())
    }

    fn element(&mut self, index: usize) -> Result<bool, Fault> {
        self.at += 1;
        if self.token() == Some(b']') {
            return Ok(false);
        }
        for _ in 0..index {
            self.pass()?;
            if !self.goes_on(b']')? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Passes over a comma, after which something comes, or over the end.
    fn goes_on(&mut self, end: u8) -> Result<bool, Fault> {
        match self.token() {
            Some(b',') => self.at += 1,
            Some(byte) if byte == end => return Ok(false),
            _ => return self.fault(),
        }
        Ok(true)
    }

    /// Passes over a value, however deep it is.
    fn pass(&mut self) -> Result<(), Fault> {
        self.whole_value(&mut Nesting::new(usize::MAX))
    }

    fn read(&mut self) -> Result<Value<'a>, Fault> {
        if self.token() != Some(b'[') {
            return self.read_scalar();
        }
        self.at += 1;
        let mut elements = Vec::new();
        if self.token() == Some(b']') {
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.read_scalar()?);
            if !self.goes_on(b']')? {
                return Ok(Value::Array(elements));
            }
        }
    }

    fn read_scalar(&mut self) -> Result<Value<'a>, Fault> {
        let first = self.token();
        let start = self.at;
        match first {
            Some(b'"') => return Ok(Value::Text(self.text()?)),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => {
                self.pass()?;
                return Ok(match first {
                    Some(b't') => Value::Boolean(true),
                    Some(b'f') => Value::Boolean(false),
                    _ => Value::Other,
                });
            }
        }
        let digits = self.bytes.get(start..self.at).and_then(|digits| std::str::from_utf8(digits).ok());
        // Whatever JSON calls a number is one.
        digits.and_then(|digits| digits.parse().ok()).map_or_else(|| self.fault(), |number| Ok(Value::Number(number)))
    }

    /// A string, without its quotes and escapes.
    fn text(&mut self) -> Result<Cow<'a, [u8]>, Fault> {
        let start = self.at + 1;
        self.string()?;
        let bytes: &'a [u8] = self.bytes;
        Ok(unescape(bytes.get(start..self.at - 1).unwrap_or_default()))
    }
}

/// What is between the quotes of a string, which was looked through before.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        plain.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        let Some((escape, after)) = rest.split_first() else { break };
        rest = after;
        match escape {
            b'b' => plain.push(8),
            b'f' => plain.push(12),
            b'n' => plain.push(b'\n'),
            b'r' => plain.push(b'\r'),
            b't' => plain.push(b'\t'),
            b'u' => rest = push_unit(&mut plain, rest),
            other => plain.push(*other),
        }
    }
    plain.extend_from_slice(rest);
    Cow::Owned(plain)
}

/// Decodes what comes after `\u`, with the second half of a pair where it follows. Gives what comes after it.
fn push_unit<'a>(plain: &mut Vec<u8>, text: &'a [u8]) -> &'a [u8] {
    let unit = |text: &[u8]| {
        let digits = text.get(..4).and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok())
    };
    let Some(first) = unit(text) else { return &[] };
    let rest = &text[4..];
    let second = rest.strip_prefix(b"\\u").and_then(unit).filter(|second| (0xDC00..0xE000).contains(second));
    if let (0xD800..0xDC00, Some(second)) = (first, second) {
        push_code(plain, 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00));
        return &rest[6..];
    }
    push_code(plain, first);
    rest
}

#[allow(clippy::cast_possible_truncation)] // Each is a byte.
fn push_code(plain: &mut Vec<u8>, code: u32) {
    match char::from_u32(code) {
        Some(character) => plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        None => plain.extend([0xE0 | (code >> 12) as u8, 0x80 | (code >> 6 & 0x3F) as u8, 0x80 | (code & 0x3F) as u8]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'a>(text: &'a str, path: &[Step<'_>]) -> Option<Value<'a>> {
        find(text, path.iter().copied())
    }

    #[test]
    fn whatever_a_text_may_be_in_json_is_read() {
        for (json, text) in [
            (r#""plain""#, &b"plain"[..]),
            (r#""\"\\\/\b\f\n\r\t""#, b"\"\\/\x08\x0c\n\r\t"),
            (r#""caf\u00e9 \ud83c\udfac!""#, "caf\u{e9} \u{1f3ac}!".as_bytes()),
            (r#""hi \ud83d""#, b"hi \xed\xa0\xbd"),
            (r#""\udc00\ud83d\ud83d\udc00""#, b"\xed\xb0\x80\xed\xa0\xbd\xf0\x9f\x90\x80"),
            (r#""\ud83d\n\u0000""#, b"\xed\xa0\xbd\n\0"),
        ] {
            assert_eq!(at(json, &[]), Some(Value::Text(text.into())), "{json}");
        }
    }

    #[test]
    fn whatever_a_number_may_be_in_json_is_read() {
        for (json, number) in [
            ("0", 0.0),
            ("-1.5e-1", -0.15),
            ("1e309", f64::INFINITY),
            ("-1E+400", f64::NEG_INFINITY),
            ("1e-400", 0.0),
            ("123456789012345678901234567890", 123_456_789_012_345_678_901_234_567_890.0),
        ] {
            assert_eq!(at(json, &[]), Some(Value::Number(number)), "{json}");
        }
    }

    #[test]
    fn values_are_found_by_steps() {
        let json = r#" { "a" : {"b": 1} , "x": [[1], {"y": 2}, "z", true, null] , "a" : 5, "\u0061b" : false } "#;
        let (name, index) = (Step::Name, Step::Index);
        assert_eq!(at(json, &[name("a")]), Some(Value::Number(5.0)));
        assert_eq!(at(json, &[name("a"), name("b")]), None);
        assert_eq!(at(json, &[name("ab")]), Some(Value::Boolean(false)));
        assert_eq!(at(json, &[name("x"), index(1), name("y")]), Some(Value::Number(2.0)));
        let elements =
            vec![Value::Other, Value::Other, Value::Text(b"z"[..].into()), Value::Boolean(true), Value::Other];
        assert_eq!(at(json, &[name("x")]), Some(Value::Array(elements)));
        for nowhere in [&[name("x"), index(5)][..], &[index(0)], &[name("x"), name("y")], &[name("")]] {
            assert_eq!(at(json, nowhere), None, "{nowhere:?}");
        }
        for broken in ["", "{", "[1", "{\"a\"}", "tru", "\"", "{\"a\":1,}"] {
            assert_eq!(at(broken, &[name("a")]), None, "{broken}");
        }
        assert_eq!(at("[]", &[]), Some(Value::Array(Vec::new())));
        assert_eq!(at("{}", &[]), Some(Value::Other));
    }
}
