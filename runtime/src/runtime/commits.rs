//! The commits that make a version of a pipeline current, and that remove a pipeline. This file must not know what
//! happens before and after such a commit.

use std::sync::Arc;

use millstream_broker::Offset;
use millstream_broker::log::commit::{Commit, OffsetChange};
use millstream_broker::log::partition::Partition;
use millstream_broker::log::topic::Topic;

use super::pipeline::Pipeline;
use super::stored::Stored;
use crate::deploy::store_name;
use crate::host::StageKind;
use crate::pipeline::{CheckedPipeline, Start};

/// Returns the commit that makes a version current: the file, the offsets at which it begins, and the state of the old
/// version that is dropped.
pub(super) fn replace(before: Option<&Pipeline>, after: &Pipeline, checked: &CheckedPipeline) -> Commit {
    let entry = after.stored().entry();
    Commit {
        catalog: vec![entry],
        offsets: first_offsets(after, checked),
        drop_state: before.map(|before| dropped_state(before, checked)).unwrap_or_default(),
        ..Commit::default()
    }
}

/// Returns the commit that removes a pipeline with its group and its state.
pub(super) fn remove(pipeline: &Pipeline) -> Commit {
    let name = pipeline.name();
    Commit {
        catalog: vec![Stored::removal(name)],
        drop_groups: vec![pipeline.group().clone()],
        drop_state: pipeline.spec().stages.iter().map(|stage| store_name(name, &stage.name.value)).collect(),
        ..Commit::default()
    }
}

/// Returns the stores of the aggregates that the new version no longer has.
fn dropped_state(before: &Pipeline, checked: &CheckedPipeline) -> Vec<Arc<str>> {
    let keeps_state = |name: &str| {
        let stages = &checked.spec.stages;
        stages.iter().any(|stage| stage.kind.value == StageKind::Aggregate && stage.name.value == name)
    };
    let spec = before.spec();
    let aggregates = spec.stages.iter().filter(|old| old.kind.value == StageKind::Aggregate);
    let dropped = aggregates.filter(|old| !keeps_state(&old.name.value));
    dropped.map(|old| store_name(before.name(), &old.name.value)).collect()
}

/// Returns where the new version begins in the partitions for which nothing was committed.
fn first_offsets(after: &Pipeline, checked: &CheckedPipeline) -> Vec<OffsetChange> {
    let group = after.group();
    let mut offsets = Vec::new();
    for topic in after.sources() {
        for partition in topic.partitions() {
            let number = partition.name().partition;
            if group.committed(topic.id(), number).is_some() {
                continue;
            }
            let to = first_offset(topic, partition, checked.spec.start);
            let (group, topic) = (group.clone(), topic.clone());
            offsets.push(OffsetChange { group, topic, partition: number, to: Some(to.into()), expected: Some(None) });
        }
    }
    offsets
}

fn first_offset(topic: &Topic, partition: &Partition, start: Start) -> Offset {
    // Records that an earlier pipeline of the same name left in a repartition topic are skipped.
    let latest = start == Start::Latest || topic.meta().internal;
    if latest { partition.stable_end() } else { partition.start() }
}
