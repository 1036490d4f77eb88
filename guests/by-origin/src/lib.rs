//! Sets the key of each flight to its airport of origin.

use std::borrow::Cow;

use millstream::prelude::*;

#[derive(Deserialize)]
struct Flight<'a> {
    #[serde(borrow)]
    origin: Cow<'a, str>,
}

#[millstream::map]
pub fn by_origin(record: &Record, out: &mut Output) -> Result<()> {
    let flight: Flight = record.json()?;
    out.pass_with_key(flight.origin.as_ref());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_becomes_the_key() {
        let record = Record::of(r#"{"delay":1,"origin":"LAX"}"#).with_key("old");
        let out = Output::collect(&record, |out| by_origin(&record, out)).unwrap();
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].key_str(), out[0].value()), ("LAX", record.value()));
    }
}
