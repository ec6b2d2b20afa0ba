//! Actions as lines for people: aligned, coloured where that is wanted, and with the many events of the page's recorder summed
//! up.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
};

use chrono::{DateTime, Utc};

use crate::{
    cli::{import::tally::counted, time},
    model::ERROR_TYPE,
    proto::Action,
};

/// The type of the page recorder's events: too many, and too large, for a line each.
const RECORDER_TYPE: &str = "rrweb";

/// Widths of the columns: 100 characters together.
const SOURCE_WIDTH: usize = 5;
const TYPE_WIDTH: usize = 10;
const TARGET_WIDTH: usize = 26;
const DATA_WIDTH: usize = 43;

/// Where actions are shown.
pub(super) struct Screen {
    started_at: DateTime<Utc>,
    is_coloured: bool,
    /// The recorder's events since the last line.
    recorder_count: u64,
}

/// SGR codes (ECMA-48 §8.3.117).
#[derive(Clone, Copy)]
enum Style {
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
    Cyan = 36,
}

impl Screen {
    /// A screen for a session that started at this time. It is coloured on a terminal, unless `NO_COLOR` says otherwise
    /// (<https://no-color.org>).
    pub(super) fn new(started_at: DateTime<Utc>) -> Self {
        let is_unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { started_at, is_coloured: io::stdout().is_terminal() && !is_unwanted, recorder_count: 0 }
    }

    /// Shows an action, or counts it.
    pub(super) fn show(&mut self, action: &Action, output: &mut impl Write) -> io::Result<()> {
        if action.r#type == RECORDER_TYPE {
            self.recorder_count += 1;
            return Ok(());
        }
        self.finish(output)?;
        let style = match action.r#type.as_str() {
            ERROR_TYPE => Style::Red,
            "click" => Style::Green,
            "navigation" => Style::Cyan,
            "input" => Style::Yellow,
            _ => Style::Blue,
        };
        let offset = self.paint(Style::Dim, &self.offset(action));
        let source = fit(&action.source, SOURCE_WIDTH);
        let kind = self.paint(style, &fit(&action.r#type, TYPE_WIDTH));
        let target = fit(&action.target, TARGET_WIDTH);
        let data = self.paint(Style::Dim, fit(&action.data, DATA_WIDTH).trim_end());
        writeln!(output, "  {offset}  {source}  {kind}  {target}  {data}")
    }

    /// Shows how many events were counted since the last line.
    pub(super) fn finish(&mut self, output: &mut impl Write) -> io::Result<()> {
        match std::mem::take(&mut self.recorder_count) {
            0 => Ok(()),
            count => {
                let events = counted(count, "rrweb event");
                writeln!(output, "{:12}{}", "", self.paint(Style::Dim, &events))
            }
        }
    }

    /// How long after the session's start the action happened, as minutes and seconds.
    fn offset(&self, action: &Action) -> String {
        let micros = action.timestamp.as_ref().map_or(0, time::from_proto);
        let hundredths = (micros - self.started_at.timestamp_micros()).max(0) / 10_000;
        let (minutes, hundredths) = (hundredths / 6_000, hundredths % 6_000);
        format!("{minutes:02}:{:02}.{:02}", hundredths / 100, hundredths % 100)
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.is_coloured { format!("\x1b[{}m{text}\x1b[0m", style as u8) } else { text.to_owned() }
    }
}

/// Fills or cuts a text to a width. Control characters, which could move the cursor, become blanks.
fn fit(text: &str, width: usize) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut fitted: String = text.chars().map(plain).take(width + 1).collect();
    if fitted.chars().count() > width {
        fitted = fitted.chars().take(width - 1).collect();
        fitted.push('…');
    }
    format!("{fitted:width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(millis: i64, kind: &str, data: &str) -> Action {
        Action {
            timestamp: Some(time::to_proto(millis * 1_000)),
            r#type: kind.to_owned(),
            target: "Create Post".to_owned(),
            data: data.to_owned(),
            seq: 1,
            source: "web".to_owned(),
        }
    }

    #[test]
    fn lines_are_aligned_and_the_recorders_events_summed_up() {
        let mut screen = Screen { started_at: DateTime::UNIX_EPOCH, is_coloured: false, recorder_count: 0 };
        let mut output = Vec::new();
        for shown in [
            action(0, "rrweb", "{}"),
            action(71_650, "click", "{\"x\":1}"),
            action(71_660, "rrweb", "{}"),
            action(71_670, "rrweb", "{}"),
            action(71_680, "error", &"x".repeat(99)),
        ] {
            screen.show(&shown, &mut output).expect("in memory");
        }
        screen.finish(&mut output).expect("in memory");
        let cut = "x".repeat(DATA_WIDTH - 1);
        let expected = format!(
            "            1 rrweb event\n  \
               01:11.65  web    click       Create Post                 {{\"x\":1}}\n            \
               2 rrweb events\n  \
               01:11.68  web    error       Create Post                 {cut}…\n"
        );
        assert_eq!(String::from_utf8(output).as_deref(), Ok(expected.as_str()));
    }

    #[test]
    fn a_text_fits_into_its_column() {
        for (text, fitted) in [("", "   "), ("äöü", "äöü"), ("abcd", "ab…"), ("a\x1b\n", "a  ")] {
            assert_eq!(fit(text, 3), fitted);
        }
    }
}
