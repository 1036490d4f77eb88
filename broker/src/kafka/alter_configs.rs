//! AlterConfigs (key 33): replaces all settings of topics. Settings that are not named get their defaults.

use kafka_protocol::messages::alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{AlterConfigsRequest, AlterConfigsResponse};

use super::configs::{self, Refused};
use super::incremental_alter_configs::alter;
use super::{Call, text};

pub(super) async fn answer(call: &Call, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let altered = replace(call, &resource, request.validate_only).await;
        let (code, reason) = altered.err().map_or((0, None), |(code, reason)| (code, Some(text(reason))));
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name)
            .with_error_code(code)
            .with_error_message(reason);
        responses.push(response);
    }
    AlterConfigsResponse::default().with_responses(responses)
}

async fn replace(call: &Call, resource: &AlterConfigsResource, validate_only: bool) -> Result<(), Refused> {
    let wanted = resource.configs.iter().map(|config| (&*config.name, config.value.as_deref()));
    alter(call, resource.resource_type, &resource.resource_name, validate_only, |before| {
        configs::replacement(wanted, before)
    })
    .await
}
