//! A disk that tells a test of each call before it is made, by the thread that makes it. The test may fail the call,
//! let it wait, or panic in it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use millstream_broker::store::{StorageBackend, StoreOptions};

pub use crate::disk::Call;

type Hook = dyn Fn(&Path, Call) -> io::Result<()> + Send + Sync;

/// A store on a disk that calls `hook` with the file's path before each call.
pub fn options(hook: impl Fn(&Path, Call) -> io::Result<()> + Send + Sync + 'static) -> StoreOptions {
    let hook: Arc<Hook> = Arc::new(hook);
    let wrap = move |path: &Path, disk: Box<dyn StorageBackend>| -> Box<dyn StorageBackend> {
        Box::new(HookedFile { path: path.into(), disk, hook: hook.clone() })
    };
    StoreOptions { wrap: Some(Arc::new(wrap)), ..StoreOptions::default() }
}

/// Whether this is the store's thread of that name.
pub fn is_thread(name: &str) -> bool {
    std::thread::current().name() == Some(name)
}

struct HookedFile {
    path: Box<Path>,
    disk: Box<dyn StorageBackend>,
    hook: Arc<Hook>,
}

impl HookedFile {
    fn before(&self, call: Call) -> io::Result<()> {
        (self.hook)(&self.path, call)
    }
}

impl std::fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HookedFile({})", self.path.display())
    }
}

impl StorageBackend for HookedFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.before(Call::Read)?;
        self.disk.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.before(Call::SetLen)?;
        self.disk.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.before(Call::Sync)?;
        self.disk.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.before(Call::Write)?;
        self.disk.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.disk.close()
    }
}
