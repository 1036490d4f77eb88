//! Records as columns: what stages work on (`sdk/wit/stage.wit` has the same shapes).

use std::ops::Range;

use crate::Limits;
use crate::batch::RecordBatch;
use crate::build::BatchBuilder;
use crate::error::{BatchError, ColumnError};
use crate::records::RECORD_BYTES_MIN;

/// One byte string an entry: lengths (-1 is null), and all bytes back to back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// One an entry; -1 is null.
    pub lengths: Vec<i32>,
    /// The entries' bytes, back to back.
    pub bytes: Vec<u8>,
}

impl Column {
    /// Appends an entry. Entries are at most `i32::MAX` bytes: record batches allow no more.
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

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Removes the entries, keeps the memory.
    pub fn clear(&mut self) {
        self.lengths.clear();
        self.bytes.clear();
    }

    /// The entries in order. The column must be sound.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> + Clone {
        let mut at = 0;
        self.lengths.iter().map(move |&length| {
            let len = usize::try_from(length).ok()?;
            let entry = &self.bytes[at..at + len];
            at += len;
            Some(entry)
        })
    }

    /// Checks that lengths are -1 or more and add up to the bytes.
    ///
    /// # Errors
    /// [`ColumnError`] with the first thing that is wrong.
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

    /// The entries whose `mask` is not 0. Neighbours are copied together.
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

    /// The entries `range`.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let bytes_of = |lengths: &[i32]| lengths.iter().map(|length| (*length).max(0) as usize).sum::<usize>();
        let begin = bytes_of(&self.lengths[..range.start]);
        let end = begin + bytes_of(&self.lengths[range.clone()]);
        Self { lengths: self.lengths[range].to_vec(), bytes: self.bytes[begin..end].to_vec() }
    }

    /// The entries at `indices`, in that order.
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

/// Random access to a sound column.
#[derive(Clone, Debug)]
pub struct ColumnReader<'a> {
    column: &'a Column,
    starts: Vec<u32>,
}

impl<'a> ColumnReader<'a> {
    /// Adds the lengths up once.
    pub fn new(column: &'a Column) -> Self {
        let mut at = 0u32;
        let starts = column.lengths.iter().map(|length| {
            let start = at;
            at = at.wrapping_add((*length).max(0) as u32);
            start
        });
        Self { column, starts: starts.collect() }
    }

    /// Entry `index`.
    ///
    /// # Panics
    /// Where there is no such entry.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let len = usize::try_from(self.column.lengths[index]).ok()?;
        let start = self.starts[index] as usize;
        Some(&self.column.bytes[start..start + len])
    }
}

/// Headers of all records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderColumns {
    /// Headers a record; empty where no record has any.
    pub counts: Vec<u32>,
    /// One a header, UTF-8, never null.
    pub names: Column,
    /// One a header.
    pub values: Column,
}

impl HeaderColumns {
    /// Checks shapes and names against the number of records.
    ///
    /// # Errors
    /// [`ColumnError`] with the first thing that is wrong.
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

    /// Appends the headers of one record, the `records`-th.
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

    /// Drops the counts again where nobody has a header, so that equal columns are equal.
    fn normalise(mut self) -> Self {
        if self.names.is_empty() {
            self.counts.clear();
        }
        self
    }
}

/// Records of one partition, in columns of equal length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Positions in the partition.
    pub offsets: Vec<i64>,
    /// In ms since the epoch.
    pub timestamps_ms: Vec<i64>,
    /// Null or bytes.
    pub keys: Column,
    /// Null (tombstones) or bytes.
    pub values: Column,
    /// Headers.
    pub headers: HeaderColumns,
}

impl Columns {
    /// How many records there are.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Removes the records, keeps the memory.
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.timestamps_ms.clear();
        self.keys.clear();
        self.values.clear();
        self.headers.counts.clear();
        self.headers.names.clear();
        self.headers.values.clear();
    }

    /// Bytes of keys, values and headers.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.names.bytes.len() + self.headers.values.bytes.len();
        self.keys.bytes.len() + self.values.bytes.len() + headers
    }

    /// Appends the records of a batch from `from_offset` on. Returns how many.
    ///
    /// # Errors
    /// [`BatchError`] for a body that does not inflate or parse. Records before the malformed one
    /// may have been appended.
    pub fn append_batch(&mut self, batch: &RecordBatch, from_offset: i64, limits: &Limits) -> Result<u32, BatchError> {
        let records = batch.records(limits)?;
        // The count is a claim: no more is reserved than the body can hold.
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

    /// The records whose `mask` is not 0.
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

    /// The records `range`.
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

    /// The headers of the records at `indices`, in that order.
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

    /// The records at `indices`, in that order.
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

    /// Checks that the columns are sound and equally long.
    ///
    /// # Errors
    /// [`ColumnError`] with the first thing that is wrong.
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

/// Checks a column's number of entries.
///
/// # Errors
/// [`ColumnError::EntryCount`].
fn expect_entries(column: &'static str, found: usize, expected: usize) -> Result<(), ColumnError> {
    if found == expected { Ok(()) } else { Err(ColumnError::EntryCount { column, found, expected }) }
}

fn select<T: Copy>(of: &[T], mask: &[u8]) -> Vec<T> {
    of.iter().zip(mask).filter(|(_, keep)| **keep != 0).map(|(value, _)| *value).collect()
}

/// Random access to sound columns, a record at a time.
#[derive(Clone, Debug)]
pub struct ColumnsReader<'a> {
    columns: &'a Columns,
    keys: ColumnReader<'a>,
    values: ColumnReader<'a>,
    header_starts: Vec<u32>,
    header_names: ColumnReader<'a>,
    header_values: ColumnReader<'a>,
}

/// One record of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Position in the partition.
    pub offset: i64,
    /// In ms since the epoch.
    pub timestamp_ms: i64,
    /// Null or bytes.
    pub key: Option<&'a [u8]>,
    /// Null or bytes.
    pub value: Option<&'a [u8]>,
}

impl<'a> ColumnsReader<'a> {
    /// Adds the lengths up once.
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

    /// Record `index`.
    ///
    /// # Panics
    /// Where there is no such record.
    #[inline]
    pub fn row(&self, index: usize) -> Row<'a> {
        Row {
            offset: self.columns.offsets[index],
            timestamp_ms: self.columns.timestamps_ms[index],
            key: self.keys.get(index),
            value: self.values.get(index),
        }
    }

    /// The headers of record `index`. A name that is not UTF-8 is shown as empty; sound columns
    /// have none.
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
