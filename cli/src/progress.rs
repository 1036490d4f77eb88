//! Progress of long work: a bar or a spinner on a terminal, nothing elsewhere. It is drawn on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Draws at most this often.
const DRAWS_PER_SECOND: u8 = 10;

/// What a command is doing. Vanishes when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Work whose size is known, in bytes.
    pub(crate) fn of_bytes(bytes: u64) -> Self {
        let style = "{bar:32} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}  {eta} left";
        Self::new(ProgressBar::new(bytes), style)
    }

    /// Work without a known end.
    pub(crate) fn endless() -> Self {
        Self::new(ProgressBar::new_spinner(), "{spinner} {elapsed}  {msg}")
    }

    /// None, for where a terminal is used for something else.
    pub(crate) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    fn new(bar: ProgressBar, style: &str) -> Self {
        // Stderr that is no terminal is drawn nothing on.
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    /// How far it is, in bytes, and what to say beside it.
    pub(crate) fn set(&self, bytes: u64, message: String) {
        self.bar.set_position(bytes);
        self.bar.set_message(message);
    }

    /// Runs what writes to the terminal, with the progress out of its way.
    pub(crate) fn aside(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }

    /// Shows no more.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// What to say beside it.
    pub(crate) fn say(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
