//! SDK for writing Millstream stages in Rust. A stage is a function that processes one record, or an [`Aggregate`].
//! Compiled for `wasm32-unknown-unknown`, it is a module that can be pushed to a server.
//!
//! ```
//! use millstream::prelude::*;
//!
//! #[derive(Deserialize)]
//! struct Config {
//!     minutes: i64,
//! }
//!
//! #[derive(Deserialize)]
//! struct Flight {
//!     delay: i64,
//! }
//!
//! #[millstream::filter]
//! fn delayed(record: &Record, config: &Config) -> Result<bool> {
//!     Ok(record.json::<Flight>()?.delay >= config.minutes)
//! }
//!
//! # fn main() {
//! // On other targets than wasm32, this is a plain function that can be tested directly.
//! assert!(delayed(&Record::of(r#"{"delay": 20}"#), &Config { minutes: 15 }).unwrap());
//! # }
//! ```
//!
//! If a stage returns an error, the record fails: the pipeline file determines what happens to it, and other records
//! are not affected. A panic also fails only its record, but it takes longer to find that record.

mod aggregate;
mod batch;
mod config;
mod error;
pub mod log;
mod output;
mod record;
mod runner;

pub use aggregate::{Aggregate, Value};
pub use config::Config;
pub use error::{Error, Result};
pub use millstream_macros::{aggregate, filter, map};
pub use output::{NewRecord, Output};
pub use record::{Headers, Record};

/// The items that most stages need.
pub mod prelude {
    pub use crate::{Aggregate, Config, Error, NewRecord, Output, Record, Result, Value, bail};
    pub use serde::{Deserialize, Serialize};
}

/// Support code for the attribute macros. This is not part of the public API.
#[doc(hidden)]
pub mod __rt {
    pub use crate::batch::{Batch, Column, HeaderColumns};
    pub use crate::config::{no_parameters, parse_parameters};
    pub use crate::log::start;
    pub use crate::runner::{run_add, run_filter, run_finish, run_map, run_merge};
    pub use crate::{__batch as batch, __failures as failures, __from_column as from_column, __to_column as to_column};
    #[cfg(target_arch = "wasm32")]
    pub use wit_bindgen;
}

/// Returns from the stage with an error for the current record.
///
/// ```
/// use millstream::prelude::*;
/// fn positive(n: i64) -> Result<i64> {
///     if n < 0 {
///         bail!("{n} is negative");
///     }
///     Ok(n)
/// }
/// assert_eq!(positive(-1).unwrap_err().to_string(), "-1 is negative");
/// ```
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => {
        return ::core::result::Result::Err($crate::Error::new(::std::format!($($arg)*)))
    };
}

/// Converts a batch of the bindings to ours by moving its vectors.
#[doc(hidden)]
#[macro_export]
macro_rules! __batch {
    ($input:expr) => {{
        let input = $input;
        $crate::__rt::Batch {
            offsets: input.offsets,
            timestamps: input.timestamps,
            keys: $crate::__from_column!(input.keys),
            values: $crate::__from_column!(input.values),
            headers: $crate::__rt::HeaderColumns {
                counts: input.headers.counts,
                names: $crate::__from_column!(input.headers.names),
                values: $crate::__from_column!(input.headers.values),
            },
        }
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __from_column {
    ($column:expr) => {{
        let column = $column;
        $crate::__rt::Column { lengths: column.lengths, bytes: column.bytes }
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __to_column {
    ($bindings:ident, $column:expr) => {{
        let column = $column;
        $bindings::millstream::stage::types::Column { lengths: column.lengths, bytes: column.bytes }
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __failures {
    ($bindings:ident, $failures:expr) => {
        $failures
            .into_iter()
            .map(|(index, reason)| $bindings::millstream::stage::types::Failure { index, reason })
            .collect()
    };
}
