//! Turns a late flight into a readable alert, keyed by its origin.

use std::borrow::Cow;

use millstream::prelude::*;

#[derive(Deserialize)]
struct Flight<'a> {
    #[serde(borrow)]
    date: Cow<'a, str>,
    delay: i64,
    #[serde(borrow)]
    origin: Cow<'a, str>,
    #[serde(borrow)]
    destination: Cow<'a, str>,
}

#[millstream::map]
pub fn alert(record: &Record, out: &mut Output) -> Result<()> {
    let Flight { date, delay, origin, destination } = record.json()?;
    let (hours, minutes) = (delay / 60, delay % 60);
    let text = format!("{date}  {origin} to {destination} is {hours} h {minutes:02} min late");
    out.emit_keyed(origin.as_ref(), &text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_says_which_flight_and_how_late() {
        let record =
            Record::of(r#"{"date":"2001/01/01 00:47","delay":66,"distance":1750,"origin":"DTW","destination":"LAS"}"#);
        let out = Output::collect(&record, |out| alert(&record, out)).unwrap();
        assert_eq!(out[0].key_str(), "DTW");
        assert_eq!(out[0].value_str(), "2001/01/01 00:47  DTW to LAS is 1 h 06 min late");
    }
}
