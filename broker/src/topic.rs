//! Topics: names, settings, and the partitions of each.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::BrokerError;
use crate::name::TopicName;
use crate::partition::{Partition, TopicId, TopicPartition};

/// Partitions that one topic may have: what the curve of commits over partitions was measured to.
pub const PARTITIONS_MAX: u32 = 10_000;

/// The largest record batch that a topic takes unless its settings say otherwise: Kafka's
/// `message.max.bytes`, 1 MiB and the 12 bytes of a batch's log overhead.
pub const BATCH_BYTES_MAX_DEFAULT: usize = 1_048_588;

/// The largest `batch_bytes_max` that a topic may be given: a batch must fit a gRPC message with
/// room to spare.
pub const BATCH_BYTES_MAX_LIMIT: usize = 16 << 20;

/// What a user sets on a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSettings {
    /// How long records are kept; without limit where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// How many bytes a partition keeps; without limit where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// The largest record batch that is taken, in bytes as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_bytes_max: Option<usize>,
}

impl TopicSettings {
    /// Checks each setting's range.
    ///
    /// # Errors
    /// [`BrokerError::InvalidArgument`] with the setting, its value and its range.
    pub fn check(&self) -> Result<(), BrokerError> {
        let Some(bytes) = self.batch_bytes_max else { return Ok(()) };
        // Below a kilobyte hardly a record fits.
        if (1024..=BATCH_BYTES_MAX_LIMIT).contains(&bytes) {
            return Ok(());
        }
        Err(BrokerError::InvalidArgument {
            what: "batch_bytes_max",
            value: bytes.to_string(),
            allowed: format!("use 1024 to {BATCH_BYTES_MAX_LIMIT}"),
        })
    }

    /// The largest record batch that is taken.
    pub fn batch_bytes_max(&self) -> usize {
        self.batch_bytes_max.unwrap_or(BATCH_BYTES_MAX_DEFAULT)
    }
}

/// A topic as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicMeta {
    /// The incarnation.
    pub id: u32,
    /// How many partitions.
    pub partitions: u32,
    /// What the user set.
    pub settings: TopicSettings,
    /// Made and owned by the runtime.
    #[serde(default)]
    pub internal: bool,
    /// When it was made.
    pub created_at_ms: i64,
}

/// A topic in use.
#[derive(Debug)]
pub struct Topic {
    name: TopicName,
    meta: TopicMeta,
    partitions: Vec<Arc<Partition>>,
}

impl Topic {
    pub(crate) fn new(name: TopicName, meta: TopicMeta) -> Self {
        let partitions = (0..meta.partitions)
            .map(|partition| {
                let name = TopicPartition { topic: name.clone(), partition };
                Arc::new(Partition::new(TopicId(meta.id), name))
            })
            .collect();
        Self { name, meta, partitions }
    }

    /// The topic's name.
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// The topic's incarnation.
    pub fn id(&self) -> TopicId {
        TopicId(self.meta.id)
    }

    /// What the catalog keeps of it.
    pub fn meta(&self) -> &TopicMeta {
        &self.meta
    }

    /// Its partitions, by number.
    pub fn partitions(&self) -> &[Arc<Partition>] {
        &self.partitions
    }

    /// How many partitions it has.
    pub fn partition_count(&self) -> u32 {
        self.meta.partitions
    }

    /// One partition.
    ///
    /// # Errors
    /// [`BrokerError::UnknownPartition`].
    pub fn partition(&self, partition: u32) -> Result<&Arc<Partition>, BrokerError> {
        self.partitions.get(partition as usize).ok_or_else(|| BrokerError::UnknownPartition {
            topic: self.name.clone(),
            partition,
            partitions: self.meta.partitions,
        })
    }
}
