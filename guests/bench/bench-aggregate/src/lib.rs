//! Counts records, sums their sizes and keeps the last timestamp, in 24 bytes per key.

use millstream::prelude::*;

#[derive(Default, Serialize, Deserialize)]
pub struct Stats([[u8; 8]; 3]);

pub struct Summary;

impl Stats {
    fn get(&self, field: usize) -> i64 {
        i64::from_le_bytes(self.0[field])
    }

    fn set(&mut self, field: usize, value: i64) {
        self.0[field] = value.to_le_bytes();
    }
}

#[millstream::aggregate]
impl Aggregate for Summary {
    type Accumulator = Stats;

    fn add(&self, stats: &mut Stats, record: &Record) -> Result<()> {
        stats.set(0, stats.get(0) + 1);
        stats.set(1, stats.get(1) + record.value().map_or(0, <[u8]>::len) as i64);
        stats.set(2, stats.get(2).max(record.timestamp_ms()));
        Ok(())
    }

    fn merge(&self, stats: &mut Stats, other: Stats) -> Result<()> {
        stats.set(0, stats.get(0) + other.get(0));
        stats.set(1, stats.get(1) + other.get(1));
        stats.set(2, stats.get(2).max(other.get(2)));
        Ok(())
    }

    fn finish(&self, _key: &[u8], stats: &Stats) -> Result<Value> {
        Ok(stats.0.concat().into())
    }
}
