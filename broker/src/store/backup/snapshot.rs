//! A store as of one moment, while it goes on.
//!
//! What is copied must be what a start after a crash could find: then recovery makes of it the one state
//! that was there when the last commit in it returned. It consists of three things that change beside each
//! other, and is taken from them without holding anything up:
//!
//! - **Journal, catalog, registry of segments** are one database, so one read transaction J sees them at
//!   one commit.
//! - **Tables** are another, T. They may be ahead of what J's mark says is sealed, because what the journal
//!   has from that mark on is replayed over them: so it is whenever a start interrupts the sealer. But they
//!   must never be *behind* the mark: the journal before it is not copied. And they must not be ahead of J's
//!   *last commit*: nothing would take that back. For the second, T begins before J: the sealer writes only
//!   what a commit holds that has returned, so all that T sees is in J. For the first, the mark is read
//!   before T begins, and again in J. The sealer has written the tables before its commit moves the mark,
//!   so T has all that was sealed by the first reading; where both readings are the same, that is all that
//!   J calls sealed. Where they are not, a part was sealed within these few lines, and all three begin
//!   again: that takes microseconds and sealing a part at least milliseconds.
//! - **Segments' files** never change. One that J's registry lists is there, because its file was synced
//!   before the commit that registered it; and it stays, because the pin was taken before J began: a commit
//!   that removes it comes after J, and whoever made that commit finds the pin.
//!
//! What it costs: an open read transaction keeps redb from using again the pages that were freed since. J
//! is copied at once to a nameless file in the data directory, at most `journal_bytes_max` and the catalog,
//! and ends. T stays open while the tables are sent, at the pace of who receives them: their database grows
//! by the pages that the sealer writes meanwhile, and uses them again afterwards. Files of segments that are
//! merged or deleted meanwhile take room until the copy ends.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use redb::{ReadTransaction, ReadableDatabase, StorageBackend};

use super::super::error::StoreError;
use super::super::pause::Pause;
use super::super::registry::Pin;
use super::super::segment::SegmentFile;
use super::super::{Store, recovery};
use super::rows::{self, Database};
use super::{BackupError, BackupFile, JOURNAL_FILE, Manifest, TABLES_FILE};

/// A piece has this many bytes, the last one of a file fewer.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// While the journal is copied, it is looked for room on the disk for so many bytes at a time.
const ROOM_BYTES: u64 = 8 << 20;

/// A part of one of a backup's files. The pieces of a file come one after the other, from its begin to its
/// end; so do the files.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file's name in the backup.
    pub file: Arc<str>,
    /// Where the bytes stand in it.
    pub offset: u64,
    /// At most 1 MiB.
    pub bytes: Bytes,
}

/// All that a store held at one moment. See the module's text for what it costs to keep one.
pub struct Snapshot {
    store: Arc<Store>,
    journal: Box<dyn StorageBackend>,
    journal_bytes: u64,
    tables: ReadTransaction,
    segments: Vec<SegmentFile>,
    created_at_ms: i64,
    pin: Pin,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Takes one. `now_ms` is what its manifest says of the time, in ms since the epoch. Blocks, some
    /// tenths of a second for a full journal; commits go on.
    ///
    /// # Errors
    /// [`BackupError::NoRoomForJournal`]: what the data directory's disk has free is kept for records; or what the disk
    /// says.
    pub fn take(store: &Arc<Store>, now_ms: i64) -> Result<Self, BackupError> {
        let pin = store.registry().pin();
        let (tables, journal) = begin_reads(store)?;
        let segments = recovery::segments(&journal, drop)?;
        let sealed_to = recovery::sealed_to(&journal)?;
        let failed = |source| BackupError::io("write a copy of the journal in", store.path(), source);
        // Nameless: however this process ends, nothing is left over.
        let copy = store.registry().files().system().scratch(store.path()).map_err(failed)?;
        let (mut journal_bytes, mut room_to) = (0, 0);
        rows::write(Database::Journal, &journal, sealed_to, |bytes| {
            let at = journal_bytes;
            journal_bytes += bytes.len() as u64;
            if journal_bytes > room_to {
                store.room().for_backup(ROOM_BYTES)?;
                room_to += ROOM_BYTES;
            }
            copy.set_len(journal_bytes).and_then(|()| copy.write(at, bytes)).map_err(failed)
        })?;
        drop(journal);
        Ok(Self { store: store.clone(), journal: copy, journal_bytes, tables, segments, created_at_ms: now_ms, pin })
    }

