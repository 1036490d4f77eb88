//! DescribeLogDirs (key 35): the data directory, and the size of each partition in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};

use super::{Call, text};
use crate::log::partition::Partition;

/// The first version with the space on the disk (KIP-827).
const SPACE_FROM: i16 = 4;

pub(super) async fn answer(call: &Call, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    let mut partitions: BTreeMap<String, Vec<Arc<Partition>>> = BTreeMap::new();
    match request.topics {
        None => {
            for topic in call.broker().topics() {
                partitions.insert(topic.name().as_str().to_owned(), topic.partitions().to_vec());
            }
        }
        // Partitions that do not exist are in no directory.
        Some(topics) => {
            for topic in topics {
                let wanted = topic.partitions.iter().filter_map(|number| {
                    call.edge.partition(&topic.topic, *number).ok().map(|(_, partition)| partition)
                });
                partitions.entry(topic.topic.to_string()).or_default().extend(wanted);
            }
        }
    }
    let topics = partitions.into_iter().filter(|(_, partitions)| !partitions.is_empty());
    let topics = topics.map(|(name, partitions)| {
        let partitions = partitions.iter().map(|partition| {
            DescribeLogDirsPartition::default()
                .with_partition_index(partition.name().partition as i32)
                .with_partition_size(i64::try_from(partition.size().bytes).unwrap_or(i64::MAX))
        });
        DescribeLogDirsTopic::default().with_name(text(name).into()).with_partitions(partitions.collect())
    });
    let store = call.broker().store();
    let result = DescribeLogDirsResult::default()
        .with_log_dir(text(store.path().display().to_string()))
        .with_topics(topics.collect());
    let result = match store.room().disk_bytes() {
        Ok((total, free)) if call.version >= SPACE_FROM => {
            let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            result.with_total_bytes(bytes(total)).with_usable_bytes(bytes(free))
        }
        // -1 stands for an unknown size.
        _ => result,
    };
    DescribeLogDirsResponse::default().with_results(vec![result])
}
