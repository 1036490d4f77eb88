//! Collecting records into batches: the choice of partition, and when a batch is full.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use millstream_api::v1;
use millstream_record::{BATCH_HEADER_BYTES, BatchBuilder, Compression, Limits, partition_for_key};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::delivery::{Batch, Delivery};
use super::{CLOSED, ProducerSettings, Shared, UNIT_BYTES, lone_batch_bytes, now_ms, record_bytes, units_of};
use crate::error::ClientError;

/// Maximum batch size of a topic without this setting, in bytes: the server's default, slightly more than 1 MiB.
const BATCH_BYTES_MAX_DEFAULT: usize = 1_048_588;

/// Buffer memory that is reserved for a new batch, in units of [`UNIT_BYTES`]. The reservation doubles as the batch grows, so that a
/// few records in many partitions do not fill the buffer, and full batches rarely have to ask for more.
const FIRST_UNITS: u32 = 2;

/// A record to encode, owned or borrowed.
pub(super) trait Encode {
    fn partition(&self) -> Option<u32>;
    fn key(&self) -> Option<&[u8]>;
    fn value(&self) -> Option<&[u8]>;
    fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> + Clone;
    fn timestamp_ms(&self) -> Option<i64>;
}

/// The result of an attempt to append a record.
pub(super) enum Appended {
    Done(Delivery),
    /// The batch was full and has been sealed: try again.
    Sealed,
    /// This much buffer memory must be reserved first, in units of [`UNIT_BYTES`].
    BufferFull(u32),
}

/// A topic as the server last described it.
#[derive(Debug)]
pub(super) struct Topic {
    name: Arc<str>,
    partitions: Vec<Arc<Partition>>,
    sticky: Arc<Sticky>,
    /// Maximum batch size of the topic, in bytes.
    batch_bytes_max: usize,
    stale: AtomicBool,
}

fn batch_bytes_max(described: &v1::Topic) -> usize {
    let from_settings = described.settings.as_ref().and_then(|settings| settings.batch_bytes_max);
    from_settings.map_or(BATCH_BYTES_MAX_DEFAULT, |bytes| bytes as usize)
}

/// The partition of records without a key. It changes with every batch.
#[derive(Debug)]
struct Sticky {
    current: AtomicU32,
    partitions: u32,
}

impl Sticky {
    fn new(partitions: u32) -> Self {
        // Start with a random partition, so that producers that start together do not all use the same one.
        let start = RandomState::new().hash_one(0u8) as u32;
        Self { current: AtomicU32::new(start % partitions), partitions }
    }

