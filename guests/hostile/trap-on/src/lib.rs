//! Panics on a record whose value contains `needle`.

use millstream::prelude::*;

#[derive(Deserialize)]
pub struct Settings {
    needle: String,
}

#[millstream::filter]
pub fn trap_on(record: &Record, settings: &Settings) -> Result<bool> {
    assert!(!record.value_str()?.contains(&settings.needle), "found {:?}", settings.needle);
    Ok(true)
}
