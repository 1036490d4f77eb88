//! Checks a pipeline against its environment: the topics, the modules and the other pipelines.

use std::collections::{HashMap, HashSet, VecDeque};

use millstream_broker::name::TopicName;

use super::mistake::{Mistake, Mistakes, article, reads_what_it_writes};
use super::module_ref::{DEFAULT_TAG, ModuleRef};
use super::nearest::did_you_mean;
use super::parse::parse_what_can_be;
use super::place::{Place, Placed};
use super::plan::{self, Plan};
use super::spec::PipelineSpec;
use crate::host::{ModuleHash, StageKind};

/// The environment that a pipeline is checked against.
pub trait World {
    /// Returns the number of partitions of a topic, or `None` if there is no such topic.
    fn topic_partitions(&self, topic: &str) -> Option<u32>;

    /// Returns whether records of one key may be in two partitions of a topic, because partitions were added to it.
    fn keys_moved(&self, _topic: &str) -> bool {
        false
    }

    /// Returns the number of partitions over which the running version of a pipeline's aggregate keeps its state.
    fn state_partitions(&self, _pipeline: &str, _stage: &str) -> Option<u32> {
        None
    }

    /// Returns the module of a reference.
    ///
    /// # Errors
    /// The reason why there is none, as the end of a sentence that begins with the reference: "is not uploaded".
    fn module(&self, reference: &ModuleRef) -> Result<(ModuleHash, StageKind), String>;

    /// Returns the deployed pipelines. One with the same name as the checked pipeline is ignored, because it is being
    /// replaced.
    fn other_pipelines(&self) -> Vec<OtherPipeline>;

    /// Returns the names of all topics, for suggestions.
    fn topic_names(&self) -> Vec<String>;

    /// Returns all modules as `name` or `name:tag`, for suggestions.
    fn module_names(&self) -> Vec<String>;
}

/// A deployed pipeline, as far as the check of another pipeline needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtherPipeline {
    /// Name of the pipeline.
    pub name: String,
    /// The topics that the pipeline reads.
    pub from: Vec<String>,
    /// The topics that the pipeline writes results to: [`PipelineSpec::outputs`].
    pub to: Vec<String>,
}

/// A pipeline that can run: its modules exist and fit, and its topics exist or can be created.
#[derive(Clone, Debug)]
pub struct CheckedPipeline {
    /// The parsed pipeline file.
    pub spec: PipelineSpec,
    /// The module of each stage, in the order of the stages.
    pub modules: Vec<ModuleHash>,
    /// The subtopologies that the tasks run.
    pub plan: Plan,
    outputs: Vec<TopicName>,
    dead_letters: Option<TopicName>,
}

impl CheckedPipeline {
    /// Returns the topics that results are written to, without duplicates. Those that do not exist must be created.
    /// Dead letters and repartition topics are not included.
    pub fn outputs(&self) -> &[TopicName] {
        &self.outputs
    }

    /// Returns the topic for dead letters, or `None` if no stage has `on-failure: dead-letter`. It must be created if
    /// it does not exist.
    pub fn dead_letters(&self) -> Option<&TopicName> {
        self.dead_letters.as_ref()
    }
}

/// Checks a pipeline against `world`, and plans its subtopologies.
///
/// # Errors
/// Everything that does not fit, each with its place in the file.
pub fn check(spec: &PipelineSpec, world: &dyn World) -> Result<CheckedPipeline, Mistakes> {
    let mut checker = Checker { spec, world, mistakes: Vec::new() };
    let modules = checker.fits();
    let outputs = spec.outputs().into_iter().filter_map(|topic| checker.topic_name(&spec.name, topic)).collect();
    let dead_letters = spec.dead_letter_topic().and_then(|topic| checker.topic_name(&spec.name, &topic));
    let plan = plan::plan(
        spec,
        &|topic| world.topic_partitions(topic),
        &|topic| world.keys_moved(topic),
        &|stage| world.state_partitions(&spec.name.value, stage),
        &mut checker.mistakes,
    );
    Mistakes::none_in(checker.mistakes)?;
    Ok(CheckedPipeline { spec: spec.clone(), modules, plan, outputs, dead_letters })
}

/// Does both [`parse()`](super::parse()) and [`check`], for callers that have both the text and the world.
///
/// # Errors
/// The mistakes of the file itself and, as far as it could be parsed, what does not fit `world`.
pub fn read(text: &str, world: &dyn World) -> Result<CheckedPipeline, Mistakes> {
    let (spec, mut mistakes) = parse_what_can_be(text);
    match spec {
        Some(spec) if mistakes.is_empty() => check(&spec, world),
        spec => {
            if let Some(spec) = &spec {
                let mut checker = Checker { spec, world, mistakes };
                checker.fits();
                mistakes = checker.mistakes;
            }
            Err(Mistakes::new(mistakes))
        }
    }
}

struct Checker<'a> {
    spec: &'a PipelineSpec,
    world: &'a dyn World,
    mistakes: Vec<Mistake>,
}

