//! Topics: names, settings and what may be altered of them, and the partitions of each.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::name::TopicName;
use crate::name::TopicPartition;
use crate::store::place::TopicId;

/// Partitions that one topic may have: what the curve of commits over partitions was measured to.
pub const PARTITIONS_MAX: u32 = 10_000;

/// The largest record batch that a topic takes unless its settings say otherwise: Kafka's
/// `message.max.bytes`, 1 MiB and the 12 bytes of a batch's log overhead.
pub const BATCH_BYTES_MAX_DEFAULT: usize = 1_048_588;

/// The largest `batch_bytes_max` that a topic may be given: a batch must fit a gRPC message with
/// room to spare.
pub const BATCH_BYTES_MAX_LIMIT: usize = 16 << 20;

/// How long a tombstone of a compacted topic is kept unless its settings say otherwise: Kafka's
/// `delete.retention.ms`, 24 hours.
pub const DELETE_RETENTION_MS_DEFAULT: u64 = 24 * 3_600_000;

/// How far after the server's time a record's timestamp may be unless the topic's settings say otherwise: Kafka's
/// `message.timestamp.after.max.ms`, 1 hour.
pub const TIMESTAMP_AFTER_MAX_MS_DEFAULT: u64 = 3_600_000;

/// The shortest `retention_ms`: retention is looked at once a second.
pub const RETENTION_MS_MIN: u64 = 1_000;

/// What becomes of a topic's old records: Kafka's `cleanup.policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cleanup {
    /// They are deleted once they are older or more than the topic's retention.
    #[default]
    #[serde(rename = "delete")]
    Delete,
    /// The last record of each key is kept; one with a null value deletes its key.
    #[serde(rename = "compact")]
    Compact,
    /// Both.
    #[serde(rename = "compact,delete")]
    CompactAndDelete,
}

impl Cleanup {
    /// The word for it, as Kafka has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
            Self::CompactAndDelete => "compact,delete",
        }
    }

    /// Whether only the last record of each key is kept: every record must have a key then.
    pub fn compacts(self) -> bool {
        self != Self::Delete
    }

    /// Whether retention deletes records.
    pub fn deletes(self) -> bool {
        self != Self::Compact
    }
}

/// What a user sets on a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSettings {
    /// What becomes of old records.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cleanup: Cleanup,
    /// How long records are kept; without limit where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// How many bytes a partition keeps; without limit where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// How long a compacted topic keeps a record with a null value, so that readers see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_retention_ms: Option<u64>,
    /// The largest record batch that is taken, in bytes as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_bytes_max: Option<usize>,
    /// How far before the server's time a record's timestamp may be (KIP-937); without limit where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_before_max_ms: Option<u64>,
    /// How far after the server's time a record's timestamp may be (KIP-937).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_after_max_ms: Option<u64>,
}

fn is_default(cleanup: &Cleanup) -> bool {
    *cleanup == Cleanup::default()
}

impl TopicSettings {
    /// Checks each setting's range, and that none contradicts another. `retention_bytes_min` is what the
    /// journal may keep of a partition whatever its retention says: less can't be promised.
    ///
    /// # Errors
    /// [`BrokerError::InvalidArgument`] with the setting, its value and what is allowed.
    pub fn check(&self, retention_bytes_min: u64) -> Result<(), BrokerError> {
        let refuse = |what: &'static str, value: u64, allowed: String| {
            Err(BrokerError::InvalidArgument { what, value: value.to_string(), allowed })
        };
        let keeps_all =
            "cleanup is \"compact\", which deletes no old records: use cleanup \"compact,delete\", or leave it out";
        if let Some(ms) = self.retention_ms {
            if !self.cleanup.deletes() {
                return refuse("retention_ms", ms, keeps_all.to_owned());
            }
            if ms < RETENTION_MS_MIN {
                let allowed = format!("use {RETENTION_MS_MIN} or more: retention is looked at once a second");
                return refuse("retention_ms", ms, allowed);
            }
        }
        if let Some(bytes) = self.retention_bytes {
            if !self.cleanup.deletes() {
                return refuse("retention_bytes", bytes, keeps_all.to_owned());
            }
            if bytes < retention_bytes_min {
                let allowed = format!(
                    "use {retention_bytes_min} or more: the journal may keep that much of a partition \
                     (journal_bytes_max), and less can't be promised"
                );
                return refuse("retention_bytes", bytes, allowed);
            }
        }
        if let Some(ms) = self.delete_retention_ms
            && !self.cleanup.compacts()
        {
            let allowed = "cleanup is \"delete\", and only a compacted topic keeps tombstones: use cleanup \"compact\" or \
                           \"compact,delete\", or leave it out";
            return refuse("delete_retention_ms", ms, allowed.to_owned());
        }
        if let Some(bytes) = self.batch_bytes_max
            // Below a kilobyte hardly a record fits.
            && !(1024..=BATCH_BYTES_MAX_LIMIT).contains(&bytes)
        {
            return refuse("batch_bytes_max", bytes as u64, format!("use 1024 to {BATCH_BYTES_MAX_LIMIT}"));
        }
        Ok(())
    }

    /// The largest record batch that is taken.
    pub fn batch_bytes_max(&self) -> usize {
        self.batch_bytes_max.unwrap_or(BATCH_BYTES_MAX_DEFAULT)
    }

    /// How far after the server's time a record's timestamp may be.
    pub fn timestamp_after_max_ms(&self) -> u64 {
        self.timestamp_after_max_ms.unwrap_or(TIMESTAMP_AFTER_MAX_MS_DEFAULT)
    }

    /// How long a compacted topic keeps a record with a null value.
    pub fn delete_retention_ms(&self) -> u64 {
        self.delete_retention_ms.unwrap_or(DELETE_RETENTION_MS_DEFAULT)
    }
}

