//! The topics, modules and other pipelines against which a pipeline file is checked. This file only answers the
//! questions of the check, and must not know what follows from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_broker::Broker;

use super::pipeline::Pipeline;
use super::pipelines::Pipelines;
use crate::error::RuntimeError;
use crate::host::{ModuleHash, StageKind};
use crate::modules::Modules;
use crate::pipeline::{ModuleRef, OtherPipeline, World};

/// The current topics, modules and pipelines, for a file that is being applied.
pub(super) struct Deployed<'a> {
    pub(super) broker: &'a Broker,
    pub(super) pipelines: &'a Pipelines,
    pub(super) modules: &'a Modules,
    /// The reference or hash under which each module that the file names by path was pushed.
    pub(super) paths: &'a BTreeMap<String, String>,
}

impl World for Deployed<'_> {
    fn topic_partitions(&self, topic: &str) -> Option<u32> {
        self.broker.topic(topic).ok().map(|topic| topic.partition_count())
    }

    fn keys_moved(&self, topic: &str) -> bool {
        self.broker.topic(topic).is_ok_and(|topic| topic.meta().keys_moved)
    }

    fn state_partitions(&self, pipeline: &str, stage: &str) -> Option<u32> {
        self.pipelines.find(pipeline)?.ready()?.state_partitions(stage)
    }

    fn module(&self, reference: &ModuleRef) -> Result<(ModuleHash, StageKind), String> {
        let asked = match reference.path() {
            None => reference.as_str(),
            Some(path) => match self.paths.get(path) {
                Some(pushed) => pushed,
                None => return Err("is a path, and no module was uploaded for it".to_owned()),
            },
        };
        match self.modules.get(asked) {
            Ok(entry) => Ok((entry.hash, entry.kind)),
            Err(RuntimeError::UnknownModule { .. }) => Err("is not uploaded".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn other_pipelines(&self) -> Vec<OtherPipeline> {
        let other = |pipeline: &Arc<Pipeline>| {
            let spec = pipeline.spec();
            OtherPipeline {
                from: spec.from.iter().map(|topic| topic.value.clone()).collect(),
                to: spec.outputs().into_iter().map(str::to_owned).collect(),
                name: spec.name.value,
            }
        };
        self.pipelines.all().iter().map(other).collect()
    }

    fn topic_names(&self) -> Vec<String> {
        self.broker.topics().iter().map(|topic| topic.name().to_string()).collect()
    }

    fn module_names(&self) -> Vec<String> {
        self.modules.all().into_iter().map(|entry| entry.reference).collect()
    }
}

/// The modules as of when a stored pipeline was applied, so that each reference keeps its meaning.
pub(super) struct AsStored<'a> {
    pub(super) broker: &'a Broker,
    pub(super) modules: &'a Modules,
    /// The module that each reference pointed to.
    pub(super) hashes: &'a BTreeMap<String, ModuleHash>,
}

impl World for AsStored<'_> {
    fn topic_partitions(&self, topic: &str) -> Option<u32> {
        self.broker.topic(topic).ok().map(|topic| topic.partition_count())
    }

    fn keys_moved(&self, topic: &str) -> bool {
        self.broker.topic(topic).is_ok_and(|topic| topic.meta().keys_moved)
    }

    fn module(&self, reference: &ModuleRef) -> Result<(ModuleHash, StageKind), String> {
        let hash = self.hashes.get(reference.as_str()).ok_or("is not among the pipeline's modules")?;
        let module = self.modules.load(hash).map_err(|error| error.to_string())?;
        Ok((*hash, module.kind()))
    }

    fn other_pipelines(&self) -> Vec<OtherPipeline> {
        // The pipeline was checked against the others when it was applied.
        Vec::new()
    }

    fn topic_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn module_names(&self) -> Vec<String> {
        Vec::new()
    }
}
