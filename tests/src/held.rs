//! A disk that a test can stop in the middle of an operation.

use std::sync::Arc;

use millstream_broker::store::{StorageBackend, StoreFile, StoreOptions};
use parking_lot::{Condvar, Mutex};

/// A disk whose syncs block while it is held.
#[derive(Clone, Debug, Default)]
pub struct Held {
    state: Arc<(Mutex<State>, Condvar)>,
    thread: Option<&'static str>,
}

#[derive(Debug, Default)]
struct State {
    held: bool,
    /// Number of syncs that are waiting.
    waiting: usize,
}

impl Held {
    /// Returns a disk that blocks only the threads with this name.
    pub fn of_thread(name: &'static str) -> Self {
        Self { thread: Some(name), ..Self::default() }
    }

    /// Blocks syncs from now on.
    pub fn hold(&self) {
        self.state.0.lock().held = true;
    }

    /// Lets syncs proceed, including those that are waiting.
    pub fn release(&self) {
        self.state.0.lock().held = false;
        self.state.1.notify_all();
    }

    /// Returns whether a sync is waiting.
    pub fn is_waited_for(&self) -> bool {
        self.state.0.lock().waiting > 0
    }

    fn wait(&self) {
        if self.thread.is_some_and(|name| std::thread::current().name() != Some(name)) {
            return;
        }
        let mut state = self.state.0.lock();
        state.waiting += 1;
        self.state.1.wait_while(&mut state, |state| state.held);
        state.waiting -= 1;
    }

    /// Returns options for a store on this disk.
    pub fn options(&self) -> StoreOptions {
        let held = self.clone();
        StoreOptions {
            wrap: Some(Arc::new(move |_, disk| Box::new(HeldDisk { disk, held: held.clone() }))),
            ..StoreOptions::default()
        }
    }
}

struct HeldDisk {
    disk: Box<dyn StoreFile>,
    held: Held,
}

impl std::fmt::Debug for HeldDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldDisk")
    }
}

impl StoreFile for HeldDisk {}

impl StorageBackend for HeldDisk {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.disk.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.disk.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.held.wait();
        self.disk.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.disk.write(offset, data)
    }
    fn close(&self) -> Result<(), std::io::Error> {
        self.disk.close()
    }
}
