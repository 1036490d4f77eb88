//! Limits on the resources of guests. This file must not know how a deadline is enforced.

use serde::{Deserialize, Serialize};
use wasmtime::ResourceLimiter;

/// Limits of a stage's guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CallLimits {
    /// Maximum duration of a call. A batch has about a megabyte, so a second is about a microsecond per byte.
    pub call_deadline_ms: u64,
    /// Maximum linear memory of an instance, in bytes.
    pub memory_bytes_max: usize,
    /// Maximum size of the result of one call, over all columns, in bytes.
    pub output_bytes_max: usize,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self { call_deadline_ms: 1_000, memory_bytes_max: 64 << 20, output_bytes_max: 16 << 20 }
    }
}

/// Maximum number of table elements of an instance, which are function pointers. Large Rust programs have some
/// thousands.
const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Maximum number of instances, memories and tables of a component, which is a core module and its adapters.
const PARTS_MAX: usize = 16;

/// Limits the memory of an instance, and remembers whether the limit was reached.
#[derive(Debug)]
pub(super) struct MemoryLimiter {
    pub(super) bytes_max: usize,
    pub(super) bytes: usize,
    pub(super) was_hit: bool,
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let all = self.bytes - current.min(self.bytes) + desired;
        if all > self.bytes_max {
            self.was_hit = true;
            return Ok(false);
        }
        self.bytes = all;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}