/// What becomes of one setting when a topic is altered: Kafka's `SET` and `DELETE` of an incremental
/// alteration (KIP-339), or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It gets this value.
    Set(T),
    /// It goes back to its default.
    Unset,
}

impl<T> Change<T> {
    /// The setting afterwards; `None` for its default.
    fn of(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Keep => before,
            Self::Set(value) => Some(value),
            Self::Unset => None,
        }
    }
}

/// What is to change of a topic. What is left at its default stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// How many partitions there are to be: as many as there are, or more.
    pub partitions: Option<u32>,
}

impl TopicAlteration {
    /// The settings afterwards, not yet checked.
    pub fn settings(&self, before: &TopicSettings) -> TopicSettings {
        TopicSettings {
            cleanup: self.cleanup.of(Some(before.cleanup)).unwrap_or_default(),
            retention_ms: self.retention_ms.of(before.retention_ms),
            retention_bytes: self.retention_bytes.of(before.retention_bytes),
            delete_retention_ms: self.delete_retention_ms.of(before.delete_retention_ms),
            batch_bytes_max: self.batch_bytes_max.of(before.batch_bytes_max),
            timestamp_before_max_ms: self.timestamp_before_max_ms.of(before.timestamp_before_max_ms),
            timestamp_after_max_ms: self.timestamp_after_max_ms.of(before.timestamp_after_max_ms),
        }
    }
}

/// How a pipeline uses a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicUse {
    /// The aggregate stage that takes the topic's partitioning as its own: which partition a key is in
    /// must not change under its state.
    pub aggregate: Option<String>,
}

/// A topic as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicMeta {
    /// The incarnation, as the store numbers it.
    pub id: u32,
    /// The incarnation, as clients name it (KIP-516). Nil in a catalog of data format 4, and only there.
    #[serde(default)]
    pub uuid: Uuid,
    /// How many partitions.
    pub partitions: u32,
    /// What the user set.
    pub settings: TopicSettings,
    /// Made and owned by the runtime.
    #[serde(default)]
    pub internal: bool,
    /// Partitions were added since it was made: records of one key may be in two partitions.
    #[serde(default)]
    pub keys_moved: bool,
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

    /// The same topic with other settings, and perhaps more partitions. Both share those there are, so that
    /// who still holds this one goes on.
    pub(crate) fn altered(&self, meta: TopicMeta) -> Self {
        debug_assert!(meta.id == self.meta.id && meta.partitions >= self.meta.partitions);
        let mut altered = Self::new(self.name.clone(), meta);
        for (new, shared) in altered.partitions.iter_mut().zip(&self.partitions) {
            *new = shared.clone();
        }
        altered
    }

    /// The topic's name.
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// The topic's incarnation.
    pub fn id(&self) -> TopicId {
        TopicId(self.meta.id)
    }

    /// The topic's incarnation, as clients name it.
    pub fn uuid(&self) -> Uuid {
        self.meta.uuid
    }

    /// Whether it was deleted under whoever still holds this.
    pub fn is_deleted(&self) -> bool {
        self.partitions.first().is_some_and(|partition| partition.is_deleted())
    }

    /// What the catalog keeps of it.
    pub fn meta(&self) -> &TopicMeta {
        &self.meta
    }

    /// Its partitions, by number.
    pub fn partitions(&self) -> &[Arc<Partition>] {
        &self.partitions
    }

    /// Refuses a record without a key where only the last of each key is kept. `index` counts the records
    /// of a request, from 0.
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
