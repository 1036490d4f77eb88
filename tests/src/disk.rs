//! An in-memory file system that fails on purpose. File contents are not durable until the file is synced, and a name
//! is not durable until its folder is synced. A chosen call can fail or be torn, the power can be lost, calls can be
//! delayed, the disk can run full, and reads can return damaged bytes. It knows nothing about the contents of the
//! files.
//!
//! Each call is a scheduling point of the simulator and a line of its trace. The disk also works outside of a
//! simulation, where the order of calls is the one in which the machine's threads happen to run.

use millstream_record::checksum;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millstream_broker::store::{Entry, FileSystem, Lock, Open, StorageBackend, StoreFile, StoreOptions};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Size of a disk sector, in bytes. A sector is written completely or not at all.
const SECTOR_BYTES: usize = 512;

/// Allocation unit of the disk space that a file takes, in bytes.
const PAGE_BYTES: u64 = 4096;

/// Message of every error of a broken disk.
pub const BROKEN: &str = "broken on purpose";

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Reads bytes.
    Read,
    /// Writes bytes.
    Write,
    /// Makes a file longer or shorter.
    SetLen,
    /// Makes the written data of a file, or the names in a folder, durable. If the call fails, the data written before
    /// it is forgotten, and a later sync does not make it durable.
    Sync,
    /// Creates a file or a folder, or changes or removes its name.
    Name,
}

/// The kind of file that a path leads to, derived from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The journal's database.
    Journal,
    /// The tables' database.
    Tables,
    /// A segment file.
    Segment,
    /// Anything else: folders, the format file, the files of a backup.
    Other,
}

impl Kind {
    fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.strip_suffix(".new").unwrap_or(&name) {
            "millstream.redb" => Self::Journal,
            "tables.redb" => Self::Tables,
            name if name.ends_with(".segment") => Self::Segment,
            _ => Self::Other,
        }
    }
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The call fails, and all other calls work, so a retry seems to succeed.
    Fail,
    /// The call fails after half of the data was written.
    Tear,
    /// From this call on, nothing works any more. The call itself is as likely to take effect as the unsynced calls
    /// before it.
    PowerOff,
    /// A read returns data with one bit flipped.
    Damage,
}

/// One injected fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of files that the fault concerns, or all files if `None`.
    pub file: Option<Kind>,
    /// The kind of calls that the fault concerns, or all calls that change something if `None`.
    pub call: Option<Call>,
    /// Which of those calls the fault strikes, counted from 1.
    pub number: u64,
    /// What happens at that call.
    pub effect: Effect,
}

impl Fault {
    fn concerns(&self, kind: Kind, call: Call) -> bool {
        let of_call = match self.call {
            None => call != Call::Read,
            Some(of) => of == call,
        };
        of_call && self.file.is_none_or(|of| of == kind)
    }
}

/// An in-memory file system, which is cheap to clone.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

/// Number of a file or a folder. The root folder has the number 0.
type Number = u64;

#[derive(Debug)]
struct State {
    nodes: BTreeMap<Number, Node>,
    next: Number,
    /// Faults, each with the number of calls so far that it concerns.
    faults: Vec<(Fault, u64)>,
    struck: bool,
    has_power: bool,
    /// Decides which calls are delayed. `None` if no calls are delayed.
    delays: Option<StdRng>,
    /// Maximum size of all files together, in bytes.
    room_bytes: Option<u64>,
    /// Files below this folder cannot grow at all.
    full_folder: Option<PathBuf>,
    locked: BTreeMap<PathBuf, String>,
}

#[derive(Debug)]
enum Node {
    File(FileNode),
    Folder(FolderNode),
}

#[derive(Debug, Default)]
struct FileNode {
    durable: Vec<u8>,
    cached: Vec<u8>,
    unsynced: Vec<Change>,
    /// The pages that take disk space. Extending a file without writing to it takes none.
    pages: BTreeSet<u64>,
    /// Whether the file has a name.
    is_named: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug, Default)]
