//! Figures with their yardsticks and targets, as a table and as JSON.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::samples::Latency;
use super::table::{Table, number};

/// The unit of a figure. The JSON contains its readable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Records per second.
    #[serde(rename = "records/s")]
    RecordsPerSecond,
    /// Megabytes (10^6 bytes) per second.
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    /// Megabytes (10^6 bytes).
    #[serde(rename = "MB")]
    Megabytes,
    /// Bytes per record.
    #[serde(rename = "B/record")]
    BytesPerRecord,
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds per record.
    #[serde(rename = "us/record")]
    MicrosecondsPerRecord,
    /// Nanoseconds per record.
    #[serde(rename = "ns/record")]
    NanosecondsPerRecord,
    /// Percent.
    #[serde(rename = "%")]
    Percent,
}

impl Unit {
    /// Returns the name of the unit in the JSON and in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RecordsPerSecond => "records/s",
            Self::MegabytesPerSecond => "MB/s",
            Self::Megabytes => "MB",
            Self::BytesPerRecord => "B/record",
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::MicrosecondsPerRecord => "us/record",
            Self::NanosecondsPerRecord => "ns/record",
            Self::Percent => "%",
        }
    }
}

/// The value that a figure must reach, in the figure's unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The figure must be at least this value.
    AtLeast(f64),
    /// The figure must be at most this value.
    AtMost(f64),
}

/// A measured value that a figure is compared with, in the same unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yardstick {
    /// What was measured.
    pub name: String,
    /// The measured value.
    pub value: f64,
    /// The unit, which is that of the figure.
    pub unit: Unit,
    /// Whether it was measured in the same run, alternating with the figure.
    pub same_run: bool,
}

/// One result. Its name and unit together are unique within a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The measured value.
    pub value: f64,
    /// The unit of the value.
    pub unit: Unit,
    /// Number of samples, if the value is taken from several samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// The values that it is compared with.
    #[serde(default)]
    pub yardsticks: Vec<Yardstick>,
    /// The target, if there is one.
    #[serde(default)]
    pub target: Option<Target>,
    /// Whether the target is met, if there is one.
    #[serde(default)]
    pub met: Option<bool>,
}

impl Figure {
    /// Creates a figure without yardsticks and without a target.
    pub fn new(name: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { name: name.into(), value, unit, samples: None, yardsticks: Vec::new(), target: None, met: None }
    }

    /// Adds a yardstick that was measured in the same run, alternating with the figure, in the same unit.
    #[must_use]
    pub fn beside(self, name: impl Into<String>, value: f64) -> Self {
        self.with(name.into(), value, true)
    }

    /// Adds a yardstick that was measured in another run, possibly on another machine.
    #[must_use]
    pub fn beside_another_run(self, name: impl Into<String>, value: f64) -> Self {
        self.with(name.into(), value, false)
    }

    fn with(mut self, name: String, value: f64, same_run: bool) -> Self {
        self.yardsticks.push(Yardstick { name, value, unit: self.unit, same_run });
        self
    }

    /// Sets the target to at least this value.
    #[must_use]
    pub fn at_least(mut self, least: f64) -> Self {
        (self.target, self.met) = (Some(Target::AtLeast(least)), Some(self.value >= least));
        self
    }

    /// Sets the target to at most this value.
    #[must_use]
    pub fn at_most(mut self, most: f64) -> Self {
        (self.target, self.met) = (Some(Target::AtMost(most)), Some(self.value <= most));
        self
    }

    /// Returns one row, and one more for each further yardstick.
    fn rows(&self) -> Vec<[String; 6]> {
        let of = |yardstick: &Yardstick| {
            let other = if yardstick.same_run { "" } else { " (another run)" };
            let text = format!("{}: {}{other}", yardstick.name, number(yardstick.value));
            (text, format!("{:.2}", self.value / yardstick.value))
        };
        let mut yardsticks = self.yardsticks.iter().map(of);
        let (yardstick, ratio) = yardsticks.next().unwrap_or_default();
        let target = match self.target {
            None => String::new(),
            Some(Target::AtLeast(least)) => format!(">= {}", number(least)),
            Some(Target::AtMost(most)) => format!("<= {}", number(most)),
        };
        let met = self.met.map_or("", |met| if met { "met" } else { "MISSED" });
        let value = format!("{} {}", number(self.value), self.unit.as_str());
        let mut rows = vec![[self.name.clone(), value, yardstick, ratio, target, met.to_owned()]];
        rows.extend(
            yardsticks.map(|(yardstick, ratio)| {
                [String::new(), String::new(), yardstick, ratio, String::new(), String::new()]
            }),
        );
        rows
    }
}

/// The percentile of latencies that a figure reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    P50,
    P99,
    P999,
    Max,
}

impl Tail {
    const ALL: [Self; 4] = [Self::P50, Self::P99, Self::P999, Self::Max];

    fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99, worst round",
            Self::P999 => "p99.9, worst round",
            Self::Max => "max, worst round",
        }
    }

    fn of(self, latency: &Latency) -> f64 {
        match self {
            Self::P50 => latency.p50_ms,
            Self::P99 => latency.p99_ms,
            Self::P999 => latency.p999_ms,
            Self::Max => latency.max_ms,
        }
    }

    /// Minimum number of samples per round, such that ten samples are beyond this percentile.
    fn samples_min(self) -> usize {
        match self {
            Self::P50 | Self::Max => 1,
            Self::P99 => 1_000,
            Self::P999 => 10_000,
        }
    }
}

fn latency_figures(name: &str, rounds: &[Latency], yardsticks: &[(&str, &[Latency])]) -> Vec<(Tail, Figure)> {
    let all = Latency::of_rounds(rounds);
    let least = rounds.iter().map(|round| round.samples).min().unwrap_or(0);
    let figure = |tail: Tail| {
        let mut figure = Figure::new(format!("{name} {}", tail.name()), tail.of(&all), Unit::Milliseconds);
        figure.samples = Some(all.samples);
        let beside = yardsticks.iter().map(|(of, rounds)| (of, tail.of(&Latency::of_rounds(rounds))));
        (tail, beside.fold(figure, |figure, (of, value)| figure.beside(*of, value)))
    };
    Tail::ALL.into_iter().filter(|tail| least >= tail.samples_min()).map(figure).collect()
}

/// A benchmark that could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What could not be measured.
    pub what: String,
    /// The reason.
    pub why: String,
}

/// How the figures were measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The numbers of records and rounds were divided by this. Figures of a divided run only show that the benchmarks
    /// work.
    pub divided_by: u64,
    /// Only benchmarks whose names contain this were run.
    #[serde(default)]
    pub only: Option<String>,
    /// Number of cores of the machine.
    pub cores: usize,
    /// Whether this build has debug assertions. If so, its figures are meaningless.
    pub debug_assertions: bool,
}

/// All results of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How the figures were measured.
    #[serde(default)]
    pub run: Run,
    /// The figures, in the order in which they were measured.
    pub figures: Vec<Figure>,
    /// What could not be measured.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

impl Report {
    /// Creates a report without figures.
    pub fn new(run: Run) -> Self {
        Self { run, ..Self::default() }
    }

    /// Adds a figure, and prints it on stderr right away, because a whole run takes long.
    pub fn add(&mut self, figure: Figure) {
        // JSON cannot represent such a number, and it cannot be compared.
        if !figure.value.is_finite() {
            return self.leave_out(&figure.name, &format!("it came out as {}", figure.value));
        }
        for row in figure.rows() {
            eprintln!("{}", row.join(" | "));
        }
        self.figures.push(figure);
    }

    /// Adds latencies: the median of the rounds for p50, and the worst round for the tails. A tail is left out if fewer
    /// than ten samples of a round are beyond it, because it would be down to chance.
    pub fn add_latency(&mut self, name: &str, rounds: &[Latency]) {
        self.add_latency_beside(name, rounds, &[]);
    }

    /// Like [`Report::add_latency`], with a p99 that must be at most this.
    pub fn add_latency_at_most(&mut self, name: &str, rounds: &[Latency], p99_ms: f64) {
        for (tail, figure) in latency_figures(name, rounds, &[]) {
            self.add(if tail == Tail::P99 { figure.at_most(p99_ms) } else { figure });
        }
    }

    /// Like [`Report::add_latency`], with the rounds of yardsticks.
    pub fn add_latency_beside(&mut self, name: &str, rounds: &[Latency], yardsticks: &[(&str, &[Latency])]) {
        latency_figures(name, rounds, yardsticks).into_iter().for_each(|(_, figure)| self.add(figure));
    }

    /// Notes that something could not be measured. Repeated notes are ignored.
    pub fn leave_out(&mut self, what: &str, why: &str) {
        let left_out = LeftOut { what: what.to_owned(), why: why.to_owned() };
        if !self.left_out.contains(&left_out) {
            eprintln!("left out: {what}: {why}");
            self.left_out.push(left_out);
        }
    }

    /// Returns the figure with this name and unit.
    pub fn figure(&self, name: &str, unit: Unit) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name && figure.unit == unit)
    }

    /// Reads a report that [`Report::write`] wrote.
    ///
    /// # Errors
    /// Returns an error if the file does not exist or is not a report.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report of a benchmark", path.display()))
    }

    /// Writes the report as a JSON file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(path, json + "\n").with_context(|| format!("can't write {}", path.display()))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.run.debug_assertions {
            writeln!(f, "This build has debug assertions: its figures say nothing.\n")?;
        }
        let mut table = Table::new(["benchmark", "figure", "yardstick", "ratio", "target", ""]);
        self.figures.iter().flat_map(Figure::rows).for_each(|row| table.push(row));
        write!(f, "{table}")?;
        for LeftOut { what, why } in &self.left_out {
            write!(f, "\n{what} was left out: {why}")?;
        }
        if !self.left_out.is_empty() {
            writeln!(f)?;
        }
        Ok(())
    }
}
