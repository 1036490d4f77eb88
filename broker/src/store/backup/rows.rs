//! Encodes the rows of a database as a file: the content of redb's tables, not their representation in redb.
//!
//! ```text
//! file  = frame*
//! frame = body_bytes u32, crc u32, body
//! body  = name_bytes u16, table name, row*
//! row   = key_bytes u32, value_bytes u32, key, value
//! ```
//! All integers are little-endian. `crc` is the CRC-32C of `body_bytes` and the body. A table without rows has a frame
//! too. Numeric keys and values are little-endian, pairs are concatenated, and text is UTF-8.

use millstream_record::checksum;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable, TableDefinition, TableHandle, WriteTransaction};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::super::error::StoreError;
use super::super::file_system::{FileSystem, Open, StoreFile};
use super::super::{CATALOG, JOURNAL, LOG_STARTS, MARKS, SEGMENTS, tables};
use super::format_4::Row;
use super::{BackupError, BackupFile};

/// A frame is closed once it reaches this size. A frame with a large value may be larger.
const FRAME_BYTES: usize = 256 << 10;
const FRAME_HEADER_BYTES: usize = 8;

/// Size of one read of a backup's file, in bytes.
const READ_BYTES: usize = 1 << 20;

/// A key or value type of redb whose encoded bytes can be checked before they are decoded.
pub(super) trait Column: redb::Value {
    fn fits(bytes: &[u8]) -> bool {
        Self::fixed_width().is_none_or(|width| width == bytes.len())
    }
}

impl Column for u64 {}
impl Column for i64 {}
impl Column for &[u8] {}
impl Column for (u32, u32) {}
impl Column for (i64, u64) {}
impl Column for &str {
    fn fits(bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_ok()
    }
}

/// An operation on a table, called with the table's type.
pub(super) trait WithTable {
    fn with<K: Column + redb::Key, V: Column>(&mut self, table: TableDefinition<'_, K, V>) -> Result<(), BackupError>;
}

/// One of the two databases, which determines the tables that it may contain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Database {
    Journal,
    Tables,
}

