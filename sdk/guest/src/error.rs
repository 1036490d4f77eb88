//! The error type of stages.

use std::fmt;

/// The result type of stages.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a record could not be processed, as text. Any error converts to this type with `?`.
pub struct Error(String);

impl Error {
    /// Creates an error with the message `reason`.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    pub(crate) fn into_reason(self) -> String {
        self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}
