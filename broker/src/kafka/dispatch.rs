//! The way of a request to the file of its API, and of the answer back to bytes.

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_protocol::messages::{self, ApiKey, ProduceRequest, ResponseHeader};
use kafka_protocol::protocol::{Encodable, HeaderVersion};
use tokio::sync::OwnedSemaphorePermit;

use super::acls::{create_acls, delete_acls, describe_acls};
use super::api::{Api, Header};
use super::guarded::decode;
use super::{
    Call, add_offsets_to_txn, add_partitions_to_txn, alter_configs, api_versions, consumer_group_describe,
    consumer_group_heartbeat, create_partitions, create_topics, delete_groups, delete_records, delete_topics,
    describe_cluster, describe_configs, describe_groups, describe_log_dirs, describe_producers,
    describe_topic_partitions, describe_transactions, end_txn, fetch, find_coordinator, heartbeat,
    incremental_alter_configs, init_producer_id, join_group, leave_group, list_config_resources, list_groups,
    list_offsets, list_transactions, metadata, offset_commit, offset_delete, offset_fetch, offset_for_leader_epoch,
    produce, sasl_handshake, sync_group, txn_offset_commit,
};

/// The encoded answer to a request, or `None` if the client does not wait for one. An error is a defect of the server, which
/// ends the connection.
pub(super) type Answer = BoxFuture<'static, Result<Option<Bytes>, String>>;

/// Begins to answer a request. Requests of one connection are passed in their order, so that records are stored in that
/// order. The answer may take longer.
///
/// # Errors
/// A description for the log, if the request cannot be read.
pub(super) async fn begin(
    call: Call,
    header: Header,
    api: Api,
    body: Bytes,
    in_flight: Option<OwnedSemaphorePermit>,
) -> Result<Answer, String> {
    let version = header.version;
    // The APIs whose requests are answered one after the other.
    macro_rules! apis {
        ($($key:ident: $request:ident by $api:ident),* $(,)?) => {
            match api.key {
                ApiKey::Produce => {
                    let request: ProduceRequest = decode(body, version)?;
                    let queued = produce::queue(&call, request, in_flight).await;
                    async move {
                        match queued.answer().await {
                            Some(answer) => encode(header, &answer),
                            None => Ok(None),
                        }
                    }
                    .boxed()
                }
                // The client may not know version 4 of the answer, so it gets version 0 (KIP-511).
                ApiKey::ApiVersions if !api.serves(version) => {
                    let header = Header { version: 0, ..header };
                    async move { encode(header, &api_versions::unsupported()) }.boxed()
                }
                $(ApiKey::$key => {
                    let request: messages::$request = decode(body, version)?;
                    async move { encode(header, &$api::answer(&call, request).await) }.boxed()
                })*
                key => return Err(format!("{key:?} is not served")),
            }
        };
    }
    Ok(apis! {
        Fetch: FetchRequest by fetch,
        ListOffsets: ListOffsetsRequest by list_offsets,
        Metadata: MetadataRequest by metadata,
        OffsetCommit: OffsetCommitRequest by offset_commit,
        OffsetFetch: OffsetFetchRequest by offset_fetch,
        FindCoordinator: FindCoordinatorRequest by find_coordinator,
        JoinGroup: JoinGroupRequest by join_group,
        Heartbeat: HeartbeatRequest by heartbeat,
        LeaveGroup: LeaveGroupRequest by leave_group,
        SyncGroup: SyncGroupRequest by sync_group,
        DescribeGroups: DescribeGroupsRequest by describe_groups,
        ListGroups: ListGroupsRequest by list_groups,
        ApiVersions: ApiVersionsRequest by api_versions,
        InitProducerId: InitProducerIdRequest by init_producer_id,
        SaslHandshake: SaslHandshakeRequest by sasl_handshake,
        CreateTopics: CreateTopicsRequest by create_topics,
        DeleteTopics: DeleteTopicsRequest by delete_topics,
        DeleteRecords: DeleteRecordsRequest by delete_records,
        OffsetForLeaderEpoch: OffsetForLeaderEpochRequest by offset_for_leader_epoch,
        DescribeAcls: DescribeAclsRequest by describe_acls,
        CreateAcls: CreateAclsRequest by create_acls,
        DeleteAcls: DeleteAclsRequest by delete_acls,
        AddPartitionsToTxn: AddPartitionsToTxnRequest by add_partitions_to_txn,
        AddOffsetsToTxn: AddOffsetsToTxnRequest by add_offsets_to_txn,
        EndTxn: EndTxnRequest by end_txn,
        TxnOffsetCommit: TxnOffsetCommitRequest by txn_offset_commit,
        DescribeProducers: DescribeProducersRequest by describe_producers,
        DescribeTransactions: DescribeTransactionsRequest by describe_transactions,
        ListTransactions: ListTransactionsRequest by list_transactions,
        DescribeConfigs: DescribeConfigsRequest by describe_configs,
        AlterConfigs: AlterConfigsRequest by alter_configs,
        DescribeLogDirs: DescribeLogDirsRequest by describe_log_dirs,
        CreatePartitions: CreatePartitionsRequest by create_partitions,
        IncrementalAlterConfigs: IncrementalAlterConfigsRequest by incremental_alter_configs,
        ConsumerGroupHeartbeat: ConsumerGroupHeartbeatRequest by consumer_group_heartbeat,
        ConsumerGroupDescribe: ConsumerGroupDescribeRequest by consumer_group_describe,
        DescribeCluster: DescribeClusterRequest by describe_cluster,
        ListConfigResources: ListConfigResourcesRequest by list_config_resources,
        DescribeTopicPartitions: DescribeTopicPartitionsRequest by describe_topic_partitions,
        DeleteGroups: DeleteGroupsRequest by delete_groups,
        OffsetDelete: OffsetDeleteRequest by offset_delete,
    })
}

/// Encodes an answer, with its length and header.
fn encode<M: Encodable + HeaderVersion>(header: Header, message: &M) -> Result<Option<Bytes>, String> {
    let mut bytes = BytesMut::new();
    bytes.put_i32(0);
    let response = ResponseHeader::default().with_correlation_id(header.correlation_id);
    let encoded = response.encode(&mut bytes, M::header_version(header.version));
    let encoded = encoded.and_then(|()| message.encode(&mut bytes, header.version));
    encoded.map_err(|error| format!("cannot encode the answer to {header:?}: {error}"))?;
    let length = i32::try_from(bytes.len() - 4).map_err(|_| format!("the answer to {header:?} exceeds 2 GiB"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(Some(bytes.freeze()))
}
