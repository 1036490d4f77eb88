//! A pipeline cut into the segments that tasks run.
//!
//! One task must own a key before an aggregate sees it. Where that does not hold already, the segment ends there and
//! writes to a topic of the runtime's own, partitioned by key, from which the next segment reads.

use std::ops::Range;

use millstream_broker::name::TopicName;

use super::{Mistake, PipelineSpec, REPARTITION_SUFFIX, shortened};
use crate::host::StageKind;

/// What the tasks of a pipeline run. Records pass through the segments in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// At least one.
    pub segments: Vec<Segment>,
}

impl Plan {
    /// The topics between the segments, which the runtime makes and deletes.
    pub fn repartitions(&self) -> impl Iterator<Item = &Repartition> {
        self.segments.iter().filter_map(|segment| match &segment.sink {
            Some(Sink::Repartition(repartition)) => Some(repartition),
            _ => None,
        })
    }
}

/// A part of a pipeline that one task runs in one go: on a batch of one partition of one of its sources, each stage
/// in the range, the output of each to its own `to` where it has one, and the output of the last to the sink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it reads. There is a task for every partition of every source.
    pub sources: Vec<Source>,
    /// Which of the pipeline's stages it runs. Empty where an aggregate is the first stage on several topics: the
    /// records then go to the sink as they were read.
    pub stages: Range<usize>,
    /// Where the output of its last stage goes; None where the pipeline's last stage has only its own `to`.
    pub sink: Option<Sink>,
}

/// Where a segment reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A topic that the pipeline file names.
    Topic(TopicName),
    /// The topic that the segment before it writes.
    Repartition(Repartition),
}

impl Source {
    /// The topic's name.
    pub fn topic(&self) -> &TopicName {
        match self {
            Self::Topic(topic) => topic,
            Self::Repartition(repartition) => &repartition.topic,
        }
    }
}

/// Where a segment writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sink {
    /// The pipeline's `to`.
    Topic(TopicName),
    /// A topic to which records go by the hash of their key.
    Repartition(Repartition),
}

impl Sink {
    /// The topic's name.
    pub fn topic(&self) -> &TopicName {
        match self {
            Self::Topic(topic) => topic,
            Self::Repartition(repartition) => &repartition.topic,
        }
    }
}

/// A topic of the runtime's own, in which all records with one key are in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repartition {
    /// `<pipeline>.<stage>.repartition`, with the aggregate that reads it as the stage.
    pub topic: TopicName,
    /// How many partitions it has: as many as it has already, or the most that a source of the segment before it has.
    pub partitions: u32,
}

/// Cuts the pipeline into segments. `partitions` tells how many a topic has, `keys_moved` whether one key's records
/// may be in two of them.
///
/// `state_partitions` tells over how many partitions the running version of an aggregate keeps its state. What has a
/// repartition topic keeps it: records are on their way in it, and the state is divided as it is.
pub(super) fn plan(
    spec: &PipelineSpec,
    partitions: &dyn Fn(&str) -> Option<u32>,
    keys_moved: &dyn Fn(&str) -> bool,
    state_partitions: &dyn Fn(&str) -> Option<u32>,
    mistakes: &mut Vec<Mistake>,
) -> Plan {
    let mut segments = Vec::new();
    let mut sources: Vec<Source> =
        spec.from.iter().filter_map(|topic| TopicName::new(&topic.value).ok()).map(Source::Topic).collect();
    let mut first = 0;
    let mut keys_changed = spec.from.iter().any(|topic| keys_moved(&topic.value));
    for (index, stage) in spec.stages.iter().enumerate() {
        let needs_owner = stage.kind.value == StageKind::Aggregate;
        let topic = format!("{}.{}{REPARTITION_SUFFIX}", spec.name.value, stage.name.value);
        if needs_owner && (keys_changed || sources.len() > 1 || partitions(&topic).is_some()) {
            let Ok(topic) = TopicName::new(&topic) else {
                let message = format!("the names are too long for the repartition topic {:?}", shortened(&topic));
                mistakes.push(Mistake::new(stage.name.place, message));
                continue;
            };
            let most = sources.iter().filter_map(|source| partitions_of(source, partitions)).max();
            let of_state = || state_partitions(&stage.name.value);
            let partitions = partitions(topic.as_str()).or_else(of_state).or(most).unwrap_or(1);
            let repartition = Repartition { topic, partitions };
            let sink = Some(Sink::Repartition(repartition.clone()));
            let before = std::mem::replace(&mut sources, vec![Source::Repartition(repartition)]);
            segments.push(Segment { sources: before, stages: first..index, sink });
            first = index;
            keys_changed = false;
        }
        keys_changed |= stage.kind.value == StageKind::Map && !stage.keeps_key;
    }
    let sink = spec.to.as_ref().and_then(|topic| TopicName::new(&topic.value).ok()).map(Sink::Topic);
    segments.push(Segment { sources, stages: first..spec.stages.len(), sink });
    Plan { segments }
}

fn partitions_of(source: &Source, partitions: &dyn Fn(&str) -> Option<u32>) -> Option<u32> {
    match source {
        Source::Topic(topic) => partitions(topic.as_str()),
        Source::Repartition(repartition) => Some(repartition.partitions),
    }
}
