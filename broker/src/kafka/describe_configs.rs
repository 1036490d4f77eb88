//! DescribeConfigs (key 32): the settings of topics, and those of the broker.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use super::configs::{self, Config, FROM_DEFAULT, Refused};
use super::{Call, NODE_ID, error_code, text};
use crate::name::TopicName;

/// The first version with the types of values.
const TYPES_FROM: i16 = 3;

pub(super) async fn answer(call: &Call, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let results = request.resources.into_iter().map(|resource| {
        let described = describe(call, &resource);
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        let configs = match described {
            Ok(configs) => configs,
            Err((code, reason)) => return result.with_error_code(code).with_error_message(Some(text(reason))),
        };
        let keys = resource.configuration_keys;
        let is_wanted = |config: &Config| {
            keys.as_ref().is_none_or(|keys| keys.is_empty() || keys.iter().any(|key| **key == *config.name))
        };
        let is_read_only = resource.resource_type == configs::BROKER;
        let configs = configs.into_iter().filter(is_wanted);
        let configs = configs.map(|config| to_result(config, is_read_only, request.include_synonyms, call.version));
        result.with_configs(configs.collect())
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe(call: &Call, resource: &DescribeConfigsResource) -> Result<Vec<Config>, Refused> {
    match resource.resource_type {
        configs::TOPIC => {
            let name = TopicName::new(&resource.resource_name);
            let topic = name.map_err(Into::into).and_then(|name| call.broker().topic(name.as_str()));
            let topic = topic.map_err(|error| (error_code::code(&error), error.to_string()))?;
            Ok(configs::of_topic(&topic.meta().settings))
        }
        configs::BROKER if resource.resource_name.is_empty() => Ok(Vec::new()),
        configs::BROKER if *resource.resource_name == *NODE_ID.to_string() => Ok(configs::of_broker(call)),
        configs::BROKER => {
            let reason = format!("there is no broker {:?}: the only one is {NODE_ID}", &*resource.resource_name);
            Err((ResponseError::InvalidRequest.code(), reason))
        }
        // These have no settings here.
        configs::BROKER_LOGGER | configs::CLIENT_METRICS => Ok(Vec::new()),
        configs::GROUP => Ok(configs::of_group(call, &resource.resource_name)),
        other => Err((ResponseError::InvalidRequest.code(), format!("resources of type {other} have no settings"))),
    }
}

fn to_result(config: Config, is_read_only: bool, with_synonyms: bool, version: i16) -> DescribeConfigsResourceResult {
    let synonym = |value: &str, source: i8| {
        DescribeConfigsSynonym::default().with_name(text(config.name)).with_value(Some(text(value))).with_source(source)
    };
    let mut synonyms = Vec::new();
    if with_synonyms {
        synonyms.push(synonym(&config.value, config.source));
        if config.source == configs::FROM_TOPIC {
            synonyms.push(synonym(config.default, FROM_DEFAULT));
        }
    }
    let result = DescribeConfigsResourceResult::default()
        .with_name(text(config.name))
        .with_value(Some(text(config.value)))
        .with_read_only(is_read_only)
        .with_config_source(config.source)
        .with_synonyms(synonyms);
    if version >= TYPES_FROM { result.with_config_type(config.kind as i8) } else { result }
}
