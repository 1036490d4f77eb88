//! A disk that a test stops in the middle of what it does.

use std::sync::Arc;

use millstream_broker::store::{StorageBackend, StoreOptions};
use parking_lot::{Condvar, Mutex};

/// A disk on which nothing gets durable while it is held.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    held: bool,
    /// Syncs that wait.
    waiting: usize,
}

impl Held {
    /// From now on.
    pub fn hold(&self) {
        self.0.0.lock().held = true;
    }

    /// Until now.
    pub fn release(&self) {
        self.0.0.lock().held = false;
        self.0.1.notify_all();
    }

    /// Whether something is to be made durable, and waits.
    pub fn is_waited_for(&self) -> bool {
        self.0.0.lock().waiting > 0
    }

    fn wait(&self) {
        let mut state = self.0.0.lock();
        state.waiting += 1;
        self.0.1.wait_while(&mut state, |state| state.held);
        state.waiting -= 1;
    }

    /// A store on that disk.
    pub fn options(&self) -> StoreOptions {
        let held = self.clone();
        StoreOptions {
            wrap: Some(Arc::new(move |_, disk| Box::new(HeldDisk { disk, held: held.clone() }))),
            ..StoreOptions::default()
        }
    }
}

struct HeldDisk {
    disk: Box<dyn StorageBackend>,
    held: Held,
}

impl std::fmt::Debug for HeldDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldDisk")
    }
}

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
