//! Writing records: many at a time, in order, each with an answer.
//!
//! `send` encodes a record straight into the open batch of its partition (`batching.rs`). One task
//! a producer (`sender.rs`) sends the batches that are full or have waited long enough, and tells
//! each batch's deliveries how it went (`delivery.rs`). Topics are looked up when they are first used, and
//! by another task again now and then (`metadata.rs`).

mod batching;
mod delivery;
mod metadata;
mod record;
mod sender;
mod sequences;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream_record::{BATCH_HEADER_BYTES, BatchBuilder, Compression};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use self::batching::{Appended, Encode, Event, Outbox, Topic};
pub use self::delivery::{Delivery, RecordMetadata};
pub use self::record::{ProducerRecord, RecordRef};
use self::sender::Sender;
use crate::client::Client;
use crate::error::ClientError;

/// The buffer is counted in pieces of this size, in bytes: a semaphore counts in 32 bits.
const ROOM_BYTES: usize = 1024;

/// How a producer batches, waits and tries again.
#[derive(Clone, Debug)]
pub struct ProducerSettings {
    /// How long a batch that is not full waits for more records. Default 5.
    pub linger_ms: u64,
    /// A batch is sent when it is this large, before compression, in bytes. Default 262,144: with
    /// 5 of them on their way, a partition is no slower than several. A slow producer's are sent when they lingered.
    pub batch_bytes: usize,
    /// How batches are compressed. Default: they are not.
    pub compression: Compression,
    /// Batches that may be on their way without an answer: enough that every commit of the server has some
    /// to take. Default 32.
    pub in_flight_max: usize,
    /// Bytes of records that may wait for their answers: `send` waits beyond. Default 32 MiB.
    pub buffer_bytes_max: usize,
    /// How long a record may take from `send` to its answer. Default 120,000.
    pub delivery_timeout_ms: u64,
    /// The first wait before another attempt; it doubles up to a second. Default 100.
    pub retry_backoff_ms: u64,
    /// Number the records, so that what is sent again is stored once (KIP-98). Default true. No more
    /// than 5 batches are then on their way to one partition.
    pub idempotent: bool,
    /// Only where not [`idempotent`](Self::idempotent): send again what was sent but lost its answer.
    /// Default false: such records fail with [`ClientError::UnknownOutcome`], and are stored once or not
    /// at all. True: they are stored once or more.
    pub retry_unknown: bool,
    /// How long it goes by what it knows of a topic before it looks again: partitions that were added are
    /// used by then. Default 60,000: Kafka's producers take five minutes, and a look is cheap here.
    pub metadata_max_age_ms: u64,
}

impl Default for ProducerSettings {
    fn default() -> Self {
        Self {
            linger_ms: 5,
            batch_bytes: 262_144,
            compression: Compression::None,
            in_flight_max: 32,
            buffer_bytes_max: 32 << 20,
            delivery_timeout_ms: 120_000,
            retry_backoff_ms: 100,
            idempotent: true,
            retry_unknown: false,
            metadata_max_age_ms: 60_000,
        }
    }
}

/// Sends records. Cheap to clone: clones share batches, buffer and connection.
///
/// Records of one partition are stored in the order in which `send` took them. A record goes to the
/// partition it names, or else to that of its key (Kafka's murmur2), or else with others to one
/// partition after the other, a batch each.
///
/// **What is tried again**, until the delivery timeout: what was never sent, what the server refused for
/// the moment (it is shutting down), and what was sent but lost its answer with the connection. Records
/// are stored once all the same, and in order: the server knows a batch again (KIP-98) that it stored
/// before. Only where no answer comes before the delivery timeout is the outcome of what was sent
/// unknown ([`ClientError::UnknownOutcome`]); the records after it go on. Without
/// [`ProducerSettings::idempotent`] every lost answer is such a one. Only a producer's very first contact is
/// not tried again: where no server is, its first `send` says so at once.
///
/// Dropping the last clone still sends what is buffered, in the background, as long as the runtime
/// lives; [`Producer::close`] waits for that.
#[derive(Clone, Debug)]
pub struct Producer(Arc<Handle>);

/// What clones share. Its end is the sender's signal to finish.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    sender: Mutex<Option<JoinHandle<()>>>,
    refresher: AbortHandle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.outbox.close();
        self.refresher.abort();
    }
}

