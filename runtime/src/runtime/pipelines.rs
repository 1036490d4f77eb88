//! The deployed pipelines by name, and which modules they use. This file must not know how pipelines are loaded,
//! started or ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::pipeline::Pipeline;
use crate::error::RuntimeError;
use crate::host::ModuleHash;
use crate::modules::ModuleEntry;

/// The deployed pipelines.
#[derive(Default)]
pub(super) struct Pipelines {
    pipelines: RwLock<BTreeMap<String, Arc<Pipeline>>>,
}

impl Pipelines {
    /// Returns a pipeline by name, or [`RuntimeError::UnknownPipeline`].
    pub(super) fn get(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        self.find(name).ok_or_else(|| RuntimeError::UnknownPipeline { pipeline: name.to_owned() })
    }

    /// Returns a pipeline by name, or `None` if there is none.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Pipeline>> {
        self.pipelines.read().get(name).cloned()
    }

    /// Returns all pipelines, ordered by name.
    pub(super) fn all(&self) -> Vec<Arc<Pipeline>> {
        self.pipelines.read().values().cloned().collect()
    }

    /// Adds a pipeline, or replaces the one of the same name.
    pub(super) fn insert(&self, pipeline: Arc<Pipeline>) {
        self.pipelines.write().insert(pipeline.name().to_owned(), pipeline);
    }

    /// Removes a pipeline.
    pub(super) fn remove(&self, name: &str) {
        self.pipelines.write().remove(name);
    }

    /// Returns the modules that pipelines use.
    pub(super) fn modules_in_use(&self) -> Vec<ModuleHash> {
        self.all().iter().flat_map(|pipeline| pipeline.modules()).collect()
    }

    /// Returns the pipelines and stages that run the module of an entry.
    pub(super) fn module_uses(&self, entry: &ModuleEntry) -> Vec<(String, String)> {
        let mut uses = Vec::new();
        for pipeline in self.all() {
            let stored = pipeline.stored();
            for stage in &stored.spec.stages {
                if stored.modules.get(stage.module.value.as_str()) == Some(&entry.hash) {
                    uses.push((stored.spec.name.value.clone(), stage.name.value.clone()));
                }
            }
        }
        uses
    }
}
