//! A disk that breaks on purpose: all files of a store stand on it, in memory, and nothing of what they
//! hold is safe until it was synced, nor is a new file's name. It fails or tears a chosen call, delays
//! calls, loses power, runs full. It knows nothing of what the files hold.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millstream_broker::store::{StorageBackend, StoreOptions};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What a disk sector holds, in bytes: a sector is written wholly or not at all.
const SECTOR_BYTES: usize = 512;

/// What a file takes of the disk's room at a time, in bytes.
const PAGE_BYTES: u64 = 4096;

/// What every error of a broken disk says.
pub const BROKEN: &str = "broken on purpose";

/// A folder for a disk's files; in memory where the system has such, for there are many.
///
/// # Panics
/// Where none can be made.
pub fn folder() -> tempfile::TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("a temporary folder can be made")
}

/// A call that changes a file or makes it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Bytes are written.
    Write,
    /// A file becomes longer or shorter.
    SetLen,
    /// What was written becomes durable, or the names of a folder's files do. Where it fails, what was written
    /// is forgotten: a later one makes it no more durable.
    Sync,
}

/// What goes wrong. Calls count from 1, over all files together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The `number`-th call of its kind fails, and all others work: a retry would seem to succeed.
    Fail {
        /// Of this kind.
        call: Call,
        /// Which one.
        number: u64,
    },
    /// The `number`-th write fails after half of it was written.
    Tear {
        /// Which one.
        number: u64,
    },
    /// From the `number`-th call of whatever kind on, nothing works any more. It is as likely to have an
    /// effect as those that were not synced before it.
    PowerOff {
        /// Which one.
        number: u64,
    },
}

/// All files of a store. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, DiskFile>,
    fault: Option<Fault>,
    /// Decides which calls are delayed, if any are.
    delays: Option<StdRng>,
    /// Bytes that all files together can take.
    room_bytes: Option<u64>,
    /// Files below this folder find no room at all.
    full_folder: Option<PathBuf>,
    writes: u64,
    set_lens: u64,
    syncs: u64,
    struck: bool,
}

