//! A compiled module, with its imports linked and its exported functions found. This file must not know how modules are
//! compiled or called.

use std::fmt;

use wasmtime::component::{Component, InstancePre, Linker};

use super::bindings::{aggregate, configuration, filter, map};
use super::component::{self, ModuleError, first_lines, interface};
use super::linker::HostState;
use super::module_hash::ModuleHash;
use super::stage_kind::StageKind;

/// A compiled module.
pub struct Module {
    hash: ModuleHash,
    kind: StageKind,
    bytes: usize,
    pub(super) pre: InstancePre<HostState>,
    pub(super) exports: Exports,
    /// `None` if the module takes no parameters.
    pub(super) configuration: Option<configuration::GuestIndices>,
}

/// Where a component's functions are, by the kind of its stage.
pub(super) enum Exports {
    Filter(filter::GuestIndices),
    Map(map::GuestIndices),
    Aggregate(aggregate::GuestIndices),
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({} {})", self.kind, self.hash.short())
    }
}

impl Module {
    /// Returns the hash of the module's content.
    pub fn hash(&self) -> ModuleHash {
        self.hash
    }

    /// Returns the kind of stage that the module is.
    pub fn kind(&self) -> StageKind {
        self.kind
    }

    /// Returns the size of the module as uploaded, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Links a compiled component. `bytes` is the size of the module as uploaded.
    pub(super) fn link(
        engine: &wasmtime::Engine,
        linker: &Linker<HostState>,
        hash: ModuleHash,
        bytes: usize,
        component: &Component,
    ) -> Result<Self, ModuleError> {
        let kind = component::kind(engine, component)?;
        let not_matching = |error: wasmtime::Error| {
            let reason = first_lines(&format!("{error:#}"));
            ModuleError::Signature { kind, reason }
        };
        let pre = linker.instantiate_pre(component).map_err(not_matching)?;
        let exports = match kind {
            StageKind::Filter => filter::GuestIndices::new(&pre).map(Exports::Filter),
            StageKind::Map => map::GuestIndices::new(&pre).map(Exports::Map),
            StageKind::Aggregate => aggregate::GuestIndices::new(&pre).map(Exports::Aggregate),
        };
        let takes_parameters = component.get_export_index(None, interface("configuration")).is_some();
        let configuration = takes_parameters.then(|| configuration::GuestIndices::new(&pre));
        Ok(Self {
            hash,
            kind,
            bytes,
            exports: exports.map_err(not_matching)?,
            configuration: configuration.transpose().map_err(not_matching)?,
            pre,
        })
    }
}
