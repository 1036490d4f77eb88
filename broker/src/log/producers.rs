//! Idempotent producers as each partition tracks them, with their open transactions (KIP-98 and KIP-360).
//!
//! A producer numbers the records that it sends to a partition. For each producer the partition remembers the last few
//! batches: a batch that is sent again is recognized by its sequence numbers, and a batch that leaves a gap is refused.
//! Only the committer checks and updates this state, in queue order.
//!
//! ```text
//!                       a batch of the same epoch                a batch of another epoch
//! producer unknown      new, with any sequence number            new, with any epoch
//! the next sequence     new                                      larger: new from sequence 0,
//! a remembered batch    duplicate of that one                            else out of order
//! before those          duplicate, offset unknown                smaller: stale
//! anything else         out of order
//! ```
//! A partition forgets a producer that is idle for a long time. A producer that it does not know may therefore start
//! with any sequence number (KIP-360).

use std::sync::atomic::{AtomicI64, Ordering};

use crate::hash::HashMap;
use millstream_record::{BatchHeader, RecordBatch, sequence_after};
use parking_lot::Mutex;

use crate::error::BrokerError;
use crate::name::{ProducerId, ProducerIdentity, TopicPartition};
use crate::store::place::Offset;

/// Number of batches per producer that a partition remembers. Kafka remembers the same number, because its clients have
/// at most this many batches in flight.
pub const BATCHES_REMEMBERED: usize = 5;

/// Maximum number of producers that a partition remembers; each takes about 150 bytes. Beyond it, the producers that
/// were idle for longest are forgotten, so that a client that keeps creating producers cannot exhaust memory.
const PRODUCERS_MAX: usize = 10_000;

/// The fraction that is forgotten at once, so that not every further producer requires a search for the oldest.
const FORGOTTEN_FRACTION: usize = 10;

/// Number of producer IDs that are reserved on disk at once.
pub(crate) const PRODUCER_IDS_RESERVED: i64 = 1_000;

/// Maximum number of producers whose epochs are remembered; each takes about 50 bytes. Beyond it, those whose epochs
/// were handed out first are forgotten.
const EPOCHS_MAX: usize = 10_000;

/// Sequence numbers wrap around: a number up to this far back is older.
const SEQUENCES_HALF: u32 = 1 << 30;

/// The result of checking a batch's sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The batch has no sequence numbers.
    NotIdempotent,
    /// The batch is new and must be stored.
    New,
    /// The batch is already stored.
    Duplicate {
        /// Offset of its first record.
        base_offset: Offset,
    },
}

/// The producers of one partition.
#[derive(Clone, Debug, Default)]
pub struct Producers {
    by_id: HashMap<ProducerId, Producer>,
}

/// What a partition remembers about one producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    epoch: i16,
    last_append_ms: i64,
    /// The last batches, oldest first.
    batches: [Remembered; BATCHES_REMEMBERED],
    /// Number of batches. None are known of a producer whose last batch ended a transaction and its epoch.
    len: u8,
    /// The first offset of its open transaction.
    transaction: Option<Offset>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Remembered {
    first: i32,
    last: i32,
    base_offset: Offset,
}

/// The fields of a batch that identify its producer and sequence numbers.
#[derive(Clone, Copy, Debug)]
struct Numbered {
    id: ProducerId,
    epoch: i16,
    first: i32,
    last: i32,
    records: u32,
    kind: Kind,
}

/// What a batch is to transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Transactional,
    /// The end of a transaction.
    Control,
}

impl Numbered {
    fn new(id: i64, epoch: i16, first: i32, records: u32, kind: Kind) -> Option<Self> {
        let last = sequence_after(first, records.saturating_sub(1));
        ProducerId::new(id).map(|id| Self { id, epoch, first, last, records, kind })
    }

    /// Returns `None` for a batch without a producer.
    fn of(batch: &RecordBatch) -> Option<Self> {
        let kind = Kind::of(batch.is_transactional(), batch.is_control());
        Self::new(batch.producer_id(), batch.producer_epoch(), batch.base_sequence(), batch.record_count(), kind)
    }

    fn of_header(header: &BatchHeader) -> Option<Self> {
        let kind = Kind::of(header.is_transactional, header.is_control);
        Self::new(header.producer_id, header.producer_epoch, header.base_sequence, header.record_count(), kind)
    }

    fn at(&self, base_offset: Offset) -> Remembered {
        Remembered { first: self.first, last: self.last, base_offset }
    }
}

impl Kind {
    fn of(is_transactional: bool, is_control: bool) -> Self {
        match (is_control, is_transactional) {
            (true, _) => Self::Control,
            (false, true) => Self::Transactional,
            (false, false) => Self::Plain,
        }
    }
}

/// What a batch that was accepted does to its producer's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// The transaction begins with the batch.
    Begins(ProducerId),
    /// The transaction ends with the batch. It began at this offset, if it has records in the partition.
    Ends(ProducerId, Option<Offset>),
}

