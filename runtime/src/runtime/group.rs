//! The consumer group of a pipeline. It has the pipeline's name, and commits the offsets of the pipeline's tasks. This
//! file must not know what the tasks do.

use std::sync::Arc;

use millstream_broker::groups::{Group, GroupKind};
use millstream_broker::{Broker, BrokerError, GroupId};

use crate::error::RuntimeError;
use crate::pipeline::{Mistake, Mistakes, PipelineSpec};

/// Returns the group of a pipeline, and creates it if there is none.
pub(super) fn group(broker: &Broker, pipeline: &str) -> Result<Arc<Group>, BrokerError> {
    let id = GroupId::new(pipeline).map_err(BrokerError::from)?;
    broker.groups().get_or_create(&id, GroupKind::Pipeline)
}

/// Returns the group for a pipeline file, like [`group`]. If the name belongs to a group of consumers, the error is a
/// mistake in the file.
pub(super) fn group_for(broker: &Broker, spec: &PipelineSpec) -> Result<Arc<Group>, RuntimeError> {
    let id = GroupId::new(&spec.name.value).map_err(BrokerError::from)?;
    broker.groups().get_or_create(&id, GroupKind::Pipeline).map_err(|error| {
        let mistake = Mistake::new(spec.name.place, error.to_string());
        RuntimeError::Mistakes(Mistakes::new(vec![mistake]))
    })
}

/// Reports a mistake if the name of a pipeline file belongs to a group of consumers. Creates nothing.
pub(super) fn check_group(broker: &Broker, spec: &PipelineSpec) -> Result<(), RuntimeError> {
    match broker.groups().get(&spec.name.value) {
        Ok(group) if group.kind() != GroupKind::Pipeline => group_for(broker, spec).map(drop),
        _ => Ok(()),
    }
}
