//! A pipeline that is resolved: modules compiled, topics known, ready to run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::encode::OutputTopic;
use crate::failure::FailurePolicy;
use crate::host::{CallLimits, Engine, Guest, LogContext, Module, StageKind};
use crate::metrics::StageMetrics;

/// One stage of one version of a pipeline.
#[derive(Debug)]
pub struct Stage {
    id: u64,
    settings: StageSettings,
    /// The name of its state store, `pipeline/stage`.
    store: Arc<str>,
    metrics: StageMetrics,
    log: LogContext,
}

/// What a stage is made of.
#[derive(Clone, Debug)]
pub struct StageSettings {
    /// Unique in its pipeline.
    pub name: Arc<str>,
    /// Its compiled module.
    pub module: Arc<Module>,
    /// The reference in the pipeline file.
    pub reference: String,
    /// `with` of the pipeline file.
    pub parameters: Vec<(String, String)>,
    /// Limits of its guests.
    pub limits: CallLimits,
    /// What becomes of records that it fails on.
    pub on_failure: FailurePolicy,
    /// The topic that its output goes to beside the next stage.
    pub to: Option<OutputTopic>,
}

/// Every stage of every version has its own id.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// The name of a stage's state store.
pub fn store_name(pipeline: &str, stage: &str) -> Arc<str> {
    format!("{pipeline}/{stage}").into()
}

impl Stage {
    /// A stage of `pipeline`.
    pub fn new(pipeline: &Arc<str>, settings: StageSettings, metrics: StageMetrics) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            store: store_name(pipeline, &settings.name),
            log: LogContext { pipeline: pipeline.clone(), stage: settings.name.clone() },
            metrics,
            settings,
        }
    }

    /// Unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it is made of.
    pub fn settings(&self) -> &StageSettings {
        &self.settings
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// Its kind.
    pub fn kind(&self) -> StageKind {
        self.settings.module.kind()
    }

    /// The name of its state store.
    pub fn store(&self) -> &Arc<str> {
        &self.store
    }

    /// Its counters.
    pub fn metrics(&self) -> &StageMetrics {
        &self.metrics
    }

    /// A guest of its module.
    pub fn guest(&self, engine: &Engine) -> Guest {
        let StageSettings { module, parameters, limits, .. } = &self.settings;
        Guest::new(engine, module, parameters.clone(), *limits, self.log.clone())
    }
}

/// Stages that run without a topic in between.
#[derive(Debug)]
pub struct Segment {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// In order.
    pub stages: Vec<Arc<Stage>>,
    /// The topics that the last stage's output goes to.
    pub sinks: Vec<OutputTopic>,
    /// Where dead letters go, if any stage makes them.
    pub dead_letters: Option<OutputTopic>,
}