impl Producers {
    /// Checks a batch against what is known of its producer. `at` is the partition's name, for the error.
    ///
    /// # Errors
    /// [`BrokerError::OutOfOrderSequence`], [`BrokerError::StaleProducerEpoch`],
    /// [`BrokerError::DuplicateSequence`].
    pub fn check(&self, at: &TopicPartition, batch: &RecordBatch) -> Result<Verdict, BrokerError> {
        let Some(numbered) = Numbered::of(batch) else { return Ok(Verdict::NotIdempotent) };
        if numbered.kind == Kind::Control {
            return Ok(Verdict::NotIdempotent);
        }
        check(self.by_id.get(&numbered.id), at, &numbered)
    }

    /// Checks the batches of a request, each after the ones before it. Either all of them are new, or all are
    /// duplicates that are stored without a gap between them.
    ///
    /// # Errors
    /// As [`Producers::check`]; also [`BrokerError::OutOfOrderSequence`] if some are already stored and others are not,
    /// and [`BrokerError::Protocol`] if they are from several producers.
    pub fn check_request(&self, at: &TopicPartition, batches: &[RecordBatch]) -> Result<Verdict, BrokerError> {
        let identity = |batch: &RecordBatch| (batch.producer_id(), batch.producer_epoch());
        if batches.windows(2).any(|pair| identity(&pair[0]) != identity(&pair[1])) {
            return Err(BrokerError::Protocol("the batches of a request must be of one producer and epoch".into()));
        }
        let mut known = batches.first().and_then(Numbered::of).and_then(|first| self.by_id.get(&first.id).copied());
        let (mut whole, mut stored_until) = (None, None);
        for batch in batches {
            // The broker's own control batches are not numbered, and each is alone.
            let Some(numbered) = Numbered::of(batch).filter(|numbered| numbered.kind != Kind::Control) else { break };
            match (check(known.as_ref(), at, &numbered)?, whole) {
                (Verdict::New, None | Some(Verdict::New)) => {
                    // The offset does not matter, because new batches are not answered from this copy.
                    known = Some(append(known.as_ref(), &numbered, Offset::ZERO, 0));
                    whole = Some(Verdict::New);
                }
                (Verdict::Duplicate { base_offset }, _) if whole.is_none() || stored_until == Some(base_offset) => {
                    whole = whole.or(Some(Verdict::Duplicate { base_offset }));
                    stored_until = Some(base_offset.plus(u64::from(numbered.records)));
                }
                _ => return Err(out_of_order(at, &numbered, known.map_or(0, |known| known.next_sequence()))),
            }
        }
        Ok(whole.unwrap_or(Verdict::NotIdempotent))
    }

    /// Remembers a batch that [`Producers::check`] found to be new, and that is stored at `base_offset`. Returns what it
    /// does to its producer's transaction.
    pub(crate) fn accept(&mut self, batch: &RecordBatch, base_offset: Offset, now_ms: i64) -> Option<Transition> {
        let numbered = Numbered::of(batch)?;
        let transition = self.transition(&numbered);
        let next = append(self.by_id.get(&numbered.id), &numbered, base_offset, now_ms);
        self.insert(numbered.id, next);
        transition
    }

    fn transition(&self, batch: &Numbered) -> Option<Transition> {
        let open = self.by_id.get(&batch.id).and_then(|known| known.transaction);
        match batch.kind {
            Kind::Control => Some(Transition::Ends(batch.id, open)),
            Kind::Transactional if open.is_none() => Some(Transition::Begins(batch.id)),
            Kind::Transactional | Kind::Plain => None,
        }
    }

    /// Returns the open transactions: their producers, with the offsets at which they began.
    pub(crate) fn open_transactions(&self) -> impl Iterator<Item = (ProducerId, Offset)> {
        self.by_id.iter().filter_map(|(id, producer)| Some((*id, producer.transaction?)))
    }

    /// Like [`Producers::accept`], for a batch read from the log at start, whose header contains its offset. Batches
    /// that are known already, because a restored [`Producer`] is ahead of the log, are ignored.
    pub fn replay(&mut self, header: &BatchHeader, now_ms: i64) {
        let (Some(numbered), Some(base_offset)) = (Numbered::of_header(header), Offset::new(header.base_offset)) else {
            return;
        };
        let known = self.by_id.get(&numbered.id);
        let newest = known.and_then(Producer::newest);
        if numbered.kind != Kind::Control && newest.is_some_and(|newest| base_offset <= newest.base_offset) {
            return;
        }
        let next = append(known, &numbered, base_offset, now_ms);
        self.insert(numbered.id, next);
    }

    /// Restores a producer that [`Producer::decode`] returned.
    pub fn restore(&mut self, id: ProducerId, producer: Producer) {
        self.insert(id, producer);
    }

