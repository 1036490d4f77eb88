//! An instance of a module: creating it, passing it its parameters, and calling its functions within the limits. This
//! file must not know what the functions mean, or when an instance is dropped.

use std::time::{Duration, Instant};

use wasmtime::component::{self, ComponentExportIndex, ComponentNamedList, Func, Lift, Lower, TypedFunc};
use wasmtime::{Store, Trap};

use super::call_error::{CallError, trap_text};
use super::engine::Engine;
use super::guest_log::GuestLog;
use super::limits::{CallLimits, MemoryLimiter};
use super::linker::HostState;
use super::module::Module;
use super::ticker::TICK;

/// Bytes that a call may return in addition to its columns: texts of failures, and the lists themselves.
const RETURN_OVERHEAD_BYTES: usize = 1 << 20;

/// An instance and its functions.
pub(super) struct Instance {
    engine: Engine,
    limits: CallLimits,
    store: Store<HostState>,
    functions: Functions,
}

impl Instance {
    /// Creates an instance, and passes it its parameters.
    pub(super) fn new(
        engine: &Engine,
        module: &Module,
        parameters: &[(String, String)],
        limits: CallLimits,
        log: GuestLog,
    ) -> Result<Self, CallError> {
        let mut store = store(engine, &limits, log);
        begin_call(&mut store, &limits);
        let _ticking = engine.ticker().during_call();
        let failed = |error: &wasmtime::Error, store: &Store<HostState>| {
            if !store.data().limiter.was_hit {
                return CallError::instantiate(error);
            }
            let reason = format!("it needs more than {} bytes of memory (memory-bytes-max)", limits.memory_bytes_max);
            CallError::Instantiate { reason }
        };
        let instance = module.pre.instantiate(&mut store).map_err(|error| failed(&error, &store))?;
        configure(module, &mut store, &instance, parameters)?;
        let functions = Functions::of(module, &mut store, &instance).map_err(|error| failed(&error, &store))?;
        Ok(Self { engine: engine.clone(), limits, store, functions })
    }

    /// Calls a function within the limits. After an error, the instance must not be called again.
    pub(super) fn call<P, R>(
        &mut self,
        function: impl FnOnce(&Functions) -> wasmtime::Result<Func>,
        parameters: P,
    ) -> Result<R, CallError>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        let begun = begin_call(&mut self.store, &self.limits);
        let returned = {
            let _ticking = self.engine.ticker().during_call();
            // Parameters are borrowed, so the function is typed anew for each call.
            function(&self.functions)
                .and_then(|function| function.typed::<P, R>(&self.store))
                .and_then(|function| function.call(&mut self.store, parameters))
        };
        returned.map_err(|error| self.explain(&error, begun))
    }

    /// Sets the partition whose records come next, for log lines.
    pub(super) fn set_partition(&mut self, partition: &str) {
        let log = &mut self.store.data_mut().log;
        log.partition.clear();
        log.partition.push_str(partition);
    }

    /// Returns the linear memory, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.store.data().limiter.bytes
    }

    /// Converts the error of a failed call to one for users.
    fn explain(&self, error: &wasmtime::Error, begun: Instant) -> CallError {
        let state = self.store.data();
        if state.limiter.was_hit {
            return CallError::Memory { memory_bytes_max: self.limits.memory_bytes_max };
        }
        debug_assert!(
            !matches!(error.downcast_ref::<Trap>(), Some(Trap::Interrupt))
                || begun.elapsed() >= Duration::from_millis(self.limits.call_deadline_ms) / 2,
            "the deadline came too soon"
        );
        CallError::call(error, state.log.last_error.as_deref(), &self.limits)
    }
}

/// The functions of an instance, by the kind of its stage.
pub(super) enum Functions {
    Run(Func),
    Aggregate { add: Func, finish: Func },
}

impl Functions {
    fn of(module: &Module, store: &mut Store<HostState>, instance: &component::Instance) -> wasmtime::Result<Self> {
        let exports = &module.exports;
        let mut function = |index: &ComponentExportIndex| instance.get_func(&mut *store, index).ok_or_else(wrong_kind);
        Ok(match (&exports.run, &exports.add, &exports.finish) {
            (Some(run), ..) => Self::Run(function(run)?),
            (None, Some(add), Some(finish)) => Self::Aggregate { add: function(add)?, finish: function(finish)? },
            _ => return Err(wrong_kind()),
        })
    }

    /// Returns `run`, the function of a filter or map.
    pub(super) fn run(&self) -> wasmtime::Result<Func> {
        match self {
            Self::Run(run) => Ok(*run),
            Self::Aggregate { .. } => Err(wrong_kind()),
        }
    }

    /// Returns `add` of an aggregate.
    pub(super) fn add(&self) -> wasmtime::Result<Func> {
        match self {
            Self::Aggregate { add, .. } => Ok(*add),
            Self::Run(_) => Err(wrong_kind()),
        }
    }

    /// Returns `finish` of an aggregate.
    pub(super) fn finish(&self) -> wasmtime::Result<Func> {
        match self {
            Self::Aggregate { finish, .. } => Ok(*finish),
            Self::Run(_) => Err(wrong_kind()),
        }
    }
}

fn wrong_kind() -> wasmtime::Error {
    wasmtime::Error::msg("the module is of another kind")
}

fn store(engine: &Engine, limits: &CallLimits, log: GuestLog) -> Store<HostState> {
    let limiter = MemoryLimiter { bytes_max: limits.memory_bytes_max, bytes: 0, was_hit: false };
    let mut store = Store::new(engine.wasmtime(), HostState { limiter, log });
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(limits.output_bytes_max.saturating_add(RETURN_OVERHEAD_BYTES));
    store
}

/// Sets the deadline of a call.
fn begin_call(store: &mut Store<HostState>, limits: &CallLimits) -> Instant {
    let ticks = limits.call_deadline_ms.div_ceil(TICK.as_millis() as u64) + 1;
    store.set_epoch_deadline(ticks);
    store.data_mut().log.last_error = None;
    Instant::now()
}

/// The type of `configuration.configure`.
type Configure<'a> = TypedFunc<(&'a [(String, String)],), (Result<(), String>,)>;

/// Passes the parameters. A module that takes none has no function for them.
fn configure(
    module: &Module,
    store: &mut Store<HostState>,
    instance: &component::Instance,
    parameters: &[(String, String)],
) -> Result<(), CallError> {
    let Some(index) = &module.exports.configure else {
        let Some((name, _)) = parameters.first() else { return Ok(()) };
        let reason = format!("there is no parameter {name:?}: the module takes none");
        return Err(CallError::Configure { reason });
    };
    let typed = instance.get_typed_func(&mut *store, index);
    let configure: Configure<'_> = typed.map_err(|error| CallError::instantiate(&error))?;
    match configure.call(&mut *store, (parameters,)) {
        Ok((Ok(()),)) => Ok(()),
        Ok((Err(reason),)) => Err(CallError::Configure { reason }),
        Err(error) => {
            let said = store.data_mut().log.last_error.take();
            Err(CallError::Configure { reason: said.unwrap_or_else(|| trap_text(&error)) })
        }
    }
}
