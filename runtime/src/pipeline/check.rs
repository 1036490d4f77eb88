//! A pipeline against the world it is to run in: its topics, modules and the other pipelines.

use std::collections::{HashMap, HashSet, VecDeque};

use millstream_broker::name::TopicName;

use super::nearest::did_you_mean;
use super::parse::parse_what_can_be;
use super::plan::{self, Plan};
use super::{DEFAULT_TAG, Mistake, Mistakes, ModuleRef, PipelineSpec, Place, Placed, article, reads_what_it_writes};
use crate::host::{ModuleHash, StageKind};

/// What a pipeline is checked against.
pub trait World {
    /// How many partitions a topic has; None where there is no such topic.
    fn topic_partitions(&self, topic: &str) -> Option<u32>;

    /// Whether records of one key may be in two partitions of a topic, because partitions were added to it.
    fn keys_moved(&self, _topic: &str) -> bool {
        false
    }

    /// Over how many partitions the running version of a pipeline's aggregate keeps its state.
    fn state_partitions(&self, _pipeline: &str, _stage: &str) -> Option<u32> {
        None
    }

    /// The module behind a reference.
    ///
    /// # Errors
    /// Why there is none, as the end of a sentence that begins with the reference: "is not uploaded".
    fn module(&self, reference: &ModuleRef) -> Result<(ModuleHash, StageKind), String>;

    /// The pipelines that are deployed. One with the checked pipeline's own name is left out of account: it is being
    /// replaced.
    fn other_pipelines(&self) -> Vec<OtherPipeline>;

    /// The topics there are, to say which one was meant.
    fn topic_names(&self) -> Vec<String>;

    /// The modules there are, as `name` or `name:tag`, to say which one was meant.
    fn module_names(&self) -> Vec<String>;
}

/// A deployed pipeline, as far as another one needs to know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtherPipeline {
    /// Its name.
    pub name: String,
    /// The topics that it reads.
    pub from: Vec<String>,
    /// The topics that it writes results to: [`PipelineSpec::outputs`].
    pub to: Vec<String>,
}

/// A pipeline that can run: its modules are there and fit, its topics are there or can be made.
#[derive(Clone, Debug)]
pub struct CheckedPipeline {
    /// What the file says.
    pub spec: PipelineSpec,
    /// The module of each stage, in the stages' order.
    pub modules: Vec<ModuleHash>,
    /// What its tasks run.
    pub plan: Plan,
    outputs: Vec<TopicName>,
    dead_letters: Option<TopicName>,
}

impl CheckedPipeline {
    /// The topics that results are written to, each once: to be made where they are missing. Without dead letters
    /// and repartition topics.
    pub fn outputs(&self) -> &[TopicName] {
        &self.outputs
    }

    /// The topic for dead letters, to be made where it is missing; none where no stage has
    /// `on-failure: dead-letter`.
    pub fn dead_letters(&self) -> Option<&TopicName> {
        self.dead_letters.as_ref()
    }
}

/// Checks a pipeline against `world`, and plans it.
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

/// [`parse()`](super::parse()) and [`check`] in one, for who has both the text and the world.
///
/// # Errors
/// What is wrong with the file by itself and, as far as it could be read, what does not fit `world`.
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
            // A source that is an output as well is told as a cycle.
            if self.world.topic_partitions(topic).is_some() || own.contains(topic.as_str()) {
                continue;
            }
            // Guessing looks at every topic there is, so it ends where nobody will read the guess.
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
                        "module `{reference}` is for {} stage, not {}; write `{kind}: {reference}`",
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

    /// Ways from an output of this pipeline back to one of its sources, of itself or through others.
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
                self.mistakes.push(Mistake::new(output.place, format!("a cycle: {way}, which this pipeline reads")));
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

/// The shortest way from `output` to one of the `sources`: `late -> [retry] -> flights`.
fn way_back(
    output: &str,
    sources: &HashMap<&str, Place>,
    readers: &HashMap<&str, Vec<&OtherPipeline>>,
) -> Option<String> {
    // Each topic that was reached, with the pipeline and the topic it was reached through.
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

/// The same module with another tag, else one with a similar name.
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
