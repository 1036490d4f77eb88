//! Divides a pipeline into the subtopologies that tasks run.
//!
//! All records of a key must reach an aggregate through one task. If this is not already the case, the subtopology ends
//! before the aggregate and writes to an internal topic that is partitioned by key, which the next subtopology reads.

use std::ops::Range;

use millstream_broker::name::TopicName;

use super::mistake::{Mistake, shortened};
use super::spec::{PipelineSpec, REPARTITION_SUFFIX};
use crate::host::StageKind;

/// The subtopologies of a pipeline. Records pass through them in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The subtopologies, at least one.
    pub subtopologies: Vec<Subtopology>,
}

impl Plan {
    /// Returns the topics between the subtopologies, which the runtime creates and deletes.
    pub fn repartitions(&self) -> impl Iterator<Item = &Repartition> {
        self.subtopologies.iter().filter_map(|subtopology| match &subtopology.sink {
            Some(Sink::Repartition(repartition)) => Some(repartition),
            _ => None,
        })
    }
}

/// A part of a pipeline that one task runs at once, on a batch of one partition of one of its sources. The stages in
/// the range run in order, each writes its output to its own `to` if it has one, and the output of the last goes to the
/// sink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subtopology {
    /// The sources of the subtopology. There is a task for each partition of each source.
    pub sources: Vec<Source>,
    /// The range of the pipeline's stages. Empty if an aggregate is the first stage and there are several sources, in
    /// which case records go to the sink unchanged.
    pub stages: Range<usize>,
    /// The destination of the last stage's output; `None` if the pipeline's last stage has only its own `to`.
    pub sink: Option<Sink>,
}

/// A source of a subtopology.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A topic that the pipeline file names.
    Topic(TopicName),
    /// The topic that the previous subtopology writes.
    Repartition(Repartition),
}

impl Source {
    /// Returns the topic's name.
    pub fn topic(&self) -> &TopicName {
        match self {
            Self::Topic(topic) => topic,
            Self::Repartition(repartition) => &repartition.topic,
        }
    }
}

/// The destination of a subtopology.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sink {
    /// The pipeline's `to`.
    Topic(TopicName),
    /// A topic that is partitioned by the hash of the record's key.
    Repartition(Repartition),
}

impl Sink {
    /// Returns the topic's name.
    pub fn topic(&self) -> &TopicName {
        match self {
            Self::Topic(topic) => topic,
            Self::Repartition(repartition) => &repartition.topic,
        }
    }
}

/// An internal topic in which all records with the same key are in the same partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repartition {
    /// `<pipeline>.<stage>.repartition`, where the stage is the aggregate that reads the topic.
    pub topic: TopicName,
    /// Number of partitions: that of the existing topic, or else of the aggregate's state, or else the largest of the
    /// sources.
    pub partitions: u32,
}

/// Divides the pipeline into subtopologies. `partitions` returns the number of partitions of a topic, `keys_moved` whether
/// records of one key may be in two of them.
///
/// `state_partitions` returns the number of partitions over which the running version of an aggregate keeps its state.
/// An aggregate that has a repartition topic keeps it, because the topic may contain unread records, and the state is
/// partitioned in the same way.
pub(super) fn plan(
    spec: &PipelineSpec,
    partitions: &dyn Fn(&str) -> Option<u32>,
    keys_moved: &dyn Fn(&str) -> bool,
    state_partitions: &dyn Fn(&str) -> Option<u32>,
    mistakes: &mut Vec<Mistake>,
) -> Plan {
    let mut subtopologies = Vec::new();
    let mut sources: Vec<Source> =
        spec.from.iter().filter_map(|topic| TopicName::new(&topic.value).ok()).map(Source::Topic).collect();
    let mut first = 0;
    let mut keys_changed = spec.from.iter().any(|topic| keys_moved(&topic.value));
    for (index, stage) in spec.stages.iter().enumerate() {
        let needs_owner = stage.kind.value == StageKind::Aggregate;
        let topic = format!("{}.{}{REPARTITION_SUFFIX}", spec.name.value, stage.name.value);
        if needs_owner && (keys_changed || sources.len() > 1 || partitions(&topic).is_some()) {
            let Ok(topic) = TopicName::new(&topic) else {
                let message = format!(
                    "the names of pipeline and stage are too long for the repartition topic {:?}",
                    shortened(&topic)
                );
                mistakes.push(Mistake::new(stage.name.place, message));
                continue;
            };
            let most = sources.iter().filter_map(|source| partitions_of(source, partitions)).max();
            let of_state = || state_partitions(&stage.name.value);
            let partitions = partitions(topic.as_str()).or_else(of_state).or(most).unwrap_or(1);
            let repartition = Repartition { topic, partitions };
            let sink = Some(Sink::Repartition(repartition.clone()));
            let before = std::mem::replace(&mut sources, vec![Source::Repartition(repartition)]);
            subtopologies.push(Subtopology { sources: before, stages: first..index, sink });
            first = index;
            keys_changed = false;
        }
        keys_changed |= stage.kind.value == StageKind::Map && !stage.keeps_key;
    }
    let sink = spec.to.as_ref().and_then(|topic| TopicName::new(&topic.value).ok()).map(Sink::Topic);
    subtopologies.push(Subtopology { sources, stages: first..spec.stages.len(), sink });
    Plan { subtopologies }
}

fn partitions_of(source: &Source, partitions: &dyn Fn(&str) -> Option<u32>) -> Option<u32> {
    match source {
        Source::Topic(topic) => partitions(topic.as_str()),
        Source::Repartition(repartition) => Some(repartition.partitions),
    }
}
