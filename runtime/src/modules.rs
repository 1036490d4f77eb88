//! Uploaded modules: their bytes by content hash, and the references to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_broker::Broker;
use millstream_broker::log::commit::Commit;
use millstream_broker::name;
use millstream_broker::store::{CatalogChange, StoreError};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;
use crate::host::{Engine, Module, ModuleHash, StageKind};
use crate::pipeline::DEFAULT_TAG;

const REFERENCE_PREFIX: &str = "module/";
const BYTES_PREFIX: &str = "module-bytes/";

/// The target of a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleEntry {
    /// `name:tag`.
    #[serde(skip)]
    pub reference: String,
    /// Hash of the content.
    pub hash: ModuleHash,
    /// The kind of stage that the module is.
    pub kind: StageKind,
    /// Size as uploaded, in bytes.
    pub bytes: u64,
    /// Time of the push, in milliseconds since the epoch.
    pub pushed_at_ms: i64,
}

/// The modules of a data directory.
pub struct Modules {
    broker: Broker,
    engine: Engine,
    entries: RwLock<BTreeMap<String, ModuleEntry>>,
}

impl std::fmt::Debug for Modules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Modules")
    }
}

/// Returns `name` or `name:tag` as `name:tag`.
///
/// # Errors
/// [`RuntimeError::InvalidReference`].
fn full_reference(reference: &str) -> Result<String, RuntimeError> {
    let (name, tag) = reference.split_once(':').unwrap_or((reference, DEFAULT_TAG));
    if name::is_valid(name) && name::is_valid(tag) {
        return Ok(format!("{name}:{tag}"));
    }
    let shown = reference.chars().take(300).collect();
    Err(RuntimeError::InvalidReference { reference: shown })
}

impl Modules {
    /// Loads the references from the broker's catalog.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    pub fn open(broker: Broker, engine: Engine) -> Result<Self, StoreError> {
        let mut entries = BTreeMap::new();
        for (key, value) in broker.store().catalog_scan(REFERENCE_PREFIX)? {
            let mut entry: ModuleEntry = serde_json::from_slice(&value).map_err(|error| StoreError::Corrupt {
                what: format!("catalog entry {key:?}"),
                reason: error.to_string(),
            })?;
            entry.reference = key[REFERENCE_PREFIX.len()..].to_owned();
            entries.insert(entry.reference.clone(), entry);
        }
        Ok(Self { broker, engine, entries: RwLock::new(entries) })
    }

    /// Checks, compiles and stores a module. Returns the entry, and whether the reference changed.
    ///
    /// # Errors
    /// [`RuntimeError::InvalidReference`], [`RuntimeError::Module`], [`RuntimeError::Broker`].
    pub async fn push(&self, reference: &str, wasm: Bytes) -> Result<(ModuleEntry, bool), RuntimeError> {
        let reference = full_reference(reference)?;
        let (engine, code) = (self.engine.clone(), wasm.clone());
        let compiled = tokio::task::spawn_blocking(move || engine.compile(&code)).await;
        let compiled =
            compiled.map_err(|error| RuntimeError::Stored(format!("the compiler failed because of a bug: {error}")))?;
        let module = compiled.map_err(|source| RuntimeError::Module { reference: reference.clone(), source })?;
        if let Some(entry) = self.find(&reference)
            && entry.hash == module.hash()
        {
            return Ok((entry, false));
        }
        let entry = ModuleEntry {
            reference: reference.clone(),
            hash: module.hash(),
            kind: module.kind(),
            bytes: wasm.len() as u64,
            pushed_at_ms: self.broker.clock().now_ms(),
        };
        let catalog = vec![
            CatalogChange::put(format!("{BYTES_PREFIX}{}", entry.hash), wasm),
            CatalogChange::put(format!("{REFERENCE_PREFIX}{reference}"), to_json(&entry)),
        ];
        self.commit(catalog).await?;
        self.entries.write().insert(reference, entry.clone());
        Ok((entry, true))
    }

    /// Returns the entry of a full reference.
    fn find(&self, reference: &str) -> Option<ModuleEntry> {
        self.entries.read().get(reference).cloned()
    }

    /// Returns the entry of `name` or `name:tag`, or the first entry with the given hash.
    ///
    /// # Errors
    /// [`RuntimeError::InvalidReference`], [`RuntimeError::UnknownModule`].
    pub fn get(&self, reference: &str) -> Result<ModuleEntry, RuntimeError> {
        let found = match reference.parse::<ModuleHash>() {
            Ok(hash) => self.entries.read().values().find(|entry| entry.hash == hash).cloned(),
            Err(_) => self.find(&full_reference(reference)?),
        };
        found.ok_or_else(|| RuntimeError::UnknownModule { reference: reference.to_owned() })
    }

    /// Returns all entries, ordered by reference.
    pub fn all(&self) -> Vec<ModuleEntry> {
        self.entries.read().values().cloned().collect()
    }

    /// Returns the compiled module of a content hash. Blocks if the module is not in use yet.
    ///
    /// # Errors
    /// [`RuntimeError::Stored`] if its bytes are missing or no longer compile.
    pub fn load(&self, hash: &ModuleHash) -> Result<Arc<Module>, RuntimeError> {
        let stored = self.broker.store().catalog_get(&format!("{BYTES_PREFIX}{hash}"))?;
        let wasm = stored.ok_or_else(|| RuntimeError::Stored(format!("the bytes of module {hash} are missing")))?;
        self.engine.compile(&wasm).map_err(|error| RuntimeError::Stored(format!("module {hash}: {error}")))
    }

    /// Removes a reference. The content is removed as well, unless another reference or a hash in `in_use` needs it.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownModule`], [`RuntimeError::Broker`].
    pub(crate) async fn remove(&self, reference: &str, in_use: &[ModuleHash]) -> Result<(), RuntimeError> {
        let entry = self.get(reference)?;
        let mut catalog = vec![CatalogChange::remove(format!("{REFERENCE_PREFIX}{}", entry.reference))];
        let others = |other: &ModuleEntry| other.hash == entry.hash && other.reference != entry.reference;
        let is_last = !self.entries.read().values().any(others) && !in_use.contains(&entry.hash);
        if is_last {
            catalog.push(CatalogChange::remove(format!("{BYTES_PREFIX}{}", entry.hash)));
        }
        self.commit(catalog).await?;
        self.entries.write().remove(&entry.reference);
        if is_last {
            self.engine.forget(&entry.hash);
        }
        Ok(())
    }

    async fn commit(&self, catalog: Vec<CatalogChange>) -> Result<(), RuntimeError> {
        self.broker.commit(Commit { catalog, ..Commit::default() }).await?.await?;
        Ok(())
    }
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs serialise")
}
