//! The threads that read what is not in memory. They have a lower priority than all others: who catches up with
//! old records gets what the processors have left, and slows nobody who produces or reads what is new.

use std::cell::RefCell;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

use crate::store::pause::Pause;
use crate::store::{Store, StoreError};

/// Reads at a time; more of them wait for each other. The threads are made when they are needed.
const THREADS_MAX: usize = 32;

/// What is added to the threads' nice value (`nice(2)`): where processors are short they get a tenth of what others
/// do.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Runs work that blocks on reading.
pub(crate) struct Readers(Option<Runtime>);

impl Readers {
    pub(crate) fn new() -> Result<Self, StoreError> {
        // Its blocking threads alone are used.
        let runtime = Builder::new_current_thread()
            .thread_name("reader")
            .max_blocking_threads(THREADS_MAX)
            .thread_keep_alive(Duration::from_secs(10))
            .on_thread_start(lower_priority)
            .build();
        let runtime = runtime.map_err(|source| StoreError::Stopped(format!("no threads: {source}")))?;
        Ok(Self(Some(runtime)))
    }

    /// Begins a read; who waits for it may do so on any runtime. One that waits for its turn does not begin any more once
    /// the answer is dropped.
    pub(crate) fn run<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> AbortOnDropHandle<T> {
        let runtime = self.0.as_ref().expect("it is there until it is dropped");
        AbortOnDropHandle::new(runtime.spawn_blocking(read))
    }
}

thread_local! {
    static PAUSE: RefCell<Option<Pause>> = const { RefCell::new(None) };
}

/// Reads records on a thread of [`Readers`]. Returns what it read, and how long the answer is to wait, as [`Pause`] has
/// it: commits find the disk free half of the time that one reader takes. `bytes` says how much was read.
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
        // Reads that are under way keep the store open until they end.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Of the thread that calls; elsewhere than on Linux it would be the whole process's.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::warn!(%error, "who reads old records has the priority of everything else");
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
        // It waits behind the others: they would have begun before it.
        assert_eq!(wanted.await.unwrap(), 0);
        for read in busy {
            read.await.unwrap();
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }
}
