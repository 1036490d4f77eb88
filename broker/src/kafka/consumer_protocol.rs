//! What consumers tell each other through JoinGroup and SyncGroup: subscriptions and assignments. The broker only shows
//! them: it does not matter to the group if they cannot be read.

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};

use super::guarded::decode;
use crate::name::{TopicName, TopicPartition};

/// The type of the protocols of consumers.
pub(super) const CONSUMER: &str = "consumer";

/// Versions of both messages that can be read. Later ones only add fields at the end.
const SUBSCRIPTION_VERSION_MAX: i16 = 3;
const ASSIGNMENT_VERSION_MAX: i16 = 3;

/// Returns the topics of a subscription. None if it cannot be read.
pub(super) fn topics(mut metadata: Bytes) -> BTreeSet<TopicName> {
    let Some(version) = version(&mut metadata, SUBSCRIPTION_VERSION_MAX) else { return BTreeSet::new() };
    let Ok(subscription) = decode::<ConsumerProtocolSubscription>(metadata, version) else { return BTreeSet::new() };
    subscription.topics.iter().filter_map(|topic| TopicName::new(topic).ok()).collect()
}

/// Returns the partitions of an assignment. None if it cannot be read.
pub(super) fn partitions(mut assignment: Bytes) -> Vec<TopicPartition> {
    let Some(version) = version(&mut assignment, ASSIGNMENT_VERSION_MAX) else { return Vec::new() };
    let Ok(assignment) = decode::<ConsumerProtocolAssignment>(assignment, version) else { return Vec::new() };
    let mut partitions = Vec::new();
    for of_topic in assignment.assigned_partitions {
        let Ok(topic) = TopicName::new(&of_topic.topic) else { continue };
        let numbers = of_topic.partitions.into_iter().filter_map(|partition| u32::try_from(partition).ok());
        partitions.extend(numbers.map(|partition| TopicPartition { topic: topic.clone(), partition }));
    }
    partitions.sort();
    partitions
}

/// Takes the version off that a message begins with.
fn version(message: &mut Bytes, max: i16) -> Option<i16> {
    let version = message.try_get_i16().ok()?;
    (version >= 0).then_some(version.min(max))
}
