//! One stage's guest on one worker thread. Its instance is made when it is first called, and thrown
//! away after a call that did not return.

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

/// Log lines that a guest may write at once, and how many a second after that.
const LOG_BURST: u32 = 20;
const LOG_LINES_A_SECOND: f64 = 5.0;

/// The longest log line that is kept, in bytes.
const LOG_LINE_BYTES_MAX: usize = 2_000;

/// What a call may return beside its columns: failures' texts, and the lists' own sizes.
const RETURN_OVERHEAD_BYTES: usize = 1 << 20;

/// Why a call gave nothing. All but the last two may be one record's fault.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The guest trapped; a panic is one.
    #[error("the module trapped: {reason}")]
    Trap {
        /// What wasmtime or the guest's last error line says.
        reason: String,
    },
    /// It did not return in time.
    #[error("the module did not return within {call_deadline_ms} ms (call-deadline-ms)")]
    Deadline {
        /// The limit.
        call_deadline_ms: u64,
    },
    /// It asked for more memory than it may have.
    #[error("the module wanted more than {memory_bytes_max} bytes of memory (memory-bytes-max)")]
    Memory {
        /// The limit.
        memory_bytes_max: usize,
    },
    /// It returned more than it may.
    #[error("the module returned more than {output_bytes_max} bytes at once (output-bytes-max)")]
    OutputTooLarge {
        /// The limit.
        output_bytes_max: usize,
    },
    /// What it returned is not what the contract says.
    #[error("the module returned {what}")]
    Malformed {
        /// What was wrong with it.
        what: String,
    },
    /// The value for a key could not be made.
    #[error("finish: {reason}")]
    Finish {
        /// What the guest said.
        reason: String,
    },
    /// It refused its parameters.
    #[error("the module refuses its parameters: {reason}")]
    Configure {
        /// What the guest said.
        reason: String,
    },
    /// No instance could be made.
    #[error("the module can't be started: {reason}")]
    Instantiate {
        /// What wasmtime says.
        reason: String,
    },
}

impl CallError {
    /// Whether the records of the call may be why: fewer of them may work.
    pub fn may_be_a_records(&self) -> bool {
        !matches!(self, Self::Configure { .. } | Self::Instantiate { .. })
    }
}

/// What a guest's log lines are marked with.
#[derive(Clone, Debug, Default)]
pub struct LogContext {
    /// The pipeline.
    pub pipeline: Arc<str>,
    /// The stage.
    pub stage: Arc<str>,
}

/// What an instance's store holds.
pub(super) struct HostState {
    limiter: MemoryLimiter,
    log: LogContext,
    /// The topic and partition whose records are being handled.
    partition: String,
    lines: LineBudget,
    /// The last line that the guest wrote as an error: after a trap, why.
    last_error: Option<String>,
}

/// Lets log lines through at a bounded rate.
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

/// Made by guests alone.
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

/// What modules may import.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    let mut host = linker.instance(&interface("host"))?;
    host.func_wrap("log", |mut store: StoreContextMut<'_, HostState>, (level, message): (Level, String)| {
        store.data_mut().log(level, message);
        Ok(())
    })?;
    // `types` has no functions; a component that names it is given it empty.
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

/// One stage's guest. It belongs to one thread at a time, and to no partition: it keeps nothing
/// between calls.
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

/// An instance with its functions looked up.
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

/// `configuration.configure`.
type Configure<'a> = TypedFunc<(&'a [(String, String)],), (Result<(), String>,)>;

impl Guest {
    /// A guest of `module`; nothing runs yet.
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

    /// Makes an instance and gives it its parameters.
    ///
    /// # Errors
    /// [`CallError::Configure`] where it refuses them, or why it can't start.
    pub fn start(&mut self) -> Result<(), CallError> {
        if self.live.is_none() {
            self.live = Some(self.instantiate()?);
        }
        Ok(())
    }

    /// Says whose records come next, for log lines.
    pub fn set_partition(&mut self, partition: &str) {
        if self.partition != partition {
            self.partition.clear();
            self.partition.push_str(partition);
            if let Some(live) = &mut self.live {
                live.store.data_mut().partition.clone_from(&self.partition);
            }
        }
    }

    /// Linear memory of the instance, in bytes.
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

    /// Adds records to accumulators: `groups` has the index into `accumulators` of each record.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn add(&mut self, batch: &Columns, groups: &[u32], accumulators: &Column) -> Result<Added, CallError> {
        let parameters = (BatchIn::from(batch), groups, ColumnIn::from(accumulators));
        let (out,): (AddedOut,) = self.call(|calls| Ok(calls.aggregate()?.0), parameters)?;
        out.check(batch.len(), accumulators.len()).map_err(|what| self.malformed(what))
    }

    /// Makes output values of accumulators.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn finish(&mut self, keys: &Column, accumulators: &Column) -> Result<Finished, CallError> {
        let parameters = (ColumnIn::from(keys), ColumnIn::from(accumulators));
        let (out,): (FinishedOut,) = self.call(|calls| Ok(calls.aggregate()?.1), parameters)?;
        out.check(keys.len()).map_err(|what| self.malformed(what))
    }

    /// An instance that breaks the contract is not called again.
    fn malformed(&mut self, what: String) -> CallError {
        self.live = None;
        CallError::Malformed { what }
    }

    /// Calls into the instance within the limits. It is gone afterwards where that failed.
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
            // Parameters are borrowed, so the function's type is of this call alone.
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
                        "it wants more than {} bytes of memory (memory-bytes-max)",
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

    /// What a failed call means to a user.
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
            // wasmtime's type for this is private; the limit on what a guest hands over is its only use.
            None if format!("{error:#}").contains("fuel allocated for hostcalls") => {
                CallError::OutputTooLarge { output_bytes_max: self.limits.output_bytes_max }
            }
            None => CallError::Malformed {
                what: format!("nothing that can be read: {}", first_lines(&format!("{error:#}"))),
            },
        }
    }
}

/// Arms the deadline.
fn begin_call(store: &mut Store<HostState>, limits: &CallLimits) -> Instant {
    let ticks = limits.call_deadline_ms.div_ceil(TICK.as_millis() as u64) + 1;
    store.set_epoch_deadline(ticks);
    store.data_mut().last_error = None;
    Instant::now()
}

fn wrong_kind() -> wasmtime::Error {
    wasmtime::Error::msg("the module is of another kind")
}

/// A trap in a line: what happened, and in which function where its name is known.
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
