//! The output of a map. A column whose values are all taken from the source records is left out instead of copied.

use serde::Serialize;

use crate::batch::{Batch, Column, HeaderColumns};
use crate::error::Result;
use crate::record::Record;

/// Receives the outputs of a map for one record: zero or more records, in order.
#[derive(Debug)]
pub struct Output<'b> {
    batch: &'b Batch,
    current: u32,
    source: Record<'b>,
    mapped: Mapped,
}

/// All outputs of a batch. If a column is `None`, its values are those of the source records.
#[derive(Debug, Default)]
pub struct Mapped {
    pub sources: Vec<u32>,
    pub timestamps: Option<Vec<i64>>,
    pub keys: Option<Column>,
    pub values: Option<Column>,
    pub headers: Option<HeaderColumns>,
    pub failures: Vec<(u32, String)>,
}

/// A record to write, or one that a test collected. Fields that are not set are taken from the source record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRecord {
    key: Option<Option<Vec<u8>>>,
    value: Option<Option<Vec<u8>>>,
    timestamp_ms: Option<i64>,
    headers: Option<Vec<(String, Option<Vec<u8>>)>>,
}

impl NewRecord {
    /// Creates a record in which no field is set, which is a copy of the source record.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the key.
    pub fn with_key(self, key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(Some(key.into())), ..self }
    }

    /// Sets the key to null.
    pub fn without_key(self) -> Self {
        Self { key: Some(None), ..self }
    }

    /// Sets the value.
    pub fn with_value(self, value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(Some(value.into())), ..self }
    }

    /// Sets the value to `value` as JSON.
    ///
    /// # Errors
    /// Fails if `value` cannot be encoded as JSON.
    pub fn with_json<T: Serialize>(self, value: &T) -> Result<Self> {
        Ok(self.with_value(serde_json::to_vec(value)?))
    }

    /// Sets the value to null, which makes the record a tombstone.
    pub fn tombstone(self) -> Self {
        Self { value: Some(None), ..self }
    }

    /// Sets the timestamp, in milliseconds since the Unix epoch.
    pub fn with_timestamp_ms(self, timestamp_ms: i64) -> Self {
        Self { timestamp_ms: Some(timestamp_ms), ..self }
    }

    /// Adds a header. The headers of the source record are not kept.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.get_or_insert_default().push((name.into(), Some(value.into())));
        self
    }

    /// Returns the key, or `None` if it is null or not set.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_ref()?.as_deref()
    }

    /// Returns the value, or `None` if it is null or not set.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_ref()?.as_deref()
    }

    /// Returns the value as text, or an empty string if it is null, not set or not UTF-8.
    pub fn value_str(&self) -> &str {
        self.value().and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
    }

    /// Returns the key as text, or an empty string if it is null, not set or not UTF-8.
    pub fn key_str(&self) -> &str {
        self.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default()
    }

    /// Returns the timestamp if it is set.
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.timestamp_ms
    }

    /// Returns the headers, or an empty slice if they are not set.
    pub fn headers(&self) -> &[(String, Option<Vec<u8>>)] {
        self.headers.as_deref().unwrap_or_default()
    }
}

/// The lengths of all columns before a record, to which they are reset if the record fails.
#[derive(Debug)]
pub(crate) struct Mark {
    outputs: usize,
    keys: Option<(usize, usize)>,
    values: Option<(usize, usize)>,
    headers: Option<((usize, usize), (usize, usize))>,
}

impl<'b> Output<'b> {
    pub(crate) fn new(batch: &'b Batch) -> Self {
        let mapped = Mapped { sources: Vec::with_capacity(batch.offsets.len()), ..Mapped::default() };
        Self { batch, current: 0, source: Record::tombstone(), mapped }
    }