impl Database {
    /// Calls `work` with the table of this name. Returns false if this version does not know the table.
    fn with_table(self, name: &str, work: &mut impl WithTable) -> Result<bool, BackupError> {
        match self {
            Self::Journal if name == JOURNAL.name() => work.with(JOURNAL)?,
            Self::Journal if name == CATALOG.name() => work.with(CATALOG)?,
            Self::Journal if name == SEGMENTS.name() => work.with(SEGMENTS)?,
            Self::Journal if name == LOG_STARTS.name() => work.with(LOG_STARTS)?,
            Self::Journal if name == MARKS.name() => work.with(MARKS)?,
            Self::Tables if name == tables::OFFSETS.name() => work.with(tables::OFFSETS)?,
            Self::Tables if name == tables::PRODUCERS.name() => work.with(tables::PRODUCERS)?,
            Self::Tables if name == tables::COUNTS.name() => work.with(tables::COUNTS)?,
            Self::Tables if name.starts_with(tables::STATE_PREFIX) => {
                work.with(TableDefinition::<&[u8], &[u8]>::new(name))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

// ---- writing

/// Writes all tables of a database. Of the journal, only entries from sequence number `journal_from` on are written.
pub(super) fn write(
    database: Database,
    read: &ReadTransaction,
    journal_from: u64,
    out: impl FnMut(&[u8]) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let mut writer = Writer { read, journal_from, frame: Vec::with_capacity(FRAME_BYTES * 2), out };
    for table in read.list_tables()? {
        if !database.with_table(table.name(), &mut writer)? {
            let reason = "this version cannot back it up".to_owned();
            return Err(StoreError::Corrupt { what: format!("table {}", table.name()), reason }.into());
        }
    }
    Ok(())
}

struct Writer<'a, F> {
    read: &'a ReadTransaction,
    journal_from: u64,
    frame: Vec<u8>,
    out: F,
}

impl<F: FnMut(&[u8]) -> Result<(), BackupError>> WithTable for Writer<'_, F> {
    fn with<K: Column + redb::Key, V: Column>(&mut self, table: TableDefinition<'_, K, V>) -> Result<(), BackupError> {
        let name = table.name().to_owned();
        self.begin(&name);
        let opened = self.read.open_table(table)?;
        // Entries before `journal_from` are sealed and only wait to be removed.
        let skip = self.journal_from.to_le_bytes();
        let rows = if name == JOURNAL.name() { opened.range(K::from_bytes(&skip)..)? } else { opened.range(..)? };
        for row in rows {
            let (key, value) = row?;
            let (key, value) = (key.value(), value.value());
            self.row(K::as_bytes(&key).as_ref(), V::as_bytes(&value).as_ref())?;
            if self.frame.len() >= FRAME_BYTES {
                self.end()?;
                self.begin(&name);
            }
        }
        self.end()
    }
}

impl<F: FnMut(&[u8]) -> Result<(), BackupError>> Writer<'_, F> {
    fn begin(&mut self, table: &str) {
        self.frame.clear();
        self.frame.resize(FRAME_HEADER_BYTES, 0);
        self.frame.extend_from_slice(&(table.len() as u16).to_le_bytes());
        self.frame.extend_from_slice(table.as_bytes());
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        for part in [key, value] {
            let bytes = u32::try_from(part.len()).map_err(|_| StoreError::Corrupt {
                what: "a row of a table".to_owned(),
                reason: format!("its {} bytes exceed the limit of a row in a backup", part.len()),
            })?;
            self.frame.extend_from_slice(&bytes.to_le_bytes());
        }
        self.frame.extend_from_slice(key);
        self.frame.extend_from_slice(value);
        Ok(())
    }

    fn end(&mut self) -> Result<(), BackupError> {
        let body_bytes = ((self.frame.len() - FRAME_HEADER_BYTES) as u32).to_le_bytes();
        let crc = checksum::crc32c_append(checksum::crc32c(&body_bytes), &self.frame[FRAME_HEADER_BYTES..]);
        self.frame[..4].copy_from_slice(&body_bytes);
        self.frame[4..FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        (self.out)(&self.frame)
    }
}

// ---- reading

/// How much one transaction of a restore reads from the file, in bytes.
const TRANSACTION_BYTES: u64 = 32 << 20;

/// A file of a backup that is read sequentially and checked against the manifest.
pub(super) struct CheckedFile<'a> {
    from: Box<dyn StoreFile>,
    /// The read-ahead buffer, and how many of its bytes were consumed.
    ahead: (Vec<u8>, usize),
    path: PathBuf,
    of: &'a BackupFile,
    left: u64,
    crc: u32,
}

impl<'a> CheckedFile<'a> {
    pub(super) fn open(system: &Arc<dyn FileSystem>, folder: &Path, of: &'a BackupFile) -> Result<Self, BackupError> {
        let path = folder.join(&of.name);
        let file = match system.open(&path, Open::Read) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BackupError::Damaged { path, reason: "it is missing".to_owned() });
            }
            opened => opened.map_err(|source| BackupError::io("open", &path, source))?,
        };
        let bytes = file.len().map_err(|source| BackupError::io("read", &path, source))?;
        let opened = Self { from: file, ahead: (Vec::new(), 0), path, of, left: of.bytes, crc: 0 };
        if bytes != of.bytes {
            return Err(opened.damaged(format!("it has {bytes} bytes, not {}", of.bytes)));
        }
        Ok(opened)
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), reason: reason.into() }
    }

    /// Reads the next bytes, at most as many as `into` has room for. Returns 0 at the end.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, BackupError> {
        let wanted = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut filled = 0;
        while filled < wanted {
            let (ahead, taken) = &mut self.ahead;
            if *taken == ahead.len() {
                let left = self.left - filled as u64;
                ahead.resize(usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES), 0);
                let read = self.from.read(self.of.bytes - left, ahead);
                read.map_err(|source| BackupError::io("read", &self.path, source))?;
                *taken = 0;
            }
            let part = (wanted - filled).min(ahead.len() - *taken);
            into[filled..filled + part].copy_from_slice(&ahead[*taken..*taken + part]);
            *taken += part;
            filled += part;
        }
        self.crc = checksum::crc32c_append(self.crc, &into[..wanted]);
        self.left -= wanted as u64;
        Ok(wanted)
    }

    /// Checks the checksum of the whole file once all of it was read.
    pub(super) fn end(self) -> Result<(), BackupError> {
        if self.crc != self.of.crc32c {
            return Err(self.damaged("it does not match its checksum"));
        }
        Ok(())
    }

    /// Returns the next frame's body, or `None` at the end.
    fn frame(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        let mut header = [0; FRAME_HEADER_BYTES];
        match self.read(&mut header)? {
            0 => return Ok(None),
            FRAME_HEADER_BYTES => {}
            _ => return Err(self.damaged("it ends within a frame")),
        }
        let fields: [U32; 2] = zerocopy::transmute!(header);
        let [body_bytes, crc] = fields.map(U32::get);
        if u64::from(body_bytes) > self.left {
            return Err(self.damaged("a frame is longer than the rest of the file"));
        }
        let mut body = vec![0; body_bytes as usize];
        self.read(&mut body)?;
        if checksum::crc32c_append(checksum::crc32c(&header[..4]), &body) != crc {
            return Err(self.damaged("a frame does not match its checksum"));
        }
        Ok(Some(body))
    }
}