    /// Moves on to the next partition after a batch of `partition` is finished.
    fn finished(&self, partition: u32) {
        let next = (partition + 1) % self.partitions;
        let _ = self.current.compare_exchange(partition, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Topic {
    /// `before` is the previous description of the same topic. Its open batches are kept.
    pub(super) fn new(
        name: &Arc<str>,
        described: &v1::Topic,
        before: Option<&Self>,
        settings: &ProducerSettings,
    ) -> Self {
        let count = described.partitions.max(1);
        let batch_bytes_max = batch_bytes_max(described);
        let sticky = Arc::new(Sticky::new(count));
        let partitions = (0..count).map(|number| {
            let known = before.and_then(|topic| topic.partitions.get(number as usize));
            known.cloned().unwrap_or_else(|| Arc::new(Partition::new(name.clone(), number, settings.compression)))
        });
        Self {
            name: name.clone(),
            partitions: partitions.collect(),
            sticky,
            batch_bytes_max,
            stale: AtomicBool::new(false),
        }
    }

    /// Whether the topic is still as the server describes it.
    pub(super) fn is_as(&self, described: &v1::Topic) -> bool {
        self.partition_count() == described.partitions && self.batch_bytes_max == batch_bytes_max(described)
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn partition_count(&self) -> u32 {
        self.sticky.partitions
    }

    /// Whether the server has reported that the description is outdated.
    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    pub(super) fn set_stale(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }

    /// Encodes a record into the open batch of its partition. `granted` is what was reserved for the record; it
    /// now belongs to the batch.
    #[inline]
    pub(super) fn append(&self, shared: &Shared, record: &impl Encode, granted: u32) -> Result<Appended, ClientError> {
        let record_bytes = record_bytes(record.key(), record.value(), record.headers());
        let partition = self.choose(record).and_then(|number| self.check_size(record_bytes, shared).map(|()| number));
        let number = partition.inspect_err(|_| shared.release(granted))?;
        self.partitions[number as usize].append(
            shared,
            &self.sticky,
            self.batch_bytes(shared),
            record,
            record_bytes,
            granted,
        )
    }

    /// Closes the topic when the producer ends. Later attempts to append fail immediately.
    pub(super) fn close(&self, shared: &Shared) {
        for partition in &self.partitions {
            let mut open = partition.open.lock();
            open.closed = true;
            partition.seal(&mut open, shared);
        }
    }

    fn choose(&self, record: &impl Encode) -> Result<u32, ClientError> {
        match (record.partition(), record.key()) {
            (Some(partition), _) if partition < self.partition_count() => Ok(partition),
            (Some(partition), _) => Err(ClientError::UnknownPartition {
                topic: self.name.to_string(),
                partition,
                partitions: self.partition_count(),
            }),
            (None, Some(key)) => Ok(partition_for_key(key, self.partition_count())),
            (None, None) => Ok(self.sticky.current.load(Ordering::Relaxed)),
        }
    }

    fn check_size(&self, record_bytes: usize, shared: &Shared) -> Result<(), ClientError> {
        // The size after compression is not known yet.
        let bytes_max = match shared.settings.compression {
            Compression::None => self.batch_bytes_max,
            _ => Limits::default().record_bytes_max,
        };
        let bytes = lone_batch_bytes(record_bytes);
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(ClientError::RecordTooLarge { topic: self.name.to_string(), bytes, bytes_max })
    }

    fn batch_bytes(&self, shared: &Shared) -> usize {
        // A batch larger than the buffer would not fit into it.
        shared.settings.batch_bytes.min(self.batch_bytes_max).min(shared.settings.buffer_bytes_max)
    }
}

/// The open batch of a partition.
#[derive(Debug)]
pub(super) struct Partition {
    topic: Arc<str>,
    number: u32,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    builder: BatchBuilder,
    /// Set while the builder contains records.
    batch: Option<Arc<Batch>>,
    /// Buffer memory reserved for the batch, in units of [`UNIT_BYTES`].
    reserved: u32,
    /// Size of the last batch in bytes, which the next batch reserves.
    expected_bytes: usize,
    /// The sender has ended.
    closed: bool,
}

impl Partition {
    fn new(topic: Arc<str>, number: u32, compression: Compression) -> Self {
        let open = Open {
            builder: BatchBuilder::new(compression),
            batch: None,
            reserved: 0,
            expected_bytes: 0,
            closed: false,
        };
        Self { topic, number, open: Mutex::new(open) }
    }

    #[inline]
    fn append(
        self: &Arc<Self>,
        shared: &Shared,
        sticky: &Sticky,
        batch_bytes: usize,
        record: &impl Encode,
        record_bytes: usize,
        granted: u32,
    ) -> Result<Appended, ClientError> {
        let mut open = self.open.lock();
        if open.closed {
            return Err(CLOSED);
        }
        open.reserved += granted;
        let bytes = open.builder.encoded_bytes() + record_bytes;
        if bytes > batch_bytes && open.batch.is_some() {
            self.seal(&mut open, shared);
            sticky.finished(self.number);
            return Ok(Appended::Sealed);
        }
        if bytes > open.reserved as usize * UNIT_BYTES
            && let Some(more) = open.more_units(bytes, shared)
        {
            match shared.try_reserve(more) {
                Some(units) => open.reserved += units,
                None => return Ok(Appended::BufferFull(more)),
            }
        }
        let timestamp_ms = record.timestamp_ms().unwrap_or_else(now_ms);
        let index = open.builder.record_count();
        open.builder.push(timestamp_ms, record.key(), record.value(), record.headers());
        let batch = match &open.batch {
            Some(batch) => batch.clone(),
            None => {
                let batch = Batch::open(self.topic.clone(), self.number);
                open.batch = Some(batch.clone());
                // This happens under the lock so that the events have the order of the batches.
                shared.outbox.push(Event::Opened(self.clone(), batch.clone()));
                batch
            }
        };
        Ok(Appended::Done(Delivery::new(batch, index, timestamp_ms)))
    }

    /// Seals the open batch if it is still `batch`.
    pub(super) fn seal_if(&self, batch: &Arc<Batch>, shared: &Shared) {
        let mut open = self.open.lock();
        if open.batch.as_ref().is_some_and(|open| Arc::ptr_eq(open, batch)) {
            self.seal(&mut open, shared);
            if let Some(topic) = shared.topics.read().get(&*self.topic) {
                topic.sticky.finished(self.number);
            }
        }
    }

    fn seal(&self, open: &mut Open, shared: &Shared) {
        let Some(batch) = open.batch.take() else { return };
        batch.set_sealed();
        open.expected_bytes = open.builder.encoded_bytes();
        let next = BatchBuilder::with_capacity(shared.settings.compression, open.expected_bytes);
        let builder = std::mem::replace(&mut open.builder, next);
        let reserved = std::mem::take(&mut open.reserved);
        shared.outbox.push(Event::Sealed(Sealed { batch, builder, reserved }));
    }
}

impl Open {
    /// Returns what to reserve for a batch of `bytes`: as much again as it has, or what is missing if that is more.
    /// Returns `None` if the batch already has the whole buffer.
    fn more_units(&self, bytes: usize, shared: &Shared) -> Option<u32> {
        let all = units_of(shared.settings.buffer_bytes_max) as u32;
        let missing = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).saturating_sub(self.reserved);
        let wanted = missing.max(self.reserved).max(FIRST_UNITS).min(all.saturating_sub(self.reserved));
        (wanted > 0).then_some(wanted)
    }
}

/// A batch that accepts no more records.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) batch: Arc<Batch>,
    pub(super) builder: BatchBuilder,
    pub(super) reserved: u32,
}

/// A message to the sender.
#[derive(Debug)]
pub(super) enum Event {
    /// The batch has its first record and starts to linger.
    Opened(Arc<Partition>, Arc<Batch>),
    Sealed(Sealed),
    /// Seals all open batches and then continues as `Flushing`.
    Flush(oneshot::Sender<Result<(), ClientError>>),
    /// Answers once all batches sealed before have an outcome.
    Flushing(oneshot::Sender<Result<(), ClientError>>),
}

impl Event {
    /// Fails everything that waits for this event, because there is no sender any more.
    pub(super) fn refuse(self) {
        match self {
            Self::Opened(_, batch) | Self::Sealed(Sealed { batch, .. }) => batch.complete(Err(CLOSED)),
            Self::Flush(done) | Self::Flushing(done) => {
                let _ = done.send(Err(CLOSED));
            }
        }
    }
}

/// Queue of events for the sender, in order. The buffer's size limits its length.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// `None` once the sender has ended.
    events: Mutex<Events>,
    pub(super) wake: Notify,
    closed: AtomicBool,
    /// Number of callers that wait for buffer memory. Batches do not linger while there are any.
    hurried: AtomicUsize,
}

#[derive(Debug)]
struct Events(Option<VecDeque<Event>>);

impl Default for Events {
    fn default() -> Self {
        Self(Some(VecDeque::new()))
    }
}

impl Outbox {
    pub(super) fn push(&self, event: Event) {
        match &mut self.events.lock().0 {
            Some(events) => events.push_back(event),
            None => return event.refuse(),
        }
        self.wake.notify_one();
    }

