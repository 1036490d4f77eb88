//! Reading a partition by offset or by timestamp.

use std::ops::Range;

use bytes::Bytes;
use millstream_record::{BATCH_HEADER_BYTES, BatchHeader, Limits, RecordBatch, split_batches};

use super::index::BatchSource;
use super::partition::Partition;
use super::transactions::is_hidden;
use crate::error::BrokerError;
use crate::store::journal::Run;
use crate::store::place::Offset;
use crate::store::segment::{BlockFault, Extent, Sealed, sound_part};
use crate::store::{Store, StoreError};

/// The range of a partition to read.
#[derive(Clone, Copy, Debug)]
pub struct ReadRange {
    /// Offset of the first record to read.
    pub from: Offset,
    /// Batches whose first offset is at or after this are not read; `None` stands for the log end offset.
    pub until: Option<Offset>,
    /// Maximum total size of the returned batches, in bytes.
    pub bytes_max: usize,
    /// Whether one batch is returned even if it is larger than `bytes_max`.
    pub one_at_least: bool,
}

/// Which batches of a partition a reader sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Records of transactions that were committed, and records outside transactions: those before the last stable offset
    /// that are not of an aborted transaction, without control batches.
    #[default]
    Committed,
    /// All batches before the last stable offset. The reader leaves out what was aborted: Kafka's `read_committed`.
    Stable,
    /// All batches: Kafka's `read_uncommitted`.
    All,
}

/// The result of a read: whole batches, in order.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The batches. Each element holds one or more batches back to back. The first batch may begin below the requested
    /// offset.
    pub runs: Vec<Bytes>,
    /// The offset to read from next; the requested offset if nothing was found.
    pub next: Offset,
    /// The log start offset at the time of the read.
    pub start: Offset,
    /// The offset at the time of the read up to which the reader sees records: the last stable offset, or the log end offset
    /// in the view [`View::All`].
    pub end: Offset,
}

impl Slice {
    /// Returns the total size of all batches, in bytes.
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(Bytes::len).sum()
    }
}

/// How often a read is retried because its records were moved. Sealing and merging move records, but only once in
/// several seconds; a read that meets this many moves has an index that lists records which do not exist.
const MOVES_MAX: u32 = 1_000;

impl Partition {
    /// Reads whole batches as `range` says, beginning with the batch that holds the range's first offset. Blocks on
    /// disk reads for data that is not in memory.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`], [`BrokerError::Damaged`], or [`BrokerError::Unreadable`] if the disk fails.
    pub fn read(&self, store: &Store, range: ReadRange) -> Result<Slice, BrokerError> {
        self.read_as(store, range, View::Committed)
    }

    /// As [`Partition::read`], in another view.
    ///
    /// # Errors
    /// As [`Partition::read`].
    pub fn read_as(&self, store: &Store, range: ReadRange, view: View) -> Result<Slice, BrokerError> {
        for _ in 0..MOVES_MAX {
            let read = self.read_with(range, view, |source, from, bytes_left| match source {
                BatchSource::Run(run) => self.read_run(store, &run, from).map(Some),
                BatchSource::Extent(extent) => self.read_extent(store, &extent, from, bytes_left).map(Some),
            });
            match read {
                // The records were sealed or merged meanwhile, so they are looked up again.
                Err(ReadError::Moved) => {}
                Err(ReadError::Broker(error)) => return Err(error),
                Ok(slice) => return Ok(slice.expect("a blocking read finds every source")),
            }
        }
        Err(StoreError::Moved.into())
    }

    /// As [`Partition::read`], but from memory only. Returns `None` if the disk would have to be read.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`].
    pub fn read_in_memory(&self, store: &Store, range: ReadRange, view: View) -> Result<Option<Slice>, BrokerError> {
        let read = self.read_with(range, view, |source, _, _| {
            let BatchSource::Run(run) = source else { return Ok(None) };
            Ok(store.read_in_memory(run.at).map(|bytes| (bytes, run.end)))
        });
        read.map_err(|error| match error {
            ReadError::Broker(error) => error,
            ReadError::Moved => unreachable!("reads from memory never report moved records"),
        })
    }