#[derive(Debug, Default)]
struct DiskFile {
    durable: Vec<u8>,
    cached: Vec<u8>,
    unsynced: Vec<Change>,
    /// It is new, and a power loss may take its name away.
    unnamed: bool,
    /// The pages that take room: a file that only became longer takes none.
    pages: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Disk {
    /// A disk with one fault, or none.
    pub fn new(fault: impl Into<Option<Fault>>) -> Self {
        Self(Arc::new(Mutex::new(State { fault: fault.into(), ..State::default() })))
    }

    /// Delays calls at random, so that threads meet at other places.
    #[must_use]
    pub fn with_delays(self, seed: u64) -> Self {
        self.0.lock().delays = Some(StdRng::seed_from_u64(seed));
        self
    }

    /// Lets all files together take this many bytes from now on, those included that they take already.
    pub fn set_room(&self, room_bytes: u64) {
        self.0.lock().room_bytes = Some(room_bytes);
    }

    /// Lets no file below a folder become larger, or all again.
    pub fn set_full_folder(&self, folder: Option<PathBuf>) {
        self.0.lock().full_folder = folder;
    }

    /// Bytes that its files take.
    pub fn used_bytes(&self) -> u64 {
        self.0.lock().used_bytes()
    }

    /// Options for a store on this disk.
    pub fn options(&self) -> StoreOptions {
        let of_files = self.0.clone();
        let wrap = move |path: &Path, file: Box<dyn StorageBackend>| {
            Box::new(Cached::open(of_files.clone(), path, &*file)) as Box<dyn StorageBackend>
        };
        let of_folders = self.0.clone();
        let sync_folder = move |folder: &Path| of_folders.lock().sync_folder(folder);
        let of_disk = self.0.clone();
        let free_bytes = move || {
            let disk = of_disk.lock();
            Ok(disk.room_bytes.map_or(u64::MAX, |room| room.saturating_sub(disk.used_bytes())))
        };
        StoreOptions {
            wrap: Some(Arc::new(wrap)),
            sync_folder: Some(Arc::new(sync_folder)),
            free_bytes: Some(Arc::new(free_bytes)),
            ..StoreOptions::default()
        }
    }

    /// Whether the fault was met.
    pub fn struck(&self) -> bool {
        self.0.lock().struck
    }

    /// The process ended and the machine goes on: what was written is in the folder, synced or not.
    ///
    /// # Panics
    /// Where the folder can't be written.
    pub fn settle(&self) {
        for (path, file) in std::mem::take(&mut self.0.lock().files) {
            if path.exists() {
                std::fs::write(&path, file.cached).expect("the test's folder takes it");
            }
        }
    }

    /// The power is back: of what was not synced, a random part is in the folder. A file that was removed
    /// may be there again, and one that is new may be gone.
    ///
    /// # Panics
    /// Where the folder can't be written.
    pub fn lose_power(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        // Now nearly all is lost, now hardly anything.
        let kept = random.random_range(0.0..=1.0);
        for (path, file) in std::mem::take(&mut self.0.lock().files) {
            let removed = !path.exists();
            if file.unnamed && !random.random_bool(kept) {
                if !removed {
                    std::fs::remove_file(&path).expect("the test's folder lets it go");
                }
                continue;
            }
            let bytes = file.after_power_loss(kept, &mut random);
            if !removed || random.random_bool(0.3) {
                std::fs::write(&path, bytes).expect("the test's folder takes it");
            }
        }
    }
}

impl State {
    /// Counts a call: whether it fails.
    fn strikes(&mut self, call: Call) -> bool {
        let count = match call {
            Call::Write => &mut self.writes,
            Call::SetLen => &mut self.set_lens,
            Call::Sync => &mut self.syncs,
        };
        *count += 1;
        let of_kind = *count;
        let strikes = match self.fault {
            None => false,
            Some(Fault::Fail { call: of, number }) => of == call && of_kind == number,
            Some(Fault::Tear { number }) => call == Call::Write && of_kind == number,
            Some(Fault::PowerOff { number }) => self.writes + self.set_lens + self.syncs >= number,
        };
        self.struck |= strikes;
        strikes
    }

    fn sync_folder(&mut self, folder: &Path) -> Result<()> {
        if self.strikes(Call::Sync) {
            return Err(broken());
        }
        let of_folder = self.files.iter_mut().filter(|(path, _)| path.parent() == Some(folder));
        of_folder.for_each(|(_, file)| file.unnamed = false);
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        let there = self.files.iter().filter(|(path, _)| path.exists());
        there.map(|(_, file)| file.pages.len() as u64 * PAGE_BYTES).sum()
    }

    fn delay(&mut self) -> Option<Duration> {
        let random = self.delays.as_mut()?;
        random.random_bool(0.1).then(|| Duration::from_micros(random.random_range(10..1_000)))
    }
}

impl DiskFile {
    fn after_power_loss(mut self, kept: f64, random: &mut StdRng) -> Vec<u8> {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Change::Write(at, data) if random.random_bool(0.2) => {
                    for (sector, bytes) in data.chunks(SECTOR_BYTES).enumerate() {
                        if random.random_bool(kept) {
                            write(&mut self.durable, at + (sector * SECTOR_BYTES) as u64, bytes);
                        }
                    }
                }
                change if random.random_bool(kept) => apply(&mut self.durable, &change),
                _ => {}
            }
        }
        self.durable
    }

    fn change(&mut self, change: Change) {
        match &change {
            Change::Write(at, data) => self.pages.extend(pages(*at, data.len())),
            Change::SetLen(len) => drop(self.pages.split_off(&len.div_ceil(PAGE_BYTES))),
        }
        apply(&mut self.cached, &change);
        self.unsynced.push(change);
    }
}

fn pages(at: u64, len: usize) -> std::ops::Range<u64> {
    at / PAGE_BYTES..(at + len as u64).div_ceil(PAGE_BYTES)
}

