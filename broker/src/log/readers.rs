//! The threads that read records which are not in memory. They have a lower priority than all other threads: consumers
//! that catch up with old records get the remaining processor time, and do not slow down producers or consumers of new
//! records.

use std::cell::RefCell;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

use crate::store::pause::Pause;
use crate::store::{Store, StoreError};

/// Maximum number of concurrent reads; further reads are queued. Threads are started on demand.
const THREADS_MAX: usize = 32;

/// The increment of the threads' nice value (`nice(2)`). When processor time is short, they get a tenth of what other
/// threads get.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Runs blocking reads on a pool of threads.
pub(crate) struct Readers(Option<Runtime>);

impl Readers {
    pub(crate) fn new() -> Result<Self, StoreError> {
        // Only the runtime's pool of blocking threads is used.
        let runtime = Builder::new_current_thread()
            .thread_name("reader")
            .max_blocking_threads(THREADS_MAX)
            .thread_keep_alive(Duration::from_secs(10))
            .on_thread_start(lower_priority)
            .build();
        let runtime =
            runtime.map_err(|source| StoreError::Stopped(format!("cannot start the reader threads: {source}")))?;
        Ok(Self(Some(runtime)))
    }

    /// Queues a read and returns a handle that can be awaited on any runtime. If the handle is dropped before the read
    /// has begun, the read is cancelled.
    pub(crate) fn run<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> AbortOnDropHandle<T> {
        let runtime = self.0.as_ref().expect("the runtime is present until drop");
        AbortOnDropHandle::new(runtime.spawn_blocking(read))
    }
}

thread_local! {
    static PAUSE: RefCell<Option<Pause>> = const { RefCell::new(None) };
}

/// Runs `read` on a thread of [`Readers`]. Returns its result, and how long the answer must be delayed according to
/// [`Pause`], so that a reader leaves the disk free for commits half of the time. `bytes` returns how many bytes were
/// read.
pub(crate) fn giving_way<T>(store: &Store, read: impl FnOnce() -> T, bytes: impl FnOnce(&T) -> usize) -> (T, Duration) {
    PAUSE.with_borrow_mut(|pause| {
        let pause = pause.get_or_insert_with(|| Pause::new(store.commits()));
        pause.resume(store.commits());
        let done = read();
        let rest = pause.after(bytes(&done) as u64, store.commits());
        (done, rest)
    })
}

impl Drop for Readers {
    fn drop(&mut self) {
        // Reads in progress are not waited for. They keep the store open until they end.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lowers the priority of the calling thread. Only done on Linux, because elsewhere it would affect the whole process.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::warn!(%error, "cannot lower the priority of a reader thread; it runs at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_read_that_nobody_waits_for_any_more_does_not_begin() {
        let readers = Readers::new().unwrap();
        let (all_busy, released) = (Arc::new(Barrier::new(THREADS_MAX + 1)), Arc::new(Barrier::new(THREADS_MAX + 1)));
        let busy: Vec<_> = (0..THREADS_MAX)
            .map(|_| {
                let (all_busy, released) = (all_busy.clone(), released.clone());
                readers.run(move || {
                    all_busy.wait();
                    released.wait();
                })
            })
            .collect();
        all_busy.wait();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = |begun: &Arc<AtomicUsize>| {
            let begun = begun.clone();
            move || begun.fetch_add(1, Ordering::Relaxed)
        };
        let abandoned: Vec<_> = (0..1_000).map(|_| readers.run(count(&begun))).collect();
        drop(abandoned);
        let wanted = readers.run(count(&begun));
        released.wait();
        // This read is queued behind the abandoned ones, which would have begun before it.
        assert_eq!(wanted.await.unwrap(), 0);
        for read in busy {
            read.await.unwrap();
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }
}
