//! A pipeline as stored in the broker's catalog, and the catalog's entries. This file must not know what is loaded or
//! running.

use std::collections::BTreeMap;

use millstream_broker::Broker;
use millstream_broker::store::CatalogChange;
use serde::{Deserialize, Serialize};

use super::run_state::RunState;
use crate::error::RuntimeError;
use crate::host::ModuleHash;
use crate::pipeline::{CheckedPipeline, PipelineSpec};

const PIPELINE_PREFIX: &str = "pipeline/";

/// A pipeline as stored in the catalog.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) yaml: String,
    pub(super) spec: PipelineSpec,
    /// The modules that the references of the file pointed to when it was applied.
    pub(super) modules: BTreeMap<String, ModuleHash>,
    pub(super) version: u64,
    pub(super) state: RunState,
}

impl Stored {
    /// Returns the pipelines of the catalog. A pipeline that cannot be read is an error in its position.
    pub(super) fn all(
        broker: &Broker,
    ) -> Result<impl Iterator<Item = Result<Self, RuntimeError>> + use<>, RuntimeError> {
        let entries = broker.store().catalog_scan(PIPELINE_PREFIX)?;
        Ok(entries.into_iter().map(|(key, value)| {
            serde_json::from_slice(&value)
                .map_err(|error| RuntimeError::Stored(format!("catalog entry {key:?}: {error}")))
        }))
    }

    /// Creates the version that follows `before`, or the first one.
    pub(super) fn next(yaml: &str, checked: &CheckedPipeline, before: Option<&Self>) -> Self {
        let references = checked.spec.stages.iter().zip(&checked.modules);
        Self {
            yaml: yaml.to_owned(),
            modules: references.map(|(stage, hash)| (stage.module.value.as_str().to_owned(), *hash)).collect(),
            version: before.map_or(1, |before| before.version + 1),
            state: before.map_or(RunState::Running, |before| match &before.state {
                // A user who applies a change to a stopped pipeline expects it to run again.
                RunState::Stopped(_) => RunState::Running,
                state => state.clone(),
            }),
            spec: checked.spec.clone(),
        }
    }

    /// Returns the change that stores the pipeline.
    pub(super) fn entry(&self) -> CatalogChange {
        let json = serde_json::to_vec(self).expect("plain structs serialise");
        CatalogChange::put(key(&self.spec.name.value), json)
    }

    /// Returns the change that removes the pipeline `name`.
    pub(super) fn removal(name: &str) -> CatalogChange {
        CatalogChange::remove(key(name))
    }
}

fn key(pipeline: &str) -> String {
    format!("{PIPELINE_PREFIX}{pipeline}")
}
