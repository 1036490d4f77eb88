//! The service `millstream.v1.Log`: produce, fetch, consume.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use millstream_api::v1;
use millstream_api::v1::log_server::Log;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::calls::{admission_of, caller_of};
use super::records::{PlainBudget, to_new_record, to_partition_records};
use super::status;
use crate::broker::caller::Caller;
use crate::broker::fetch::{Fetch, FetchFrom, WAIT_MAX};
use crate::broker::position::Position;
use crate::broker::{Broker, Queued};
use crate::error::BrokerError;
use crate::log::queue::Receipt;
use crate::log::reader::View;
use crate::name::{ProducerId, ProducerIdentity, shortened};
use crate::net::admission::Admission;
use crate::store::place::Offset;

/// How long a shutdown waits for a client to notice that its stream has ended.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Maximum number of requests of one produce stream that wait for their commit. The limits for bytes in flight bound
/// their total size.
const PRODUCE_IN_FLIGHT_MAX: usize = 256;

/// Maximum number of answers of one consume stream that wait to be read by the client.
const CONSUME_AHEAD_MAX: usize = 2;

/// Maximum number of partitions in one fetch: as many as a topic may have.
const FETCH_PARTITIONS_MAX: usize = 10_000;

const FETCH_BYTES_DEFAULT: usize = 1 << 20;

/// Maximum size of the batches in one answer, in bytes: half of the message limit, because one batch may exceed it.
const FETCH_BYTES_MAX: usize = millstream_api::MESSAGE_BYTES_MAX / 2;

pub(super) struct Service {
    broker: Broker,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(super) fn new(broker: Broker) -> Self {
        Self { broker }
    }
}

/// A queued produce request.
struct Pending {
    receipt: Receipt,
    queued: Vec<Queued>,
}

impl Pending {
    async fn answer(self) -> Result<v1::ProduceResponse, BrokerError> {
        let committed = self.receipt.await?;
        let appended =
            committed.base_offsets.iter().zip(self.queued).map(|(base, Queued { partition, records, .. })| {
                v1::Appended { partition, base_offset: (*base).into(), record_count: records }
            });
        Ok(v1::ProduceResponse { appended: appended.collect(), error: None })
    }
}

async fn queue(broker: &Broker, request: v1::ProduceRequest) -> Result<Pending, BrokerError> {
    let topic = broker.topic(&request.topic)?;
    let protocol = |reason: &str| Err(BrokerError::Protocol(reason.to_owned()));
    let (receipt, queued) = match (request.batches.is_empty(), request.records.is_empty(), request.partition) {
        (false, false, _) => return protocol("a produce request must hold either batches or records, not both"),
        (true, true, _) => return protocol("the produce request holds no records"),
        (false, true, None) => return protocol("a produce request with batches must name its partition"),
        (false, true, Some(partition)) => {
            let (receipt, queued) = broker.produce_bytes(&topic, partition, request.batches).await?;
            (receipt, vec![queued])
        }
        (true, false, partition) => {
            broker.produce_records(&topic, partition, request.records.iter().map(to_new_record)).await?
        }
    };
    Ok(Pending { receipt, queued })
}

/// Charges a request that was admitted, and queues it. The permit counts it as in flight.
async fn charge_and_queue(
    broker: &Broker,
    caller: &Caller,
    admission: &Admission,
    request: v1::ProduceRequest,
) -> Result<(Pending, OwnedSemaphorePermit), BrokerError> {
    let in_flight = admission.take().ok_or(BrokerError::ShuttingDown)?;
    caller.charge(request_bytes(&request)).await?;
    Ok((queue(broker, request).await?, in_flight))
}

/// Returns the size of a produce request for quotas and limits, in bytes: its batches, or the keys, values and headers
/// of its records.
fn request_bytes(request: &v1::ProduceRequest) -> usize {
    let len = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let record = |record: &v1::Record| {
        let headers = record.headers.iter().map(|header| header.name.len() + len(&header.value));
        len(&record.key) + len(&record.value) + headers.sum::<usize>()
    };
    request.batches.len() + request.records.iter().map(record).sum::<usize>()
}

