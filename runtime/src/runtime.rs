//! The operations that users request: push modules, apply pipelines, pause, resume and delete them, and read state.

mod changes;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use millstream_broker::broker::operation::to_its_end;
use millstream_broker::groups::{Group, GroupKind, PipelineState};
use millstream_broker::log::commit::{Commit, OffsetChange};
use millstream_broker::log::topic::{Topic, TopicSettings, TopicUse};
use millstream_broker::store::CatalogChange;
use millstream_broker::{Broker, BrokerError, GroupId, TopicName};
use millstream_record::Column;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use self::changes::stage_changes;
use self::world::{AsStored, Deployed};
use crate::deploy::{Segment, Stage, StageSettings, store_name};
use crate::embedded::EmbeddedLog;
use crate::encode::OutputTopic;
use crate::error::RuntimeError;
use crate::host::{Engine, EngineSettings, Module, ModuleHash, StageKind};
use crate::metrics::RuntimeMetrics;
use crate::modules::{ModuleEntry, Modules};
use crate::pipeline::{self, CheckedPipeline, Mistake, Mistakes, PipelineSpec, Source, Start};
use crate::pool::WorkerPool;
use crate::task::{Stopped, Task};

const PIPELINE_PREFIX: &str = "pipeline/";

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

struct Inner {
    broker: Broker,
    engine: Engine,
    pool: Arc<WorkerPool>,
    modules: Modules,
    metrics: RuntimeMetrics,
    pipelines: RwLock<BTreeMap<String, Arc<Pipeline>>>,
    /// Locked while pipelines or modules change.
    changing: tokio::sync::Mutex<()>,
    /// Set while `changing` is locked. No task is started any more.
    stopped: AtomicBool,
}

/// The state that a user requested for a pipeline, or that a failure caused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// The pipeline's tasks run.
    Running,
    /// A user paused the pipeline.
    Paused,
    /// The pipeline could not continue, for this reason.
    Stopped(String),
}

impl RunState {
    fn of_group(&self) -> PipelineState {
        match self {
            Self::Running => PipelineState::Running,
            Self::Paused => PipelineState::Paused,
            Self::Stopped(_) => PipelineState::Stopped,
        }
    }
}

/// A pipeline as stored in the catalog.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    yaml: String,
    spec: PipelineSpec,
    /// The modules that the references of the file pointed to when it was applied.
    modules: BTreeMap<String, ModuleHash>,
    version: u64,
    state: RunState,
}

/// A version of a pipeline.
pub struct Pipeline {
    stored: Mutex<Stored>,
    group: Arc<Group>,
    /// `None` if the pipeline could not be loaded.
    ready: Option<Ready>,
    running: Mutex<Option<Running>>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipeline({})", self.group.id())
    }
}

/// What is needed to start tasks.
struct Ready {
    stages: Vec<Arc<Stage>>,
    segments: Vec<(Arc<Segment>, Vec<Arc<Topic>>)>,
}

/// The running tasks of a pipeline.
struct Running {
    stop: watch::Sender<bool>,
    supervisor: JoinHandle<()>,
}

/// The result of `apply`, or of a dry run.
#[derive(Clone, Debug)]
pub struct Applied {
    /// One line for each change; empty if nothing changed.
    pub changes: Vec<String>,
    /// The pipeline afterwards; `None` for a dry run of a new pipeline.
    pub pipeline: Option<Arc<Pipeline>>,
}

impl Ready {
    fn sources(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.segments.iter().flat_map(|(_, sources)| sources)
    }

    /// Returns all topics that are written to.
    fn outputs(&self) -> impl Iterator<Item = &OutputTopic> {
        let of_segments =
            self.segments.iter().flat_map(|(segment, _)| segment.sinks.iter().chain(&segment.dead_letters));
        of_segments.chain(self.stages.iter().filter_map(|stage| stage.settings().to.as_ref()))
    }

