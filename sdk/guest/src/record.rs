//! Records, which borrow from the batch.

use serde::Deserialize;

use crate::batch::ColumnSlice;
use crate::error::{Error, Result};

/// A record. It copies nothing; everything it returns borrows from the batch.
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

    /// Creates a record for tests with this value, no key, no headers, and offset and timestamp 0.
    pub fn of<V: AsRef<[u8]> + ?Sized>(value: &'a V) -> Self {
        Self::in_place(0, 0, None, Some(value.as_ref()), Headers::none())
    }

    /// Creates a tombstone for tests.
    pub fn tombstone() -> Self {
        Self::in_place(0, 0, None, None, Headers::none())
    }

    /// Returns the record with this key.
    pub fn with_key<K: AsRef<[u8]> + ?Sized>(self, key: &'a K) -> Self {
        Self { key: Some(key.as_ref()), ..self }
    }

    /// Returns the record with this timestamp.
    pub fn with_timestamp_ms(self, timestamp_ms: i64) -> Self {
        Self { timestamp_ms, ..self }
    }

    /// Returns the record with this offset.
    pub fn with_offset(self, offset: i64) -> Self {
        Self { offset, ..self }
    }

    /// Returns the record with this header added.
    pub fn with_header<V: AsRef<[u8]> + ?Sized>(mut self, name: &'a str, value: &'a V) -> Self {
        let mut list: Vec<_> = self.headers.clone().collect();
        list.push((name, Some(value.as_ref())));
        self.headers = Headers(Inner::List(list.into_iter()));
        self
    }

    /// Returns the offset of the record in its partition.
    #[inline]
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Returns the timestamp, in milliseconds since the Unix epoch.
    #[inline]
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// Returns the key.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// Returns the value; `None` is a tombstone.
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// Returns the key as text.
    ///
    /// # Errors
    /// Fails if the key is null or not UTF-8.
    #[inline]
    pub fn key_str(&self) -> Result<&'a str> {
        text("key", self.key)
    }

    /// Returns the value as text.
    ///
    /// # Errors
    /// Fails if the value is null or not UTF-8.
    #[inline]
    pub fn value_str(&self) -> Result<&'a str> {
        text("value", self.value)
    }

    /// Parses the value as JSON. Strings can be borrowed from the value, as `&'a str` or `Cow<'a, str>`.
    ///
    /// # Errors
    /// Fails if the value is null or cannot be parsed as `T`.
    #[inline]
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T> {
        let value = self.value.ok_or_else(|| Error::new("the record has no value (a tombstone)"))?;
        serde_json::from_slice(value)
            .map_err(|error| Error::new(format!("the value is not the expected JSON: {error}")))
    }

    /// Returns all headers, in order and including duplicates.
    #[inline]
    pub fn headers(&self) -> Headers<'a> {
        self.headers.clone()
    }

    /// Returns the value of the last header with this name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().filter(|(found, _)| *found == name).last().and_then(|(_, value)| value)
    }

    /// Returns the value of the last header with this name, as text.
    ///
    /// # Errors
    /// Fails if there is no such header, its value is null, or its value is not UTF-8.
    pub fn header_str(&self, name: &str) -> Result<&'a str> {
        let value = self.header(name).ok_or_else(|| Error::new(format!("the record has no header {name:?}")))?;
        std::str::from_utf8(value).map_err(|error| Error::new(format!("header {name:?} is not UTF-8: {error}")))
    }
}

fn text<'a>(what: &str, bytes: Option<&'a [u8]>) -> Result<&'a str> {
    let bytes = bytes.ok_or_else(|| Error::new(format!("the record has no {what}")))?;
    std::str::from_utf8(bytes).map_err(|error| Error::new(format!("the {what} is not UTF-8: {error}")))
}

/// Iterator over the names and values of a record's headers, in order.
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
                // The host rejects names that are not UTF-8.
                Some((std::str::from_utf8(name).unwrap_or_default(), values.next_entry()))
            }
        }
    }
}
