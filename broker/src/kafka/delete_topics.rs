//! DeleteTopics (key 20): by name or by UUID.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse};
use uuid::Uuid;

use super::{Call, error_code, text};
use crate::error::BrokerError;
use crate::name::TopicName;

/// The first version in which a topic may be named by its UUID.
const UUIDS_FROM: i16 = 6;
/// The first version with error messages.
const MESSAGES_FROM: i16 = 5;

pub(super) async fn answer(call: &Call, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let wanted: Vec<(Option<String>, Uuid)> = if call.version < UUIDS_FROM {
        request.topic_names.iter().map(|name| (Some(name.to_string()), Uuid::nil())).collect()
    } else {
        let topics = request.topics.iter();
        topics.map(|topic| (topic.name.as_ref().map(|name| name.to_string()), topic.topic_id)).collect()
    };
    let mut responses = Vec::with_capacity(wanted.len());
    for (name, uuid) in wanted {
        let topic = match &name {
            Some(name) => call.broker().topic(name).map_err(|error| (error_code::code(&error), error.to_string())),
            None => call.broker().topic_by_uuid(uuid).ok_or_else(|| {
                (ResponseError::UnknownTopicId.code(), format!("there is no topic with the UUID {uuid}"))
            }),
        };
        let deleted = match &topic {
            Ok(topic) => delete(call, topic.name()).await,
            Err(refused) => Err(refused.clone()),
        };
        let name = topic.as_ref().ok().map(|topic| topic.name().as_str().to_owned()).or(name);
        let uuid = topic.map_or(uuid, |topic| topic.uuid());
        let (code, reason) = deleted.err().map_or((0, None), |(code, reason)| (code, Some(text(reason))));
        let result =
            DeletableTopicResult::default().with_name(name.map(|name| text(name).into())).with_error_code(code);
        let result = if call.version >= UUIDS_FROM { result.with_topic_id(uuid) } else { result };
        responses.push(if call.version >= MESSAGES_FROM { result.with_error_message(reason) } else { result });
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

async fn delete(call: &Call, name: &TopicName) -> Result<(), (i16, String)> {
    let deleted = call.broker().delete_topic(name).await;
    deleted.map_err(|error: BrokerError| (error_code::code(&error), error.to_string()))
}
