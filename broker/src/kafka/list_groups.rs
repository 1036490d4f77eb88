//! ListGroups (key 16): all groups, by state and kind.

use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{ListGroupsRequest, ListGroupsResponse};
use kafka_protocol::protocol::StrBytes;

use super::{Call, consumer_protocol, text};
use crate::groups::{Group, GroupKind, MembershipState, PipelineState};

pub(super) async fn answer(call: &Call, request: ListGroupsRequest) -> ListGroupsResponse {
    let passes = |filter: &[StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let mut listed = Vec::new();
    for group in call.broker().groups().all() {
        let (state, kind, protocol_type) = described(&group);
        if passes(&request.states_filter, state) && passes(&request.types_filter, kind) {
            let group = ListedGroup::default()
                .with_group_id(text(group.id().as_str()).into())
                .with_protocol_type(text(protocol_type))
                .with_group_state(text(state))
                .with_group_type(text(kind));
            listed.push(group);
        }
    }
    ListGroupsResponse::default().with_groups(listed)
}

/// Returns Kafka's names of a group's state and kind, and the type of its protocols.
pub(super) fn described(group: &Group) -> (&'static str, &'static str, String) {
    let consumer = consumer_protocol::CONSUMER.to_owned();
    if group.kind() == GroupKind::Pipeline {
        let is_running = group.pipeline_state() == Some(PipelineState::Running);
        return (if is_running { "Stable" } else { "Empty" }, "Consumer", consumer);
    }
    let members = group.members();
    if !members.consumer.is_empty() {
        let is_stable = members.state() == MembershipState::Stable;
        return (if is_stable { "Stable" } else { "Reconciling" }, "Consumer", consumer);
    }
    (members.classic.phase().as_str(), "Classic", members.classic.protocol_type().to_string())
}
