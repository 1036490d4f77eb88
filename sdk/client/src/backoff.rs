//! Exponential backoff between attempts. The wait doubles each time, up to one second.

use std::time::Duration;

const WAIT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    next: Duration,
}

impl Backoff {
    /// Creates a backoff whose first wait is `first_ms`.
    pub(crate) fn new(first_ms: u64) -> Self {
        let first = Duration::from_millis(first_ms);
        Self { first, next: first }
    }

    /// Returns the wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(WAIT_MAX);
        wait
    }

    /// Restarts with the first wait after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second_and_begin_anew() {
        let mut backoff = Backoff::new(300);
        let waits = [0; 4].map(|_| backoff.next().as_millis());
        assert_eq!(waits, [300, 600, 1_000, 1_000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 300);
    }
}
