//! Outputs `megabytes` MiB for each record whose value contains `needle`.

use millstream::prelude::*;

#[derive(Deserialize)]
pub struct Settings {
    needle: String,
    megabytes: usize,
}

#[millstream::map]
pub fn flood(record: &Record, out: &mut Output, settings: &Settings) -> Result<()> {
    if record.value_str()?.contains(&settings.needle) {
        for _ in 0..settings.megabytes {
            out.emit(&vec![b'x'; 1 << 20]);
        }
    }
    out.pass();
    Ok(())
}
