//! DescribeCluster (key 60): this node.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{BrokerId, DescribeClusterRequest, DescribeClusterResponse};

use super::{CLUSTER_OPERATIONS, Call, NODE_ID, text};

/// The first version that says whether it is about brokers or controllers (KIP-919).
const ENDPOINTS_FROM: i16 = 1;
/// The kind of endpoint that is a broker.
const BROKERS: i8 = 1;

pub(super) async fn answer(call: &Call, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let answer = DescribeClusterResponse::default();
    let answer = if call.version >= ENDPOINTS_FROM { answer.with_endpoint_type(request.endpoint_type) } else { answer };
    if call.version >= ENDPOINTS_FROM && request.endpoint_type != BROKERS {
        return answer
            .with_error_code(ResponseError::MismatchedEndpointType.code())
            .with_error_message(Some(text("this is the listener of a broker, not of a controller")));
    }
    let edge = &call.edge;
    let (host, port) = call.advertised();
    let node = DescribeClusterBroker::default().with_broker_id(BrokerId(NODE_ID)).with_host(host).with_port(port);
    let answer = answer
        .with_cluster_id(text(edge.cluster_id().await.unwrap_or_default()))
        .with_controller_id(BrokerId(NODE_ID))
        .with_brokers(vec![node]);
    match request.include_cluster_authorized_operations {
        true => answer.with_cluster_authorized_operations(CLUSTER_OPERATIONS),
        false => answer,
    }
}
