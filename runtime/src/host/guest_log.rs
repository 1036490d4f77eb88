//! The log of a guest: each line gets the pipeline, stage and partition, and the rate of lines is limited. This file
//! must not know how a guest is called.

use std::sync::Arc;
use std::time::Instant;

use super::bindings::host::Level;

/// Number of log lines that a guest may write at once, and per second after that.
const LOG_BURST: u32 = 20;
const LOG_LINES_A_SECOND: f64 = 5.0;

/// Maximum length of a log line, in bytes. Longer lines are truncated.
const LOG_LINE_BYTES_MAX: usize = 2_000;

/// The fields that are added to a guest's log lines.
#[derive(Clone, Debug, Default)]
pub struct LogContext {
    /// The pipeline.
    pub pipeline: Arc<str>,
    /// The stage.
    pub stage: Arc<str>,
}

/// The log of one instance.
pub(super) struct GuestLog {
    context: LogContext,
    /// The topic and partition whose records are being processed.
    pub(super) partition: String,
    lines: LineBudget,
    /// The last line that the guest logged as an error, which is the reason of a later trap.
    pub(super) last_error: Option<String>,
}

impl GuestLog {
    pub(super) fn new(context: LogContext, partition: String) -> Self {
        let lines = LineBudget { left: f64::from(LOG_BURST), since: Instant::now(), dropped: 0 };
        Self { context, partition, lines, last_error: None }
    }

    /// Writes a line, or drops it if there are too many.
    pub(super) fn write(&mut self, level: Level, mut message: String) {
        if message.len() > LOG_LINE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(LOG_LINE_BYTES_MAX));
        }
        if self.lines.take() {
            self.emit(level, &message);
        }
        if matches!(level, Level::Error) {
            self.last_error = Some(message);
        }
    }

    fn emit(&mut self, level: Level, message: &str) {
        let dropped = std::mem::take(&mut self.lines.dropped);
        let (pipeline, stage, partition) = (&*self.context.pipeline, &*self.context.stage, self.partition.as_str());
        macro_rules! line {
            ($level:ident) => {
                if dropped == 0 {
                    tracing::$level!(target: "millstream::guest", pipeline, stage, partition, "{message}")
                } else {
                    tracing::$level!(target: "millstream::guest", pipeline, stage, partition, dropped, "{message}")
                }
            };
        }
        match level {
            Level::Trace => line!(trace),
            Level::Debug => line!(debug),
            Level::Info => line!(info),
            Level::Warn => line!(warn),
            Level::Error => line!(error),
        }
    }
}

/// Limits the rate of log lines.
#[derive(Debug)]
struct LineBudget {
    left: f64,
    since: Instant,
    dropped: u64,
}

impl LineBudget {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        self.left =
            (self.left + now.duration_since(self.since).as_secs_f64() * LOG_LINES_A_SECOND).min(f64::from(LOG_BURST));
        self.since = now;
        if self.left < 1.0 {
            self.dropped += 1;
            return false;
        }
        self.left -= 1.0;
        true
    }
}
