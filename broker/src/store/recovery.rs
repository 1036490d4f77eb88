//! Start: reads the journal once and hands every entry to whoever rebuilds memory from it.

use redb::ReadableDatabase;

pub(crate) use super::journal::Entry;
use super::journal::{self, Location};
use super::{JOURNAL, Store, StoreError};

impl Store {
    /// Calls `visit` with each entry in the order of the commits, and with the sequence number of
    /// its blob. Returns the sequence number after the last value.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a journal that is not whole, or what the disk says.
    pub(crate) fn replay(
        &self,
        mut visit: impl FnMut(u64, Entry<'_>) -> Result<(), String>,
    ) -> Result<u64, StoreError> {
        let read = self.db.begin_read()?;
        let table = match read.open_table(JOURNAL) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
            other => other?,
        };
        let mut next_seq = 0;
        let mut blob: Vec<u8> = Vec::new();
        let mut values = table.range::<u64>(..)?;
        while let Some(value) = values.next().transpose()? {
            let seq = value.0.value();
            let corrupt = |reason: String| StoreError::Corrupt { what: format!("journal value {seq}"), reason };
            let bytes = journal::blob_bytes(value.1.value()).map_err(corrupt)?;
            blob.clear();
            blob.extend_from_slice(value.1.value());
            next_seq = seq + 1;
            while blob.len() < bytes {
                let more = values.next().transpose()?.filter(|(key, _)| key.value() == next_seq);
                let Some((_, value)) = more else {
                    return Err(corrupt(format!("value {next_seq} of its blob is missing")));
                };
                blob.extend_from_slice(value.value());
                next_seq += 1;
            }
            if blob.len() != bytes {
                return Err(corrupt(format!("its blob has {} bytes, not {bytes}", blob.len())));
            }
            journal::read_blob(&blob, |entry| visit(seq, entry)).map_err(corrupt)?;
        }
        Ok(next_seq)
    }
}

/// Where an entry's batches stand.
pub(crate) fn location(seq: u64, pos: u32, batches: &[u8]) -> Location {
    Location { seq, pos, len: batches.len() as u32 }
}
