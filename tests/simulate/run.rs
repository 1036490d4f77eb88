//! One run of a workload with a seed.

use std::collections::BTreeSet;

use millstream_simulator::{Outcome, Settings};

/// The seed of a run, and what the run met.
#[derive(Debug)]
pub(crate) struct Run {
    /// Seed that decides everything in the run.
    pub(crate) seed: u64,
    met: BTreeSet<&'static str>,
}

impl Run {
    /// Notes that the run met an event that its workload is meant to exercise. Runs that never meet it prove nothing
    /// about it.
    pub(crate) fn met(&mut self, what: &'static str) {
        self.met.insert(what);
    }
}

/// A kind of run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Relative frequency with which it is chosen.
    pub(crate) share: u64,
    pub(crate) run: fn(&mut Run),
    /// Events that at least one of many runs must meet.
    pub(crate) meets: &'static [&'static str],
}

/// Runs a workload in the simulator, and returns the events that it met.
pub(crate) fn simulate(workload: Workload, seed: u64, keep_lines: bool) -> Outcome<BTreeSet<&'static str>> {
    millstream_simulator::run(Settings { seed, keep_lines }, move || {
        let mut run = Run { seed, met: BTreeSet::new() };
        (workload.run)(&mut run);
        run.met
    })
}
