//! A reader of sealed records that are not in the page cache, alone and together with a producer, and the producer with
//! and without it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::{Broker, Offset};
use millstream_record::RecordBatch;
use millstream_tests::measure::page_cache::ColdFiles;
use millstream_tests::measure::process::{disk_read_bytes, settled};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, median, milliseconds};
use millstream_tests::measure::turns::{Side, sides};
use tokio::task::{JoinHandle, JoinSet};

use crate::embedded::{self, IN_FLIGHT};
use crate::plan::Plan;
use crate::yardstick;

const NAME: &str = "cold reader";
/// Many short, alternating rounds, because the disk's speed changes from one second to the next.
const ROUNDS: usize = 12;
/// Number of rounds in which the reader runs alone.
const ALONE_ROUNDS: usize = 3;
const STORED_BYTES: u64 = 3_000_000_000;
const PRODUCED_BYTES: u64 = 300_000_000;
/// Interval between the batches of an ordinary producer: one batch every two milliseconds.
const PACE: Duration = Duration::from_millis(2);
/// Number of paced batches in each round.
const PACED_BATCHES: u64 = 1_000;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = embedded::open(folder.path());
    let old = embedded::topic(&broker, "old", 1, TopicSettings::default()).await;
    let new = embedded::topic(&broker, "new", 1, TopicSettings::default()).await;
    let batch = yardstick::batch(550, 100, 1_000, 1);
    let batches = |bytes| plan.records(bytes) / batch.as_bytes().len() as u64;
    embedded::append(&broker, &old, &batch, batches(STORED_BYTES), IN_FLIGHT).await;
    let reader = Reader::new(&broker, old, folder.path());

    // The remaining records are sealed meanwhile.
    settled(std::process::id()).await;
    let mut alone = Vec::new();
    for _ in 0..plan.rounds(ALONE_ROUNDS) {
        alone.push(reader.read().await);
    }
    let rate = median(alone.iter().map(|read| read.mb_per_s).collect());
    let name = format!("{NAME} from the start, alone");
    report.add(Figure::new(&name, rate, Unit::MegabytesPerSecond).at_least(500.0));
    // Checks that the reads were cold, with the smallest value of all rounds.
    let from_disk = alone.iter().map(|read| read.from_disk * 100.0).fold(f64::INFINITY, f64::min);
    report.add(Figure::new(format!("{name}, read from the disk"), from_disk, Unit::Percent).at_least(90.0));

    let (mut with, mut without) = (Producer::default(), Producer::default());
    let mut beside = Vec::new();
    for round in 0..plan.rounds(ROUNDS) {
        for side in sides(round) {
            let reading = (side == Side::Ours).then(|| Reading::begin(reader.clone()));
            let producer = if reading.is_some() { &mut with } else { &mut without };
            let appended = embedded::append(&broker, &new, &batch, batches(PRODUCED_BYTES), IN_FLIGHT).await;
            producer.mb_per_s.push(appended.mb_per_s);
            producer.paced.push(paced(&broker, &new, &batch, plan.records(PACED_BATCHES)).await);
            if let Some(reading) = reading {
                beside.extend(reading.end().await);
            }
        }
    }
    let name = format!("{NAME} from the start, beside a producer");
    report.add(Figure::new(name, median(beside), Unit::MegabytesPerSecond));
    let (with_mb, without_mb) = (median(with.mb_per_s), median(without.mb_per_s));
    let figure = Figure::new(format!("{NAME}, what a producer at full speed keeps"), with_mb, Unit::MegabytesPerSecond);
    report.add(figure.beside("the producer alone", without_mb).at_least(0.8 * without_mb));
    let name = format!("{NAME}, acknowledgement of a paced producer,");
    report.add_latency_beside(&name, &with.paced, &[("the producer alone", &without.paced)]);
    embedded::stop(broker).await;
}

/// The measurements of a producer in each round.
#[derive(Default)]
struct Producer {
    mb_per_s: Vec<f64>,
    paced: Vec<Latency>,
}

/// Sends a batch whenever one is due, whether or not those before it are acknowledged. Latencies are measured from the
/// due times.
async fn paced(broker: &Broker, topic: &Topic, batch: &RecordBatch, batches: u64) -> Latency {
    let partition = &topic.partitions()[0];
    let mut waiting = JoinSet::new();
    let begun = Instant::now();
    for number in 0..batches {
        let due = begun + PACE * number as u32;
        tokio::time::sleep_until(due.into()).await;
        let receipt = broker.produce(topic, partition, vec![batch.clone()]).await.unwrap();
        waiting.spawn(async move {
            receipt.await.unwrap();
            milliseconds(due.elapsed())
        });
    }
    Latency::of(waiting.join_all().await)
}

/// The measurements of one complete read.
struct Read {
    mb_per_s: f64,
    /// Bytes that this process read from the disk, divided by the bytes of records that it read.
    from_disk: f64,
}

/// Reads the sealed records of a topic.
#[derive(Clone)]
struct Reader {
    broker: Broker,
    topic: Arc<Topic>,
    until: Offset,
    files: Arc<ColdFiles>,
}

impl Reader {
    fn new(broker: &Broker, topic: Arc<Topic>, data: &Path) -> Self {
        // The second half may still be in the journal.
        let until = Offset::new(topic.partitions()[0].end().get() / 2).unwrap();
        let files = Arc::new(ColdFiles::of(data).unwrap());
        Self { broker: broker.clone(), topic, until, files }
    }

    /// Reads from the start, with an empty page cache.
    async fn read(&self) -> Read {
        self.files.evict().unwrap();
        let partition = self.topic.partitions()[0].clone();
        let (mut from, mut bytes) = (Offset::ZERO, 0);
        let disk = disk_read_bytes(std::process::id());
        let begun = Instant::now();
        while from < self.until {
            let range = ReadRange { from, until: Some(self.until), bytes_max: 1 << 20, one_at_least: true };
            let slice = self.broker.read(&partition, range).await.unwrap();
            bytes += slice.bytes();
            from = slice.next;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let disk = disk_read_bytes(std::process::id()) - disk;
        Read { mb_per_s: bytes as f64 / 1e6 / seconds, from_disk: disk as f64 / bytes as f64 }
    }
}

/// Repeats reads until it is told to end.
struct Reading {
    ended: Arc<AtomicBool>,
    rates: JoinHandle<Vec<f64>>,
}

impl Reading {
    fn begin(reader: Reader) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let rates = tokio::spawn(async move {
            let mut rates = Vec::new();
            while !until.load(Ordering::SeqCst) {
                rates.push(reader.read().await.mb_per_s);
            }
            rates
        });
        Self { ended, rates }
    }

    async fn end(self) -> Vec<f64> {
        self.ended.store(true, Ordering::SeqCst);
        self.rates.await.unwrap()
    }
}
