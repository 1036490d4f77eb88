//! Reports once, if it lasts, what keeps a command waiting.

use std::time::{Duration, Instant};

use crate::exit;
use crate::progress::Progress;

/// How long trouble must last before it is reported.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// When the current trouble began, and whether it was reported.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Option<(Instant, bool)>);

impl Trouble {
    /// Reports `reason`, the cause of the wait, or `None` without a wait. `what` says what fails to happen.
    pub(crate) fn tell(&mut self, what: &str, reason: Option<String>, progress: &Progress) {
        let Some(reason) = reason else {
            self.0 = None;
            return;
        };
        let (since, told) = self.0.get_or_insert_with(|| (Instant::now(), false));
        if !*told && since.elapsed() >= TOLD_AFTER {
            *told = true;
            progress.aside(|| exit::say(format_args!("{what}, retrying: {reason}")));
        }
    }
}
