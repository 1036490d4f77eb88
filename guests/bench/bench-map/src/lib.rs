//! Outputs each value with its last byte changed, which takes one copy per record.

use millstream::prelude::*;

#[millstream::map]
pub fn touch(record: &Record, out: &mut Output) -> Result<()> {
    let Some(value) = record.value() else { bail!("no value") };
    let mut value = value.to_vec();
    if let Some(last) = value.last_mut() {
        *last ^= 1;
    }
    out.emit(&value);
    Ok(())
}