#[tonic::async_trait]
impl Log for Service {
    async fn produce(&self, request: Request<v1::ProduceRequest>) -> Result<Response<v1::ProduceResponse>, Status> {
        let (caller, admission) = (caller_of(&request)?, admission_of(&request)?);
        let (queued, _in_flight) = charge_and_queue(&self.broker, &caller, &admission, request.into_inner()).await?;
        Ok(Response::new(queued.answer().await?))
    }

    type ProduceStreamStream = Answers<v1::ProduceResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let (caller, admission) = (caller_of(&request)?, admission_of(&request)?);
        let mut requests = request.into_inner();
        let (sender, queued) = mpsc::channel(PRODUCE_IN_FLIGHT_MAX);
        let broker = self.broker.clone();
        tokio::spawn(async move {
            loop {
                // Requests are queued in order and answered in the same order.
                let request = tokio::select! {
                    request = requests.message() => request,
                    () = sender.closed() => return,
                    () = broker.stopped() => {
                        drop(sender);
                        return drain(requests).await;
                    }
                };
                let queued = match request {
                    Ok(Some(request)) => tokio::select! {
                        queued = charge_and_queue(&broker, &caller, &admission, request) => match queued {
                            // The stream ends here: a later request must not be stored where this one is not.
                            Err(BrokerError::ShuttingDown) => {
                                drop(sender);
                                return drain(requests).await;
                            }
                            queued => Ok(queued),
                        },
                        () = sender.closed() => return,
                    },
                    Ok(None) => break,
                    // An unreadable request ends the stream with its error, after the answers to earlier requests.
                    Err(status) => Err(status),
                };
                let ends = queued.is_err();
                if sender.send(queued).await.is_err() || ends {
                    break;
                }
            }
        });
        let answers = ReceiverStream::new(queued).then(|queued| async {
            let answer = match queued? {
                Ok((queued, _in_flight)) => queued.answer().await,
                Err(error) => Err(error),
            };
            Ok(answer.unwrap_or_else(|error| v1::ProduceResponse {
                appended: Vec::new(),
                error: Some(status::to_error(&error)),
            }))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn init_producer(
        &self,
        request: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let current = request.into_inner().current.map(to_identity).transpose()?;
        let given = self.broker.init_producer(current).await?;
        let producer = v1::ProducerIdentity { producer_id: given.id.get(), epoch: given.epoch.into() };
        Ok(Response::new(v1::InitProducerResponse { producer: Some(producer) }))
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let format = to_format(request.format)?;
        if request.partitions.len() > FETCH_PARTITIONS_MAX {
            let asked = request.partitions.len();
            return Err(status::invalid(format!("a fetch of {asked} partitions: the limit is {FETCH_PARTITIONS_MAX}")));
        }
        let mut from = Vec::with_capacity(request.partitions.len());
        let mut offsets = Vec::with_capacity(request.partitions.len());
        let mut refused = Vec::new();
        for wanted in request.partitions {
            match fetch_from(&self.broker, &wanted) {
                Ok(found) => {
                    offsets.push(wanted.offset);
                    from.push(found);
                }
                Err(error) => refused.push(v1::PartitionRecords {
                    error: Some(status::to_error(&error)),
                    topic: wanted.topic,
                    partition: wanted.partition,
                    next_offset: wanted.offset,
                    ..Default::default()
                }),
            }
        }
        let wait_max = Duration::from_millis(request.max_wait_ms.into()).min(WAIT_MAX);
        let fetch = Fetch {
            from,
            bytes_min: request.min_bytes.max(1) as usize,
            bytes_max: bytes_max(request.max_bytes),
            // Errors are reported without waiting for records.
            wait_max: if refused.is_empty() { wait_max } else { Duration::ZERO },
        };
        let fetched = tokio::select! {
            fetched = caller.fetch(&fetch) => fetched,
            () = self.broker.stopped() => return Err(BrokerError::ShuttingDown.into()),
        };
        let limits = self.broker.settings().limits;
        let mut partitions = refused;
        let mut budget = PlainBudget::default();
        for (fetched, offset) in fetched.into_iter().zip(offsets) {
            partitions.push(answer(&self.broker, fetched, offset, format, &limits, &mut budget));
        }
        Ok(Response::new(v1::FetchResponse { partitions }))
    }

    type ConsumeStream = Answers<v1::ConsumeResponse>;

    async fn consume(&self, request: Request<v1::ConsumeRequest>) -> Result<Response<Self::ConsumeStream>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let format = to_format(request.format)?;
        let topic = self.broker.topic_with_id(&request.topic, to_topic_id(&request.topic_id)?)?;
        let mut from = Vec::new();
        for partition in topic.chosen_partitions(&request.partitions)? {
            let offset = self.broker.offset_at(&partition, to_position(request.from.as_ref())).await?;
            let until = request.until_end.then(|| partition.stable_end());
            from.push(FetchFrom { partition, offset, until, bytes_max: usize::MAX, view: View::Committed });
        }
        let (sender, answers) = mpsc::channel(CONSUME_AHEAD_MAX);
        let (broker, bytes_max) = (self.broker.clone(), bytes_max(request.max_bytes));
        let consumer = Consumer { broker, caller, from, bytes_max, format };
        tokio::spawn(consumer.run(sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        let request = request.into_inner();
        let topic = self.broker.topic(&request.topic)?;
        let mut offsets = Vec::new();
        for partition in topic.chosen_partitions(&request.partitions)? {
            let offset = self.broker.offset_at(&partition, to_position(request.at.as_ref())).await?;
            offsets.push(v1::PartitionOffset { partition: partition.name().partition, offset: offset.into() });
        }
        Ok(Response::new(v1::ListOffsetsResponse { offsets, topic_id: topic.uuid().to_string() }))
    }
}

/// One consume stream.
struct Consumer {
    broker: Broker,
    caller: Caller,
    from: Vec<FetchFrom>,
    bytes_max: usize,
    format: v1::Format,
}

impl Consumer {
    async fn run(mut self, sender: mpsc::Sender<Result<v1::ConsumeResponse, Status>>) {
        let limits = self.broker.settings().limits;
        loop {
            self.from.retain(|from| from.until.is_none_or(|until| from.offset < until));
            if self.from.is_empty() {
                return;
            }
            // Reserves a place for the answer before reading, so that a slow client does not make the server buffer
            // more.
            let Ok(place) = sender.reserve().await else { return };
            // Rotates the partitions, because the first one may fill the answer and would starve the others.
            self.from.rotate_left(1);
            let fetch = Fetch { from: self.from.clone(), bytes_min: 1, bytes_max: self.bytes_max, wait_max: WAIT_MAX };
            let fetched = tokio::select! {
                fetched = self.caller.fetch(&fetch) => fetched,
                () = self.broker.stopped() => {
                    // Tells the client why its stream ends.
                    return place.send(Err(BrokerError::ShuttingDown.into()));
                }
                () = sender.closed() => return,
            };
            let mut partitions = Vec::new();
            let mut budget = PlainBudget::default();
            let mut failed = false;
            for (fetched, from) in fetched.into_iter().zip(&mut self.from) {
                failed |= fetched.slice.is_err();
                if fetched.slice.as_ref().is_ok_and(|slice| slice.next <= from.offset) {
                    continue;
                }
                let records = answer(&self.broker, fetched, from.offset.into(), self.format, &limits, &mut budget);
                from.offset = i64::try_from(records.next_offset).ok().and_then(Offset::new).unwrap_or(from.offset);
                partitions.push(records);
            }
            if !partitions.is_empty() {
                place.send(Ok(v1::ConsumeResponse { partitions }));
            }
            if failed {
                return;
            }
        }
    }
}

/// Builds the answer for one partition, and counts its records in the metrics.
pub(super) fn answer(
    broker: &Broker,
    fetched: crate::broker::fetch::Fetched,
    from: u64,
    format: v1::Format,
    limits: &millstream_record::Limits,
    budget: &mut PlainBudget,
) -> v1::PartitionRecords {
    let topic = fetched.partition.name().topic.clone();
    let bytes = fetched.slice.as_ref().map_or(0, crate::log::reader::Slice::bytes);
    let records = to_partition_records(fetched, from, format, limits, budget);
    if bytes > 0 {
        broker.metrics().fetched(&topic, records.next_offset.saturating_sub(from), bytes as u64);
    }
    records
}

pub(super) fn to_format(format: i32) -> Result<v1::Format, Status> {
    v1::Format::try_from(format)
        .map_err(|_| status::invalid(format!("format {format} is unknown: use BATCHES or RECORDS")))
}

/// The UUID that a client expects of a topic; none where it says nothing.
fn to_topic_id(topic_id: &str) -> Result<Option<Uuid>, BrokerError> {
    if topic_id.is_empty() {
        return Ok(None);
    }
    Uuid::parse_str(topic_id).map(Some).map_err(|_| BrokerError::InvalidArgument {
        what: "topic id",
        value: format!("{:?}", shortened(topic_id)),
        allowed: "use a UUID, such as ListOffsets and DescribeTopic return".to_owned(),
    })
}

fn to_identity(given: v1::ProducerIdentity) -> Result<ProducerIdentity, Status> {
    let v1::ProducerIdentity { producer_id, epoch } = given;
    let id = ProducerId::new(producer_id).ok_or_else(|| {
        status::invalid(format!("producer id {producer_id} is negative: omit `current` to get a new producer id"))
    })?;
    let epoch = i16::try_from(epoch)
        .map_err(|_| status::invalid(format!("producer epoch {epoch} is not allowed: use 0 to {}", i16::MAX)))?;
    Ok(ProducerIdentity { id, epoch })
}

fn bytes_max(asked: u32) -> usize {
    if asked == 0 { FETCH_BYTES_DEFAULT } else { (asked as usize).min(FETCH_BYTES_MAX) }
}

fn fetch_from(broker: &Broker, wanted: &v1::FetchPartition) -> Result<FetchFrom, BrokerError> {
    let topic = broker.topic_with_id(&wanted.topic, to_topic_id(&wanted.topic_id)?)?;
    let partition = topic.partition(wanted.partition)?.clone();
    let offset = partition.offset_in_range(wanted.offset)?;
    Ok(FetchFrom { partition, offset, until: None, bytes_max: usize::MAX, view: View::Committed })
}

/// Converts a position. Without one it is the log end offset.
pub(super) fn to_position(position: Option<&v1::Position>) -> Position {
    use v1::position::At;
    match position.and_then(|position| position.at.as_ref()) {
        None | Some(At::Latest(_)) => Position::Latest,
        Some(At::Earliest(_)) => Position::Earliest,
        Some(At::Offset(offset)) => Position::Offset(*offset),
        Some(At::TimestampMs(timestamp_ms)) => Position::Timestamp(*timestamp_ms),
    }
}

/// Reads and discards the requests that a client has already sent. Closing a socket that has unread bytes resets the
/// connection, and the client would lose the answers that are in transit.
async fn drain(mut requests: Streaming<v1::ProduceRequest>) {
    let all = async { while let Ok(Some(_)) = requests.message().await {} };
    // A client that keeps sending for longer is cut off.
    let _ = tokio::time::timeout(DRAIN_MAX, all).await;
}