    fn insert(&mut self, id: ProducerId, producer: Producer) {
        self.by_id.insert(id, producer);
        if self.by_id.len() > PRODUCERS_MAX {
            // A producer with an open transaction is not forgotten, because readers wait for its end.
            let idle = self.by_id.iter().filter(|(_, producer)| producer.transaction.is_none());
            let mut appended: Vec<(i64, ProducerId)> =
                idle.map(|(id, producer)| (producer.last_append_ms, *id)).collect();
            if appended.len() <= PRODUCERS_MAX / FORGOTTEN_FRACTION {
                return;
            }
            // Among producers with the same time, the smaller IDs are forgotten, so that the newly added one remains.
            let (oldest, ..) = appended.select_nth_unstable(PRODUCERS_MAX / FORGOTTEN_FRACTION);
            for (_, id) in oldest {
                self.by_id.remove(id);
            }
        }
    }

    /// Forgets the producers that have appended nothing since `before_ms`, in ms since the epoch.
    pub fn forget_idle(&mut self, before_ms: i64) {
        self.by_id.retain(|_, producer| producer.transaction.is_some() || producer.last_append_ms >= before_ms);
    }

    /// Returns all producers, in arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = (ProducerId, &Producer)> {
        self.by_id.iter().map(|(id, producer)| (*id, producer))
    }

    /// Returns one producer.
    pub fn get(&self, id: ProducerId) -> Option<&Producer> {
        self.by_id.get(&id)
    }

    /// Returns the number of producers.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Returns whether there are no producers.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

/// The last epoch that was handed out to each producer that requested a new one. The catalog stores these epochs too,
/// so that no epoch is handed out twice.
#[derive(Debug, Default)]
pub(crate) struct ProducerEpochs(Mutex<HashMap<ProducerId, HandedOut>>);

#[derive(Clone, Copy, Debug)]
struct HandedOut {
    epoch: i16,
    /// Time of the idle clock, in milliseconds since the epoch.
    at_ms: i64,
}

impl ProducerEpochs {
    /// Creates the map from the epochs in the catalog, as if they were handed out at `at_ms` of the idle clock.
    pub(crate) fn new(epochs: impl IntoIterator<Item = (ProducerId, i16)>, at_ms: i64) -> Self {
        Self(Mutex::new(epochs.into_iter().map(|(id, epoch)| (id, HandedOut { epoch, at_ms })).collect()))
    }

    /// Returns the next epoch of a producer, which is later than its current epoch and than any that was handed out.
    /// Returns `None` if the largest epoch was handed out already.
    pub(crate) fn next(&self, ProducerIdentity { id, epoch }: ProducerIdentity, at_ms: i64) -> Option<i16> {
        let mut handed_out = self.0.lock();
        let last = handed_out.get(&id).map_or(epoch, |last| last.epoch.max(epoch));
        let next = last.checked_add(1)?;
        handed_out.insert(id, HandedOut { epoch: next, at_ms });
        Some(next)
    }

    /// Forgets the epochs that were handed out before `before_ms` of the idle clock, and the oldest epochs above the
    /// maximum. `forget` is called with their producers before any of these can get another epoch.
    pub(crate) fn expire<T>(&self, before_ms: i64, forget: impl FnOnce(Vec<ProducerId>) -> T) -> Option<T> {
        let mut handed_out = self.0.lock();
        let mut all: Vec<(i64, ProducerId)> = handed_out.iter().map(|(id, last)| (last.at_ms, *id)).collect();
        all.sort_unstable();
        let too_many = all.len().saturating_sub(EPOCHS_MAX);
        let expired = all.partition_point(|(at_ms, _)| *at_ms < before_ms).max(too_many);
        if expired == 0 {
            return None;
        }
        let ids: Vec<_> = all[..expired].iter().map(|(_, id)| *id).collect();
        for id in &ids {
            handed_out.remove(id);
        }
        Some(forget(ids))
    }
}

fn check(known: Option<&Producer>, at: &TopicPartition, batch: &Numbered) -> Result<Verdict, BrokerError> {
    let Some(known) = known else { return Ok(Verdict::New) };
    if batch.epoch < known.epoch {
        return Err(BrokerError::StaleProducerEpoch {
            topic: at.topic.clone(),
            partition: at.partition,
            producer_id: batch.id,
            epoch: batch.epoch,
            current: known.epoch,
        });
    }
    let expected = if batch.epoch > known.epoch { 0 } else { known.next_sequence() };
    if batch.first == expected {
        if batch.kind == Kind::Plain && known.transaction.is_some() {
            return Err(BrokerError::Protocol(format!(
                "topic {}, partition {}: producer id {} sent a batch outside its open transaction",
                at.topic, at.partition, batch.id
            )));
        }
        return Ok(Verdict::New);
    }
    if batch.epoch > known.epoch {
        return Err(out_of_order(at, batch, expected));
    }
    let same = |old: &&Remembered| old.first == batch.first && old.last == batch.last;
    if let Some(old) = known.remembered().iter().rev().find(same) {
        return Ok(Verdict::Duplicate { base_offset: old.base_offset });
    }
    // An older batch can only have been stored if a batch was forgotten.
    let oldest = known.batches[0].first;
    if known.remembered().len() == BATCHES_REMEMBERED && is_before(batch.first, oldest) && is_before(batch.last, oldest)
    {
        return Err(BrokerError::DuplicateSequence {
            topic: at.topic.clone(),
            partition: at.partition,
            producer_id: batch.id,
            epoch: batch.epoch,
            found: batch.first,
            oldest,
            remembered: BATCHES_REMEMBERED,
        });
    }
    Err(out_of_order(at, batch, expected))
}

