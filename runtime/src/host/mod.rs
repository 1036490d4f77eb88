//! The only module that uses wasmtime: engine, modules, guests, and their limits. It must not know topics, pipeline
//! files, or what becomes of a guest's results.

mod abi;
mod bindings;
mod cache;
mod call_error;
mod component;
mod engine;
mod guest;
mod guest_log;
mod instance;
mod limits;
mod linker;
mod module;
mod module_hash;
mod stage_kind;
mod ticker;

pub use abi::{Added, Filtered, Finished, Mapped};
pub use call_error::CallError;
pub use component::ModuleError;
pub use engine::{Engine, EngineSettings};
pub use guest::Guest;
pub use guest_log::LogContext;
pub use limits::CallLimits;
pub use module::Module;
pub use module_hash::ModuleHash;
pub use stage_kind::StageKind;
