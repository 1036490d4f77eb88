//! Kafka's wire protocol: one more edge over the broker. This folder translates between Kafka's messages and the domain, and
//! has one file for each API.
//!
//! Served are: connecting, metadata with auto-creation of topics, producing (idempotent producers included), fetching,
//! offsets, groups by both protocols, transactions, and the administration of topics. Share groups and whatever is about more
//! than one node are not served, and are not advertised.

mod acls;
mod add_offsets_to_txn;
mod add_partitions_to_txn;
mod alter_configs;
mod api;
mod api_versions;
mod configs;
mod connection;
mod consumer_group_describe;
mod consumer_group_heartbeat;
mod consumer_protocol;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod describe_groups;
mod describe_log_dirs;
mod describe_producers;
mod describe_topic_partitions;
mod describe_transactions;
mod dispatch;
mod end_txn;
mod error_code;
mod fetch;
mod find_coordinator;
mod guarded;
mod heartbeat;
mod incremental_alter_configs;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_config_resources;
mod list_groups;
mod list_offsets;
mod list_transactions;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod sasl_handshake;
mod sync_group;
mod transactions;
mod txn_offset_commit;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::broker::caller::Caller;
use crate::broker::quota::QuotaKind;
use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::log::topic::Topic;
use crate::net::listener::{self, NetSettings};
use crate::store::LEADER_EPOCH;

/// The settings of the listener for Kafka's protocol.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// The host and port that clients are told to connect to. `None` for the address that they have reached.
    pub advertised: Option<(String, u16)>,
    /// Maximum number of open connections. Further ones are closed at once.
    pub connections_max: usize,
    /// Maximum total size of the produce requests of one connection that wait for their commit, in bytes.
    pub connection_bytes_in_flight_max: usize,
    /// Maximum size of a request, in bytes: Kafka's `socket.request.max.bytes`.
    pub request_bytes_max: usize,
    /// How long a peer may leave its socket full, or a request half sent, in ms.
    pub stall_max_ms: u64,
    /// How long a connection may be unused, in ms: Kafka's `connections.max.idle.ms`.
    pub idle_max_ms: u64,
    /// Whether a topic that a client asks for is created if it does not exist: Kafka's `auto.create.topics.enable`.
    pub auto_create_topics: bool,
    /// Number of partitions of topics that are created without one: Kafka's `num.partitions`.
    pub partitions_default: u32,
}

/// What the APIs need to answer a request.
#[derive(Clone)]
struct Edge {
    broker: Broker,
    settings: Arc<KafkaSettings>,
}

impl Edge {
    /// Returns a partition by its topic's name and its number.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`], also for a negative number, or [`BrokerError::UnknownPartition`].
    fn partition(&self, topic: &str, partition: i32) -> Result<(Arc<Topic>, Arc<Partition>), BrokerError> {
        let topic = self.broker.topic(topic)?;
        let unknown = |_| BrokerError::UnknownTopic { topic: topic.name().as_str().to_owned() };
        let partition = topic.partition(u32::try_from(partition).map_err(unknown)?)?.clone();
        Ok((topic, partition))
    }

    /// Returns the id of the data directory, which is that of the cluster. `None` if it cannot be read or written.
    async fn cluster_id(&self) -> Option<String> {
        let id = self.broker.cluster_id().await;
        let id = id.inspect_err(|error| tracing::warn!(%error, "the id of the cluster cannot be read"));
        id.ok().map(|id| id.to_string())
    }
}

/// A request on its way: who sent it, and what is needed to answer it.
struct Call {
    edge: Edge,
    caller: Caller,
    /// The version of the API.
    version: i16,
    /// What the client calls itself.
    client_id: Arc<str>,
    client_host: IpAddr,
    /// The address that the client has reached.
    local: SocketAddr,
}

impl Call {
    fn broker(&self) -> &Broker {
        &self.edge.broker
    }

    /// Returns how long the client's next request of this kind waits for its quota, in ms. Clients hold their requests back
    /// for as long (KIP-219), and show it in their metrics.
    fn throttle_time_ms(&self, kind: QuotaKind) -> i32 {
        i32::try_from(self.caller.throttled_ms(kind)).unwrap_or(i32::MAX)
    }

    /// Returns the host and port that the client is told to connect to.
    fn advertised(&self) -> (StrBytes, i32) {
        match &self.edge.settings.advertised {
            Some((host, port)) => (text(host.clone()), i32::from(*port)),
            None => (text(self.local.ip().to_canonical().to_string()), i32::from(self.local.port())),
        }
    }
}

/// Returns text as Kafka's messages hold it.
fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// Checks the leader epoch that a client knows (KIP-320), -1 for none.
///
/// # Errors
/// Kafka's error code.
fn check_leader_epoch(epoch: i32) -> Result<(), i16> {
    match epoch {
        -1 | LEADER_EPOCH => Ok(()),
        // Epochs never end here, so this one is not of this server.
        ..LEADER_EPOCH => Err(ResponseError::FencedLeaderEpoch.code()),
        _ => Err(ResponseError::UnknownLeaderEpoch.code()),
    }
}

/// The operations on the cluster and on topics that Kafka has, as bits. Without authorization, all are allowed: create,
/// alter, describe, cluster action, describe and alter configs, idempotent write; and read, write, create, delete, alter,
/// describe, describe and alter configs.
const CLUSTER_OPERATIONS: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
const TOPIC_OPERATIONS: i32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;

/// The number of the only node.
const NODE_ID: i32 = 0;

/// Serves Kafka's protocol until `stop` completes. Then waits until the accepted requests are answered.
pub async fn serve(listener: TcpListener, broker: Broker, settings: KafkaSettings, stop: impl Future<Output = ()>) {
    let net = NetSettings {
        connections_max: settings.connections_max,
        connection_bytes_in_flight_max: settings.connection_bytes_in_flight_max,
        stall_max: Duration::from_millis(settings.stall_max_ms),
    };
    broker.watch_transactions();
    let mut connections = Box::pin(listener::accept(listener, &net, broker.metrics().clone()));
    let edge = Edge { broker, settings: Arc::new(settings) };
    let open = TaskTracker::new();
    let accepted = async {
        while let Some(Ok(connection)) = connections.next().await {
            open.spawn(connection::run(connection, edge.clone()));
        }
    };
    tokio::select! {
        () = accepted => {}
        () = stop => {}
    }
    open.close();
    open.wait().await;
}
