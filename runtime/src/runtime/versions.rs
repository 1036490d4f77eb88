//! Versions of pipelines: the first is created, each replaces the one before, and the last is deleted. Versions are
//! changed one at a time, for which the caller must care.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_broker::{Broker, TopicName};

use super::changes::stage_changes;
use super::commits;
use super::group::{check_group, group, group_for};
use super::loader::Loader;
use super::pipeline::Pipeline;
use super::pipelines::Pipelines;
use super::ready::Ready;
use super::stored::Stored;
use super::supervisor::Supervisor;
use super::topics::Topics;
use super::world::Deployed;
use crate::error::RuntimeError;
use crate::host::Module;
use crate::metrics::RuntimeMetrics;
use crate::modules::Modules;
use crate::pipeline::CheckedPipeline;
use crate::pool::WorkerPool;

/// The result of `apply`, or of a dry run.
#[derive(Clone, Debug)]
pub struct Applied {
    /// One line for each change; empty if nothing changed.
    pub changes: Vec<String>,
    /// The pipeline afterwards; `None` for a dry run of a new pipeline.
    pub pipeline: Option<Arc<Pipeline>>,
}

/// Creates, replaces and deletes versions of pipelines.
pub(super) struct Versions {
    pub(super) broker: Broker,
    pub(super) modules: Arc<Modules>,
    pub(super) pipelines: Arc<Pipelines>,
    pub(super) topics: Topics,
    pub(super) loader: Loader,
    pub(super) supervisor: Supervisor,
    pub(super) pool: Arc<WorkerPool>,
    pub(super) metrics: RuntimeMetrics,
}

impl Versions {
    /// Loads the stored pipelines, and starts those that were running. Blocks while modules are compiled.
    pub(super) fn load_all(&self) -> Result<(), RuntimeError> {
        for stored in Stored::all(&self.broker)? {
            let stored = stored?;
            let name = stored.spec.name.value.clone();
            let group = group(&self.broker, &name)?;
            let loaded = self.loader.load(&stored);
            if let Err(reason) = &loaded {
                tracing::error!(pipeline = name, reason, "a pipeline cannot be loaded");
            }
            let pipeline = Arc::new(Pipeline::new(group, stored, loaded));
            self.pipelines.insert(pipeline.clone());
            self.topics.reserve(&pipeline);
            self.supervisor.begin(&pipeline);
        }
        Ok(())
    }

    /// Creates a pipeline from a file, or replaces its current version.
    pub(super) async fn apply(
        &self,
        yaml: &str,
        paths: &BTreeMap<String, String>,
        dry_run: bool,
    ) -> Result<Applied, RuntimeError> {
        let checked = self.check(yaml, paths)?;
        let before = self.pipelines.find(&checked.spec.name.value);
        let modules = self.loader.modules(&checked).await?;
        self.loader.try_modules(&checked, &modules).await?;
        check_group(&self.broker, &checked.spec)?;

        let (stored, changes) = self.next(yaml, &checked, before.as_deref());
        if changes.is_empty() || dry_run {
            return Ok(Applied { changes, pipeline: before });
        }
        let group = group_for(&self.broker, &checked.spec)?;
        self.topics.make(&checked).await?;
        // Everything that can fail comes before the old version ends.
        let ready = self.ready(&checked, &modules, before.as_deref()).await?;
        if let Some(before) = &before {
            before.halt().await;
        }
        let pipeline = Arc::new(Pipeline::new(group, stored, Ok(ready)));
        self.replace(before.as_deref(), &pipeline, &checked).await?;
        self.install(before, &pipeline);
        Ok(Applied { changes, pipeline: Some(pipeline) })
    }

    /// Restarts a pipeline if its topics were altered: new partitions of a source get tasks, and output follows the
    /// current settings of its topics.
    pub(super) async fn follow_topics(&self, pipeline: Arc<Pipeline>) {
        if pipeline.ready().is_some_and(|ready| !self.topics.are_unaltered(ready)) {
            self.restart(pipeline).await;
        }
    }

