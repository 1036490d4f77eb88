//! Throttling of background work. Work that is not urgent (merging, compaction, backups, reads of data that is not in
//! memory) pauses between its steps while there are commits, so that the disk and the processor are free for them.

use std::time::{Duration, Instant};

/// Bytes read or written between two pauses.
const STEP_BYTES: u64 = 4 << 20;

/// Tracks the work of one thread and decides when it pauses. While there are commits, half of the time is spent
/// pausing.
#[derive(Debug)]
pub(crate) struct Pause {
    bytes: u64,
    /// How long the current step has worked so far.
    worked: Duration,
    since: Instant,
    /// The number of commits at the beginning of the step.
    commits: u64,
}

/// The longest pause. A step that took longer was slowed down by a busy machine, and a longer pause would not help.
const REST_MAX: Duration = Duration::from_millis(200);

impl Pause {
    /// Begins the first step. `commits` is the number of commits of the store so far.
    pub(crate) fn new(commits: u64) -> Self {
        Self { bytes: 0, worked: Duration::ZERO, since: Instant::now(), commits }
    }

    /// Resumes work. The time since the last work is not counted, and if it was longer than [`REST_MAX`] a new step
    /// begins.
    pub(crate) fn resume(&mut self, commits: u64) {
        if self.since.elapsed() > REST_MAX {
            *self = Self::new(commits);
        }
        self.since = Instant::now();
    }

    /// Returns how long to pause now. Once [`STEP_BYTES`] have been read or written, and if there were commits
    /// meanwhile, that is as long as the work took, up to [`REST_MAX`].
    #[must_use = "the caller must pause for the returned time"]
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

    /// Pauses the current thread for the time that [`Pause::after`] returns. The pause does not count as work.
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
        // Neither the hour nor the commit before it is counted.
        assert_eq!(pause.after(STEP_BYTES, 1), Duration::ZERO);
        pause.resume(1);
        pause.since -= Duration::from_millis(1);
        let rest = pause.after(STEP_BYTES, 2);
        assert!(rest >= Duration::from_millis(1) && rest <= REST_MAX, "{rest:?}");
        pause.since -= Duration::from_secs(3_600);
        assert_eq!(pause.after(STEP_BYTES, 3), REST_MAX);
    }
}
