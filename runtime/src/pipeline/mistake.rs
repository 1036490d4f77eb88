//! The mistakes in a pipeline file, and the words that several of them share. This file must not know how mistakes are
//! found.

use std::fmt;

use super::place::Place;
use crate::host::StageKind;

/// A mistake in a pipeline file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mistake {
    /// Line number, starting at 1.
    pub line: u32,
    /// Column in characters, starting at 1.
    pub column: u32,
    /// What is wrong and, if known, how to correct it.
    pub message: String,
}

impl Mistake {
    /// Creates a mistake at `place`.
    pub(crate) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { line: place.line, column: place.column, message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// All mistakes of a pipeline file, in the order of the file; never empty. Displayed with one mistake per line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistakes {
    shown: Vec<Mistake>,
    left_out: usize,
}

impl Mistakes {
    /// Maximum number of mistakes that are kept. A file of maximum size could have a hundred thousand, more than anyone
    /// reads, and a network response must carry them.
    pub const SHOWN_MAX: usize = 100;

    /// Sorts the mistakes, of which there must be at least one.
    pub(crate) fn new(mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort();
        mistakes.dedup();
        let left_out = mistakes.len().saturating_sub(Self::SHOWN_MAX);
        mistakes.truncate(Self::SHOWN_MAX);
        Self { shown: mistakes, left_out }
    }

    /// Returns `Ok` if there are no mistakes.
    pub(crate) fn none_in(mistakes: Vec<Mistake>) -> Result<(), Self> {
        if mistakes.is_empty() { Ok(()) } else { Err(Self::new(mistakes)) }
    }

    /// Returns the mistakes, in the order of the file, at most [`Mistakes::SHOWN_MAX`].
    pub fn as_slice(&self) -> &[Mistake] {
        &self.shown
    }

    /// Returns how many mistakes are missing in [`Mistakes::as_slice`].
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

impl IntoIterator for Mistakes {
    type Item = Mistake;
    type IntoIter = std::vec::IntoIter<Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.shown.into_iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.shown.iter().enumerate() {
            let line_break = if index == 0 { "" } else { "\n" };
            write!(f, "{line_break}{mistake}")?;
        }
        match self.left_out {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Mistakes {}

/// Returns the message for an output that is also a source.
pub(super) fn reads_what_it_writes(topic: &str, source: Place) -> String {
    format!("`{topic}` is also a source, on line {}: the pipeline would read its own output", source.line)
}

/// Returns the kind of a stage with its article.
pub(super) fn article(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Filter => "a filter",
        StageKind::Map => "a map",
        StageKind::Aggregate => "an aggregate",
    }
}

/// Shortens text for a message, because it may be as long as the file.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