struct FolderNode {
    names: BTreeMap<String, Number>,
    durable: BTreeMap<String, Number>,
    unsynced: Vec<NameChange>,
}

/// A change of names, which happens completely or not at all.
#[derive(Clone, Debug)]
enum NameChange {
    Set(String, Number),
    Unset(String),
    Move { from: String, to: String, number: Number },
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, Number>) {
        match self {
            Self::Set(name, number) => drop(names.insert(name.clone(), *number)),
            Self::Unset(name) => drop(names.remove(name)),
            Self::Move { from, to, number } => {
                names.remove(from);
                names.insert(to.clone(), *number);
            }
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::from([(0, Node::Folder(FolderNode::default()))]),
            next: 1,
            faults: Vec::new(),
            struck: false,
            has_power: true,
            delays: None,
            room_bytes: None,
            full_folder: None,
            locked: BTreeMap::new(),
        }
    }
}

impl Disk {
    /// Creates an empty disk with these faults.
    pub fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        let disk = Self::default();
        disk.set_faults(faults);
        disk
    }

    /// Replaces the faults. Their calls are counted from now on.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.0.lock();
        state.faults = faults.into_iter().map(|fault| (fault, 0)).collect();
        state.struck = false;
    }

    /// Delays calls at random, so that threads interleave differently. `None` ends the delays.
    pub fn set_delays(&self, seed: Option<u64>) {
        self.0.lock().delays = seed.map(StdRng::seed_from_u64);
    }

    /// Limits the size of all files together to this many bytes, including the bytes that they take already.
    pub fn set_room(&self, room_bytes: u64) {
        self.0.lock().room_bytes = Some(room_bytes);
    }

    /// Prevents all files below a folder from growing. `None` lifts the limit.
    pub fn set_full_folder(&self, folder: Option<PathBuf>) {
        self.0.lock().full_folder = folder;
    }

    /// Returns the disk space that the files take, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.0.lock().used_bytes()
    }

    /// Returns this disk as a file system for the store.
    pub fn file_system(&self) -> Arc<dyn FileSystem> {
        Arc::new(self.clone())
    }

    /// Returns options for a store on this disk.
    pub fn options(&self) -> StoreOptions {
        StoreOptions { file_system: Some(self.file_system()), ..StoreOptions::default() }
    }

    /// Returns the paths of all files, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.0.lock();
        let (mut found, mut to_visit) = (Vec::new(), vec![(PathBuf::from("/"), 0)]);
        while let Some((path, number)) = to_visit.pop() {
            match &state.nodes[&number] {
                Node::File(_) => found.push(path),
                Node::Folder(folder) => {
                    to_visit.extend(folder.names.iter().map(|(name, number)| (path.join(name), *number)));
                }
            }
        }
        found.sort();
        found
    }

    /// Flips a bit of a file, as an aging medium does.
    ///
    /// # Panics
    /// Panics if the file does not exist or is too short.
    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        let mut state = self.0.lock();
        let number = state.find(path).ok().flatten().expect("the file exists");
        let file = state.file(number);
        file.cached[byte] ^= 1 << bit;
        if let Some(durable) = file.durable.get_mut(byte) {
            *durable ^= 1 << bit;
        }
    }

    /// Returns the length of a file in bytes, or 0 if it does not exist.
    pub fn len(&self, path: &Path) -> usize {
        let state = self.0.lock();
        match state.find(path).ok().flatten().and_then(|number| state.nodes.get(&number)) {
            Some(Node::File(file)) => file.cached.len(),
            _ => 0,
        }
    }

    /// Returns whether a call met a fault or a full disk.
    pub fn struck(&self) -> bool {
        self.0.lock().struck
    }

    /// Ends the process while the machine keeps running: written data is still visible, but is not durable until it is
    /// synced. All faults are removed.
    pub fn end_process(&self) {
        let mut state = self.0.lock();
        assert!(state.has_power, "the process cannot end without power: call `lose_power` first");
        state.forget_process();
    }

    /// Loses the power and restores it. A random part of the unsynced changes survives: a removed file may exist again,
    /// and a new file may be gone. All faults are removed.
    pub fn lose_power(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut state = self.0.lock();
        state.forget_process();
        state.has_power = true;
        // Varies between losing nearly everything and losing hardly anything.
        let kept = random.random_range(0.0..=1.0);
        for node in state.nodes.values_mut() {
            match node {
                Node::File(file) => file.lose_power(kept, &mut random),
                Node::Folder(folder) => folder.lose_power(kept, &mut random),
            }
        }
        state.remove_unnamed();
    }

    /// Begins a call. Other threads may run before it takes effect. Returns the state, and how the call proceeds.
    fn begin(&self, kind: Kind, call: Call, what: fmt::Arguments<'_>) -> (parking_lot::MutexGuard<'_, State>, Begun) {
        millstream_simulator::point();
        let delay = self.0.lock().delay();
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
        let mut state = self.0.lock();
        let begun = state.begin(kind, call);
        millstream_simulator::trace(format_args!("{what} {begun:?}"));
        (state, begun)
    }
}

