//! Encodes columns as record batches for the partitions of an output topic.

use millstream_broker::{TopicName, TopicPartition};
use millstream_record::{BatchBuilder, Columns, ColumnsReader, Compression, RecordBatch, partition_for_key};

/// Size in bytes at which an output batch is completed: large enough that the size of its header does not matter, small
/// enough that a consumer receives it in one piece.
const BATCH_BYTES: usize = 256 << 10;

/// A topic that a pipeline writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputTopic {
    /// Name of the topic.
    pub name: TopicName,
    /// Number of partitions.
    pub partitions: u32,
    /// Maximum size of a record batch, in bytes.
    pub batch_bytes_max: usize,
    /// Whether the topic is compacted, so that each record must have a key.
    pub compacted: bool,
}

/// An output record that its topic does not accept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutputRefused {
    /// The record is too large.
    #[error(
        "an output record of {bytes} bytes exceeds the limit of topic {topic}, {batch_bytes_max} (batch_bytes_max): \
         emit smaller records, or raise the topic's limit"
    )]
    TooLarge {
        /// The topic.
        topic: TopicName,
        /// The record's size, in bytes.
        bytes: usize,
        /// The topic's limit, in bytes.
        batch_bytes_max: usize,
        /// The offset of the source record.
        offset: i64,
    },
    /// The record has no key, and the topic is compacted.
    #[error(
        "an output record has no key, and topic {topic} is compacted by key: give each record a key, or set the \
         topic's cleanup to \"delete\""
    )]
    NullKey {
        /// The topic.
        topic: TopicName,
        /// The offset of the source record.
        offset: i64,
    },
}

impl OutputRefused {
    /// Returns the offset of the source record.
    pub fn offset(&self) -> i64 {
        match self {
            Self::TooLarge { offset, .. } | Self::NullKey { offset, .. } => *offset,
        }
    }
}

/// Encodes batches for `topic`. Records with a key are partitioned by Kafka's murmur2 of the key, records without a key
/// by the source partition, so that their order is kept and the same input gives the same output.
///
/// # Errors
/// [`OutputRefused`].
pub fn encode(
    columns: &Columns,
    topic: &OutputTopic,
    source_partition: u32,
) -> Result<Vec<(TopicPartition, Vec<RecordBatch>)>, OutputRefused> {
    let mut partitions: Vec<Option<Partition>> = (0..topic.partitions).map(|_| None).collect();
    let cut = topic.batch_bytes_max.min(BATCH_BYTES);
    let expected = columns.bytes() + columns.len() * 12;
    let room = (expected / topic.partitions as usize).clamp(256, cut) + 1024;
    let reader = ColumnsReader::new(columns);
    for index in 0..columns.len() {
        let row = reader.row(index);
        if topic.compacted && row.key.is_none() {
            return Err(OutputRefused::NullKey { topic: topic.name.clone(), offset: row.offset });
        }
        let number = match row.key {
            _ if topic.partitions == 1 => 0,
            Some(key) => partition_for_key(key, topic.partitions),
            None => source_partition % topic.partitions,
        };
        let partition = partitions[number as usize].get_or_insert_with(|| Partition {
            builder: BatchBuilder::with_capacity(Compression::None, room),
            batches: Vec::new(),
        });
        let headers: usize =
            reader.headers(index).map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len) + 10).sum();
        let bytes =
            BatchBuilder::record_bytes_max(row.key.map_or(0, <[u8]>::len), row.value.map_or(0, <[u8]>::len)) + headers;
        if partition.builder.encoded_bytes() + bytes > cut {
            partition.batches.extend(partition.builder.finish());
            // The batch's header counts as well.
            if partition.builder.encoded_bytes() + bytes > topic.batch_bytes_max {
                return Err(OutputRefused::TooLarge {
                    topic: topic.name.clone(),
                    bytes,
                    batch_bytes_max: topic.batch_bytes_max,
                    offset: row.offset,
                });
            }
        }
        reader.push_to(&mut partition.builder, index);
    }
    let batches = partitions.into_iter().enumerate().filter_map(|(number, partition)| {
        let mut partition = partition?;
        partition.batches.extend(partition.builder.finish());
        let name = TopicPartition { topic: topic.name.clone(), partition: number as u32 };
        Some((name, partition.batches))
    });
    Ok(batches.collect())
}

struct Partition {
    builder: BatchBuilder,
    batches: Vec<RecordBatch>,
}
