//! Spins forever on a record whose value contains `needle`.

use millstream::prelude::*;

#[derive(Deserialize)]
pub struct Settings {
    needle: String,
}

#[millstream::filter]
pub fn spin_on(record: &Record, settings: &Settings) -> Result<bool> {
    while record.value_str()?.contains(&settings.needle) {
        std::hint::black_box(record);
    }
    Ok(true)
}