/// How a call proceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Well,
    /// The disk has no power any more.
    Dead,
    Struck(Effect),
}

impl State {
    fn begin(&mut self, kind: Kind, call: Call) -> Begun {
        if !self.has_power {
            return Begun::Dead;
        }
        let mut begun = Begun::Well;
        for (fault, met) in self.faults.iter_mut().filter(|(fault, _)| fault.concerns(kind, call)) {
            *met += 1;
            if *met == fault.number {
                begun = Begun::Struck(fault.effect);
            }
        }
        self.struck |= begun != Begun::Well;
        self.has_power = begun != Begun::Struck(Effect::PowerOff);
        begun
    }

    fn delay(&mut self) -> Option<Duration> {
        let random = self.delays.as_mut()?;
        random.random_bool(0.1).then(|| Duration::from_micros(random.random_range(10..1_000)))
    }

    fn forget_process(&mut self) {
        self.faults.clear();
        self.struck = false;
        self.delays = None;
        self.locked.clear();
        self.remove_unnamed();
    }

    /// Removes files that only a process had open.
    fn remove_unnamed(&mut self) {
        let mut reached = BTreeSet::new();
        let mut to_visit = vec![0];
        while let Some(number) = to_visit.pop() {
            reached.insert(number);
            if let Some(Node::Folder(folder)) = self.nodes.get(&number) {
                // A removed name may exist again after a power loss.
                let unsynced = folder.unsynced.iter().filter_map(|change| match change {
                    NameChange::Set(_, number) | NameChange::Move { number, .. } => Some(number),
                    NameChange::Unset(_) => None,
                });
                let all = folder.names.values().chain(folder.durable.values()).chain(unsynced);
                to_visit.extend(all.filter(|number| !reached.contains(number)));
            }
        }
        self.nodes.retain(|number, _| reached.contains(number));
        self.count_names();
    }

    fn count_names(&mut self) {
        let named: BTreeSet<Number> = self
            .nodes
            .values()
            .filter_map(|node| match node {
                Node::Folder(folder) => Some(folder.names.values().copied()),
                Node::File(_) => None,
            })
            .flatten()
            .collect();
        for (number, node) in &mut self.nodes {
            if let Node::File(file) = node {
                file.is_named = named.contains(number);
            }
        }
    }

    fn used_bytes(&self) -> u64 {
        let pages = self.nodes.values().map(|node| match node {
            Node::File(file) if file.is_named => file.pages.len() as u64,
            _ => 0,
        });
        pages.sum::<u64>() * PAGE_BYTES
    }

    fn find(&self, path: &Path) -> Result<Option<Number>> {
        let mut number = 0;
        for part in parts(path) {
            let Some(Node::Folder(folder)) = self.nodes.get(&number) else {
                return Err(ErrorKind::NotADirectory.into());
            };
            match folder.names.get(part) {
                Some(next) => number = *next,
                None => return Ok(None),
            }
        }
        Ok(Some(number))
    }

