//! CreateTopics (key 19).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::{BrokerId, CreateTopicsRequest, CreateTopicsResponse};
use uuid::Uuid;

use super::configs::{self, Operation, Refused};
use super::{Call, Edge, NODE_ID, error_code, text};
use crate::error::BrokerError;
use crate::log::topic::{TopicMeta, TopicSettings};
use crate::name::TopicName;

/// The first version whose answer describes the topic (KIP-525).
const DESCRIBED_FROM: i16 = 5;

/// Stands for the server's number of partitions or replicas.
const DEFAULT: i32 = -1;

pub(super) async fn answer(call: &Call, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let named = request.topics.iter().filter(|other| other.name == topic.name).count();
        let created = if named > 1 {
            Err((ResponseError::InvalidRequest.code(), format!("the request names topic {:?} twice", &*topic.name)))
        } else {
            create(&call.edge, topic, request.validate_only).await
        };
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        results.push(match created {
            Ok(meta) => described(result, &meta, call.version),
            Err((code, reason)) => result
                .with_error_code(code)
                .with_error_message(Some(text(reason)))
                .with_num_partitions(-1)
                .with_replication_factor(-1),
        });
    }
    CreateTopicsResponse::default().with_topics(results)
}

async fn create(edge: &Edge, wanted: &CreatableTopic, validate_only: bool) -> Result<TopicMeta, Refused> {
    let name = TopicName::new(&wanted.name).map_err(|error| refused(&error.into()))?;
    let partitions = partitions(edge, wanted)?;
    let configs = wanted.configs.iter();
    let configs = configs.map(|config| (&*config.name, Operation::Set, config.value.as_deref()));
    let before = TopicSettings::default();
    let settings = configs::alteration(configs, &before)?.settings(&before);
    if validate_only {
        edge.broker.check_new_topic(&name, partitions, &settings).map_err(|error| refused(&error))?;
        let (id, uuid) = (0, Uuid::nil());
        return Ok(TopicMeta { id, uuid, partitions, settings, internal: false, keys_moved: false, created_at_ms: 0 });
    }
    let created = edge.broker.create_topic(&name, partitions, settings, false).await;
    created.map(|topic| topic.meta().clone()).map_err(|error| refused(&error))
}

/// Returns the number of partitions that a request asks for, with one replica each.
fn partitions(edge: &Edge, wanted: &CreatableTopic) -> Result<u32, Refused> {
    if !wanted.assignments.is_empty() {
        let code = ResponseError::InvalidReplicaAssignment.code();
        if wanted.num_partitions != DEFAULT || i32::from(wanted.replication_factor) != DEFAULT {
            let reason = "with assignments, the number of partitions and the replication factor must be -1";
            return Err((ResponseError::InvalidRequest.code(), reason.to_owned()));
        }
        let mut numbers: Vec<i32> = wanted.assignments.iter().map(|assigned| assigned.partition_index).collect();
        numbers.sort_unstable();
        if numbers.iter().zip(0..).any(|(number, expected)| *number != expected) {
            return Err((code, "the assignments must be for partitions 0, 1, 2 and so on, each once".to_owned()));
        }
        if let Some(other) = wanted.assignments.iter().find(|assigned| assigned.broker_ids != [BrokerId(NODE_ID)]) {
            let reason = format!(
                "partition {} is assigned to brokers {:?}; the only broker is {NODE_ID}",
                other.partition_index,
                other.broker_ids.iter().map(|id| id.0).collect::<Vec<_>>()
            );
            return Err((code, reason));
        }
        return Ok(numbers.len() as u32);
    }
    match wanted.replication_factor {
        -1 | 1 => {}
        other => {
            let reason = format!("replication factor {other} is not possible: there is 1 broker");
            return Err((ResponseError::InvalidReplicationFactor.code(), reason));
        }
    }
    match wanted.num_partitions {
        DEFAULT => Ok(edge.settings.partitions_default),
        number => u32::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| {
            let reason = format!("{number} partitions are not possible: use 1 or more, or -1 for the server's default");
            (ResponseError::InvalidPartitions.code(), reason)
        }),
    }
}

/// Returns the code and message of an error while topics are created or altered.
pub(super) fn refused(error: &BrokerError) -> Refused {
    let code = match error {
        BrokerError::InvalidArgument { what: "partitions", .. } => ResponseError::InvalidPartitions.code(),
        BrokerError::InvalidArgument { .. } => ResponseError::InvalidConfig.code(),
        error => error_code::code(error),
    };
    (code, error.to_string())
}

fn described(result: CreatableTopicResult, meta: &TopicMeta, version: i16) -> CreatableTopicResult {
    if version < DESCRIBED_FROM {
        return result;
    }
    let configs = configs::of_topic(&meta.settings).into_iter().map(|config| {
        CreatableTopicConfigs::default()
            .with_name(text(config.name))
            .with_value(Some(text(config.value)))
            .with_config_source(config.source)
    });
    result
        .with_topic_id(meta.uuid)
        .with_num_partitions(meta.partitions as i32)
        .with_replication_factor(1)
        .with_configs(Some(configs.collect()))
}
