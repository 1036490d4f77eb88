//! Producers, which send records in batches and in order, with an answer for each record.
//!
//! `send` encodes a record directly into the open batch of its partition (`batching.rs`). Each producer has one task
//! (`sender.rs`) that sends the batches that are full or have waited long enough, and reports the outcome to the
//! deliveries of each batch (`delivery.rs`). Topics are looked up when they are first used, and another task looks them
//! up again at intervals (`metadata.rs`).

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

/// Unit in which the buffer is counted, in bytes, because a semaphore counts in 32 bits.
const UNIT_BYTES: usize = 1024;

/// Settings for batching, waiting and retrying.
#[derive(Clone, Debug)]
pub struct ProducerSettings {
    /// How long a batch that is not full waits for more records, in ms. Default 5.
    pub linger_ms: u64,
    /// Size at which a batch is sent, before compression, in bytes. With 5 batches in flight, the default of 262,144
    /// makes one partition as fast as several. A batch that fills more slowly is sent after it has lingered.
    pub batch_bytes: usize,
    /// Compression of the batches. Default none.
    pub compression: Compression,
    /// Maximum number of batches in flight, which are sent but not answered. The default of 32 is enough for every
    /// commit of the server to include some of them.
    pub in_flight_max: usize,
    /// Maximum total size of records without an answer, in bytes. Beyond it, `send` waits. Default 32 MiB.
    pub buffer_bytes_max: usize,
    /// Maximum time from `send` to the answer of a record, in ms. Default 120,000.
    pub delivery_timeout_ms: u64,
    /// Wait before the first retry, in ms. It doubles with each retry, up to one second. Default 100.
    pub retry_backoff_ms: u64,
    /// Whether to number the records, so that a record that is sent again is stored once (KIP-98). At most 5 batches
    /// per partition are then in flight. Default true.
    pub idempotent: bool,
    /// Whether to send records again if their answer was lost. This applies only if [`idempotent`](Self::idempotent) is
    /// false. If `false` (the default), such records fail with [`ClientError::UnknownOutcome`] and are stored at most
    /// once; if `true`, they are stored at least once.
    pub retry_unknown: bool,
    /// Maximum age of the description of a topic before it is looked up again, in ms. Partitions that were added are
    /// used after this time. Default 60,000. Kafka's producers use five minutes, but a lookup is cheap here.
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

/// Sends records. Clones are cheap and share batches, buffer and connection.
///
/// Records of one partition are stored in the order in which `send` accepted them. A record is sent to the partition
/// that it specifies, or otherwise to the partition of its key (Kafka's murmur2). Records with neither are spread over
/// the partitions, one batch at a time.
///
/// **Retries** continue until the delivery timeout. They cover batches that were never sent, batches that the server
/// temporarily refused (for example because it is shutting down), and batches that were sent but whose answer was lost
/// with the connection. Records are nevertheless stored once and in order, because the server recognises a batch that
/// it has already stored (KIP-98). The outcome of a sent batch is unknown ([`ClientError::UnknownOutcome`]) only if no
/// answer arrives before the delivery timeout; later records are not affected. Without
/// [`ProducerSettings::idempotent`], every lost answer has this result. Only a producer's very first contact is not
/// retried: if there is no server, the first `send` fails immediately.
///
/// When the last clone is dropped, buffered records are still sent in the background while the runtime runs;
/// [`Producer::close`] waits for that.
#[derive(Clone, Debug)]
pub struct Producer(Arc<Handle>);

/// State that the clones share. Dropping it tells the sender to finish.
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

/// State that the producer and its sender share.
#[derive(Debug)]
struct Shared {
    client: Client,
    settings: ProducerSettings,
    topics: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    /// Held during a lookup, so that each topic is looked up only once.
    describing: tokio::sync::Mutex<()>,
    /// Free buffer memory, in units of [`UNIT_BYTES`].
    free_units: Semaphore,
    outbox: Outbox,
    closed: AtomicBool,
    /// The reason for the current retries, until an answer arrives.
    trouble: Mutex<Option<String>>,
}

impl Client {
    /// Creates a producer, which has its own connection.
    ///
    /// # Panics
    /// Panics if called outside a tokio runtime.
    pub fn producer(&self, settings: ProducerSettings) -> Producer {
        Producer::start(self.clone(), settings)
    }
}

impl Producer {
    pub(crate) fn start(client: Client, settings: ProducerSettings) -> Self {
        let shared = Arc::new(Shared::new(client, settings));
        let sender = tokio::spawn(Sender::new(shared.clone()).run());
        // At least one millisecond, because otherwise topics would be looked up without pause.
        let metadata_max_age = Duration::from_millis(shared.settings.metadata_max_age_ms.max(1));
        let refresher = tokio::spawn(metadata::refresh(Arc::downgrade(&shared), metadata_max_age)).abort_handle();
        Self(Arc::new(Handle { shared, sender: Mutex::new(Some(sender)), refresher }))
    }

    /// Accepts a record. This waits only while the buffer is full and, for the first record of a topic, for the topic's
    /// description. The returned [`Delivery`] resolves to the outcome and may be dropped.
    ///
    /// If the future of `send` is dropped before it completes, the record is not accepted.
    ///
    /// # Errors
    /// Returns errors that are known immediately: an unknown topic or partition, a record that is too large, or a
    /// closed producer.
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, ClientError> {
        let shared = &self.0.shared;
        let topic = match shared.known_topic(&record.topic) {
            Some(topic) => topic,
            None => shared.describe(&record.topic).await?,
        };
        shared.append(&topic, &record).await
    }