    fn folder_mut(&mut self, path: &Path) -> Result<&mut FolderNode> {
        let number = self.find(path)?.ok_or(ErrorKind::NotFound)?;
        match self.nodes.get_mut(&number) {
            Some(Node::Folder(folder)) => Ok(folder),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    /// Returns the parent folder of a path, and the last name of the path.
    fn place(&mut self, path: &Path) -> Result<(&mut FolderNode, String)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        Ok((self.folder_mut(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn add(&mut self, path: &Path, node: Node) -> Result<Number> {
        let number = self.next;
        let (folder, name) = self.place(path)?;
        folder.change(NameChange::Set(name, number));
        self.nodes.insert(number, node);
        self.next += 1;
        self.count_names();
        Ok(number)
    }

    /// Returns the file with this number. A file may be written to after its removal, and its pages then belong to no
    /// file.
    fn file(&mut self, number: Number) -> &mut FileNode {
        let node = self.nodes.entry(number).or_insert_with(|| Node::File(FileNode::default()));
        let Node::File(file) = node else { unreachable!("a folder cannot be opened as a file") };
        file
    }
}

/// Returns the names in a path.
fn parts(path: &Path) -> impl Iterator<Item = &str> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    })
}

impl FolderNode {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        self.unsynced.drain(..).for_each(|change| change.apply(&mut self.durable));
    }

    fn lose_power(&mut self, kept: f64, random: &mut StdRng) {
        // A file system with a log keeps a prefix of the changes. Others may keep any of them.
        let first = random.random_bool(0.5).then(|| random.random_range(0..=self.unsynced.len()));
        for (at, change) in self.unsynced.drain(..).enumerate() {
            if first.map_or_else(|| random.random_bool(kept), |first| at < first) {
                change.apply(&mut self.durable);
            }
        }
        self.names = self.durable.clone();
    }
}

impl FileNode {
    fn lose_power(&mut self, kept: f64, random: &mut StdRng) {
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
        self.cached = self.durable.clone();
        self.pages = pages(0, self.cached.len()).collect();
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
    let at = usize::try_from(at).expect("a file in memory fits into usize");
    if file.len() < at + data.len() {
        file.resize(at + data.len(), 0);
    }
    file[at..at + data.len()].copy_from_slice(data);
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => write(file, *at, data),
        Change::SetLen(len) => file.resize(usize::try_from(*len).expect("a file in memory fits into usize"), 0),
    }
}

fn broken() -> Error {
    Error::other(BROKEN)
}

// ---- names

impl Disk {
    /// Runs a call that changes names. If the power fails at this call, it is as likely to take effect as the calls
    /// before it.
    fn change_names<T>(&self, path: &Path, what: &str, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let (mut state, begun) = self.begin(Kind::of(path), Call::Name, format_args!("{what} {}", path.display()));
        match begun {
            Begun::Well => change(&mut state),
            Begun::Struck(Effect::PowerOff) => change(&mut state).and(Err(broken())),
            Begun::Dead | Begun::Struck(_) => Err(broken()),
        }
    }

    /// Looks at names. Like a read, this works without power too, because a process may still see its cached data for a
    /// while.
    fn look<T>(&self, look: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        millstream_simulator::point();
        look(&mut self.0.lock())
    }
}

impl FileSystem for Disk {
    fn open(&self, path: &Path, how: Open) -> Result<Box<dyn StoreFile>> {
        let found = self.look(|state| state.find(path))?;
        let number = match (found, how) {
            (Some(_), Open::New) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(number), _) => number,
            (None, Open::Read) => return Err(ErrorKind::NotFound.into()),
            (None, _) => self.change_names(path, "make", |state| state.add(path, Node::File(FileNode::default())))?,
        };
        if let Some(Node::Folder(_)) = self.0.lock().nodes.get(&number) {
            return Err(ErrorKind::IsADirectory.into());
        }
        let file = OpenFile { disk: self.clone(), number, kind: Kind::of(path), path: path.to_owned() };
        if how == Open::Database {
            file.sync_data()?;
            let mut state = self.0.lock();
            let node = state.file(number);
            node.cached = node.durable.clone();
        }
        Ok(Box::new(file))
    }

