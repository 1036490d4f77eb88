//! Giving way: work that has no hurry rests between its steps, so that commits find disk and processor
//! free.

use std::time::{Duration, Instant};

/// Bytes between two rests.
const STEP_BYTES: u64 = 4 << 20;

/// Of the time, the share that is rest: half.
#[derive(Debug)]
pub(super) struct Pause {
    bytes: u64,
    since: Instant,
}

/// The longest rest: a step that took longer met a busy machine, and waiting longer helps nobody.
const REST_MAX: Duration = Duration::from_millis(200);

impl Default for Pause {
    fn default() -> Self {
        Self { bytes: 0, since: Instant::now() }
    }
}

impl Pause {
    /// Rests once enough was written: as long as writing it took.
    pub(super) fn after(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= STEP_BYTES {
            std::thread::sleep(self.since.elapsed().min(REST_MAX));
            *self = Self::default();
        }
    }
}
