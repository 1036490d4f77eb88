//! The records that are sent, and what the clients know of them. Every record is derived from its producer and number,
//! so that the knowledge about millions of records is small. This module knows nothing of servers.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use millstream_client::{Compression, RecordView};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// The topics, with the number of partitions of each.
pub(super) const TOPICS: [(&str, u32); 4] = [(FLIGHTS, 3), (CLICKS, 2), (RECENT, 2), (PROFILES, 2)];
/// A topic that keeps all records. The pipelines read it.
pub(super) const FLIGHTS: &str = "flights";
/// A topic with retention by size.
pub(super) const CLICKS: &str = "clicks";
/// A topic with retention by time.
pub(super) const RECENT: &str = "recent";
/// A compacted topic.
pub(super) const PROFILES: &str = "profiles";

/// Minimum retention of [`CLICKS`], in bytes per partition.
pub(super) const RETENTION_BYTES_MIN: u64 = 1 << 20;
/// Minimum retention of [`RECENT`], in ms.
pub(super) const RETENTION_MS_MIN: u64 = 4_000;

/// Minimum delay that passes the filters of the pipelines, in minutes.
pub(super) const LATE_MINUTES: i64 = 15;

/// The header with the id of a record.
pub(super) const ID: &str = "id";

/// What a producer sends.
pub(super) struct Sends {
    pub(super) topic: &'static str,
    /// Number of distinct keys. With 0, records have no key.
    pub(super) keys: u64,
    pub(super) compression: Compression,
    /// Maximum size of a value, in bytes.
    pub(super) value_bytes_max: usize,
}

const fn sends(topic: &'static str, keys: u64, compression: Compression, value_bytes_max: usize) -> Sends {
    Sends { topic, keys, compression, value_bytes_max }
}

/// The producers.
pub(super) const PRODUCERS: [Sends; 8] = [
    sends(FLIGHTS, 17, Compression::None, 0),
    sends(FLIGHTS, 0, Compression::Zstd, 0),
    sends(CLICKS, 1_000, Compression::Lz4, 2_000),
    sends(CLICKS, 0, Compression::None, 20_000),
    sends(RECENT, 0, Compression::Snappy, 1_000),
    sends(RECENT, 50, Compression::Gzip, 300),
    sends(PROFILES, 300, Compression::None, 500),
    sends(PROFILES, 300, Compression::Zstd, 100),
];

const AIRPORTS: [&str; 12] = ["LAX", "JFK", "ORD", "DTW", "LAS", "SEA", "BOS", "MIA", "PHX", "DEN", "ATL", "SFO"];

/// Identifies a record by its producer and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    pub(super) producer: u8,
    pub(super) number: u32,
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.producer, self.number)
    }
}

impl Id {
    /// Parses what `Display` wrote.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let parts =
            text.split_once('-').and_then(|(producer, number)| Some((producer.parse().ok()?, number.parse().ok()?)));
        let (producer, number) = parts.with_context(|| format!("{text:?} is not the id of a record"))?;
        ensure!(usize::from(producer) < PRODUCERS.len(), "there is no producer {producer}");
        Ok(Self { producer, number })
    }

    /// Returns the id of a stored record.
    pub(super) fn of(record: &RecordView<'_>) -> Result<Self> {
        let header = record.headers().find(|(name, _)| *name == ID).and_then(|(_, value)| value);
        Self::parse(std::str::from_utf8(header.context("the record has no id, so no producer sent it")?)?)
    }

    fn random(self, seed: u64) -> StdRng {
        StdRng::seed_from_u64(seed ^ (u64::from(self.producer) << 56) ^ u64::from(self.number))
    }

    /// Returns the delay in minutes and the airport of a record in [`FLIGHTS`].
    pub(super) fn flight(self, seed: u64) -> (i64, &'static str) {
        let mut random = self.random(seed);
        (random.random_range(-20..120), AIRPORTS.choose(&mut random).copied().unwrap_or_default())
    }

    /// Returns the key and the value of the record.
    pub(super) fn content(self, seed: u64) -> (Option<String>, Option<String>) {
        let sends = &PRODUCERS[usize::from(self.producer)];
        if sends.topic == FLIGHTS {
            let (delay, origin) = self.flight(seed);
            let key = (sends.keys > 0).then(|| format!("k{}", u64::from(self.number) % sends.keys));
            return (key, Some(json!({"id": self.to_string(), "delay": delay, "origin": origin}).to_string()));
        }
        let mut random = self.random(seed);
        let key = (sends.keys > 0).then(|| format!("k{}", random.random_range(0..sends.keys)));
        let tombstone = sends.topic == PROFILES && random.random_bool(0.1);
        // One half of the value compresses well.
        let bytes = random.random_range(0..=sends.value_bytes_max);
        let mut value: String = (0..bytes / 2).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
        value.extend(std::iter::repeat_n('-', bytes / 2));
        (key, (!tombstone).then_some(value))
    }
}

/// A record that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) id: Id,
    /// The timestamp with which the record was sent.
    pub(super) timestamp_ms: i64,
}

/// A partition of a topic.
pub(super) type Place = (&'static str, u32);

/// What the clients know about records, offsets and topics.
#[derive(Default)]
pub(super) struct Known {
    /// Acknowledged records, by partition and offset.
    pub(super) acked: Mutex<HashMap<Place, Vec<Option<Stored>>>>,
    /// Number of acknowledged records of each producer.
    pub(super) numbers: Mutex<[u32; PRODUCERS.len()]>,
    /// Whether a member of the group received the record, by partition of [`FLIGHTS`] and offset.
    pub(super) seen: Mutex<HashMap<u32, Vec<bool>>>,
    /// The largest acknowledged commit of the members, by partition of [`FLIGHTS`].
    pub(super) committed: Mutex<HashMap<u32, u64>>,
    /// Topics whose deletion was acknowledged.
    pub(super) deleted: Mutex<Vec<String>>,
}

impl Known {
    /// Notes an acknowledgement.
    pub(super) fn ack(&self, place: Place, offset: u64, stored: Stored) -> Result<()> {
        let mut acked = self.acked.lock();
        let slots = acked.entry(place).or_default();
        let at = offset as usize;
        if slots.len() <= at {
            slots.resize(at + 1, None);
        }
        if let Some(before) = slots[at].replace(stored) {
            let (topic, partition) = place;
            bail!("{topic}-{partition}: offset {offset} was acknowledged for both {} and {}", before.id, stored.id);
        }
        Ok(())
    }

    /// Returns the number of acknowledged records.
    pub(super) fn acks(&self) -> u64 {
        self.numbers.lock().iter().map(|&number| u64::from(number)).sum()
    }

    /// Returns the offset after the last acknowledged record of each partition.
    pub(super) fn ends(&self) -> HashMap<Place, u64> {
        self.acked.lock().iter().map(|(&place, slots)| (place, slots.len() as u64)).collect()
    }
}
