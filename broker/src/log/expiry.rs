//! Forgetting idempotent producers that are idle for long, a slice of the partitions in each round.

use std::sync::Arc;

use parking_lot::Mutex;

use super::cleaner::Cleaner;
use crate::clock::Clock;

/// Partitions that one round looks at.
const PARTITIONS_A_ROUND: usize = 1_000;

/// What passes for a producer between two rounds, at most. They are a second apart: what is much longer is a clock that was set,
/// or a machine that slept.
const ROUND_MS_MAX: i64 = 10_000;

/// The time by which producers are idle: the wall clock's without its jumps, from that of the start on. A producer that is
/// connected while the clock is set a week ahead must not be forgotten: what it sends again would be stored twice.
pub(crate) struct IdleClock {
    clock: Arc<dyn Clock>,
    round: Mutex<Round>,
}

/// When the last round was, in ms since the epoch.
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

    /// In ms since the epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        let wall_ms = self.clock.now_ms();
        self.round.lock().idle_at(wall_ms)
    }

    /// Begins a round. What was skipped in the one before stays so.
    fn begin_round(&self, wall_ms: i64) -> i64 {
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

/// Forgets the producers that appended nothing for `expiry_ms`, in the partitions from `swept` on, counted over all topics.
/// `swept` is moved to where the next round goes on.
pub(super) fn forget_idle_producers(cleaner: &Cleaner, wall_ms: i64, expiry_ms: u64, swept: &mut usize) {
    let before_ms = cleaner.domain.idle.begin_round(wall_ms).saturating_sub_unsigned(expiry_ms);
    let topics = cleaner.topics();
    let partitions = topics.iter().flat_map(|topic| topic.partitions());
    let mut looked_at = 0;
    for partition in partitions.skip(*swept).take(PARTITIONS_A_ROUND) {
        partition.producers().forget_idle(before_ms);
        looked_at += 1;
    }
    *swept = if looked_at == PARTITIONS_A_ROUND { *swept + looked_at } else { 0 };
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
            // A week ahead, on from there, back by a year, and on again.
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