    /// Reads with `fetch`, which returns batches of a source, beginning with the batch that holds the given offset, and
    /// the offset up to which these are all of the source's batches.
    fn read_with(
        &self,
        ReadRange { from: offset, until, bytes_max, one_at_least }: ReadRange,
        view: View,
        fetch: impl Fn(BatchSource, Offset, usize) -> Result<Option<(Bytes, Offset)>, ReadError>,
    ) -> Result<Option<Slice>, ReadError> {
        // The last stable offset is read first, so that it is never after the end.
        let stable_end = self.stable_end();
        let log_end = self.end();
        let end = if view == View::All { log_end } else { stable_end };
        let until = until.unwrap_or(end).min(end);
        // The start and the sources are taken under one lock, so that retention cannot remove records in between.
        let (start, sources) = {
            let index = self.index.read();
            (index.start, index.sources_from(offset, until, bytes_max))
        };
        if offset < start || offset > log_end {
            return Err(self.out_of_range(offset).into());
        }
        let mut slice = Slice { runs: Vec::new(), next: offset, start, end };
        let hides = view == View::Committed && self.is_transactional();
        let mut bytes_left = bytes_max;
        'sources: for source in sources {
            let source_end = match source {
                BatchSource::Extent(extent) => extent.end,
                BatchSource::Run(run) => run.end,
            };
            while slice.next < source_end {
                let fetched = match fetch(source, slice.next, bytes_left) {
                    Ok(Some(fetched)) => fetched,
                    // The batches read so far are returned.
                    Ok(None) | Err(_) if !slice.runs.is_empty() => break 'sources,
                    Ok(None) => return Ok(None),
                    Err(error) => return Err(error),
                };
                let (bytes, fetched_to) = fetched;
                let taken = take_batches(&bytes, slice.next..until, bytes_left, one_at_least && slice.runs.is_empty())
                    .map_err(|source| self.corrupt(source))?;
                match taken {
                    Took::Batches(batches) => {
                        bytes_left = bytes_left.saturating_sub(batches.bytes.len());
                        slice.next = batches.next;
                        if batches.all {
                            slice.next = slice.next.max(fetched_to.min(until));
                        }
                        if hides {
                            self.push_visible(&mut slice.runs, &batches.bytes)
                                .map_err(|source| self.corrupt(source))?;
                        } else {
                            slice.runs.push(batches.bytes);
                        }
                        if !batches.all {
                            break 'sources;
                        }
                    }
                    Took::TooLarge => break 'sources,
                    // Compaction has removed all batches there.
                    Took::Nothing => slice.next = fetched_to.min(until).max(slice.next),
                }
                if slice.next >= until {
                    break 'sources;
                }
            }
        }
        Ok(Some(slice))
    }

    /// Adds the batches that a reader of committed records sees.
    fn push_visible(&self, runs: &mut Vec<Bytes>, batches: &Bytes) -> Result<(), millstream_record::BatchError> {
        let mut headers = Vec::new();
        let mut at = 0;
        while at + BATCH_HEADER_BYTES <= batches.len() {
            let header = BatchHeader::parse(&batches[at..])?;
            at += header.batch_bytes;
            headers.push(header);
        }
        let (Some(first), Some(last)) = (headers.first(), headers.last()) else { return Ok(()) };
        let aborted = self.aborted(Offset::known(first.base_offset), Offset::known(last.next_offset()));
        let (mut begin, mut at) = (0, 0);
        for header in &headers {
            let end = at + header.batch_bytes;
            if is_hidden(header, &aborted) {
                if begin < at {
                    runs.push(batches.slice(begin..at));
                }
                begin = end;
            }
            at = end;
        }
        if begin < at {
            runs.push(batches.slice(begin..at));
        }
        Ok(())
    }

    fn read_run(&self, store: &Store, run: &Run, from: Offset) -> Result<(Bytes, Offset), ReadError> {
        if let Some(bytes) = store.read_in_memory(run.at) {
            return Ok((bytes, run.end));
        }
        let bytes = store.read(run.at)?;
        match sound_part(&bytes, run.base..run.end, run.base) {
            // Only intact runs are cached, because reads from memory are not verified again.
            Ok(all) if all.bytes.len() == bytes.len() => {
                store.keep(run.at, bytes.clone());
                Ok((bytes, run.end))
            }
            _ => self.sound(sound_part(&bytes, run.base..run.end, from)),
        }
    }

    fn read_extent(
        &self,
        store: &Store,
        extent: &Extent,
        from: Offset,
        bytes_left: usize,
    ) -> Result<(Bytes, Offset), ReadError> {
        self.sound(store.registry().segment_of(extent)?.read(extent, from, bytes_left)?)
    }

    fn sound(&self, read: Result<Sealed, BlockFault>) -> Result<(Bytes, Offset), ReadError> {
        read.map(|Sealed { bytes, end }| (bytes, end)).map_err(|fault| self.damaged(fault).into())
    }

    /// Returns the offset of the first record whose timestamp is `timestamp_ms` or later, or the log end offset if
    /// there is none. Blocks on disk reads.
    ///
    /// # Errors
    /// [`BrokerError::Unreadable`], also for a batch that does not parse, or [`BrokerError::Damaged`].
    pub fn offset_at(&self, store: &Store, timestamp_ms: i64, limits: &Limits) -> Result<Offset, BrokerError> {
        for _ in 0..MOVES_MAX {
            match self.try_offset_at(store, timestamp_ms, limits) {
                Err(ReadError::Moved) => {}
                Err(ReadError::Broker(error)) => return Err(error),
                Ok(offset) => return Ok(offset),
            }
        }
        Err(StoreError::Moved.into())
    }

    fn try_offset_at(&self, store: &Store, timestamp_ms: i64, limits: &Limits) -> Result<Offset, ReadError> {
        let (start, end) = (self.start(), self.end());
        let candidates: Vec<BatchSource> = {
            let index = self.index.read();
            let extents = index.extents.iter().filter(|extent| extent.max_timestamp_ms >= timestamp_ms);
            let runs = index.runs.iter().filter(|run| run.max_timestamp_ms >= timestamp_ms);
            extents.map(|extent| BatchSource::Extent(*extent)).chain(runs.map(|run| BatchSource::Run(*run))).collect()
        };
        for source in candidates {
            let found = match source {
                BatchSource::Run(run) => {
                    let (bytes, _) = self.read_run(store, &run, run.base)?;
                    self.first_at(bytes, start, timestamp_ms, limits)?
                }
                BatchSource::Extent(extent) => {
                    let mut found = None;
                    let segment = store.registry().segment_of(&extent)?;
                    for base in segment.blocks_at(&extent, start, timestamp_ms) {
                        let (bytes, _) = self.read_extent(store, &extent, base, 0)?;
                        found = self.first_at(bytes, start, timestamp_ms, limits)?;
                        if found.is_some() {
                            break;
                        }
                    }
                    found
                }
            };
            if let Some(offset) = found {
                return Ok(offset.min(end));
            }
        }
        Ok(end)
    }

    fn first_at(
        &self,
        batches: Bytes,
        start: Offset,
        timestamp_ms: i64,
        limits: &Limits,
    ) -> Result<Option<Offset>, ReadError> {
        for batch in split_batches(batches) {
            let batch = batch.map_err(|source| self.corrupt(source))?;
            if batch.max_timestamp_ms() < timestamp_ms || batch.next_offset() <= start.get() {
                continue;
            }
            let found = first_at(&batch, start, timestamp_ms, limits).map_err(|source| self.corrupt(source))?;
            if let Some(offset) = found.and_then(Offset::new) {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }
}

/// Why a read failed.
enum ReadError {
    /// The records have been moved; the read can be retried.
    Moved,
    Broker(BrokerError),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Moved => Self::Moved,
            other => Self::Broker(other.into()),
        }
    }
}

