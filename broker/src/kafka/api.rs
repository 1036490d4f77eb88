//! The served APIs and their versions.

use kafka_protocol::messages::ApiKey;

/// An API with its versions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Api {
    pub(super) key: ApiKey,
    /// The lowest version that clients are told.
    pub(super) advertised_from: i16,
    /// The lowest version that is served.
    pub(super) from: i16,
    /// The highest version.
    pub(super) to: i16,
}

impl Api {
    /// Returns whether a version is served.
    pub(super) fn serves(self, version: i16) -> bool {
        (self.from..=self.to).contains(&version)
    }
}

const fn api(key: ApiKey, from: i16, to: i16) -> Api {
    Api { key, advertised_from: from, from, to }
}

/// All served APIs.
pub(super) const APIS: [Api; 42] = [
    // librdkafka before 2.11.1 sends uncompressed batches to a broker that does not advertise version 0. No client uses it:
    // record batches of version 2 came with version 3 of this API.
    Api { key: ApiKey::Produce, advertised_from: 0, from: 3, to: 13 },
    api(ApiKey::Fetch, 4, 17),
    api(ApiKey::ListOffsets, 1, 10),
    api(ApiKey::Metadata, 0, 13),
    api(ApiKey::OffsetCommit, 2, 9),
    api(ApiKey::OffsetFetch, 1, 9),
    api(ApiKey::FindCoordinator, 0, 6),
    api(ApiKey::JoinGroup, 0, 9),
    api(ApiKey::Heartbeat, 0, 4),
    api(ApiKey::LeaveGroup, 0, 5),
    api(ApiKey::SyncGroup, 0, 5),
    api(ApiKey::DescribeGroups, 0, 6),
    api(ApiKey::ListGroups, 0, 5),
    api(ApiKey::ApiVersions, 0, 4),
    api(ApiKey::InitProducerId, 0, 5),
    api(ApiKey::SaslHandshake, 0, 1),
    api(ApiKey::CreateTopics, 2, 7),
    api(ApiKey::DeleteTopics, 1, 6),
    api(ApiKey::DeleteRecords, 0, 2),
    api(ApiKey::OffsetForLeaderEpoch, 2, 4),
    api(ApiKey::DescribeAcls, 1, 3),
    api(ApiKey::CreateAcls, 1, 3),
    api(ApiKey::DeleteAcls, 1, 3),
    api(ApiKey::AddPartitionsToTxn, 0, 5),
    api(ApiKey::AddOffsetsToTxn, 0, 4),
    api(ApiKey::EndTxn, 0, 5),
    api(ApiKey::TxnOffsetCommit, 0, 5),
    api(ApiKey::DescribeProducers, 0, 0),
    api(ApiKey::DescribeTransactions, 0, 0),
    api(ApiKey::ListTransactions, 0, 2),
    api(ApiKey::DescribeConfigs, 1, 4),
    api(ApiKey::AlterConfigs, 0, 2),
    api(ApiKey::DescribeLogDirs, 1, 4),
    api(ApiKey::CreatePartitions, 0, 3),
    api(ApiKey::IncrementalAlterConfigs, 0, 1),
    api(ApiKey::ConsumerGroupHeartbeat, 0, 1),
    api(ApiKey::ConsumerGroupDescribe, 0, 1),
    api(ApiKey::DescribeCluster, 0, 2),
    api(ApiKey::ListConfigResources, 0, 1),
    api(ApiKey::DescribeTopicPartitions, 0, 0),
    api(ApiKey::DeleteGroups, 0, 2),
    api(ApiKey::OffsetDelete, 0, 0),
];

/// The fields of a request's header that are needed to answer it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) key: i16,
    pub(super) version: i16,
    pub(super) correlation_id: i32,
}

/// Returns the served API of a request.
///
/// # Errors
/// A description for the log, if the API or its version is not served.
pub(super) fn served(header: Header) -> Result<Api, String> {
    let Header { key, version, .. } = header;
    let Some(api) = APIS.into_iter().find(|api| api.key as i16 == key) else {
        return Err(format!("the API with key {key} is not served"));
    };
    // A version of ApiVersions that is not served is answered with the versions that are.
    if api.serves(version) || api.key == ApiKey::ApiVersions {
        return Ok(api);
    }
    Err(format!("version {version} of {:?} is not served: use {} to {}", api.key, api.from, api.to))
}
