//! The guest of one stage on one worker thread. Its instance is created at the first call, and dropped after a call
//! that did not return.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_record::{Column, Columns};
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Func, Instance, Lift, Linker, Lower, TypedFunc};
use wasmtime::{Store, StoreContextMut, Trap, WasmBacktrace};

use super::abi::{Added, AddedOut, BatchIn, ColumnIn, Filtered, FilteredOut, Finished, FinishedOut, Mapped, MappedOut};
use super::component::{first_lines, interface};
use super::engine::{Engine, Module};
use super::limits::{CallLimits, MemoryLimiter, TICK};

/// Number of log lines that a guest may write at once, and per second after that.
const LOG_BURST: u32 = 20;
const LOG_LINES_A_SECOND: f64 = 5.0;

/// Maximum length of a log line, in bytes. Longer lines are truncated.
const LOG_LINE_BYTES_MAX: usize = 2_000;

/// Bytes that a call may return in addition to its columns: texts of failures, and the lists themselves.
const RETURN_OVERHEAD_BYTES: usize = 1 << 20;

/// The reason why a call returned no result. All but the last two may be caused by a single record.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The guest trapped, for example because it panicked.
    #[error("the module trapped: {reason}")]
    Trap {
        /// The last error line that the guest logged, or wasmtime's message.
        reason: String,
    },
    /// The call did not return in time.
    #[error("the module did not return within {call_deadline_ms} ms (call-deadline-ms)")]
    Deadline {
        /// The limit, in milliseconds.
        call_deadline_ms: u64,
    },
    /// The guest asked for more memory than its limit.
    #[error("the module needs more than {memory_bytes_max} bytes of memory (memory-bytes-max)")]
    Memory {
        /// The limit, in bytes.
        memory_bytes_max: usize,
    },
    /// The call returned more than its limit.
    #[error("the module returned more than {output_bytes_max} bytes at once (output-bytes-max)")]
    OutputTooLarge {
        /// The limit, in bytes.
        output_bytes_max: usize,
    },
    /// The result does not follow the rules of `stage.wit`.
    #[error("the module returned {what}")]
    Malformed {
        /// What is wrong with the result.
        what: String,
    },
    /// `finish` failed for a key.
    #[error("finish: {reason}")]
    Finish {
        /// The guest's reason.
        reason: String,
    },
    /// The guest refused its parameters.
    #[error("the module refused its parameters: {reason}")]
    Configure {
        /// The guest's reason.
        reason: String,
    },
    /// The module could not be instantiated.
    #[error("the module cannot be started: {reason}")]
    Instantiate {
        /// wasmtime's message.
        reason: String,
    },
}

impl CallError {
    /// Returns whether records of the call may be the cause, so that a call with fewer records may succeed.
    pub fn may_be_a_records(&self) -> bool {
        !matches!(self, Self::Configure { .. } | Self::Instantiate { .. })
    }
}

/// The fields that are added to a guest's log lines.
#[derive(Clone, Debug, Default)]
pub struct LogContext {
    /// The pipeline.
    pub pipeline: Arc<str>,
    /// The stage.
    pub stage: Arc<str>,
}

/// The data of an instance's store.
pub(super) struct HostState {
    limiter: MemoryLimiter,
    log: LogContext,
    /// The topic and partition whose records are being processed.
    partition: String,
    lines: LineBudget,
    /// The last line that the guest logged as an error, which is the reason of a later trap.
    last_error: Option<String>,
}

/// Limits the rate of log lines.
#[derive(Debug)]
struct LineBudget {
    left: f64,
    since: Instant,
    dropped: u64,
}

impl LineBudget {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        self.left =
            (self.left + now.duration_since(self.since).as_secs_f64() * LOG_LINES_A_SECOND).min(f64::from(LOG_BURST));
        self.since = now;
        if self.left < 1.0 {
            self.dropped += 1;
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// Values are created only by lifting the calls of guests.
#[derive(Clone, Copy, Debug, wasmtime::component::ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code)]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// Defines the functions that modules may import.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    let mut host = linker.instance(&interface("host"))?;
    host.func_wrap("log", |mut store: StoreContextMut<'_, HostState>, (level, message): (Level, String)| {
        store.data_mut().log(level, message);
        Ok(())
    })?;
    // `types` has no functions, so a component that imports it gets an empty instance.
    linker.instance(&interface("types"))?;
    Ok(linker)
}

impl HostState {
    fn log(&mut self, level: Level, mut message: String) {
        if message.len() > LOG_LINE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(LOG_LINE_BYTES_MAX));
        }
        if self.lines.take() {
            let dropped = std::mem::take(&mut self.lines.dropped);
            let (pipeline, stage, partition) = (&*self.log.pipeline, &*self.log.stage, self.partition.as_str());
            macro_rules! line {
                ($level:ident) => {
                    if dropped == 0 {
                        tracing::$level!(target: "millstream::guest", pipeline, stage, partition, "{message}")
                    } else {
                        tracing::$level!(target: "millstream::guest", pipeline, stage, partition, dropped, "{message}")
                    }
                };
            }
            match level {
                Level::Trace => line!(trace),
                Level::Debug => line!(debug),
                Level::Info => line!(info),
                Level::Warn => line!(warn),
                Level::Error => line!(error),
            }
        }
        if matches!(level, Level::Error) {
            self.last_error = Some(message);
        }
    }
}