fn out_of_order(at: &TopicPartition, batch: &Numbered, expected: i32) -> BrokerError {
    BrokerError::OutOfOrderSequence {
        topic: at.topic.clone(),
        partition: at.partition,
        producer_id: batch.id,
        epoch: batch.epoch,
        expected,
        found: batch.first,
    }
}

/// Returns whether a sequence number is older than another.
fn is_before(sequence: i32, other: i32) -> bool {
    let distance = other.wrapping_sub(sequence).cast_unsigned() & i32::MAX.cast_unsigned();
    (1..SEQUENCES_HALF).contains(&distance)
}

fn append(known: Option<&Producer>, batch: &Numbered, base_offset: Offset, now_ms: i64) -> Producer {
    let newest = batch.at(base_offset);
    let same_epoch = known.filter(|known| known.epoch == batch.epoch);
    if batch.kind == Kind::Control {
        // The end of a transaction may begin the producer's next epoch. Its batches are numbered from 0 then.
        let nothing = Producer {
            epoch: batch.epoch,
            last_append_ms: now_ms,
            batches: [Remembered::default(); BATCHES_REMEMBERED],
            len: 0,
            transaction: None,
        };
        return same_epoch.map_or(nothing, |known| Producer { last_append_ms: now_ms, transaction: None, ..*known });
    }
    let open = known.and_then(|known| known.transaction);
    let transaction = if batch.kind == Kind::Transactional { open.or(Some(base_offset)) } else { None };
    match same_epoch {
        None => {
            let mut batches = [Remembered::default(); BATCHES_REMEMBERED];
            batches[0] = newest;
            Producer { epoch: batch.epoch, last_append_ms: now_ms, batches, len: 1, transaction }
        }
        Some(known) => {
            let mut next = Producer { last_append_ms: now_ms, transaction, ..*known };
            if known.remembered().len() == BATCHES_REMEMBERED {
                next.batches.rotate_left(1);
            } else {
                next.len += 1;
            }
            next.batches[usize::from(next.len) - 1] = newest;
            next
        }
    }
}

/// Size of an encoded producer before its batches, in bytes: epoch i16, last append i64, batch count u8.
const ENCODED_HEADER_BYTES: usize = 11;

/// Size of one encoded batch, in bytes: first i32, last i32, base offset i64.
const ENCODED_BATCH_BYTES: usize = 16;

impl Producer {
    /// Returns the epoch of its last batch.
    pub fn epoch(&self) -> i16 {
        self.epoch
    }

    /// Returns the sequence number that its next batch must start with.
    pub fn next_sequence(&self) -> i32 {
        self.newest().map_or(0, |newest| sequence_after(newest.last, 1))
    }

    /// Returns the same producer, idle from `now_ms` on, in ms since the epoch.
    pub fn idle_since(self, now_ms: i64) -> Self {
        Self { last_append_ms: now_ms, ..self }
    }

    /// Returns the sequence number of its last record, and the time of its last append in ms since the epoch.
    pub(crate) fn last(&self) -> (Option<i32>, i64) {
        (self.newest().map(|newest| newest.last), self.last_append_ms)
    }

    /// Returns the first offset of its open transaction.
    pub(crate) fn transaction(&self) -> Option<Offset> {
        self.transaction
    }

    /// Returns the offset of the first record of its last batch, if one is known.
    pub fn last_base_offset(&self) -> Option<Offset> {
        self.newest().map(|newest| newest.base_offset)
    }

