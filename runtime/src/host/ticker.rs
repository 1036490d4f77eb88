//! The ticker, which enforces the deadlines of calls. This file must not know what is called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// Interval of the ticks by which deadlines are measured.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Number of ticks without a call after which the ticker sleeps: an idle server uses no CPU, and a busy server need not
/// wake the ticker for every call.
const IDLE_TICKS_MAX: u32 = 100;

/// Advances the engine's epoch while calls are running.
#[derive(Debug)]
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    calls: AtomicU32,
    /// Whether a call began since the last tick.
    recently: AtomicBool,
    asleep: AtomicBool,
    stop: AtomicBool,
}

impl Ticker {
    pub(super) fn start(engine: wasmtime::Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            calls: AtomicU32::new(0),
            recently: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let handle = std::thread::Builder::new().name("epoch".into()).spawn(move || of_thread.tick(&engine))?;
        Ok(Self { thread: handle.thread().clone(), shared })
    }

    /// Keeps the ticker running at least until the guard is dropped.
    pub(super) fn during_call(&self) -> DuringCall<'_> {
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        self.shared.recently.store(true, Ordering::SeqCst);
        if self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        DuringCall(&self.shared)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

pub(super) struct DuringCall<'a>(&'a Shared);

impl Drop for DuringCall<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn tick(&self, engine: &wasmtime::Engine) {
        let mut idle = 0;
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(TICK);
            engine.increment_epoch();
            let busy = self.calls.load(Ordering::SeqCst) > 0 || self.recently.swap(false, Ordering::SeqCst);
            idle = if busy { 0 } else { idle + 1 };
            if idle > IDLE_TICKS_MAX {
                self.sleep();
                idle = 0;
            }
        }
    }

    fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        // A call that began before `asleep` was set did not wake this thread, so `calls` is checked as well.
        while self.calls.load(Ordering::SeqCst) == 0
            && self.asleep.load(Ordering::SeqCst)
            && !self.stop.load(Ordering::SeqCst)
        {
            std::thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}
