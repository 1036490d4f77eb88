//! IncrementalAlterConfigs (key 44): changes single settings of topics (KIP-339).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::incremental_alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::configs::{self, Operation, Refused};
use super::create_topics::refused;
use super::{Call, text};
use crate::log::topic::{TopicAlteration, TopicSettings};
use crate::name::GroupId;

pub(super) async fn answer(call: &Call, request: IncrementalAlterConfigsRequest) -> IncrementalAlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let altered = change(call, &resource, request.validate_only).await;
        let (code, reason) = altered.err().map_or((0, None), |(code, reason)| (code, Some(text(reason))));
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name)
            .with_error_code(code)
            .with_error_message(reason);
        responses.push(response);
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

async fn change(call: &Call, resource: &AlterConfigsResource, validate_only: bool) -> Result<(), Refused> {
    let mut changes: Vec<(&str, Operation, Option<&str>)> = Vec::with_capacity(resource.configs.len());
    for config in &resource.configs {
        if changes.iter().any(|(name, ..)| *name == &*config.name) {
            let reason = format!("the request changes {} twice", &*config.name);
            return Err((ResponseError::InvalidRequest.code(), reason));
        }
        changes.push((&*config.name, Operation::from_wire(config.config_operation)?, config.value.as_deref()));
    }
    if resource.resource_type == configs::GROUP {
        let set = |(name, operation, value): (&str, Operation, Option<&str>)| match operation {
            Operation::Set => Ok((name.to_owned(), value.map(str::to_owned))),
            Operation::Delete => Ok((name.to_owned(), None)),
            Operation::Append | Operation::Subtract => {
                Err((ResponseError::InvalidConfig.code(), format!("{name} is not a list")))
            }
        };
        let changes: Vec<_> = changes.into_iter().map(set).collect::<Result<_, Refused>>()?;
        let group = GroupId::new(&resource.resource_name).map_err(|error| refused(&error.into()))?;
        let changed = call.broker().change_group_settings(&group, &changes, validate_only).await;
        return changed.map_err(|error| refused(&error));
    }
    alter(call, resource.resource_type, &resource.resource_name, validate_only, |before| {
        configs::alteration(changes.into_iter(), before)
    })
    .await
}

/// Alters the settings of a resource. `alteration` returns the change to the current settings of a topic.
pub(super) async fn alter(
    call: &Call,
    resource_type: i8,
    name: &str,
    validate_only: bool,
    alteration: impl FnOnce(&TopicSettings) -> Result<TopicAlteration, Refused>,
) -> Result<(), Refused> {
    if resource_type != configs::TOPIC {
        let reason = match resource_type {
            configs::BROKER => {
                "the broker's settings are changed on its command line, not over Kafka's protocol".to_owned()
            }
            other => format!(
                "resources of type {other} have no settings here; those of topics (2) and groups (32) can be changed"
            ),
        };
        return Err((ResponseError::InvalidRequest.code(), reason));
    }
    let topic = call.broker().topic(name).map_err(|error| refused(&error))?;
    let alteration = alteration(&topic.meta().settings)?;
    let altered = if validate_only {
        call.broker().check_alteration(&topic, &alteration).map(drop)
    } else {
        call.broker().alter_topic(topic.name(), &alteration).await.map(drop)
    };
    altered.map_err(|error| refused(&error))
}
