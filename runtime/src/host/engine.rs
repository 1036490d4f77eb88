//! The engine: wasmtime as configured for Millstream, which compiles modules. It must not know how modules are called.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use millstream_broker::hash::HashMap;
use parking_lot::Mutex;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, OptLevel};

use super::cache::CodeCache;
use super::component::{self, ModuleError, first_lines};
use super::linker::{HostState, linker};
use super::module::Module;
use super::module_hash::ModuleHash;
use super::ticker::Ticker;

/// Default for the maximum size of a module. A Rust guest has about 100 KiB, a module with an embedded interpreter some
/// megabytes.
const MODULE_BYTES_MAX_DEFAULT: usize = 16 << 20;

/// Stack size of a guest. This is wasmtime's default, set explicitly because worker threads must have room for it.
const STACK_BYTES: usize = 512 << 10;

/// Address space reserved for each memory, so that accesses need no bounds checks.
const RESERVATION_BYTES: u64 = 4 << 30;

/// The engine's settings.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// The folder for compiled code; `None` disables the cache.
    pub cache_dir: Option<PathBuf>,
    /// Maximum size of an uploaded module, in bytes.
    pub module_bytes_max: usize,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self { cache_dir: None, module_bytes_max: MODULE_BYTES_MAX_DEFAULT }
    }
}

/// Compiles modules and runs guests. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    wasmtime: wasmtime::Engine,
    linker: Linker<HostState>,
    ticker: Ticker,
    cache: Option<CodeCache>,
    module_bytes_max: usize,
    /// The modules in use, so that each content is compiled only once.
    modules: Mutex<HashMap<ModuleHash, Weak<Module>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Creates an engine and opens its cache.
    ///
    /// # Errors
    /// [`ModuleError::Engine`].
    pub fn new(settings: EngineSettings) -> Result<Self, ModuleError> {
        let engine_error = |error: String| ModuleError::Engine(first_lines(&error));
        let wasmtime = wasmtime::Engine::new(&config()).map_err(|error| engine_error(format!("{error:#}")))?;
        let ticker = Ticker::start(wasmtime.clone()).map_err(|error| engine_error(error.to_string()))?;
        let cache = match settings.cache_dir {
            None => None,
            Some(folder) => {
                let opened = CodeCache::open(&folder, &wasmtime);
                Some(opened.map_err(|error| engine_error(format!("{}: {error}", folder.display())))?)
            }
        };
        let linker = linker(&wasmtime).map_err(|error| engine_error(format!("{error:#}")))?;
        Ok(Self(Arc::new(Inner {
            wasmtime,
            linker,
            ticker,
            cache,
            module_bytes_max: settings.module_bytes_max,
            modules: Mutex::default(),
        })))
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.wasmtime
    }

    pub(super) fn ticker(&self) -> &Ticker {
        &self.0.ticker
    }

    /// Checks and compiles a module. A module with the same content that is in use is not compiled again. Blocks, for
    /// seconds if the module is large.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn compile(&self, wasm: &[u8]) -> Result<Arc<Module>, ModuleError> {
        let hash = ModuleHash::of(wasm);
        if let Some(module) = self.0.modules.lock().get(&hash).and_then(Weak::upgrade) {
            return Ok(module);
        }
        let component = match self.0.cache.as_ref().and_then(|cache| cache.get(&self.0.wasmtime, &hash)) {
            Some(component) => component,
            None => self.compile_anew(&hash, wasm)?,
        };
        let module = Arc::new(Module::link(&self.0.wasmtime, &self.0.linker, hash, wasm.len(), &component)?);
        let mut modules = self.0.modules.lock();
        modules.retain(|_, module| module.strong_count() > 0);
        modules.insert(hash, Arc::downgrade(&module));
        Ok(module)
    }

    fn compile_anew(&self, hash: &ModuleHash, wasm: &[u8]) -> Result<Component, ModuleError> {
        let bytes = component::encode(&self.0.wasmtime, wasm, self.0.module_bytes_max)?;
        let component = Component::from_binary(&self.0.wasmtime, &bytes)
            .map_err(|error| ModuleError::Invalid(first_lines(&format!("{error:#}"))))?;
        component::kind(&self.0.wasmtime, &component)?;
        if let Some(cache) = &self.0.cache {
            cache.put(hash, &component);
        }
        Ok(component)
    }

    /// Removes a module's compiled code from the cache.
    pub fn forget(&self, hash: &ModuleHash) {
        if let Some(cache) = &self.0.cache {
            cache.remove(hash);
        }
    }
}

/// Returns a configuration with only what stages need: one thread, 32-bit memories, no garbage collection.
fn config() -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .concurrency_support(false)
        .wasm_component_model(true)
        .gc_support(false)
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_threads(false)
        .wasm_memory64(false)
        .wasm_exceptions(false)
        .relaxed_simd_deterministic(true)
        .max_wasm_stack(STACK_BYTES)
        .memory_reservation(RESERVATION_BYTES)
        .memory_init_cow(true);
    config
}
