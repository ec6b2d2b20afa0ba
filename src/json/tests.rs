//! Compares with serde_json, on random documents and on what is left of them when they are mangled.

use std::env;

use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde::de::IgnoredAny;

use super::*;

/// Pieces that documents are made of, whole and broken.
const PIECES: [&str; 48] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    " ",
    "\n",
    "\t",
    "\r",
    "null",
    "true",
    "false",
    "nul",
    "0",
    "-0",
    "01",
    "-",
    "1.5",
    "1.",
    ".5",
    "1e400",
    "1E+7",
    "1e",
    "-9223372036854775809",
    "NaN",
    r"\u0000",
    r"\ud800",
    r"\udc00\ud800",
    r"\ud80",
    r"\uD83D\uDE00",
    r"\x",
    r#"\""#,
    r"\/",
    "\0",
    "\u{1}",
    "\u{1f}",
    "\u{7f}",
    "\u{feff}",
    "é",
    "\u{2028}",
    "😀",
    "abcdefg",
    "abcdefgh",
    r#""key":"#,
    r#"{"a":1,"a":[{}]}"#,
];

/// How deep a text is nested that is JSON.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    deepest
}

fn compare(text: &str, max_depth: usize, seed: u64) {
    let checked = check(text, max_depth);
    let is_right = match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) if depth(text) <= max_depth => checked == Ok(()),
        Ok(_) => checked == Err(Fault::TooDeep),
        Err(_) => checked.is_err(),
    };
    assert!(is_right, "{checked:?} at a depth of at most {max_depth}, REEL_TEST_SEED={seed}: {text:?}");
}

fn white_space(rng: &mut impl Rng, text: &mut String) {
    if rng.random_ratio(1, 8) {
        text.push_str([" ", "\n", "\t", "\r\n ", "  "].choose(rng).unwrap());
    }
}

fn string(rng: &mut impl Rng, text: &mut String) {
    text.push('"');
    for _ in 0..rng.random_range(0..24) {
        match rng.random_range(0..12) {
            0 => text.push_str(["é", "😀", "\u{7f}", "\u{2028}"].choose(rng).unwrap()),
            1 => text.push_str([r#"\""#, r"\\", r"\/", r"\n", r"\u0000", r"\ud800"].choose(rng).unwrap()),
            2 => text.push(*['[', '{', ']', '}', ',', ':'].choose(rng).unwrap()),
            _ => text.push(char::from(rng.random_range(b'a'..=b'z'))),
        }
    }
    text.push('"');
}

fn value(rng: &mut impl Rng, depth: usize, text: &mut String) {
    white_space(rng, text);
    match rng.random_range(0..if depth == 0 { 4 } else { 8 }) {
        0 => text.push_str(["null", "true", "false"].choose(rng).unwrap()),
        1 => text.push_str(["0", "-0", "17", "-1.50", "1e400", "9223372036854775808", "0.1E-7"].choose(rng).unwrap()),
        2 | 3 => string(rng, text),
        kind => {
            let is_object = kind % 2 == 0;
            text.push(if is_object { '{' } else { '[' });
            for index in 0..rng.random_range(0..4) {
                if index > 0 {
                    text.push(',');
                }
                white_space(rng, text);
                if is_object {
                    string(rng, text);
                    white_space(rng, text);
                    text.push(':');
                }
                value(rng, depth - 1, text);
            }
            white_space(rng, text);
            text.push(if is_object { '}' } else { ']' });
        }
    }
    white_space(rng, text);
}

fn mutate(rng: &mut impl Rng, text: &str) -> String {
    let mut chars: Vec<_> = text.chars().collect();
    for _ in 0..rng.random_range(1..=3) {
        let at = rng.random_range(0..=chars.len());
        match rng.random_range(0..3) {
            0 if at < chars.len() => drop(chars.remove(at)),
            1 if at < chars.len() => {
                let other = rng.random_range(0..chars.len());
                chars.swap(at, other);
            }
            _ => drop(chars.splice(at..at, PIECES.choose(rng).unwrap().chars())),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn what_is_json_is_what_serde_takes_for_it() {
    let seed = env::var("REEL_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..4_000 {
        let mut text = String::new();
        value(&mut rng, 6, &mut text);
        compare(&text, 6, seed);
        compare(&text, rng.random_range(0..4), seed);
        compare(&mutate(&mut rng, &text), 6, seed);
        let cut = text.floor_char_boundary(rng.random_range(0..=text.len()));
        compare(&text[..cut], 6, seed);
        let pieces: String = (0..rng.random_range(0..9)).map(|_| *PIECES.choose(&mut rng).unwrap()).collect();
        compare(&pieces, 6, seed);
    }
}

#[test]
fn every_byte_is_told_apart_at_every_place_of_a_string() {
    for byte in 0..0x80_u8 {
        for place in 0..20 {
            let text = format!("\"{}{}{}\"", "x".repeat(place), char::from(byte), "é".repeat(9));
            compare(&text, 1, 0);
        }
    }
}

#[test]
fn what_is_open_is_remembered_at_any_depth() {
    for depth in [1, 63, 64, 65, 127, 128, 129, 1_000] {
        let opening: String = (0..depth).map(|level| if level % 3 == 0 { r#"{"a":"# } else { "[" }).collect();
        let closing: String = (0..depth).rev().map(|level| if level % 3 == 0 { "}" } else { "]" }).collect();
        let nested = format!("{opening}0{closing}");
        assert_eq!(check(&nested, depth), Ok(()));
        assert_eq!(check(&nested, depth - 1), Err(Fault::TooDeep));
        for (right, wrong) in [("}", "]"), ("]", "}")] {
            for (at, _) in closing.match_indices(right) {
                let mut closing = closing.clone();
                closing.replace_range(at..=at, wrong);
                let place = opening.len() + 1 + at;
                assert_eq!(check(&format!("{opening}0{closing}"), depth), Err(Fault::Syntax(place)));
            }
        }
    }
}

#[test]
fn a_fault_is_found_by_its_line_and_column() {
    for (text, expected) in [("x", (1, 1)), ("[1,\n 2 3]", (2, 4)), ("{\"a\":\n\n", (3, 1)), ("\"a\nb\"", (1, 3))] {
        let Err(Fault::Syntax(at)) = check(text, 1) else { panic!("{text:?} is no JSON") };
        assert_eq!(line_and_column(text, at), expected, "{text:?}");
    }
}