/// What producer and sender share.
#[derive(Debug)]
struct Shared {
    client: Client,
    settings: ProducerSettings,
    topics: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    /// Held while a topic is looked up: once is enough.
    describing: tokio::sync::Mutex<()>,
    /// Room in the buffer, in pieces of [`ROOM_BYTES`].
    room: Semaphore,
    outbox: Outbox,
    closed: AtomicBool,
    /// Why what was sent is sent again, until an answer comes.
    trouble: Mutex<Option<String>>,
}

impl Producer {
    pub(crate) fn start(client: Client, settings: ProducerSettings) -> Self {
        let shared = Arc::new(Shared::new(client, settings));
        let sender = tokio::spawn(Sender::new(shared.clone()).run());
        // A millisecond at least: what never ages would be looked up without end.
        let metadata_max_age = Duration::from_millis(shared.settings.metadata_max_age_ms.max(1));
        let refresher = tokio::spawn(metadata::refresh(Arc::downgrade(&shared), metadata_max_age)).abort_handle();
        Self(Arc::new(Handle { shared, sender: Mutex::new(Some(sender)), refresher }))
    }

    /// Takes a record, and waits only while the buffer is full (and, for the first record of a
    /// topic, for the number of its partitions). The returned [`Delivery`] says how it went; it may
    /// be dropped.
    ///
    /// Where this future is dropped before it is done, the record was not taken.
    ///
    /// # Errors
    /// For what is known at once: an unknown topic or partition, a record that is too large, a
    /// producer that is closed.
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, ClientError> {
        let shared = &self.0.shared;
        let topic = match shared.known_topic(&record.topic) {
            Some(topic) => topic,
            None => shared.describe(&record.topic).await?,
        };
        shared.append(&topic, &record).await
    }

    /// Takes a record if that needs no waiting.
    ///
    /// # Errors
    /// [`ClientError::BufferFull`] where there is no room, or the topic was not used before; else
    /// as [`Producer::send`].
    pub fn try_send(&self, record: &ProducerRecord) -> Result<Delivery, ClientError> {
        let shared = &self.0.shared;
        let full = || ClientError::BufferFull { buffer_bytes_max: shared.settings.buffer_bytes_max };
        shared.check_open()?;
        let topic = shared.known_topic(&record.topic).ok_or_else(full)?;
        let mut granted = 0;
        // Once where the batch is full, once for the next batch, once with its room.
        for _ in 0..4 {
            match topic.append(shared, record, std::mem::take(&mut granted))? {
                Appended::Done(delivery) => return Ok(delivery),
                Appended::Sealed => {}
                Appended::NoRoom(units) => {
                    granted = shared.try_take_room(units).ok_or_else(full)?;
                }
            }
        }
        shared.give_room(granted);
        Err(full())
    }

    /// Takes records in order, as [`Producer::send`] does one.
    ///
    /// # Errors
    /// As [`Producer::send`], for the first record that is not taken; those before it are.
    pub async fn send_many(
        &self,
        records: impl IntoIterator<Item = ProducerRecord>,
    ) -> Result<Vec<Delivery>, ClientError> {
        let records = records.into_iter();
        let mut deliveries = Vec::with_capacity(records.size_hint().0);
        for record in records {
            deliveries.push(self.send(record).await?);
        }
        Ok(deliveries)
    }

    /// A producer of one topic, which takes borrowed bytes: the fastest way to send.
    ///
    /// # Errors
    /// Where the topic can't be looked up.
    pub async fn topic(&self, name: &str) -> Result<TopicProducer, ClientError> {
        let shared = &self.0.shared;
        shared.check_open()?;
        let topic = match shared.known_topic(name) {
            Some(topic) => topic,
            None => shared.describe(&Arc::from(name)).await?,
        };
        Ok(TopicProducer { producer: self.clone(), topic })
    }

    /// Why records are sent again and again just now, if they are: the server is gone, or its disk is full. A
    /// [`Delivery`] tells only in the end, when the delivery timeout is over.
    pub fn trouble(&self) -> Option<String> {
        self.0.shared.trouble.lock().clone()
    }

