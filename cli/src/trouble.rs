//! What keeps a command waiting: it is told once, where it lasts.

use std::time::{Duration, Instant};

use crate::exit;
use crate::progress::Progress;

/// Trouble that lasts as long as this is told.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// Since when there is trouble, and whether that was told.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Option<(Instant, bool)>);

impl Trouble {
    /// `reason` is why it waits, if it does; `what` says what is waited for.
    pub(crate) fn tell(&mut self, what: &str, reason: Option<String>, progress: &Progress) {
        let Some(reason) = reason else {
            self.0 = None;
            return;
        };
        let (since, told) = self.0.get_or_insert_with(|| (Instant::now(), false));
        if !*told && since.elapsed() >= TOLD_AFTER {
            *told = true;
            progress.aside(|| exit::say(format_args!("{what}, it is tried again: {reason}")));
        }
    }
}
