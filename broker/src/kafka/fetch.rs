//! Fetch (key 1): record batches as they are stored. There are no fetch sessions (KIP-227): each request names all
//! partitions, which clients do when the answer has the session id 0.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, TopicName};
use uuid::Uuid;

use super::{Call, Edge, check_leader_epoch, error_code};
use crate::broker::fetch::{Fetch, FetchFrom, Fetched, WAIT_MAX};
use crate::broker::quota::QuotaKind;
use crate::error::BrokerError;
use crate::log::reader::View;
use crate::log::topic::Topic;
use crate::log::transactions::Aborted;
use crate::store::place::Offset;

/// Maximum size of the batches in one answer, in bytes: Kafka's `fetch.max.bytes` by default.
const FETCH_BYTES_MAX: usize = 55 << 20;

/// The offset of a log that is unknown.
const NO_OFFSET: i64 = -1;

/// The isolation level of a reader that sees no record of an open or aborted transaction.
pub(super) const READ_COMMITTED: i8 = 1;

/// The epochs of a request that names all partitions, whatever the id of its session is: it begins a session, or is outside
/// of any.
const FULL_FETCHES: [i32; 2] = [0, -1];

/// The first version in which topics are named by their UUIDs (KIP-516).
const UUIDS_FROM: i16 = 13;

/// A partition of a request: where its answer belongs, and what is read.
struct Wanted {
    topic: usize,
    index: i32,
    offset: i64,
    /// What is read, or Kafka's error code.
    from: Result<FetchFrom, i16>,
}

pub(super) async fn answer(call: &Call, request: FetchRequest) -> FetchResponse {
    let Call { edge, caller, .. } = call;
    if !FULL_FETCHES.contains(&request.session_epoch) {
        return FetchResponse::default().with_error_code(ResponseError::FetchSessionIdNotFound.code());
    }
    let mut topics: Vec<(TopicName, Uuid, Vec<PartitionData>)> = Vec::with_capacity(request.topics.len());
    let mut wanted = Vec::new();
    let view = if request.isolation_level == READ_COMMITTED { View::Stable } else { View::All };
    for (at, topic) in request.topics.into_iter().enumerate() {
        let found = if call.version < UUIDS_FROM {
            edge.broker.topic(&topic.topic).map_err(|error| error_code::code(&error))
        } else {
            let found = edge.broker.topic_by_uuid(topic.topic_id);
            found.ok_or(ResponseError::UnknownTopicId.code())
        };
        for partition in topic.partitions {
            let from = found.clone().and_then(|topic| fetch_from(&topic, &partition, view));
            let (index, offset) = (partition.partition, partition.fetch_offset);
            wanted.push(Wanted { topic: at, index, offset, from });
        }
        topics.push((topic.topic, topic.topic_id, Vec::new()));
    }
    let positive = |number: i32| usize::try_from(number).unwrap_or(0);
    let refused = wanted.iter().any(|wanted| wanted.from.is_err());
    let from: Vec<FetchFrom> = wanted.iter().filter_map(|wanted| wanted.from.as_ref().ok().cloned()).collect();
    let wait_max = Duration::from_millis(positive(request.max_wait_ms) as u64).min(WAIT_MAX);
    let fetch = Fetch {
        from,
        bytes_min: positive(request.min_bytes),
        bytes_max: positive(request.max_bytes).clamp(1, FETCH_BYTES_MAX),
        // Errors are reported without waiting for records.
        wait_max: if refused { Duration::ZERO } else { wait_max },
    };
    let fetched = tokio::select! {
        fetched = caller.fetch(&fetch) => fetched,
        () = edge.broker.stopped() => Vec::new(),
    };
    let mut fetched = fetched.into_iter();
    for Wanted { topic, index, offset, from, .. } in wanted {
        let read = match from {
            Err(error) => Err(error),
            Ok(_) => {
                let stopping = error_code::code(&BrokerError::ShuttingDown);
                fetched.next().ok_or(stopping)
            }
        };
        topics[topic].2.push(data(edge, view, index, offset, read));
    }
    let responses = topics.into_iter();
    let responses = responses.map(|(name, uuid, partitions)| {
        let topic = FetchableTopicResponse::default().with_partitions(partitions);
        if call.version < UUIDS_FROM { topic.with_topic(name) } else { topic.with_topic_id(uuid) }
    });
    let throttle_time_ms = call.throttle_time_ms(QuotaKind::Fetch);
    FetchResponse::default().with_responses(responses.collect()).with_throttle_time_ms(throttle_time_ms)
}

fn fetch_from(topic: &Topic, wanted: &FetchPartition, view: View) -> Result<FetchFrom, i16> {
    let partition = u32::try_from(wanted.partition).ok().and_then(|number| topic.partition(number).ok());
    let partition = partition.ok_or(ResponseError::UnknownTopicOrPartition.code())?.clone();
    check_leader_epoch(wanted.current_leader_epoch)?;
    let offset = Offset::new(wanted.fetch_offset).ok_or(ResponseError::OffsetOutOfRange.code())?;
    // As in Kafka, the first batch comes even if the limit is 0.
    let bytes_max = usize::try_from(wanted.partition_max_bytes).unwrap_or(0).max(1);
    Ok(FetchFrom { partition, offset, until: None, bytes_max, view })
}

/// Returns the answer for one partition, and counts its records in the metrics.
fn data(edge: &Edge, view: View, index: i32, from: i64, read: Result<Fetched, i16>) -> PartitionData {
    let data = PartitionData::default()
        .with_partition_index(index)
        .with_high_watermark(NO_OFFSET)
        .with_last_stable_offset(NO_OFFSET)
        .with_log_start_offset(NO_OFFSET)
        .with_preferred_read_replica(BrokerId(-1))
        .with_records(Some(Bytes::new()));
    let (partition, slice) = match read.map(|Fetched { partition, slice }| (partition, slice)) {
        Ok((partition, Ok(slice))) => (partition, slice),
        Ok((partition, Err(error))) => {
            return data
                .with_error_code(error_code::code(&error))
                .with_high_watermark(partition.end().get())
                .with_last_stable_offset(partition.stable_end().get())
                .with_log_start_offset(partition.start().get());
        }
        Err(code) => return data.with_error_code(code),
    };
    let bytes = slice.bytes();
    let next = slice.next;
    let aborted = (view == View::Stable).then(|| {
        let aborted = partition.aborted(Offset::new(from).unwrap_or_default(), next).into_iter();
        let transaction = |aborted: Aborted| {
            AbortedTransaction::default()
                .with_producer_id(aborted.producer_id.get().into())
                .with_first_offset(aborted.first.get())
        };
        aborted.map(transaction).collect()
    });
    let mut runs = slice.runs.into_iter();
    let records = match (runs.next(), runs.len()) {
        (None, _) => Bytes::new(),
        (Some(run), 0) => run,
        (Some(first), _) => {
            let mut records = BytesMut::with_capacity(bytes);
            records.extend_from_slice(&first);
            runs.for_each(|run| records.extend_from_slice(&run));
            records.freeze()
        }
    };
    if bytes > 0 {
        let records = slice.next.get().abs_diff(from);
        edge.broker.metrics().fetched(&partition.name().topic, records, bytes as u64);
    }
    // The end is not before what was read, and the last stable offset not after it.
    let stable_end = partition.stable_end();
    data.with_high_watermark(partition.end().get())
        .with_last_stable_offset(stable_end.get())
        .with_aborted_transactions(aborted)
        .with_log_start_offset(slice.start.get())
        .with_records(Some(records))
}
