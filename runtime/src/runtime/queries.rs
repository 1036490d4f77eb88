//! What users ask about pipelines: whether they have caught up, and the values of an aggregate's state. Nothing in this
//! file changes a pipeline.

use std::sync::Arc;

use millstream_broker::BrokerError;
use millstream_record::Column;

use super::pipeline::Pipeline;
use super::run_state::RunState;
use crate::deploy::Stage;
use crate::error::RuntimeError;
use crate::host::StageKind;
use crate::pool::WorkerPool;

/// Returns whether a pipeline runs and has not read and committed all of its sources.
pub(super) fn lags(pipeline: &Pipeline) -> bool {
    pipeline.state() == RunState::Running
        && pipeline.sources().flat_map(|topic| topic.partitions()).any(|partition| {
            let committed = pipeline.group().committed(partition.topic_id(), partition.name().partition);
            committed.unwrap_or(partition.start()) < partition.stable_end()
        })
}

/// Returns the aggregate stage named `stage`, or the only one if `stage` is `None`.
pub(super) fn aggregate_stage(pipeline: &Pipeline, stage: Option<&str>) -> Result<Arc<Stage>, RuntimeError> {
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

/// Returns the values that a stage's module derives from accumulators.
pub(super) async fn finish(
    pool: &WorkerPool,
    stage: &Arc<Stage>,
    keys: Column,
    accumulators: Column,
) -> Result<Column, RuntimeError> {
    let of_worker = stage.clone();
    let finished = pool.run(move |guests| guests.of(&of_worker).finish(&keys, &accumulators)).await;
    let finished = finished.ok_or(BrokerError::ShuttingDown)?;
    finished.map(|finished| finished.values).map_err(|error| {
        let (pipeline, what) = (stage.store().to_string(), format!("a module that cannot show its state: {error}"));
        RuntimeError::Stage { pipeline, what }
    })
}
