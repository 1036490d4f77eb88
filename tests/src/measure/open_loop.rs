//! A load that arrives at a steady rate, whether or not earlier requests have been answered.
//!
//! Latency is measured from the moment that a record was due. A load generator that waits for a slow server, and
//! measures from the time of the actual send, omits the time that its users would have waited ("coordinated omission").

use std::time::{Duration, Instant};

use millstream_client::{ClientError, RecordRef, TopicProducer};
use tokio::task::JoinSet;

use super::samples::milliseconds;

/// The due times of the records of a steady load.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Due time of the first record.
    pub begun: Instant,
    /// Number of records that are due per second.
    pub per_second: u64,
}

impl Schedule {
    /// Returns the due time of record `number`, counted from 0.
    pub fn due(&self, number: u64) -> Instant {
        let nanoseconds = u128::from(number) * 1_000_000_000 / u128::from(self.per_second);
        self.begun + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// A steady load of records.
#[derive(Clone, Copy, Debug)]
pub struct OpenLoop {
    /// Number of records that are due per second.
    pub per_second: u64,
    /// Total number of records.
    pub records: u64,
    /// Number of records at the beginning that warm up the machine and are not measured.
    pub warm_up: u64,
    /// One out of this many records has its acknowledgement timed.
    pub sampled: u64,
}

/// The result of a load.
#[derive(Debug)]
pub struct Answered {
    /// Times from when a record was due to its acknowledgement, in milliseconds.
    pub acknowledged_ms: Vec<f64>,
    /// Acknowledged records per second, from the due time of the first record to the last acknowledgement.
    pub records_per_s: f64,
}

impl OpenLoop {
    /// Creates a load of `seconds` after one second of warm-up, in which about `samples_per_s` records per second are
    /// timed.
    pub fn new(per_second: u64, seconds: u64, samples_per_s: u64) -> Self {
        let sampled = (per_second / samples_per_s).max(1);
        Self { per_second, records: per_second * (seconds + 1), warm_up: per_second, sampled }
    }

    /// Returns whether the acknowledgement of record `number` is timed.
    pub fn is_sampled(&self, number: u64) -> bool {
        number >= self.warm_up && number.is_multiple_of(self.sampled)
    }

    /// Sends the load. `record` is called with each record's number and due time, and fills in its value and key.
    ///
    /// # Errors
    /// Returns an error if a record is not accepted, or if a timed record is not stored.
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
            let (number, after) = answer.expect("waiting for an acknowledgement does not panic")?;
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