impl Checker<'_> {
    fn fits(&mut self) -> Vec<ModuleHash> {
        self.sources();
        self.cycles();
        self.modules()
    }

    fn sources(&mut self) {
        let own: HashSet<&str> = self.spec.outputs().into_iter().collect();
        let mut known = None;
        for Placed { value: topic, place } in &self.spec.from {
            // A source that is also an output is reported as a cycle.
            if self.world.topic_partitions(topic).is_some() || own.contains(topic.as_str()) {
                continue;
            }
            // A suggestion compares every topic, so it is only made for mistakes that are shown.
            let guess = if self.mistakes.len() < Mistakes::SHOWN_MAX {
                let known = known.get_or_insert_with(|| self.world.topic_names());
                did_you_mean(topic, known.iter().map(String::as_str))
            } else {
                String::new()
            };
            self.mistakes.push(Mistake::new(*place, format!("there is no topic `{topic}`{guess}")));
        }
    }

    fn modules(&mut self) -> Vec<ModuleHash> {
        let mut known = None;
        let mut hashes = Vec::with_capacity(self.spec.stages.len());
        for stage in &self.spec.stages {
            let Placed { value: reference, place } = &stage.module;
            let wanted = stage.kind.value;
            match self.world.module(reference) {
                Ok((hash, kind)) if kind == wanted => hashes.push(hash),
                Ok((_, kind)) => {
                    let message = format!(
                        "module `{reference}` is for {} stage, not for {} stage; write `{kind}: {reference}`",
                        article(kind),
                        article(wanted)
                    );
                    self.mistakes.push(Mistake::new(stage.kind.place, message));
                }
                Err(reason) => {
                    let known = known.get_or_insert_with(|| self.world.module_names());
                    let guess = nearest_module(reference, known);
                    self.mistakes.push(Mistake::new(*place, format!("module `{reference}` {reason}{guess}")));
                }
            }
        }
        hashes
    }

    /// Reports cycles from an output of this pipeline back to one of its sources, directly or through other pipelines.
    fn cycles(&mut self) {
        let others = self.world.other_pipelines();
        let mut readers: HashMap<&str, Vec<&OtherPipeline>> = HashMap::new();
        for other in others.iter().filter(|other| other.name != self.spec.name.value) {
            for topic in &other.from {
                readers.entry(topic).or_default().push(other);
            }
        }
        let sources: HashMap<&str, Place> =
            self.spec.from.iter().map(|topic| (topic.value.as_str(), topic.place)).collect();
        for output in self.spec.placed_outputs() {
            if let Some(source) = sources.get(output.value.as_str()) {
                self.mistakes.push(Mistake::new(output.place, reads_what_it_writes(&output.value, *source)));
            } else if let Some(way) = way_back(&output.value, &sources, &readers) {
                self.mistakes.push(Mistake::new(
                    output.place,
                    format!("this output creates a cycle back to a source of the pipeline: {way}"),
                ));
            }
        }
    }

    fn topic_name(&mut self, at: &Placed<String>, topic: &str) -> Option<TopicName> {
        match TopicName::new(topic) {
            Ok(name) => Some(name),
            Err(error) => {
                self.mistakes.push(Mistake::new(at.place, error.to_string()));
                None
            }
        }
    }
}

/// Returns the shortest path from `output` to one of the `sources`: `late -> [retry] -> flights`.
fn way_back(
    output: &str,
    sources: &HashMap<&str, Place>,
    readers: &HashMap<&str, Vec<&OtherPipeline>>,
) -> Option<String> {
    // The topics reached so far, each with the pipeline and the topic through which it was reached.
    let mut through: HashMap<&str, Option<(&str, &str)>> = HashMap::from([(output, None)]);
    let mut next = VecDeque::from([output]);
    while let Some(topic) = next.pop_front() {
        if sources.contains_key(topic) {
            let mut way = topic.to_owned();
            let mut here = topic;
            while let Some((pipeline, before)) = through.get(here).copied().flatten() {
                way = format!("{before} -> [{pipeline}] -> {way}");
                here = before;
            }
            return Some(way);
        }
        for other in readers.get(topic).into_iter().flatten() {
            for written in &other.to {
                if !through.contains_key(written.as_str()) {
                    through.insert(written, Some((&other.name, topic)));
                    next.push_back(written);
                }
            }
        }
    }
    None
}

/// Suggests the same module with another tag, or else one with a similar name.
fn nearest_module(reference: &ModuleRef, known: &[String]) -> String {
    if reference.path().is_some() {
        return String::new();
    }
    let other_tag = known.iter().find(|known| {
        let (name, tag) = known.split_once(':').unwrap_or((known.as_str(), DEFAULT_TAG));
        name == reference.name() && tag != reference.tag()
    });
    match other_tag {
        Some(known) => format!("; did you mean `{known}`?"),
        None => {
            let names = known.iter().map(|known| known.split(':').next().unwrap_or(known));
            did_you_mean(reference.name(), names.filter(|name| *name != reference.name()))
        }
    }
}
