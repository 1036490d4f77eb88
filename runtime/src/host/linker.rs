//! The functions that modules may import, and the data that they work on. This file must not know what guests export.

use wasmtime::component::{HasSelf, Linker};

use super::bindings::{host, types};
use super::guest_log::GuestLog;
use super::limits::MemoryLimiter;

/// The data of an instance's store.
pub(super) struct HostState {
    pub(super) limiter: MemoryLimiter,
    pub(super) log: GuestLog,
}

impl host::Host for HostState {
    fn log(&mut self, level: host::Level, message: String) {
        self.log.write(level, message);
    }
}

impl types::Host for HostState {}

/// Defines the functions that modules may import.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    host::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
    types::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
    Ok(linker)
}