    /// Deletes a pipeline with its group, its state and its repartition topics.
    pub(super) async fn delete(&self, pipeline: Arc<Pipeline>) -> Result<(), RuntimeError> {
        pipeline.halt().await;
        pipeline.group().next_generation();
        self.broker.commit(commits::remove(&pipeline)).await?.await?;
        self.pipelines.remove(pipeline.name());
        self.topics.release(pipeline.name());
        for stage in pipeline.stages() {
            self.metrics.forget(pipeline.name(), stage.name());
        }
        let repartition_topics = pipeline.repartition_topics();
        drop(pipeline);
        self.pool.retire_guests();
        self.topics.delete(repartition_topics).await?;
        Ok(())
    }

    /// Checks a file against the current topics, modules and pipelines.
    fn check(&self, yaml: &str, paths: &BTreeMap<String, String>) -> Result<CheckedPipeline, RuntimeError> {
        let Self { broker, pipelines, modules, .. } = self;
        crate::pipeline::read(yaml, &Deployed { broker, pipelines, modules, paths }).map_err(RuntimeError::Mistakes)
    }

    /// Returns what will be stored of the next version, and how it differs from `before`.
    fn next(&self, yaml: &str, checked: &CheckedPipeline, before: Option<&Pipeline>) -> (Stored, Vec<String>) {
        let before = before.map(Pipeline::stored);
        let stored = Stored::next(yaml, checked, before.as_deref());
        let mut changes = self.topics.changes(checked);
        changes.extend(stage_changes(before.as_deref(), &stored));
        (stored, changes)
    }

    /// Makes the next version ready, and reserves its topics before they can change.
    async fn ready(
        &self,
        checked: &CheckedPipeline,
        modules: &[Arc<Module>],
        before: Option<&Pipeline>,
    ) -> Result<Ready, RuntimeError> {
        let _held = self.broker.hold_topics().await;
        let ready = self.loader.ready(checked, modules)?;
        self.topics.reserve_both(&checked.spec.name.value, &ready, before);
        Ok(ready)
    }

    /// Makes a version current with one commit, after which a task of the old version can commit nothing. Removes what
    /// only the old version used.
    async fn replace(
        &self,
        before: Option<&Pipeline>,
        pipeline: &Pipeline,
        checked: &CheckedPipeline,
    ) -> Result<(), RuntimeError> {
        pipeline.group().next_generation();
        self.broker.commit(commits::replace(before, pipeline, checked)).await?.await?;
        self.topics.reserve(pipeline);
        let Some(before) = before else { return Ok(()) };
        let read: BTreeSet<&TopicName> = pipeline.sources().map(|topic| topic.name()).collect();
        let unread = before.repartition_topics().into_iter().filter(|topic| !read.contains(topic));
        self.topics.delete(unread).await?;
        for old in before.spec().stages {
            if !checked.spec.stages.iter().any(|new| new.name.value == old.name.value) {
                self.metrics.forget(pipeline.name(), &old.name.value);
            }
        }
        Ok(())
    }

    /// Ends the tasks of a pipeline at a commit, loads it with its altered topics, and starts it again.
    async fn restart(&self, before: Arc<Pipeline>) {
        before.halt().await;
        let stored = before.stored().clone();
        let loaded = self.loader.load_elsewhere(&stored).await;
        if let Err(reason) = &loaded {
            tracing::error!(pipeline = before.name(), reason, "a pipeline cannot continue with its altered topics");
        }
        let pipeline = Arc::new(Pipeline::new(before.group().clone(), stored, loaded));
        self.topics.reserve(&pipeline);
        self.install(Some(before), &pipeline);
    }

    /// Lists and starts a current version, in place of the old version, whose tasks have ended.
    fn install(&self, before: Option<Arc<Pipeline>>, pipeline: &Arc<Pipeline>) {
        self.pipelines.insert(pipeline.clone());
        drop(before);
        self.pool.retire_guests();
        self.supervisor.begin(pipeline);
    }
}
