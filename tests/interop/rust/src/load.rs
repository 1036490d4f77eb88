//! Loads for benchmarks. Each prints one line of JSON.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::util::Timeout;

use crate::Outcome;
use crate::clients::{config, consumer};

/// About this many acknowledgements are timed.
const SAMPLES: u64 = 50_000;

/// Number of different values.
const VALUES: usize = 64;

/// What is produced or read.
struct Load {
    topic: String,
    records: u64,
    bytes: usize,
    partitions: i32,
    /// Records per second over all producers, or 0 for as many as possible.
    rate: u64,
    producers: u64,
    keyed: bool,
    /// Whether values are random bytes, or else text that repeats itself.
    random: bool,
    /// Settings of librdkafka.
    client: Vec<(String, String)>,
}

impl Load {
    fn of(settings: &[String]) -> Outcome<Self> {
        let mut load = Self {
            topic: String::new(),
            records: 0,
            bytes: 100,
            partitions: 1,
            rate: 0,
            producers: 1,
            keyed: false,
            random: false,
            client: Vec::new(),
        };
        for setting in settings {
            let (name, value) = setting.split_once('=').ok_or_else(|| format!("{setting:?} is not NAME=VALUE"))?;
            match name {
                "topic" => load.topic = value.to_owned(),
                "records" => load.records = value.parse()?,
                "bytes" => load.bytes = value.parse()?,
                "partitions" => load.partitions = value.parse()?,
                "rate" => load.rate = value.parse()?,
                "producers" => load.producers = value.parse()?,
                "keyed" => load.keyed = value.parse()?,
                "random" => load.random = value.parse()?,
                name => load.client.push((name.to_owned(), value.to_owned())),
            }
        }
        Ok(load)
    }

    fn client(&self) -> Vec<(&str, &str)> {
        self.client.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    fn values(&self) -> Vec<Vec<u8>> {
        let mut random = StdRng::seed_from_u64(1);
        let text = b"{\"user\":48217,\"action\":\"view\",\"page\":\"/products/1893\",\"ms\":23}";
        let value = |number: usize| {
            let mut value: Vec<u8> = text.iter().copied().cycle().skip(number).take(self.bytes).collect();
            if self.random {
                random.fill_bytes(&mut value);
            }
            value
        };
        (0..VALUES).map(value).collect()
    }
}

/// Times of acknowledgements, in microseconds.
struct Acknowledged {
    begun: Instant,
    micros: Mutex<Vec<u64>>,
    failed: AtomicU64,
}

impl rdkafka::ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    /// When the record was sent, in microseconds after the begin. 0 if it is not timed.
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, sent: usize) {
        if delivered.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if sent > 0 {
            let now = self.begun.elapsed().as_micros() as u64;
            self.micros.lock().unwrap().push(now - sent as u64);
        }
    }
}

/// Prints the result. `micros` are latencies.
fn print(records: u64, seconds: f64, mut micros: Vec<u64>) {
    micros.sort_unstable();
    let at = |part: f64| match micros.len() {
        0 => 0.0,
        count => micros[((count - 1) as f64 * part) as usize] as f64 / 1e3,
    };
    println!(
        "{}",
        serde_json::json!({
            "records_per_s": records as f64 / seconds, "samples": micros.len(),
            "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1.0),
        })
    );
}

/// Produces from one or several producers, and times acknowledgements: from the call, or from when the record was due.
pub(crate) fn produce(address: &str, settings: &[String]) -> Outcome {
    let load = Load::of(settings)?;
    let begun = Instant::now();
    let of_each = load.records / load.producers;
    let sampled = (load.records / SAMPLES).max(1);
    let micros = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.producers)
            .map(|_| {
                let one = || produce_one(address, &load, begun, of_each, sampled);
                scope.spawn(move || one().map_err(|error| error.to_string()))
            })
            .collect();
        let all = threads.into_iter().map(|thread| thread.join().expect("a producer does not panic"));
        all.collect::<Result<Vec<_>, String>>()
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    print(of_each * load.producers, seconds, micros.concat());
    Ok(())
}

fn produce_one(address: &str, load: &Load, begun: Instant, records: u64, sampled: u64) -> Outcome<Vec<u64>> {
    let context = Acknowledged { begun, micros: Mutex::default(), failed: AtomicU64::new(0) };
    let producer: ThreadedProducer<Acknowledged> = config(address, &load.client()).create_with_context(context)?;
    let values = load.values();
    let between = (load.rate > 0).then(|| Duration::from_secs_f64(load.producers as f64 / load.rate as f64));
    let started = Instant::now();
    for number in 0..records {
        let mut sent = begun.elapsed();
        if let Some(between) = between {
            let due = started + between.mul_f64(number as f64);
            wait_until(due);
            sent = due - begun;
        }
        let opaque = if number.is_multiple_of(sampled) { sent.as_micros() as usize } else { 0 };
        let key = number.to_be_bytes();
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&load.topic, opaque).payload(&values[number as usize % VALUES]);
        if load.keyed {
            record = record.key(&key);
        }
        queue(&producer, record)?;
    }
    finish(&producer)
}

