//! JoinGroup (key 11): a member joins a group by the classic protocol. The answer follows when all members have joined.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};
use kafka_protocol::protocol::StrBytes;

use super::{Call, consumer_protocol, error_code, text};
use crate::error::{BrokerError, MemberError};
use crate::groups::classic::{ClassicJoin, JoinProtocol, Joined};
use crate::name::GroupId;

/// The first version with a rebalance timeout. Before, it is the session timeout.
const REBALANCE_TIMEOUT_FROM: i16 = 1;
/// The first version in which new members join again with an id that they are given (KIP-394).
const NEEDS_ID_FROM: i16 = 4;
/// The first version in which a protocol may be null.
const NULL_PROTOCOL_FROM: i16 = 7;
/// The first version in which a leader may be told to keep the assignment (KIP-814).
const SKIP_ASSIGNMENT_FROM: i16 = 9;

pub(super) async fn answer(call: &Call, request: JoinGroupRequest) -> JoinGroupResponse {
    let member = request.member_id.clone();
    match join(call, request).await {
        Ok(joined) => answered(call, joined),
        Err(error) => {
            let member = match &error {
                BrokerError::Member { source: MemberError::MemberIdRequired { member }, .. } => text(&**member),
                _ => member,
            };
            let nothing = || Some(StrBytes::default()).filter(|_| call.version < NULL_PROTOCOL_FROM);
            JoinGroupResponse::default()
                .with_error_code(error_code::of_group(&error))
                .with_generation_id(-1)
                .with_protocol_name(nothing())
                .with_member_id(member)
        }
    }
}

async fn join(call: &Call, request: JoinGroupRequest) -> Result<Joined, BrokerError> {
    let group = GroupId::new(&request.group_id)?;
    let bounds = &call.broker().settings().groups;
    let session_timeout = bounds.session_timeout(&group, request.session_timeout_ms)?;
    let rebalance_timeout = match u64::try_from(request.rebalance_timeout_ms) {
        Ok(ms) if call.version >= REBALANCE_TIMEOUT_FROM => Duration::from_millis(ms),
        _ => session_timeout,
    };
    let is_consumer = *request.protocol_type == *consumer_protocol::CONSUMER;
    let protocols = request.protocols.into_iter().map(|protocol| JoinProtocol {
        name: (&*protocol.name).into(),
        topics: if is_consumer { consumer_protocol::topics(protocol.metadata.clone()) } else { Default::default() },
        metadata: protocol.metadata,
    });
    let join = ClassicJoin {
        member: request.member_id.to_string(),
        instance: request.group_instance_id.as_deref().map(Arc::from),
        client_id: call.client_id.clone(),
        client_host: format!("/{}", call.client_host).into(),
        session_timeout,
        rebalance_timeout,
        protocol_type: (&*request.protocol_type).into(),
        protocols: protocols.collect(),
        needs_id: call.version >= NEEDS_ID_FROM,
        may_skip_assignment: call.version >= SKIP_ASSIGNMENT_FROM,
    };
    let joining = call.broker().join_classic(&group, join)?;
    tokio::select! {
        joined = joining => match joined {
            Ok(joined) => joined.map_err(|source| BrokerError::Member { group, source }),
            // Another request of the same member took the place of this one.
            Err(_) => Err(BrokerError::Member { group, source: MemberError::Rebalancing }),
        },
        () = call.broker().stopped() => Err(BrokerError::ShuttingDown),
    }
}

fn answered(call: &Call, joined: Joined) -> JoinGroupResponse {
    let members = joined.members.into_iter().map(|member| {
        JoinGroupResponseMember::default()
            .with_member_id(text(&*member.member))
            .with_group_instance_id(member.instance.as_deref().map(text))
            .with_metadata(member.metadata)
    });
    let answer = JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type(Some(text(&*joined.protocol_type)))
        .with_protocol_name(Some(text(&*joined.protocol)))
        .with_leader(text(&*joined.leader))
        .with_member_id(text(&*joined.member))
        .with_members(members.collect());
    match call.version {
        SKIP_ASSIGNMENT_FROM.. => answer.with_skip_assignment(joined.skip_assignment),
        _ => answer,
    }
}