/// Converts a row that was read. Returns `None` to insert the row unchanged.
pub(super) type Convert = fn(&str, &[u8], &[u8]) -> Result<Option<Row>, StoreError>;

/// Inserts all rows of a file into a new database, each converted by `convert`. Calls `progress` with the size of each
/// frame.
pub(super) fn read(
    database: Database,
    mut file: CheckedFile<'_>,
    into: &redb::Database,
    convert: Convert,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), BackupError> {
    loop {
        let mut transaction = into.begin_write()?;
        // With quick repair, an open after a crash does not walk the whole file.
        transaction.set_quick_repair(true);
        let begin = file.left;
        while begin - file.left < TRANSACTION_BYTES {
            let left = file.left;
            let Some(body) = file.frame()? else {
                transaction.commit()?;
                return file.end();
            };
            insert(database, &body, &transaction, convert, &file)?;
            if progress(left - file.left).is_break() {
                return Err(BackupError::Cancelled);
            }
        }
        transaction.commit()?;
    }
}

fn insert(
    database: Database,
    body: &[u8],
    transaction: &WriteTransaction,
    convert: Convert,
    file: &CheckedFile<'_>,
) -> Result<(), BackupError> {
    let malformed = || file.damaged("a frame has no table name");
    let (length, rest) = body.split_first_chunk::<2>().ok_or_else(malformed)?;
    let (name, rows) = rest.split_at_checked(u16::from_le_bytes(*length).into()).ok_or_else(malformed)?;
    let name = std::str::from_utf8(name).map_err(|_| malformed())?;
    if !database.with_table(name, &mut Inserting { rows, transaction, convert, file })? {
        return Err(file.damaged(format!("this version does not know the table {name:?}")));
    }
    Ok(())
}

struct Inserting<'a> {
    rows: &'a [u8],
    transaction: &'a WriteTransaction,
    convert: Convert,
    file: &'a CheckedFile<'a>,
}

impl WithTable for Inserting<'_> {
    fn with<K: Column + redb::Key, V: Column>(&mut self, table: TableDefinition<'_, K, V>) -> Result<(), BackupError> {
        let name = table.name().to_owned();
        let mut table = self.transaction.open_table(table)?;
        while !self.rows.is_empty() {
            let malformed = || self.file.damaged(format!("a row of table {name:?} is malformed"));
            let (key, value) = next_row(&mut self.rows).ok_or_else(malformed)?;
            let converted = (self.convert)(&name, key, value).map_err(|_| malformed())?;
            let (key, value) = converted.as_ref().map_or((key, value), |(key, value)| (key, value));
            if !K::fits(key) || !V::fits(value) {
                return Err(malformed());
            }
            table.insert(K::from_bytes(key), V::from_bytes(value))?;
        }
        Ok(())
    }
}

fn next_row<'r>(rows: &mut &'r [u8]) -> Option<(&'r [u8], &'r [u8])> {
    let ([key_bytes, value_bytes], rest) = <[U32; 2]>::ref_from_prefix(rows).ok()?;
    let (key, rest) = rest.split_at_checked(key_bytes.get() as usize)?;
    let (value, rest) = rest.split_at_checked(value_bytes.get() as usize)?;
    *rows = rest;
    Some((key, value))
}
