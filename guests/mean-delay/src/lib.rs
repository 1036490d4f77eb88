//! Computes the number of flights of each key and their mean delay in minutes.

use millstream::prelude::*;

#[derive(Deserialize)]
struct Flight {
    delay: i64,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Delays {
    flights: u64,
    minutes: i64,
}

#[derive(Serialize)]
struct Mean {
    flights: u64,
    mean_delay: f64,
}

pub struct MeanDelay;

#[millstream::aggregate]
impl Aggregate for MeanDelay {
    type Accumulator = Delays;

    fn add(&self, delays: &mut Delays, record: &Record) -> Result<()> {
        delays.minutes += record.json::<Flight>()?.delay;
        delays.flights += 1;
        Ok(())
    }

    fn merge(&self, delays: &mut Delays, other: Delays) -> Result<()> {
        delays.flights += other.flights;
        delays.minutes += other.minutes;
        Ok(())
    }

    fn finish(&self, _airport: &[u8], delays: &Delays) -> Result<Value> {
        let mean = delays.minutes as f64 / delays.flights as f64;
        Value::json(&Mean { flights: delays.flights, mean_delay: (mean * 10.0).round() / 10.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_all_flights() {
        let mut delays = Delays::default();
        for flight in [r#"{"delay":10}"#, r#"{"delay":-5}"#] {
            MeanDelay.add(&mut delays, &Record::of(flight)).unwrap();
        }
        MeanDelay.merge(&mut delays, Delays { flights: 1, minutes: 1 }).unwrap();
        let value = MeanDelay.finish(b"LAX", &delays).unwrap();
        assert_eq!(value.as_str(), r#"{"flights":3,"mean_delay":2.0}"#);
    }
}
