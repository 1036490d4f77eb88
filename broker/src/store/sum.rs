//! A checksum over the small tables: the catalog, the log starts and the marks. redb verifies the checksums of its
//! pages only if it was not closed cleanly, and if it refuses a file, `check` reads the rows without regard to redb's
//! checksums. Batches, segment entries and journal values have checksums of their own; these rows are covered by this
//! one.
//!
//! Each row is hashed to a number, the first eight bytes of a SHA-256, and the stored checksum is the sum of these
//! numbers modulo 2^64. It can be updated for a changed row without reading the other rows.

use redb::{
    AccessGuard, Key, ReadTransaction, ReadableTable, StorageError, Table, TableDefinition, TableHandle, Value,
    WriteTransaction,
};
use sha2::{Digest, Sha256};

use super::panics::caught;
use super::recovery::mark;
use super::{CATALOG, LOG_STARTS, MARKS, StoreError, open_table};

/// The mark that holds the sum. It is the only mark that the sum does not include.
const ROWS_SUM: &str = "rows-sum";

/// The change that a transaction makes to the sum.
#[derive(Debug, Default)]
pub(super) struct RowsSum(u64);

impl RowsSum {
    /// Sets a row, or removes it if `value` is `None`.
    pub(super) fn set<'k, K: Key + 'static, V: Value + 'static>(
        &mut self,
        table: &mut Table<'_, K, V>,
        key: K::SelfType<'k>,
        value: Option<V::SelfType<'k>>,
    ) -> Result<(), StorageError> {
        let name = table.name().to_owned();
        let key_bytes = K::as_bytes(&key).as_ref().to_vec();
        let number = |value: &V::SelfType<'_>| number(&name, &key_bytes, V::as_bytes(value).as_ref());
        let before = |guard: Option<AccessGuard<'_, V>>| guard.map_or(0, |guard| number(&guard.value()));
        let (old, new) = match value {
            Some(value) => {
                let new = number(&value);
                (before(table.insert(key, value)?), new)
            }
            None => (before(table.remove(key)?), 0),
        };
        self.0 = self.0.wrapping_sub(old).wrapping_add(new);
        Ok(())
    }

    /// Adds this change to the stored sum.
    pub(super) fn write(self, transaction: &WriteTransaction) -> Result<(), StoreError> {
        if self.0 != 0 {
            let mut marks = transaction.open_table(MARKS)?;
            let before = marks.get(ROWS_SUM)?.map_or(0, |sum| sum.value());
            marks.insert(ROWS_SUM, before.wrapping_add(self.0))?;
        }
        Ok(())
    }
}

/// Verifies that the rows match the stored sum.
///
/// # Errors
/// [`StoreError::Corrupt`] if they do not, or the error of the disk.
pub(super) fn verify(read: &ReadTransaction) -> Result<(), StoreError> {
    // redb panics on a damaged key that is no longer valid UTF-8.
    match caught(|| is_sum(read)) {
        Ok(Ok(true)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Ok(Ok(false)) | Err(_) => Err(StoreError::Corrupt {
            what: "a row of the catalog, the log starts or the marks".to_owned(),
            reason: "the rows do not match their checksum".to_owned(),
        }),
    }
}

fn is_sum(read: &ReadTransaction) -> Result<bool, StoreError> {
    let mut found = 0;
    add_rows(read, CATALOG, &mut found)?;
    add_rows(read, LOG_STARTS, &mut found)?;
    add_rows(read, MARKS, &mut found)?;
    let sum = mark(read, ROWS_SUM)?;
    let own = sum.map_or(0, |sum| number(MARKS.name(), ROWS_SUM.as_bytes(), &sum.to_le_bytes()));
    Ok(found.wrapping_sub(own) == sum.unwrap_or(0))
}

fn add_rows<K: Key + 'static, V: Value + 'static>(
    read: &ReadTransaction,
    table: TableDefinition<'_, K, V>,
    sum: &mut u64,
) -> Result<(), StoreError> {
    let Some(rows) = open_table(read, table)? else { return Ok(()) };
    for row in rows.iter()? {
        let (key, value) = row?;
        let (key, value) = (key.value(), value.value());
        *sum = sum.wrapping_add(number(table.name(), K::as_bytes(&key).as_ref(), V::as_bytes(&value).as_ref()));
    }
    Ok(())
}

fn number(table: &str, key: &[u8], value: &[u8]) -> u64 {
    let mut hash = Sha256::new();
    for part in [table.as_bytes(), key, value] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    u64::from_le_bytes(first)
}
