//! The catalog: small things that change seldom, each a key and bytes.

use bytes::Bytes;

/// One change to the catalog, in a commit.
#[derive(Clone, Debug)]
pub struct CatalogChange {
    /// `kind/name`.
    pub key: String,
    /// `None` removes it.
    pub value: Option<Bytes>,
}

impl CatalogChange {
    /// Sets `key`.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }

    /// Removes `key`.
    pub fn remove(key: impl Into<String>) -> Self {
        Self { key: key.into(), value: None }
    }
}
