//! Converts uploaded bytes to a component, and determines its kind or why it cannot be used.

use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;
use wit_component::ComponentEncoder;

use super::stage_kind::StageKind;

/// Package and version of the interfaces in `stage.wit`.
pub(super) const PACKAGE: &str = "millstream:stage/";
pub(super) const VERSION: &str = "@0.1.0";

/// Returns the full name of one of the interfaces of `stage.wit`.
pub(super) fn interface(name: &str) -> String {
    format!("{PACKAGE}{name}{VERSION}")
}

/// The reason why uploaded bytes cannot be used as a module.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ModuleError {
    /// The bytes are neither a core module nor a component.
    #[error("not WebAssembly: {0}; push a .wasm file, such as cargo builds for wasm32-unknown-unknown")]
    NotWasm(String),
    /// The module is over the size limit.
    #[error(
        "{bytes} bytes exceed the limit of {module_bytes_max} (module_bytes_max): strip the module, or optimise it for size"
    )]
    TooLarge {
        /// The module's size.
        bytes: usize,
        /// The limit.
        module_bytes_max: usize,
    },
    /// The core module lacks the sections that say what it implements.
    #[error(
        "a core module that cannot be converted to a component: {0}; build it with the millstream crate or with wit-bindgen and millstream:stage@0.1.0"
    )]
    NoComponent(String),
    /// The module does not validate, or uses a feature that is disabled.
    #[error("invalid WebAssembly: {0}")]
    Invalid(String),
    /// The module imports something that stages do not provide.
    #[error(
        "it imports {0}, which is not available to stages: they have no WASI, clock, files or network, only millstream:stage/host"
    )]
    Import(String),
    /// The module exports none of the three interfaces.
    #[error(
        "not a stage: it exports {0}; a stage exports one of millstream:stage/filter, map or aggregate, version 0.1.0"
    )]
    OtherWorld(String),
    /// The module exports more than one of the three interfaces.
    #[error("it exports {0}: a module can only be one stage, so export only one of them")]
    SeveralKinds(String),
    /// An exported function does not have the type that `stage.wit` defines.
    #[error("its {kind} interface does not match millstream:stage@0.1.0: {reason}")]
    Signature {
        /// The kind of the exported interface.
        kind: StageKind,
        /// The difference.
        reason: String,
    },
    /// The engine or its cache failed.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// Returns the bytes of a component. A core module is converted to one.
pub(super) fn encode(engine: &wasmtime::Engine, wasm: &[u8], module_bytes_max: usize) -> Result<Vec<u8>, ModuleError> {
    if wasm.len() > module_bytes_max {
        return Err(ModuleError::TooLarge { bytes: wasm.len(), module_bytes_max });
    }
    // The magic is "\0asm", followed by 16 bits of version and 16 bits of layer: 1 and 0 for a core module, 13 and 1
    // for a component.
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
    // The encoder trusts the custom sections that say what is implemented, and panics if they are damaged.
    match std::panic::catch_unwind(encode) {
        Ok(encoded) => encoded.map_err(|error| ModuleError::NoComponent(first_lines(&format!("{error:#}")))),
        Err(_) => Err(ModuleError::NoComponent("the sections that describe what it implements are damaged".into())),
    }
}

/// Determines which kind of stage a component is.
pub(super) fn kind(engine: &wasmtime::Engine, component: &Component) -> Result<StageKind, ModuleError> {
    let ty = component.component_type();
    let given = interface("host");
    let types = interface("types");
    for (name, item) in ty.imports(engine) {
        // `types` has no functions and is imported only for its types.
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

/// Returns the first lines of an error's text, without its backtrace.
pub(super) fn first_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
    lines.join(": ")
}
