//! The pipeline file: what a user deploys, as written ([`PipelineSpec`]), then as it will run
//! ([`CheckedPipeline`]).
//!
//! Two steps. [`parse()`] knows only the text; [`check`] sets what it says against the topics, modules
//! and pipelines of a [`World`], and plans the segments that tasks run. Either reports every mistake
//! it can see at once, each with its line and column; [`read`] does both and reports what both found.
//! Nothing here reads a file, a topic or a module, or knows how a stage is run.

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

/// What ends the name of a topic that the runtime makes between two segments, `<pipeline>.<stage>.repartition`.
/// Pipelines may not name such a topic themselves.
pub const REPARTITION_SUFFIX: &str = ".repartition";

/// What ends the name of the topic for dead letters, `<pipeline>.dead-letters`, unless `dead-letters` names
/// another. A pipeline may read such a topic, but not write its output there.
pub const DEAD_LETTERS_SUFFIX: &str = ".dead-letters";

/// The tag of a module reference that names none.
pub const DEFAULT_TAG: &str = "latest";

/// A pipeline file as written, with the defaults filled in. Stored as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PipelineSpec {
    /// The pipeline's name, which is also its consumer group's.
    pub name: Placed<String>,
    /// The source topics, at least one, each once.
    pub from: Vec<Placed<String>>,
    /// Where a new pipeline begins.
    pub start: Start,
    /// The stages, at least one, in the order in which they run.
    pub stages: Vec<StageSpec>,
    /// The topic that takes the last stage's output. None only where that stage has its own `to`.
    pub to: Option<Placed<String>>,
    /// The topic for dead letters, where the file names one: see [`PipelineSpec::dead_letter_topic`].
    pub dead_letters: Option<Placed<String>>,
}

impl PipelineSpec {
    /// The modules named by path, each once, in the order of the file: what has to be uploaded first.
    pub fn module_paths(&self) -> Vec<&str> {
        distinct(self.stages.iter().filter_map(|stage| stage.module.value.path()))
    }

    /// The topics that results are written to, each once, in the order of the stages. Without dead letters and
    /// without the runtime's own topics.
    pub fn outputs(&self) -> Vec<&str> {
        distinct(self.placed_outputs().map(|topic| topic.value.as_str()))
    }

    /// The topic for dead letters; none where no stage has `on-failure: dead-letter`.
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

/// What is wrong with an output that is a source as well.
fn reads_what_it_writes(topic: &str, source: Place) -> String {
    format!("`{topic}` is a source, on line {}: the pipeline would read what it writes", source.line)
}

/// A kind of stage as a sentence has it.
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

/// One stage as written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageSpec {
    /// What the stage does, from the key that names its module; placed at that key.
    pub kind: Placed<StageKind>,
    /// Its module.
    pub module: Placed<ModuleRef>,
    /// Its name, unique in the pipeline and without dots. The module's name, at the module's place, where the file
    /// gives none.
    pub name: Placed<String>,
    /// The module's parameters.
    pub with: BTreeMap<String, String>,
    /// What happens to records that it fails on.
    pub on_failure: FailurePolicy,
    /// A topic of its own for its output, besides what comes after it in the pipeline.
    pub to: Option<Placed<String>>,
    /// What one call of its module may use.
    pub limits: CallLimits,
    /// Whether a map leaves keys as they are. False for other stages, which never change keys.
    pub keeps_key: bool,
}

/// Where a new pipeline begins to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At the oldest record that is kept.
    Earliest,
    /// At the records that are written after it began.
    Latest,
}

/// How a pipeline file names a module: `name`, `name:tag`, or a path that begins with `./`, `../` or `/`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleRef(String);

impl ModuleRef {
    /// Checks a reference.
    ///
    /// # Errors
    /// What is wrong with it, for text that is none of the three forms.
    pub fn new(text: &str) -> Result<Self, String> {
        let reference = Self(text.to_owned());
        if let Some(path) = reference.path() {
            if text.chars().any(char::is_control) || path.ends_with('/') {
                return Err(format!("{text:?} is not the path of a module"));
            }
            return Ok(reference);
        }
        if text.contains('/') || text.ends_with(".wasm") {
            return Err(format!("{text:?} is not a module's name; a path begins with ./, ../ or /"));
        }
        if !name::is_valid(reference.name()) || !name::is_valid(reference.tag()) {
            return Err(format!(
                "{:?} is not a module: write name, name:tag, or a path that begins with ./, ../ or /",
                shortened(text)
            ));
        }
        Ok(reference)
    }

    /// The path, where the module is named by one.
    pub fn path(&self) -> Option<&str> {
        let text = self.0.as_str();
        ["./", "../", "/"].iter().any(|start| text.starts_with(start)).then_some(text)
    }

    /// The module's name without its tag; for a path, the file's name without its ending.
    pub fn name(&self) -> &str {
        match self.path() {
            Some(path) => {
                let file = path.rsplit('/').next().unwrap_or(path);
                file.rsplit_once('.').map_or(file, |(stem, _)| stem)
            }
            None => self.0.split_once(':').map_or(self.0.as_str(), |(name, _)| name),
        }
    }

    /// The tag, [`DEFAULT_TAG`] where none is written. Means nothing for a path.
    pub fn tag(&self) -> &str {
        match self.path() {
            Some(_) => DEFAULT_TAG,
            None => self.0.split_once(':').map_or(DEFAULT_TAG, |(_, tag)| tag),
        }
    }

    /// The reference as written.
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

/// A place in a pipeline file. Orders as one reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
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

/// What the file says, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placed<T> {
    /// What it says.
    pub value: T,
    /// Where it says so.
    pub place: Place,
}

impl<T> Placed<T> {
    /// `value`, written at `place`.
    pub fn new(value: T, place: Place) -> Self {
        Self { value, place }
    }
}

/// One thing that is wrong in a pipeline file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mistake {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// What is wrong there, and what to do where that is known.
    pub message: String,
}

impl Mistake {
    fn new(place: Place, message: impl Into<String>) -> Self {
        Self { line: place.line, column: place.column, message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// Everything that is wrong in a pipeline file, in the file's order; never empty. Shows one mistake a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistakes {
    shown: Vec<Mistake>,
    left_out: usize,
}

impl Mistakes {
    /// As many mistakes are told. A file of the largest size could hold a hundred thousand, and nobody reads
    /// them, but an answer over the network has to carry them.
    pub const SHOWN_MAX: usize = 100;

    fn new(mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort();
        mistakes.dedup();
        let left_out = mistakes.len().saturating_sub(Self::SHOWN_MAX);
        mistakes.truncate(Self::SHOWN_MAX);
        Self { shown: mistakes, left_out }
    }

    /// `Ok` where there are none.
    pub(crate) fn none_in(mistakes: Vec<Mistake>) -> Result<(), Self> {
        if mistakes.is_empty() { Ok(()) } else { Err(Self::new(mistakes)) }
    }

    /// The mistakes, in the file's order, at most [`Mistakes::SHOWN_MAX`].
    pub fn as_slice(&self) -> &[Mistake] {
        &self.shown
    }

    /// How many more there are than [`Mistakes::as_slice`] tells.
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

/// What a message shows of text that may be as long as the file.
fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