fn write(file: &mut Vec<u8>, at: u64, data: &[u8]) {
    let at = usize::try_from(at).expect("it is in memory");
    if file.len() < at + data.len() {
        file.resize(at + data.len(), 0);
    }
    file[at..at + data.len()].copy_from_slice(data);
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => write(file, *at, data),
        Change::SetLen(len) => file.resize(usize::try_from(*len).expect("it is in memory"), 0),
    }
}

fn broken() -> Error {
    Error::other(BROKEN)
}

/// One file of the disk.
#[derive(Clone, Debug)]
struct Cached {
    disk: Arc<Mutex<State>>,
    path: PathBuf,
}

impl Cached {
    fn open(disk: Arc<Mutex<State>>, path: &Path, file: &dyn StorageBackend) -> Self {
        let len = file.len().expect("a file has a length");
        let mut bytes = vec![0; usize::try_from(len).expect("it fits in memory")];
        file.read(0, &mut bytes).expect("a file can be read");
        let opened = || DiskFile {
            durable: bytes.clone(),
            pages: pages(0, bytes.len()).collect(),
            // A database is moved to its place when it is whole.
            unnamed: bytes.is_empty(),
            cached: bytes,
            unsynced: Vec::new(),
        };
        // A file that is opened again is as it was left.
        disk.lock().files.entry(path.to_owned()).or_insert_with(opened);
        Self { disk, path: path.to_owned() }
    }

    fn delay(&self) {
        let delay = self.disk.lock().delay();
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
    }

    /// A file may be written to after it was removed, and its pages then belong to nobody.
    fn with<T>(&self, use_file: impl FnOnce(&mut DiskFile) -> T) -> T {
        use_file(self.disk.lock().files.entry(self.path.clone()).or_default())
    }
}

impl StorageBackend for Cached {
    fn len(&self) -> Result<u64> {
        Ok(self.with(|file| file.cached.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let at = usize::try_from(offset).map_err(Error::other)?;
        self.with(|file| {
            let bytes = file.cached.get(at..at + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.delay();
        if self.disk.lock().strikes(Call::SetLen) {
            return Err(broken());
        }
        self.with(|file| file.change(Change::SetLen(len)));
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        self.delay();
        let mut disk = self.disk.lock();
        if disk.strikes(Call::Sync) {
            // A disk without power decides later.
            if matches!(disk.fault, Some(Fault::Fail { .. })) {
                drop(disk);
                self.with(|file| file.unsynced.clear());
            }
            return Err(broken());
        }
        drop(disk);
        self.with(|file| file.unsynced.drain(..).for_each(|change| apply(&mut file.durable, &change)));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.delay();
        let mut disk = self.disk.lock();
        let was_on = !disk.struck;
        let strikes = disk.strikes(Call::Write);
        let written = match disk.fault {
            _ if !strikes => data.len(),
            Some(Fault::Tear { .. }) => data.len() / 2,
            // The write that is under way when the power goes is as likely to be there as the others.
            Some(Fault::PowerOff { .. }) if was_on => data.len(),
            _ => 0,
        };
        let mut result = if strikes { Err(broken()) } else { Ok(()) };
        let mut written = &data[..written];
        let in_full_folder = disk.full_folder.as_ref().is_some_and(|folder| self.path.starts_with(folder));
        if let Some(room) = if in_full_folder { Some(0) } else { disk.room_bytes } {
            let used = disk.used_bytes();
            let file = disk.files.entry(self.path.clone()).or_default();
            let free = room.saturating_sub(used) / PAGE_BYTES;
            let mut new = pages(offset, written.len()).filter(|page| !file.pages.contains(page));
            // As a file system does: what fits is written.
            if let Some(first_without) = new.nth(usize::try_from(free).unwrap_or(usize::MAX)) {
                written = &written[..usize::try_from((first_without * PAGE_BYTES).saturating_sub(offset)).unwrap_or(0)];
                result = Err(Error::new(ErrorKind::StorageFull, "no room on a disk that is full on purpose"));
                disk.struck = true;
            }
        }
        if !written.is_empty() {
            let file = disk.files.entry(self.path.clone()).or_default();
            file.change(Change::Write(offset, written.to_vec()));
        }
        result
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