    /// Returns all topics that are read or written, with their use.
    fn uses(&self) -> BTreeMap<TopicName, TopicUse> {
        let mut uses: BTreeMap<TopicName, TopicUse> =
            self.outputs().map(|topic| (topic.name.clone(), TopicUse::default())).collect();
        for (segment, sources) in &self.segments {
            let aggregate = segment.stages.iter().find(|stage| stage.kind() == StageKind::Aggregate);
            for topic in sources {
                let of = uses.entry(topic.name().clone()).or_default();
                of.aggregate = of.aggregate.take().or_else(|| aggregate.map(|stage| stage.name().to_string()));
            }
        }
        uses
    }
}

/// Updates the pipelines whenever a topic is altered, until the runtime or the broker is dropped.
async fn follow_topics(runtime: Weak<Inner>, mut altered: watch::Receiver<u64>) {
    while altered.changed().await.is_ok() {
        let Some(inner) = runtime.upgrade() else { return };
        Runtime(inner).follow_alterations().await;
    }
}

impl Pipeline {
    /// Returns the pipeline's name.
    pub fn name(&self) -> &str {
        self.group.id().as_str()
    }

    /// Returns the pipeline's consumer group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Returns the pipeline file, as it was applied.
    pub fn yaml(&self) -> String {
        self.stored.lock().yaml.clone()
    }

    /// Returns the parsed pipeline file.
    pub fn spec(&self) -> PipelineSpec {
        self.stored.lock().spec.clone()
    }

    /// Returns the version, which increases with each applied change.
    pub fn version(&self) -> u64 {
        self.stored.lock().version
    }

    /// Returns the state.
    pub fn state(&self) -> RunState {
        self.stored.lock().state.clone()
    }

    /// Returns the stages; empty if the pipeline could not be loaded.
    pub fn stages(&self) -> &[Arc<Stage>] {
        self.ready.as_ref().map_or(&[], |ready| &ready.stages)
    }

    /// Returns the number of tasks of the pipeline when it runs.
    pub fn tasks(&self) -> usize {
        self.sources().map(|topic| topic.partition_count() as usize).sum()
    }

    fn modules(&self) -> Vec<ModuleHash> {
        self.stored.lock().modules.values().copied().collect()
    }

    fn sources(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.ready.iter().flat_map(Ready::sources)
    }

    /// Returns the topics that the pipeline uses, with their use; from its file if it could not be loaded.
    fn uses(&self) -> BTreeMap<TopicName, TopicUse> {
        if let Some(ready) = &self.ready {
            return ready.uses();
        }
        let spec = self.spec();
        let aggregate = spec.stages.iter().find(|stage| stage.kind.value == StageKind::Aggregate);
        let aggregate = aggregate.map(|stage| stage.name.value.clone());
        let outputs = spec.outputs().into_iter().map(str::to_owned).chain(spec.dead_letter_topic());
        let outputs = outputs.map(|topic| (topic, TopicUse::default()));
        let sources = spec.from.iter().map(|topic| (topic.value.clone(), TopicUse { aggregate: aggregate.clone() }));
        outputs.chain(sources).filter_map(|(topic, of)| Some((TopicName::new(&topic).ok()?, of))).collect()
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
        let engine = Engine::new(settings.engine).map_err(|error| RuntimeError::Stored(error.to_string()))?;
        let threads = settings
            .worker_threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let pool = WorkerPool::start(&engine, threads).map_err(|error| RuntimeError::Stored(error.to_string()))?;
        let modules = Modules::open(broker.clone(), engine.clone())?;
        let runtime = Self(Arc::new(Inner {
            pool: Arc::new(pool),
            modules,
            metrics: RuntimeMetrics::register(registry),
            pipelines: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            stopped: AtomicBool::new(false),
            broker,
            engine,
        }));
        let altered = runtime.0.broker.watch_altered();
        runtime.load_pipelines()?;
        tokio::spawn(follow_topics(Arc::downgrade(&runtime.0), altered));
        Ok(runtime)
    }

    /// Returns the modules.
    pub fn modules(&self) -> &Modules {
        &self.0.modules
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
        let pipelines = self.0.pipelines.read();
        pipelines.get(name).cloned().ok_or_else(|| RuntimeError::UnknownPipeline { pipeline: name.to_owned() })
    }