    /// About how many bytes the backup will have.
    pub fn bytes(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| segment.bytes).sum::<u64>();
        self.journal_bytes + self.store.size().table_bytes + segments
    }

    /// Hands out every file, piece after piece, and ends with the manifest. Blocks; `emit` sets the pace,
    /// and ends it with a break.
    ///
    /// # Errors
    /// [`BackupError::Cancelled`] after a break, or what the disk says.
    pub fn copy(self, mut emit: impl FnMut(Piece) -> ControlFlow<()>) -> Result<Manifest, BackupError> {
        let mut files = Vec::new();
        files.push(copy_journal(self.journal.as_ref(), self.journal_bytes, &self.store, &mut emit)?);
        let mut out = PieceWriter::new(TABLES_FILE, &mut emit);
        rows::write(Database::Tables, &self.tables, 0, |bytes| out.write(bytes))?;
        files.push(out.finish()?);
        drop(self.tables);
        let mut pause = Pause::new(self.store.commits());
        for segment in &self.segments {
            files.push(copy_segment(&self.store, *segment, &mut pause, &mut emit)?);
        }
        drop(self.pin);
        Ok(Manifest::new(self.created_at_ms, files))
    }
}

/// Tables and journal, as the module's text says.
fn begin_reads(store: &Store) -> Result<(ReadTransaction, ReadTransaction), StoreError> {
    loop {
        let sealed_to = recovery::sealed_to(&store.db.begin_read()?)?;
        let tables = store.tables().begin_read()?;
        let journal = store.db.begin_read()?;
        if recovery::sealed_to(&journal)? == sealed_to {
            return Ok((tables, journal));
        }
    }
}

fn copy_journal(
    journal: &dyn StorageBackend,
    bytes: u64,
    store: &Store,
    emit: &mut dyn FnMut(Piece) -> ControlFlow<()>,
) -> Result<BackupFile, BackupError> {
    let mut out = PieceWriter::new(JOURNAL_FILE, emit);
    let mut left = bytes;
    let mut buffer = vec![0; PIECE_BYTES];
    while left > 0 {
        let part = &mut buffer[..left.min(PIECE_BYTES as u64) as usize];
        let read = journal.read(bytes - left, part);
        read.map_err(|source| BackupError::io("read the copy of the journal in", store.path(), source))?;
        out.write(part)?;
        left -= part.len() as u64;
    }
    out.finish()
}

fn copy_segment(
    store: &Store,
    segment: SegmentFile,
    pause: &mut Pause,
    emit: &mut dyn FnMut(Piece) -> ControlFlow<()>,
) -> Result<BackupFile, BackupError> {
    let name = segment.id.file_name();
    let path: PathBuf = store.path().join(&name);
    let file = store.registry().open_file(segment.id)?;
    let mut out = PieceWriter::new(&name, emit);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < segment.bytes {
        let part = &mut buffer[..(segment.bytes - at).min(PIECE_BYTES as u64) as usize];
        pause.resume(store.commits());
        file.read(at, part).map_err(|source| BackupError::io("read", &path, source))?;
        pause.rest_after(part.len() as u64, store.commits());
        out.write(part)?;
        at += part.len() as u64;
    }
    out.finish()
}

/// Cuts a file into pieces, and counts and checksums it.
struct PieceWriter<'a> {
    file: Arc<str>,
    offset: u64,
    piece: BytesMut,
    crc: u32,
    emit: &'a mut dyn FnMut(Piece) -> ControlFlow<()>,
}

impl<'a> PieceWriter<'a> {
    fn new(file: &str, emit: &'a mut dyn FnMut(Piece) -> ControlFlow<()>) -> Self {
        Self { file: file.into(), offset: 0, piece: BytesMut::with_capacity(PIECE_BYTES), crc: 0, emit }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), BackupError> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(now);
            if self.piece.len() == PIECE_BYTES {
                self.send()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), BackupError> {
        let bytes = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE_BYTES)).freeze();
        let piece = Piece { file: self.file.clone(), offset: self.offset, bytes };
        self.offset += piece.bytes.len() as u64;
        match (self.emit)(piece) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(BackupError::Cancelled),
        }
    }

    /// Also an empty file has a piece: who receives it must make it.
    fn finish(mut self) -> Result<BackupFile, BackupError> {
        if !self.piece.is_empty() || self.offset == 0 {
            self.send()?;
        }
        Ok(BackupFile { name: self.file.as_ref().to_owned(), bytes: self.offset, crc32c: self.crc })
    }
}
