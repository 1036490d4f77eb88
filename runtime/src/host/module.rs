//! A compiled module, with its imports linked and its exported functions found. This file must not know how modules are
//! compiled or called.

use std::fmt;

use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

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
}

/// Positions of a component's exported functions.
#[derive(Debug)]
pub(super) struct Exports {
    pub(super) configure: Option<ComponentExportIndex>,
    pub(super) run: Option<ComponentExportIndex>,
    pub(super) add: Option<ComponentExportIndex>,
    pub(super) finish: Option<ComponentExportIndex>,
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
        let pre = linker.instantiate_pre(component).map_err(|error| signature(kind, &format!("{error:#}")))?;
        let exports = Exports::of(component, kind)?;
        Ok(Self { hash, kind, bytes, pre, exports })
    }
}

impl Exports {
    fn of(component: &Component, kind: StageKind) -> Result<Self, ModuleError> {
        let function = |of: &str, name: &str| {
            let interface = component.get_export_index(None, interface(of))?;
            component.get_export_index(Some(&interface), name)
        };
        let wanted = |name: &str| {
            let found = function(kind.name(), name).map(Some);
            found.ok_or_else(|| signature(kind, &format!("there is no function {name}")))
        };
        let mut exports =
            Self { configure: function("configuration", "configure"), run: None, add: None, finish: None };
        match kind {
            StageKind::Filter | StageKind::Map => exports.run = wanted("run")?,
            StageKind::Aggregate => {
                exports.add = wanted("add")?;
                exports.finish = wanted("finish")?;
            }
        }
        Ok(exports)
    }
}

fn signature(kind: StageKind, reason: &str) -> ModuleError {
    ModuleError::Signature { kind, reason: first_lines(reason) }
}