    /// Returns all pipelines, ordered by name.
    pub fn pipelines(&self) -> Vec<Arc<Pipeline>> {
        self.0.pipelines.read().values().cloned().collect()
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

    async fn module_removed(&self, reference: &str) -> Result<(), RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let entry = self.0.modules.get(reference)?;
        if let Some((pipeline, _)) = self.module_uses(&entry).into_iter().next() {
            return Err(RuntimeError::ModuleInUse { reference: entry.reference, pipeline });
        }
        let in_use: Vec<ModuleHash> = self.pipelines().iter().flat_map(|pipeline| pipeline.modules()).collect();
        self.0.modules.remove(reference, &in_use).await
    }

    /// Returns the pipelines and stages that run the module of an entry.
    pub fn module_uses(&self, entry: &ModuleEntry) -> Vec<(String, String)> {
        let mut uses = Vec::new();
        for pipeline in self.pipelines() {
            let stored = pipeline.stored.lock();
            for stage in &stored.spec.stages {
                if stored.modules.get(stage.module.value.as_str()) == Some(&entry.hash) {
                    uses.push((stored.spec.name.value.clone(), stage.name.value.clone()));
                }
            }
        }
        uses
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
        to_its_end(async move { runtime.applied(&yaml, &paths, dry_run).await }).await
    }

    async fn applied(
        &self,
        yaml: &str,
        paths: &BTreeMap<String, String>,
        dry_run: bool,
    ) -> Result<Applied, RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let world = Deployed { inner: &self.0, paths };
        let checked = pipeline::read(yaml, &world).map_err(RuntimeError::Mistakes)?;
        let name = checked.spec.name.value.clone();
        let before = self.0.pipelines.read().get(&name).cloned();
        let modules = self.load_modules(&checked).await?;
        self.try_modules(&checked, &modules).await?;
        self.check_group(&checked.spec)?;

