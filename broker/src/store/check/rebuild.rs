//! Rebuilds a journal database that redb refuses to open. After a crash redb verifies the checksum of every page, and
//! one damaged page makes it refuse the whole file, although the store's own checksums can tell which batch is damaged.
//! The rows of the last commit are therefore read without regard to redb's checksums and copied into a new database.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use redb::{
    Builder, ConcurrencyMode, Database, Durability, Key, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition, Value, WriteTransaction,
};
use tempfile::TempDir;

use super::super::directory::{DATABASE_FILE, put_in_place};
use super::super::error::StoreError;
use super::super::file_system::Open;
use super::super::files::Files;
use super::super::{CATALOG, JOURNAL, LOG_STARTS, MARKS, SEGMENTS, open_table};

/// Position of the flags in redb's file format: after the magic number.
const FLAGS_AT: u64 = 9;
/// The flag that marks a file that was not closed cleanly.
const RECOVERY_REQUIRED: u8 = 2;

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Copies the rows of the journal's database into a new database, and returns the folder that holds it. The folder is
/// in the system's directory for temporary files and takes twice the space of the original file.
pub(super) fn rebuild(files: &Files) -> Result<TempDir, StoreError> {
    let file = &files.path(DATABASE_FILE);
    let folder = tempfile::tempdir().map_err(|source| StoreError::io("make", &std::env::temp_dir(), source))?;
    let copy = folder.path().join("damaged");
    copy_as_closed(files, &copy).map_err(|source| StoreError::io("write", &copy, source))?;
    let opened = |source| StoreError::open(file, source);
    // In this mode only, redb neither needs the list of free pages nor scans all pages.
    let mode = ConcurrencyMode::SingleWriter;
    let damaged = Builder::new().set_concurrency_mode(mode).open_read_only(&copy).map_err(opened)?;
    let rebuilt = Database::create(folder.path().join(DATABASE_FILE)).map_err(opened)?;
    let (from, mut to) = (damaged.begin_read()?, rebuilt.begin_write()?);
    to.set_durability(Durability::Immediate).map_err(|error| StoreError::Stopped(error.to_string()))?;
    copy_rows(&from, &to, JOURNAL)?;
    copy_rows(&from, &to, CATALOG)?;
    copy_rows(&from, &to, SEGMENTS)?;
    copy_rows(&from, &to, LOG_STARTS)?;
    copy_rows(&from, &to, MARKS)?;
    to.commit()?;
    Ok(folder)
}

fn copy_as_closed(files: &Files, copy: &Path) -> io::Result<()> {
    let file = files.system().open(&files.path(DATABASE_FILE), Open::Read)?;
    let mut copy = OpenOptions::new().read(true).write(true).create_new(true).open(copy)?;
    let (mut at, len, mut buffer) = (0, file.len()?, vec![0; COPY_BYTES]);
    while at < len {
        let part = &mut buffer[..(len - at).min(COPY_BYTES as u64) as usize];
        file.read(at, part)?;
        copy.write_all(part)?;
        at += part.len() as u64;
    }
    let mut flags = [0];
    copy.read_exact_at(&mut flags, FLAGS_AT)?;
    copy.write_all_at(&[flags[0] & !RECOVERY_REQUIRED], FLAGS_AT)
}

fn copy_rows<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<(), StoreError> {
    let Some(rows) = open_table(from, table)? else { return Ok(()) };
    let mut copy = to.open_table(table)?;
    for row in rows.iter()? {
        let (key, value) = row?;
        copy.insert(key.value(), value.value())?;
    }
    Ok(())
}

/// Replaces the damaged database with the rebuilt one atomically.
pub(super) fn replace(rebuilt: &TempDir, files: &Files) -> Result<(), StoreError> {
    let new = files.path(&format!("{DATABASE_FILE}.new"));
    let replace = || -> io::Result<()> {
        let mut from = File::open(rebuilt.path().join(DATABASE_FILE))?;
        let to = files.system().open(&new, Open::Write)?;
        to.set_len(0)?;
        to.set_len(from.metadata()?.len())?;
        let (mut at, mut buffer) = (0, vec![0; COPY_BYTES]);
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            to.write(at, &buffer[..read])?;
            at += read as u64;
        }
        to.sync_data()?;
        to.close()?;
        put_in_place(files.system(), &new, files.folder(), DATABASE_FILE)
    };
    replace().map_err(|source| StoreError::io("replace", &files.path(DATABASE_FILE), source))
}
