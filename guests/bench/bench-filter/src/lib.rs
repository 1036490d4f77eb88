//! Keeps values whose first byte is even.

use millstream::prelude::*;

#[millstream::filter]
pub fn even(record: &Record) -> Result<bool> {
    Ok(record.value().and_then(<[u8]>::first).is_some_and(|byte| byte.is_multiple_of(2)))
}
