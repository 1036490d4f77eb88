//! A record, read in place.

use serde::Deserialize;

use crate::batch::ColumnSlice;
use crate::error::{Error, Result};

/// One record. Nothing is copied: what it returns lives in the batch.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    offset: i64,
    timestamp_ms: i64,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> Record<'a> {
    pub(crate) fn in_place(
        offset: i64,
        timestamp_ms: i64,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
        headers: Headers<'a>,
    ) -> Self {
        Self { offset, timestamp_ms, key, value, headers }
    }

    /// A record to test with: this value, no key, no headers, offset and timestamp 0.
    pub fn of<V: AsRef<[u8]> + ?Sized>(value: &'a V) -> Self {
        Self::in_place(0, 0, None, Some(value.as_ref()), Headers::none())
    }

    /// A tombstone to test with.
    pub fn tombstone() -> Self {
        Self::in_place(0, 0, None, None, Headers::none())
    }

    /// The same with a key.
    pub fn with_key<K: AsRef<[u8]> + ?Sized>(self, key: &'a K) -> Self {
        Self { key: Some(key.as_ref()), ..self }
    }

    /// The same with a timestamp.
    pub fn with_timestamp_ms(self, timestamp_ms: i64) -> Self {
        Self { timestamp_ms, ..self }
    }

    /// The same with an offset.
    pub fn with_offset(self, offset: i64) -> Self {
        Self { offset, ..self }
    }

    /// The same with one more header.
    pub fn with_header<V: AsRef<[u8]> + ?Sized>(mut self, name: &'a str, value: &'a V) -> Self {
        let mut list: Vec<_> = self.headers.clone().collect();
        list.push((name, Some(value.as_ref())));
        self.headers = Headers(Inner::List(list.into_iter()));
        self
    }

    /// Position in its partition.
    #[inline]
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// In milliseconds since the Unix epoch.
    #[inline]
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// The key.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The value; `None` is a tombstone.
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// The key as text.
    ///
    /// # Errors
    /// Where there is no key, or it is not UTF-8.
    #[inline]
    pub fn key_str(&self) -> Result<&'a str> {
        text("key", self.key)
    }

    /// The value as text.
    ///
    /// # Errors
    /// Where there is no value, or it is not UTF-8.
    #[inline]
    pub fn value_str(&self) -> Result<&'a str> {
        text("value", self.value)
    }

    /// The value parsed as JSON. Strings may be borrowed from it: `&'a str`, `Cow<'a, str>`.
    ///
    /// # Errors
    /// Where there is no value, or it is not the JSON that `T` wants.
    #[inline]
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T> {
        let value = self.value.ok_or_else(|| Error::new("the record has no value (a tombstone)"))?;
        serde_json::from_slice(value)
            .map_err(|error| Error::new(format!("the value is not the JSON expected: {error}")))
    }

    /// All headers, in order, with duplicates.
    #[inline]
    pub fn headers(&self) -> Headers<'a> {
        self.headers.clone()
    }

    /// The last header of that name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().filter(|(found, _)| *found == name).last().and_then(|(_, value)| value)
    }

    /// The last header of that name as text.
    ///
    /// # Errors
    /// Where there is none, or it is not UTF-8.
    pub fn header_str(&self, name: &str) -> Result<&'a str> {
        let value = self.header(name).ok_or_else(|| Error::new(format!("the record has no header {name:?}")))?;
        std::str::from_utf8(value).map_err(|error| Error::new(format!("header {name:?} is not UTF-8: {error}")))
    }
}

fn text<'a>(what: &str, bytes: Option<&'a [u8]>) -> Result<&'a str> {
    let bytes = bytes.ok_or_else(|| Error::new(format!("the record has no {what}")))?;
    std::str::from_utf8(bytes).map_err(|error| Error::new(format!("the {what} is not UTF-8: {error}")))
}

/// A record's headers: names and values, in order.
#[derive(Clone, Debug)]
pub struct Headers<'a>(Inner<'a>);

#[derive(Clone, Debug)]
enum Inner<'a> {
    Columns { left: u32, names: ColumnSlice<'a>, values: ColumnSlice<'a> },
    List(std::vec::IntoIter<(&'a str, Option<&'a [u8]>)>),
    None,
}

impl<'a> Headers<'a> {
    #[inline]
    pub(crate) fn none() -> Self {
        Self(Inner::None)
    }

    pub(crate) fn columns(left: u32, names: ColumnSlice<'a>, values: ColumnSlice<'a>) -> Self {
        Self(Inner::Columns { left, names, values })
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Inner::None => None,
            Inner::List(list) => list.next(),
            Inner::Columns { left: 0, .. } => None,
            Inner::Columns { left, names, values } => {
                *left -= 1;
                let name = names.next_entry().unwrap_or_default();
                // The host lets no other names through.
                Some((std::str::from_utf8(name).unwrap_or_default(), values.next_entry()))
            }
        }
    }
}
