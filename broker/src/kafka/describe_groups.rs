//! DescribeGroups (key 15): groups with their members. Groups whose members joined by the classic protocol, and groups
//! without members.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use super::{Call, text};
use crate::groups::classic::ClassicMember;

/// The first version that says whether a group exists (KIP-1043). Before, it is described as dead.
const NOT_FOUND_FROM: i16 = 6;

/// The operations on groups that Kafka has: without authorization, all are allowed. Bits 3 (read), 6 (delete), 8
/// (describe), 10 and 11 (describe and alter configs).
pub(super) const OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

pub(super) async fn answer(call: &Call, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
    let groups = request.groups.into_iter().map(|id| {
        let known = call.broker().groups().get(&id);
        let described = match &known {
            Ok(group) if group.members().consumer.is_empty() && group.pipeline_state().is_none() => {
                let members = group.members();
                let classic = &members.classic;
                DescribedGroup::default()
                    .with_group_state(text(classic.phase().as_str()))
                    .with_protocol_type(text(&*classic.protocol_type()))
                    .with_protocol_data(text(&*classic.protocol()))
                    .with_members(classic.describe().into_iter().map(to_member).collect())
            }
            _ => {
                let dead = DescribedGroup::default().with_group_state(text("Dead"));
                if call.version >= NOT_FOUND_FROM {
                    let reason = match known {
                        Ok(_) => format!("group {} is not a classic group", &*id),
                        Err(_) => format!("Group {} not found.", &*id),
                    };
                    dead.with_error_code(ResponseError::GroupIdNotFound.code()).with_error_message(Some(text(reason)))
                } else {
                    dead
                }
            }
        };
        let described = described.with_group_id(id);
        if request.include_authorized_operations { described.with_authorized_operations(OPERATIONS) } else { described }
    });
    DescribeGroupsResponse::default().with_groups(groups.collect())
}

fn to_member(member: ClassicMember) -> DescribedGroupMember {
    DescribedGroupMember::default()
        .with_member_id(text(&*member.member))
        .with_group_instance_id(member.instance.as_deref().map(text))
        .with_client_id(text(&*member.client_id))
        .with_client_host(text(&*member.client_host))
        .with_member_metadata(member.metadata)
        .with_member_assignment(member.assignment.bytes)
}