        let references = checked.spec.stages.iter().zip(&checked.modules);
        let stored = Stored {
            yaml: yaml.to_owned(),
            modules: references.map(|(stage, hash)| (stage.module.value.as_str().to_owned(), *hash)).collect(),
            version: before.as_ref().map_or(1, |before| before.version() + 1),
            state: before.as_ref().map_or(RunState::Running, |before| match before.state() {
                // A user who applies a change to a stopped pipeline expects it to run again.
                RunState::Stopped(_) => RunState::Running,
                state => state,
            }),
            spec: checked.spec.clone(),
        };
        let mut changes = self.topic_changes(&checked);
        changes.extend(stage_changes(before.as_deref(), &stored));
        if changes.is_empty() || dry_run {
            return Ok(Applied { changes, pipeline: before });
        }
        let group = self.group_for(&checked.spec)?;
        self.make_topics(&checked).await?;
        // Everything that can fail comes before the old version ends.
        let ready = {
            // The topics are reserved before they can change.
            let _held = self.0.broker.hold_topics().await;
            let ready = self.ready(&checked, &modules)?;
            let mut uses = ready.uses();
            // The old version runs until the new one is stored, so its topics stay reserved as well.
            for (topic, old) in before.iter().flat_map(|before| before.uses()) {
                let of = uses.entry(topic).or_default();
                of.aggregate = of.aggregate.take().or(old.aggregate);
            }
            self.0.broker.set_topics_in_use(&name, uses);
            ready
        };
        if let Some(before) = &before {
            before.halt().await;
        }
        let pipeline =
            Arc::new(Pipeline { ready: Some(ready), group, stored: Mutex::new(stored), running: Mutex::default() });
        self.replace(before.as_deref(), &pipeline, &checked).await?;
        self.0.pipelines.write().insert(name, pipeline.clone());
        drop(before);
        self.0.pool.retire_guests();
        self.begin(&pipeline);
        Ok(Applied { changes, pipeline: Some(pipeline) })
    }

    /// Ends a pipeline's tasks at a commit.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`], [`RuntimeError::Broker`].
    pub async fn pause(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        let (runtime, name) = (self.clone(), name.to_owned());
        to_its_end(async move { runtime.paused(&name).await }).await
    }

    async fn paused(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let pipeline = self.pipeline(name)?;
        pipeline.halt().await;
        self.set_state(&pipeline, RunState::Paused).await?;
        Ok(pipeline)
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

    async fn resumed(&self, name: &str) -> Result<Arc<Pipeline>, RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let pipeline = self.pipeline(name)?;
        if pipeline.state() == RunState::Running {
            return Ok(pipeline);
        }
        if pipeline.ready.is_none()
            && let RunState::Stopped(reason) = pipeline.state()
        {
            return Err(RuntimeError::Stored(format!("pipeline {name} cannot be started: {reason}; apply it again")));
        }
        pipeline.halt().await;
        self.set_state(&pipeline, RunState::Running).await?;
        self.begin(&pipeline);
        Ok(pipeline)
    }

    /// Deletes a pipeline with its group, its state and its repartition topics. Output topics are kept.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`], [`RuntimeError::Broker`].
    pub async fn delete(&self, name: &str) -> Result<(), RuntimeError> {
        let (runtime, name) = (self.clone(), name.to_owned());
        to_its_end(async move { runtime.deleted(&name).await }).await
    }

    async fn deleted(&self, name: &str) -> Result<(), RuntimeError> {
        let _changing = self.0.changing.lock().await;
        let pipeline = self.pipeline(name)?;
        pipeline.halt().await;
        pipeline.group.next_generation();
        let spec = pipeline.spec();
        let commit = Commit {
            catalog: vec![CatalogChange::remove(format!("{PIPELINE_PREFIX}{name}"))],
            drop_groups: vec![pipeline.group.clone()],
            drop_state: spec.stages.iter().map(|stage| store_name(name, &stage.name.value)).collect(),
            ..Commit::default()
        };
        self.0.broker.commit(commit).await?.await?;
        self.0.pipelines.write().remove(name);
        self.0.broker.set_topics_in_use(name, BTreeMap::new());
        for stage in pipeline.stages() {
            self.0.metrics.forget(name, stage.name());
        }
        let internal: Vec<TopicName> =
            pipeline.sources().filter(|topic| topic.meta().internal).map(|topic| topic.name().clone()).collect();
        drop(pipeline);
        self.0.pool.retire_guests();
        for topic in internal {
            self.0.broker.delete_topic(&topic).await?;
        }
        Ok(())
    }

    /// Ends all tasks at a commit, to stop the server. Running pipelines run again after the next start.
    pub async fn stop(&self) {
        let _changing = self.0.changing.lock().await;
        self.0.stopped.store(true, Ordering::Release);
        for pipeline in self.pipelines() {
            pipeline.halt().await;
        }
    }

    /// Returns whether all sources of all running pipelines are read to their end and committed.
    pub fn is_caught_up(&self) -> bool {
        let lagging = |pipeline: &Arc<Pipeline>| {
            pipeline.state() == RunState::Running
                && pipeline.sources().flat_map(|topic| topic.partitions()).any(|partition| {
                    let committed = pipeline.group.committed(partition.topic_id(), partition.name().partition);
                    committed.unwrap_or(partition.start()) < partition.end()
                })
        };
        !self.pipelines().iter().any(lagging)
    }

    /// Returns an aggregate stage of a pipeline: the one named `stage`, or the only one if `stage` is `None`.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownPipeline`], [`RuntimeError::Stage`].
    pub fn aggregate_stage(&self, pipeline: &str, stage: Option<&str>) -> Result<Arc<Stage>, RuntimeError> {
        let pipeline = self.pipeline(pipeline)?;
        let aggregates = || pipeline.stages().iter().filter(|stage| stage.kind() == StageKind::Aggregate);
        let what = match stage {
            Some(name) => match aggregates().find(|stage| &**stage.name() == name) {
                Some(stage) => return Ok(stage.clone()),
                None => format!("no aggregate stage {name:?}"),
            },
            None => match aggregates().collect::<Vec<_>>()[..] {
                [stage] => return Ok(stage.clone()),
                [] => "no aggregate stage: only aggregates keep state".to_owned(),
                ref several => {
                    let names: Vec<&str> = several.iter().map(|stage| &**stage.name()).collect();
                    format!("several aggregate stages ({}): name one of them", names.join(", "))
                }
            },
        };
        Err(RuntimeError::Stage { pipeline: pipeline.name().to_owned(), what })
    }

    /// Returns the values that a stage's module derives from accumulators: one for each key, null if there is none.
    ///
    /// # Errors
    /// [`RuntimeError::Stage`] if the module fails.
    pub async fn finish(&self, stage: &Arc<Stage>, keys: Column, accumulators: Column) -> Result<Column, RuntimeError> {
        let of_worker = stage.clone();
        let finished = self.0.pool.run(move |guests| guests.of(&of_worker).finish(&keys, &accumulators)).await;
        let finished = finished.ok_or(BrokerError::ShuttingDown)?;
        finished.map(|finished| finished.values).map_err(|error| {
            let (pipeline, what) = (stage.store().to_string(), format!("a module that cannot show its state: {error}"));
            RuntimeError::Stage { pipeline, what }
        })
    }

    // ---- creating a runnable pipeline from a file

    fn load_pipelines(&self) -> Result<(), RuntimeError> {
        for (key, value) in self.0.broker.store().catalog_scan(PIPELINE_PREFIX)? {
            let corrupt = |reason: String| RuntimeError::Stored(format!("catalog entry {key:?}: {reason}"));
            let mut stored: Stored = serde_json::from_slice(&value).map_err(|error| corrupt(error.to_string()))?;
            let name = stored.spec.name.value.clone();
            let id = GroupId::new(&name).map_err(BrokerError::from)?;
            let group = self.0.broker.groups().get_or_create(&id, GroupKind::Pipeline)?;
            let ready = match self.load_ready(&stored) {
                Ok(ready) => Some(ready),
                Err(reason) => {
                    tracing::error!(pipeline = name, reason, "a pipeline cannot be loaded");
                    stored.state = RunState::Stopped(reason);
                    None
                }
            };
            let pipeline = Arc::new(Pipeline { group, ready, stored: Mutex::new(stored), running: Mutex::default() });
            self.0.pipelines.write().insert(name, pipeline.clone());
            self.reserve_topics(&pipeline);
            match pipeline.state() {
                RunState::Running => self.start_tasks(&pipeline),
                state => pipeline.group.set_pipeline_state(state.of_group()),
            }
        }
        Ok(())
    }

    fn load_ready(&self, stored: &Stored) -> Result<Ready, String> {
        let world = AsStored { inner: &self.0, modules: &stored.modules };
        let checked = pipeline::check(&stored.spec, &world).map_err(|mistakes| mistakes.to_string())?;
        let load = |hash: &ModuleHash| self.0.modules.load(hash).map_err(|error| error.to_string());
        let modules = checked.modules.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        self.ready(&checked, &modules).map_err(|error| error.to_string())
    }

    async fn load_modules(&self, checked: &CheckedPipeline) -> Result<Vec<Arc<Module>>, RuntimeError> {
        let (runtime, hashes) = (self.clone(), checked.modules.clone());
        let load = move || hashes.iter().map(|hash| runtime.0.modules.load(hash)).collect::<Result<Vec<_>, _>>();
        tokio::task::spawn_blocking(load).await.unwrap_or(Err(BrokerError::ShuttingDown.into()))
    }

    /// Starts each module once with its parameters, so that a file with wrong parameters is refused.
    async fn try_modules(&self, checked: &CheckedPipeline, modules: &[Arc<Module>]) -> Result<(), RuntimeError> {
        let mut mistakes = Vec::new();
        for (spec, module) in checked.spec.stages.iter().zip(modules) {
            let parameters = spec.with.clone().into_iter().collect();
            let mut guest =
                crate::host::Guest::new(&self.0.engine, module, parameters, spec.limits, Default::default());
            let started = self.0.pool.run(move |_| guest.start()).await.ok_or(BrokerError::ShuttingDown)?;
            if let Err(error) = started {
                let place = spec.module.place;
                let message = format!("stage `{}`: {error}", spec.name.value);
                mistakes.push(Mistake { line: place.line, column: place.column, message });
            }
        }
        Mistakes::none_in(mistakes).map_err(RuntimeError::Mistakes)
    }

    /// Reports a mistake if the name belongs to a consumer group.
    fn check_group(&self, spec: &PipelineSpec) -> Result<(), RuntimeError> {
        match self.0.broker.groups().get(&spec.name.value) {
            Ok(group) if group.kind() != GroupKind::Pipeline => self.group_for(spec).map(drop),
            _ => Ok(()),
        }
    }

    fn group_for(&self, spec: &PipelineSpec) -> Result<Arc<Group>, RuntimeError> {
        let id = GroupId::new(&spec.name.value).map_err(BrokerError::from)?;
        self.0.broker.groups().get_or_create(&id, GroupKind::Pipeline).map_err(|error| {
            let place = spec.name.place;
            let mistake = Mistake { line: place.line, column: place.column, message: error.to_string() };
            match Mistakes::none_in(vec![mistake]) {
                Err(mistakes) => RuntimeError::Mistakes(mistakes),
                Ok(()) => RuntimeError::Broker(error),
            }
        })
    }

    fn ready(&self, checked: &CheckedPipeline, modules: &[Arc<Module>]) -> Result<Ready, BrokerError> {
        let name: Arc<str> = checked.spec.name.value.as_str().into();
        let output = |topic: &TopicName| self.output_topic(topic);
        let mut stages = Vec::new();
        for (spec, module) in checked.spec.stages.iter().zip(modules) {
            let to = spec.to.as_ref().map(|topic| TopicName::new(&topic.value)).transpose()?;
            let settings = StageSettings {
                name: spec.name.value.as_str().into(),
                module: module.clone(),
                reference: spec.module.value.as_str().to_owned(),
                parameters: spec.with.clone().into_iter().collect(),
                limits: spec.limits,
                on_failure: spec.on_failure,
                to: to.as_ref().map(output).transpose()?,
            };
            let metrics = self.0.metrics.stage(&name, &settings.name);
            stages.push(Arc::new(Stage::new(&name, settings, metrics)));
        }
        let dead_letters = checked.dead_letters().map(output).transpose()?;
        let mut segments = Vec::new();
        for planned in &checked.plan.segments {
            let segment = Segment {
                pipeline: name.clone(),
                stages: stages[planned.stages.clone()].to_vec(),
                sinks: planned.sink.iter().map(|sink| output(sink.topic())).collect::<Result<_, _>>()?,
                dead_letters: dead_letters.clone(),
            };
            let source = |source: &Source| self.0.broker.topic(source.topic().as_str());
            segments.push((Arc::new(segment), planned.sources.iter().map(source).collect::<Result<_, _>>()?));
        }
        Ok(Ready { stages, segments })
    }

    fn output_topic(&self, name: &TopicName) -> Result<OutputTopic, BrokerError> {
        let topic = self.0.broker.topic(name.as_str())?;
        Ok(OutputTopic {
            name: name.clone(),
            partitions: topic.partition_count(),
            batch_bytes_max: topic.meta().settings.batch_bytes_max(),
            compacted: topic.meta().settings.cleanup.compacts(),
        })
    }

    // ---- topics

    /// Returns the topics that a pipeline needs and that do not exist: name, partitions, internal.
    fn missing_topics(&self, checked: &CheckedPipeline) -> Vec<(TopicName, u32, bool)> {
        let of_sources = checked.spec.from.iter().filter_map(|topic| self.0.broker.topic(&topic.value).ok());
        let partitions = of_sources.map(|topic| topic.partition_count()).max().unwrap_or(1);
        let outputs = checked.outputs().iter().map(|topic| (topic.clone(), partitions, false));
        let dead_letters = checked.dead_letters().map(|topic| (topic.clone(), 1, false));
        let internal = checked.plan.repartitions().map(|between| (between.topic.clone(), between.partitions, true));
        let missing = |(topic, ..): &(TopicName, u32, bool)| self.0.broker.topic(topic.as_str()).is_err();
        outputs.chain(dead_letters).chain(internal).filter(missing).collect()
    }

    fn topic_changes(&self, checked: &CheckedPipeline) -> Vec<String> {
        let line = |(topic, partitions, internal): (TopicName, u32, bool)| {
            let what = if internal { "repartition topic" } else { "topic" };
            format!("{what} {topic}: created with {partitions} partition{}", if partitions == 1 { "" } else { "s" })
        };
        self.missing_topics(checked).into_iter().map(line).collect()
    }

    async fn make_topics(&self, checked: &CheckedPipeline) -> Result<(), RuntimeError> {
        for (topic, partitions, internal) in self.missing_topics(checked) {
            self.0.broker.create_topic(&topic, partitions, TopicSettings::default(), internal).await?;
        }
        Ok(())
    }

    fn reserve_topics(&self, pipeline: &Pipeline) {
        self.0.broker.set_topics_in_use(pipeline.name(), pipeline.uses());
    }

    /// Restarts, at a commit, the pipelines whose topics were altered: new partitions of a source get tasks, and output
    /// follows the current settings of its topics.
    async fn follow_alterations(&self) {
        let _changing = self.0.changing.lock().await;
        if self.0.stopped.load(Ordering::Acquire) {
            return;
        }
        for before in self.pipelines() {
            let Some(ready) = &before.ready else { continue };
            if ready.outputs().all(|topic| self.output_topic(&topic.name).is_ok_and(|now| now == *topic))
                && ready.sources().all(|topic| self.partition_count(topic) == Some(topic.partition_count()))
            {
                continue;
            }
            before.halt().await;
            let mut stored = before.stored.lock().clone();
            let (runtime, of) = (self.clone(), stored.clone());
            let loaded = tokio::task::spawn_blocking(move || runtime.load_ready(&of)).await;
            let ready = match loaded.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(ready) => Some(ready),
                Err(reason) => {
                    tracing::error!(
                        pipeline = before.name(),
                        reason,
                        "a pipeline cannot continue with its altered topics"
                    );
                    stored.state = RunState::Stopped(reason);
                    None
                }
            };
            let (group, stored) = (before.group.clone(), Mutex::new(stored));
            let pipeline = Arc::new(Pipeline { group, ready, stored, running: Mutex::default() });
            self.0.pipelines.write().insert(before.name().to_owned(), pipeline.clone());
            self.reserve_topics(&pipeline);
            drop(before);
            self.0.pool.retire_guests();
            self.begin(&pipeline);
        }
    }

    fn partition_count(&self, topic: &Topic) -> Option<u32> {
        self.0.broker.topic(topic.name().as_str()).ok().map(|now| now.partition_count())
    }

    // ---- versions and tasks

    /// Makes the new version current with one commit: the file, the offsets at which it begins, and the state of the
    /// old version that is dropped. After this, a task of the old version can commit nothing.
    async fn replace(
        &self,
        before: Option<&Pipeline>,
        pipeline: &Arc<Pipeline>,
        checked: &CheckedPipeline,
    ) -> Result<(), RuntimeError> {
        let group = &pipeline.group;
        group.next_generation();
        let mut commit = Commit { catalog: vec![pipeline.catalog_entry()], ..Commit::default() };
        let keeps_state = |name: &str| {
            let stages = &checked.spec.stages;
            stages.iter().any(|stage| stage.kind.value == StageKind::Aggregate && stage.name.value == name)
        };
        let old_stages = before.map(|before| before.spec().stages).unwrap_or_default();
        let dropped =
            old_stages.iter().filter(|old| old.kind.value == StageKind::Aggregate && !keeps_state(&old.name.value));
        commit.drop_state = dropped.map(|old| store_name(pipeline.name(), &old.name.value)).collect();
        for topic in pipeline.sources() {
            for partition in topic.partitions() {
                let number = partition.name().partition;
                if group.committed(topic.id(), number).is_some() {
                    continue;
                }
                // Records that an earlier pipeline of the same name left in a repartition topic are skipped.
                let latest = checked.spec.start == Start::Latest || topic.meta().internal;
                let offset = if latest { partition.end() } else { partition.start() };
                let (group, topic) = (group.clone(), topic.clone());
                commit.offsets.push(OffsetChange {
                    group,
                    topic,
                    partition: number,
                    to: Some(offset.into()),
                    expected: Some(None),
                });
            }
        }
        self.0.broker.commit(commit).await?.await?;
        self.reserve_topics(pipeline);
        let now: BTreeSet<&TopicName> = pipeline.sources().map(|topic| topic.name()).collect();
        for topic in before.into_iter().flat_map(Pipeline::sources) {
            if topic.meta().internal && !now.contains(topic.name()) {
                self.0.broker.delete_topic(topic.name()).await?;
            }
        }
        for old in
            old_stages.iter().filter(|old| !checked.spec.stages.iter().any(|new| new.name.value == old.name.value))
        {
            self.0.metrics.forget(pipeline.name(), &old.name.value);
        }
        Ok(())
    }

    async fn set_state(&self, pipeline: &Arc<Pipeline>, state: RunState) -> Result<(), RuntimeError> {
        pipeline.stored.lock().state = state.clone();
        let commit = Commit { catalog: vec![pipeline.catalog_entry()], ..Commit::default() };
        self.0.broker.commit(commit).await?.await?;
        pipeline.group.set_pipeline_state(state.of_group());
        Ok(())
    }

    fn begin(&self, pipeline: &Arc<Pipeline>) {
        let state = pipeline.state();
        pipeline.group.set_pipeline_state(state.of_group());
        if state == RunState::Running {
            self.start_tasks(pipeline);
        }
    }

    /// Starts a task for each source partition, and a supervisor for the tasks.
    fn start_tasks(&self, pipeline: &Arc<Pipeline>) {
        let Some(ready) = &pipeline.ready else { return };
        pipeline.group.next_generation();
        pipeline.group.set_pipeline_state(PipelineState::Running);
        let (stop, stopping) = watch::channel(false);
        let log = EmbeddedLog::new(self.0.broker.clone(), pipeline.group.clone());
        let mut tasks = JoinSet::new();
        for (segment, sources) in &ready.segments {
            for partition in sources.iter().flat_map(|topic| topic.partitions()) {
                let task = Task {
                    log: log.clone(),
                    segment: segment.clone(),
                    source: partition.name().clone(),
                    pool: self.0.pool.clone(),
                    limits: self.0.broker.settings().limits,
                    stop: stopping.clone(),
                };
                tasks.spawn(task.run());
            }
        }
        let supervisor = tokio::spawn(self.clone().supervise(pipeline.clone(), tasks, stop.clone()));
        *pipeline.running.lock() = Some(Running { stop, supervisor });
    }

    /// Waits for the tasks. If one cannot continue, the others end at their next commit, and the pipeline is stopped
    /// with the reason.
    async fn supervise(
        self,
        pipeline: Arc<Pipeline>,
        mut tasks: JoinSet<Result<(), Stopped>>,
        stop: watch::Sender<bool>,
    ) {
        let mut stopped: Option<String> = None;
        while let Some(ended) = tasks.join_next().await {
            let reason = match ended {
                Ok(Ok(())) if *stop.borrow() || self.0.broker.is_stopping() => continue,
                Ok(Ok(())) => "a task ended unexpectedly: see the log for a panic of a worker".to_owned(),
                Ok(Err(reason)) => reason.to_string(),
                Err(error) => format!("a task failed because of a bug: {error}"),
            };
            stop.send_replace(true);
            stopped.get_or_insert(reason);
        }
        let Some(reason) = stopped else { return };
        tracing::error!(pipeline = pipeline.name(), reason, "the pipeline stopped");
        let state = RunState::Stopped(reason);
        pipeline.stored.lock().state = state.clone();
        pipeline.group.set_pipeline_state(state.of_group());
        // `changing` is not locked here, because its holder may be waiting for this to end. A version that replaces
        // this one halts it first, so this entry cannot overwrite a newer one.
        let commit = Commit { catalog: vec![pipeline.catalog_entry()], ..Commit::default() };
        let kept = match self.0.broker.commit(commit).await {
            Ok(receipt) => receipt.await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(pipeline = pipeline.name(), %error, "the stopped state of the pipeline could not be stored");
        }
    }
}

impl Pipeline {
    /// Ends the tasks at a commit, and waits until they have ended.
    async fn halt(&self) {
        let running = self.running.lock().take();
        let Some(running) = running else { return };
        running.stop.send_replace(true);
        if running.supervisor.await.is_err() {
            tracing::error!(pipeline = self.name(), "the supervisor panicked");
        }
    }

    fn catalog_entry(&self) -> CatalogChange {
        let stored = self.stored.lock();
        let json = serde_json::to_vec(&*stored).expect("plain structs serialise");
        CatalogChange::put(format!("{PIPELINE_PREFIX}{}", stored.spec.name.value), json)
    }
}