    fn scratch(&self, folder: &Path) -> Result<Box<dyn StoreFile>> {
        let number = self.look(|state| {
            state.folder_mut(folder)?;
            let number = state.next;
            state.next += 1;
            state.nodes.insert(number, Node::File(FileNode::default()));
            Ok(number)
        })?;
        Ok(Box::new(OpenFile { disk: self.clone(), number, kind: Kind::Other, path: folder.join("scratch") }))
    }

    fn entry(&self, path: &Path) -> Result<Option<Entry>> {
        self.look(|state| match state.find(path) {
            Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(None),
            found => Ok(found?.and_then(|number| match state.nodes.get(&number) {
                Some(Node::Folder(_)) => Some(Entry::Folder),
                Some(Node::File(file)) => Some(Entry::File { bytes: file.cached.len() as u64 }),
                None => None,
            })),
        })
    }

    fn names(&self, folder: &Path) -> Result<Vec<String>> {
        self.look(|state| Ok(state.folder_mut(folder)?.names.keys().cloned().collect()))
    }

    fn make_folder(&self, path: &Path) -> Result<()> {
        self.change_names(path, "make folder", |state| {
            if state.find(path)?.is_some() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            state.add(path, Node::Folder(FolderNode::default())).map(drop)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change_names(to, "rename to", |state| {
            let number = state.find(from)?.ok_or(ErrorKind::NotFound)?;
            if let Some(Node::Folder(folder)) = state.find(to)?.and_then(|number| state.nodes.get(&number))
                && !folder.names.is_empty()
            {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            let (_, old) = state.place(from)?;
            if from.parent() == to.parent() {
                let (folder, new) = state.place(to)?;
                folder.change(NameChange::Move { from: old, to: new, number });
            } else {
                let (folder, new) = state.place(to)?;
                folder.change(NameChange::Set(new, number));
                state.place(from)?.0.change(NameChange::Unset(old));
            }
            state.count_names();
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.change_names(path, "remove", |state| {
            state.find(path)?.ok_or(ErrorKind::NotFound)?;
            let (folder, name) = state.place(path)?;
            folder.change(NameChange::Unset(name));
            state.count_names();
            Ok(())
        })
    }

    fn remove_folder(&self, path: &Path) -> Result<()> {
        for name in self.names(path)? {
            let path = path.join(name);
            match self.entry(&path)? {
                Some(Entry::Folder) => self.remove_folder(&path)?,
                _ => self.remove(&path)?,
            }
        }
        self.remove(path)
    }

    fn sync_folder(&self, path: &Path) -> Result<()> {
        let (mut state, begun) = self.begin(Kind::Other, Call::Sync, format_args!("sync folder {}", path.display()));
        if begun != Begun::Well {
            return Err(broken());
        }
        state.folder_mut(path)?.sync();
        Ok(())
    }

    fn lock(&self, path: &Path, holder: &str) -> Result<Lock> {
        self.look(|state| {
            if let Some(holder) = state.locked.get(path) {
                return Ok(Lock::Held(holder.clone()));
            }
            state.locked.insert(path.to_owned(), holder.to_owned());
            Ok(Lock::Taken(Box::new(Locked { disk: self.clone(), path: path.to_owned() })))
        })
    }

    fn free_bytes(&self, _: &Path) -> Result<u64> {
        let state = self.0.lock();
        Ok(state.room_bytes.map_or(u64::MAX, |room| room.saturating_sub(state.used_bytes())))
    }

    fn total_bytes(&self, _: &Path) -> Result<u64> {
        Ok(self.0.lock().room_bytes.unwrap_or(u64::MAX))
    }

    fn is_mount_point(&self, _: &Path) -> bool {
        false
    }
}

struct Locked {
    disk: Disk,
    path: PathBuf,
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.disk.0.lock().locked.remove(&self.path);
    }
}

// ---- files

struct OpenFile {
    disk: Disk,
    number: Number,
    kind: Kind,
    path: PathBuf,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenFile({})", self.path.display())
    }
}

impl OpenFile {
    fn begin(&self, call: Call, what: fmt::Arguments<'_>) -> (parking_lot::MutexGuard<'_, State>, Begun) {
        self.disk.begin(self.kind, call, format_args!("{call:?} {} {what}", self.path.display()))
    }
}

impl StoreFile for OpenFile {}

impl StorageBackend for OpenFile {
    fn len(&self) -> Result<u64> {
        Ok(self.disk.0.lock().file(self.number).cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let at = usize::try_from(offset).map_err(Error::other)?;
        let (mut state, begun) = self.begin(Call::Read, format_args!("{offset}+{}", out.len()));
        let damage = match begun {
            // Cached data can be read without power too, because the process may continue for a while.
            Begun::Well | Begun::Dead => false,
            Begun::Struck(Effect::Damage) => true,
            Begun::Struck(_) => return Err(broken()),
        };
        let bytes = state.file(self.number).cached.get(at..at + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        if damage && !out.is_empty() {
            let bit = at % (out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let (mut state, begun) = self.begin(Call::SetLen, format_args!("{len}"));
        match begun {
            Begun::Well | Begun::Struck(Effect::PowerOff) => state.file(self.number).change(Change::SetLen(len)),
            Begun::Dead | Begun::Struck(_) => {}
        }
        if begun == Begun::Well { Ok(()) } else { Err(broken()) }
    }

    fn sync_data(&self) -> Result<()> {
        let (mut state, begun) = self.begin(Call::Sync, format_args!(""));
        let file = state.file(self.number);
        match begun {
            Begun::Well => {
                let unsynced = std::mem::take(&mut file.unsynced);
                unsynced.iter().for_each(|change| apply(&mut file.durable, change));
                Ok(())
            }
            // Whether the data survives is decided when the power is lost.
            Begun::Dead | Begun::Struck(Effect::PowerOff) => Err(broken()),
            Begun::Struck(_) => {
                file.unsynced.clear();
                Err(broken())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let (mut state, begun) =
            self.begin(Call::Write, format_args!("{offset}+{} {:08x}", data.len(), checksum::crc32c(data)));
        let written = match begun {
            // A write that is in progress when the power fails is as likely to survive as the others.
            Begun::Well | Begun::Struck(Effect::PowerOff) => data.len(),
            Begun::Struck(Effect::Tear) => data.len() / 2,
            Begun::Dead | Begun::Struck(_) => 0,
        };
        let mut result = if begun == Begun::Well { Ok(()) } else { Err(broken()) };
        let mut written = &data[..written];
        let in_full_folder = state.full_folder.as_ref().is_some_and(|folder| self.path.starts_with(folder));
        if let Some(room) = if in_full_folder { Some(0) } else { state.room_bytes } {
            let free = room.saturating_sub(state.used_bytes()) / PAGE_BYTES;
            let file = state.file(self.number);
            let mut new = pages(offset, written.len()).filter(|page| !file.pages.contains(page));
            // Like a real file system, this writes as much as fits.
            if let Some(first_without) = new.nth(usize::try_from(free).unwrap_or(usize::MAX)) {
                written = &written[..usize::try_from((first_without * PAGE_BYTES).saturating_sub(offset)).unwrap_or(0)];
                result = Err(Error::new(ErrorKind::StorageFull, "no room on a disk that is full on purpose"));
                state.struck = true;
            }
        }
        if !written.is_empty() {
            state.file(self.number).change(Change::Write(offset, written.to_vec()));
        }
        result
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
