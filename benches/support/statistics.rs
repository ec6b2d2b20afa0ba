//! Medians and percentiles.

use std::time::Duration;

/// The middle one, or the mean of the two in the middle. 0 where there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        (_, middle) => sorted[middle],
    }
}

/// For CPU time: it is counted in ticks, too coarse for a median of a few.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The smallest value that is no less than this part of them all (nearest rank), in milliseconds.
pub fn percentile_ms(values: &mut [Duration], part: f64) -> f64 {
    values.sort_unstable();
    let rank = (values.len() as f64 * part).ceil() as usize;
    values.get(rank.saturating_sub(1)).map_or(0.0, |value| value.as_secs_f64() * 1e3)
}

/// What was measured and its limit, round by round.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    values: Vec<f64>,
    limits: Vec<f64>,
}

impl Rounds {
    pub fn add(&mut self, value: f64, limit: f64) {
        self.values.push(value);
        self.limits.push(limit);
    }

    pub fn value(&self) -> f64 {
        median(&self.values)
    }

    pub fn limit(&self) -> f64 {
        median(&self.limits)
    }

    /// The median of each round's own ratio: a machine that is busy with other things for a while slows both.
    pub fn ratio(&self) -> f64 {
        let ratios: Vec<_> = self.values.iter().zip(&self.limits).map(|(value, limit)| value / limit).collect();
        median(&ratios)
    }
}