    /// Accepts a record only if that is possible without waiting.
    ///
    /// # Errors
    /// [`ClientError::BufferFull`] if the buffer is full or the topic was not used before; otherwise see
    /// [`Producer::send`].
    pub fn try_send(&self, record: &ProducerRecord) -> Result<Delivery, ClientError> {
        let shared = &self.0.shared;
        let full = || ClientError::BufferFull { buffer_bytes_max: shared.settings.buffer_bytes_max };
        shared.check_open()?;
        let topic = shared.known_topic(&record.topic).ok_or_else(full)?;
        let mut granted = 0;
        // One attempt for a full batch, one for the next batch, and one with memory reserved for it.
        for _ in 0..4 {
            match topic.append(shared, record, std::mem::take(&mut granted))? {
                Appended::Done(delivery) => return Ok(delivery),
                Appended::Sealed => {}
                Appended::BufferFull(units) => {
                    granted = shared.try_reserve(units).ok_or_else(full)?;
                }
            }
        }
        shared.release(granted);
        Err(full())
    }

    /// Accepts records in order, as [`Producer::send`] does for one record.
    ///
    /// # Errors
    /// See [`Producer::send`]. The error is that of the first record that was not accepted; the records before it were
    /// accepted.
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

    /// Returns a producer for one topic that accepts borrowed bytes. This is the fastest way to send.
    ///
    /// # Errors
    /// Fails if the topic cannot be looked up.
    pub async fn topic(&self, name: &str) -> Result<TopicProducer, ClientError> {
        let shared = &self.0.shared;
        shared.check_open()?;
        let topic = match shared.known_topic(name) {
            Some(topic) => topic,
            None => shared.describe(&Arc::from(name)).await?,
        };
        Ok(TopicProducer { producer: self.clone(), topic })
    }

    /// Returns the reason if records are currently being sent again, for example because the server is unreachable or
    /// its disk is full. A [`Delivery`] reports it only after the delivery timeout.
    pub fn trouble(&self) -> Option<String> {
        self.0.shared.trouble.lock().clone()
    }

    /// Sends all buffered records without lingering, and waits for the answers.
    ///
    /// # Errors
    /// Returns the first failure since the last flush, whether or not its [`Delivery`] was checked. Callers that drop
    /// deliveries can detect failures here.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let (done, answer) = oneshot::channel();
        self.0.shared.outbox.push(Event::Flush(done));
        answer.await.unwrap_or(Err(CLOSED))
    }

    /// Stops accepting records, also from clones, sends all buffered records, and waits for the answers.
    ///
    /// # Errors
    /// See [`Producer::flush`].
    pub async fn close(self) -> Result<(), ClientError> {
        self.0.shared.closed.store(true, Ordering::SeqCst);
        let flushed = self.flush().await;
        self.0.shared.outbox.close();
        let sender = self.0.sender.lock().take();
        if let Some(sender) = sender {
            // If the sender panicked, the deliveries have already failed.
            let _ = sender.await;
        }
        flushed
    }
}

/// Sends records from borrowed bytes to one topic. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TopicProducer {
    producer: Producer,
    topic: Arc<Topic>,
}

impl TopicProducer {
    /// Sends a record like [`Producer::send`].
    ///
    /// # Errors
    /// See [`Producer::send`].
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

    /// Returns the topic's name.
    pub fn name(&self) -> &str {
        self.topic.name()
    }

    /// Returns the number of partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.topic.partition_count()
    }
}

const CLOSED: ClientError = ClientError::Closed { what: "producer" };

impl Shared {
    fn new(client: Client, settings: ProducerSettings) -> Self {
        Self {
            free_units: Semaphore::new(units_of(settings.buffer_bytes_max)),
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
            self.check_open().inspect_err(|_| self.release(granted))?;
            match topic.append(self, record, std::mem::take(&mut granted))? {
                Appended::Done(delivery) => return Ok(delivery),
                // Yield, because the sender may run on this thread and should get a full batch immediately.
                Appended::Sealed => tokio::task::yield_now().await,
                Appended::BufferFull(units) => granted = self.reserve(units).await?,
            }
        }
    }

    async fn reserve(&self, units: u32) -> Result<u32, ClientError> {
        if let Some(units) = self.try_reserve(units) {
            return Ok(units);
        }
        // Lingering batches also occupy the buffer.
        let _hurry = self.outbox.hurry();
        let permit = self.free_units.acquire_many(units).await.map_err(|_| CLOSED)?;
        permit.forget();
        Ok(units)
    }

    fn try_reserve(&self, units: u32) -> Option<u32> {
        let permit = self.free_units.try_acquire_many(units).ok()?;
        permit.forget();
        Some(units)
    }

    fn release(&self, units: u32) {
        if units > 0 {
            self.free_units.add_permits(units as usize);
        }
    }

    fn delivery_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.delivery_timeout_ms)
    }
}

fn units_of(bytes: usize) -> usize {
    (bytes / UNIT_BYTES).clamp(1, u32::MAX as usize >> 4)
}

/// Returns the time of the system clock, in ms since the epoch.
fn now_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

/// Returns the maximum size of a batch with one record of this size, in bytes.
fn lone_batch_bytes(record_bytes: usize) -> usize {
    BATCH_HEADER_BYTES + record_bytes
}

/// Returns the maximum size of a record in a batch, in bytes.
fn record_bytes<'h>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
) -> usize {
    /// Maximum size of the two varint lengths of a header.
    const HEADER_OVERHEAD_BYTES: usize = 10;
    let headers: usize =
        headers.map(|(name, value)| HEADER_OVERHEAD_BYTES + name.len() + value.map_or(0, <[u8]>::len)).sum();
    headers + BatchBuilder::record_bytes_max(key.map_or(0, <[u8]>::len), value.map_or(0, <[u8]>::len))
}
