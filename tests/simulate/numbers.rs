//! A small workload in which each single call fails once, one per run. Each commit writes a record to each of two
//! partitions, an offset and an accumulator, all with the same number.

use std::path::Path;
use std::sync::Arc;

use millstream_broker::groups::{Group, GroupKind};
use millstream_broker::log::commit::{Append, Commit, Fence, OffsetChange};
use millstream_broker::log::partition::Partition;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::{Broker, BrokerError, GroupId, Offset, TopicName};
use millstream_record::{BatchBuilder, Compression, RecordBatch};
use millstream_tests::disk::{BROKEN, Call, Disk, Effect, Fault};
use millstream_tests::workload::{block_on, offset, open_with, state_change};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crashes::DATA;
use crate::model::records_of_slice;
use crate::run::Run;

/// What the workload below wrote, as far as it was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    topic_acked: bool,
    /// Number of acknowledged commits, and of requested ones. Commit `n` writes record `n` to two partitions, the
    /// offset `n + 1`, and `n` as the accumulator.
    acked: usize,
    asked: usize,
    failed: bool,
}

const NUMBERS: &str = "numbers";

/// Id of the producer, whose sequence numbers are those of the records.
const NUMBERER: i64 = 7;

fn number_batch(number: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(NUMBERER, 0, number as i32);
    // The records have different sizes. Some are split into several values.
    let padding = "x".repeat(if number.is_multiple_of(5) { 70_000 } else { number % 7 * 300 });
    builder.push(number as i64, None, Some(format!("{number} {padding}").as_bytes()), []);
    builder.finish().unwrap()
}

fn number_append(partition: &Arc<Partition>, number: usize) -> Append {
    Append { partition: partition.clone(), batches: vec![number_batch(number)] }
}

fn number_commit(topic: &Arc<Topic>, group: &Arc<Group>, number: usize) -> Commit {
    Commit {
        appends: topic.partitions().iter().map(|partition| number_append(partition, number)).collect(),
        offsets: vec![OffsetChange {
            group: group.clone(),
            topic: topic.clone(),
            partition: 0,
            to: Some(offset(number + 1).into()),
            expected: Some((number > 0).then(|| offset(number))),
        }],
        state: vec![state_change("p/n", 0, b"n", Some(number.to_string().as_bytes()), i64::from(number == 0))],
        fence: Some(Fence::Generation { group: group.clone(), generation: group.generation() }),
        ..Commit::default()
    }
}

