//! A deployed pipeline: its file, its state, its stages, and its tasks if it runs. The text of a file and its mistakes
//! are the subject of `crate::pipeline`. This file must not know how a pipeline is loaded or when it is started.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_broker::TopicName;
use millstream_broker::groups::Group;
use millstream_broker::log::topic::{Topic, TopicUse};
use parking_lot::{Mutex, MutexGuard};

use super::ready::Ready;
use super::run_state::RunState;
use super::running::Running;
use super::stored::Stored;
use crate::deploy::Stage;
use crate::host::{ModuleHash, StageKind};
use crate::pipeline::PipelineSpec;

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

    /// Creates a version that does not run yet. If it could not be loaded, its state becomes stopped, with the reason.
    pub(super) fn new(group: Arc<Group>, mut stored: Stored, loaded: Result<Ready, String>) -> Self {
        let ready = match loaded {
            Ok(ready) => Some(ready),
            Err(reason) => {
                stored.state = RunState::Stopped(reason);
                None
            }
        };
        Self { stored: Mutex::new(stored), group, ready, running: Mutex::default() }
    }

    /// Locks what the catalog stores of the pipeline.
    pub(super) fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock()
    }

    /// Returns what is needed to start tasks, unless the pipeline could not be loaded.
    pub(super) fn ready(&self) -> Option<&Ready> {
        self.ready.as_ref()
    }

    /// Keeps the handle of the tasks that were started, for `halt`.
    pub(super) fn runs(&self, running: Running) {
        *self.running.lock() = Some(running);
    }

    /// Ends the tasks at a commit, and waits until they have ended.
    pub(super) async fn halt(&self) {
        let running = self.running.lock().take();
        let Some(running) = running else { return };
        if running.end().await.is_err() {
            tracing::error!(pipeline = self.name(), "the supervisor panicked");
        }
    }

    /// Returns the modules of the stages.
    pub(super) fn modules(&self) -> Vec<ModuleHash> {
        self.stored.lock().modules.values().copied().collect()
    }

    /// Returns the topics that the tasks read; none if the pipeline could not be loaded.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.ready.iter().flat_map(Ready::sources)
    }

    /// Returns the repartition topics, which are those between two subtopologies.
    pub(super) fn repartition_topics(&self) -> Vec<TopicName> {
        self.sources().filter(|topic| topic.meta().internal).map(|topic| topic.name().clone()).collect()
    }

    /// Returns the topics that the pipeline uses, with their use; from its file if it could not be loaded.
    pub(super) fn uses(&self) -> BTreeMap<TopicName, TopicUse> {
        match &self.ready {
            Some(ready) => ready.uses(),
            None => uses_of_file(&self.spec()),
        }
    }
}

fn uses_of_file(spec: &PipelineSpec) -> BTreeMap<TopicName, TopicUse> {
    let aggregate = spec.stages.iter().find(|stage| stage.kind.value == StageKind::Aggregate);
    let aggregate = aggregate.map(|stage| stage.name.value.clone());
    let outputs = spec.outputs().into_iter().map(str::to_owned).chain(spec.dead_letter_topic());
    let outputs = outputs.map(|topic| (topic, TopicUse::default()));
    let sources = spec.from.iter().map(|topic| (topic.value.clone(), TopicUse { aggregate: aggregate.clone() }));
    outputs.chain(sources).filter_map(|(topic, of)| Some((TopicName::new(&topic).ok()?, of))).collect()
}
