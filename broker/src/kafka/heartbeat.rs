//! Heartbeat (key 12): a member of a group by the classic protocol is alive, and hears whether it must join again.

use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use super::{Call, error_code};
use crate::groups::classic::Claim;

pub(super) async fn answer(call: &Call, request: HeartbeatRequest) -> HeartbeatResponse {
    let claim = Claim {
        member: request.member_id.to_string(),
        instance: request.group_instance_id.map(|instance| instance.to_string()),
        generation: request.generation_id,
    };
    let alive = call.broker().heartbeat_classic(&request.group_id, &claim);
    HeartbeatResponse::default().with_error_code(alive.err().map_or(0, |error| error_code::of_group(&error)))
}
