//! The operations that users request: apply pipelines, pause, resume and delete them, push modules, and read state.
//!
//! This file has the list of operations, and does one at a time. The folder does the work, one subject in each file,
//! and knows nothing of this file.

mod changes;
mod commits;
mod group;
mod loader;
mod pipeline;
mod pipelines;
mod queries;
mod ready;
mod run_state;
mod running;
mod stored;
mod supervisor;
mod topics;
mod versions;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use millstream_broker::Broker;
use millstream_broker::broker::operation::to_its_end;
use millstream_record::Column;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use self::loader::Loader;
pub use self::pipeline::Pipeline;
use self::pipelines::Pipelines;
pub use self::run_state::RunState;
use self::supervisor::Supervisor;
use self::topics::Topics;
pub use self::versions::Applied;
use self::versions::Versions;
use crate::deploy::Stage;
use crate::error::RuntimeError;
use crate::host::{Engine, EngineSettings};
use crate::metrics::RuntimeMetrics;
use crate::modules::{ModuleEntry, Modules};
use crate::pool::WorkerPool;

/// The runtime's settings.
#[derive(Clone, Debug, Default)]
pub struct RuntimeSettings {
    /// Number of threads that run stages; `None` means one per core.
    pub worker_threads: Option<usize>,
    /// The engine's settings.
    pub engine: EngineSettings,
}

/// Runs the pipelines of a broker. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Runtime")
    }
}

impl Runtime {
    /// Loads modules and pipelines from the broker, and starts the pipelines that were running. Must be called in a
    /// tokio runtime. Blocks while modules are loaded.
    ///
    /// # Errors
    /// [`RuntimeError`] if the catalog cannot be read. A pipeline that cannot be loaded is kept in the state stopped,
    /// with the reason.
    pub fn open(broker: Broker, settings: RuntimeSettings, registry: &mut Registry) -> Result<Self, RuntimeError> {
        let runtime = Self(Arc::new(Inner::open(broker, settings, registry)?));
        let altered = runtime.0.broker.watch_altered();
        runtime.0.versions.load_all()?;
        tokio::spawn(follow_topics(Arc::downgrade(&runtime.0), altered));
        Ok(runtime)
    }

    /// Creates or updates a pipeline from `yaml`. A running version is replaced at a batch boundary. `paths` maps each
    /// module that the file names by path to the reference or hash under which it was pushed.
    ///
    /// # Errors
    /// [`RuntimeError::Mistakes`] with all mistakes, in which case nothing was changed.
    pub async fn apply(
        &self,
        yaml: &str,
        paths: &BTreeMap<String, String>,
        dry_run: bool,
    ) -> Result<Applied, RuntimeError> {
        let (runtime, yaml, paths) = (self.clone(), yaml.to_owned(), paths.clone());
        to_its_end(async move {
            let _changing = runtime.0.changing.lock().await;
            runtime.0.versions.apply(&yaml, &paths, dry_run).await
        })
        .await
    }

    /// Ends a pipeline's tasks at a commit.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`], [`RuntimeError::Broker`].
    pub async fn pause(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        let (runtime, name) = (self.clone(), name.to_owned());
        to_its_end(async move { runtime.paused(&name).await }).await
    }

    /// Starts a pipeline that was paused or stopped, from where it left off.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`], [`RuntimeError::Stored`] if the pipeline cannot be loaded,
    /// [`RuntimeError::Broker`].
    pub async fn resume(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        let (runtime, name) = (self.clone(), name.to_owned());
        to_its_end(async move { runtime.resumed(&name).await }).await
    }

    /// Deletes a pipeline with its group, its state and its repartition topics. Output topics are kept.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`], [`RuntimeError::Broker`].
    pub async fn delete(&self, name: &str) -> Result<(), RuntimeError> {
        let (runtime, name) = (self.clone(), name.to_owned());
        to_its_end(async move {
            let _changing = runtime.0.changing.lock().await;
            runtime.0.versions.delete(runtime.pipeline(&name)?).await
        })
        .await
    }

    /// Ends all tasks at a commit, to stop the server. Running pipelines run again after the next start.
    pub async fn stop(&self) {
        let _changing = self.0.changing.lock().await;
        self.0.stopped.store(true, Ordering::Release);
        for pipeline in self.pipelines() {
            pipeline.halt().await;
        }
    }

    /// Returns the broker.
    pub fn broker(&self) -> &Broker {
        &self.0.broker
    }

    /// Returns a pipeline by name.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`].
    pub fn pipeline(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        self.0.pipelines.get(name)
    }

    /// Returns all pipelines, ordered by name.
    pub fn pipelines(&self) -> Vec<Arc<Pipeline>> {
        self.0.pipelines.all()
    }

    /// Returns whether all sources of all running pipelines are read to their end and committed.
    pub fn is_caught_up(&self) -> bool {
        !self.pipelines().iter().any(|pipeline| queries::lags(pipeline))
    }

    /// Returns an aggregate stage of a pipeline: the one named `stage`, or the only one if `stage` is `None`.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`], [`RuntimeError::Stage`].
    pub fn aggregate_stage(&self, pipeline: &str, stage: Option<&str>) -> Result<Arc<Stage>, RuntimeError> {
        let pipeline = self.pipeline(pipeline)?;
        queries::aggregate_stage(&pipeline, stage)
    }

