//! FindCoordinator (key 10): this node coordinates all groups and transactions.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;

use super::{Call, NODE_ID, text};

/// The first version that asks for several coordinators (KIP-699).
const SEVERAL_FROM: i16 = 4;

/// The kind of key that is the id of a group.
const GROUP: i8 = 0;
/// The kind of key that is a transactional id.
const TRANSACTION: i8 = 1;

pub(super) async fn answer(call: &Call, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    let (host, port) = call.advertised();
    if call.version >= SEVERAL_FROM {
        let coordinator = |key: StrBytes| {
            let answer = Coordinator::default();
            let answer = match refused(request.key_type, &key) {
                Some((code, reason)) => answer
                    .with_error_code(code.code())
                    .with_error_message(Some(text(reason)))
                    .with_node_id(BrokerId(-1))
                    .with_port(-1),
                None => answer.with_node_id(BrokerId(NODE_ID)).with_host(host.clone()).with_port(port),
            };
            answer.with_key(key)
        };
        let coordinators = request.coordinator_keys.into_iter().map(coordinator).collect();
        return FindCoordinatorResponse::default().with_coordinators(coordinators);
    }
    let answer = FindCoordinatorResponse::default();
    match refused(request.key_type, &request.key) {
        Some((code, reason)) => answer
            .with_error_code(code.code())
            .with_error_message(Some(text(reason)))
            .with_node_id(BrokerId(-1))
            .with_port(-1),
        None => answer.with_node_id(BrokerId(NODE_ID)).with_host(host.clone()).with_port(port),
    }
}

/// Returns why there is no coordinator.
fn refused(key_type: i8, key: &StrBytes) -> Option<(ResponseError, String)> {
    match key_type {
        GROUP if key.is_empty() => {
            Some((ResponseError::InvalidGroupId, "the id of a group is empty: choose one (group.id)".to_owned()))
        }
        TRANSACTION if key.is_empty() => {
            let reason = "the transactional id is empty: choose one (transactional.id)";
            Some((ResponseError::InvalidRequest, reason.to_owned()))
        }
        GROUP | TRANSACTION => None,
        other => Some((
            ResponseError::InvalidRequest,
            format!("key type {other} has no coordinator here: 0 (groups) and 1 (transactions) have one"),
        )),
    }
}
