//! The queue of the committer. Requests are processed in order, and each of them is answered.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::commit::{Commit, Committed, Upkeep};
use crate::error::BrokerError;
use crate::store::{Store, StoreError};

/// A future of the answer to a queued commit. Dropping it does not cancel the commit.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Committed, BrokerError>>);

impl Future for Receipt {
    type Output = Result<Committed, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(BrokerError::ShuttingDown)))
    }
}

/// Sends the answer to a commit. If the committer panics, the commits that it was processing are answered with that
/// error.
pub(super) struct Answer(Option<oneshot::Sender<Result<Committed, BrokerError>>>);

impl Answer {
    pub(super) fn send(mut self, answer: Result<Committed, BrokerError>) {
        if let Some(sender) = self.0.take() {
            // The requester may have disconnected. The commit remains valid.
            let _ = sender.send(answer);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take().filter(|_| std::thread::panicking()) {
            let _ = sender.send(Err(BrokerError::Storage(Arc::new(StoreError::panicked("the committer")))));
        }
    }
}

/// Hands commits to the committer, in order.
#[derive(Clone)]
pub(crate) struct CommitQueue {
    requests: mpsc::UnboundedSender<Request>,
    store: Arc<Store>,
}

impl CommitQueue {
    /// Creates the queue of the committer of `store`.
    pub(super) fn new(requests: mpsc::UnboundedSender<Request>, store: Arc<Store>) -> Self {
        Self { requests, store }
    }

    /// Queues a commit. `permit` is held until the commit is answered, which bounds the size of the queue.
    pub(crate) fn push(&self, commit: Commit, permit: Option<OwnedSemaphorePermit>) -> Receipt {
        self.send(commit, None, permit)
    }

    /// Queues upkeep.
    pub(crate) fn push_upkeep(&self, upkeep: Upkeep) -> Receipt {
        self.send(Commit::default(), Some(Box::new(upkeep)), None)
    }

    /// Returns a handle that does not keep the committer running.
    pub(crate) fn downgrade(&self) -> WeakCommitQueue {
        WeakCommitQueue { requests: self.requests.downgrade(), store: self.store.clone() }
    }

    fn send(&self, commit: Commit, upkeep: Option<Box<Upkeep>>, permit: Option<OwnedSemaphorePermit>) -> Receipt {
        let (answer, receipt) = oneshot::channel();
        let request = Request { commit, upkeep, answer: Answer(Some(answer)), _permit: permit };
        if let Err(mpsc::error::SendError(request)) = self.requests.send(request) {
            // The committer ended although the queue still exists, so it must have panicked.
            let failure = self.store.failure().map_or(BrokerError::ShuttingDown, BrokerError::Storage);
            request.answer.send(Err(failure));
        }
        Receipt(receipt)
    }
}

/// Why one of the store's own threads did not finish its work.
pub(super) enum Ended {
    /// The store is closing. The data is unchanged.
    Closing,
    Failed(StoreError),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// A handle to the queue for the threads that work for the committer and end with it.
#[derive(Clone)]
pub(crate) struct WeakCommitQueue {
    requests: mpsc::WeakUnboundedSender<Request>,
    store: Arc<Store>,
}

impl WeakCommitQueue {
    /// Queues upkeep. Returns `None` once the committer is ending. Upkeep does not wait for a permit, because writers
    /// may be waiting for the upkeep.
    pub(super) fn push_upkeep(&self, upkeep: Upkeep) -> Option<Receipt> {
        let queue = CommitQueue { requests: self.requests.upgrade()?, store: self.store.clone() };
        Some(queue.push_upkeep(upkeep))
    }

    /// Queues commits, in order.
    pub(super) fn push_each(&self, commits: Vec<Commit>) -> Result<Vec<Receipt>, Ended> {
        let requests = self.requests.upgrade().ok_or(Ended::Closing)?;
        let queue = CommitQueue { requests, store: self.store.clone() };
        Ok(commits.into_iter().map(|commit| queue.push(commit, None)).collect())
    }

    /// Commits upkeep, blocking until it is done. Then deletes the files of segments that are no longer needed.
    pub(super) fn commit_upkeep(&self, upkeep: Upkeep) -> Result<(), Ended> {
        let receipt = self.push_upkeep(upkeep).ok_or(Ended::Closing)?;
        // If the committer ended, it reports the reason itself.
        let committed = receipt.0.blocking_recv().ok().and_then(Result::ok);
        self.store.registry().unlink_removed();
        committed.map(drop).ok_or(Ended::Closing)
    }

    /// Returns whether the committer is ending.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.strong_count() == 0
    }

    /// Fails the store and wakes the committer, which reports the failure to all waiting requests.
    pub(super) fn fail(&self, error: StoreError) {
        self.store.fail(Arc::new(error));
        drop(self.push_upkeep(Upkeep::default()));
    }

    /// Returns a guard that fails the store if the thread that holds it panics, because no other thread can do its
    /// work.
    pub(super) fn fail_on_panic(&self, thread: &'static str) -> FailOnPanic<'_> {
        FailOnPanic { queue: self, thread }
    }
}

/// Blocks until each of these is answered. A refused commit is not an error, because the reason for it no longer
/// applies.
pub(super) fn wait_for_each(receipts: Vec<Receipt>) -> Result<(), Ended> {
    for Receipt(receipt) in receipts {
        match receipt.blocking_recv() {
            Ok(Err(BrokerError::Storage(_) | BrokerError::ShuttingDown)) | Err(_) => return Err(Ended::Closing),
            Ok(Ok(_) | Err(_)) => {}
        }
    }
    Ok(())
}

/// See [`WeakCommitQueue::fail_on_panic`].
pub(super) struct FailOnPanic<'a> {
    queue: &'a WeakCommitQueue,
    thread: &'static str,
}

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.queue.fail(StoreError::panicked(self.thread));
        }
    }
}

/// A commit in the queue.
pub(super) struct Request {
    pub(super) commit: Commit,
    pub(super) upkeep: Option<Box<Upkeep>>,
    pub(super) answer: Answer,
    pub(super) _permit: Option<OwnedSemaphorePermit>,
}

impl Request {
    pub(super) fn is_of_sealer(&self) -> bool {
        self.upkeep.as_ref().is_some_and(|upkeep| upkeep.is_of_sealer)
    }
}
