//! A checksum of the small tables: the catalog, the log starts and the marks. redb compares pages with their checksums
//! when it was not closed in good order, and not when it was; and where it refuses a file, `check` reads the rows past
//! its checksums. A batch, a segment's entry and a journal's value have checksums of their own, these rows have this one.
//!
//! Each row has a number, the first eight bytes of a SHA-256, and what is stored is the sum of them, modulo 2^64: a row
//! that changes costs no look at the others.

use redb::{
    AccessGuard, Key, ReadTransaction, ReadableTable, StorageError, Table, TableDefinition, TableHandle, Value,
    WriteTransaction,
};
use sha2::{Digest, Sha256};

use super::panics::caught;
use super::recovery::mark;
use super::{CATALOG, LOG_STARTS, MARKS, StoreError, open_table};

/// The mark that has the sum; of the marks it is the one that is not in it.
const ROWS_SUM: &str = "rows-sum";

/// What a transaction changes of the sum.
#[derive(Debug, Default)]
pub(super) struct RowsSum(u64);

impl RowsSum {
    /// Sets or removes a row.
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

    /// Adds it to what is stored.
    pub(super) fn write(self, transaction: &WriteTransaction) -> Result<(), StoreError> {
        if self.0 != 0 {
            let mut marks = transaction.open_table(MARKS)?;
            let before = marks.get(ROWS_SUM)?.map_or(0, |sum| sum.value());
            marks.insert(ROWS_SUM, before.wrapping_add(self.0))?;
        }
        Ok(())
    }
}

/// Whether the rows are those that were written.
///
/// # Errors
/// [`StoreError::Corrupt`] where they are not, or what the disk says.
pub(super) fn verify(read: &ReadTransaction) -> Result<(), StoreError> {
    // redb panics on a key that is no text any more.
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
