//! LeaveGroup (key 13): members leave a group of the classic protocol.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

use super::{Call, error_code};
use crate::name::GroupId;

/// The first version that names several members (KIP-345).
const SEVERAL_FROM: i16 = 3;

pub(super) async fn answer(call: &Call, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let group = &*request.group_id;
    let leave = |member: &str, instance: Option<&str>| {
        let left = call.broker().leave_classic(group, member, instance);
        left.err().map_or(0, |error| error_code::of_group(&error))
    };
    if GroupId::new(group).is_err() {
        return LeaveGroupResponse::default().with_error_code(ResponseError::InvalidGroupId.code());
    }
    if call.version < SEVERAL_FROM {
        return LeaveGroupResponse::default().with_error_code(leave(&request.member_id, None));
    }
    let members = request.members.into_iter().map(|member| {
        let code = leave(&member.member_id, member.group_instance_id.as_deref());
        MemberResponse::default()
            .with_member_id(member.member_id)
            .with_group_instance_id(member.group_instance_id)
            .with_error_code(code)
    });
    LeaveGroupResponse::default().with_members(members.collect())
}
