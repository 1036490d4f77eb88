//! The outcome of sending a record. All records of a batch have the same outcome, which their deliveries share.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::ClientError;

/// Future that resolves to the stored record's position, or to the error. Dropping it has no effect on the record,
/// which is sent anyway.
#[derive(Debug)]
#[must_use = "a delivery reports whether the record was stored; drop it only if you check the result of flush instead"]
pub struct Delivery {
    batch: Arc<Batch>,
    index: u32,
    timestamp_ms: i64,
    /// Index of this delivery's waker, once it has been polled.
    waker: Option<u32>,
}

/// The position at which a record was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// Offset of the record in the partition.
    pub offset: u64,
    /// Timestamp, in ms since the epoch.
    pub timestamp_ms: i64,
}

impl Delivery {
    pub(super) fn new(batch: Arc<Batch>, index: u32, timestamp_ms: i64) -> Self {
        Self { batch, index, timestamp_ms, waker: None }
    }

    /// Returns the outcome if it is known.
    pub fn outcome(&self) -> Option<Result<RecordMetadata, ClientError>> {
        let base_offset = self.batch.outcome.get()?;
        Some(base_offset.clone().map(|base_offset| RecordMetadata {
            topic: self.batch.topic.clone(),
            partition: self.batch.partition,
            offset: base_offset + u64::from(self.index),
            timestamp_ms: self.timestamp_ms,
        }))
    }

    /// Returns the partition that the record is sent to.
    pub fn partition(&self) -> u32 {
        self.batch.partition
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.outcome() {
            return Poll::Ready(outcome);
        }
        let this = &mut *self;
        let mut wakers = this.batch.wakers.lock();
        // `complete` sets the outcome before it takes the wakers. If the outcome is not set here, the waker is woken
        // later.
        if this.batch.outcome.get().is_none() {
            match this.waker.and_then(|at| wakers.get_mut(at as usize)) {
                Some(waker) => waker.clone_from(context.waker()),
                None => {
                    this.waker = u32::try_from(wakers.len()).ok();
                    wakers.push(context.waker().clone());
                }
            }
            return Poll::Pending;
        }
        drop(wakers);
        match self.outcome() {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }
}

/// The outcome that the records of a batch share.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    pub(super) opened_at: Instant,
    /// The base offset or the error, once it is known.
    outcome: OnceLock<Result<u64, ClientError>>,
    wakers: Mutex<Vec<Waker>>,
    sealed: AtomicBool,
}

impl Batch {
    pub(super) fn open(topic: Arc<str>, partition: u32) -> Arc<Self> {
        let opened_at = Instant::now();
        let (outcome, wakers, sealed) = (OnceLock::new(), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { topic, partition, opened_at, outcome, wakers, sealed })
    }

    /// Marks the batch as accepting no more records.
    pub(super) fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Relaxed)
    }

    /// Sets the outcome and wakes the deliveries. Only the first outcome counts.
    pub(super) fn complete(&self, outcome: Result<u64, ClientError>) {
        let _ = self.outcome.set(outcome);
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_completes_all_of_its_deliveries() {
        let batch = Batch::open("t".into(), 3);
        let waiting: Vec<_> =
            (0..3).map(|index| tokio::spawn(Delivery::new(batch.clone(), index, 7 + i64::from(index)))).collect();
        tokio::task::yield_now().await;
        batch.complete(Ok(100));
        for (index, delivery) in waiting.into_iter().enumerate() {
            let stored = delivery.await.unwrap().unwrap();
            assert_eq!(
                (stored.partition, stored.offset, stored.timestamp_ms),
                (3, 100 + index as u64, 7 + index as i64)
            );
        }
        assert_eq!(Delivery::new(batch, 5, 0).await.unwrap().offset, 105);
    }

    #[tokio::test]
    async fn polling_again_does_not_add_a_waker() {
        let batch = Batch::open("t".into(), 0);
        let mut delivery = Delivery::new(batch.clone(), 0, 0);
        for _ in 0..10 {
            assert!(futures::poll!(&mut delivery).is_pending());
        }
        assert_eq!(batch.wakers.lock().len(), 1);
        batch.complete(Err(ClientError::Closed { what: "producer" }));
        assert!(delivery.await.is_err());
    }
}
