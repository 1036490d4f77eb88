//! Records as columns, the form that stages work on (`sdk/wit/stage.wit` defines the same types).

use std::ops::Range;

use crate::Limits;
use crate::batch::RecordBatch;
use crate::build::BatchBuilder;
use crate::error::{BatchError, ColumnError};
use crate::records::RECORD_BYTES_MIN;

/// A column of nullable byte strings, stored as their lengths and their concatenated bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// Length of each entry in bytes, or -1 for null.
    pub lengths: Vec<i32>,
    /// The bytes of all entries, concatenated.
    pub bytes: Vec<u8>,
}

impl Column {
    /// Appends an entry of at most `i32::MAX` bytes, the maximum that a record batch allows.
    #[inline]
    pub fn push(&mut self, entry: Option<&[u8]>) {
        match entry {
            None => self.lengths.push(-1),
            Some(bytes) => {
                self.lengths.push(bytes.len() as i32);
                self.bytes.extend_from_slice(bytes);
            }
        }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether the column has no entries.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Removes all entries and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.lengths.clear();
        self.bytes.clear();
    }

    /// Returns an iterator over the entries. The column must be valid.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> + Clone {
        let mut at = 0;
        self.lengths.iter().map(move |&length| {
            let len = usize::try_from(length).ok()?;
            let entry = &self.bytes[at..at + len];
            at += len;
            Some(entry)
        })
    }

    /// Checks that all lengths are at least -1 and that they add up to the number of bytes.
    ///
    /// # Errors
    /// [`ColumnError`] that describes the first problem.
    pub fn check(&self) -> Result<(), ColumnError> {
        let (mut sum, mut least) = (0u64, 0i32);
        for &length in &self.lengths {
            least = least.min(length);
            sum += length.max(0) as u64;
        }
        if least < -1 {
            let index = self.lengths.iter().position(|length| *length < -1).unwrap_or(0);
            return Err(ColumnError::NegativeLength { index, length: self.lengths[index] });
        }
        if sum != self.bytes.len() as u64 {
            return Err(ColumnError::LengthSum { sum, bytes: self.bytes.len() });
        }
        Ok(())
    }

    /// Appends the entries of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.lengths.extend_from_slice(&other.lengths);
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// Returns the entries whose `mask` is not 0. Adjacent entries are copied in one go.
    pub fn select(&self, mask: &[u8]) -> Self {
        let mut out = Self::default();
        let (mut at, mut run) = (0, 0..0);
        for (&length, &keep) in self.lengths.iter().zip(mask) {
            let end = at + length.max(0) as usize;
            if keep != 0 {
                out.lengths.push(length);
                run.end = end;
            } else {
                out.bytes.extend_from_slice(&self.bytes[run]);
                run = end..end;
            }
            at = end;
        }
        out.bytes.extend_from_slice(&self.bytes[run]);
        out
    }

    /// Returns the entries in `range`.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let bytes_of = |lengths: &[i32]| lengths.iter().map(|length| (*length).max(0) as usize).sum::<usize>();
        let begin = bytes_of(&self.lengths[..range.start]);
        let end = begin + bytes_of(&self.lengths[range.clone()]);
        Self { lengths: self.lengths[range].to_vec(), bytes: self.bytes[begin..end].to_vec() }
    }

    /// Returns the entries at `indices`, in the order of `indices`.
    pub fn gather(&self, indices: &[u32]) -> Self {
        let reader = ColumnReader::new(self);
        let mut out = Self { lengths: Vec::with_capacity(indices.len()), bytes: Vec::new() };
        for &index in indices {
            out.push(reader.get(index as usize));
        }
        out
    }
}

impl<'a> FromIterator<Option<&'a [u8]>> for Column {
    fn from_iter<I: IntoIterator<Item = Option<&'a [u8]>>>(entries: I) -> Self {
        let mut column = Self::default();
        entries.into_iter().for_each(|entry| column.push(entry));
        column
    }
}

