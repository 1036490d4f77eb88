//! Reading several partitions with a long poll, which waits until enough data is available or the time is up.

use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::log::reader::{ReadRange, Slice, View};
use crate::log::readers::giving_way;
use crate::store::place::Offset;

/// Maximum duration of a long poll.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// A fetch request: what to read, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// The partitions, and what to read of each.
    pub from: Vec<FetchFrom>,
    /// Size of the available batches, in bytes, at which the fetch returns without waiting any longer.
    pub bytes_min: usize,
    /// Maximum total size of the batches of all partitions, in bytes. The first batch is returned even if it is larger.
    pub bytes_max: usize,
    /// Time after which the fetch returns whatever is available.
    pub wait_max: Duration,
}

/// One partition of a [`Fetch`].
#[derive(Clone, Debug)]
pub struct FetchFrom {
    /// The partition.
    pub partition: Arc<Partition>,
    /// Offset of the first record to read.
    pub offset: Offset,
    /// Batches whose first offset is at or after this are not read; `None` stands for the end of the view.
    pub until: Option<Offset>,
    /// Maximum total size of the batches of this partition, in bytes, in addition to [`Fetch::bytes_max`]. The first batch
    /// of a fetch is returned even if it is larger.
    pub bytes_max: usize,
    /// Which batches are read.
    pub view: View,
}

/// The result of a [`Fetch`] for one partition.
#[derive(Debug)]
pub struct Fetched {
    /// The partition.
    pub partition: Arc<Partition>,
    /// The records that were read, or why the partition could not be read.
    pub slice: Result<Slice, BrokerError>,
}

impl FetchFrom {
    /// Returns whether records to be read follow those of `slice`.
    fn has_more(&self, slice: &Result<Slice, BrokerError>) -> bool {
        slice.as_ref().is_ok_and(|slice| slice.next < self.until.unwrap_or(slice.end).min(slice.end))
    }
}

impl Broker {
    /// Executes a [`Fetch`]. The result has an empty slice for each partition without new records.
    pub async fn fetch(&self, fetch: &Fetch) -> Vec<Fetched> {
        let deadline = Instant::now() + fetch.wait_max;
        // Subscribes before reading, so that a commit in between wakes this task.
        let mut ends: Vec<_> = fetch.from.iter().map(|from| from.partition.watch_end()).collect();
        let mut fetched = self.read_all(fetch).await;
        loop {
            let bytes: usize = fetched.iter().filter_map(|f| f.slice.as_ref().ok()).map(Slice::bytes).sum();
            // A hole up to the end, left by compaction or a repair, is also a reason to return: the reader can move
            // past it.
            let is_passed =
                |(f, from): (&Fetched, &FetchFrom)| f.slice.as_ref().is_ok_and(|slice| slice.next > from.offset);
            let only_holes = bytes == 0 && fetched.iter().zip(&fetch.from).any(is_passed);
            let failed = fetched.iter().any(|f| f.slice.is_err());
            // More records would not fit, however long the fetch waits.
            let is_full = bytes > 0 && fetched.iter().zip(&fetch.from).any(|(f, from)| from.has_more(&f.slice));
            let is_complete = bytes >= fetch.bytes_min || is_full || only_holes || failed;
            if is_complete || ends.is_empty() || Instant::now() >= deadline {
                return fetched;
            }
            let changed = select_all(ends.iter_mut().map(|end| Box::pin(end.changed())));
            // `changed` takes note of the end that it found changed, so its index is what is left of that.
            let woken = tokio::time::timeout_at(deadline, changed).await.ok().map(|(_, index, _)| index);
            self.read_changed(fetch, &mut ends, woken, &mut fetched).await;
            if woken.is_none() {
                return fetched;
            }
        }
    }

    /// Reads again the partitions whose ends have moved, `woken` among them, each with the room that the others leave.
    async fn read_changed(
        &self,
        fetch: &Fetch,
        ends: &mut [watch::Receiver<Offset>],
        woken: Option<usize>,
        fetched: &mut [Fetched],
    ) {
        let bytes = |fetched: &Fetched| fetched.slice.as_ref().map_or(0, Slice::bytes);
        let mut all_bytes: usize = fetched.iter().map(bytes).sum();
        for (index, ((from, end), fetched)) in fetch.from.iter().zip(ends).zip(fetched).enumerate() {
            // An error is a sender that is gone, which a read reports.
            if woken == Some(index) || end.has_changed().unwrap_or(true) {
                end.mark_unchanged();
                all_bytes -= bytes(fetched);
                let bytes_left = fetch.bytes_max.saturating_sub(all_bytes);
                fetched.slice = self.read_within(from, bytes_left, fetch.bytes_max).await;
                all_bytes += bytes(fetched);
            }
        }
    }