/// The guest of one stage. It is used by one thread at a time, and by any partition, because it keeps nothing between
/// calls.
pub struct Guest {
    engine: Engine,
    module: Arc<Module>,
    parameters: Vec<(String, String)>,
    limits: CallLimits,
    log: LogContext,
    partition: String,
    live: Option<Live>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guest({}/{}, {:?})", self.log.pipeline, self.log.stage, self.module)
    }
}

/// An instance and its functions.
struct Live {
    store: Store<HostState>,
    calls: Calls,
}

enum Calls {
    Run(Func),
    Aggregate { add: Func, finish: Func },
}

impl Calls {
    fn run(&self) -> wasmtime::Result<Func> {
        match self {
            Self::Run(run) => Ok(*run),
            Self::Aggregate { .. } => Err(wrong_kind()),
        }
    }

    fn aggregate(&self) -> wasmtime::Result<(Func, Func)> {
        match self {
            Self::Aggregate { add, finish } => Ok((*add, *finish)),
            Self::Run(_) => Err(wrong_kind()),
        }
    }
}

/// The type of `configuration.configure`.
type Configure<'a> = TypedFunc<(&'a [(String, String)],), (Result<(), String>,)>;

impl Guest {
    /// Creates a guest of `module`. The instance is created later.
    pub fn new(
        engine: &Engine,
        module: &Arc<Module>,
        parameters: Vec<(String, String)>,
        limits: CallLimits,
        log: LogContext,
    ) -> Self {
        let (engine, module) = (engine.clone(), module.clone());
        Self { engine, module, parameters, limits, log, partition: String::new(), live: None }
    }

    /// Creates the instance, if there is none, and passes it its parameters.
    ///
    /// # Errors
    /// [`CallError::Configure`] if the module refuses the parameters, or another error if it cannot be started.
    pub fn start(&mut self) -> Result<(), CallError> {
        if self.live.is_none() {
            self.live = Some(self.instantiate()?);
        }
        Ok(())
    }

    /// Sets the partition whose records come next, for log lines.
    pub fn set_partition(&mut self, partition: &str) {
        if self.partition != partition {
            self.partition.clear();
            self.partition.push_str(partition);
            if let Some(live) = &mut self.live {
                live.store.data_mut().partition.clone_from(&self.partition);
            }
        }
    }

