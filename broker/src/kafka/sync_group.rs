//! SyncGroup (key 14): a member of a group by the classic protocol gets its assignment, once the leader has brought the
//! assignments of all.

use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};

use super::{Call, consumer_protocol, error_code, text};
use crate::error::{BrokerError, MemberError};
use crate::groups::classic::{Claim, ClassicAssignment, ClassicSync, Synced};
use crate::name::GroupId;

pub(super) async fn answer(call: &Call, request: SyncGroupRequest) -> SyncGroupResponse {
    match sync(call, request).await {
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(Some(text(&*synced.protocol_type)))
            .with_protocol_name(Some(text(&*synced.protocol)))
            .with_assignment(synced.assignment),
        Err(error) => SyncGroupResponse::default().with_error_code(error_code::of_group(&error)),
    }
}

async fn sync(call: &Call, request: SyncGroupRequest) -> Result<Synced, BrokerError> {
    let group = GroupId::new(&request.group_id)?;
    let known = call.broker().groups().get(group.as_str());
    let is_consumer = known.is_ok_and(|group| *group.members().classic.protocol_type() == *consumer_protocol::CONSUMER);
    let assignments = request.assignments.into_iter().map(|assigned| {
        let bytes = assigned.assignment;
        let partitions = if is_consumer { consumer_protocol::partitions(bytes.clone()) } else { Vec::new() };
        (assigned.member_id.to_string(), ClassicAssignment { bytes, partitions })
    });
    let sync = ClassicSync {
        claim: Claim {
            member: request.member_id.to_string(),
            instance: request.group_instance_id.map(|instance| instance.to_string()),
            generation: request.generation_id,
        },
        protocol_type: request.protocol_type.map(|protocol_type| protocol_type.to_string()),
        protocol: request.protocol_name.map(|protocol| protocol.to_string()),
        assignments: assignments.collect(),
    };
    let syncing = call.broker().sync_classic(group.as_str(), sync).await?;
    tokio::select! {
        synced = syncing => match synced {
            Ok(synced) => synced.map_err(|source| BrokerError::Member { group, source }),
            // Another request of the same member took the place of this one.
            Err(_) => Err(BrokerError::Member { group, source: MemberError::Rebalancing }),
        },
        () = call.broker().stopped() => Err(BrokerError::ShuttingDown),
    }
}
