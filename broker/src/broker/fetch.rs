//! Reading several partitions with a long poll: wait until enough is there, or time is up.

use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::log::reader::{ReadRange, Slice};
use crate::log::readers::giving_way;
use crate::store::place::Offset;

/// The longest long poll.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// What to read and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Partitions, and what to read of each.
    pub from: Vec<FetchFrom>,
    /// Answer when this many bytes are there.
    pub bytes_min: usize,
    /// Of all partitions together; at least one batch is returned all the same.
    pub bytes_max: usize,
    /// Answer with what is there after this time.
    pub wait_max: Duration,
}

/// One partition of a [`Fetch`].
#[derive(Clone, Debug)]
pub struct FetchFrom {
    /// Which one.
    pub partition: Arc<Partition>,
    /// The first record wanted.
    pub offset: Offset,
    /// Batches that begin here or later are not wanted.
    pub until: Option<Offset>,
}

/// What one partition had.
#[derive(Debug)]
pub struct Fetched {
    /// Which one.
    pub partition: Arc<Partition>,
    /// Its records, or why it could not be read.
    pub slice: Result<Slice, BrokerError>,
}

impl Broker {
    /// Reads as [`Fetch`] says. Partitions with nothing new are in the answer with an empty slice.
    pub async fn fetch(&self, fetch: &Fetch) -> Vec<Fetched> {
        let deadline = Instant::now() + fetch.wait_max;
        loop {
            // Subscribed before reading, so that what is committed in between wakes us.
            let mut ends: Vec<_> = fetch.from.iter().map(|from| from.partition.watch_end()).collect();
            let fetched = self.read_all(fetch).await;
            let bytes: usize = fetched.iter().filter_map(|f| f.slice.as_ref().ok()).map(Slice::bytes).sum();
            // A hole to the end, left by compaction or a repair, is something to tell too.
            let is_passed =
                |(f, from): (&Fetched, &FetchFrom)| f.slice.as_ref().is_ok_and(|slice| slice.next > from.offset);
            let only_holes = bytes == 0 && fetched.iter().zip(&fetch.from).any(is_passed);
            let failed = fetched.iter().any(|f| f.slice.is_err());
            if bytes >= fetch.bytes_min || only_holes || failed || ends.is_empty() || Instant::now() >= deadline {
                return fetched;
            }
            let changed = select_all(ends.iter_mut().map(|end| Box::pin(end.changed())));
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return self.read_all(fetch).await;
            }
        }
    }

    async fn read_all(&self, fetch: &Fetch) -> Vec<Fetched> {
        let mut room = fetch.bytes_max;
        let mut fetched = Vec::with_capacity(fetch.from.len());
        for FetchFrom { partition, offset, until } in &fetch.from {
            // The answer as a whole has one batch, however large; one with a room of 0 has none.
            let one_at_least = room == fetch.bytes_max && room > 0;
            let slice = if room == 0 {
                Ok(Slice { runs: Vec::new(), next: *offset, start: partition.start(), end: partition.end() })
            } else {
                self.read(partition, ReadRange { from: *offset, until: *until, bytes_max: room, one_at_least }).await
            };
            room = room.saturating_sub(slice.as_ref().map_or(0, Slice::bytes));
            fetched.push(Fetched { partition: partition.clone(), slice });
        }
        fetched
    }

    /// Reads one partition, from memory where it can, else on a thread that may block.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`], [`BrokerError::UnknownTopic`] for one that was deleted,
    /// [`BrokerError::UnreadableRecords`].
    pub async fn read(&self, partition: &Arc<Partition>, range: ReadRange) -> Result<Slice, BrokerError> {
        if partition.is_deleted() {
            let topic = partition.name().topic.as_str().to_owned();
            return Err(BrokerError::UnknownTopic { topic });
        }
        if let Some(slice) = partition.read_in_memory(self.store(), range)? {
            return Ok(slice);
        }
        let (store, of) = (self.store().clone(), partition.clone());
        let bytes = |read: &Result<Slice, BrokerError>| read.as_ref().map_or(0, Slice::bytes);
        let read = self.readers().run(move || giving_way(&store, || of.read(&store, range), bytes)).await;
        let (read, rest) = read.unwrap_or((Err(BrokerError::ShuttingDown), Duration::ZERO));
        // Not on the thread that read: others may read on it.
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
}
