//! Which benchmarks to run, and at which size.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use millstream_tests::measure::report::{Report, Run};

/// The divisor of `--quick`.
const QUICK: u64 = 10;

/// The command line's arguments.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) plan: Plan,
    /// The file to which the JSON is written.
    pub(crate) json: Option<PathBuf>,
    /// The report to compare with. It is read before anything is measured, because the JSON may be written to the same
    /// file.
    pub(crate) old: Option<Report>,
    /// A `millstream` program of an older build that takes turns with this build's.
    pub(crate) beside: Option<PathBuf>,
}

impl Arguments {
    /// Parses the command line.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut read = Self { plan: Plan { divide: 1, only: None }, json: None, old: None, beside: None };
        while let Some(argument) = arguments.next() {
            let mut path = || arguments.next().map(PathBuf::from).with_context(|| format!("{argument} needs a file"));
            match argument.as_str() {
                "--quick" => read.plan.divide = QUICK,
                "--json" => read.json = Some(path()?),
                "--compare" => read.old = Some(Report::read(&path()?)?),
                "--beside" => read.beside = Some(path()?),
                option if option.starts_with('-') => {
                    bail!(
                        "there is no option {option}: use --quick, --json FILE, --compare OLD.json, --beside PROGRAM, \
                         or a part of a name"
                    )
                }
                name => read.plan.only = Some(name.to_owned()),
            }
        }
        Ok(read)
    }
}

/// Which benchmarks to run, and at which size.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Divisor of the numbers of records. If it is larger than 1, there is only one round.
    divide: u64,
    /// Restricts the run to benchmarks whose name contains this.
    only: Option<String>,
}

impl Plan {
    /// Returns whether a benchmark was selected.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// Returns whether a benchmark was selected whose figures are named `name`, or `name` followed by one of the
    /// suffixes `of`.
    pub(crate) fn wants_any(&self, name: &str, of: &[&str]) -> bool {
        self.wants(name) || of.iter().any(|of| self.wants(&format!("{name}, {of}")))
    }

    /// Scales a number of records.
    pub(crate) fn records(&self, full: u64) -> u64 {
        full / self.divide
    }

    /// Scales a number of seconds. At least three seconds remain, which a load needs to become steady.
    pub(crate) fn seconds(&self, full: u64) -> u64 {
        (full / self.divide).max(3)
    }

    /// Scales a number of rounds.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        if self.is_quick() { 1 } else { full }
    }

    /// Returns whether the run only checks that everything works.
    pub(crate) fn is_quick(&self) -> bool {
        self.divide > 1
    }

    /// Returns the description of runs with this plan.
    pub(crate) fn run(&self) -> Run {
        Run {
            divided_by: self.divide,
            only: self.only.clone(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            debug_assertions: cfg!(debug_assertions),
        }
    }
}
