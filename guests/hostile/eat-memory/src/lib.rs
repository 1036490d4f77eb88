//! Allocates memory without limit for a record whose value contains `needle`.

use millstream::prelude::*;

#[derive(Deserialize)]
pub struct Settings {
    needle: String,
}

#[millstream::map]
pub fn eat_memory(record: &Record, out: &mut Output, settings: &Settings) -> Result<()> {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while record.value_str()?.contains(&settings.needle) {
        eaten.push(std::hint::black_box(vec![1; 1 << 20]));
    }
    out.pass();
    Ok(())
}
