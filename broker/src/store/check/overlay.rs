//! A read-only file with changes that are kept in memory and never reach the disk. redb repairs the files that it
//! opens, but a check must leave the data directory unchanged.

use std::collections::BTreeMap;
use std::io;

use parking_lot::Mutex;
use redb::StorageBackend;

use super::super::file_system::StoreFile;

/// Size of the pages in which changes are kept, in bytes. It is redb's own page size.
const PAGE_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct Overlay {
    file: Box<dyn StoreFile>,
    changes: Mutex<Changes>,
}

#[derive(Debug, Default)]
struct Changes {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: Option<u64>,
    /// Bytes of the underlying file from this position on are hidden, because the file was truncated there.
    file_len: Option<u64>,
}

impl Overlay {
    pub(super) fn new(file: Box<dyn StoreFile>) -> Self {
        Self { file, changes: Mutex::default() }
    }

    fn file_len(&self, changes: &Changes) -> io::Result<u64> {
        let len = self.file.len()?;
        Ok(changes.file_len.map_or(len, |limit| limit.min(len)))
    }

    /// Returns the contents of a page, with zeros beyond the end of the file.
    fn page(&self, changes: &Changes, page: u64) -> io::Result<Box<[u8]>> {
        if let Some(changed) = changes.pages.get(&page) {
            return Ok(changed.clone());
        }
        let mut bytes = vec![0; PAGE_BYTES].into_boxed_slice();
        let at = page * PAGE_BYTES as u64;
        let there = self.file_len(changes)?.saturating_sub(at).min(PAGE_BYTES as u64) as usize;
        self.file.read(at, &mut bytes[..there])?;
        Ok(bytes)
    }
}

/// Splits a byte range at page boundaries. Yields the page number, the range within the page, and the position within
/// the given range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        (at < len).then(|| {
            let position = offset + at as u64;
            let begin = (position % PAGE_BYTES as u64) as usize;
            let part = begin..PAGE_BYTES.min(begin + len - at);
            let found = (position / PAGE_BYTES as u64, part.clone(), at);
            at += part.len();
            found
        })
    })
}

impl StoreFile for Overlay {}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        match self.changes.lock().len {
            Some(len) => Ok(len),
            None => self.file.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let changes = self.changes.lock();
        if changes.pages.is_empty() && offset + out.len() as u64 <= self.file_len(&changes)? {
            return self.file.read(offset, out);
        }
        for (page, part, at) in parts(offset, out.len()) {
            let len = part.len();
            out[at..at + len].copy_from_slice(&self.page(&changes, page)?[part]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = self.changes.lock();
        let before = changes.len.map_or_else(|| self.file.len(), Ok)?;
        if len < before {
            let first_gone = len.div_ceil(PAGE_BYTES as u64);
            drop(changes.pages.split_off(&first_gone));
            if !len.is_multiple_of(PAGE_BYTES as u64) {
                let mut last = self.page(&changes, len / PAGE_BYTES as u64)?;
                last[(len % PAGE_BYTES as u64) as usize..].fill(0);
                changes.pages.insert(len / PAGE_BYTES as u64, last);
            }
            changes.file_len = Some(self.file_len(&changes)?.min(len));
        }
        changes.len = Some(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes.lock();
        for (page, part, at) in parts(offset, data.len()) {
            let mut bytes = self.page(&changes, page)?;
            let len = part.len();
            bytes[part].copy_from_slice(&data[at..at + len]);
            changes.pages.insert(page, bytes);
        }
        let end = offset + data.len() as u64;
        if end > changes.len.map_or_else(|| self.file.len(), Ok)? {
            changes.len = Some(end);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
