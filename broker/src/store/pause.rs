//! Giving way: work that has no hurry (merging, compaction, backups, reads of what is not in memory) rests between its
//! steps where there are commits, so that they find disk and processor free.

use std::time::{Duration, Instant};

/// Bytes between two rests.
const STEP_BYTES: u64 = 4 << 20;

/// Of the time, the share that is rest while there are commits: half.
#[derive(Debug)]
pub(crate) struct Pause {
    bytes: u64,
    /// Time of the step that is over.
    worked: Duration,
    since: Instant,
    /// How many there were when the step began.
    commits: u64,
}

/// The longest rest: a step that took longer met a busy machine, and waiting longer helps nobody.
const REST_MAX: Duration = Duration::from_millis(200);

impl Pause {
    /// `commits` is how many the store has seen.
    pub(crate) fn new(commits: u64) -> Self {
        Self { bytes: 0, worked: Duration::ZERO, since: Instant::now(), commits }
    }

    /// Work goes on: the time since it was last done does not count.
    pub(crate) fn resume(&mut self) {
        self.since = Instant::now();
    }

    /// Rests once enough was read or written: as long as that took.
    pub(crate) fn after(&mut self, bytes: u64, commits: u64) {
        self.bytes += bytes;
        self.worked += self.since.elapsed();
        self.resume();
        if self.bytes >= STEP_BYTES {
            if commits > self.commits {
                std::thread::sleep(self.worked.min(REST_MAX));
            }
            *self = Self::new(commits);
        }
    }
}
