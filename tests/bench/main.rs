//! `cargo xtask bench`: Millstream's figures, each beside its yardstick from the same run.
//!
//! Machines differ and are noisy: quote ratios, and medians of several rounds.
#![allow(clippy::unwrap_used)]

mod append;
mod durability;
mod report;
mod stages;
mod streaming;
mod wholeway;
mod yardstick;

use std::path::PathBuf;

use report::Report;

/// What to measure, and how much.
pub(crate) struct Plan {
    /// Records and rounds are divided by this.
    pub(crate) divide: u64,
    /// Only benchmarks whose name contains this.
    only: Option<String>,
}

impl Plan {
    /// Whether a benchmark was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// A number of records.
    pub(crate) fn records(&self, full: u64) -> u64 {
        full / self.divide
    }

    /// A number of rounds: odd, for the median.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        if self.divide > 1 { 1 } else { full }
    }
}

fn main() {
    let mut plan = Plan { divide: 1, only: None };
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => plan.divide = 10,
            "--json" => json = arguments.next().map(PathBuf::from),
            name => plan.only = Some(name.to_owned()),
        }
    }
    let mut report = Report::default();
    stages::run(&plan, &mut report);
    append::run(&plan, &mut report);
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
    tokio.block_on(async {
        streaming::run(&plan, &mut report).await;
        wholeway::run(&plan, &mut report).await;
        durability::run(&plan, &mut report).await;
    });
    report.print();
    if let Some(path) = json {
        report.write(&path);
        println!("\nwritten to {}", path.display());
    }
}
