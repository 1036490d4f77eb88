//! Logging to the server's log. The server adds pipeline, stage and partition to each line and limits the rate of
//! lines. Outside a server, lines are written to stderr.

use std::sync::OnceLock;

/// The level of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Every single step.
    Trace,
    /// Details for debugging.
    Debug,
    /// Notable events.
    Info,
    /// Unexpected conditions.
    Warn,
    /// Errors.
    Error,
}

type Sink = fn(Level, &str);

static SINK: OnceLock<Sink> = OnceLock::new();

/// Writes one line.
pub fn write(level: Level, message: &str) {
    match SINK.get() {
        Some(sink) => sink(level, message),
        None => eprintln!("{level:?}: {message}"),
    }
}

/// Installs the sink of log lines. Called once per instance; panic messages are also written to it.
#[doc(hidden)]
pub fn start(sink: Sink) {
    if SINK.set(sink).is_ok() {
        std::panic::set_hook(Box::new(|panic| write(Level::Error, &panic.to_string())));
    }
}

/// Writes a formatted line at info level.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, &::std::format!($($arg)*)) };
}

/// Writes a formatted line at warning level.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warn, &::std::format!($($arg)*)) };
}

/// Writes a formatted line at debug level.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Debug, &::std::format!($($arg)*)) };
}
