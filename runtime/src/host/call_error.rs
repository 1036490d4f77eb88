//! The reasons why a call of a guest returned no result, and how they are told from wasmtime's errors. This file must
//! not know how a call is made.

use wasmtime::{Trap, WasmBacktrace};

use super::component::first_lines;
use super::limits::CallLimits;

/// The reason why a call returned no result. All but the last two may be caused by a single record.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The guest trapped, for example because it panicked.
    #[error("the module trapped: {reason}")]
    Trap {
        /// The last error line that the guest logged, or wasmtime's message.
        reason: String,
    },
    /// The call did not return in time.
    #[error("the module did not return within {call_deadline_ms} ms (call-deadline-ms)")]
    Deadline {
        /// The limit, in milliseconds.
        call_deadline_ms: u64,
    },
    /// The guest asked for more memory than its limit.
    #[error("the module needs more than {memory_bytes_max} bytes of memory (memory-bytes-max)")]
    Memory {
        /// The limit, in bytes.
        memory_bytes_max: usize,
    },
    /// The call returned more than its limit.
    #[error("the module returned more than {output_bytes_max} bytes at once (output-bytes-max)")]
    OutputTooLarge {
        /// The limit, in bytes.
        output_bytes_max: usize,
    },
    /// The result does not follow the rules of `stage.wit`.
    #[error("the module returned {what}")]
    Malformed {
        /// What is wrong with the result.
        what: String,
    },
    /// `finish` failed for a key.
    #[error("finish: {reason}")]
    Finish {
        /// The guest's reason.
        reason: String,
    },
    /// The guest refused its parameters.
    #[error("the module refused its parameters: {reason}")]
    Configure {
        /// The guest's reason.
        reason: String,
    },
    /// The module could not be instantiated.
    #[error("the module cannot be started: {reason}")]
    Instantiate {
        /// wasmtime's message.
        reason: String,
    },
}

impl CallError {
    /// Returns whether records of the call may be the cause, so that a call with fewer records may succeed.
    pub fn may_be_a_records(&self) -> bool {
        !matches!(self, Self::Configure { .. } | Self::Instantiate { .. })
    }

    /// Returns the reason why an instance could not be created.
    pub(super) fn instantiate(error: &wasmtime::Error) -> Self {
        Self::Instantiate { reason: whole_text(error) }
    }

    /// Returns the reason why a call failed, if no limit of memory was hit. `said` is the last error that the guest
    /// logged.
    pub(super) fn call(error: &wasmtime::Error, said: Option<&str>, limits: &CallLimits) -> Self {
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Deadline { call_deadline_ms: limits.call_deadline_ms },
            Some(_) => Self::Trap { reason: said.map_or_else(|| trap_text(error), str::to_owned) },
            // wasmtime's type for this error is private. The fuel only limits how much a guest passes to the host.
            None if format!("{error:#}").contains("fuel allocated for hostcalls") => {
                Self::OutputTooLarge { output_bytes_max: limits.output_bytes_max }
            }
            None => Self::Malformed { what: format!("a result that cannot be read: {}", whole_text(error)) },
        }
    }
}

/// Formats a trap in one line: what happened, and in which function if its name is known.
pub(super) fn trap_text(error: &wasmtime::Error) -> String {
    let what = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => first_lines(&error.root_cause().to_string()),
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
    match frames.iter().find_map(|frame| frame.func_name()) {
        Some(name) => format!("{what} in {name}"),
        None => what,
    }
}

/// Formats an error with its causes.
fn whole_text(error: &wasmtime::Error) -> String {
    first_lines(&format!("{error:#}"))
}