/// Sends a record, once the queue has room for it.
fn queue(producer: &ThreadedProducer<Acknowledged>, mut record: BaseRecord<'_, [u8], [u8], usize>) -> Outcome {
    while let Err((error, back)) = producer.send(record) {
        if !matches!(error, KafkaError::MessageProduction(rdkafka::types::RDKafkaErrorCode::QueueFull)) {
            return Err(error.into());
        }
        record = back;
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Waits until all records are acknowledged, and returns the times of those that were timed.
fn finish(producer: &ThreadedProducer<Acknowledged>) -> Outcome<Vec<u64>> {
    producer.flush(Timeout::After(Duration::from_secs(120)))?;
    match producer.context().failed.load(Ordering::Relaxed) {
        0 => Ok(std::mem::take(&mut producer.context().micros.lock().unwrap())),
        failed => Err(format!("{failed} records were not acknowledged").into()),
    }
}

fn wait_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    // Sleeping takes longer than asked for, so what is due soon is sent at once.
    if left > Duration::from_micros(500) {
        std::thread::sleep(left);
    }
}

/// Reads this many records of a topic from its start.
pub(crate) fn consume(address: &str, settings: &[String]) -> Outcome {
    let load = Load::of(settings)?;
    let reader = consumer(address, "load", &load.client())?;
    reader.assign(&all(&load, Offset::Beginning)?)?;
    let (mut begun, mut read) = (None, 0);
    while read < load.records {
        if let Some(record) = reader.poll(Duration::from_secs(1)) {
            record?;
            begun.get_or_insert_with(Instant::now);
            read += 1;
        }
    }
    print(read, begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64()), Vec::new());
    Ok(())
}

fn all(load: &Load, from: Offset) -> Outcome<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for partition in 0..load.partitions {
        list.add_partition_offset(&load.topic, partition, from)?;
    }
    Ok(list)
}

/// Produces at a rate while a consumer reads the same records, and times from when a record was due until it was read.
pub(crate) fn end_to_end(address: &str, settings: &[String]) -> Outcome {
    let load = Arc::new(Load::of(settings)?);
    if load.rate == 0 || load.bytes < 8 {
        return Err("an end-to-end load needs a rate, and values of at least 8 bytes".into());
    }
    let reader = consumer(address, "load", &[])?;
    reader.assign(&all(&load, Offset::Beginning)?)?;
    // The connections are made before the first record is due.
    let ready = reader.fetch_metadata(Some(&load.topic), Duration::from_secs(30))?;
    drop(ready);
    let begun = Instant::now() + Duration::from_secs(1);
    let producing = {
        let (load, address) = (load.clone(), address.to_owned());
        std::thread::spawn(move || send_due(&address, &load, begun).map_err(|error| error.to_string()))
    };
    let mut micros = Vec::with_capacity(load.records as usize);
    while (micros.len() as u64) < load.records {
        if let Some(record) = reader.poll(Duration::from_secs(1)) {
            let record = record?;
            let due = record.payload().and_then(|value| value.first_chunk::<8>()).ok_or("a record of another load")?;
            let due = Duration::from_nanos(u64::from_be_bytes(*due));
            micros.push(begun.elapsed().saturating_sub(due).as_micros() as u64);
        } else if producing.is_finished() && micros.is_empty() {
            return Err("no record came".into());
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    producing.join().expect("the producer does not panic")?;
    print(load.records, seconds, micros);
    Ok(())
}

fn send_due(address: &str, load: &Load, begun: Instant) -> Outcome {
    let context = Acknowledged { begun, micros: Mutex::default(), failed: AtomicU64::new(0) };
    let producer: ThreadedProducer<Acknowledged> = config(address, &load.client()).create_with_context(context)?;
    let (mut values, between) = (load.values(), Duration::from_secs_f64(1.0 / load.rate as f64));
    for number in 0..load.records {
        let due = between.mul_f64(number as f64);
        wait_until(begun + due);
        let value = &mut values[number as usize % VALUES];
        value[..8].copy_from_slice(&(due.as_nanos() as u64).to_be_bytes());
        let key = number.to_be_bytes();
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&load.topic, 0).payload(value.as_slice());
        if load.keyed {
            record = record.key(&key);
        }
        queue(&producer, record)?;
    }
    finish(&producer).map(drop)
}
