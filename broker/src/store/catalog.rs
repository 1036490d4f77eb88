//! The catalog: small entries that rarely change, each a key and a byte string.

use bytes::Bytes;

/// One change to the catalog, in a commit.
#[derive(Clone, Debug)]
pub struct CatalogChange {
    /// The key, in the form `kind/name`.
    pub key: String,
    /// The new value. `None` removes the entry.
    pub value: Option<Bytes>,
}

impl CatalogChange {
    /// Returns a change that sets `key`.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }

    /// Returns a change that removes `key`.
    pub fn remove(key: impl Into<String>) -> Self {
        Self { key: key.into(), value: None }
    }
}
