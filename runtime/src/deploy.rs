//! A resolved pipeline: its modules are compiled and its topics are known, so it can run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::encode::OutputTopic;
use crate::failure::FailurePolicy;
use crate::host::{CallLimits, Engine, Guest, LogContext, Module, StageKind};
use crate::metrics::StageMetrics;

/// A stage of one version of a pipeline.
#[derive(Debug)]
pub struct Stage {
    id: u64,
    settings: StageSettings,
    /// Name of the stage's state store, `pipeline/stage`.
    store: Arc<str>,
    metrics: StageMetrics,
    log: LogContext,
}

/// The settings from which a stage is created.
#[derive(Clone, Debug)]
pub struct StageSettings {
    /// Name of the stage, unique in its pipeline.
    pub name: Arc<str>,
    /// The compiled module.
    pub module: Arc<Module>,
    /// The module reference in the pipeline file.
    pub reference: String,
    /// The parameters, `with` in the pipeline file.
    pub parameters: Vec<(String, String)>,
    /// Limits of the stage's guests.
    pub limits: CallLimits,
    /// What happens to records that the stage fails on.
    pub on_failure: FailurePolicy,
    /// The topic that the stage writes its output to, in addition to the next stage.
    pub to: Option<OutputTopic>,
}

/// Each stage of each version has its own id.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Returns the name of a stage's state store.
pub fn store_name(pipeline: &str, stage: &str) -> Arc<str> {
    format!("{pipeline}/{stage}").into()
}

impl Stage {
    /// Creates a stage of `pipeline`.
    pub fn new(pipeline: &Arc<str>, settings: StageSettings, metrics: StageMetrics) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            store: store_name(pipeline, &settings.name),
            log: LogContext { pipeline: pipeline.clone(), stage: settings.name.clone() },
            metrics,
            settings,
        }
    }

    /// Returns the stage's id, which is unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the stage's settings.
    pub fn settings(&self) -> &StageSettings {
        &self.settings
    }

    /// Returns the stage's name.
    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// Returns the stage's kind.
    pub fn kind(&self) -> StageKind {
        self.settings.module.kind()
    }

    /// Returns the name of the stage's state store.
    pub fn store(&self) -> &Arc<str> {
        &self.store
    }

    /// Returns the stage's metrics.
    pub fn metrics(&self) -> &StageMetrics {
        &self.metrics
    }

    /// Creates a guest of the stage's module.
    pub fn guest(&self, engine: &Engine) -> Guest {
        let StageSettings { module, parameters, limits, .. } = &self.settings;
        Guest::new(engine, module, parameters.clone(), *limits, self.log.clone())
    }
}

/// Consecutive stages that run without a topic between them.
#[derive(Debug)]
pub struct LoadedSubtopology {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// The stages, in the order in which they run.
    pub stages: Vec<Arc<Stage>>,
    /// The topics that the output of the last stage is written to.
    pub sinks: Vec<OutputTopic>,
    /// The topic for dead letters, if any stage produces them.
    pub dead_letters: Option<OutputTopic>,
}
