//! The guest of one stage on one worker thread. Its instance is created at the first call, and dropped after a call
//! that did not return. This file must not know how an instance is created and called.

use std::fmt;
use std::sync::Arc;

use millstream_record::{Column, Columns};
use wasmtime::Store;

use super::abi::{Added, Filtered, Finished, Mapped};
use super::call_error::CallError;
use super::engine::Engine;
use super::guest_log::{GuestLog, LogContext};
use super::instance::{Functions, Instance};
use super::limits::CallLimits;
use super::linker::HostState;
use super::module::Module;

/// The guest of one stage. It is used by one thread at a time, and by any partition, because it keeps nothing between
/// calls.
pub struct Guest {
    engine: Engine,
    module: Arc<Module>,
    parameters: Vec<(String, String)>,
    limits: CallLimits,
    log: LogContext,
    partition: String,
    instance: Option<Instance>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guest({}/{}, {:?})", self.log.pipeline, self.log.stage, self.module)
    }
}

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
        Self { engine, module, parameters, limits, log, partition: String::new(), instance: None }
    }

    /// Creates the instance, if there is none, and passes it its parameters.
    ///
    /// # Errors
    /// [`CallError::Configure`] if the module refuses the parameters, or another error if it cannot be started.
    pub fn start(&mut self) -> Result<(), CallError> {
        self.started().map(drop)
    }

    /// Sets the partition whose records come next, for log lines.
    pub fn set_partition(&mut self, partition: &str) {
        if self.partition != partition {
            self.partition.clear();
            self.partition.push_str(partition);
            if let Some(instance) = &mut self.instance {
                instance.set_partition(partition);
            }
        }
    }

    /// Returns the linear memory of the instance, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.instance.as_ref().map_or(0, Instance::memory_bytes)
    }

    /// Calls a filter.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn filter(&mut self, batch: &Columns) -> Result<Filtered, CallError> {
        let out = self.call(|functions, store| functions.filter()?.call_run(store, batch.into()))?;
        out.check(batch.len()).map_err(|what| self.malformed(what))
    }

    /// Calls a map.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn map(&mut self, batch: &Columns) -> Result<Mapped, CallError> {
        let out = self.call(|functions, store| functions.map()?.call_run(store, batch.into()))?;
        out.check(batch.len()).map_err(|what| self.malformed(what))
    }

    /// Adds records to accumulators. `groups` has, for each record, its index in `accumulators`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn add(&mut self, batch: &Columns, groups: &[u32], accumulators: &Column) -> Result<Added, CallError> {
        let out = self.call(|functions, store| {
            functions.aggregate()?.call_add(store, batch.into(), groups, accumulators.into())
        })?;
        out.check(batch.len(), accumulators.len()).map_err(|what| self.malformed(what))
    }

    /// Derives output values from accumulators.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn finish(&mut self, keys: &Column, accumulators: &Column) -> Result<Finished, CallError> {
        let out =
            self.call(|functions, store| functions.aggregate()?.call_finish(store, keys.into(), accumulators.into()))?;
        out.check(keys.len()).map_err(|what| self.malformed(what))
    }

    /// Returns the instance, and creates it if there is none.
    fn started(&mut self) -> Result<&mut Instance, CallError> {
        let instance = match self.instance.take() {
            Some(instance) => instance,
            None => {
                let log = GuestLog::new(self.log.clone(), self.partition.clone());
                Instance::new(&self.engine, &self.module, &self.parameters, self.limits, log)?
            }
        };
        Ok(self.instance.insert(instance))
    }

    /// Calls a function of the instance. If the call fails, the instance is dropped.
    fn call<R>(
        &mut self,
        function: impl FnOnce(&Functions, &mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        self.started()?.call(function).inspect_err(|_| self.instance = None)
    }

    /// Drops the instance, because one that breaks the rules must not be called again.
    fn malformed(&mut self, what: String) -> CallError {
        self.instance = None;
        CallError::Malformed { what }
    }
}