impl From<BrokerError> for ReadError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

fn first_at(
    batch: &RecordBatch,
    start: Offset,
    timestamp_ms: i64,
    limits: &Limits,
) -> Result<Option<i64>, millstream_record::BatchError> {
    for record in batch.records(limits)?.iter() {
        let record = record?;
        if record.timestamp_ms >= timestamp_ms && record.offset >= start.get() {
            return Ok(Some(record.offset));
        }
    }
    Ok(None)
}

enum Took {
    Batches(Batches),
    /// There is a batch of the wanted range, but it does not fit.
    TooLarge,
    /// There is no batch of the wanted range.
    Nothing,
}

struct Batches {
    bytes: Bytes,
    /// The offset after the last batch.
    next: Offset,
    /// Whether no batch of the wanted range follows.
    all: bool,
}

/// Slices the batches that hold `wanted` out of `batches`, which are back to back. Takes up to `bytes_left` bytes, but at
/// least one batch if `at_least_one` is set.
fn take_batches(
    batches: &Bytes,
    wanted: Range<Offset>,
    bytes_left: usize,
    at_least_one: bool,
) -> Result<Took, millstream_record::BatchError> {
    let mut begin = None;
    let mut at = 0;
    let mut next = wanted.start;
    let mut all = true;
    while at + BATCH_HEADER_BYTES <= batches.len() {
        let header = BatchHeader::parse(&batches[at..])?;
        if header.base_offset >= wanted.end.get() {
            break;
        }
        let batch_end = at + header.batch_bytes;
        let next_offset = header.next_offset();
        if next_offset > wanted.start.get() {
            let begin = *begin.get_or_insert(at);
            let first = at == begin && at_least_one;
            if batch_end - begin > bytes_left && !first {
                all = false;
                break;
            }
            next = Offset::known(next_offset);
        }
        at = batch_end;
    }
    Ok(match begin {
        None => Took::Nothing,
        Some(begin) if at > begin => Took::Batches(Batches { bytes: batches.slice(begin..at), next, all }),
        Some(_) => Took::TooLarge,
    })
}
