//! A topic with 1,000 partitions, some of which each commit writes to. The workload covers sealing, the joining of a
//! partition's many segments, crashes and starts.

use std::path::Path;

use millstream_broker::Offset;
use millstream_broker::broker::check::check_on;
use millstream_broker::log::commit::{Append, Commit};
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerError, TopicName};
use millstream_record::{BatchBuilder, Compression, RecordBatch};
use millstream_tests::disk::{Disk, Effect, Fault};
use millstream_tests::workload::{block_on, offset, open_with};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crashes::DATA;
use crate::model::records_of_slice;
use crate::run::Run;

const TOPIC: &str = "many";
const PARTITIONS: usize = 1_000;

/// The store joins segments once there are more pieces than this. The limit is low, so that it happens.
const EXTENTS_MAX: usize = 2_500;

fn options(disk: &Disk) -> StoreOptions {
    StoreOptions {
        extents_max: Some(EXTENTS_MAX),
        cleaning_interval: Some(std::time::Duration::from_millis(20)),
        ..disk.options()
    }
}

/// Builds a record that contains its own partition and offset.
fn batch(partition: usize, number: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(number as i64, None, Some(format!("{partition} {number} {:>100}", "").as_bytes()), []);
    builder.finish().unwrap()
}

/// Number of records of each partition that are certain, and the number that were requested.
struct Written {
    acked: Vec<usize>,
    asked: Vec<usize>,
}

async fn write(broker: &Broker, written: &mut Written, random: &mut StdRng, commits: usize) -> Result<(), BrokerError> {
    let topic = broker.topic(TOPIC).unwrap();
    for _ in 0..commits {
        let first = random.random_range(0..PARTITIONS);
        let some: Vec<usize> = (0..random.random_range(1..400)).map(|at| (first + at) % PARTITIONS).collect();
        let append = |partition: &usize| Append {
            partition: topic.partitions()[*partition].clone(),
            batches: vec![batch(*partition, written.asked[*partition])],
        };
        let appends = some.iter().map(append).collect();
        some.iter().for_each(|partition| written.asked[*partition] += 1);
        broker.commit(Commit { appends, ..Commit::default() }).await?.await?;
        some.iter().for_each(|partition| written.acked[*partition] += 1);
    }
    Ok(())
}

/// Checks that every acknowledged record exists, and that each record is in the place that it contains. Requested
/// records that were not acknowledged may exist.
async fn check(broker: &Broker, written: &mut Written) {
    for (number, partition) in broker.topic(TOPIC).unwrap().partitions().iter().enumerate() {
        let mut from = Offset::ZERO;
        while from < partition.end() {
            let range = ReadRange { from, until: None, bytes_max: 1 << 20, one_at_least: true };
            let slice = broker.read(partition, range).await.unwrap();
            for (at, (_, _, value)) in records_of_slice(&slice) {
                let value = String::from_utf8(value.unwrap()).unwrap();
                assert!(value.starts_with(&format!("{number} {at} ")), "partition {number}, offset {at}: {value:?}");
            }
            from = slice.next;
        }
        let there = usize::try_from(from.get()).unwrap();
        assert_eq!(offset(there), partition.end());
        let (acked, asked) = (written.acked[number], written.asked[number]);
        assert!(
            (acked..=asked).contains(&there),
            "partition {number} has {there} records, expected {acked} to {asked}"
        );
        (written.acked[number], written.asked[number]) = (there, there);
    }
}

pub(crate) fn partitions(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let (disk, data) = (Disk::default(), Path::new(DATA));
        let mut written = Written { acked: vec![0; PARTITIONS], asked: vec![0; PARTITIONS] };
        let broker = open_with(data, options(&disk)).unwrap();
        let name = TopicName::new(TOPIC).unwrap();
        broker.create_topic(&name, PARTITIONS as u32, TopicSettings::default(), false).await.unwrap();
        broker.stop();
        drop(broker);
        for _ in 0..random.random_range(1..3) {
            disk.set_faults([Fault {
                file: None,
                call: None,
                number: random.random_range(1..1_500),
                effect: Effect::PowerOff,
            }]);
            if let Ok(broker) = open_with(data, options(&disk)) {
                if write(&broker, &mut written, &mut random, 40).await.is_err() {
                    assert!(disk.struck());
                    run.met("a loss of power");
                }
                if broker.store().size().segments > 1 {
                    run.met("segments");
                }
                broker.stop();
            }
            disk.lose_power(random.random());
            let broker = open_with(data, options(&disk)).unwrap();
            check(&broker, &mut written).await;
            broker.stop();
        }
        let report = check_on(&disk.file_system(), data, false).unwrap();
        assert!(report.is_sound(), "{report:#?}");
    });
}
