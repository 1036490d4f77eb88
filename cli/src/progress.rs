//! Progress of long operations, drawn on stderr: a bar or a spinner if it is a terminal, nothing otherwise.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Maximum number of draws per second.
const DRAWS_PER_SECOND: u8 = 10;

/// Shows what a command is doing. Disappears when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Creates the progress of an operation whose size in bytes is known.
    pub(crate) fn of_bytes(bytes: u64) -> Self {
        let style = "{bar:32} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}  {eta} left";
        Self::new(ProgressBar::new(bytes), style)
    }

    /// Creates the progress of an operation whose size is unknown.
    pub(crate) fn endless() -> Self {
        Self::new(ProgressBar::new_spinner(), "{spinner} {elapsed}  {msg}")
    }

    /// Creates a progress that is never shown, for when the terminal is used for something else.
    pub(crate) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    fn new(bar: ProgressBar, style: &str) -> Self {
        // Nothing is drawn if stderr is not a terminal.
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    /// Sets the number of bytes done and the message.
    pub(crate) fn set(&self, bytes: u64, message: String) {
        self.bar.set_position(bytes);
        self.bar.set_message(message);
    }

    /// Hides the progress while `write` writes to the terminal.
    pub(crate) fn aside(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }

    /// Removes the progress from the terminal.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Sets the message.
    pub(crate) fn say(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
