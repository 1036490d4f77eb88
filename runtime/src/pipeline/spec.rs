//! A pipeline file as written. This file must not know the syntax of the file, or what the file is checked against.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::module_ref::ModuleRef;
use super::place::Placed;
use crate::failure::FailurePolicy;
use crate::host::{CallLimits, StageKind};

/// Suffix of the topics that the runtime creates between two subtopologies, `<pipeline>.<stage>.repartition`. Pipeline files
/// may not name such topics.
pub const REPARTITION_SUFFIX: &str = ".repartition";

/// Suffix of the topic for dead letters, `<pipeline>.dead-letters`, unless `dead-letters` names another topic. A
/// pipeline may read such a topic, but may not write its output to it.
pub const DEAD_LETTERS_SUFFIX: &str = ".dead-letters";

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

    /// Returns the topics that results are written to, each with its place.
    pub(super) fn placed_outputs(&self) -> impl Iterator<Item = &Placed<String>> {
        self.stages.iter().filter_map(|stage| stage.to.as_ref()).chain(&self.to)
    }
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

fn distinct<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    words.filter(|word| seen.insert(*word)).collect()
}