    /// Encodes everything that is known in 11 to 99 bytes, little-endian: epoch i16, last append i64, and the number of
    /// batches u8, each with its first and last sequence number i32 and its base offset i64; then, if a transaction is
    /// open, its first offset i64.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENCODED_HEADER_BYTES + usize::from(self.len) * ENCODED_BATCH_BYTES);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.last_append_ms.to_le_bytes());
        out.push(self.len);
        for batch in self.remembered() {
            out.extend_from_slice(&batch.first.to_le_bytes());
            out.extend_from_slice(&batch.last.to_le_bytes());
            out.extend_from_slice(&batch.base_offset.get().to_le_bytes());
        }
        if let Some(first) = self.transaction {
            out.extend_from_slice(&first.get().to_le_bytes());
        }
        out
    }

    /// Decodes a producer that [`Producer::encode`] wrote.
    ///
    /// # Errors
    /// A description of what is wrong with the bytes. The caller adds where they are stored.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let length = || format!("a producer's state has {} bytes, which is not a whole number of batches", bytes.len());
        let (epoch, rest) = bytes.split_first_chunk().ok_or_else(length)?;
        let (last_append_ms, rest) = rest.split_first_chunk().ok_or_else(length)?;
        let (&len, rest) = rest.split_first().ok_or_else(length)?;
        let (encoded, trailing) = rest.as_chunks::<ENCODED_BATCH_BYTES>();
        let transaction = match trailing {
            [] => None,
            trailing => {
                let first = trailing.try_into().map(i64::from_le_bytes).map_err(|_| length())?;
                Some(Offset::new(first).ok_or_else(|| format!("a producer's transaction begins at offset {first}"))?)
            }
        };
        if encoded.len() != usize::from(len) || encoded.len() > BATCHES_REMEMBERED {
            let found = encoded.len();
            return Err(format!(
                "a producer's state has {found} batches and a count of {len}: up to {BATCHES_REMEMBERED} are allowed"
            ));
        }
        let mut batches = [Remembered::default(); BATCHES_REMEMBERED];
        for (batch, encoded) in batches.iter_mut().zip(encoded) {
            *batch = Remembered::decode(encoded)?;
        }
        let (epoch, last_append_ms) = (i16::from_le_bytes(*epoch), i64::from_le_bytes(*last_append_ms));
        if epoch < 0 {
            return Err(format!("a producer's state has epoch {epoch}"));
        }
        Ok(Self { epoch, last_append_ms, batches, len, transaction })
    }

    fn remembered(&self) -> &[Remembered] {
        &self.batches[..usize::from(self.len)]
    }

    fn newest(&self) -> Option<&Remembered> {
        self.remembered().last()
    }
}

impl Remembered {
    fn decode(bytes: &[u8; ENCODED_BATCH_BYTES]) -> Result<Self, String> {
        let (first, rest) = bytes.split_at(4);
        let (last, base_offset) = rest.split_at(4);
        let sequence = |bytes: &[u8]| bytes.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)).filter(|s| *s >= 0);
        let base_offset = base_offset.first_chunk().and_then(|bytes| Offset::new(i64::from_le_bytes(*bytes)));
        match (sequence(first), sequence(last), base_offset) {
            (Some(first), Some(last), Some(base_offset)) => Ok(Self { first, last, base_offset }),
            _ => Err(format!("a producer's state has a negative number in the batch {bytes:02x?}")),
        }
    }
}

/// The producer IDs that were handed out. They are reserved on disk a thousand at a time, so a crash skips some IDs but
/// never repeats one.
#[derive(Debug)]
pub(crate) struct ProducerIds {
    /// The next ID to hand out.
    next: AtomicI64,
    /// The first ID that is not reserved. Locked while more are reserved.
    reserved_until: tokio::sync::Mutex<i64>,
}

impl ProducerIds {
    /// Starts at `next`, up to which earlier processes reserved IDs. Nothing is reserved yet.
    pub(crate) fn new(next: i64) -> Self {
        Self { next: AtomicI64::new(next), reserved_until: tokio::sync::Mutex::new(next) }
    }

    /// Returns whether the ID was ever handed out.
    pub(crate) fn knows(&self, id: ProducerId) -> bool {
        id.get() < self.next.load(Ordering::Acquire)
    }

