//! ConsumerGroupHeartbeat (key 68): a member joins, is alive, gives partitions back or leaves (KIP-848).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use kafka_protocol::protocol::StrBytes;
use regex_lite::Regex;
use uuid::Uuid;

use super::{Call, error_code, text};
use crate::error::BrokerError;
use crate::groups::assign::Assignor;
use crate::groups::heartbeats::{Beat, Heartbeat};
use crate::groups::settings;
use crate::name::{GroupId, TopicName, TopicPartition};

/// The epochs of a member that leaves, and of a static member that leaves in order to return.
const LEAVES: i32 = -1;
const LEAVES_TO_RETURN: i32 = -2;

/// The reason for which a heartbeat is refused: Kafka's error code, and a message.
type Refused = (i16, String);

pub(super) async fn answer(call: &Call, request: ConsumerGroupHeartbeatRequest) -> ConsumerGroupHeartbeatResponse {
    // In version 0, the server may choose the id of a member that joins.
    let member = match request.member_id.is_empty() && request.member_epoch == 0 {
        true => text(Uuid::new_v4().to_string()),
        false => request.member_id.clone(),
    };
    let answer = ConsumerGroupHeartbeatResponse::default().with_member_id(Some(member.clone()));
    match heartbeat(call, &member, &request) {
        Ok(Some(beat)) => answer
            .with_member_epoch(i32::try_from(beat.epoch).unwrap_or(i32::MAX))
            .with_heartbeat_interval_ms(heartbeat_interval_ms(call, &request.group_id))
            .with_assignment(beat.assignment.map(|partitions| to_assignment(call, &partitions))),
        Ok(None) => answer.with_member_epoch(request.member_epoch),
        Err((code, reason)) => {
            ConsumerGroupHeartbeatResponse::default().with_error_code(code).with_error_message(Some(text(reason)))
        }
    }
}

/// Returns the answer to a member. `None` if it leaves.
fn heartbeat(call: &Call, member: &StrBytes, request: &ConsumerGroupHeartbeatRequest) -> Result<Option<Beat>, Refused> {
    let refused = |error: &BrokerError| {
        let code = match error {
            BrokerError::OtherMembers { .. } => ResponseError::GroupIdNotFound.code(),
            error => error_code::of_group(error),
        };
        (code, error.to_string())
    };
    let invalid = |reason: &str| Err((ResponseError::InvalidRequest.code(), reason.to_owned()));
    let group = GroupId::new(&request.group_id).map_err(|error| refused(&error.into()))?;
    if member.is_empty() {
        return invalid("the member id is empty");
    }
    let instance = request.instance_id.as_deref();
    let epoch = match request.member_epoch {
        LEAVES_TO_RETURN if instance.is_none() => return invalid("only a static member leaves in order to return"),
        LEAVES | LEAVES_TO_RETURN => {
            let returns = request.member_epoch == LEAVES_TO_RETURN;
            let left = call.broker().leave_with_heartbeat(&group, member, instance, returns);
            return left.map(|()| None).map_err(|error| refused(&error));
        }
        epoch => match u64::try_from(epoch) {
            Ok(epoch) => epoch,
            Err(_) => return invalid(&format!("{epoch} is not a member epoch")),
        },
    };
    if epoch == 0 {
        if request.rebalance_timeout_ms < 0 {
            return invalid("a member that joins must say how long it may take to give partitions back");
        }
        if request.subscribed_topic_names.is_none() && request.subscribed_topic_regex.is_none() {
            return invalid("a member that joins must name the topics that it reads");
        }
        if request.topic_partitions.as_ref().is_none_or(|owned| !owned.is_empty()) {
            return invalid("a member that joins must say that it has no partitions");
        }
    }
    let assignor = match request.server_assignor.as_deref() {
        None => None,
        Some(name) => Some(Assignor::by_name(name).ok_or_else(|| {
            let known = Assignor::ALL.map(Assignor::name).join(", ");
            (ResponseError::UnsupportedAssignor.code(), format!("there is no assignor {name:?}; use one of {known}"))
        })?),
    };
    let own = call.broker().groups().setting_ms(group.as_str(), settings::SESSION_TIMEOUT_MS);
    let session_timeout_ms = own.unwrap_or(call.broker().settings().groups.consumer_session_timeout_ms);
    let names = request.subscribed_topic_names.as_ref();
    let topics = names.map(|names| names.iter().filter_map(|name| TopicName::new(name).ok()).collect());
    let timeout = |ms: i32| u64::try_from(ms).ok().map(Duration::from_millis);
    let heartbeat = Heartbeat {
        member: (&**member).into(),
        instance: instance.map(Arc::from),
        client_id: call.client_id.clone(),
        client_host: format!("/{}", call.client_host).into(),
        epoch,
        topics,
        pattern: pattern(request.subscribed_topic_regex.as_deref())?,
        rebalance_timeout: timeout(request.rebalance_timeout_ms),
        assignor,
        owned: owned(call, request),
        session_timeout: Duration::from_millis(session_timeout_ms),
    };
    call.broker().heartbeat(&group, &heartbeat).map(Some).map_err(|error| refused(&error))
}

fn heartbeat_interval_ms(call: &Call, group: &str) -> i32 {
    let own = call.broker().groups().setting_ms(group, settings::HEARTBEAT_INTERVAL_MS);
    let ms = own.unwrap_or(call.broker().settings().groups.consumer_heartbeat_interval_ms);
    i32::try_from(ms).unwrap_or(i32::MAX)
}

/// Reads a pattern, which names of topics must match as a whole. An empty one ends a subscription by pattern.
fn pattern(pattern: Option<&str>) -> Result<Option<Option<Regex>>, Refused> {
    match pattern {
        None => Ok(None),
        Some("") => Ok(Some(None)),
        Some(pattern) => match Regex::new(&format!("^(?:{pattern})$")) {
            Ok(regex) => Ok(Some(Some(regex))),
            Err(error) => Err((ResponseError::InvalidRegularExpression.code(), format!("{pattern:?}: {error}"))),
        },
    }
}

/// Returns the partitions that the member has. Those of topics that no longer exist are nobody's.
fn owned(call: &Call, request: &ConsumerGroupHeartbeatRequest) -> Option<BTreeSet<TopicPartition>> {
    let topics = request.topic_partitions.as_ref()?;
    let mut owned = BTreeSet::new();
    for of_topic in topics {
        let Some(topic) = call.broker().topic_by_uuid(of_topic.topic_id) else { continue };
        let numbers = of_topic.partitions.iter().filter_map(|number| u32::try_from(*number).ok());
        owned.extend(numbers.map(|partition| TopicPartition { topic: topic.name().clone(), partition }));
    }
    Some(owned)
}

fn to_assignment(call: &Call, partitions: &BTreeSet<TopicPartition>) -> Assignment {
    let mut topics: Vec<(TopicName, TopicPartitions)> = Vec::new();
    for TopicPartition { topic, partition } in partitions {
        if topics.last().is_none_or(|(last, _)| last != topic) {
            let Ok(known) = call.broker().topic(topic.as_str()) else { continue };
            topics.push((topic.clone(), TopicPartitions::default().with_topic_id(known.uuid())));
        }
        if let Some((_, of_topic)) = topics.last_mut() {
            of_topic.partitions.push(*partition as i32);
        }
    }
    Assignment::default().with_topic_partitions(topics.into_iter().map(|(_, of_topic)| of_topic).collect())
}
