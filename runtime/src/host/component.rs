//! From uploaded bytes to a component whose kind is known, or the reason why not.

use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;
use wit_component::ComponentEncoder;

use super::StageKind;

/// What a module's interfaces are called from outside, `stage.wit`.
pub(super) const PACKAGE: &str = "millstream:stage/";
pub(super) const VERSION: &str = "@0.1.0";

/// The full name of one of the contract's interfaces.
pub(super) fn interface(name: &str) -> String {
    format!("{PACKAGE}{name}{VERSION}")
}

/// Why uploaded bytes are no module for a stage.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ModuleError {
    /// Neither a core module nor a component.
    #[error("not WebAssembly: {0}; push a .wasm file, as cargo builds it for wasm32-unknown-unknown")]
    NotWasm(String),
    /// Over the size limit.
    #[error(
        "{bytes} bytes are over the limit of {module_bytes_max} (module_bytes_max): strip the module, or optimise it for size"
    )]
    TooLarge {
        /// The module's size.
        bytes: usize,
        /// The limit.
        module_bytes_max: usize,
    },
    /// A core module without the sections that say what it implements.
    #[error(
        "a core module that can't be made a component: {0}; build it with the millstream crate or with wit-bindgen and millstream:stage@0.1.0"
    )]
    NoComponent(String),
    /// WebAssembly that does not validate, or uses what is switched off.
    #[error("invalid WebAssembly: {0}")]
    Invalid(String),
    /// Something is imported that no stage is given.
    #[error(
        "it imports {0}, which stages are not given: they have no WASI, no clock, no files and no network, only millstream:stage/host"
    )]
    Import(String),
    /// None of the three interfaces is exported.
    #[error(
        "a component of another world: it exports {0}; a stage exports one of millstream:stage/filter, map or aggregate, version 0.1.0"
    )]
    OtherWorld(String),
    /// More than one of the three interfaces is exported.
    #[error("it exports {0}: a module is one stage, export one of them")]
    SeveralKinds(String),
    /// An exported function has not the contract's type.
    #[error("its {kind} is not as millstream:stage@0.1.0 has it: {reason}")]
    Signature {
        /// The kind that it says it is.
        kind: StageKind,
        /// What does not fit.
        reason: String,
    },
    /// The engine or its cache does not work.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// The component's bytes: a core module is made one.
pub(super) fn encode(engine: &wasmtime::Engine, wasm: &[u8], module_bytes_max: usize) -> Result<Vec<u8>, ModuleError> {
    if wasm.len() > module_bytes_max {
        return Err(ModuleError::TooLarge { bytes: wasm.len(), module_bytes_max });
    }
    // "\0asm", then 16 bits of version and of layer: 1 and 0 for a core module, 13 and 1 for a
    // component.
    match wasm {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            wasmtime::Module::validate(engine, wasm)
                .map_err(|error| ModuleError::Invalid(first_lines(&format!("{error:#}"))))?;
            core_to_component(wasm)
        }
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(wasm.to_vec()),
        [] => Err(ModuleError::NotWasm("the file is empty".into())),
        _ => Err(ModuleError::NotWasm(format!(
            "it begins with {:?}",
            String::from_utf8_lossy(&wasm[..wasm.len().min(8)])
        ))),
    }
}

fn core_to_component(wasm: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let encode = || ComponentEncoder::default().validate(false).module(wasm).and_then(|mut encoder| encoder.encode());
    // The encoder trusts the custom sections that say what is implemented: damaged ones make it panic.
    match std::panic::catch_unwind(encode) {
        Ok(encoded) => encoded.map_err(|error| ModuleError::NoComponent(first_lines(&format!("{error:#}")))),
        Err(_) => Err(ModuleError::NoComponent("its sections that say what it implements are damaged".into())),
    }
}

/// Which kind of stage a component is.
pub(super) fn kind(engine: &wasmtime::Engine, component: &Component) -> Result<StageKind, ModuleError> {
    let ty = component.component_type();
    let given = interface("host");
    let types = interface("types");
    for (name, item) in ty.imports(engine) {
        // `types` has no functions: it is imported for its shapes.
        let is_types = name == types && matches!(&item.ty, ComponentItem::ComponentInstance(_));
        if name != given && !is_types {
            return Err(ModuleError::Import(name.to_owned()));
        }
    }
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    let kinds: Vec<StageKind> =
        StageKind::ALL.into_iter().filter(|kind| exports.contains(&interface(kind.name()).as_str())).collect();
    match kinds[..] {
        [kind] => Ok(kind),
        [] if exports.is_empty() => Err(ModuleError::OtherWorld("nothing".into())),
        [] => Err(ModuleError::OtherWorld(exports.join(", "))),
        _ => Err(ModuleError::SeveralKinds(kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" and "))),
    }
}

/// An error's text without its stack of frames.
pub(super) fn first_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
    lines.join(": ")
}