    /// Swaps the queued events with the empty queue `into`.
    pub(super) fn take(&self, into: &mut VecDeque<Event>) {
        if let Some(events) = &mut self.events.lock().0 {
            std::mem::swap(into, events);
        }
    }

    /// Ends the queue when the sender ends, and fails all queued events.
    pub(super) fn end(&self) {
        let events = self.events.lock().0.take();
        events.into_iter().flatten().for_each(Event::refuse);
    }

    /// Tells the sender to finish. Only events of open batches follow.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::SeqCst);
        self.wake.notify_one();
        Hurry(self)
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::SeqCst) > 0
    }
}

/// Exists while a caller waits for buffer memory.
pub(super) struct Hurry<'a>(&'a Outbox);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::SeqCst);
    }
}

// The first reservation of a batch is enough for the header and a record of a few bytes.
const _: () = assert!(BATCH_HEADER_BYTES < UNIT_BYTES * FIRST_UNITS as usize);

#[cfg(test)]
mod tests {
    use super::super::record::{ProducerRecord, RecordRef};
    use super::*;
    use crate::client::Client;
    use std::collections::HashMap;

    fn shared(settings: ProducerSettings) -> Shared {
        Shared::new(Client::new("127.0.0.1:1").unwrap(), settings)
    }

    fn topic(partitions: u32, batch_bytes_max: Option<u32>, shared: &Shared) -> Topic {
        let settings = v1::TopicSettings { batch_bytes_max, ..Default::default() };
        let described = v1::Topic { partitions, settings: Some(settings), ..Default::default() };
        Topic::new(&"t".into(), &described, None, &shared.settings)
    }

    #[test]
    fn a_topic_whose_partitions_or_limit_changed_is_not_as_it_was() {
        let shared = shared(ProducerSettings::default());
        let described = |partitions, batch_bytes_max| v1::Topic {
            partitions,
            settings: Some(v1::TopicSettings { batch_bytes_max, ..Default::default() }),
            ..Default::default()
        };
        let known = topic(3, Some(5_000), &shared);
        assert!(known.is_as(&described(3, Some(5_000))));
        for (partitions, batch_bytes_max) in [(4, Some(5_000)), (3, Some(6_000)), (3, None)] {
            assert!(!known.is_as(&described(partitions, batch_bytes_max)), "{partitions}, {batch_bytes_max:?}");
        }
    }