    /// Returns the values that a stage's module derives from accumulators: one for each key, null if there is none.
    ///
    /// # Errors
    /// [`RuntimeError::Stage`] if the module fails.
    pub async fn finish(&self, stage: &Arc<Stage>, keys: Column, accumulators: Column) -> Result<Column, RuntimeError> {
        queries::finish(&self.0.pool, stage, keys, accumulators).await
    }

    /// Returns the modules.
    pub fn modules(&self) -> &Modules {
        &self.0.modules
    }

    /// Returns the pipelines and stages that run the module of an entry.
    pub fn module_uses(&self, entry: &ModuleEntry) -> Vec<(String, String)> {
        self.0.pipelines.module_uses(entry)
    }

    /// Pushes a module, like [`Modules::push`].
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn push_module(&self, reference: &str, wasm: bytes::Bytes) -> Result<(ModuleEntry, bool), RuntimeError> {
        let (runtime, reference) = (self.clone(), reference.to_owned());
        to_its_end(async move {
            let _changing = runtime.0.changing.lock().await;
            runtime.0.modules.push(&reference, wasm).await
        })
        .await
    }

    /// Removes a module that no pipeline uses.
    ///
    /// # Errors
    /// [`RuntimeError::ModuleInUse`], [`RuntimeError::UnknownModule`], [`RuntimeError::Broker`].
    pub async fn remove_module(&self, reference: &str) -> Result<(), RuntimeError> {
        let (runtime, reference) = (self.clone(), reference.to_owned());
        to_its_end(async move { runtime.module_removed(&reference).await }).await
    }
}

struct Inner {
    broker: Broker,
    modules: Arc<Modules>,
    pipelines: Arc<Pipelines>,
    versions: Versions,
    supervisor: Supervisor,
    pool: Arc<WorkerPool>,
    /// Locked while pipelines or modules change.
    changing: tokio::sync::Mutex<()>,
    /// Set while `changing` is locked. No task is started any more.
    stopped: AtomicBool,
}

impl Inner {
    /// Makes the parts of a runtime that has not loaded any pipeline.
    fn open(broker: Broker, settings: RuntimeSettings, registry: &mut Registry) -> Result<Self, RuntimeError> {
        let engine = Engine::new(settings.engine).map_err(|error| RuntimeError::Stored(error.to_string()))?;
        let threads = settings
            .worker_threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let pool = WorkerPool::start(&engine, threads).map_err(|error| RuntimeError::Stored(error.to_string()))?;
        let pool = Arc::new(pool);
        let modules = Arc::new(Modules::open(broker.clone(), engine.clone())?);
        let metrics = RuntimeMetrics::register(registry);
        let topics = Topics::new(broker.clone());
        let loader = Loader {
            broker: broker.clone(),
            topics: topics.clone(),
            engine,
            modules: modules.clone(),
            pool: pool.clone(),
            metrics: metrics.clone(),
        };
        let pipelines = Arc::new(Pipelines::default());
        let supervisor = Supervisor::new(broker.clone(), pool.clone());
        let versions = Versions {
            broker: broker.clone(),
            modules: modules.clone(),
            pipelines: pipelines.clone(),
            topics,
            loader,
            supervisor: supervisor.clone(),
            pool: pool.clone(),
            metrics,
        };
        let (changing, stopped) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Ok(Self { broker, modules, pipelines, versions, supervisor, pool, changing, stopped })
    }
}

/// Updates the pipelines whenever a topic is altered, until the runtime or the broker is dropped.
async fn follow_topics(runtime: Weak<Inner>, mut altered: watch::Receiver<u64>) {
    while altered.changed().await.is_ok() {
        let Some(inner) = runtime.upgrade() else { return };
        Runtime(inner).follow_alterations().await;
    }
}

impl Runtime {
    async fn paused(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let pipeline = self.pipeline(name)?;
        pipeline.halt().await;
        self.0.supervisor.set_state(&pipeline, RunState::Paused).await?;
        Ok(pipeline)
    }

    async fn resumed(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let pipeline = self.pipeline(name)?;
        if pipeline.state() == RunState::Running {
            return Ok(pipeline);
        }
        if pipeline.ready().is_none()
            && let RunState::Stopped(reason) = pipeline.state()
        {
            return Err(RuntimeError::Stored(format!("pipeline {name} cannot be started: {reason}; apply it again")));
        }
        pipeline.halt().await;
        self.0.supervisor.set_state(&pipeline, RunState::Running).await?;
        self.0.supervisor.begin(&pipeline);
        Ok(pipeline)
    }

    async fn module_removed(&self, reference: &str) -> Result<(), RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let entry = self.0.modules.get(reference)?;
        if let Some((pipeline, _)) = self.module_uses(&entry).into_iter().next() {
            return Err(RuntimeError::ModuleInUse { reference: entry.reference, pipeline });
        }
        self.0.modules.remove(reference, &self.0.pipelines.modules_in_use()).await
    }

    /// Restarts the pipelines whose topics were altered.
    async fn follow_alterations(&self) {
        let _changing = self.0.changing.lock().await;
        if self.0.stopped.load(Ordering::Acquire) {
            return;
        }
        for pipeline in self.pipelines() {
            self.0.versions.follow_topics(pipeline).await;
        }
    }
}
