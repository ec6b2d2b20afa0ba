//! Texts of JSON as they are written, beside what they say: so that what a pattern finds in a text is replaced there, and
//! everything else keeps its bytes.

use std::borrow::Cow;

use regex::Regex;

use super::REDACTED;

/// A text as it is written in JSON, without its quotes.
pub(super) struct Text<'a> {
    /// What it says. U+FFFD stands where half of a surrogate pair is alone, which no text can say.
    pub(super) said: Cow<'a, str>,
    /// For each escape up to where it goes, in what is said and in what is written.
    escapes: Vec<(usize, usize)>,
}

impl<'a> Text<'a> {
    /// Reads a text. What is no escape stands for itself: it has been checked before.
    pub(super) fn read(written: &'a str) -> Self {
        if !written.contains('\\') {
            return Self { said: Cow::Borrowed(written), escapes: Vec::new() };
        }
        let (mut said, mut escapes) = (String::with_capacity(written.len()), Vec::new());
        let mut rest = written;
        while let Some((plain, escaped)) = rest.split_once('\\') {
            said.push_str(plain);
            let (character, length) = unescape(escaped);
            said.push(character);
            rest = escaped.get(length..).unwrap_or_default();
            escapes.push((said.len(), written.len() - rest.len()));
        }
        said.push_str(rest);
        Self { said: Cow::Owned(said), escapes }
    }

    /// Where in what is written a place in what is said is. It must lie between two characters.
    fn written_at(&self, said_at: usize) -> usize {
        let before = self.escapes.partition_point(|(said_end, _)| *said_end <= said_at);
        match before.checked_sub(1).and_then(|last| self.escapes.get(last)) {
            Some((said_end, written_end)) => written_end + (said_at - said_end),
            None => said_at,
        }
    }
}

/// What an escape says, and its length after the backslash.
fn unescape(escaped: &str) -> (char, usize) {
    match escaped.chars().next() {
        Some('b') => ('\u{8}', 1),
        Some('f') => ('\u{c}', 1),
        Some('n') => ('\n', 1),
        Some('r') => ('\r', 1),
        Some('t') => ('\t', 1),
        Some('u') => {
            let unit = |from: usize| escaped.get(from..from + 4).and_then(|hex| u16::from_str_radix(hex, 16).ok());
            let Some(first) = unit(1) else { return ('u', 1) };
            let second = if escaped.get(5..7) == Some("\\u") { unit(7) } else { None };
            match char::decode_utf16([first].into_iter().chain(second)).next() {
                Some(Ok(character)) => (character, if character.len_utf16() == 2 { 11 } else { 5 }),
                _ => (char::REPLACEMENT_CHARACTER, 5),
            }
        }
        Some(itself) => (itself, itself.len_utf8()),
        None => ('\\', 0),
    }
}

/// A text as it is written in JSON, without what matches a pattern. None where nothing does.
pub(super) fn redact(patterns: &[Regex], written: &str) -> Option<String> {
    let mut redacted = None;
    for pattern in patterns {
        redacted = replace(pattern, redacted.as_deref().unwrap_or(written)).or(redacted);
    }
    redacted
}

fn replace(pattern: &Regex, written: &str) -> Option<String> {
    let text = Text::read(written);
    let (mut output, mut copied) = (String::new(), 0);
    for found in pattern.find_iter(&text.said) {
        output.push_str(written.get(copied..text.written_at(found.start())).unwrap_or_default());
        output.push_str(REDACTED);
        copied = text.written_at(found.end());
    }
    if output.is_empty() {
        return None;
    }
    output.push_str(written.get(copied..).unwrap_or_default());
    Some(output)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn only_what_matched_changes() {
        for (pattern, written, redacted) in [
            ("[0-9]{4}", r"caf\u00e9 1234 \/ \u0041", r"caf\u00e9 [redacted] \/ \u0041"),
            ("[0-9]{4}", r"\ud83d 1234 \udfac\ud83d", r"\ud83d [redacted] \udfac\ud83d"),
            ("[0-9]{4}", r"\u00311\u00323\n", r"[redacted]\n"),
            ("café", r"caf\u00e9 café caf\u00E9\t", r"[redacted] [redacted] [redacted]\t"),
            ("🎬", r"\ud83c\udfac\ud83c\udfac\ud83c", r"[redacted][redacted]\ud83c"),
            ("/x", r"\/x\\/x", r"[redacted]\\[redacted]"),
            ("\"|\\n", r#"\"a\nb\u0022"#, r"[redacted]a[redacted]b[redacted]"),
            ("a.c", r"\u0061\ud800c", r"[redacted]"),
            ("^.*$", r"\ud800", "[redacted]"),
        ] {
            let patterns = [Regex::new(pattern).expect("a pattern")];
            assert_eq!(redact(&patterns, written).as_deref(), Some(redacted), "{pattern} {written}");
        }
        let patterns = ["b+", "a\\[redacted\\]"].map(|pattern| Regex::new(pattern).expect("a pattern"));
        assert_eq!(redact(&patterns, r"\u0061bb\/").as_deref(), Some(r"[redacted]\/"), "one after the other");
        assert_eq!(redact(&patterns, r"caf\u00e9"), None);
    }

    /// However the characters are written, what is said is what a reader of JSON says, and only what matches changes.
    #[test]
    fn random_texts_are_redacted_character_by_character() {
        let pattern = [Regex::new("[4é🎬\n]+").expect("a pattern")];
        let mut rng = StdRng::seed_from_u64(11);
        for _ in 0..4_000 {
            let (mut written, mut expected, mut is_open) = (String::new(), String::new(), false);
            for _ in 0..rng.random_range(0..12) {
                let character = ['4', 'é', '🎬', '\n', 'a', '/', '"', '\\', 'ß'][rng.random_range(0..9)];
                let piece = write(character, &mut rng);
                let matches = pattern[0].is_match(&character.to_string());
                match (matches, is_open) {
                    (true, false) => expected.push_str(REDACTED),
                    (true, true) => {}
                    (false, _) => expected.push_str(&piece),
                }
                is_open = matches;
                written.push_str(&piece);
            }
            let said: String = serde_json::from_str(&format!("\"{written}\"")).expect("JSON");
            assert_eq!(Text::read(&written).said, said);
            assert_eq!(redact(&pattern, &written).unwrap_or_else(|| written.clone()), expected, "{written}");
        }
    }

    fn write(character: char, rng: &mut StdRng) -> String {
        let short = match character {
            '\n' => Some("\\n"),
            '/' => Some(["/", "\\/"][rng.random_range(0..2)]),
            '"' => Some("\\\""),
            '\\' => Some("\\\\"),
            _ => None,
        };
        match (short, rng.random_range(0..3)) {
            (Some(short), 0..2) => short.to_owned(),
            (None, 0..2) => character.to_string(),
            _ => {
                let mut units = [0; 2];
                let units = character.encode_utf16(&mut units).iter();
                units.map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat()
            }
        }
    }
}