    /// Sends what is buffered now, lingering or not, and waits for the answers.
    ///
    /// # Errors
    /// The first failure since the last flush, whether or not its [`Delivery`] was looked at:
    /// whoever drops deliveries learns here.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let (done, answer) = oneshot::channel();
        self.0.shared.outbox.push(Event::Flush(done));
        answer.await.unwrap_or(Err(CLOSED))
    }

    /// Takes no more records (of clones neither), sends what is buffered, and waits for the answers.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(self) -> Result<(), ClientError> {
        self.0.shared.closed.store(true, Ordering::SeqCst);
        let flushed = self.flush().await;
        self.0.shared.outbox.close();
        let sender = self.0.sender.lock().take();
        if let Some(sender) = sender {
            // A panic of the sender is seen as lost deliveries.
            let _ = sender.await;
        }
        flushed
    }
}

/// Sends records to one topic, from borrowed bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TopicProducer {
    producer: Producer,
    topic: Arc<Topic>,
}

impl TopicProducer {
    /// As [`Producer::send`].
    ///
    /// # Errors
    /// As [`Producer::send`].
    pub async fn send(&self, record: RecordRef<'_>) -> Result<Delivery, ClientError> {
        let shared = &self.producer.0.shared;
        if self.topic.is_stale() {
            let topic = match shared.known_topic(self.topic.name()) {
                Some(topic) => topic,
                None => shared.describe(self.topic.name()).await?,
            };
            return shared.append(&topic, &record).await;
        }
        shared.append(&self.topic, &record).await
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        self.topic.name()
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> u32 {
        self.topic.partition_count()
    }
}

const CLOSED: ClientError = ClientError::Closed { what: "producer" };

impl Shared {
    fn new(client: Client, settings: ProducerSettings) -> Self {
        Self {
            room: Semaphore::new(room_units(settings.buffer_bytes_max)),
            client,
            settings,
            topics: RwLock::default(),
            describing: tokio::sync::Mutex::default(),
            outbox: Outbox::default(),
            closed: AtomicBool::new(false),
            trouble: Mutex::default(),
        }
    }

    fn check_open(&self) -> Result<(), ClientError> {
        if self.closed.load(Ordering::Relaxed) { Err(CLOSED) } else { Ok(()) }
    }

    async fn append(&self, topic: &Topic, record: &impl Encode) -> Result<Delivery, ClientError> {
        let mut granted = 0;
        loop {
            self.check_open().inspect_err(|_| self.give_room(granted))?;
            match topic.append(self, record, std::mem::take(&mut granted))? {
                Appended::Done(delivery) => return Ok(delivery),
                // The sender may share this thread: let it have a full batch at once.
                Appended::Sealed => tokio::task::yield_now().await,
                Appended::NoRoom(units) => granted = self.take_room(units).await?,
            }
        }
    }

    async fn take_room(&self, units: u32) -> Result<u32, ClientError> {
        if let Some(units) = self.try_take_room(units) {
            return Ok(units);
        }
        // Batches that linger hold room too.
        let _hurry = self.outbox.hurry();
        let permit = self.room.acquire_many(units).await.map_err(|_| CLOSED)?;
        permit.forget();
        Ok(units)
    }

    fn try_take_room(&self, units: u32) -> Option<u32> {
        let permit = self.room.try_acquire_many(units).ok()?;
        permit.forget();
        Some(units)
    }

    fn give_room(&self, units: u32) {
        if units > 0 {
            self.room.add_permits(units as usize);
        }
    }

    fn delivery_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.delivery_timeout_ms)
    }
}

fn room_units(bytes: usize) -> usize {
    (bytes / ROOM_BYTES).clamp(1, u32::MAX as usize >> 4)
}

/// The machine's clock, in ms since the epoch.
fn now_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

/// The most that a batch with one record of these lengths takes, in bytes.
fn lone_batch_bytes(record_bytes: usize) -> usize {
    BATCH_HEADER_BYTES + record_bytes
}

/// The most that a record takes in a batch, in bytes.
fn record_bytes<'h>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
) -> usize {
    /// Two varint lengths.
    const HEADER_OVERHEAD_BYTES: usize = 10;
    let headers: usize =
        headers.map(|(name, value)| HEADER_OVERHEAD_BYTES + name.len() + value.map_or(0, <[u8]>::len)).sum();
    headers + BatchBuilder::record_bytes_max(key.map_or(0, <[u8]>::len), value.map_or(0, <[u8]>::len))
}
