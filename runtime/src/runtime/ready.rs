//! What is needed to start the tasks of a pipeline: its stages, subtopologies and source topics. This file must not know how
//! they are loaded, or whether they run.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_broker::TopicName;
use millstream_broker::log::topic::{Topic, TopicUse};

use crate::deploy::{LoadedSubtopology, Stage};
use crate::encode::OutputTopic;
use crate::host::StageKind;

/// What is needed to start tasks.
pub(super) struct Ready {
    pub(super) stages: Vec<Arc<Stage>>,
    /// The subtopologies, each with its source topics.
    pub(super) subtopologies: Vec<(Arc<LoadedSubtopology>, Vec<Arc<Topic>>)>,
}

impl Ready {
    /// Returns all topics that are read.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.subtopologies.iter().flat_map(|(_, sources)| sources)
    }

    /// Returns all topics that are written to.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &OutputTopic> {
        let of_subtopologies = self
            .subtopologies
            .iter()
            .flat_map(|(subtopology, _)| subtopology.sinks.iter().chain(&subtopology.dead_letters));
        of_subtopologies.chain(self.stages.iter().filter_map(|stage| stage.settings().to.as_ref()))
    }

    /// Returns all topics that are read or written, with their use.
    pub(super) fn uses(&self) -> BTreeMap<TopicName, TopicUse> {
        let mut uses: BTreeMap<TopicName, TopicUse> =
            self.outputs().map(|topic| (topic.name.clone(), TopicUse::default())).collect();
        for (subtopology, sources) in &self.subtopologies {
            let aggregate = subtopology.stages.iter().find(|stage| stage.kind() == StageKind::Aggregate);
            for topic in sources {
                let of = uses.entry(topic.name().clone()).or_default();
                of.aggregate = of.aggregate.take().or_else(|| aggregate.map(|stage| stage.name().to_string()));
            }
        }
        uses
    }

    /// Returns the number of partitions over which the aggregate `stage` keeps its state.
    pub(super) fn state_partitions(&self, stage: &str) -> Option<u32> {
        let has = |of: &Stage| of.kind() == StageKind::Aggregate && &**of.name() == stage;
        let (_, sources) =
            self.subtopologies.iter().find(|(subtopology, _)| subtopology.stages.iter().any(|of| has(of)))?;
        sources.iter().map(|topic| topic.partition_count()).max()
    }
}
