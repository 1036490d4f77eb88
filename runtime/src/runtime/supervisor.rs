//! Runs pipelines: starts their tasks, watches over them, and keeps their state in the catalog. A pipeline whose task
//! cannot continue is stopped with the reason. This file must not know how a pipeline is loaded or replaced.

use std::sync::Arc;

use millstream_broker::groups::PipelineState;
use millstream_broker::log::commit::Commit;
use millstream_broker::{Broker, BrokerError};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::pipeline::Pipeline;
use super::ready::Ready;
use super::run_state::RunState;
use super::running::Running;
use crate::embedded::EmbeddedLog;
use crate::pool::WorkerPool;
use crate::task::{Stopped, Task};

/// Starts and watches over the tasks of pipelines. Cheap to clone.
#[derive(Clone)]
pub(super) struct Supervisor {
    broker: Broker,
    pool: Arc<WorkerPool>,
}

impl Supervisor {
    pub(super) fn new(broker: Broker, pool: Arc<WorkerPool>) -> Self {
        Self { broker, pool }
    }

    /// Tells the group the pipeline's state, and starts the tasks if the state is running.
    pub(super) fn begin(&self, pipeline: &Arc<Pipeline>) {
        let state = pipeline.state();
        pipeline.group().set_pipeline_state(state.of_group());
        if state == RunState::Running {
            self.start_tasks(pipeline);
        }
    }

    /// Changes the state of a pipeline whose tasks have ended.
    pub(super) async fn set_state(&self, pipeline: &Pipeline, state: RunState) -> Result<(), BrokerError> {
        pipeline.stored().state = state.clone();
        self.store(pipeline).await?;
        pipeline.group().set_pipeline_state(state.of_group());
        Ok(())
    }

    /// Starts a task for each source partition, and a supervising one that waits for them.
    fn start_tasks(&self, pipeline: &Arc<Pipeline>) {
        let Some(ready) = pipeline.ready() else { return };
        pipeline.group().next_generation();
        pipeline.group().set_pipeline_state(PipelineState::Running);
        let (stop, stopping) = watch::channel(false);
        let tasks = self.tasks(pipeline, ready, &stopping);
        let supervisor = tokio::spawn(self.clone().supervise(pipeline.clone(), tasks, stop.clone()));
        pipeline.runs(Running { stop, supervisor });
    }

    fn tasks(&self, pipeline: &Pipeline, ready: &Ready, stop: &watch::Receiver<bool>) -> JoinSet<Result<(), Stopped>> {
        let log = EmbeddedLog::new(self.broker.clone(), pipeline.group().clone());
        let mut tasks = JoinSet::new();
        for (subtopology, sources) in &ready.subtopologies {
            for partition in sources.iter().flat_map(|topic| topic.partitions()) {
                let task = Task {
                    log: log.clone(),
                    subtopology: subtopology.clone(),
                    source: partition.name().clone(),
                    pool: self.pool.clone(),
                    limits: self.broker.settings().limits,
                    stop: stop.clone(),
                };
                tasks.spawn(task.run());
            }
        }
        tasks
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
                Ok(Ok(())) if *stop.borrow() || self.broker.is_stopping() => continue,
                Ok(Ok(())) => "a task ended unexpectedly: see the log for a panic of a worker".to_owned(),
                Ok(Err(reason)) => reason.to_string(),
                Err(error) => format!("a task failed because of a bug: {error}"),
            };
            stop.send_replace(true);
            stopped.get_or_insert(reason);
        }
        if let Some(reason) = stopped {
            self.stopped(&pipeline, reason).await;
        }
    }

    /// Stops a pipeline whose tasks have ended by themselves.
    async fn stopped(&self, pipeline: &Pipeline, reason: String) {
        tracing::error!(pipeline = pipeline.name(), reason, "the pipeline stopped");
        let state = RunState::Stopped(reason);
        pipeline.stored().state = state.clone();
        pipeline.group().set_pipeline_state(state.of_group());
        // The runtime's lock `changing` is not taken here, because its holder may be waiting for this to end. A version
        // that replaces this one halts it first, so this entry cannot overwrite a newer one.
        if let Err(error) = self.store(pipeline).await {
            tracing::warn!(pipeline = pipeline.name(), %error, "the stopped state of the pipeline could not be stored");
        }
    }

    /// Stores the pipeline, with its state, in the catalog.
    async fn store(&self, pipeline: &Pipeline) -> Result<(), BrokerError> {
        let entry = pipeline.stored().entry();
        self.broker.commit(Commit { catalog: vec![entry], ..Commit::default() }).await?.await?;
        Ok(())
    }
}
