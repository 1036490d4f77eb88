//! Topics: their names, settings, alterations and partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_record::Compression;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::name::TopicName;
use crate::name::TopicPartition;
use crate::store::place::TopicId;

/// Maximum number of partitions of a topic. The time of commits was measured up to this number of partitions.
pub const PARTITIONS_MAX: u32 = 10_000;

/// Default maximum size of a record batch in bytes: Kafka's `message.max.bytes`, 1 MiB plus the 12 bytes of a batch's
/// log overhead.
pub const BATCH_BYTES_MAX_DEFAULT: usize = 1_048_588;

/// Minimum value of the setting `batch_bytes_max` but for Kafka's clients. Hardly any record fits into less.
pub const BATCH_BYTES_MAX_MIN: usize = 1024;

/// Maximum value of the setting `batch_bytes_max`. A batch must fit into a gRPC message with room to spare.
pub const BATCH_BYTES_MAX_LIMIT: usize = 16 << 20;

/// Default time for which a compacted topic keeps a tombstone: Kafka's `delete.retention.ms`, 24 hours.
pub const DELETE_RETENTION_MS_DEFAULT: u64 = 24 * 3_600_000;

/// Default of how far a record's timestamp may be after the server's time: Kafka's `message.timestamp.after.max.ms`, 1
/// hour.
pub const TIMESTAMP_AFTER_MAX_MS_DEFAULT: u64 = 3_600_000;

/// Minimum value of `retention_ms`. Retention runs once a second.
pub const RETENTION_MS_MIN: u64 = 1_000;

/// How old records of a topic are removed: Kafka's `cleanup.policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cleanup {
    /// Records are deleted when they exceed the topic's retention time or size.
    #[default]
    #[serde(rename = "delete")]
    Delete,
    /// The last record of each key is kept. A record with a null value deletes its key.
    #[serde(rename = "compact")]
    Compact,
    /// Both of the above.
    #[serde(rename = "compact,delete")]
    CompactAndDelete,
}

impl Cleanup {
    /// Returns Kafka's name for the policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
            Self::CompactAndDelete => "compact,delete",
        }
    }

    /// Returns whether only the last record of each key is kept. Every record must then have a key.
    pub fn compacts(self) -> bool {
        self != Self::Delete
    }

    /// Returns whether retention deletes records.
    pub fn deletes(self) -> bool {
        self != Self::Compact
    }
}

/// The settings of a topic that a user can change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSettings {
    /// How old records are removed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cleanup: Cleanup,
    /// How long records are kept, in ms. Unlimited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// How many bytes each partition keeps. Unlimited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// How long a compacted topic keeps a record with a null value, in ms, so that readers see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_retention_ms: Option<u64>,
    /// Maximum size of a record batch as sent, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_bytes_max: Option<usize>,
    /// How far before the server's time a record's timestamp may be, in ms (KIP-937). Unlimited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_before_max_ms: Option<u64>,
    /// How far after the server's time a record's timestamp may be, in ms (KIP-937).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_after_max_ms: Option<u64>,
    /// Which timestamp records get.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timestamp: Timestamp,
    /// The codec that all record batches are stored with. That of the producer if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<TopicCompression>,
    /// Settings of Kafka's that have no effect here, by Kafka's names, so that a client finds what it set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub without_effect: BTreeMap<String, String>,
}

/// The codec of a topic's record batches: Kafka's `compression.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicCompression {
    /// None.
    Uncompressed,
    /// Gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl TopicCompression {
    /// All codecs, with Kafka's names.
    pub const ALL: [(Self, &str); 5] = [
        (Self::Uncompressed, "uncompressed"),
        (Self::Gzip, "gzip"),
        (Self::Snappy, "snappy"),
        (Self::Lz4, "lz4"),
        (Self::Zstd, "zstd"),
    ];

    /// Returns the codec.
    pub fn codec(self) -> Compression {
        match self {
            Self::Uncompressed => Compression::None,
            Self::Gzip => Compression::Gzip,
            Self::Snappy => Compression::Snappy,
            Self::Lz4 => Compression::Lz4,
            Self::Zstd => Compression::Zstd,
        }
    }
}

