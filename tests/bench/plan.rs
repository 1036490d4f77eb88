//! What to measure, and how much of it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use millstream_tests::measure::report::{Report, Run};

/// What `--quick` divides by.
const QUICK: u64 = 10;

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) plan: Plan,
    /// Where the JSON goes.
    pub(crate) json: Option<PathBuf>,
    /// What to compare with, read before anything is measured: the JSON may go to the same file.
    pub(crate) old: Option<Report>,
}

impl Arguments {
    /// Reads the command line.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut read = Self { plan: Plan { divide: 1, only: None }, json: None, old: None };
        while let Some(argument) = arguments.next() {
            let mut path = || arguments.next().map(PathBuf::from).with_context(|| format!("{argument} needs a file"));
            match argument.as_str() {
                "--quick" => read.plan.divide = QUICK,
                "--json" => read.json = Some(path()?),
                "--compare" => read.old = Some(Report::read(&path()?)?),
                option if option.starts_with('-') => {
                    bail!(
                        "there is no option {option}: use --quick, --json FILE, --compare OLD.json, or a part of a name"
                    )
                }
                name => read.plan.only = Some(name.to_owned()),
            }
        }
        Ok(read)
    }
}

/// What to measure, and how much.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Records are divided by this, and where it is more than 1 there is one round.
    divide: u64,
    /// Only benchmarks whose name contains this.
    only: Option<String>,
}

impl Plan {
    /// Whether a benchmark was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// Whether a benchmark was asked for whose figures begin with this, and go on with one of those.
    pub(crate) fn wants_any(&self, name: &str, of: &[&str]) -> bool {
        self.wants(name) || of.iter().any(|of| self.wants(&format!("{name}, {of}")))
    }

    /// A number of records.
    pub(crate) fn records(&self, full: u64) -> u64 {
        full / self.divide
    }

    /// A number of seconds: three at least, which a load needs to be steady.
    pub(crate) fn seconds(&self, full: u64) -> u64 {
        (full / self.divide).max(3)
    }

    /// A number of rounds.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        if self.is_quick() { 1 } else { full }
    }

    /// Whether it is to be seen that everything works, and no more.
    pub(crate) fn is_quick(&self) -> bool {
        self.divide > 1
    }

    /// How figures of this plan come about.
    pub(crate) fn run(&self) -> Run {
        Run {
            divided_by: self.divide,
            only: self.only.clone(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            debug_assertions: cfg!(debug_assertions),
        }
    }
}
