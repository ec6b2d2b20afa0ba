//! The command line of a benchmark.

use std::time::Duration;

use clap::Parser;

/// Measures Reel against the limits of the database under it, all in this run and on this machine.
// Each is a flag.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Print a JSON object a line instead of tables
    #[arg(long)]
    pub json: bool,
    /// Measure everything, longer, and how the figures change as the database grows
    #[arg(long)]
    pub full: bool,
    /// With --full, also measure with this many actions stored, beside 1M and 10M
    #[arg(long, value_name = "N", value_parser = count, requires = "full")]
    pub growth: Option<usize>,
    /// What the generated actions depend on
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A few actions everywhere, to see that the benchmark works; its figures mean nothing
    #[arg(long, hide = true, conflicts_with = "full")]
    pub smoke: bool,
    /// Only the parts whose name begins with one of these
    #[arg(value_name = "PART")]
    pub parts: Vec<String>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Arguments {
    /// How often each figure and its limit are measured, by turns.
    pub fn rounds(&self) -> usize {
        if self.smoke {
            1
        } else if self.full {
            5
        } else {
            3
        }
    }

    /// About how long one measurement should take.
    pub fn measurement(&self) -> Duration {
        Duration::from_millis(if self.smoke {
            20
        } else if self.full {
            2_000
        } else {
            700
        })
    }

    /// The one of three numbers that is for this run.
    pub fn scale<T>(&self, smoke: T, normal: T, full: T) -> T {
        if self.smoke {
            smoke
        } else if self.full {
            full
        } else {
            normal
        }
    }

    /// Whether this part of the benchmark was asked for.
    pub fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| part.starts_with(wanted.as_str()))
    }

    /// The numbers of stored actions to compare, the smallest first.
    pub fn growth_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![1_000_000, 10_000_000];
        sizes.extend(self.growth);
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

/// Takes `300000`, `500k` and `30M`.
fn count(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((digits, "k")) => (digits, 1_000),
        Some((digits, "M")) => (digits, 1_000_000),
        _ => (text, 1),
    };
    let number: usize = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(factor).filter(|number| *number > 0).ok_or_else(|| "must be a number such as 30M".to_owned())
}
