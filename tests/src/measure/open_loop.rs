//! Load that comes at a steady rate, whether it is answered or not.
//!
//! Latency counts from the moment that a record was due. A load generator that waits for a slow server, and counts from
//! when it got round to sending, leaves out what its users would have waited meanwhile ("coordinated omission").

use std::time::{Duration, Instant};

use millstream_client::{ClientError, RecordRef, TopicProducer};
use tokio::task::JoinSet;

use super::samples::milliseconds;

/// When each record of a steady load is due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// When the first record is due.
    pub begun: Instant,
    /// How many are due a second.
    pub per_second: u64,
}

impl Schedule {
    /// When record `number` is due, from 0.
    pub fn due(&self, number: u64) -> Instant {
        let nanoseconds = u128::from(number) * 1_000_000_000 / u128::from(self.per_second);
        self.begun + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// A steady load of records.
#[derive(Clone, Copy, Debug)]
pub struct OpenLoop {
    /// Records due a second.
    pub per_second: u64,
    /// How many records there are.
    pub records: u64,
    /// The first so many warm the machine up, and are not measured.
    pub warm_up: u64,
    /// One record in so many has its acknowledgement timed.
    pub sampled: u64,
}

/// What became of the load.
#[derive(Debug)]
pub struct Answered {
    /// From when a record was due to its acknowledgement, in milliseconds.
    pub acknowledged_ms: Vec<f64>,
    /// Records a second that were acknowledged, from the first one due to the last one acknowledged.
    pub records_per_s: f64,
}

impl OpenLoop {
    /// A load of `seconds` after a second of warming up, with about `samples_per_s` of its records timed.
    pub fn new(per_second: u64, seconds: u64, samples_per_s: u64) -> Self {
        let sampled = (per_second / samples_per_s).max(1);
        Self { per_second, records: per_second * (seconds + 1), warm_up: per_second, sampled }
    }

    /// Whether the acknowledgement of record `number` is timed.
    pub fn is_sampled(&self, number: u64) -> bool {
        number >= self.warm_up && number.is_multiple_of(self.sampled)
    }

    /// Sends the load. `fill` gets each record's number and when it is due, and makes its value and its key.
    ///
    /// # Errors
    /// Where a record is not taken, or a timed one is not stored.
    pub async fn run(
        self,
        to: &TopicProducer,
        mut record: impl FnMut(u64, Instant, &mut Record),
    ) -> Result<Answered, ClientError> {
        let schedule = Schedule { begun: Instant::now(), per_second: self.per_second };
        let mut waiting = JoinSet::new();
        let mut buffer = Record::default();
        for number in 0..self.records {
            let due = schedule.due(number);
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            record(number, due, &mut buffer);
            let delivery = to.send(RecordRef { key: buffer.key.as_deref(), ..RecordRef::new(&buffer.value) }).await?;
            if self.is_sampled(number) || number + 1 == self.records {
                waiting.spawn(async move {
                    delivery.await?;
                    Ok::<_, ClientError>((number, due.elapsed()))
                });
            }
        }
        let mut acknowledged_ms = Vec::with_capacity(waiting.len());
        while let Some(answer) = waiting.join_next().await {
            let (number, after) = answer.expect("a wait for an answer does not panic")?;
            if self.is_sampled(number) {
                acknowledged_ms.push(milliseconds(after));
            }
        }
        Ok(Answered { acknowledged_ms, records_per_s: self.records as f64 / schedule.begun.elapsed().as_secs_f64() })
    }
}

/// A record that the load sends.
#[derive(Debug, Default)]
pub struct Record {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Vec<u8>,
}
