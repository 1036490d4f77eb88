//! Makes checked pipelines ready to run: loads and tries their modules, and resolves their topics. This file must not
//! know which version of a pipeline is current, or whether it runs.

use std::sync::Arc;

use millstream_broker::log::topic::Topic;
use millstream_broker::{Broker, BrokerError, TopicName};

use super::ready::Ready;
use super::stored::Stored;
use super::topics::Topics;
use super::world::AsStored;
use crate::deploy::{LoadedSubtopology, Stage, StageSettings};
use crate::encode::OutputTopic;
use crate::error::RuntimeError;
use crate::host::{CallError, Engine, Guest, Module, ModuleHash};
use crate::metrics::RuntimeMetrics;
use crate::modules::Modules;
use crate::pipeline::{self, CheckedPipeline, Mistake, Mistakes, Source, StageSpec};
use crate::pool::WorkerPool;

/// A subtopology, and the topics that it reads.
type SubtopologyAndTopics = (Arc<LoadedSubtopology>, Vec<Arc<Topic>>);

/// Makes pipelines ready to run. Cheap to clone.
#[derive(Clone)]
pub(super) struct Loader {
    pub(super) broker: Broker,
    pub(super) topics: Topics,
    pub(super) engine: Engine,
    pub(super) modules: Arc<Modules>,
    pub(super) pool: Arc<WorkerPool>,
    pub(super) metrics: RuntimeMetrics,
}

impl Loader {
    /// Loads a stored pipeline, or returns the reason why it cannot run. Blocks while modules are compiled.
    pub(super) fn load(&self, stored: &Stored) -> Result<Ready, String> {
        let world = AsStored { broker: &self.broker, modules: &self.modules, hashes: &stored.modules };
        let checked = pipeline::check(&stored.spec, &world).map_err(|mistakes| mistakes.to_string())?;
        let load = |hash: &ModuleHash| self.modules.load(hash).map_err(|error| error.to_string());
        let modules = checked.modules.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        self.ready(&checked, &modules).map_err(|error| error.to_string())
    }

    /// Like `load`, but on a thread that may block.
    pub(super) async fn load_elsewhere(&self, stored: &Stored) -> Result<Ready, String> {
        let (loader, stored) = (self.clone(), stored.clone());
        let loaded = tokio::task::spawn_blocking(move || loader.load(&stored)).await;
        loaded.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Returns the compiled module of each stage.
    pub(super) async fn modules(&self, checked: &CheckedPipeline) -> Result<Vec<Arc<Module>>, RuntimeError> {
        let (modules, hashes) = (self.modules.clone(), checked.modules.clone());
        let load = move || hashes.iter().map(|hash| modules.load(hash)).collect::<Result<Vec<_>, _>>();
        tokio::task::spawn_blocking(load).await.unwrap_or(Err(BrokerError::ShuttingDown.into()))
    }

    /// Starts each module once with its parameters, so that a file with wrong parameters is refused.
    pub(super) async fn try_modules(
        &self,
        checked: &CheckedPipeline,
        modules: &[Arc<Module>],
    ) -> Result<(), RuntimeError> {
        let mut mistakes = Vec::new();
        for (spec, module) in checked.spec.stages.iter().zip(modules) {
            if let Err(error) = self.try_module(spec, module).await? {
                let message = format!("stage `{}`: {error}", spec.name.value);
                mistakes.push(Mistake::new(spec.module.place, message));
            }
        }
        Mistakes::none_in(mistakes).map_err(RuntimeError::Mistakes)
    }

    async fn try_module(&self, spec: &StageSpec, module: &Arc<Module>) -> Result<Result<(), CallError>, BrokerError> {
        let parameters = spec.with.clone().into_iter().collect();
        let mut guest = Guest::new(&self.engine, module, parameters, spec.limits, Default::default());
        self.pool.run(move |_| guest.start()).await.ok_or(BrokerError::ShuttingDown)
    }

    /// Makes a checked pipeline ready. Its topics must exist.
    pub(super) fn ready(&self, checked: &CheckedPipeline, modules: &[Arc<Module>]) -> Result<Ready, BrokerError> {
        let name: Arc<str> = checked.spec.name.value.as_str().into();
        let stages = checked.spec.stages.iter().zip(modules);
        let stages = stages.map(|(spec, module)| self.stage(&name, spec, module)).collect::<Result<Vec<_>, _>>()?;
        let subtopologies = self.subtopologies(&name, checked, &stages)?;
        Ok(Ready { stages, subtopologies })
    }

    fn stage(&self, pipeline: &Arc<str>, spec: &StageSpec, module: &Arc<Module>) -> Result<Arc<Stage>, BrokerError> {
        let to = spec.to.as_ref().map(|topic| TopicName::new(&topic.value)).transpose()?;
        let settings = StageSettings {
            name: spec.name.value.as_str().into(),
            module: module.clone(),
            reference: spec.module.value.as_str().to_owned(),
            parameters: spec.with.clone().into_iter().collect(),
            limits: spec.limits,
            on_failure: spec.on_failure,
            to: to.as_ref().map(|topic| self.topics.output(topic)).transpose()?,
        };
        let metrics = self.metrics.stage(pipeline, &settings.name);
        Ok(Arc::new(Stage::new(pipeline, settings, metrics)))
    }

    fn subtopologies(
        &self,
        pipeline: &Arc<str>,
        checked: &CheckedPipeline,
        stages: &[Arc<Stage>],
    ) -> Result<Vec<SubtopologyAndTopics>, BrokerError> {
        let output = |topic: &TopicName| -> Result<OutputTopic, BrokerError> { self.topics.output(topic) };
        let source = |source: &Source| self.broker.topic(source.topic().as_str());
        let dead_letters = checked.dead_letters().map(output).transpose()?;
        let mut subtopologies = Vec::new();
        for planned in &checked.plan.subtopologies {
            let subtopology = LoadedSubtopology {
                pipeline: pipeline.clone(),
                stages: stages[planned.stages.clone()].to_vec(),
                sinks: planned.sink.iter().map(|sink| output(sink.topic())).collect::<Result<_, _>>()?,
                dead_letters: dead_letters.clone(),
            };
            subtopologies.push((Arc::new(subtopology), planned.sources.iter().map(source).collect::<Result<_, _>>()?));
        }
        Ok(subtopologies)
    }
}
