//! A consistent snapshot of a store, taken while the store is in use.
//!
//! The copy must be a state that a start after a crash could find. Recovery then restores from it exactly the state
//! after the last commit that it contains. A store has three parts that change independently, and the snapshot is taken
//! of them without blocking anything:
//!
//! - **Journal, catalog and registry of segments** are one database, so one read transaction J sees them at the same
//!   commit.
//! - **Tables** are another database, read in a transaction T. They may be ahead of the sealed mark in J, because the
//!   journal from that mark on is replayed over them; the same happens whenever a crash interrupts the sealer. But they
//!   must never be *behind* the mark, because the journal before it is not copied. And they must not be ahead of J's
//!   *last commit*, because nothing would undo that. To ensure the second, T begins before J: the sealer only writes
//!   the content of commits that have returned, so everything that T sees is in J. To ensure the first, the mark is
//!   read before T begins, and again in J. The sealer writes the tables before its commit moves the mark, so T has
//!   everything that was sealed at the first reading. If both readings are the same, that is everything that is sealed
//!   in J. If not, the sealer moved the mark in between, and all three steps are repeated: they take microseconds,
//!   while sealing a part takes at least milliseconds.
//! - **Segment files** never change. A file that J's registry lists exists, because it was synced before the commit
//!   that registered it. It is not removed during the copy, because the pin was taken before J began: a commit that
//!   removes the segment comes after J, and its thread finds the pin.
//!
//! The cost of a snapshot: while a read transaction is open, redb cannot reuse the pages that were freed since. J is
//! copied at once to a nameless file in the data directory, which takes at most `journal_bytes_max` plus the catalog,
//! and is then closed. T stays open while the tables are sent, at the pace of the receiver. Meanwhile their database
//! grows by the pages that the sealer writes; these are reused afterwards. The files of segments that are merged or
//! deleted meanwhile take space until the copy ends.

use millstream_record::checksum;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use redb::{ReadTransaction, ReadableDatabase, StorageBackend};

use super::super::error::StoreError;
use super::super::file_system::StoreFile;
use super::super::pause::Pause;
use super::super::registry::Pin;
use super::super::segment::SegmentFile;
use super::super::{Store, recovery};
use super::rows::{self, Database};
use super::{BackupError, BackupFile, JOURNAL_FILE, Manifest, TABLES_FILE};

/// Size of a piece in bytes. The last piece of a file may be smaller.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// While the journal is copied, the free disk space is checked again after this many bytes.
const ROOM_BYTES: u64 = 8 << 20;

/// A part of one of a backup's files. The pieces of a file arrive in order, and one file after the other.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Name of the file in the backup.
    pub file: Arc<str>,
    /// Position of the bytes in the file.
    pub offset: u64,
    /// The content, at most 1 MiB.
    pub bytes: Bytes,
}

/// Everything that a store held at one moment. The module documentation explains what keeping a snapshot costs.
pub struct Snapshot {
    store: Arc<Store>,
    journal: Box<dyn StoreFile>,
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
    /// Takes a snapshot. `now_ms` is the creation time for the manifest, in ms since the epoch. Blocks for some tenths
    /// of a second if the journal is full. Commits continue meanwhile.
    ///
    /// # Errors
    /// [`BackupError::NoRoomForJournal`] if the free space of the data directory's disk is reserved for records, or an
    /// I/O error.
    pub fn take(store: &Arc<Store>, now_ms: i64) -> Result<Self, BackupError> {
        let pin = store.registry().pin();
        let (tables, journal) = begin_reads(store)?;
        let segments = recovery::segments(&journal, drop)?;
        let sealed_to = recovery::sealed_to(&journal)?;
        let failed = |source| BackupError::io("write a copy of the journal in", store.path(), source);
        // The file has no name, so nothing is left over even if the process is killed.
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

    /// Returns the approximate size of the backup in bytes.
    pub fn bytes(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| segment.bytes).sum::<u64>();
        self.journal_bytes + self.store.size().table_bytes + segments
    }

    /// Passes every file to `emit`, piece by piece, and returns the manifest. Blocks. `emit` sets the pace, and cancels
    /// the copy by returning a break.
    ///
    /// # Errors
    /// [`BackupError::Cancelled`] after a break, or an I/O error.
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

/// Begins the reads of the tables and the journal in the order that the module documentation explains.
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
    journal: &dyn StoreFile,
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

/// Cuts a file into pieces, and computes its size and checksum.
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
        self.crc = checksum::crc32c_append(self.crc, bytes);
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

    /// Sends the last piece. An empty file has one piece too, because the receiver must create the file.
    fn finish(mut self) -> Result<BackupFile, BackupError> {
        if !self.piece.is_empty() || self.offset == 0 {
            self.send()?;
        }
        Ok(BackupFile { name: self.file.as_ref().to_owned(), bytes: self.offset, crc32c: self.crc })
    }
}
