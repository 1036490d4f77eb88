//! Sealing, retention, compaction and merging of old records. A small journal and a clock that only moves when it is
//! set let the tests observe each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millstream_broker::broker::fetch::{Fetch, FetchFrom};
use millstream_broker::groups::{Group, GroupKind};
use millstream_broker::log::partition::Partition;
use millstream_broker::log::reader::{ReadRange, View};
use millstream_broker::log::topic::{Change, Cleanup, Topic, TopicAlteration, TopicSettings};
use millstream_broker::name::TopicPartition;
use millstream_broker::store::{StorageBackend, StoreFile, StoreOptions};
use millstream_broker::{Broker, BrokerError, GroupId, Offset, TopicName};
use millstream_record::{BatchBuilder, Compression, Limits, split_batches};
use millstream_tests::held::Held;
use millstream_tests::hooked::{self, Call};
use millstream_tests::instance::wait_until;
use millstream_tests::running::{
    JOURNAL_BYTES, Limit, Rounds, Running, append, batch_of_one, new_member, read_from, text,
};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

#[tokio::test(flavor = "multi_thread")]
async fn records_are_the_same_in_journal_and_segments_and_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let mut running = Running::open(data.path(), 0);
    let topic = running.topic("t", 3, TopicSettings::default()).await;
    for round in 0..120 {
        for partition in 0..3 {
            let value = format!("{round} {}", "v".repeat(round * 30));
            running.produce(&topic, partition, round as i64, &[("k", Some(&value)), ("l", None)]).await;
        }
    }
    for times in 0..2 {
        let topic = running.broker.topic("t").unwrap();
        for partition in topic.partitions() {
            let size = partition.size();
            assert!(size.segments > 1, "{size:?}");
            assert_eq!((size.first_timestamp_ms, size.max_timestamp_ms), (Some(0), Some(119)));
            let records = read_from(&running.broker, partition, Offset::ZERO).await;
            assert_eq!(records.len(), 240, "open {times}");
            for (at, record) in records.iter().enumerate() {
                assert_eq!((record.offset, record.timestamp_ms), (at as i64, at as i64 / 2));
                let value = text(record.value.as_ref());
                assert_eq!(
                    value.map(|v| v.len()),
                    at.is_multiple_of(2).then(|| format!("{} ", at / 2).len() + at / 2 * 30)
                );
            }
            // Looks offsets up by time, in segments and in the journal.
            for round in [0, 1, 60, 118, 119] {
                let found = partition.offset_at(running.broker.store(), round, &Limits::default()).unwrap();
                assert_eq!(found.get(), round * 2);
            }
            assert_eq!(partition.offset_at(running.broker.store(), 120, &Limits::default()).unwrap(), partition.end());
        }
        running.stop().await;
        running = Running::open(data.path(), 0);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_by_time_and_by_bytes_moves_the_log_start_and_frees_the_disk() {
    let data = tempfile::tempdir().unwrap();
    let running = Running::open(data.path(), 10_000);
    let aged = running.topic("aged", 1, TopicSettings { retention_ms: Some(5_000), ..Default::default() }).await;
    let sized = TopicSettings { retention_bytes: Some(JOURNAL_BYTES), ..Default::default() };
    let sized = running.topic("sized", 1, sized).await;
    let kept = running.topic("kept", 1, TopicSettings::default()).await;
    let value = "v".repeat(10_000);
    // Less than half of these bytes stays, so that it is merged even if one segment holds everything.
    for round in 0..100 {
        let topics = if round % 2 == 0 { vec![&aged, &sized, &kept] } else { vec![&aged, &sized] };
        for topic in topics {
            running.produce(topic, 0, 10_000 + round, &[("k", Some(&value))]).await;
        }
    }
    let (aged, sized, kept) = (&aged.partitions()[0], &sized.partitions()[0], &kept.partitions()[0]);
    wait_until("the topic sized keeps its limit, and at most the extents around it", || {
        let bytes = sized.size().bytes;
        // The first extent may have been joined from everything that was kept at some time.
        (JOURNAL_BYTES..JOURNAL_BYTES * 3).contains(&bytes)
    })
    .await;
    assert_eq!(aged.start(), Offset::ZERO, "no record is too old yet");
    let before = running.broker.store().size().segment_bytes;
    running.set_ms(10_099 + 5_001);
    wait_until("the topic aged is empty", || aged.start() == aged.end()).await;
    assert_eq!((aged.end().get(), aged.size().bytes), (100, 0));
    assert_eq!((kept.start(), kept.end().get()), (Offset::ZERO, 50));
    assert_eq!(read_from(&running.broker, kept, Offset::ZERO).await.len(), 50);
    // Small topics share segments. What remains of them is merged, and the rest is freed.
    wait_until("disk space is freed", || running.broker.store().size().segment_bytes < before).await;

    let error = running.broker.read(sized, range_of_one()).await.unwrap_err();
    assert!(matches!(error, BrokerError::OffsetOutOfRange { .. }), "{error}");
    let said = error.to_string();
    for offset in [sized.start(), sized.end()] {
        assert!(said.contains(&offset.to_string()), "{said}");
    }
    let starts = (sized.start(), aged.start());
    let sized_records = read_from(&running.broker, sized, sized.start()).await;
    running.stop().await;

    let running = Running::open(data.path(), 10_000);
    let (aged, sized) = (running.broker.topic("aged").unwrap(), running.broker.topic("sized").unwrap());
    assert_eq!(
        (sized.partitions()[0].start(), aged.partitions()[0].start()),
        starts,
        "the log start must survive a restart"
    );
    assert_eq!(aged.partitions()[0].end().get(), 100, "an empty log must continue at its end offset");
    assert_eq!(read_from(&running.broker, &sized.partitions()[0], starts.0).await, sized_records);
    running.produce(&aged, 0, 20_000, &[("k", Some("after"))]).await;
    let records = read_from(&running.broker, &aged.partitions()[0], Offset::new(100).unwrap()).await;
    assert_eq!((records.len(), records[0].offset), (1, 100));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_answer_costs_no_reads_of_the_partitions_after_it() {
    const PARTITIONS: u32 = 20;
    let data = tempfile::tempdir().unwrap();
    let running = Running::open(data.path(), 0);
    let topic = running.topic("t", PARTITIONS, TopicSettings::default()).await;
    let value = "v".repeat(40_000);
    for partition in 0..PARTITIONS {
        for _ in 0..2 {
            running.produce(&topic, partition, 0, &[("k", Some(&value))]).await;
        }
    }
    running.seal().await;
    running.stop().await;
    // Nothing is in memory after a restart.
    let reads = Arc::new(AtomicU64::new(0));
    let counted = reads.clone();
    let options = hooked::options(move |path, call| {
        if call == Call::Read && path.extension().is_some_and(|extension| extension == "segment") {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, options);
    let topic = running.broker.topic("t").unwrap();
    let from = |partition: &Arc<Partition>| FetchFrom {
        partition: partition.clone(),
        offset: Offset::ZERO,
        until: None,
        bytes_max: usize::MAX,
        view: View::Committed,
    };
    let from: Vec<FetchFrom> = topic.partitions().iter().map(from).collect();
    let fetch = async |bytes_max| {
        let fetch = Fetch { from: from.clone(), bytes_min: 1, bytes_max, wait_max: Duration::ZERO };
        let fetched = running.broker.fetch(&fetch).await;
        fetched.into_iter().filter(|fetched| !fetched.slice.as_ref().unwrap().runs.is_empty()).count()
    };
    // Opens all segments, and reads their indices.
    assert_eq!(fetch(10_000_000).await, PARTITIONS as usize);
    let all = reads.swap(0, Ordering::SeqCst);
    assert!(all >= u64::from(PARTITIONS), "{all} reads");
    // There is room for the records of one partition and one of the second.
    assert_eq!(fetch(130_000).await, 2);
    let few = reads.load(Ordering::SeqCst);
    assert!(few <= 4, "{few} reads for the records of two partitions");
    // The answer is also complete if the client asks for more bytes than it has room for.
    let all =
        Fetch { from: from.clone(), bytes_min: 130_000, bytes_max: 130_000, wait_max: Duration::from_secs(3_600) };
    let fetched = tokio::time::timeout(Duration::from_secs(60), running.broker.fetch(&all)).await;
    assert!(
        fetched.expect("a full answer is not waited for").iter().any(|of| !of.slice.as_ref().unwrap().runs.is_empty())
    );
    running.stop().await;
}

/// Returns the last record of each key.
fn last_of(records: &[(String, Option<String>)]) -> BTreeMap<String, (i64, Option<String>)> {
    let with_offsets = records.iter().enumerate();
    with_offsets.map(|(at, (key, value))| (key.clone(), (at as i64, value.clone()))).collect()
}

/// A reader that repeatedly reads a partition from start to end while it is compacted.
struct Reader {
    passes: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Reader {
    /// Starts a reader. `written` contains the written keys and values by offset. Each read returns up to `bytes_max`
    /// bytes, or one batch.
    fn start(
        broker: &Broker,
        partition: &Arc<Partition>,
        written: Vec<(String, Option<String>)>,
        bytes_max: usize,
    ) -> Self {
        let (passes, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (broker, partition) = (broker.clone(), partition.clone());
        let (passed, until) = (passes.clone(), enough.clone());
        let thread = std::thread::spawn(move || {
            let last = last_of(&written);
            while !until.load(Ordering::Relaxed) {
                let mut found: BTreeMap<String, i64> = BTreeMap::new();
                let mut from = Offset::ZERO;
                while from < partition.end() {
                    let range = ReadRange { from, until: None, bytes_max, one_at_least: true };
                    let slice = partition.read(broker.store(), range).unwrap();
                    assert!(slice.next > from, "a read at offset {from} must advance");
                    for batch in slice.runs.into_iter().flat_map(split_batches) {
                        let records = batch.unwrap().records(&Limits::default()).unwrap();
                        for record in &records {
                            let record = records.to_record(&record.unwrap());
                            let key = text(record.key.as_ref()).unwrap();
                            // A batch may begin before the requested offset.
                            if record.offset < from.get() {
                                continue;
                            }
                            assert_eq!((&key, &text(record.value.as_ref())), {
                                let (key, value) = &written[record.offset as usize];
                                (key, value)
                            });
                            let before = found.insert(key, record.offset);
                            assert!(before < Some(record.offset), "offsets must increase");
                        }
                    }
                    from = slice.next;
                }
                let expected: BTreeMap<String, i64> = last.iter().map(|(key, (at, _))| (key.clone(), *at)).collect();
                assert_eq!(found, expected, "a reader that reads to the end must see the last record of each key");
                passed.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { passes, enough, thread }
    }

    fn passes(&self) -> u64 {
        assert!(!self.thread.is_finished(), "the reader ended");
        self.passes.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_keeps_the_last_record_of_each_key_where_it_was() {
    let data = tempfile::tempdir().unwrap();
    let held = Held::of_thread("cleaner");
    held.hold();
    let running = Running::open_with(data.path(), 1_000, JOURNAL_BYTES, held.options());
    let settings =
        TopicSettings { cleanup: Cleanup::Compact, delete_retention_ms: Some(5_000), ..TopicSettings::default() };
    let topic = running.topic("t", 1, settings).await;
    let partition = topic.partitions()[0].clone();
    let mut written = Vec::new();
    let write = async |written: &mut Vec<(String, Option<String>)>, from: usize, count: usize| {
        for number in from..from + count {
            let batch: Vec<(String, Option<String>)> = (0..5)
                .map(|index| {
                    let key = (number * 7 + index * 3) % 40;
                    // Ten keys are deleted in the end.
                    let value = (key >= 10).then(|| format!("{number} {index} {}", "v".repeat(300)));
                    (format!("key-{key}"), value)
                })
                .collect();
            let records: Vec<(&str, Option<&str>)> = batch.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
            running.produce(&topic, 0, 500, &records).await;
            written.extend(batch);
        }
    };
    write(&mut written, 0, 150).await;
    running.seal().await;
    let sealed_end = partition.end();
    let readers = [1, 7].map(|bytes_max| Reader::start(&running.broker, &partition, written.clone(), bytes_max));
    wait_until("the readers have read before the compaction", || readers.iter().all(|reader| reader.passes() > 0))
        .await;
    held.release();
    let is_compact = || {
        let size = partition.size();
        size.bytes < 60_000
    };
    wait_until("the partition is compacted", is_compact).await;
    let passes = readers.each_ref().map(Reader::passes);
    // The current pass may have begun before the compaction, but the pass after it began afterwards.
    wait_until("the readers have read after the compaction", || {
        readers.iter().zip(passes).all(|(reader, before)| reader.passes() > before + 1)
    })
    .await;
    for reader in readers {
        reader.stop();
    }
    assert_eq!(partition.end(), sealed_end);
    let expected = last_of(&written);
    let records = read_from(&running.broker, &partition, Offset::ZERO).await;
    let found: BTreeMap<String, (i64, Option<String>)> =
        records.iter().map(|r| (text(r.key.as_ref()).unwrap(), (r.offset, text(r.value.as_ref())))).collect();
    assert_eq!(found, expected, "the last record of each key must remain at its offset, including tombstones");
    assert!(records.len() <= expected.len() + 1, "{} records for {} keys", records.len(), expected.len());
    assert!(records.iter().all(|record| record.timestamp_ms == 500), "timestamps must not change");
    // Reads can start at any offset, even at one whose record is gone.
    for from in 0..partition.end().get() {
        let slice = running
            .broker
            .read(
                &partition,
                ReadRange { from: Offset::new(from).unwrap(), until: None, bytes_max: 1, one_at_least: true },
            )
            .await
            .unwrap();
        assert!(!slice.runs.is_empty() && slice.next.get() > from, "from {from}: {slice:?}");
    }

    // Tombstones are removed after their retention time, even if no more records arrive, and if their segment was
    // merged and the server was restarted before.
    let filler = running.broker.topic("filler").unwrap();
    let mut segments_most = 0;
    let limit = Limit::new("segments are merged");
    loop {
        limit.check();
        let segments = running.broker.store().size().segments;
        if segments < segments_most {
            break;
        }
        segments_most = segments;
        running.produce(&filler, 0, 500, &[("f", Some(&"x".repeat(20_000)))]).await;
    }
    running.stop().await;
    let running = Running::open(data.path(), 1_000 + 5_000 + 60_000);
    let partition = running.broker.topic("t").unwrap().partitions()[0].clone();
    let limit = Limit::new("the tombstones are removed");
    while tombstones(&running.broker, &partition).await.len() > 1 {
        limit.check();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.stop().await;
    // Further records can be written.
    let running = Running::open(data.path(), 100_000);
    let topic = running.broker.topic("t").unwrap();
    let partition = topic.partitions()[0].clone();
    assert_eq!(partition.end(), sealed_end);
    running.produce(&topic, 0, 600, &[("key-20", Some("new")), ("key-0", Some("back"))]).await;
    let records = read_from(&running.broker, &partition, Offset::ZERO).await;
    let last: BTreeMap<String, Option<String>> =
        records.iter().map(|r| (text(r.key.as_ref()).unwrap(), text(r.value.as_ref()))).collect();
    assert_eq!(last["key-20"].as_deref(), Some("new"));
    assert_eq!(last["key-0"].as_deref(), Some("back"));
    for (key, (_, value)) in expected.iter().filter(|(key, _)| !["key-20", "key-0"].contains(&key.as_str())) {
        assert_eq!(last.get(key).cloned().flatten(), *value, "{key}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_at_the_log_start_never_gets_what_follows_instead_of_what_goes() {
    let data = tempfile::tempdir().unwrap();
    let options = StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), ..StoreOptions::default() };
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, options);
    let sized = TopicSettings { retention_bytes: Some(JOURNAL_BYTES), ..Default::default() };
    let topic = running.topic("t", 1, sized).await;
    let partition = topic.partitions()[0].clone();
    let (broker, of_reader) = (running.broker.clone(), partition.clone());
    let ended = Arc::new(AtomicBool::new(false));
    let until = ended.clone();
    let reader = std::thread::spawn(move || {
        let (mut read, mut refused) = (0, 0);
        while !until.load(Ordering::Relaxed) {
            let from = of_reader.start();
            let range = ReadRange { from, until: None, bytes_max: 1, one_at_least: true };
            match of_reader.read(broker.store(), range) {
                Ok(slice) => {
                    let Some(first) = slice.runs.first() else { continue };
                    let first = split_batches(first.clone()).next().unwrap().unwrap();
                    assert_eq!(first.base_offset(), from.get(), "{slice:?}");
                    read += 1;
                }
                Err(BrokerError::OffsetOutOfRange { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        (read, refused)
    });
    let value = "v".repeat(20_000);
    let limit = Limit::new("the log start moves");
    while partition.start().get() < 1_000 {
        limit.check();
        running.produce(&topic, 0, 0, &[("k", Some(&value))]).await;
    }
    ended.store(true, Ordering::Relaxed);
    let (read, refused) = reader.join().unwrap();
    assert!(read > 0, "the reader succeeded {read} times and was too late {refused} times");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_frees_its_segments_and_small_ones_are_merged() {
    let data = tempfile::tempdir().unwrap();
    let running = Running::open(data.path(), 0);
    let gone = running.topic("gone", 1, TopicSettings::default()).await;
    let stays = running.topic("stays", 2, TopicSettings::default()).await;
    let value = "v".repeat(10_000);
    for _ in 0..200 {
        running.produce(&gone, 0, 0, &[("k", Some(&value))]).await;
        running.produce(&stays, 1, 0, &[("k", Some("small"))]).await;
    }
    running.seal().await;
    let partition = stays.partitions()[1].clone();
    wait_until("small segments are merged", || partition.size().segments < 8).await;
    let before = running.broker.store().size();
    running.broker.delete_topic(gone.name()).await.unwrap();
    running.broker.delete_topic(&TopicName::new("filler").unwrap()).await.unwrap();
    wait_until("disk space is freed", || running.broker.store().size().segment_bytes * 10 < before.segment_bytes).await;
    assert_eq!(read_from(&running.broker, &partition, Offset::ZERO).await.len(), 200);
    running.stop().await;
    let files = std::fs::read_dir(data.path().join("segments")).unwrap().count();
    let running = Running::open(data.path(), 0);
    assert_eq!(running.broker.store().size().segments, files, "no segment file may be left over");
    let partition = running.broker.topic("stays").unwrap().partitions()[1].clone();
    assert_eq!(read_from(&running.broker, &partition, Offset::ZERO).await.len(), 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_partitions_have_in_many_segments_is_joined() {
    const PARTITIONS: u32 = 64;
    const RECORDS: usize = 80;
    let data = tempfile::tempdir().unwrap();
    // Parts are a quarter of the journal, 18 MiB, so that no segment counts as small.
    let open = || {
        let options = StoreOptions { extents_max: Some(2 * PARTITIONS as usize), ..StoreOptions::default() };
        Running::open_with(data.path(), 0, 72 << 20, options)
    };
    let mut running = open();
    let topic = running.topic("t", PARTITIONS, TopicSettings::default()).await;
    let value = |partition: u32, number: usize| format!("{partition} {number} {}", "v".repeat(90_000));
    for number in 0..RECORDS {
        let produced = topic.partitions().iter().map(|partition| {
            let value = value(partition.name().partition, number);
            let (running, topic) = (&running, &topic);
            async move { running.produce(topic, partition.name().partition, 0, &[("k", Some(&value))]).await }
        });
        futures::future::join_all(produced).await;
        if number % 4 == 3 {
            let journal_bytes =
                || topic.partitions().iter().map(|partition| partition.size().journal_bytes).sum::<u64>();
            wait_until("a part of the journal is sealed", || journal_bytes() < 18 << 20).await;
        }
    }
    let extents = |running: &Running| {
        let topic = running.broker.topic("t").unwrap();
        topic.partitions().iter().map(|partition| partition.size().segments).sum::<u32>()
    };
    // There are 20 segments. What remains are joined extents, and fewer than the 8 extents that are joined at a time.
    wait_until("extents are joined", || extents(&running) <= 10 * PARTITIONS).await;
    for times in 0..2 {
        for partition in running.broker.topic("t").unwrap().partitions() {
            let records = read_from(&running.broker, partition, Offset::ZERO).await;
            assert_eq!(records.len(), RECORDS, "{}, open {times}", partition.name());
            for (number, record) in records.iter().enumerate() {
                assert!(text(record.value.as_ref()) == Some(value(partition.name().partition, number)));
            }
        }
        running.stop().await;
        running = open();
    }
    assert!(extents(&running) <= 10 * PARTITIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_dropped_and_made_again_keeps_what_it_commits_then() {
    let data = tempfile::tempdir().unwrap();
    let id = GroupId::new("g").unwrap();
    let mut running = Running::open(data.path(), 0);
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    running.produce(&topic, 0, 0, &[("k", Some("v")); 100]).await;
    for round in 0..30 {
        // The filler keeps sealing in progress.
        let topic = running.broker.topic("t").unwrap();
        let filler = tokio::spawn({
            let broker = running.broker.clone();
            async move {
                for _ in 0..100 {
                    let mut builder = BatchBuilder::new(Compression::None);
                    builder.push(0, None, Some(&[b'x'; 20_000]), []);
                    let partition = topic.partition(0).unwrap();
                    let receipt = broker.produce(&topic, partition, vec![builder.finish().unwrap()]).await.unwrap();
                    receipt.await.unwrap();
                }
            }
        });
        let place = TopicPartition { topic: TopicName::new("t").unwrap(), partition: 0 };
        // In most rounds this loop ends while sealing is in progress.
        let group = || running.broker.groups().get_or_create(&id, GroupKind::Consumer).unwrap();
        let mut last = Offset::ZERO;
        for offset in 0..rand::random_range(20..60) {
            last = Offset::new(offset).unwrap();
            running.broker.set_offsets(&group(), &[(place.clone(), Offset::ZERO)]).await.unwrap();
            running.broker.delete_group("g").await.unwrap();
            running.broker.set_offsets(&group(), &[(place.clone(), last)]).await.unwrap();
        }
        filler.await.unwrap();
        // The next part of the journal seals these commits, and contains no later ones for the group.
        running.seal().await;
        running.stop().await;
        running = Running::open(data.path(), 0);
        let group = running.broker.groups().get("g").unwrap_or_else(|_| panic!("round {round}: the group is gone"));
        let topic = running.broker.topic("t").unwrap();
        assert_eq!(group.committed(topic.id(), 0), Some(last), "round {round}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_a_group_up_while_it_is_deleted_keeps_what_it_commits() {
    let data = tempfile::tempdir().unwrap();
    let held = Held::default();
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, held.options());
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    running.produce(&topic, 0, 0, &[("k", Some("v")); 100]).await;
    let place = TopicPartition { topic: TopicName::new("t").unwrap(), partition: 0 };
    let at = |offset| [(place.clone(), Offset::new(offset).unwrap())];
    let (broker, names) = (&running.broker, ["joined", "set", "both", "nobody"]);
    let groups =
        names.map(|name| broker.groups().get_or_create(&GroupId::new(name).unwrap(), GroupKind::Consumer).unwrap());
    let [joined, set, both, nobody] = &groups;
    for group in &groups {
        broker.set_offsets(group, &at(1)).await.unwrap();
    }
    held.hold();
    let deleting = names.map(|name| {
        let broker = broker.clone();
        tokio::spawn(async move { broker.delete_group(name).await })
    });
    wait_until("a commit waits for the disk", || held.is_waited_for()).await;
    let join = |group: &Group, client| {
        broker.join_group(group.id(), new_member(client, [place.topic.clone()].into())).unwrap()
    };
    let (of_joined, member, _events) = join(joined, "c");
    let (of_both, _, _others_events) = join(both, "c");
    let setting = {
        let (broker, set, at) = (broker.clone(), set.clone(), at(2));
        tokio::spawn(async move { broker.set_offsets(&set, &at).await })
    };
    held.release();
    for deleting in deleting {
        // A group that is taken up before its deletion is processed counts as in use.
        let deleted = deleting.await.unwrap();
        assert!(matches!(deleted, Ok(()) | Err(BrokerError::GroupInUse { .. } | BrokerError::StaleGeneration { .. })));
    }
    let was_set = setting.await.unwrap();
    broker.commit_as_member(&of_joined, &member, &at(3)).await.unwrap().await.unwrap();
    // A later member shares the partitions with the first one, and no partition is assigned twice.
    assert_eq!(join(joined, "d").0.members().len(), 2);
    assert!(Arc::ptr_eq(&of_both, &broker.groups().get("both").unwrap()));
    assert!(broker.groups().get("nobody").is_err());
    // A deleted group accepts no more offsets.
    let refused = broker.set_offsets(nobody, &at(4)).await;
    assert!(matches!(refused, Err(BrokerError::UnknownGroup { .. })), "{refused:?}");
    running.seal().await;
    running.stop().await;
    let running = Running::open(data.path(), 0);
    let topic = running.broker.topic("t").unwrap();
    let committed =
        |name: &str| running.broker.groups().get(name).ok().and_then(|group| group.committed(topic.id(), 0));
    assert_eq!(committed("joined"), Offset::new(3));
    assert_eq!(committed("set").is_some(), was_set.is_ok(), "{was_set:?}");
    assert_eq!(committed("nobody"), None);
    running.stop().await;
}

/// A file whose reads fail.
#[derive(Debug)]
struct Unreadable(Box<dyn StoreFile>);

impl StoreFile for Unreadable {}

impl StorageBackend for Unreadable {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.0.len()
    }
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), std::io::Error> {
        Err(std::io::Error::other("a bad sector"))
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), std::io::Error> {
        self.0.close()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_cannot_be_read_keeps_no_others_from_compaction_and_merging() {
    let data = tempfile::tempdir().unwrap();
    let wrap = |path: &Path, file: Box<dyn StoreFile>| -> Box<dyn StoreFile> {
        let is_first = path.file_name().is_some_and(|name| name == "0000000000000000.segment");
        if is_first { Box::new(Unreadable(file)) } else { file }
    };
    let options = StoreOptions { wrap: Some(Arc::new(wrap)), ..StoreOptions::default() };
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, options);
    let compacted = TopicSettings { cleanup: Cleanup::Compact, ..TopicSettings::default() };
    // The cleaner processes this topic before the other one.
    let bad = running.topic("a", 1, compacted.clone()).await;
    for _ in 0..10 {
        running.produce(&bad, 0, 0, &[("k", Some(&"v".repeat(20_000)))]).await;
    }
    running.seal().await;
    let good = running.topic("b", 1, compacted).await;
    let size = || running.broker.store().size();
    for round in 0..40 {
        for _ in 0..5 {
            running.produce(&good, 0, 0, &[("k", Some(&format!("{round} {}", "v".repeat(20_000))))]).await;
        }
        running.seal().await;
    }
    let error = running.broker.read(&bad.partitions()[0], range_of_one()).await.unwrap_err();
    assert!(error.to_string().contains("topic a, partition 0: the records from offset 0 on cannot be read"), "{error}");
    let good = &good.partitions()[0];
    wait_until("the readable segments are compacted", || good.size().bytes < 200_000).await;
    wait_until("the readable segments are merged", || size().segments < 12).await;
    assert_eq!(bad.partitions()[0].end().get(), 10);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_that_knows_few_keys_at_a_time_comes_to_its_end() {
    let data = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        compaction_keys_max: Some(7),
        cleaning_interval: Some(Duration::from_millis(1)),
        ..StoreOptions::default()
    };
    let running = Running::open_with(data.path(), 0, 1 << 20, options);
    let settings = TopicSettings { cleanup: Cleanup::Compact, ..TopicSettings::default() };
    let topic = running.topic("t", 1, settings).await;
    let partition = topic.partitions()[0].clone();
    // A part of the journal, and hence an extent, contains many more keys than a pass can handle.
    let value = "v".repeat(300);
    for number in 0..600 {
        running.produce(&topic, 0, 0, &[(&format!("k{}", number % 60), Some(&value))]).await;
    }
    running.seal().await;
    let is_compact = || partition.size().journal_bytes == 0 && partition.size().bytes < 60 * 400 * 2;
    wait_until("at most half of the remaining records is not compacted", is_compact).await;
    let records = read_from(&running.broker, &partition, Offset::ZERO).await;
    let found: BTreeMap<String, i64> = records.iter().map(|r| (text(r.key.as_ref()).unwrap(), r.offset)).collect();
    let expected: BTreeMap<String, i64> = (0..600).map(|number| (format!("k{}", number % 60), number)).collect();
    assert_eq!(found, expected, "only the last record of each key must remain");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_and_deletion_free_the_disk_while_a_partition_is_compacted() {
    for is_deleted in [false, true] {
        let data = tempfile::tempdir().unwrap();
        let held = Held::of_thread("cleaner");
        held.hold();
        let running = Running::open_with(data.path(), 10_000, JOURNAL_BYTES, held.options());
        let both =
            TopicSettings { cleanup: Cleanup::CompactAndDelete, retention_ms: Some(5_000), ..TopicSettings::default() };
        let compacted = running.topic("compacted", 1, both).await;
        let deletes = TopicSettings { retention_ms: Some(5_000), ..TopicSettings::default() };
        let beside = running.topic("beside", 1, deletes.clone()).await;
        let value = "v".repeat(10_000);
        for round in 0..60 {
            let timestamp_ms = if round < 30 { 10_000 } else { 20_000 };
            running.produce(&compacted, 0, timestamp_ms, &[(&format!("k{}", round % 50), Some(&value))]).await;
            running.produce(&beside, 0, 10_000, &[("k", Some("in the same segments"))]).await;
        }
        running.seal().await;
        wait_until("the partition is compacted", || held.is_waited_for()).await;

        let aged = running.topic("aged", 1, deletes).await;
        let kept = running.topic("kept", 1, TopicSettings::default()).await;
        for _ in 0..60 {
            running.produce(&aged, 0, 10_000, &[("k", Some(&value))]).await;
        }
        for _ in 0..60 {
            running.produce(&kept, 0, 10_000, &[("k", Some("kept"))]).await;
        }
        running.seal().await;
        if is_deleted {
            running.broker.delete_topic(compacted.name()).await.unwrap();
        }
        let bytes = || running.broker.store().size().segment_bytes;
        let before = bytes();
        running.set_ms(16_000);
        let partition = &compacted.partitions()[0];
        wait_until("the records that are too old are gone", || {
            let are_empty = [&beside, &aged].iter().all(|topic| topic.partitions()[0].size().bytes == 0);
            are_empty && (is_deleted || partition.start().get() > 0)
        })
        .await;
        wait_until("disk space is freed", || bytes() + 300_000 < before).await;
        let before = bytes();
        held.release();
        wait_until("the compacted records have replaced the previous ones", || bytes() < before).await;
        let check = async |running: &Running| {
            let kept = running.broker.topic("kept").unwrap();
            assert_eq!(read_from(&running.broker, &kept.partitions()[0], Offset::ZERO).await.len(), 60);
            match running.broker.topic("compacted") {
                Err(error) => assert!(is_deleted, "{error}"),
                Ok(topic) => {
                    let partition = &topic.partitions()[0];
                    assert_eq!((partition.end().get(), is_deleted), (60, false));
                    let found = read_from(&running.broker, partition, partition.start()).await;
                    let offsets: Vec<i64> = found.iter().map(|record| record.offset).collect();
                    // Ten keys have two records.
                    assert!(offsets.ends_with(&(30..60).collect::<Vec<_>>()), "{offsets:?}");
                    assert!(found.iter().all(|record| record.offset >= 10), "{offsets:?}");
                }
            }
        };
        check(&running).await;
        running.stop().await;
        let report = millstream_broker::broker::check::check(data.path(), false).unwrap();
        assert!(report.is_sound(), "{report:#?}");
        let running = Running::open(data.path(), 16_000);
        check(&running).await;
        running.stop().await;
    }
}

fn range_of_one() -> ReadRange {
    ReadRange { from: Offset::ZERO, until: None, bytes_max: 1, one_at_least: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_is_altered_holds_at_once() {
    let data = tempfile::tempdir().unwrap();
    let running = Running::open(data.path(), 100_000);
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    running.produce(&topic, 0, 90_000, &[("k", Some("old"))]).await;
    running.produce(&topic, 0, 99_500, &[("k", Some("new"))]).await;
    let change = TopicAlteration { retention_ms: Change::Set(1_000), ..TopicAlteration::default() };
    let topic = running.broker.alter_topic(topic.name(), &change).await.unwrap();
    let partition = topic.partitions()[0].clone();
    wait_until("the old record is gone", || partition.start().get() == 1).await;
    assert_eq!(read_from(&running.broker, &partition, partition.start()).await.len(), 1);
    running.stop().await;
}

/// Returns the keys of a partition's tombstones.
async fn tombstones(broker: &Broker, partition: &Arc<Partition>) -> BTreeSet<String> {
    let records = read_from(broker, partition, Offset::ZERO).await;
    let of = records.iter().filter(|record| record.value.is_none());
    of.map(|record| text(record.key.as_ref()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_stays_for_its_time_however_often_it_is_compacted_and_goes_then() {
    const DELETE_RETENTION_MS: u64 = 5_000;
    const FIRST_SEEN_MS: i64 = 1_000;
    let due_ms = FIRST_SEEN_MS + DELETE_RETENTION_MS as i64;
    let data = tempfile::tempdir().unwrap();
    let options = StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), ..StoreOptions::default() };
    let running = Running::open_with(data.path(), FIRST_SEEN_MS, JOURNAL_BYTES, options);
    let settings = TopicSettings {
        cleanup: Cleanup::Compact,
        delete_retention_ms: Some(DELETE_RETENTION_MS),
        ..TopicSettings::default()
    };
    let topic = running.topic("t", 1, settings).await;
    let partition = topic.partitions()[0].clone();
    let value = "v".repeat(1_000);
    for number in 0..50 {
        running.produce(&topic, 0, 0, &[(&format!("gone-{}", number % 5), Some(&value))]).await;
    }
    let gone: BTreeSet<String> = (0..5).map(|number| format!("gone-{number}")).collect();
    for key in &gone {
        running.produce(&topic, 0, 0, &[(key, None)]).await;
    }
    running.produce(&topic, 0, 0, &[("last", Some("is never removed"))]).await;
    // Compaction sees the tombstones now, and again one millisecond before their time, each time with new records.
    let mut seen = 0;
    for now_ms in [FIRST_SEEN_MS, FIRST_SEEN_MS + 1, due_ms - 1] {
        running.set_ms(now_ms);
        running.seal().await;
        let is_compact = || partition.size().bytes < 4_000;
        wait_until("the partition is compacted", is_compact).await;
        assert_eq!(
            tombstones(&running.broker, &partition).await,
            gone,
            "the tombstones are due at {due_ms}, but some are gone at {now_ms}"
        );
        // A pass that sees no new tombstones keeps the existing ones too.
        for number in 0..50 {
            let key = format!("other-{}", number % 2);
            running.produce(&topic, 0, 0, &[(&key, Some(&format!("{now_ms} {number} {value}")))]).await;
        }
        seen += 1;
    }
    assert_eq!(seen, 3);
    running.seal().await;
    wait_until("the partition is compacted", || partition.size().bytes < 4_000).await;
    assert_eq!(
        tombstones(&running.broker, &partition).await,
        gone,
        "the tombstones must remain until a millisecond before their time"
    );
    // From now on no records arrive.
    running.set_ms(due_ms);
    let limit = Limit::new("the tombstones are removed when they are due");
    while !tombstones(&running.broker, &partition).await.is_empty() {
        limit.check();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let keys: BTreeSet<String> = read_from(&running.broker, &partition, Offset::ZERO)
        .await
        .iter()
        .map(|record| text(record.key.as_ref()).unwrap())
        .collect();
    assert_eq!(keys, ["last", "other-0", "other-1"].map(str::to_owned).into(), "no other record may be removed");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repartition_topic_keeps_what_was_not_read_a_round_before() {
    let data = tempfile::tempdir().unwrap();
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, every_millisecond());
    let rounds = Rounds::hold(&running.clock);
    let name = TopicName::new("t").unwrap();
    let topic = running.broker.create_topic(&name, 1, TopicSettings::default(), true).await.unwrap();
    let partition = topic.partitions()[0].clone();
    for _ in 0..10 {
        running.produce(&topic, 0, 0, &[("k", Some("v"))]).await;
    }
    let groups = ["reads", "looks"]
        .map(|id| running.broker.groups().get_or_create(&GroupId::new(id).unwrap(), GroupKind::Consumer).unwrap());
    let place = TopicPartition { topic: name, partition: 0 };
    let commit = async |group: &Arc<Group>, offset: i64| {
        running.broker.set_offsets(group, &[(place.clone(), Offset::new(offset).unwrap())]).await.unwrap();
    };
    let start = || partition.start().get();
    rounds.make_one().await;
    rounds.make_one().await;
    assert_eq!(start(), 0, "no group has read anything");
    commit(&groups[0], 3).await;
    rounds.make_one().await;
    assert_eq!(start(), 0, "the records were only read since the last round");
    commit(&groups[0], 6).await;
    rounds.make_one().await;
    assert_eq!(start(), 3, "exactly the records that were read at the last round must be removed");
    // Another group reads too, and is further behind.
    commit(&groups[1], 4).await;
    rounds.make_one().await;
    assert_eq!(start(), 4, "records that one of the groups has not read must remain");
    commit(&groups[0], 10).await;
    commit(&groups[1], 10).await;
    rounds.make_one().await;
    assert_eq!(start(), 4, "the records were not read yet at the last round");
    rounds.make_one().await;
    assert_eq!(start(), 10);
    rounds.release();
    running.stop().await;
}

/// Returns options with which retention, merging and compaction run continuously.
fn every_millisecond() -> StoreOptions {
    StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), ..StoreOptions::default() }
}

// ---- remains of a deleted topic

/// Numbers of rows that belong to a topic in the tables of offsets, producers and log starts.
#[derive(Debug, Default, PartialEq, Eq)]
struct RowsOf {
    offsets: usize,
    producers: usize,
    log_starts: usize,
}

fn rows_of(data: &Path, topic: u32) -> RowsOf {
    // The copy is a database that was closed in an orderly way, or one as it is after a kill.
    let copy = tempfile::tempdir().unwrap();
    super::check::copy_folder(data, copy.path());
    let database = |name: &str| redb::Database::open(copy.path().join(name)).unwrap().begin_read().unwrap();
    let keys = |name: &str| -> Vec<Vec<u8>> {
        let table = TableDefinition::<&[u8], &[u8]>::new(name);
        match database("tables.redb").open_table(table) {
            Ok(table) => table.iter().unwrap().map(|row| row.unwrap().0.value().to_vec()).collect(),
            Err(redb::TableError::TableDoesNotExist(_)) => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    };
    let of_topic = |bytes: &[u8]| bytes == topic.to_be_bytes();
    let log_starts = match database("millstream.redb").open_table(TableDefinition::<(u32, u32), i64>::new("log-starts"))
    {
        Ok(table) => table.iter().unwrap().filter(|row| row.as_ref().unwrap().0.value().0 == topic).count(),
        Err(redb::TableError::TableDoesNotExist(_)) => 0,
        Err(error) => panic!("{error}"),
    };
    RowsOf {
        // Key: group, 0, topic, partition.
        offsets: keys("offsets").iter().filter(|key| of_topic(&key[key.len() - 8..key.len() - 4])).count(),
        // Key: topic, partition, producer.
        producers: keys("producers").iter().filter(|key| of_topic(&key[..4])).count(),
        log_starts,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_deleted_topic_in_the_tables_also_where_the_server_was_killed() {
    for is_killed in [false, true] {
        let data = tempfile::tempdir().unwrap();
        let running = Running::open_with(data.path(), 10_000, JOURNAL_BYTES, every_millisecond());
        let retained = TopicSettings { retention_ms: Some(5_000), ..TopicSettings::default() };
        let topics = [running.topic("gone", 1, retained.clone()).await, running.topic("stays", 1, retained).await];
        let id = running.broker.init_producer(None).await.unwrap();
        let group = running.broker.groups().get_or_create(&GroupId::new("g").unwrap(), GroupKind::Consumer).unwrap();
        for topic in &topics {
            for (number, timestamp_ms) in [1_000, 10_000].into_iter().enumerate() {
                let mut builder = BatchBuilder::new(Compression::None);
                builder.set_producer(id.id.get(), id.epoch, number as i32);
                builder.push(timestamp_ms, Some(b"k"), Some(b"v"), []);
                append(&running.broker, topic, 0, builder.finish().unwrap()).await.unwrap();
            }
            let partition = &topic.partitions()[0];
            wait_until("the old record is gone", || partition.start().get() == 1).await;
            running.broker.set_offsets(&group, &[(partition.name().clone(), partition.end())]).await.unwrap();
        }
        running.seal().await;
        running.stop().await;
        let [gone, stays] = topics.map(|topic| topic.id().0);
        let one_each = || RowsOf { offsets: 1, producers: 1, log_starts: 1 };
        assert_eq!((rows_of(data.path(), gone), rows_of(data.path(), stays)), (one_each(), one_each()));

        let running = Running::open(data.path(), 10_000);
        running.broker.delete_topic(&TopicName::new("gone").unwrap()).await.unwrap();
        let mut place = data.path().to_owned();
        let killed = tempfile::tempdir().unwrap();
        if is_killed {
            // The copy is from before the next part of the journal is sealed.
            super::check::copy_folder(&place, killed.path());
            running.stop().await;
            place = killed.path().to_owned();
            Running::open(&place, 10_000).stop().await;
        } else {
            let stays = running.broker.topic("stays").unwrap();
            running.produce(&stays, 0, 10_000, &[("k", Some("to be sealed"))]).await;
            running.seal().await;
            running.stop().await;
        }
        assert_eq!(rows_of(&place, gone), RowsOf::default(), "killed: {is_killed}");
        assert_eq!(rows_of(&place, stays), one_each(), "killed: {is_killed}");
    }
}

/// Begins to delete topic `t`, and returns once its partitions are marked as deleted.
async fn begin_to_delete(broker: &Broker, partition: &Partition) -> tokio::task::JoinHandle<Result<(), BrokerError>> {
    let broker = broker.clone();
    let deleting = tokio::spawn(async move { broker.delete_topic(&TopicName::new("t").unwrap()).await });
    wait_until("the partition is marked as deleted", || partition.is_deleted()).await;
    deleting
}

/// Blocks the committer during a commit of a record with this timestamp.
async fn hold_committer(
    running: &Running,
    held: &Held,
    topic: &Arc<Topic>,
    timestamp_ms: i64,
) -> tokio::task::JoinHandle<()> {
    held.hold();
    let (broker, topic) = (running.broker.clone(), topic.clone());
    let batch = batch_of_one(timestamp_ms, "k", Some("v"));
    let busy = tokio::spawn(async move { append(&broker, &topic, 0, batch).await.unwrap() });
    wait_until("a commit is in progress", || held.is_waited_for()).await;
    busy
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_committed_behind_its_topics_deletion_is_refused_and_leaves_nothing() {
    let data = tempfile::tempdir().unwrap();
    let held = Held::of_thread("committer");
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, held.options());
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    let other = running.topic("other", 1, TopicSettings::default()).await;
    let group = running.broker.groups().get_or_create(&GroupId::new("g").unwrap(), GroupKind::Consumer).unwrap();
    for topic in [&topic, &other] {
        running.produce(topic, 0, 0, &[("k", Some("v"))]).await;
    }
    let busy = hold_committer(&running, &held, &topic, 0).await;
    let partition = &topic.partitions()[0];
    let deleting = begin_to_delete(&running.broker, partition).await;
    let first = Offset::new(1).unwrap();
    let offsets = [(partition.name().clone(), first)];
    let broker = running.broker.clone();
    let mut committing = std::pin::pin!(broker.set_offsets(&group, &offsets));
    // The topic can still be looked up by name, so it is the committer that refuses the offset.
    assert!(futures::poll!(&mut committing).is_pending());
    held.release();
    busy.await.unwrap();
    deleting.await.unwrap().unwrap();
    let refused = committing.await;
    assert!(matches!(&refused, Err(BrokerError::UnknownTopic { topic }) if topic == "t"), "{refused:?}");
    assert_eq!(group.all_committed(), []);
    running.broker.set_offsets(&group, &[(other.partitions()[0].name().clone(), first)]).await.unwrap();
    running.seal().await;
    running.stop().await;
    assert_eq!(rows_of(data.path(), topic.id().0), RowsOf::default());
    assert_eq!(rows_of(data.path(), other.id().0).offsets, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_start_that_moves_while_its_topic_is_deleted_leaves_nothing() {
    const ROUNDS: i64 = 20;
    let data = tempfile::tempdir().unwrap();
    let held = Held::of_thread("committer");
    let options = StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), ..held.options() };
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, options);
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    running.clock.on_asked(move |thread| {
        if thread == "retention" {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut ids = Vec::new();
    for round in 1..=ROUNDS {
        let now_ms = round * 10_000;
        running.set_ms(now_ms);
        let retained = TopicSettings { retention_ms: Some(5_000), ..TopicSettings::default() };
        let topic = running.topic("t", 1, retained).await;
        ids.push(topic.id().0);
        running.produce(&topic, 0, now_ms, &[("k", Some("v"))]).await;
        let busy = hold_committer(&running, &held, &topic, now_ms).await;
        let deleting = begin_to_delete(&running.broker, &topic.partitions()[0]).await;
        // Retention still sees the topic, and requests a commit after that of the deletion.
        let before = asked.load(Ordering::SeqCst);
        running.set_ms(now_ms + 6_000);
        wait_until("retention begins another round", || asked.load(Ordering::SeqCst) > before).await;
        held.release();
        busy.await.unwrap();
        deleting.await.unwrap().unwrap();
    }
    running.stop().await;
    for id in ids {
        assert_eq!(rows_of(data.path(), id), RowsOf::default(), "topic {id}");
    }
    let report = millstream_broker::broker::check::check(data.path(), false).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}
