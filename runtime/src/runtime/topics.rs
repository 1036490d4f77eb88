//! The topics of pipelines: which of them are missing, making and deleting them, and which are reserved in the broker
//! because a pipeline uses them. This file must not know when pipelines are started or ended.

use std::collections::BTreeMap;

use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::{Broker, BrokerError, TopicName};

use super::pipeline::Pipeline;
use super::ready::Ready;
use crate::encode::OutputTopic;
use crate::pipeline::CheckedPipeline;

/// The topics of pipelines, in a broker.
#[derive(Clone)]
pub(super) struct Topics {
    broker: Broker,
}

impl Topics {
    pub(super) fn new(broker: Broker) -> Self {
        Self { broker }
    }

    /// Describes the topics that `make` would create, one line each.
    pub(super) fn changes(&self, checked: &CheckedPipeline) -> Vec<String> {
        let line = |Missing { topic, partitions, internal }: Missing| {
            let what = if internal { "repartition topic" } else { "topic" };
            format!("{what} {topic}: created with {partitions} partition{}", if partitions == 1 { "" } else { "s" })
        };
        self.missing(checked).into_iter().map(line).collect()
    }

    /// Creates the topics that a pipeline needs and that do not exist.
    pub(super) async fn make(&self, checked: &CheckedPipeline) -> Result<(), BrokerError> {
        for Missing { topic, partitions, internal } in self.missing(checked) {
            self.broker.create_topic(&topic, partitions, TopicSettings::default(), internal).await?;
        }
        Ok(())
    }

    /// Deletes topics.
    pub(super) async fn delete(&self, topics: impl IntoIterator<Item = TopicName>) -> Result<(), BrokerError> {
        for topic in topics {
            self.broker.delete_topic(&topic).await?;
        }
        Ok(())
    }

    /// Reserves the topics of a pipeline, so that nothing is done to them that their use forbids.
    pub(super) fn reserve(&self, pipeline: &Pipeline) {
        self.broker.set_topics_in_use(pipeline.name(), pipeline.uses());
    }

    /// Reserves the topics of a version that will replace `before`, and those of `before`, which runs until then.
    pub(super) fn reserve_both(&self, name: &str, ready: &Ready, before: Option<&Pipeline>) {
        let mut uses = ready.uses();
        for (topic, old) in before.into_iter().flat_map(Pipeline::uses) {
            let of = uses.entry(topic).or_default();
            of.aggregate = of.aggregate.take().or(old.aggregate);
        }
        self.broker.set_topics_in_use(name, uses);
    }

    /// Ends the reservation of a pipeline's topics.
    pub(super) fn release(&self, pipeline: &str) {
        self.broker.set_topics_in_use(pipeline, BTreeMap::new());
    }

    /// Returns a topic with the settings that its writers need.
    pub(super) fn output(&self, name: &TopicName) -> Result<OutputTopic, BrokerError> {
        let topic = self.broker.topic(name.as_str())?;
        Ok(OutputTopic {
            name: name.clone(),
            partitions: topic.partition_count(),
            batch_bytes_max: topic.meta().settings.batch_bytes_max(),
            compacted: topic.meta().settings.cleanup.compacts(),
        })
    }

    /// Returns whether the topics of a pipeline are still as they were when it was loaded.
    pub(super) fn are_unaltered(&self, ready: &Ready) -> bool {
        ready.outputs().all(|topic| self.output(&topic.name).is_ok_and(|now| now == *topic))
            && ready.sources().all(|topic| self.partition_count(topic) == Some(topic.partition_count()))
    }

    fn partition_count(&self, topic: &Topic) -> Option<u32> {
        self.broker.topic(topic.name().as_str()).ok().map(|now| now.partition_count())
    }

    fn missing(&self, checked: &CheckedPipeline) -> Vec<Missing> {
        let of_sources = checked.spec.from.iter().filter_map(|topic| self.broker.topic(&topic.value).ok());
        let partitions = of_sources.map(|topic| topic.partition_count()).max().unwrap_or(1);
        let missing = |topic: &TopicName, partitions, internal| Missing { topic: topic.clone(), partitions, internal };
        let outputs = checked.outputs().iter().map(|topic| missing(topic, partitions, false));
        let dead_letters = checked.dead_letters().map(|topic| missing(topic, 1, false));
        let internal = checked.plan.repartitions().map(|between| missing(&between.topic, between.partitions, true));
        let is_missing = |missing: &Missing| self.broker.topic(missing.topic.as_str()).is_err();
        outputs.chain(dead_letters).chain(internal).filter(is_missing).collect()
    }
}

/// A topic that a pipeline needs and that does not exist.
struct Missing {
    topic: TopicName,
    partitions: u32,
    internal: bool,
}
