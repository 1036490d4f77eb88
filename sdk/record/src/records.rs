//! The records in the body of a batch.
//!
//! ```text
//! length varint | attributes i8 | timestampDelta varlong | offsetDelta varint | key | value
//! | headerCount varint | (name | value)*
//! ```
//! Keys, values and headers are encoded as a varint length (-1 for null) and the bytes.

use bytes::Bytes;

use crate::batch::{RecordBatch, TimestampType};
use crate::error::BatchError;
use crate::varint::Cursor;

/// Minimum size of a record, in bytes: seven fields of one byte each.
pub(crate) const RECORD_BYTES_MIN: usize = 7;

/// The decompressed records of one batch, in shared bytes.
#[derive(Clone, Debug)]
pub struct Records {
    body: Bytes,
    base_offset: i64,
    base_timestamp_ms: i64,
    /// The timestamp of all records, if the timestamp type is LogAppendTime.
    append_time_ms: Option<i64>,
    count: u32,
}

impl Records {
    pub(crate) fn new(batch: &RecordBatch, body: Bytes) -> Self {
        let append_time = batch.timestamp_type() == TimestampType::LogAppendTime;
        Self {
            body,
            base_offset: batch.base_offset(),
            base_timestamp_ms: batch.base_timestamp_ms(),
            append_time_ms: append_time.then(|| batch.max_timestamp_ms()),
            count: batch.record_count(),
        }
    }

    /// Returns an iterator over the records. It ends after the first error.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter { records: self, cursor: Cursor { bytes: &self.body }, index: 0 }
    }

    /// The decompressed body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Returns the number of records according to the batch header.
    pub fn claimed_count(&self) -> u32 {
        self.count
    }

    /// Converts `view` to a record that shares ownership of the body instead of borrowing it. `view` must come from
    /// these records.
    pub fn to_record(&self, view: &RecordView<'_>) -> Record {
        let owned = |bytes: &[u8]| {
            if bytes.is_empty() { Bytes::new() } else { self.body.slice_ref(bytes) }
        };
        let headers = view.headers().map(|(name, value)| Header { name: name.to_owned(), value: value.map(owned) });
        Record {
            offset: view.offset,
            timestamp_ms: view.timestamp_ms,
            key: view.key.map(owned),
            value: view.value.map(owned),
            headers: headers.collect(),
        }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<RecordView<'a>, BatchError>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        self.iter()
    }
}

/// Iterator over the records of a batch.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    records: &'a Records,
    cursor: Cursor<'a>,
    index: u32,
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordView<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.records.count {
            return None;
        }
        let index = self.index;
        self.index += 1;
        match read_record(&mut self.cursor) {
            Ok(raw) => Some(Ok(RecordView {
                // Batches from untrusted sources have been checked, but a corrupt log must not cause a panic either.
                offset: self.records.base_offset.wrapping_add(i64::from(raw.offset_delta)),
                timestamp_ms: self
                    .records
                    .append_time_ms
                    .unwrap_or_else(|| self.records.base_timestamp_ms.wrapping_add(raw.timestamp_delta)),
                key: raw.key,
                value: raw.value,
                header_count: raw.header_count,
                headers: raw.headers,
            })),
            Err(reason) => {
                self.index = self.records.count;
                Some(Err(BatchError::Record { index, reason }))
            }
        }
    }
}

/// A record that borrows the body of its batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// Offset of the record in its partition.
    pub offset: i64,
    /// Timestamp, in ms since the epoch.
    pub timestamp_ms: i64,
    /// Key, which may be null.
    pub key: Option<&'a [u8]>,
    /// Value; null is a tombstone.
    pub value: Option<&'a [u8]>,
    header_count: u32,
    headers: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Returns the headers, in order and including duplicates. The iterator ends at a malformed header.
    #[inline]
    pub fn headers(&self) -> HeaderIter<'a> {
        HeaderIter { cursor: Cursor { bytes: self.headers }, left: self.header_count }
    }

    /// Returns the number of headers.
    pub fn header_count(&self) -> u32 {
        self.header_count
    }
}

/// Iterator over the headers of a record.
#[derive(Clone, Debug)]
pub struct HeaderIter<'a> {
    cursor: Cursor<'a>,
    left: u32,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        read_header(&mut self.cursor).ok()
    }
}

/// A record with shared ownership of its bytes, which are slices of the batch body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Offset of the record in its partition.
    pub offset: i64,
    /// Timestamp, in ms since the epoch.
    pub timestamp_ms: i64,
    /// Key, which may be null.
    pub key: Option<Bytes>,
    /// Value; null is a tombstone.
    pub value: Option<Bytes>,
    /// Headers, in order and including duplicates.
    pub headers: Vec<Header>,
}

