//! The figures, as a table for people or as JSON Lines for programs.

use serde_json::json;

use super::statistics::Rounds;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// The ratio, or more.
    RatioAtLeast(f64),
    /// The ratio, or less.
    RatioAtMost(f64),
    /// The value itself, or less.
    ValueAtMost(f64),
}

/// One thing that was measured.
#[derive(Clone, Debug)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    limit: Option<f64>,
    ratio: Option<f64>,
    goal: Option<Goal>,
}

impl Figure {
    /// A figure with nothing to compare it with.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, limit: None, ratio: None, goal: None }
    }

    /// A figure beside its limit, both measured in several rounds.
    pub fn of_rounds(name: impl Into<String>, rounds: &Rounds, unit: &'static str) -> Self {
        let (limit, ratio) = (Some(rounds.limit()), Some(rounds.ratio()));
        Self { limit, ratio, ..Self::new(name, rounds.value(), unit) }
    }

    pub fn beside(self, limit: f64) -> Self {
        // CPU is counted in ticks, of which a short measurement may see none.
        Self { limit: Some(limit), ratio: (limit > 0.0).then_some(self.value / limit), ..self }
    }

    pub fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    fn is_met(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::RatioAtLeast(least) => self.ratio? >= least,
            Goal::RatioAtMost(most) => self.ratio? <= most,
            Goal::ValueAtMost(most) => self.value <= most,
        })
    }

    fn goal_text(&self) -> String {
        match self.goal {
            None => String::new(),
            Some(Goal::RatioAtLeast(least)) => format!("≥ {least}"),
            Some(Goal::RatioAtMost(most)) => format!("≤ {most}"),
            Some(Goal::ValueAtMost(most)) => format!("≤ {most} {}", self.unit),
        }
    }

    fn print_json(&self, heading: &str) {
        let (ratio, goal) = match self.goal {
            Some(Goal::ValueAtMost(_)) => ("value", self.goal_text()),
            _ => ("ratio", self.goal_text()),
        };
        let goal = self.goal.map(|_| format!("{ratio} {goal}"));
        let figure = json!({
            "table": heading,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "limit": self.limit,
            "ratio": self.ratio,
            "goal": goal,
            "is_met": self.is_met(),
        });
        println!("{figure}");
    }

    fn print_row(&self, width: usize) {
        let optional = |number: Option<f64>| number.map(readable).unwrap_or_default();
        let mark = match self.is_met() {
            None => "",
            Some(true) => "met",
            Some(false) => "BELOW GOAL",
        };
        let row = format!(
            "{:width$}  {:>10} {:<9} {:>10}  {:>6}  {:<10}  {mark}",
            self.name,
            readable(self.value),
            self.unit,
            optional(self.limit),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            self.goal_text(),
        );
        println!("{}", row.trim_end());
    }
}

/// A number with three or more digits that matter, and thousands apart.
fn readable(number: f64) -> String {
    if number.abs() < 100.0 {
        return format!("{number:.2}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && text != "-" {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Prints figures: as a table under a heading, or as JSON Lines.
pub fn print(heading: &str, figures: &[Figure], as_json: bool) {
    if as_json {
        figures.iter().for_each(|figure| figure.print_json(heading));
        return;
    }
    let width =
        figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0).max(heading.chars().count());
    println!("\n{heading:width$}  {:>10} {:<9} {:>10}  {:>6}  {:<10}", "value", "", "limit", "ratio", "goal");
    figures.iter().for_each(|figure| figure.print_row(width));
}