/// Random access to the entries of a valid column.
#[derive(Clone, Debug)]
pub struct ColumnReader<'a> {
    column: &'a Column,
    starts: Vec<u32>,
}

impl<'a> ColumnReader<'a> {
    /// Computes the start of each entry.
    pub fn new(column: &'a Column) -> Self {
        let mut at = 0u32;
        let starts = column.lengths.iter().map(|length| {
            let start = at;
            at = at.wrapping_add((*length).max(0) as u32);
            start
        });
        Self { column, starts: starts.collect() }
    }

    /// Returns entry `index`.
    ///
    /// # Panics
    /// Panics if `index` is out of bounds.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let len = usize::try_from(self.column.lengths[index]).ok()?;
        let start = self.starts[index] as usize;
        Some(&self.column.bytes[start..start + len])
    }
}

/// The headers of all records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderColumns {
    /// Number of headers of each record; empty if no record has headers.
    pub counts: Vec<u32>,
    /// Name of each header, as non-null UTF-8.
    pub names: Column,
    /// Value of each header.
    pub values: Column,
}

impl HeaderColumns {
    /// Checks the lengths of the columns against the number of records, and checks the header names.
    ///
    /// # Errors
    /// [`ColumnError`] that describes the first problem.
    pub fn check(&self, records: usize) -> Result<(), ColumnError> {
        if !self.counts.is_empty() {
            expect_entries("the column of header counts", self.counts.len(), records)?;
        }
        let headers: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let headers = usize::try_from(headers).unwrap_or(usize::MAX);
        expect_entries("the column of header names", self.names.len(), headers)?;
        expect_entries("the column of header values", self.values.len(), headers)?;
        self.names.check()?;
        self.values.check()?;
        for (index, name) in self.names.iter().enumerate() {
            if name.is_none_or(|name| std::str::from_utf8(name).is_err()) {
                return Err(ColumnError::HeaderName { index });
            }
        }
        Ok(())
    }

    /// Appends the headers of the record that follows the first `records_before` records.
    fn push<'h>(&mut self, records_before: usize, headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>) {
        let before = self.names.len();
        for (name, value) in headers {
            self.names.push(Some(name.as_bytes()));
            self.values.push(value);
        }
        let count = (self.names.len() - before) as u32;
        if self.counts.is_empty() && count > 0 {
            self.counts.resize(records_before, 0);
        }
        if count > 0 || !self.counts.is_empty() {
            self.counts.push(count);
        }
    }

    /// Clears the counts if no record has headers, so that equal records compare equal.
    fn normalise(mut self) -> Self {
        if self.names.is_empty() {
            self.counts.clear();
        }
        self
    }
}

/// Records of one partition, as columns of equal length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Offset of each record in the partition.
    pub offsets: Vec<i64>,
    /// Timestamp of each record, in ms since the epoch.
    pub timestamps_ms: Vec<i64>,
    /// Key of each record, which may be null.
    pub keys: Column,
    /// Value of each record; null is a tombstone.
    pub values: Column,
    /// Headers of the records.
    pub headers: HeaderColumns,
}