    /// Reads all partitions, in their order, until the answer is full. Once the next batch of a partition did not fit,
    /// the partitions after it are only read from memory: reading a block from disk only to find that its batches are too
    /// large would cost more than reading the records.
    async fn read_all(&self, fetch: &Fetch) -> Vec<Fetched> {
        let mut bytes_left = fetch.bytes_max;
        let mut is_full = false;
        let mut fetched = Vec::with_capacity(fetch.from.len());
        for from in &fetch.from {
            let slice = if is_full {
                self.read_rest(from, bytes_left)
            } else {
                self.read_within(from, bytes_left, fetch.bytes_max).await
            };
            // Where the limit of the partition ended the read, the next partitions may still have room.
            let ended_by_all = bytes_left <= from.bytes_max;
            bytes_left = bytes_left.saturating_sub(slice.as_ref().map_or(0, Slice::bytes));
            is_full |= ended_by_all && bytes_left < fetch.bytes_max && from.has_more(&slice);
            fetched.push(Fetched { partition: from.partition.clone(), slice });
        }
        fetched
    }

    /// Reads one partition of a fetch whose answer may take only `bytes_left` more, if its records are in memory.
    fn read_rest(&self, from: &FetchFrom, bytes_left: usize) -> Result<Slice, BrokerError> {
        let FetchFrom { partition, offset, until, view, .. } = from;
        let bytes_max = bytes_left.min(from.bytes_max);
        let range = ReadRange { from: *offset, until: *until, bytes_max, one_at_least: false };
        let read = if bytes_max == 0 { None } else { self.read_in_memory(partition, range, *view)? };
        Ok(read.unwrap_or_else(|| nothing(from)))
    }

    /// Reads one partition of a fetch whose answer may take `bytes_left` more of `all_bytes_max`.
    async fn read_within(
        &self,
        from: &FetchFrom,
        bytes_left: usize,
        all_bytes_max: usize,
    ) -> Result<Slice, BrokerError> {
        let FetchFrom { partition, offset, until, view, .. } = from;
        let bytes_max = bytes_left.min(from.bytes_max);
        if bytes_max == 0 {
            return Ok(nothing(from));
        }
        // The whole answer holds at least one batch, however large, unless the limit is 0.
        let one_at_least = bytes_left == all_bytes_max;
        let range = ReadRange { from: *offset, until: *until, bytes_max, one_at_least };
        self.read_as(partition, range, *view).await
    }

    /// Reads one partition, from memory if possible, otherwise on a thread that may block.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`], [`BrokerError::UnknownTopic`] if the topic was deleted,
    /// [`BrokerError::Damaged`], [`BrokerError::UnreadableRecords`] or [`BrokerError::ShuttingDown`].
    pub async fn read(&self, partition: &Arc<Partition>, range: ReadRange) -> Result<Slice, BrokerError> {
        self.read_as(partition, range, View::Committed).await
    }

    /// As [`Broker::read`], in another view.
    async fn read_as(&self, partition: &Arc<Partition>, range: ReadRange, view: View) -> Result<Slice, BrokerError> {
        if let Some(slice) = self.read_in_memory(partition, range, view)? {
            return Ok(slice);
        }
        let (store, of) = (self.store().clone(), partition.clone());
        let bytes = |read: &Result<Slice, BrokerError>| read.as_ref().map_or(0, Slice::bytes);
        let read = self.readers().run(move || giving_way(&store, || of.read_as(&store, range, view), bytes)).await;
        let (read, rest) = read.unwrap_or((Err(BrokerError::ShuttingDown), Duration::ZERO));
        // This does not pause on the reader thread, because other reads may use that thread meanwhile.
        if rest > Duration::ZERO {
            tokio::time::sleep(rest).await;
        }
        match read {
            Err(BrokerError::Unreadable(source)) => {
                let (partition, offset) = (partition.name().clone(), range.from);
                tracing::error!(%partition, %offset, error = %source, "records cannot be read");
                Err(BrokerError::UnreadableRecords { partition, offset, source })
            }
            read => read,
        }
    }

    /// Reads one partition, or returns `None` if a record is not in memory.
    fn read_in_memory(
        &self,
        partition: &Arc<Partition>,
        range: ReadRange,
        view: View,
    ) -> Result<Option<Slice>, BrokerError> {
        if partition.is_deleted() {
            let topic = partition.name().topic.as_str().to_owned();
            return Err(BrokerError::UnknownTopic { topic });
        }
        partition.read_in_memory(self.store(), range, view)
    }
}

/// Returns an answer without records.
fn nothing(from: &FetchFrom) -> Slice {
    let FetchFrom { partition, offset, view, .. } = from;
    let end = if *view == View::All { partition.end() } else { partition.stable_end() };
    Slice { runs: Vec::new(), next: *offset, start: partition.start(), end }
}
