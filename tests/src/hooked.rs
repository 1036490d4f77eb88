//! A disk that reports each call to the test before it is made, on the thread that makes it. The test may fail the
//! call, delay it, or panic in it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use millstream_broker::store::{Entry, FileSystem, Lock, Open, StorageBackend, StoreFile, StoreOptions, system_files};

pub use crate::disk::Call;

type Hook = dyn Fn(&Path, Call) -> io::Result<()> + Send + Sync;

/// Returns options for a store on a disk that calls `hook` with the file's path before each call.
pub fn options(hook: impl Fn(&Path, Call) -> io::Result<()> + Send + Sync + 'static) -> StoreOptions {
    let hook: Arc<Hook> = Arc::new(hook);
    let wrap = move |path: &Path, disk: Box<dyn StoreFile>| -> Box<dyn StoreFile> {
        Box::new(HookedFile { path: path.into(), disk, hook: hook.clone() })
    };
    StoreOptions { wrap: Some(Arc::new(wrap)), ..StoreOptions::default() }
}

/// Returns the machine's file system, which calls `removed` with the path of each file before the file is removed.
pub fn telling_of_removals(removed: impl Fn(&Path) + Send + Sync + 'static) -> Arc<dyn FileSystem> {
    Arc::new(TellingFileSystem { system: system_files(), removed: Box::new(removed) })
}

struct TellingFileSystem {
    system: Arc<dyn FileSystem>,
    removed: Box<dyn Fn(&Path) + Send + Sync>,
}

impl std::fmt::Debug for TellingFileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TellingFileSystem")
    }
}

impl FileSystem for TellingFileSystem {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StoreFile>> {
        self.system.open(path, how)
    }
    fn scratch(&self, folder: &Path) -> io::Result<Box<dyn StoreFile>> {
        self.system.scratch(folder)
    }
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        self.system.entry(path)
    }
    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.system.names(folder)
    }
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.system.make_folder(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.system.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        (self.removed)(path);
        self.system.remove(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.system.remove_folder(path)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.system.sync_folder(path)
    }
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Lock> {
        self.system.lock(path, holder)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.system.free_bytes(path)
    }

    fn total_bytes(&self, path: &Path) -> io::Result<u64> {
        self.system.total_bytes(path)
    }
    fn is_mount_point(&self, path: &Path) -> bool {
        self.system.is_mount_point(path)
    }
}

/// Returns whether the current thread is the store's thread with this name.
pub fn is_thread(name: &str) -> bool {
    std::thread::current().name() == Some(name)
}

struct HookedFile {
    path: Box<Path>,
    disk: Box<dyn StoreFile>,
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

impl StoreFile for HookedFile {}

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