/// Which timestamp records get: Kafka's `message.timestamp.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Timestamp {
    /// That of the producer.
    #[default]
    #[serde(rename = "create")]
    Create,
    /// The time at which the server received the record's batch.
    #[serde(rename = "append")]
    Append,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl TopicSettings {
    /// Checks that no settings contradict each other or promise what can hardly be meant. Kafka's clients may set them all
    /// the same, as in Kafka.
    ///
    /// # Errors
    /// [`BrokerError::InvalidArgument`] with the setting, its value and the allowed values.
    pub fn check_consistent(&self) -> Result<(), BrokerError> {
        let refuse = |what: &'static str, value: u64, allowed: &str| {
            Err(BrokerError::InvalidArgument { what, value: value.to_string(), allowed: allowed.to_owned() })
        };
        let keeps_all =
            "cleanup is \"compact\", which keeps old records: use cleanup \"compact,delete\", or omit this setting";
        if let Some(ms) = self.retention_ms.filter(|ms| self.cleanup.deletes() && *ms < RETENTION_MS_MIN) {
            let allowed = format!("use {RETENTION_MS_MIN} or more: retention runs once a second");
            return refuse("retention_ms", ms, &allowed);
        }
        if let Some(bytes) = self.batch_bytes_max.filter(|bytes| *bytes < BATCH_BYTES_MAX_MIN) {
            let allowed = format!("use {BATCH_BYTES_MAX_MIN} to {BATCH_BYTES_MAX_LIMIT}");
            return refuse("batch_bytes_max", bytes as u64, &allowed);
        }
        match (self.retention_ms, self.retention_bytes, self.delete_retention_ms) {
            (Some(ms), ..) if !self.cleanup.deletes() => refuse("retention_ms", ms, keeps_all),
            (_, Some(bytes), _) if !self.cleanup.deletes() => refuse("retention_bytes", bytes, keeps_all),
            (.., Some(ms)) if !self.cleanup.compacts() => {
                let allowed = "cleanup is \"delete\", and only a compacted topic keeps tombstones: use cleanup \"compact\" \
                               or \"compact,delete\", or omit this setting";
                refuse("delete_retention_ms", ms, allowed)
            }
            _ => Ok(()),
        }
    }

    /// Checks the range of each setting. `retention_bytes_min` is the
    /// number of bytes that the journal may keep of a partition regardless of its retention, so a lower limit cannot be
    /// guaranteed.
    ///
    /// # Errors
    /// [`BrokerError::InvalidArgument`] with the setting, its value and the allowed values.
    pub fn check(&self, retention_bytes_min: u64) -> Result<(), BrokerError> {
        let refuse = |what: &'static str, value: u64, allowed: String| {
            Err(BrokerError::InvalidArgument { what, value: value.to_string(), allowed })
        };
        if let Some(bytes) = self.retention_bytes.filter(|bytes| *bytes < retention_bytes_min) {
            let allowed = format!(
                "use {retention_bytes_min} or more: the journal may keep that much of a partition \
                 (journal_bytes_max), so a lower limit cannot be guaranteed"
            );
            return refuse("retention_bytes", bytes, allowed);
        }
        if let Some(bytes) = self.batch_bytes_max
            && bytes > BATCH_BYTES_MAX_LIMIT
        {
            let allowed = format!("use {BATCH_BYTES_MAX_MIN} to {BATCH_BYTES_MAX_LIMIT}");
            return refuse("batch_bytes_max", bytes as u64, allowed);
        }
        Ok(())
    }

    /// Returns the maximum size of a record batch, in bytes.
    pub fn batch_bytes_max(&self) -> usize {
        self.batch_bytes_max.unwrap_or(BATCH_BYTES_MAX_DEFAULT)
    }

    /// Returns how far after the server's time a record's timestamp may be, in ms.
    pub fn timestamp_after_max_ms(&self) -> u64 {
        self.timestamp_after_max_ms.unwrap_or(TIMESTAMP_AFTER_MAX_MS_DEFAULT)
    }

    /// Returns how long a compacted topic keeps a record with a null value, in ms.
    pub fn delete_retention_ms(&self) -> u64 {
        self.delete_retention_ms.unwrap_or(DELETE_RETENTION_MS_DEFAULT)
    }
}

/// The change to one setting when a topic is altered: `SET` or `DELETE` of Kafka's incremental alteration (KIP-339), or
/// no change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// The setting is not changed.
    #[default]
    Keep,
    /// The setting gets this value.
    Set(T),
    /// The setting is reset to its default.
    Unset,
}

impl<T> Change<T> {
    /// Returns the new value of the setting, or `None` for its default.
    fn of(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Keep => before,
            Self::Set(value) => Some(value),
            Self::Unset => None,
        }
    }
}

/// An alteration of a topic. Fields with their default value change nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicAlteration {
    /// See [`TopicSettings::cleanup`].
    pub cleanup: Change<Cleanup>,
    /// See [`TopicSettings::retention_ms`].
    pub retention_ms: Change<u64>,
    /// See [`TopicSettings::retention_bytes`].
    pub retention_bytes: Change<u64>,
    /// See [`TopicSettings::delete_retention_ms`].
    pub delete_retention_ms: Change<u64>,
    /// See [`TopicSettings::batch_bytes_max`].
    pub batch_bytes_max: Change<usize>,
    /// See [`TopicSettings::timestamp_before_max_ms`].
    pub timestamp_before_max_ms: Change<u64>,
    /// See [`TopicSettings::timestamp_after_max_ms`].
    pub timestamp_after_max_ms: Change<u64>,
    /// See [`TopicSettings::timestamp`].
    pub timestamp: Change<Timestamp>,
    /// See [`TopicSettings::compression`].
    pub compression: Change<TopicCompression>,
    /// See [`TopicSettings::without_effect`].
    pub without_effect: BTreeMap<String, Change<String>>,
    /// The new number of partitions. It must not be lower than the current one.
    pub partitions: Option<u32>,
}