impl Columns {
    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Removes all records and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.timestamps_ms.clear();
        self.keys.clear();
        self.values.clear();
        self.headers.counts.clear();
        self.headers.names.clear();
        self.headers.values.clear();
    }

    /// Returns the total size of keys, values and headers, in bytes.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.names.bytes.len() + self.headers.values.bytes.len();
        self.keys.bytes.len() + self.values.bytes.len() + headers
    }

    /// Appends the records of a batch whose offset is at least `from_offset`, and returns how many were appended.
    ///
    /// # Errors
    /// [`BatchError`] if the body cannot be decompressed or parsed. The records before the malformed one may have been
    /// appended.
    pub fn append_batch(&mut self, batch: &RecordBatch, from_offset: i64, limits: &Limits) -> Result<u32, BatchError> {
        let records = batch.records(limits)?;
        // The count in the header is not trusted: no more is reserved than the body can contain.
        let expected = (batch.record_count() as usize).min(records.body().len() / RECORD_BYTES_MIN);
        self.offsets.reserve(expected);
        self.timestamps_ms.reserve(expected);
        self.keys.lengths.reserve(expected);
        self.values.lengths.reserve(expected);
        self.values.bytes.reserve(records.body().len());
        let before = self.len();
        for record in &records {
            let record = record?;
            if record.offset < from_offset {
                continue;
            }
            if record.header_count() > 0 || !self.headers.counts.is_empty() {
                self.headers.push(self.offsets.len(), record.headers());
            }
            self.offsets.push(record.offset);
            self.timestamps_ms.push(record.timestamp_ms);
            self.keys.push(record.key);
            self.values.push(record.value);
        }
        Ok((self.len() - before) as u32)
    }

    /// Appends one record.
    pub fn push<'h>(
        &mut self,
        offset: i64,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) {
        self.headers.push(self.offsets.len(), headers);
        self.offsets.push(offset);
        self.timestamps_ms.push(timestamp_ms);
        self.keys.push(key);
        self.values.push(value);
    }

    /// Appends the records of `other`.
    pub fn extend(&mut self, other: &Self) {
        if !other.headers.counts.is_empty() && self.headers.counts.is_empty() {
            self.headers.counts.resize(self.len(), 0);
        }
        if !self.headers.counts.is_empty() || !other.headers.counts.is_empty() {
            self.headers.counts.extend_from_slice(&other.headers.counts);
            self.headers.counts.resize(self.len() + other.len(), 0);
        }
        self.headers.names.extend(&other.headers.names);
        self.headers.values.extend(&other.headers.values);
        self.offsets.extend_from_slice(&other.offsets);
        self.timestamps_ms.extend_from_slice(&other.timestamps_ms);
        self.keys.extend(&other.keys);
        self.values.extend(&other.values);
    }

    /// Returns the records whose `mask` is not 0.
    pub fn select(&self, mask: &[u8]) -> Self {
        Self {
            offsets: select(&self.offsets, mask),
            timestamps_ms: select(&self.timestamps_ms, mask),
            keys: self.keys.select(mask),
            values: self.values.select(mask),
            headers: self.select_headers(mask),
        }
    }

    fn select_headers(&self, mask: &[u8]) -> HeaderColumns {
        let headers = &self.headers;
        if headers.counts.is_empty() {
            return HeaderColumns::default();
        }
        let mut wide = Vec::with_capacity(headers.names.len());
        for (&count, &keep) in headers.counts.iter().zip(mask) {
            wide.resize(wide.len() + count as usize, keep);
        }
        let counts = select(&headers.counts, mask);
        HeaderColumns { counts, names: headers.names.select(&wide), values: headers.values.select(&wide) }.normalise()
    }

    /// Returns the records in `range`.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let headers = if self.headers.counts.is_empty() {
            HeaderColumns::default()
        } else {
            let count = |counts: &[u32]| counts.iter().map(|count| *count as usize).sum::<usize>();
            let begin = count(&self.headers.counts[..range.start]);
            let wide = begin..begin + count(&self.headers.counts[range.clone()]);
            HeaderColumns {
                counts: self.headers.counts[range.clone()].to_vec(),
                names: self.headers.names.slice(wide.clone()),
                values: self.headers.values.slice(wide),
            }
            .normalise()
        };
        Self {
            offsets: self.offsets[range.clone()].to_vec(),
            timestamps_ms: self.timestamps_ms[range.clone()].to_vec(),
            keys: self.keys.slice(range.clone()),
            values: self.values.slice(range),
            headers,
        }
    }

    /// Returns the headers of the records at `indices`, in the order of `indices`.
    pub fn gather_headers(&self, indices: &[u32]) -> HeaderColumns {
        let mut out = HeaderColumns::default();
        if self.headers.counts.is_empty() {
            return out;
        }
        let reader = ColumnsReader::new(self);
        for (before, &index) in indices.iter().enumerate() {
            out.push(before, reader.headers(index as usize));
        }
        out.normalise()
    }

    /// Returns the records at `indices`, in the order of `indices`.
    pub fn gather(&self, indices: &[u32]) -> Self {
        let pick = |of: &[i64]| indices.iter().map(|index| of[*index as usize]).collect();
        Self {
            offsets: pick(&self.offsets),
            timestamps_ms: pick(&self.timestamps_ms),
            keys: self.keys.gather(indices),
            values: self.values.gather(indices),
            headers: self.gather_headers(indices),
        }
    }

    /// Checks that each column is valid and that all have the same length.
    ///
    /// # Errors
    /// [`ColumnError`] that describes the first problem.
    pub fn check(&self) -> Result<(), ColumnError> {
        let records = self.len();
        expect_entries("the column of timestamps", self.timestamps_ms.len(), records)?;
        expect_entries("the column of keys", self.keys.len(), records)?;
        expect_entries("the column of values", self.values.len(), records)?;
        self.keys.check()?;
        self.values.check()?;
        self.headers.check(records)
    }
}

