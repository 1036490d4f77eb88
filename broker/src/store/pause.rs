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

    /// Work goes on: the time since it was last done does not count, and after a long time another step begins.
    pub(crate) fn resume(&mut self, commits: u64) {
        if self.since.elapsed() > REST_MAX {
            *self = Self::new(commits);
        }
        self.since = Instant::now();
    }

    /// How long to rest now: once enough was read or written, as long as that took.
    #[must_use = "who calls it rests"]
    pub(crate) fn after(&mut self, bytes: u64, commits: u64) -> Duration {
        self.bytes += bytes;
        self.worked += self.since.elapsed();
        self.since = Instant::now();
        if self.bytes < STEP_BYTES {
            return Duration::ZERO;
        }
        let rest = if commits > self.commits { self.worked.min(REST_MAX) } else { Duration::ZERO };
        *self = Self::new(commits);
        rest
    }

    /// Rests on this thread as long as [`Pause::after`] says. The rest is no work.
    pub(crate) fn rest_after(&mut self, bytes: u64, commits: u64) {
        std::thread::sleep(self.after(bytes, commits));
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_done_enough_rests_where_there_were_commits_meanwhile() {
        let mut pause = Pause::new(5);
        assert_eq!(pause.after(STEP_BYTES - 1, 6), Duration::ZERO, "not enough yet");
        pause.resume(6);
        assert!(pause.after(1, 6) > Duration::ZERO);
        assert_eq!(pause.after(STEP_BYTES, 6), Duration::ZERO, "no commit since");
        assert!(pause.after(2 * STEP_BYTES, 9) > Duration::ZERO);
        assert_eq!(pause.after(1, 10), Duration::ZERO, "another step begins");
    }

    #[test]
    fn a_rest_is_no_work_that_the_next_one_is_for() {
        const WORKED: Duration = Duration::from_millis(5);
        let mut pause = Pause::new(0);
        let begun = Instant::now();
        pause.since = begun - WORKED;
        pause.rest_after(STEP_BYTES, 1);
        assert!(pause.since >= begun + WORKED, "the next step begins after the rest");
        assert_eq!(pause.worked, Duration::ZERO);
    }

    #[test]
    fn nobody_rests_for_what_was_not_work_nor_for_long() {
        let mut pause = Pause::new(0);
        assert_eq!(pause.after(STEP_BYTES - 1, 1), Duration::ZERO);
        pause.since -= Duration::from_secs(3_600);
        pause.resume(1);
        // Neither the hour nor the commit before it counts.
        assert_eq!(pause.after(STEP_BYTES, 1), Duration::ZERO);
        pause.resume(1);
        pause.since -= Duration::from_millis(1);
        let rest = pause.after(STEP_BYTES, 2);
        assert!(rest >= Duration::from_millis(1) && rest <= REST_MAX, "{rest:?}");
        pause.since -= Duration::from_secs(3_600);
        assert_eq!(pause.after(STEP_BYTES, 3), REST_MAX);
    }
}
