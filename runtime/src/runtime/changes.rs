//! The description of the changes that `apply` makes to a pipeline. It compares two stored versions, and must not know
//! what is loaded or running.

use super::run_state::RunState;
use super::stored::Stored;
use crate::host::ModuleHash;
use crate::pipeline::{PipelineSpec, StageSpec};

/// Returns the changes between two versions, one line each.
pub(super) fn stage_changes(before: Option<&Stored>, after: &Stored) -> Vec<String> {
    let name = &after.spec.name.value;
    let Some(before) = before else { return vec![format!("pipeline {name}: created")] };
    let mut changes = Vec::new();
    let topics = |spec: &PipelineSpec| spec.from.iter().map(|topic| topic.value.clone()).collect::<Vec<_>>().join(", ");
    let to = |spec: &PipelineSpec| spec.to.as_ref().map_or_else(|| "nothing".to_owned(), |topic| topic.value.clone());
    let mut said = |what: &str, old: String, new: String| {
        if old != new {
            changes.push(format!("pipeline {name}: {what} {old} -> {new}"));
        }
    };
    said("from", topics(&before.spec), topics(&after.spec));
    said("to", to(&before.spec), to(&after.spec));
    let letters = |spec: &PipelineSpec| spec.dead_letter_topic().unwrap_or_else(|| "nothing".to_owned());
    said("dead-letters", letters(&before.spec), letters(&after.spec));
    let order =
        |spec: &PipelineSpec| spec.stages.iter().map(|stage| stage.name.value.clone()).collect::<Vec<_>>().join(", ");
    said("stages", order(&before.spec), order(&after.spec));
    for stage in &after.spec.stages {
        let Some(old) = before.spec.stages.iter().find(|old| old.name.value == stage.name.value) else { continue };
        let short = |stored: &Stored, stage: &StageSpec| {
            stored.modules.get(stage.module.value.as_str()).map(ModuleHash::short).unwrap_or_default()
        };
        let (was, is) = (short(before, old), short(after, stage));
        let line = |what: String| format!("stage {}: {what}", stage.name.value);
        if old.kind.value != stage.kind.value {
            changes.push(line(format!("{} -> {}, its state is dropped", old.kind.value, stage.kind.value)));
        }
        if was != is {
            changes.push(line(format!("module {was} -> {is}")));
        }
        if old.with != stage.with {
            changes.push(line("parameters changed".to_owned()));
        }
        if old.on_failure != stage.on_failure {
            changes.push(line(format!("on-failure {} -> {}", old.on_failure.name(), stage.on_failure.name())));
        }
        if old.limits != stage.limits {
            changes.push(line("limits changed".to_owned()));
        }
        let to = |stage: &StageSpec| stage.to.as_ref().map(|topic| topic.value.clone());
        if to(old) != to(stage) || old.keeps_key != stage.keeps_key {
            changes.push(line("output changed".to_owned()));
        }
    }
    if changes.is_empty() && matches!(before.state, RunState::Stopped(_)) {
        changes.push(format!("pipeline {name}: started again"));
    }
    changes
}