    /// Returns the next ID. `reserve` makes durable that all IDs below its argument are taken.
    pub(crate) async fn next(
        &self,
        reserve: impl AsyncFnOnce(i64) -> Result<(), BrokerError>,
    ) -> Result<ProducerId, BrokerError> {
        let mut reserved_until = self.reserved_until.lock().await;
        let next = self.next.load(Ordering::Acquire);
        if next == *reserved_until {
            let until = next.saturating_add(PRODUCER_IDS_RESERVED);
            reserve(until).await?;
            *reserved_until = until;
        }
        self.next.store(next.saturating_add(1), Ordering::Release);
        Ok(ProducerId::new(next).expect("ids grow from 0"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millstream_record::{BatchBuilder, Compression};
    use proptest::prelude::*;

    use super::*;
    use crate::name::TopicName;
    use crate::seeded::seeded;

    fn at() -> TopicPartition {
        TopicPartition { topic: TopicName::new("t").unwrap(), partition: 3 }
    }

    fn batch(id: i64, epoch: i16, first: i32, records: u32) -> RecordBatch {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.set_producer(id, epoch, first);
        (0..records).for_each(|_| builder.push(0, None, Some(b"x"), []));
        builder.finish().unwrap()
    }

    /// A partition's log of batches, and what it knows of their producers.
    #[derive(Default)]
    struct Log {
        producers: Producers,
        end: u64,
    }

    impl Log {
        fn send(&mut self, id: i64, epoch: i16, first: i32, records: u32) -> Result<Verdict, BrokerError> {
            self.request(&[batch(id, epoch, first, records)])
        }

        fn request(&mut self, batches: &[RecordBatch]) -> Result<Verdict, BrokerError> {
            let verdict = self.producers.check_request(&at(), batches)?;
            if verdict == Verdict::New {
                for batch in batches {
                    self.producers.accept(batch, Offset::ZERO.plus(self.end), 0);
                    self.end += u64::from(batch.record_count());
                }
            }
            Ok(verdict)
        }
    }

    fn duplicate(base_offset: u64) -> Verdict {
        Verdict::Duplicate { base_offset: Offset::ZERO.plus(base_offset) }
    }

    fn id(id: i64) -> ProducerId {
        ProducerId::new(id).unwrap()
    }

    /// Returns the name of a refusal and its numbers.
    fn refusal<T: std::fmt::Debug>(result: Result<T, BrokerError>) -> (&'static str, i64, i64) {
        match result {
            Err(BrokerError::OutOfOrderSequence { expected, found, partition: 3, .. }) => {
                ("gap", expected.into(), found.into())
            }
            Err(BrokerError::StaleProducerEpoch { epoch, current, partition: 3, .. }) => {
                ("stale", current.into(), epoch.into())
            }
            Err(BrokerError::DuplicateSequence { oldest, found, partition: 3, .. }) => {
                ("older", oldest.into(), found.into())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_last_five_batches_are_known_again_and_no_more() {
        let mut log = Log::default();
        for n in 0..7 {
            assert_eq!(log.send(1, 0, n * 10, 10).unwrap(), Verdict::New);
        }
        for n in 2..7 {
            assert_eq!(log.send(1, 0, n * 10, 10).unwrap(), duplicate(n as u64 * 10));
        }
        assert_eq!(refusal(log.send(1, 0, 10, 10)), ("older", 20, 10));
        // Starts with the sequence number of a known batch, but is a different one.
        assert_eq!(refusal(log.send(1, 0, 20, 9)), ("gap", 70, 20));
        assert_eq!(refusal(log.send(1, 0, 15, 10)), ("gap", 70, 15));
        assert_eq!(refusal(log.send(1, 0, 71, 1)), ("gap", 70, 71));
        assert_eq!(log.send(1, 0, 70, 1).unwrap(), Verdict::New);
        assert_eq!(log.end, 71);
    }

    #[test]
    fn sequences_go_on_at_zero_after_the_largest() {
        let mut log = Log::default();
        assert_eq!(log.send(1, 0, i32::MAX - 1, 4).unwrap(), Verdict::New);
        assert_eq!(log.producers.get(id(1)).unwrap().next_sequence(), 2);
        assert_eq!(refusal(log.send(1, 0, 3, 1)), ("gap", 2, 3));
        assert_eq!(log.send(1, 0, i32::MAX - 1, 4).unwrap(), duplicate(0));
        for n in 0..5 {
            assert_eq!(log.send(1, 0, 2 + n, 1).unwrap(), Verdict::New);
        }
        assert_eq!(refusal(log.send(1, 0, i32::MAX - 1, 4)), ("older", 2, (i32::MAX - 1).into()));
    }

    #[test]
    fn a_larger_epoch_begins_at_zero_and_ends_those_before_it() {
        let mut log = Log::default();
        log.send(1, 0, 0, 5).unwrap();
        assert_eq!(refusal(log.send(1, 1, 5, 1)), ("gap", 0, 5));
        assert_eq!(log.send(1, 1, 0, 5).unwrap(), Verdict::New);
        assert_eq!(refusal(log.send(1, 0, 5, 1)), ("stale", 1, 0));
        assert_eq!(refusal(log.send(1, 0, 0, 5)), ("stale", 1, 0));
        assert_eq!(log.send(1, 1, 0, 5).unwrap(), duplicate(5));
    }

    #[test]
    fn a_producer_that_the_partition_does_not_know_begins_anywhere() {
        let mut log = Log::default();
        assert_eq!(log.send(1, 7, 1_000, 5).unwrap(), Verdict::New);
        assert_eq!(refusal(log.send(1, 7, 990, 5)), ("gap", 1_005, 990));
        log.producers.forget_idle(1);
        assert!(log.producers.is_empty());
        assert_eq!(log.send(1, 7, 50, 5).unwrap(), Verdict::New);
    }

    #[test]
    fn a_partition_remembers_no_more_than_so_many_producers_and_forgets_the_idle_ones_first() {
        let mut log = Log::default();
        for number in 0..PRODUCERS_MAX as i64 {
            log.producers.accept(&batch(number, 0, 0, 1), Offset::ZERO, number);
        }
        assert_eq!(log.producers.len(), PRODUCERS_MAX);
        // The first producer appends again, and so is no longer the one that was idle for longest.
        let now_ms = PRODUCERS_MAX as i64;
        log.producers.accept(&batch(0, 0, 1, 1), Offset::ZERO, now_ms);
        assert_eq!(log.producers.len(), PRODUCERS_MAX);
        log.producers.accept(&batch(now_ms, 0, 0, 1), Offset::ZERO, now_ms);
        let forgotten = PRODUCERS_MAX / FORGOTTEN_FRACTION;
        assert_eq!(log.producers.len(), PRODUCERS_MAX + 1 - forgotten);
        for (number, is_known) in [(0, true), (1, false), (forgotten as i64, false), (forgotten as i64 + 1, true)] {
            assert_eq!(log.producers.get(id(number)).is_some(), is_known, "{number}");
        }
        assert!(log.producers.get(id(now_ms)).is_some());
    }

    #[test]
    fn a_request_is_new_or_stored_already_as_a_whole() {
        let mut log = Log::default();
        let whole = [batch(1, 0, 0, 5), batch(1, 0, 5, 5)];
        assert_eq!(log.request(&whole).unwrap(), Verdict::New);
        assert_eq!(log.request(&whole).unwrap(), duplicate(0));
        let before = log.producers.get(id(1)).copied();
        assert_eq!(refusal(log.request(&[batch(1, 0, 5, 5), batch(1, 0, 10, 5)])), ("gap", 10, 10));
        assert_eq!(refusal(log.request(&[batch(1, 0, 10, 5), batch(1, 0, 10, 5)])), ("gap", 15, 10));
        assert_eq!(refusal(log.request(&[batch(1, 0, 10, 5), batch(1, 0, 16, 5)])), ("gap", 15, 16));
        let several = log.request(&[batch(1, 0, 10, 5), batch(2, 0, 0, 5)]);
        assert!(matches!(several, Err(BrokerError::Protocol(_))), "{several:?}");
        assert_eq!(log.producers.get(id(1)).copied(), before, "a refused request leaves no trace");

        // The batches were stored separately, with a record of another producer in between, so no single answer fits
        // both.
        log.send(1, 0, 10, 5).unwrap();
        log.send(2, 0, 0, 1).unwrap();
        log.send(1, 0, 15, 5).unwrap();
        assert_eq!(refusal(log.request(&[batch(1, 0, 10, 5), batch(1, 0, 15, 5)])), ("gap", 20, 15));
    }

    #[test]
    fn without_a_producer_nothing_is_checked_or_kept() {
        let mut log = Log::default();
        assert_eq!(log.send(-1, -1, -1, 5).unwrap(), Verdict::NotIdempotent);
        assert_eq!(log.request(&[batch(-1, -1, -1, 1), batch(-1, -1, -1, 1)]).unwrap(), Verdict::NotIdempotent);
        log.producers.accept(&batch(-1, -1, -1, 5), Offset::ZERO, 0);
        assert!(log.producers.is_empty());
    }

    #[test]
    fn what_is_no_producers_state_is_refused() {
        let mut log = Log::default();
        log.send(1, 2, 0, 5).unwrap();
        let sound = log.producers.get(id(1)).unwrap().encode();
        assert_eq!(Producer::decode(&sound).as_ref(), Ok(log.producers.get(id(1)).unwrap()));
        for len in 0..sound.len() {
            assert!(Producer::decode(&sound[..len]).is_err(), "{len} bytes");
        }
        for (at, byte) in [(1, 0x80), (10, 0), (10, 2), (14, 0x80), (18, 0x80), (26, 0x80)] {
            let mut lying = sound.clone();
            lying[at] = byte;
            assert!(Producer::decode(&lying).is_err(), "byte {at} is {byte}");
        }
    }

    #[tokio::test]
    async fn ids_are_reserved_before_they_are_handed_out_and_never_again_after_a_crash() {
        let mut durable = 0;
        let mut handed_out = Vec::new();
        for ids_before_the_crash in [1, 999, 1_001, 3] {
            let ids = ProducerIds::new(durable);
            for _ in 0..ids_before_the_crash {
                let reserve = async |until| {
                    durable = until;
                    Ok(())
                };
                let id = ids.next(reserve).await.unwrap();
                assert!(id.get() < durable && ids.knows(id) && !ids.knows(self::id(id.get() + 1)));
                handed_out.push(id);
            }
            // IDs that could not be reserved are not handed out.
            let full = ProducerIds::new(durable);
            assert!(full.next(async |_| Err(BrokerError::ShuttingDown)).await.is_err());
            assert!(!full.knows(self::id(durable)));
        }
        assert!(handed_out.is_sorted_by(|a, b| a < b));
    }

    /// An action in the test against the model.
    #[derive(Clone, Debug)]
    enum Step {
        /// Sends the next batch of a producer.
        Next { id: i64, records: u32 },
        /// Sends a batch again that was sent this many batches ago.
        Again { id: i64, back: usize },
        /// Sends a batch whose first sequence number is not the next one.
        Off { id: i64, by: i32 },
        /// Sends a batch with the next epoch, starting at sequence number 0.
        Bump { id: i64 },
        /// Restarts the process. The state of some producers was written at the time of an earlier step, that of others
        /// never. The log is then read again from the start.
        Restart { written_at: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = 0..3i64;
        prop_oneof![
            6 => (id.clone(), 1..4u32).prop_map(|(id, records)| Step::Next { id, records }),
            4 => (id.clone(), 0..8usize).prop_map(|(id, back)| Step::Again { id, back }),
            2 => (id.clone(), prop_oneof![-20..0i32, 1..20i32]).prop_map(|(id, by)| Step::Off { id, by }),
            1 => id.prop_map(|id| Step::Bump { id }),
            1 => (0..40usize).prop_map(|written_at| Step::Restart { written_at }),
        ]
    }

    /// Everything that a producer has stored in its epoch: first sequence number, records, offset.
    #[derive(Clone, Debug, Default)]
    struct Model {
        epoch: i16,
        next: i32,
        stored: Vec<(i32, u32, u64)>,
    }

    proptest! {
        #![proptest_config(seeded())]

        /// Whatever is sent, each batch is stored once and in order, and a repeated batch is answered with its offset.
        #[test]
        fn producers_are_as_their_model_through_restarts(steps in prop::collection::vec(step(), 1..60), start in prop_oneof![Just(0), Just(i32::MAX - 10)]) {
            let mut log = Log::default();
            let mut models: BTreeMap<i64, Model> = BTreeMap::new();
            let mut headers: Vec<BatchHeader> = Vec::new();
            let mut written: Vec<Vec<(ProducerId, Vec<u8>)>> = Vec::new();
            for step in steps {
                let (id, epoch, first, records) = match step {
                    Step::Restart { written_at } => {
                        let mut producers = Producers::default();
                        for (id, bytes) in written.get(written_at).into_iter().flatten() {
                            producers.restore(*id, Producer::decode(bytes).unwrap());
                        }
                        headers.iter().for_each(|header| producers.replay(header, 0));
                        log.producers = producers;
                        continue;
                    }
                    Step::Next { id, records } => {
                        let model = models.entry(id).or_insert_with(|| Model { next: start, ..Model::default() });
                        (id, model.epoch, model.next, records)
                    }
                    Step::Again { id, back } => {
                        let Some(model) = models.get(&id) else { continue };
                        let Some(&(first, records, _)) = model.stored.iter().rev().nth(back) else { continue };
                        (id, model.epoch, first, records)
                    }
                    Step::Off { id, by } => {
                        let Some(model) = models.get(&id).filter(|model| !model.stored.is_empty()) else { continue };
                        // This has more records than any sent batch, so it matches none of them.
                        (id, model.epoch, model.next.wrapping_add(by) & i32::MAX, 9)
                    }
                    Step::Bump { id } => {
                        let Some(model) = models.get_mut(&id).filter(|model| !model.stored.is_empty()) else { continue };
                        let stale = log.send(id, model.epoch, model.next, 1);
                        prop_assert_eq!(stale.unwrap(), Verdict::New);
                        headers.push(header(id, model.epoch, model.next, 1, log.end - 1));
                        *model = Model { epoch: model.epoch + 1, ..Model::default() };
                        (id, model.epoch, 0, 2)
                    }
                };
                let model = models.get_mut(&id).unwrap();
                let before = log.end;
                let verdict = log.send(id, epoch, first, records);
                let place = model.stored.iter().rev().position(|old| (old.0, old.1) == (first, records));
                if first == model.next {
                    prop_assert_eq!(verdict.unwrap(), Verdict::New);
                    model.stored.push((first, records, before));
                    model.next = sequence_after(first, records);
                    headers.push(header(id, epoch, first, records, before));
                } else if let Some(back) = place.filter(|back| *back < BATCHES_REMEMBERED) {
                    let (.., base_offset) = model.stored[model.stored.len() - 1 - back];
                    prop_assert_eq!(verdict.unwrap(), duplicate(base_offset));
                } else {
                    let (name, ..) = refusal(verdict);
                    if place.is_some() {
                        prop_assert_eq!(name, "older");
                    }
                    prop_assert_eq!(log.end, before);
                }
                written.push(log.producers.iter().map(|(id, producer)| (id, producer.encode())).collect());
            }
        }
    }

    fn header(id: i64, epoch: i16, first: i32, records: u32, base_offset: u64) -> BatchHeader {
        let batch = batch(id, epoch, first, records);
        let base_offset = base_offset as i64;
        BatchHeader { base_offset, ..BatchHeader::parse(batch.as_bytes()).unwrap() }
    }
}