    /// Returns what `map` outputs for `record`, with all fields set. For tests.
    ///
    /// # Errors
    /// Returns the error of `map`.
    pub fn collect(record: &Record<'_>, map: impl FnOnce(&mut Output<'_>) -> Result<()>) -> Result<Vec<NewRecord>> {
        let batch = Batch::of(record);
        let mut out = Output::new(&batch);
        out.begin(0, &batch.records().next().expect("the batch has one record"));
        map(&mut out)?;
        for column in [Output::materialise_keys, Output::materialise_values] {
            column(&mut out);
        }
        out.materialise_timestamps();
        out.materialise_headers();
        let mapped = out.finish();
        let all = Batch {
            offsets: vec![0; mapped.sources.len()],
            timestamps: mapped.timestamps.unwrap_or_default(),
            keys: mapped.keys.unwrap_or_default(),
            values: mapped.values.unwrap_or_default(),
            headers: mapped.headers.unwrap_or_default(),
        };
        let owned = |record: Record<'_>| NewRecord {
            key: Some(record.key().map(<[u8]>::to_vec)),
            value: Some(record.value().map(<[u8]>::to_vec)),
            timestamp_ms: Some(record.timestamp_ms()),
            headers: Some(record.headers().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect()),
        };
        Ok(all.records().map(owned).collect())
    }

    /// Outputs the record with a different value.
    pub fn emit<V: AsRef<[u8]> + ?Sized>(&mut self, value: &V) {
        self.materialise_values().push(Some(value.as_ref()));
        self.push_source_but_value();
    }

    /// Outputs the record with `value` as JSON as its value.
    ///
    /// # Errors
    /// Fails if `value` cannot be encoded as JSON.
    pub fn emit_json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.materialise_values().push_with(|bytes| serde_json::to_writer(bytes, value))?;
        self.push_source_but_value();
        Ok(())
    }

    /// Outputs the record with a different key and value.
    pub fn emit_keyed<K: AsRef<[u8]> + ?Sized, V: AsRef<[u8]> + ?Sized>(&mut self, key: &K, value: &V) {
        self.materialise_keys().push(Some(key.as_ref()));
        self.materialise_values().push(Some(value.as_ref()));
        self.push_timestamp(None);
        self.push_source_headers();
        self.mapped.sources.push(self.current);
    }

    /// Outputs the record unchanged.
    #[inline]
    pub fn pass(&mut self) {
        if let Some(values) = &mut self.mapped.values {
            values.push(self.source.value());
        }
        self.push_source_but_value();
    }

    /// Outputs the record with a different key.
    pub fn pass_with_key<K: AsRef<[u8]> + ?Sized>(&mut self, key: &K) {
        self.materialise_keys().push(Some(key.as_ref()));
        if let Some(values) = &mut self.mapped.values {
            values.push(self.source.value());
        }
        self.push_timestamp(None);
        self.push_source_headers();
        self.mapped.sources.push(self.current);
    }

    /// Outputs `record`. Fields that it does not set are taken from the source record.
    pub fn emit_record(&mut self, record: &NewRecord) {
        match &record.key {
            Some(key) => self.materialise_keys().push(key.as_deref()),
            None => self.push_source_key(),
        }
        match &record.value {
            Some(value) => self.materialise_values().push(value.as_deref()),
            None => {
                if let Some(values) = &mut self.mapped.values {
                    values.push(self.source.value());
                }
            }
        }
        self.push_timestamp(record.timestamp_ms);
        match &record.headers {
            None => self.push_source_headers(),
            Some(list) => {
                let headers = self.materialise_headers();
                for (name, value) in list {
                    headers.names.push(Some(name.as_bytes()));
                    headers.values.push(value.as_deref());
                }
                headers.counts.push(list.len() as u32);
            }
        }
        self.mapped.sources.push(self.current);
    }

    #[inline]
    pub(crate) fn begin(&mut self, index: u32, record: &Record<'b>) {
        self.current = index;
        self.source = record.clone();
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            outputs: self.mapped.sources.len(),
            keys: self.mapped.keys.as_ref().map(Column::mark),
            values: self.mapped.values.as_ref().map(Column::mark),
            headers: self.mapped.headers.as_ref().map(|headers| (headers.names.mark(), headers.values.mark())),
        }
    }

    /// Removes the outputs of the current record, because it failed.
    pub(crate) fn fail(&mut self, mark: &Mark, reason: String) {
        let mapped = &mut self.mapped;
        mapped.sources.truncate(mark.outputs);
        if let Some(timestamps) = &mut mapped.timestamps {
            timestamps.truncate(mark.outputs);
        }
        // If this record was the first to change a column, the column contains a copy of the earlier source values. It
        // is dropped, so that it is left out again.
        roll_back(&mut mapped.keys, mark.keys, |column, mark| column.truncate(mark));
        roll_back(&mut mapped.values, mark.values, |column, mark| column.truncate(mark));
        roll_back(&mut mapped.headers, mark.headers, |headers, (names, values)| {
            headers.counts.truncate(mark.outputs);
            headers.names.truncate(names);
            headers.values.truncate(values);
        });
        mapped.failures.push((self.current, reason));
    }

    pub(crate) fn finish(self) -> Mapped {
        self.mapped
    }

    #[inline]
    fn push_source_but_value(&mut self) {
        self.push_source_key();
        self.push_timestamp(None);
        self.push_source_headers();
        self.mapped.sources.push(self.current);
    }

    #[inline]
    fn push_source_key(&mut self) {
        if let Some(keys) = &mut self.mapped.keys {
            keys.push(self.source.key());
        }
    }

    #[inline]
    fn push_timestamp(&mut self, timestamp_ms: Option<i64>) {
        if timestamp_ms.is_some() {
            self.materialise_timestamps();
        }
        if let Some(timestamps) = &mut self.mapped.timestamps {
            timestamps.push(timestamp_ms.unwrap_or(self.source.timestamp_ms()));
        }
    }

    #[inline]
    fn push_source_headers(&mut self) {
        if let Some(headers) = &mut self.mapped.headers {
            push_headers(headers, &self.source);
        }
    }

    fn materialise_timestamps(&mut self) {
        let (batch, sources) = (self.batch, &self.mapped.sources);
        self.mapped
            .timestamps
            .get_or_insert_with(|| sources.iter().map(|&source| batch.timestamps[source as usize]).collect());
    }

    #[inline]
    fn materialise_keys(&mut self) -> &mut Column {
        let (batch, sources) = (self.batch, &self.mapped.sources);
        self.mapped.keys.get_or_insert_with(|| entries_of(&batch.keys, sources))
    }

    #[inline]
    fn materialise_values(&mut self) -> &mut Column {
        let (batch, sources) = (self.batch, &self.mapped.sources);
        self.mapped.values.get_or_insert_with(|| {
            let mut column = entries_of(&batch.values, sources);
            column.bytes.reserve(batch.values.bytes.len());
            column.lengths.reserve(batch.values.lengths.len());
            column
        })
    }

    fn materialise_headers(&mut self) -> &mut HeaderColumns {
        let (batch, sources) = (self.batch, &self.mapped.sources);
        self.mapped.headers.get_or_insert_with(|| {
            let mut headers = HeaderColumns::default();
            let mut sources = sources.iter().peekable();
            for (index, record) in batch.records().enumerate() {
                while sources.next_if(|&&source| source as usize == index).is_some() {
                    push_headers(&mut headers, &record);
                }
            }
            headers
        })
    }
}

fn roll_back<T, M: Copy>(column: &mut Option<T>, mark: Option<M>, truncate: impl FnOnce(&mut T, M)) {
    match (column.as_mut(), mark) {
        (Some(column), Some(mark)) => truncate(column, mark),
        _ => *column = None,
    }
}

fn push_headers(headers: &mut HeaderColumns, record: &Record<'_>) {
    let before = headers.names.lengths.len();
    for (name, value) in record.headers() {
        headers.names.push(Some(name.as_bytes()));
        headers.values.push(value);
    }
    headers.counts.push((headers.names.lengths.len() - before) as u32);
}

/// Returns the entries of `column` at `sources`, which are in ascending order.
fn entries_of(column: &Column, sources: &[u32]) -> Column {
    let mut out = Column::default();
    let mut sources = sources.iter().peekable();
    for (index, entry) in column.iter().enumerate() {
        if sources.peek().is_none() {
            break;
        }
        while sources.next_if(|&&source| source as usize == index).is_some() {
            out.push(entry);
        }
    }
    out
}
