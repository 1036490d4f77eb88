//! Aggregates, which fold the records of each key. The host groups the records and stores the accumulators.

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
/// To use parameters, write `#[millstream::aggregate(config)]`, add fields to the struct, and derive `Deserialize` for
/// it: `self` is then the configuration of the stage.
pub trait Aggregate {
    /// The accumulator of a key, which is stored with postcard. The first record of a key is added to the default.
    type Accumulator: Default + Serialize + DeserializeOwned;

    /// Adds a record to the accumulator. If this returns an error, its changes to the accumulator are undone.
    ///
    /// # Errors
    /// An error fails the record.
    fn add(&self, accumulator: &mut Self::Accumulator, record: &Record<'_>) -> Result<()>;

    /// Merges another accumulator of the same key into the accumulator.
    ///
    /// # Errors
    /// Returns an error if the two cannot be merged.
    fn merge(&self, accumulator: &mut Self::Accumulator, other: Self::Accumulator) -> Result<()>;

    /// Returns the output value of a key.
    ///
    /// # Errors
    /// An error fails the last record that was added.
    fn finish(&self, key: &[u8], accumulator: &Self::Accumulator) -> Result<Value>;
}

/// An output value: bytes, or null for a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(pub(crate) Option<Vec<u8>>);

impl Value {
    /// The null value, which deletes the key downstream.
    pub const TOMBSTONE: Self = Self(None);

    /// Encodes `value` as JSON.
    ///
    /// # Errors
    /// Fails if `value` cannot be encoded as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self(Some(serde_json::to_vec(value)?)))
    }

    /// Returns the bytes, or `None` for a tombstone.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }

    /// Returns the value as text, or an empty string if it is null or not UTF-8.
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
