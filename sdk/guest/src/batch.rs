//! Columns as the host sends and receives them (`stage.wit`), and records that borrow from them.

use crate::record::{Headers, Record};

/// A column of nullable byte strings: the length of each entry (-1 for null), and the concatenated bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    pub lengths: Vec<i32>,
    pub bytes: Vec<u8>,
}

impl Column {
    #[inline]
    pub(crate) fn push(&mut self, entry: Option<&[u8]>) {
        match entry {
            None => self.lengths.push(-1),
            Some(bytes) => {
                self.lengths.push(bytes.len() as i32);
                self.bytes.extend_from_slice(bytes);
            }
        }
    }

    /// Appends an entry that `write` appends to the bytes.
    pub(crate) fn push_with<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let before = self.bytes.len();
        match write(&mut self.bytes) {
            Ok(()) => {
                self.lengths.push((self.bytes.len() - before) as i32);
                Ok(())
            }
            Err(error) => {
                self.bytes.truncate(before);
                Err(error)
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest = self.slice();
        self.lengths.iter().map(move |_| rest.next_entry())
    }

    pub(crate) fn slice(&self) -> ColumnSlice<'_> {
        ColumnSlice { lengths: &self.lengths, bytes: &self.bytes }
    }

    /// Removes the entries from `len` on, whose bytes start at `bytes`.
    pub(crate) fn truncate(&mut self, (len, bytes): (usize, usize)) {
        self.lengths.truncate(len);
        self.bytes.truncate(bytes);
    }

    pub(crate) fn mark(&self) -> (usize, usize) {
        (self.lengths.len(), self.bytes.len())
    }
}

/// The remaining entries of a column.
#[derive(Clone, Copy, Debug)]
pub struct ColumnSlice<'a> {
    lengths: &'a [i32],
    bytes: &'a [u8],
}

impl<'a> ColumnSlice<'a> {
    /// Returns the next entry. After the end, and if the lengths are inconsistent with the bytes, it is null; the host
    /// checks columns.
    #[inline]
    pub(crate) fn next_entry(&mut self) -> Option<&'a [u8]> {
        let (&length, lengths) = self.lengths.split_first()?;
        self.lengths = lengths;
        let len = usize::try_from(length).ok()?;
        let (entry, bytes) = self.bytes.split_at_checked(len)?;
        self.bytes = bytes;
        Some(entry)
    }
}

/// Headers of all records. `counts` is empty if no record has headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderColumns {
    pub counts: Vec<u32>,
    pub names: Column,
    pub values: Column,
}

/// Records of one partition, as columns of equal length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub offsets: Vec<i64>,
    pub timestamps: Vec<i64>,
    pub keys: Column,
    pub values: Column,
    pub headers: HeaderColumns,
}

impl Batch {
    /// Returns a batch of one record.
    pub(crate) fn of(record: &Record<'_>) -> Self {
        let mut batch = Self::default();
        batch.offsets.push(record.offset());
        batch.timestamps.push(record.timestamp_ms());
        batch.keys.push(record.key());
        batch.values.push(record.value());
        let headers = &mut batch.headers;
        for (name, value) in record.headers() {
            headers.names.push(Some(name.as_bytes()));
            headers.values.push(value);
        }
        headers.counts.push(headers.names.lengths.len() as u32);
        batch
    }

    /// Returns an iterator over the records, which borrow from the batch.
    #[inline]
    pub(crate) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let (mut keys, mut values) = (self.keys.slice(), self.values.slice());
        let (mut names, mut header_values) = (self.headers.names.slice(), self.headers.values.slice());
        let mut counts = self.headers.counts.iter();
        self.offsets.iter().zip(&self.timestamps).map(move |(&offset, &timestamp_ms)| {
            let headers = match counts.next() {
                None | Some(0) => Headers::none(),
                Some(&count) => {
                    let headers = Headers::columns(count, names, header_values);
                    for _ in 0..count {
                        names.next_entry();
                        header_values.next_entry();
                    }
                    headers
                }
            };
            Record::in_place(offset, timestamp_ms, keys.next_entry(), values.next_entry(), headers)
        })
    }
}