impl TopicAlteration {
    /// Returns the settings after the alteration, without checking them.
    pub fn settings(&self, before: &TopicSettings) -> TopicSettings {
        TopicSettings {
            cleanup: self.cleanup.of(Some(before.cleanup)).unwrap_or_default(),
            retention_ms: self.retention_ms.of(before.retention_ms),
            retention_bytes: self.retention_bytes.of(before.retention_bytes),
            delete_retention_ms: self.delete_retention_ms.of(before.delete_retention_ms),
            batch_bytes_max: self.batch_bytes_max.of(before.batch_bytes_max),
            timestamp_before_max_ms: self.timestamp_before_max_ms.of(before.timestamp_before_max_ms),
            timestamp_after_max_ms: self.timestamp_after_max_ms.of(before.timestamp_after_max_ms),
            timestamp: self.timestamp.of(Some(before.timestamp)).unwrap_or_default(),
            compression: self.compression.of(before.compression),
            without_effect: self.without_effect(&before.without_effect),
        }
    }

    fn without_effect(&self, before: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut settings = before.clone();
        for (name, change) in &self.without_effect {
            if let Some(value) = change.clone().of(settings.remove(name)) {
                settings.insert(name.clone(), value);
            }
        }
        settings
    }
}

/// How a pipeline uses a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicUse {
    /// The aggregate stage that relies on the topic's partitioning. The partition of a key must not change, because the
    /// stage keeps its state by partition.
    pub aggregate: Option<String>,
}

/// A topic's entry in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicMeta {
    /// The store's number for this incarnation of the topic.
    pub id: u32,
    /// The UUID of this incarnation, which clients use (KIP-516). It is nil only in a catalog of data format 4.
    #[serde(default)]
    pub uuid: Uuid,
    /// Number of partitions.
    pub partitions: u32,
    /// The settings made by the user.
    pub settings: TopicSettings,
    /// Whether the runtime created the topic and owns it.
    #[serde(default)]
    pub internal: bool,
    /// Whether partitions were added after the topic was created. Records of the same key may then be in two
    /// partitions.
    #[serde(default)]
    pub keys_moved: bool,
    /// Creation time, in ms since the epoch.
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

    /// Returns the same topic with other settings, and possibly more partitions. The two share the existing partitions,
    /// so that holders of the old value can continue to use it.
    pub(crate) fn altered(&self, meta: TopicMeta) -> Self {
        debug_assert!(meta.id == self.meta.id && meta.partitions >= self.meta.partitions);
        let mut altered = Self::new(self.name.clone(), meta);
        for (new, shared) in altered.partitions.iter_mut().zip(&self.partitions) {
            *new = shared.clone();
        }
        altered
    }

    /// Returns the topic's name.
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// Returns the store's number for this incarnation of the topic.
    pub fn id(&self) -> TopicId {
        TopicId(self.meta.id)
    }

    /// Returns the UUID of this incarnation of the topic, which clients use.
    pub fn uuid(&self) -> Uuid {
        self.meta.uuid
    }

    /// Returns whether the topic was deleted after this value was looked up.
    pub fn is_deleted(&self) -> bool {
        self.partitions.first().is_some_and(|partition| partition.is_deleted())
    }

    /// Returns the topic's entry in the catalog.
    pub fn meta(&self) -> &TopicMeta {
        &self.meta
    }

    /// Returns the partitions, sorted by number.
    pub fn partitions(&self) -> &[Arc<Partition>] {
        &self.partitions
    }

    /// Refuses a record without a key in a compacted topic. `index` is the record's position in the request, from 0.
    ///
    /// # Errors
    /// [`BrokerError::NullKey`].
    pub fn check_key(&self, partition: u32, index: usize, key: Option<&[u8]>) -> Result<(), BrokerError> {
        if key.is_some() || !self.meta.settings.cleanup.compacts() {
            return Ok(());
        }
        Err(BrokerError::NullKey { topic: self.name.clone(), partition, index })
    }

    /// The partitions with these numbers, each once and in order; all partitions if no number is given.
    ///
    /// # Errors
    /// [`BrokerError::UnknownPartition`].
    pub fn chosen_partitions(&self, numbers: &[u32]) -> Result<Vec<Arc<Partition>>, BrokerError> {
        if numbers.is_empty() {
            return Ok(self.partitions.clone());
        }
        let numbers: BTreeSet<u32> = numbers.iter().copied().collect();
        numbers.into_iter().map(|number| self.partition(number).cloned()).collect()
    }

    /// How many partitions it has.
    pub fn partition_count(&self) -> u32 {
        self.meta.partitions
    }

    /// Returns one partition.
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
