//! The pipeline file that a user deploys: as written ([`PipelineSpec`]), and as it will run ([`CheckedPipeline`]).
//!
//! There are two steps. [`parse()`] considers only the text. [`check`] compares it with the topics, modules and
//! pipelines of a [`World`], and plans the segments that tasks run. Each reports all mistakes that it finds, with line
//! and column; [`read`] does both steps and reports the mistakes of both. This module does not read files, topics or
//! modules, and does not depend on how stages run.

mod check;
mod nearest;
mod parse;
mod plan;
mod yaml;

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use millstream_broker::name;
use serde::{Deserialize, Serialize};

use crate::failure::FailurePolicy;
use crate::host::{CallLimits, StageKind};

pub use check::{CheckedPipeline, OtherPipeline, World, check, read};
pub use parse::{
    CALL_DEADLINE_MS_MAX, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, OUTPUT_BYTES_MAX, PIPELINE_FILE_BYTES_MAX, STAGES_MAX,
    parse,
};
pub use plan::{Plan, Repartition, Segment, Sink, Source};

/// Suffix of the topics that the runtime creates between two segments, `<pipeline>.<stage>.repartition`. Pipeline files
/// may not name such topics.
pub const REPARTITION_SUFFIX: &str = ".repartition";

/// Suffix of the topic for dead letters, `<pipeline>.dead-letters`, unless `dead-letters` names another topic. A
/// pipeline may read such a topic, but may not write its output to it.
pub const DEAD_LETTERS_SUFFIX: &str = ".dead-letters";

/// The tag of a module reference without a tag.
pub const DEFAULT_TAG: &str = "latest";

/// A pipeline file as written, with defaults filled in. Stored as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PipelineSpec {
    /// Name of the pipeline and of its consumer group.
    pub name: Placed<String>,
    /// The source topics, at least one, without duplicates.
    pub from: Vec<Placed<String>>,
    /// Where a new pipeline starts to read.
    pub start: Start,
    /// The stages, at least one, in the order in which they run.
    pub stages: Vec<StageSpec>,
    /// The topic for the last stage's output. `None` only if that stage has its own `to`.
    pub to: Option<Placed<String>>,
    /// The topic for dead letters, if the file names one; see [`PipelineSpec::dead_letter_topic`].
    pub dead_letters: Option<Placed<String>>,
}

impl PipelineSpec {
    /// Returns the modules named by path, without duplicates, in the order of the file. They must be uploaded first.
    pub fn module_paths(&self) -> Vec<&str> {
        distinct(self.stages.iter().filter_map(|stage| stage.module.value.path()))
    }

    /// Returns the topics that results are written to, without duplicates, in the order of the stages. Dead letters and
    /// internal topics are not included.
    pub fn outputs(&self) -> Vec<&str> {
        distinct(self.placed_outputs().map(|topic| topic.value.as_str()))
    }

    /// Returns the topic for dead letters, or `None` if no stage has `on-failure: dead-letter`.
    pub fn dead_letter_topic(&self) -> Option<String> {
        let needed = self.stages.iter().any(|stage| matches!(stage.on_failure, FailurePolicy::DeadLetter));
        needed.then(|| match &self.dead_letters {
            Some(topic) => topic.value.clone(),
            None => format!("{}{DEAD_LETTERS_SUFFIX}", self.name.value),
        })
    }

    fn placed_outputs(&self) -> impl Iterator<Item = &Placed<String>> {
        self.stages.iter().filter_map(|stage| stage.to.as_ref()).chain(&self.to)
    }
}

/// Returns the message for an output that is also a source.
fn reads_what_it_writes(topic: &str, source: Place) -> String {
    format!("`{topic}` is also a source, on line {}: the pipeline would read its own output", source.line)
}

/// Returns the kind of a stage with its article.
fn article(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Filter => "a filter",
        StageKind::Map => "a map",
        StageKind::Aggregate => "an aggregate",
    }
}

fn distinct<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    words.filter(|word| seen.insert(*word)).collect()
}

/// A stage as written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageSpec {
    /// The kind of the stage. Its place is that of the key that names the module.
    pub kind: Placed<StageKind>,
    /// The stage's module.
    pub module: Placed<ModuleRef>,
    /// Name of the stage, unique in the pipeline and without dots. By default it is the module's name, at the module's
    /// place.
    pub name: Placed<String>,
    /// The module's parameters.
    pub with: BTreeMap<String, String>,
    /// What happens to records that the stage fails on.
    pub on_failure: FailurePolicy,
    /// A separate topic for the stage's output, in addition to the next stage or the pipeline's `to`.
    pub to: Option<Placed<String>>,
    /// Limits for one call of the module.
    pub limits: CallLimits,
    /// Whether a map leaves keys unchanged. False for other stages, which never change keys.
    pub keeps_key: bool,
}

/// Where a new pipeline starts to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At the oldest record that exists.
    Earliest,
    /// At the records that are written after the pipeline is created.
    Latest,
}

/// A reference to a module in a pipeline file: `name`, `name:tag`, or a path that begins with `./`, `../` or `/`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleRef(String);

impl ModuleRef {
    /// Parses a reference.
    ///
    /// # Errors
    /// A message that says what is wrong, if the text has none of the three forms.
    pub fn new(text: &str) -> Result<Self, String> {
        let reference = Self(text.to_owned());
        if let Some(path) = reference.path() {
            if text.chars().any(char::is_control) || path.ends_with('/') {
                return Err(format!("{text:?} is not the path of a module"));
            }
            return Ok(reference);
        }
        if text.contains('/') || text.ends_with(".wasm") {
            return Err(format!("{text:?} is not a module name; a path begins with ./, ../ or /"));
        }
        if !name::is_valid(reference.name()) || !name::is_valid(reference.tag()) {
            return Err(format!(
                "{:?} is not a module: write name, name:tag, or a path that begins with ./, ../ or /",
                shortened(text)
            ));
        }
        Ok(reference)
    }

    /// Returns the path, if the module is named by one.
    pub fn path(&self) -> Option<&str> {
        let text = self.0.as_str();
        ["./", "../", "/"].iter().any(|start| text.starts_with(start)).then_some(text)
    }

    /// Returns the module's name without its tag; for a path, the file name without its extension.
    pub fn name(&self) -> &str {
        match self.path() {
            Some(path) => {
                let file = path.rsplit('/').next().unwrap_or(path);
                file.rsplit_once('.').map_or(file, |(stem, _)| stem)
            }
            None => self.0.split_once(':').map_or(self.0.as_str(), |(name, _)| name),
        }
    }

    /// Returns the tag, which is [`DEFAULT_TAG`] if none is written. It has no meaning for a path.
    pub fn tag(&self) -> &str {
        match self.path() {
            Some(_) => DEFAULT_TAG,
            None => self.0.split_once(':').map_or(DEFAULT_TAG, |(_, tag)| tag),
        }
    }

    /// Returns the reference as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ModuleRef {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<ModuleRef> for String {
    fn from(reference: ModuleRef) -> Self {
        reference.0
    }
}

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

/// Shortens text for a message, because it may be as long as the file.
fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
