//! The clock by which idle producers and unused groups expire.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Clock;

/// The maximum idle time that is counted between two rounds, in ms. Rounds are a second apart, so a much longer time
/// means that the clock was set or that the machine slept.
const ROUND_MS_MAX: i64 = 10_000;

/// The clock that measures how long producers have been idle. It starts at the wall clock's time and follows it without
/// its jumps. If the wall clock is set a week ahead, a connected producer must not be forgotten, because batches that
/// it sends again would be stored twice.
pub(crate) struct IdleClock {
    clock: Arc<dyn Clock>,
    round: Mutex<Round>,
}

/// The time of the last round by both clocks, in ms since the epoch.
#[derive(Clone, Copy)]
struct Round {
    idle_ms: i64,
    wall_ms: i64,
}

impl IdleClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let wall_ms = clock.now_ms();
        Self { clock, round: Mutex::new(Round { idle_ms: wall_ms, wall_ms }) }
    }

    /// Returns the current time of this clock, in ms since the epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        self.at(self.clock.now_ms())
    }

    /// Returns the idle clock's time at the wall clock's time `wall_ms`, in ms since the epoch.
    pub(crate) fn at(&self, wall_ms: i64) -> i64 {
        self.round.lock().idle_at(wall_ms)
    }

    /// Begins a round and returns its time. Jumps that were skipped in the previous round stay skipped.
    pub(super) fn begin_round(&self, wall_ms: i64) -> i64 {
        let mut round = self.round.lock();
        *round = Round { idle_ms: round.idle_at(wall_ms), wall_ms };
        round.idle_ms
    }
}

impl Round {
    fn idle_at(&self, wall_ms: i64) -> i64 {
        self.idle_ms + wall_ms.saturating_sub(self.wall_ms).clamp(0, ROUND_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    struct Set(AtomicI64);

    impl Clock for Set {
        fn now_ms(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_clock_that_is_set_makes_nobody_idle() {
        let clock = Arc::new(Set(AtomicI64::new(1_000_000)));
        let idle = IdleClock::new(clock.clone());
        for (wall_ms, now_ms) in [
            (1_001_000, 1_001_000),
            (1_003_500, 1_003_500),
            // The clock is set a week ahead, runs on, is set back to the epoch, and runs on again.
            (605_803_500, 1_013_500),
            (605_804_500, 1_014_500),
            (0, 1_014_500),
            (1_000, 1_015_500),
        ] {
            clock.0.store(wall_ms, Ordering::Relaxed);
            assert_eq!(idle.now_ms(), now_ms, "at {wall_ms}");
            assert_eq!(idle.begin_round(wall_ms), now_ms, "at {wall_ms}");
            assert_eq!(idle.now_ms(), now_ms, "at {wall_ms}");
        }
    }
}
