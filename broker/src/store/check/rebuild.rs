//! The journal's database where redb refuses it. After a crash redb compares every page with its checksum, and a page
//! that is damaged costs all of them, though our own checksums tell which batch it is. So the rows are read past
//! redb's checksums, as of its last commit, into a new database.

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

/// Where redb's file format has its flags: after the magic number.
const FLAGS_AT: u64 = 9;
/// The flag of a file that was not closed.
const RECOVERY_REQUIRED: u8 = 2;

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// A folder with a database of the rows that the journal's database has, among those of the system for temporary files: it takes twice
/// the room of the file.
pub(super) fn rebuild(files: &Files) -> Result<TempDir, StoreError> {
    let file = &files.path(DATABASE_FILE);
    let folder = tempfile::tempdir().map_err(|source| StoreError::io("make", &std::env::temp_dir(), source))?;
    let copy = folder.path().join("damaged");
    copy_as_closed(files, &copy).map_err(|source| StoreError::io("write", &copy, source))?;
    let opened = |source| StoreError::open(file, source);
    // The only mode in which redb neither needs to know which pages are free nor looks at them all.
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

/// Puts the rebuilt database in the place of the damaged one, wholly or not at all.
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