/// Continues the numbers, with three commits in flight at a time, until `count` more are acknowledged or one fails.
/// After a failure, no later commit may succeed.
async fn write_numbers(broker: &Broker, progress: &mut Progress, count: usize) {
    let name = TopicName::new(NUMBERS).unwrap();
    if broker.topic(NUMBERS).is_err()
        && let Err(error) = broker.create_topic(&name, 2, TopicSettings::default(), false).await
    {
        assert!(matches!(error, BrokerError::Storage(_)), "{error}");
        progress.failed = true;
        return;
    }
    progress.topic_acked = true;
    let topic = broker.topic(NUMBERS).unwrap();
    let group = broker.groups().get_or_create(&GroupId::new("g").unwrap(), GroupKind::Pipeline).unwrap();
    let until = progress.acked + count;
    while progress.acked < until && !progress.failed {
        progress.asked = progress.acked;
        let mut receipts = Vec::new();
        for _ in 0..3 {
            let commit = number_commit(&topic, &group, progress.asked);
            receipts.push(broker.commit(commit).await.unwrap());
            progress.asked += 1;
        }
        for receipt in receipts {
            match receipt.await {
                Ok(_) => {
                    assert!(!progress.failed, "a commit was acknowledged after an earlier one had failed");
                    progress.acked += 1;
                }
                Err(BrokerError::Storage(_)) => progress.failed = true,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Checks that a broken store refuses further writes and reports its failure.
async fn check_refuses(broker: &Broker) {
    assert!(broker.store().has_failed());
    assert!(broker.failure().borrow().is_some(), "the store reports its failure");
    let refused = broker.commit(Commit::default()).await.unwrap().await;
    assert!(matches!(refused, Err(BrokerError::Storage(_))), "{refused:?}");
    let name = TopicName::new("another").unwrap();
    let refused = broker.create_topic(&name, 1, TopicSettings::default(), false).await;
    assert!(matches!(refused, Err(BrokerError::Storage(_))), "{refused:?}");
}

/// Checks after reopening that every acknowledged number exists, and that each commit took effect completely or not at
/// all. Commits that were requested but not acknowledged may exist or not. Afterwards, what exists is known.
async fn check_numbers(broker: &Broker, progress: &mut Progress) {
    let Ok(topic) = broker.topic(NUMBERS) else {
        assert!(!progress.topic_acked, "the topic is gone: {progress:?}");
        *progress = Progress::default();
        return;
    };
    progress.topic_acked = true;
    let mut counts = Vec::new();
    for partition in topic.partitions() {
        let mut from = Offset::ZERO;
        let mut count = 0;
        while from < partition.end() {
            let slice = broker
                .read(partition, ReadRange { from, until: None, bytes_max: 1 << 20, one_at_least: true })
                .await
                .unwrap();
            for (at, (_, _, value)) in records_of_slice(&slice) {
                let value = String::from_utf8(value.unwrap()).unwrap();
                assert_eq!((at, value.split(' ').next().unwrap()), (count, count.to_string().as_str()));
                count += 1;
            }
            from = slice.next;
        }
        assert_eq!(offset(count), partition.end());
        counts.push(count);
    }
    let there = counts[0];
    assert_eq!(counts[1], there, "a commit took effect only in part: {progress:?}");
    assert!(progress.acked <= there, "an acknowledged record is missing: there are {there} records, {progress:?}");
    assert!(there <= progress.asked, "there are more records than were written: {there} records, {progress:?}");
    let committed = broker.groups().get("g").ok().and_then(|group| group.committed(topic.id(), 0));
    assert_eq!(
        committed.unwrap_or_default(),
        offset(there),
        "the committed offset belongs to another commit: {progress:?}"
    );
    let accumulator =
        broker.state().partition("p/n", 0).get(b"n").unwrap().map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(accumulator, there.checked_sub(1).map(|last| last.to_string()), "the state belongs to another commit");
    if let Some(last) = there.checked_sub(1) {
        let appends = topic.partitions().iter().map(|partition| number_append(partition, last)).collect();
        match broker.commit(Commit { appends, ..Commit::default() }).await.unwrap().await {
            Ok(committed) => assert_eq!(
                committed.base_offsets,
                [offset(last); 2],
                "a retried batch must be answered with its first offset"
            ),
            // The fault may strike at this write.
            Err(BrokerError::Storage(_)) => {}
            Err(error) => panic!("the producers' state belongs to another commit: {error}"),
        }
    }
    *progress = Progress { topic_acked: true, acked: there, asked: there, failed: false };
}

/// Runs the numbers with one fault, and then without faults. Returns whether the fault was met.
async fn survive(run: &mut Run, fault: Fault) -> bool {
    let (disk, data) = (Disk::new([fault]), Path::new(DATA));
    let mut progress = Progress::default();
    match open_with(data, disk.options()) {
        Err(error) => assert!(error.to_string().contains(BROKEN), "{fault:?}: {error}"),
        Ok(broker) => {
            write_numbers(&broker, &mut progress, 12).await;
            if progress.failed {
                check_refuses(&broker).await;
            }
            // Stopping the broker may meet the fault too.
            broker.stop();
        }
    }
    let struck = disk.struck();
    match fault.effect {
        Effect::PowerOff if struck => disk.lose_power(run.seed),
        _ => disk.end_process(),
    }
    let broker = open_with(data, disk.options()).unwrap();
    check_numbers(&broker, &mut progress).await;
    write_numbers(&broker, &mut progress, 3).await;
    assert!(!progress.failed, "{fault:?}: a commit failed on a healthy disk after reopening");
    check_numbers(&broker, &mut progress).await;
    broker.stop();
    struck
}

/// Makes every call of the workload fail, one call per run. The seed decides how it fails.
pub(crate) fn every_call(run: &mut Run) {
    const FAULTS: [(Call, Effect); 7] = [
        (Call::Write, Effect::Fail),
        (Call::Write, Effect::Tear),
        (Call::Sync, Effect::Fail),
        (Call::SetLen, Effect::Fail),
        (Call::Name, Effect::Fail),
        (Call::Write, Effect::PowerOff),
        (Call::Sync, Effect::PowerOff),
    ];
    let (call, effect) = FAULTS[(run.seed % FAULTS.len() as u64) as usize];
    let mut number = 1;
    while block_on(survive(run, Fault { file: None, call: Some(call), number, effect })) {
        number += 1;
    }
    assert!(number > 2, "the workload must make calls of this kind");
    run.met("the last call");
}

/// Exposes one data directory to several power losses, some of them while it is opened.
pub(crate) fn power_losses(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let (disk, data) = (Disk::default(), Path::new(DATA));
        let mut progress = Progress::default();
        for _ in 0..random.random_range(1..4) {
            let number = if random.random_bool(0.5) { random.random_range(1..60) } else { random.random_range(1..400) };
            disk.set_faults([Fault { file: None, call: None, number, effect: Effect::PowerOff }]);
            match open_with(data, disk.options()) {
                Err(error) => assert!(error.to_string().contains(BROKEN), "{error}"),
                Ok(broker) => {
                    check_numbers(&broker, &mut progress).await;
                    write_numbers(&broker, &mut progress, 60).await;
                    broker.stop();
                }
            }
            if disk.struck() {
                run.met("a loss of power");
            }
            disk.lose_power(random.random());
        }
        let broker = open_with(data, disk.options()).unwrap();
        check_numbers(&broker, &mut progress).await;
        write_numbers(&broker, &mut progress, 3).await;
        assert!(!progress.failed);
        broker.stop();
    });
}