/// Checks that a column has the expected number of entries.
///
/// # Errors
/// [`ColumnError::EntryCount`] if it does not.
fn expect_entries(column: &'static str, found: usize, expected: usize) -> Result<(), ColumnError> {
    if found == expected { Ok(()) } else { Err(ColumnError::EntryCount { column, found, expected }) }
}

fn select<T: Copy>(of: &[T], mask: &[u8]) -> Vec<T> {
    of.iter().zip(mask).filter(|(_, keep)| **keep != 0).map(|(value, _)| *value).collect()
}

/// Random access to the records of valid columns.
#[derive(Clone, Debug)]
pub struct ColumnsReader<'a> {
    columns: &'a Columns,
    keys: ColumnReader<'a>,
    values: ColumnReader<'a>,
    header_starts: Vec<u32>,
    header_names: ColumnReader<'a>,
    header_values: ColumnReader<'a>,
}

/// One record of [`Columns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Offset of the record in the partition.
    pub offset: i64,
    /// Timestamp, in ms since the epoch.
    pub timestamp_ms: i64,
    /// Key, which may be null.
    pub key: Option<&'a [u8]>,
    /// Value; null is a tombstone.
    pub value: Option<&'a [u8]>,
}

impl<'a> ColumnsReader<'a> {
    /// Computes the start of each entry.
    pub fn new(columns: &'a Columns) -> Self {
        let mut at = 0;
        let header_starts = columns.headers.counts.iter().map(|count| {
            let start = at;
            at += count;
            start
        });
        Self {
            header_starts: header_starts.collect(),
            columns,
            keys: ColumnReader::new(&columns.keys),
            values: ColumnReader::new(&columns.values),
            header_names: ColumnReader::new(&columns.headers.names),
            header_values: ColumnReader::new(&columns.headers.values),
        }
    }

    /// Returns record `index`.
    ///
    /// # Panics
    /// Panics if `index` is out of bounds.
    #[inline]
    pub fn row(&self, index: usize) -> Row<'a> {
        Row {
            offset: self.columns.offsets[index],
            timestamp_ms: self.columns.timestamps_ms[index],
            key: self.keys.get(index),
            value: self.values.get(index),
        }
    }

    /// Returns the headers of record `index`. A name that is not UTF-8 is returned as an empty string; valid columns
    /// have no such names.
    #[inline]
    pub fn headers(&self, index: usize) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + Clone {
        let range = match self.header_starts.get(index) {
            None => 0..0,
            Some(&start) => start as usize..(start + self.columns.headers.counts[index]) as usize,
        };
        range.map(|at| {
            let name = self.header_names.get(at).unwrap_or_default();
            (std::str::from_utf8(name).unwrap_or_default(), self.header_values.get(at))
        })
    }

    /// Appends record `index` to a batch.
    #[inline]
    pub fn push_to(&self, builder: &mut BatchBuilder, index: usize) {
        let row = self.row(index);
        builder.push(row.timestamp_ms, row.key, row.value, self.headers(index));
    }
}
