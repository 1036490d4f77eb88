//! Limits on the resources of guests, and the ticker that enforces deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::Thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmtime::ResourceLimiter;

/// Limits of a stage's guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CallLimits {
    /// Maximum duration of a call. A batch has about a megabyte, so a second is about a microsecond per byte.
    pub call_deadline_ms: u64,
    /// Maximum linear memory of an instance, in bytes.
    pub memory_bytes_max: usize,
    /// Maximum size of the result of one call, over all columns, in bytes.
    pub output_bytes_max: usize,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self { call_deadline_ms: 1_000, memory_bytes_max: 64 << 20, output_bytes_max: 16 << 20 }
    }
}

/// Maximum number of table elements of an instance, which are function pointers. Large Rust programs have some
/// thousands.
const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Maximum number of instances, memories and tables of a component, which is a core module and its adapters.
const PARTS_MAX: usize = 16;

/// Limits the memory of an instance, and remembers whether the limit was reached.
#[derive(Debug)]
pub(super) struct MemoryLimiter {
    pub(super) bytes_max: usize,
    pub(super) bytes: usize,
    pub(super) was_hit: bool,
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let all = self.bytes - current.min(self.bytes) + desired;
        if all > self.bytes_max {
            self.was_hit = true;
            return Ok(false);
        }
        self.bytes = all;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

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
