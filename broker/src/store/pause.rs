//! Giving way: work that has no hurry rests between its steps where there are commits, so that they find disk and
//! processor free.

use std::time::{Duration, Instant};

/// Bytes between two rests.
const STEP_BYTES: u64 = 4 << 20;

/// Of the time, the share that is rest while there are commits: half.
#[derive(Debug)]
pub(super) struct Pause {
    bytes: u64,
    since: Instant,
    /// How many there were when the step began.
    commits: u64,
}

/// The longest rest: a step that took longer met a busy machine, and waiting longer helps nobody.
const REST_MAX: Duration = Duration::from_millis(200);

impl Pause {
    /// `commits` is how many the store has seen.
    pub(super) fn new(commits: u64) -> Self {
        Self { bytes: 0, since: Instant::now(), commits }
    }

    /// Rests once enough was written: as long as writing it took.
    pub(super) fn after(&mut self, bytes: u64, commits: u64) {
        self.bytes += bytes;
        if self.bytes >= STEP_BYTES {
            if commits > self.commits {
                std::thread::sleep(self.since.elapsed().min(REST_MAX));
            }
            *self = Self::new(commits);
        }
    }
}