    fn append(topic: &Topic, shared: &Shared, record: &impl Encode) -> Delivery {
        loop {
            match topic.append(shared, record, 0).unwrap() {
                Appended::Done(delivery) => return delivery,
                Appended::Sealed => {}
                Appended::BufferFull(units) => panic!("{units} units are missing"),
            }
        }
    }

    fn sealed(shared: &Shared) -> Vec<Sealed> {
        let mut events = VecDeque::new();
        shared.outbox.take(&mut events);
        let sealed = events.into_iter().filter_map(|event| match event {
            Event::Sealed(sealed) => Some(sealed),
            _ => None,
        });
        sealed.collect()
    }

    #[test]
    fn batches_hold_what_they_may_and_no_more() {
        let shared = shared(ProducerSettings { batch_bytes: 5_000, ..Default::default() });
        let topic = topic(1, None, &shared);
        for size in (0..500).map(|n| n % 120) {
            drop(append(&topic, &shared, &RecordRef::keyed(b"key", &vec![7; size])));
        }
        let sealed = sealed(&shared);
        assert!(sealed.len() > 5);
        for mut sealed in sealed {
            let bytes = sealed.builder.finish().unwrap().into_bytes().len();
            assert!((4_700..=5_000).contains(&bytes), "{bytes}");
            assert!(sealed.reserved as usize * UNIT_BYTES >= bytes);
        }
    }

    #[test]
    fn records_without_a_key_change_partition_with_the_batch() {
        let shared = shared(ProducerSettings { batch_bytes: 1_000, ..Default::default() });
        let topic = topic(3, None, &shared);
        let mut runs = vec![append(&topic, &shared, &RecordRef::new(b"value")).partition()];
        for _ in 0..500 {
            let partition = append(&topic, &shared, &RecordRef::new(b"value")).partition();
            if runs.last() != Some(&partition) {
                runs.push(partition);
            }
        }
        assert!(runs.len() > 6);
        assert!(runs.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{runs:?}");
    }

    #[test]
    fn keys_and_partitions_decide() {
        let shared = shared(ProducerSettings::default());
        let topic = topic(7, None, &shared);
        for key in ["", "a", "foobar", "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8"] {
            let delivery = append(&topic, &shared, &RecordRef::keyed(key.as_bytes(), b"value"));
            assert_eq!(delivery.partition(), partition_for_key(key.as_bytes(), 7));
            let record = ProducerRecord::keyed("t", key, "value").partition(6);
            assert_eq!(append(&topic, &shared, &record).partition(), 6);
        }
        let record = ProducerRecord::new("t", "value").partition(7);
        assert!(matches!(topic.append(&shared, &record, 0), Err(ClientError::UnknownPartition { partitions: 7, .. })));
    }

    #[test]
    fn a_record_over_the_topics_limit_is_refused_and_its_reservation_returned() {
        let shared = shared(ProducerSettings::default());
        let topic = topic(1, Some(2_000), &shared);
        let before = shared.free_units.available_permits();
        let granted = shared.try_reserve(3).unwrap();
        let refused = topic.append(&shared, &RecordRef::new(&[0; 2_000]), granted);
        assert!(matches!(refused, Err(ClientError::RecordTooLarge { bytes_max: 2_000, .. })));
        assert_eq!(shared.free_units.available_permits(), before);
        // The record is larger than the batch size but allowed, so it is sent in its own batch.
        drop(append(&topic, &shared, &RecordRef::new(&[0; 1_900])));
    }

    #[test]
    fn the_buffer_bounds_what_is_open() {
        let shared = shared(ProducerSettings { buffer_bytes_max: 16 << 10, ..Default::default() });
        let topic = topic(4, None, &shared);
        let mut taken: HashMap<u32, usize> = HashMap::new();
        let missing_units = loop {
            match topic.append(&shared, &RecordRef::keyed(&taken.len().to_be_bytes(), &[0; 500]), 0).unwrap() {
                Appended::Done(delivery) => *taken.entry(delivery.partition()).or_default() += 500,
                Appended::Sealed => {}
                Appended::BufferFull(units) => break units,
            }
        };
        assert!(missing_units >= FIRST_UNITS);
        assert!(taken.values().sum::<usize>() <= 16 << 10);
    }

    #[test]
    fn after_the_sender_nobody_waits() {
        let shared = shared(ProducerSettings::default());
        let topic = topic(1, None, &shared);
        let open = append(&topic, &shared, &RecordRef::new(b"open"));
        topic.close(&shared);
        shared.outbox.end();
        assert!(matches!(open.outcome(), Some(Err(ClientError::Closed { .. }))));
        assert!(matches!(topic.append(&shared, &RecordRef::new(b"late"), 0), Err(ClientError::Closed { .. })));
        let (done, mut answer) = oneshot::channel();
        shared.outbox.push(Event::Flush(done));
        assert!(matches!(answer.try_recv(), Ok(Err(ClientError::Closed { .. }))));
    }
}
