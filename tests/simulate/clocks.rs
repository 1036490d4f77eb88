//! A wall clock that jumps forward and backward while the store runs and while it is stopped.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use millstream_broker::clock::{Clock, SystemClock};
use millstream_tests::disk::Disk;
use millstream_tests::workload::{Workload, block_on, open_at, settings};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crashes::{DATA, always_cleaning};
use crate::run::Run;

const HOUR_MS: i64 = 3_600_000;

/// A year. This is far longer than the time after which idle producers are forgotten, and a jump must not count as idle
/// time.
const JUMP_HOURS_MAX: i64 = 365 * 24;

/// The system's clock with an offset.
#[derive(Debug, Default)]
struct JumpingClock {
    ahead_ms: AtomicI64,
}

impl Clock for JumpingClock {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms() + self.ahead_ms.load(Ordering::Relaxed)
    }
}

/// Checks that everything acknowledged exists no matter what the clock says, except for tombstones that are due.
pub(crate) fn clocks(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let (disk, clock) = (Disk::default(), Arc::new(JumpingClock::default()));
        let mut workload = Workload::cleaned().with_tombstones_that_may_go();
        for _ in 0..random.random_range(1..4) {
            let options = always_cleaning(disk.options());
            let broker = open_at(clock.clone(), settings(), Path::new(DATA), options).unwrap();
            workload.check(&broker).await;
            for _ in 0..random.random_range(1..6) {
                let ahead_ms = random.random_range(-JUMP_HOURS_MAX..=JUMP_HOURS_MAX) * HOUR_MS;
                let before_ms = clock.ahead_ms.swap(ahead_ms, Ordering::Relaxed);
                run.met(if ahead_ms < before_ms { "a jump back" } else { "a jump ahead" });
                let steps = random.random_range(1..40);
                workload.run(&broker, &mut random, steps).await.unwrap();
                workload.check(&broker).await;
            }
            broker.stop();
            drop(broker);
            if random.random_bool(0.5) { disk.lose_power(random.random()) } else { disk.end_process() }
        }
        if workload.cleaned[0] > 0 {
            run.met("compaction");
        }
    });
}