    /// Returns the linear memory of the instance, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.live.as_ref().map_or(0, |live| live.store.data().limiter.bytes)
    }

    /// Calls a filter.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn filter(&mut self, batch: &Columns) -> Result<Filtered, CallError> {
        let (out,): (FilteredOut,) = self.call(|calls| calls.run(), (BatchIn::from(batch),))?;
        out.check(batch.len()).map_err(|what| self.malformed(what))
    }

    /// Calls a map.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn map(&mut self, batch: &Columns) -> Result<Mapped, CallError> {
        let (out,): (MappedOut,) = self.call(|calls| calls.run(), (BatchIn::from(batch),))?;
        out.check(batch.len()).map_err(|what| self.malformed(what))
    }

    /// Adds records to accumulators. `groups` has, for each record, its index in `accumulators`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn add(&mut self, batch: &Columns, groups: &[u32], accumulators: &Column) -> Result<Added, CallError> {
        let parameters = (BatchIn::from(batch), groups, ColumnIn::from(accumulators));
        let (out,): (AddedOut,) = self.call(|calls| Ok(calls.aggregate()?.0), parameters)?;
        out.check(batch.len(), accumulators.len()).map_err(|what| self.malformed(what))
    }

    /// Derives output values from accumulators.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn finish(&mut self, keys: &Column, accumulators: &Column) -> Result<Finished, CallError> {
        let parameters = (ColumnIn::from(keys), ColumnIn::from(accumulators));
        let (out,): (FinishedOut,) = self.call(|calls| Ok(calls.aggregate()?.1), parameters)?;
        out.check(keys.len()).map_err(|what| self.malformed(what))
    }

    /// Drops the instance, because one that breaks the rules must not be called again.
    fn malformed(&mut self, what: String) -> CallError {
        self.live = None;
        CallError::Malformed { what }
    }

    /// Calls a function of the instance within the limits. If the call fails, the instance is dropped.
    fn call<P, R>(
        &mut self,
        function: impl FnOnce(&Calls) -> wasmtime::Result<Func>,
        parameters: P,
    ) -> Result<R, CallError>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        self.start()?;
        let Some(live) = &mut self.live else { unreachable!("it was just started") };
        let begun = begin_call(&mut live.store, &self.limits);
        let returned = {
            let _ticking = self.engine.ticker().during_call();
            // Parameters are borrowed, so the function is typed anew for each call.
            function(&live.calls)
                .and_then(|function| function.typed::<P, R>(&live.store))
                .and_then(|function| function.call(&mut live.store, parameters))
        };
        returned.map_err(|error| {
            let error = self.explain(&error, begun);
            self.live = None;
            error
        })
    }

    fn instantiate(&self) -> Result<Live, CallError> {
        let state = HostState {
            limiter: MemoryLimiter { bytes_max: self.limits.memory_bytes_max, bytes: 0, was_hit: false },
            log: self.log.clone(),
            partition: self.partition.clone(),
            lines: LineBudget { left: f64::from(LOG_BURST), since: Instant::now(), dropped: 0 },
            last_error: None,
        };
        let mut store = Store::new(self.engine.wasmtime(), state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(self.limits.output_bytes_max.saturating_add(RETURN_OVERHEAD_BYTES));
        begin_call(&mut store, &self.limits);
        let _ticking = self.engine.ticker().during_call();
        let failed = |error: &wasmtime::Error, store: &Store<HostState>| {
            if store.data().limiter.was_hit {
                return CallError::Instantiate {
                    reason: format!(
                        "it needs more than {} bytes of memory (memory-bytes-max)",
                        self.limits.memory_bytes_max
                    ),
                };
            }
            CallError::Instantiate { reason: first_lines(&format!("{error:#}")) }
        };
        let instance = self.module.pre.instantiate(&mut store).map_err(|error| failed(&error, &store))?;
        if let Some(index) = &self.module.exports.configure {
            self.configure(&mut store, &instance, index)?;
        } else if let Some((name, _)) = self.parameters.first() {
            let reason = format!("there is no parameter {name:?}: the module takes none");
            return Err(CallError::Configure { reason });
        }
        let calls = self.look_up(&mut store, &instance).map_err(|error| failed(&error, &store))?;
        Ok(Live { store, calls })
    }

    fn configure(
        &self,
        store: &mut Store<HostState>,
        instance: &Instance,
        index: &ComponentExportIndex,
    ) -> Result<(), CallError> {
        let reason = |error: wasmtime::Error| CallError::Instantiate { reason: first_lines(&format!("{error:#}")) };
        let configure: Configure<'_> = instance.get_typed_func(&mut *store, index).map_err(reason)?;
        match configure.call(&mut *store, (&self.parameters,)) {
            Ok((Ok(()),)) => Ok(()),
            Ok((Err(reason),)) => Err(CallError::Configure { reason }),
            Err(error) => {
                let said = store.data_mut().last_error.take();
                Err(CallError::Configure { reason: said.unwrap_or_else(|| trap_text(&error)) })
            }
        }
    }

    fn look_up(&self, store: &mut Store<HostState>, instance: &Instance) -> wasmtime::Result<Calls> {
        let exports = &self.module.exports;
        let mut function = |index: &ComponentExportIndex| instance.get_func(&mut *store, index).ok_or_else(wrong_kind);
        Ok(match (&exports.run, &exports.add, &exports.finish) {
            (Some(run), ..) => Calls::Run(function(run)?),
            (None, Some(add), Some(finish)) => Calls::Aggregate { add: function(add)?, finish: function(finish)? },
            _ => return Err(wrong_kind()),
        })
    }

    /// Converts the error of a failed call to one for users.
    fn explain(&self, error: &wasmtime::Error, begun: Instant) -> CallError {
        let Some(state) = self.live.as_ref().map(|live| live.store.data()) else {
            return CallError::Trap { reason: trap_text(error) };
        };
        if state.limiter.was_hit {
            return CallError::Memory { memory_bytes_max: self.limits.memory_bytes_max };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => {
                let deadline = self.limits.call_deadline_ms;
                debug_assert!(begun.elapsed() >= Duration::from_millis(deadline) / 2, "the deadline came too soon");
                CallError::Deadline { call_deadline_ms: deadline }
            }
            Some(_) => CallError::Trap { reason: state.last_error.clone().unwrap_or_else(|| trap_text(error)) },
            // wasmtime's type for this error is private. The fuel only limits how much a guest passes to the host.
            None if format!("{error:#}").contains("fuel allocated for hostcalls") => {
                CallError::OutputTooLarge { output_bytes_max: self.limits.output_bytes_max }
            }
            None => CallError::Malformed {
                what: format!("a result that cannot be read: {}", first_lines(&format!("{error:#}"))),
            },
        }
    }
}

/// Sets the deadline of a call.
fn begin_call(store: &mut Store<HostState>, limits: &CallLimits) -> Instant {
    let ticks = limits.call_deadline_ms.div_ceil(TICK.as_millis() as u64) + 1;
    store.set_epoch_deadline(ticks);
    store.data_mut().last_error = None;
    Instant::now()
}

fn wrong_kind() -> wasmtime::Error {
    wasmtime::Error::msg("the module is of another kind")
}

/// Formats a trap in one line: what happened, and in which function if its name is known.
fn trap_text(error: &wasmtime::Error) -> String {
    let what = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => first_lines(&error.root_cause().to_string()),
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
    match frames.iter().find_map(|frame| frame.func_name()) {
        Some(name) => format!("{what} in {name}"),
        None => what,
    }
}
