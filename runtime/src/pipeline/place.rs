//! Places in a pipeline file. This file must not know what is written there.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in a pipeline file. Places are ordered as in the text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Line number, starting at 1.
    pub line: u32,
    /// Column in characters, starting at 1.
    pub column: u32,
}

impl Place {
    /// The beginning of the file.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A value of the file, with its place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where the value is written.
    pub place: Place,
}

impl<T> Placed<T> {
    /// Creates a value that is written at `place`.
    pub fn new(value: T, place: Place) -> Self {
        Self { value, place }
    }
}
