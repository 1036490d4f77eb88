//! The functions that modules may import, and the data that they work on. This file must not know what guests export.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use super::component::interface;
use super::guest_log::{GuestLog, Level};
use super::limits::MemoryLimiter;

/// The data of an instance's store.
pub(super) struct HostState {
    pub(super) limiter: MemoryLimiter,
    pub(super) log: GuestLog,
}

/// Defines the functions that modules may import.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    let mut host = linker.instance(&interface("host"))?;
    host.func_wrap("log", |mut store: StoreContextMut<'_, HostState>, (level, message): (Level, String)| {
        store.data_mut().log.write(level, message);
        Ok(())
    })?;
    // `types` has no functions, so a component that imports it gets an empty instance.
    linker.instance(&interface("types"))?;
    Ok(linker)
}
