//! An instance of a module: creating it, passing it its parameters, and calling its functions within the limits. This
//! file must not know what the functions mean, or when an instance is dropped.

use std::time::{Duration, Instant};

use wasmtime::component;
use wasmtime::{Store, Trap};

use super::bindings::{aggregate, filter, map};
use super::call_error::{CallError, trap_text};
use super::engine::Engine;
use super::guest_log::GuestLog;
use super::limits::{CallLimits, MemoryLimiter};
use super::linker::HostState;
use super::module::{Exports, Module};
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
    pub(super) fn call<R>(
        &mut self,
        function: impl FnOnce(&Functions, &mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        let begun = begin_call(&mut self.store, &self.limits);
        let returned = {
            let _ticking = self.engine.ticker().during_call();
            function(&self.functions, &mut self.store)
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
    Filter(filter::Guest),
    Map(map::Guest),
    Aggregate(aggregate::Guest),
}

impl Functions {
    fn of(module: &Module, store: &mut Store<HostState>, instance: &component::Instance) -> wasmtime::Result<Self> {
        Ok(match &module.exports {
            Exports::Filter(exports) => Self::Filter(exports.load(store, instance)?),
            Exports::Map(exports) => Self::Map(exports.load(store, instance)?),
            Exports::Aggregate(exports) => Self::Aggregate(exports.load(store, instance)?),
        })
    }

    /// Returns the functions of a filter.
    pub(super) fn filter(&self) -> wasmtime::Result<&filter::Guest> {
        if let Self::Filter(functions) = self { Ok(functions) } else { Err(wrong_kind()) }
    }

    /// Returns the functions of a map.
    pub(super) fn map(&self) -> wasmtime::Result<&map::Guest> {
        if let Self::Map(functions) = self { Ok(functions) } else { Err(wrong_kind()) }
    }

    /// Returns the functions of an aggregate.
    pub(super) fn aggregate(&self) -> wasmtime::Result<&aggregate::Guest> {
        if let Self::Aggregate(functions) = self { Ok(functions) } else { Err(wrong_kind()) }
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

/// Passes the parameters. A module that takes none has no function for them.
fn configure(
    module: &Module,
    store: &mut Store<HostState>,
    instance: &component::Instance,
    parameters: &[(String, String)],
) -> Result<(), CallError> {
    let Some(configuration) = &module.configuration else {
        let Some((name, _)) = parameters.first() else { return Ok(()) };
        let reason = format!("there is no parameter {name:?}: the module takes none");
        return Err(CallError::Configure { reason });
    };
    let loaded = configuration.load(&mut *store, instance).map_err(|error| CallError::instantiate(&error))?;
    let parameters: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (&**name, &**value)).collect();
    match loaded.call_configure(&mut *store, &parameters) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => Err(CallError::Configure { reason }),
        Err(error) => {
            let said = store.data_mut().log.last_error.take();
            Err(CallError::Configure { reason: said.unwrap_or_else(|| trap_text(&error)) })
        }
    }
}
