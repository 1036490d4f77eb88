//! The pipeline file that a user deploys: as written ([`PipelineSpec`]), and as it will run ([`CheckedPipeline`]).
//!
//! There are two steps. [`parse()`] considers only the text. [`check`] compares it with the topics, modules and
//! pipelines of a [`World`], and plans the subtopologies that tasks run. Each reports all mistakes that it finds, with line
//! and column; [`read`] does both steps and reports the mistakes of both. This module does not read files, topics or
//! modules, and does not depend on how stages run.

mod check;
mod mistake;
mod module_ref;
mod nearest;
mod parse;
mod place;
mod plan;
mod spec;
mod yaml;

pub use check::{CheckedPipeline, OtherPipeline, World, check, read};
pub use mistake::{Mistake, Mistakes};
pub use module_ref::{DEFAULT_TAG, ModuleRef};
pub use parse::{
    CALL_DEADLINE_MS_MAX, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, OUTPUT_BYTES_MAX, PIPELINE_FILE_BYTES_MAX, STAGES_MAX,
    parse,
};
pub use place::{Place, Placed};
pub use plan::{Plan, Repartition, Sink, Source, Subtopology};
pub use spec::{DEAD_LETTERS_SUFFIX, PipelineSpec, REPARTITION_SUFFIX, StageSpec, Start};

#[cfg(test)]
mod tests;
