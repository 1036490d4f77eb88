//! The members of a group by the classic protocol as the catalog keeps them, so that they are still members after the server
//! was started again (as in Kafka, which keeps them in `__consumer_offsets`).
//!
//! They are kept when each member can have its assignment, before any of them gets it: no member is ever ahead of what is
//! kept. A group that was in a rebalance is restored as it was before that, and its members join again.

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A group whose members have their assignments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The generation.
    pub generation: i32,
    /// The kind of protocol.
    pub protocol_type: String,
    /// The protocol that the group uses.
    pub protocol: String,
    /// The id of the leading member.
    pub leader: String,
    /// The members, in the order in which they joined.
    pub members: Vec<KeptMember>,
}

/// A member of a [`Kept`] group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptMember {
    /// Its id.
    pub member: String,
    /// Its static id.
    pub instance: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// The client's address.
    pub client_host: String,
    /// How long the member may send nothing until it is removed.
    pub session_timeout_ms: u64,
    /// How long it may take to join a rebalance.
    pub rebalance_timeout_ms: u64,
    /// The protocols that it can use.
    pub protocols: Vec<KeptProtocol>,
    /// Its assignment, as the leader wrote it.
    pub assignment: Base64,
    /// The topics and partitions in it.
    pub partitions: Vec<(String, u32)>,
}

/// A protocol of a [`KeptMember`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptProtocol {
    /// The name.
    pub name: String,
    /// What the member tells the leader.
    pub metadata: Base64,
    /// The topics that a consumer subscribes to.
    pub topics: Vec<String>,
}

/// Bytes that are text in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64(pub Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(|bytes| Self(bytes.into())).map_err(serde::de::Error::custom)
    }
}
