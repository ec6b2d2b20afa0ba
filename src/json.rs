//! The one reader of JSON in actions: whether a text is JSON, by the grammar of RFC 8259 and nothing else, in one pass, and
//! single values of it. Numbers may be of any size, keys may come twice, and escaped surrogates may stand alone.
//!
//! Every action's data goes through here at the door, and again where a condition looks into it, so that whatever was taken is
//! found. A parser of the usual kind costs twice as much, refuses some of it, and has no limit of depth that could be chosen.

mod find;

pub(crate) use self::find::{Step, Value, find};

/// Why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is no JSON from this byte on; its length, if it ends too early.
    Syntax(usize),
    /// Arrays and objects are nested deeper than they may be.
    TooDeep,
}

/// Checks a text: one value, with arrays and objects at most `max_depth` deep in each other.
pub(crate) fn check(text: &str, max_depth: usize) -> Result<(), Fault> {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    scanner.whole_value(&mut Nesting::new(max_depth))?;
    if scanner.token().is_none() { Ok(()) } else { scanner.fault() }
}

/// The line and the column of a byte, both from 1, for people who look for it.
pub(crate) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.split(|byte| *byte == b'\n').count();
    (line, at - line_start + 1)
}

#[derive(Clone, Copy)]
enum Kind {
    Array,
    Object,
}

/// What is open, one bit for each: the kinds of the innermost up to 64 in a word, those further out in others.
struct Nesting {
    depth: usize,
    max_depth: usize,
    innermost: u64,
    outer: Vec<u64>,
}

impl Nesting {
    fn new(max_depth: usize) -> Self {
        Self { depth: 0, max_depth, innermost: 0, outer: Vec::new() }
    }

    fn innermost(&self) -> Option<Kind> {
        match (self.depth, self.innermost & 1) {
            (0, _) => None,
            (_, 0) => Some(Kind::Array),
            _ => Some(Kind::Object),
        }
    }

    fn push(&mut self, kind: Kind) -> Result<(), Fault> {
        if self.depth == self.max_depth {
            return Err(Fault::TooDeep);
        }
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.innermost);
        }
        self.depth += 1;
        self.innermost = self.innermost << 1 | u64::from(matches!(kind, Kind::Object));
        Ok(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.innermost >>= 1;
        if self.depth.is_multiple_of(64)
            && let Some(outer) = self.outer.pop()
        {
            self.innermost = outer;
        }
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The next byte that is not white space.
    fn token(&mut self) -> Option<u8> {
        loop {
            match self.peek() {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                other => return other,
            }
        }
    }

    fn fault<T>(&self) -> Result<T, Fault> {
        Err(Fault::Syntax(self.at))
    }

    fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.token() != Some(byte) {
            return self.fault();
        }
        self.at += 1;
        Ok(())
    }

    /// Passes over a value with all that is in it.
    fn whole_value(&mut self, open: &mut Nesting) -> Result<(), Fault> {
        loop {
            let opened = self.value(open)?;
            if opened {
                continue;
            }
            // The value is over, and maybe with it some of those that it is in.
            loop {
                let Some(kind) = open.innermost() else { return Ok(()) };
                match (kind, self.token()) {
                    (Kind::Array, Some(b',')) => self.at += 1,
                    (Kind::Object, Some(b',')) => {
                        self.at += 1;
                        self.key()?;
                    }
                    (Kind::Array, Some(b']')) | (Kind::Object, Some(b'}')) => {
                        self.at += 1;
                        open.pop();
                        continue;
                    }
                    _ => return self.fault(),
                }
                break;
            }
        }
    }

    /// Passes over a value; of an array or an object over what is before the first value in it, if there is one. Returns
    /// whether that follows.
    fn value(&mut self, open: &mut Nesting) -> Result<bool, Fault> {
        match self.token() {
            Some(b'"') => self.string()?,
            Some(b'{') => {
                open.push(Kind::Object)?;
                self.at += 1;
                if self.token() != Some(b'}') {
                    self.key()?;
                    return Ok(true);
                }
                self.at += 1;
                open.pop();
            }
            Some(b'[') => {
                open.push(Kind::Array)?;
                self.at += 1;
                if self.token() != Some(b']') {
                    return Ok(true);
                }
                self.at += 1;
                open.pop();
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word(b"true")?,
            Some(b'f') => self.word(b"false")?,
            Some(b'n') => self.word(b"null")?,
            _ => return self.fault(),
        }
        Ok(false)
    }

    fn key(&mut self) -> Result<(), Fault> {
        if self.token() != Some(b'"') {
            return self.fault();
        }
        self.string()?;
        self.expect(b':')
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Fault> {
        for byte in word {
            if self.peek() != Some(*byte) {
                return self.fault();
            }
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// At least one digit.
    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { self.fault() } else { Ok(()) }
    }

    /// A string, from its opening quote to its closing one.
    fn string(&mut self) -> Result<(), Fault> {
        self.at += 1;
        loop {
            self.at += plain_len(self.bytes.get(self.at..).unwrap_or_default());
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                _ => return self.fault(),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return self.fault();
                    }
                    self.at += 1;
                }
            }
            _ => return self.fault(),
        }
        Ok(())
    }
}

/// How many bytes come before the first that is special in a string: a quote, a backslash or a control character.
fn plain_len(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    words.len() * 8 + rest.iter().position(is_special).unwrap_or(rest.len())
}

/// Eight bytes at once: the high bit of each that is special is set. Those above the lowest may be set without being so, as
/// the subtractions borrow from them. See <https://graphics.stanford.edu/~seander/bithacks.html#HasLessInWord>.
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH_BITS: u64 = ONES << 7;
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let is_control = word.wrapping_sub(ONES * 0x20) & !word;
    let is_quote = is_zero(word ^ (ONES * u64::from(b'"')));
    let is_backslash = is_zero(word ^ (ONES * u64::from(b'\\')));
    (is_control | is_quote | is_backslash) & HIGH_BITS
}

#[cfg(test)]
mod tests;