/// A header of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Name of the header.
    pub name: String,
    /// Value, which may be null.
    pub value: Option<Bytes>,
}

struct RawRecord<'a> {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    header_count: u32,
    headers: &'a [u8],
}

#[inline]
fn read_record<'a>(body: &mut Cursor<'a>) -> Result<RawRecord<'a>, &'static str> {
    let length = body.varint().and_then(|length| usize::try_from(length).ok()).ok_or("its length is invalid")?;
    let mut record = Cursor { bytes: body.take(length).ok_or("it extends past the end of the batch")? };
    record.byte().ok_or("it has no attributes")?;
    let timestamp_delta = record.varlong().ok_or("its timestamp is truncated or invalid")?;
    let offset_delta = record.varint().ok_or("its offset is truncated or invalid")?;
    let key = record.nullable().map_err(|()| "its key has an invalid length")?;
    let value = record.nullable().map_err(|()| "its value has an invalid length")?;
    let headers = record.varint().and_then(|count| u32::try_from(count).ok());
    let header_count = headers.ok_or("its header count is invalid")?;
    // A header takes at least two bytes.
    if header_count as usize > record.bytes.len() / 2 {
        return Err("it claims more headers than its bytes can contain");
    }
    Ok(RawRecord { timestamp_delta, offset_delta, key, value, header_count, headers: record.bytes })
}

#[inline]
fn read_header<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, Option<&'a [u8]>), &'static str> {
    let name = cursor.nullable().ok().flatten().ok_or("the name of a header is null or has an invalid length")?;
    let name = std::str::from_utf8(name).map_err(|_| "the name of a header is not UTF-8")?;
    let value = cursor.nullable().map_err(|()| "the value of a header has an invalid length")?;
    Ok((name, value))
}

/// The timestamp of a record that has none.
pub const NO_TIMESTAMP: i64 = -1;

/// A summary of the records of a batch, made while checking them. Indexes start at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Index and timestamp of the record with the smallest timestamp, in ms since the epoch.
    pub earliest: (u32, i64),
    /// Index and timestamp of the record with the largest timestamp, in ms since the epoch.
    pub latest: (u32, i64),
    /// Index of the first record without a timestamp ([`NO_TIMESTAMP`]).
    pub without_timestamp: Option<u32>,
    /// Index of the first record without a key.
    pub without_key: Option<u32>,
}

/// Checks that a body contains exactly `count` valid records with offset deltas 0 to `count` - 1.
pub(crate) fn walk(
    body: &[u8],
    count: u32,
    base_timestamp_ms: i64,
    record_bytes_max: usize,
) -> Result<Survey, BatchError> {
    let claimed = i64::from(count);
    if count as usize > body.len() / RECORD_BYTES_MIN {
        let found = format!("its body of {} bytes is too small for them", body.len());
        return Err(BatchError::Count { claimed, found });
    }
    let mut cursor = Cursor { bytes: body };
    let mut survey =
        Survey { earliest: (0, i64::MAX), latest: (0, i64::MIN), without_timestamp: None, without_key: None };
    for index in 0..count {
        if cursor.bytes.is_empty() {
            return Err(BatchError::Count { claimed, found: format!("its body contains {index}") });
        }
        let malformed = |reason| BatchError::Record { index, reason };
        let before = cursor.bytes.len();
        let record = read_record(&mut cursor).map_err(malformed)?;
        let bytes = before - cursor.bytes.len();
        if bytes > record_bytes_max {
            return Err(BatchError::RecordTooLarge { index, bytes, bytes_max: record_bytes_max });
        }
        if i64::from(record.offset_delta) != i64::from(index) {
            return Err(malformed("its offset does not follow that of the previous record"));
        }
        let mut headers = Cursor { bytes: record.headers };
        for _ in 0..record.header_count {
            read_header(&mut headers).map_err(malformed)?;
        }
        if !headers.bytes.is_empty() {
            return Err(malformed("there are bytes after its last field"));
        }
        let timestamp_ms = base_timestamp_ms.wrapping_add(record.timestamp_delta);
        if timestamp_ms < survey.earliest.1 {
            survey.earliest = (index, timestamp_ms);
        }
        if timestamp_ms > survey.latest.1 {
            survey.latest = (index, timestamp_ms);
        }
        if timestamp_ms == NO_TIMESTAMP {
            survey.without_timestamp = survey.without_timestamp.or(Some(index));
        }
        if record.key.is_none() {
            survey.without_key = survey.without_key.or(Some(index));
        }
    }
    if cursor.bytes.is_empty() {
        return Ok(survey);
    }
    Err(BatchError::Count { claimed, found: format!("{} bytes follow these records", cursor.bytes.len()) })
}
