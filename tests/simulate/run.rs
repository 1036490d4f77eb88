//! One run: a workload and a seed.

use std::collections::BTreeSet;

use millstream_simulator::{Outcome, Settings};

/// What a workload knows of its run, and what it says of it.
#[derive(Debug)]
pub(crate) struct Run {
    /// Decides everything.
    pub(crate) seed: u64,
    met: BTreeSet<&'static str>,
}

impl Run {
    /// Notes that the run met something that its workload is there for: one that never does proves nothing.
    pub(crate) fn met(&mut self, what: &'static str) {
        self.met.insert(what);
    }
}

/// A kind of run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// How often it is chosen, beside others.
    pub(crate) share: u64,
    pub(crate) run: fn(&mut Run),
    /// What some of many runs must meet.
    pub(crate) meets: &'static [&'static str],
}

/// Runs a workload under the simulator, and returns what it met.
pub(crate) fn simulate(workload: Workload, seed: u64, keep_lines: bool) -> Outcome<BTreeSet<&'static str>> {
    millstream_simulator::run(Settings { seed, keep_lines }, move || {
        let mut run = Run { seed, met: BTreeSet::new() };
        (workload.run)(&mut run);
        run.met
    })
}
