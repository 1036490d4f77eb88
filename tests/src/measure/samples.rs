//! Medians, percentiles, and the combination of rounds: the median of the rounds for typical values, and the worst
//! round for tails.

use std::time::Duration;

/// Returns the middle value, or the mean of the two middle values.
///
/// # Panics
/// Panics if `values` is empty.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

/// Returns the smallest value such that at least the fraction `part` of all values is no larger (nearest rank).
///
/// # Panics
/// Panics if `sorted` is empty.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The latencies of one round, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Number of measured latencies.
    pub samples: usize,
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The 99.9th percentile.
    pub p999_ms: f64,
    /// The longest latency.
    pub max_ms: f64,
}

impl Latency {
    /// Summarizes measured latencies.
    ///
    /// # Panics
    /// Panics if `milliseconds` is empty.
    pub fn of(mut milliseconds: Vec<f64>) -> Self {
        milliseconds.sort_by(f64::total_cmp);
        let at = |part| percentile(&milliseconds, part);
        Self { samples: milliseconds.len(), p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999), max_ms: at(1.0) }
    }

    /// Combines several rounds: the median of their p50, and the worst of each of their tails. A mean or a median of
    /// tails would hide a stall that only one round had.
    ///
    /// # Panics
    /// Panics if `rounds` is empty.
    pub fn of_rounds(rounds: &[Self]) -> Self {
        let worst = |of: fn(&Self) -> f64| rounds.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        Self {
            samples: rounds.iter().map(|round| round.samples).sum(),
            p50_ms: median(rounds.iter().map(|round| round.p50_ms).collect()),
            p99_ms: worst(|round| round.p99_ms),
            p999_ms: worst(|round| round.p999_ms),
            max_ms: worst(|round| round.max_ms),
        }
    }
}

/// Converts a duration to milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
