//! Keeps the flights that are at least `minutes` late.

use millstream::prelude::*;

#[derive(Deserialize)]
pub struct Settings {
    #[serde(default = "quarter_of_an_hour")]
    minutes: i64,
}

fn quarter_of_an_hour() -> i64 {
    15
}

#[derive(Deserialize)]
struct Flight {
    delay: i64,
}

#[millstream::filter]
pub fn delayed(record: &Record, settings: &Settings) -> Result<bool> {
    Ok(record.json::<Flight>()?.delay >= settings.minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_late_enough() {
        let settings = Settings { minutes: 15 };
        assert!(delayed(&Record::of(r#"{"delay":15,"origin":"LAX"}"#), &settings).unwrap());
        assert!(!delayed(&Record::of(r#"{"delay":14}"#), &settings).unwrap());
    }

    #[test]
    fn a_record_that_is_no_flight_fails() {
        let error = delayed(&Record::of("hello"), &Settings { minutes: 15 }).unwrap_err();
        assert!(error.to_string().contains("not the expected JSON"), "{error}");
    }
}
