//! ListConfigResources (key 74): what has settings (KIP-1142).

use kafka_protocol::messages::list_config_resources_response::ConfigResource;
use kafka_protocol::messages::{ListConfigResourcesRequest, ListConfigResourcesResponse};

use super::{Call, NODE_ID, configs, text};

/// The first version that lists other resources than those of client metrics, of which there are none.
const OTHERS_FROM: i16 = 1;

pub(super) async fn answer(call: &Call, request: ListConfigResourcesRequest) -> ListConfigResourcesResponse {
    if call.version < OTHERS_FROM {
        return ListConfigResourcesResponse::default();
    }
    let is_wanted = |kind: i8| request.resource_types.is_empty() || request.resource_types.contains(&kind);
    let resource =
        |kind: i8, name: String| ConfigResource::default().with_resource_type(kind).with_resource_name(text(name));
    let mut resources = Vec::new();
    if is_wanted(configs::TOPIC) {
        let topics = call.broker().topics().into_iter();
        resources.extend(topics.map(|topic| resource(configs::TOPIC, topic.name().as_str().to_owned())));
    }
    if is_wanted(configs::GROUP) {
        let groups = call.broker().groups().with_settings().into_iter();
        resources.extend(groups.map(|group| resource(configs::GROUP, group.as_str().to_owned())));
    }
    for kind in [configs::BROKER, configs::BROKER_LOGGER] {
        if is_wanted(kind) {
            resources.push(resource(kind, NODE_ID.to_string()));
        }
    }
    ListConfigResourcesResponse::default().with_config_resources(resources)
}
