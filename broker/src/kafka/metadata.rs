//! Metadata (key 3): this node, and topics with their partitions. Creates topics that do not exist, if the server and the
//! client allow it.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse};
use uuid::Uuid;

use super::{CLUSTER_OPERATIONS, Call, Edge, NODE_ID, TOPIC_OPERATIONS, error_code, text};
use crate::error::BrokerError;
use crate::log::topic::{Topic, TopicSettings};
use crate::name::TopicName;
use crate::store::LEADER_EPOCH;

pub(super) async fn answer(call: &Call, request: MetadataRequest) -> MetadataResponse {
    let Call { edge, version, .. } = call;
    // Version 0 asks for all topics with an empty list, later versions with none.
    let all = request.topics.as_ref().is_none_or(|topics| *version == 0 && topics.is_empty());
    let mut topics = Vec::new();
    if all {
        topics.extend(edge.broker.topics().iter().map(|topic| described(topic)));
    }
    for wanted in request.topics.into_iter().flatten() {
        // Who names a topic by its id may leave its name empty.
        let name = wanted.name.as_ref().filter(|_| wanted.topic_id.is_nil());
        topics.push(match name {
            Some(name) => match find(edge, name, request.allow_auto_topic_creation).await {
                Ok(topic) => described(&topic),
                Err(error) => refused(error_code::code(&error)).with_name(wanted.name),
            },
            None => match edge.broker.topic_by_uuid(wanted.topic_id) {
                Some(topic) => described(&topic),
                None => refused(ResponseError::UnknownTopicId.code()).with_topic_id(wanted.topic_id),
            },
        });
    }
    let (host, port) = call.advertised();
    let node = MetadataResponseBroker::default().with_node_id(BrokerId(NODE_ID)).with_host(host).with_port(port);
    if request.include_topic_authorized_operations {
        topics.iter_mut().for_each(|topic| topic.topic_authorized_operations = TOPIC_OPERATIONS);
    }
    let answer = MetadataResponse::default()
        .with_brokers(vec![node])
        .with_cluster_id(edge.cluster_id().await.map(text))
        .with_controller_id(BrokerId(NODE_ID))
        .with_topics(topics);
    match request.include_cluster_authorized_operations {
        true => answer.with_cluster_authorized_operations(CLUSTER_OPERATIONS),
        false => answer,
    }
}

/// The topics in which Kafka keeps its own state. Some clients ask for them. They do not exist here, and an empty topic of
/// that name would tell a client that there are no groups.
const OF_KAFKA_ITSELF: [&str; 3] = ["__consumer_offsets", "__transaction_state", "__share_group_state"];

/// Finds a topic, and creates it if that is allowed.
async fn find(edge: &Edge, name: &str, may_create: bool) -> Result<std::sync::Arc<Topic>, BrokerError> {
    let valid = TopicName::new(name)?;
    let is_of_kafka = OF_KAFKA_ITSELF.contains(&name);
    match edge.broker.topic(name) {
        Err(BrokerError::UnknownTopic { .. }) if may_create && edge.settings.auto_create_topics && !is_of_kafka => {}
        found => return found,
    }
    let partitions = edge.settings.partitions_default;
    match edge.broker.create_topic(&valid, partitions, TopicSettings::default(), false).await {
        // Another client was faster.
        Err(BrokerError::TopicExists { .. }) => edge.broker.topic(name),
        created => created,
    }
}

fn refused(code: i16) -> MetadataResponseTopic {
    MetadataResponseTopic::default().with_error_code(code).with_topic_id(Uuid::nil())
}

fn described(topic: &Topic) -> MetadataResponseTopic {
    let partition = |number: u32| {
        MetadataResponsePartition::default()
            .with_partition_index(number as i32)
            .with_leader_id(BrokerId(NODE_ID))
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(vec![BrokerId(NODE_ID)])
            .with_isr_nodes(vec![BrokerId(NODE_ID)])
    };
    MetadataResponseTopic::default()
        .with_name(Some(text(topic.name().as_str()).into()))
        .with_topic_id(topic.uuid())
        .with_is_internal(topic.meta().internal)
        .with_partitions((0..topic.partition_count()).map(partition).collect())
}
