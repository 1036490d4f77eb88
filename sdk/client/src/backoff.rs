//! How long to wait before another attempt: each time twice as long, up to a second.

use std::time::Duration;

const WAIT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    next: Duration,
}

impl Backoff {
    /// `first_ms` is the first wait.
    pub(crate) fn new(first_ms: u64) -> Self {
        let first = Duration::from_millis(first_ms);
        Self { first, next: first }
    }

    /// The wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(WAIT_MAX);
        wait
    }

    /// It went well: the next wait is the first.
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
