//! Aggregates: a keyed fold. The host groups the records and keeps the accumulators.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::record::Record;

/// Folds the records of each key into an accumulator.
///
/// ```
/// use millstream::prelude::*;
///
/// struct Total;
///
/// #[millstream::aggregate]
/// impl Aggregate for Total {
///     type Accumulator = u64;
///
///     fn add(&self, total: &mut u64, record: &Record) -> Result<()> {
///         *total += record.value_str()?.parse::<u64>()?;
///         Ok(())
///     }
///
///     fn merge(&self, total: &mut u64, other: u64) -> Result<()> {
///         *total += other;
///         Ok(())
///     }
///
///     fn finish(&self, _key: &[u8], total: &u64) -> Result<Value> {
///         Ok(total.to_string().into())
///     }
/// }
/// # fn main() {}
/// ```
///
/// For parameters, write `#[millstream::aggregate(config)]` and give the struct fields and
/// `#[derive(Deserialize)]`: `self` is then the stage's configuration.
pub trait Aggregate {
    /// What is kept a key, stored with postcard. A key's first record meets the default.
    type Accumulator: Default + Serialize + DeserializeOwned;

    /// Adds a record. What it did to the accumulator before it returned an error is undone.
    ///
    /// # Errors
    /// The record's failure.
    fn add(&self, accumulator: &mut Self::Accumulator, record: &Record<'_>) -> Result<()>;

    /// Adds another accumulator of the same key.
    ///
    /// # Errors
    /// Where the two can't be one.
    fn merge(&self, accumulator: &mut Self::Accumulator, other: Self::Accumulator) -> Result<()>;

    /// The value to put out for a key.
    ///
    /// # Errors
    /// The failure of the last record that was added.
    fn finish(&self, key: &[u8], accumulator: &Self::Accumulator) -> Result<Value>;
}

/// A value to put out: bytes, or none for a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(pub(crate) Option<Vec<u8>>);

impl Value {
    /// No value: downstream, the key is gone.
    pub const TOMBSTONE: Self = Self(None);

    /// `value` as JSON.
    ///
    /// # Errors
    /// Where it can't be JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self(Some(serde_json::to_vec(value)?)))
    }

    /// The bytes.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }

    /// As text; empty where it is none.
    pub fn as_str(&self) -> &str {
        self.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self(Some(text.into_bytes()))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(Some(text.as_bytes().to_vec()))
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Some(bytes))
    }
}
