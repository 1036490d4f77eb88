//! Data directories written by earlier versions, one for each format, which are kept under `tests/golden/`. The current
//! version opens a copy, reads all of it, and continues to use it. Next to each directory is a manifest of its contents
//! as read by the version that wrote it.
//!
//! A new format needs a new directory, which `MILLSTREAM_WRITE_GOLDEN=1 cargo xtask test golden` writes. The directory
//! of a supported format must never be written again, because then nothing would show that existing data can still be
//! read.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use millstream_broker::broker::check::check;
use millstream_broker::groups::GroupKind;
use millstream_broker::log::topic::{Change, Cleanup, TopicAlteration, TopicSettings};
use millstream_broker::name::{ProducerId, ProducerIdentity};
use millstream_broker::store::backup::{BackupFolder, Piece, Snapshot, restore};
use millstream_broker::store::{StoreError, StoreOptions};
use millstream_broker::{Broker, BrokerSettings, GroupId, Offset, TopicName, TopicPartition};
use millstream_record::{BatchBuilder, Compression, RecordBatch};
use millstream_runtime::{Runtime, RuntimeSettings};
use millstream_tests::instance::{Instance, wait_until};
use millstream_tests::root;
use millstream_tests::running::{Limit, SetClock, append, batch_of_one, journal_bytes, read_from, text};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use super::exactly_once::settled;

/// The time at which the directory was written, as its topics and producers know it.
const NOW_MS: i64 = 1_700_000_000_000;

/// A small journal, so that there are many segments.
const JOURNAL_BYTES: u64 = 64 << 10;

/// Minimum number of segments in a directory.
const SEGMENTS: usize = 3;

const PIPELINE: &str = "pipeline: p\nfrom: lines\nstages:\n- map: words\n- aggregate: count\nto: counts\n";
const PAUSED: &str = "pipeline: paused\nfrom: kept\nstages:\n- aggregate: count\nto: kept-counts\n";

/// The contents of a directory.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Held {
    topics: BTreeMap<String, HeldTopic>,
    /// Kind and committed offsets by partition, by group.
    groups: BTreeMap<String, (String, BTreeMap<String, i64>)>,
    /// Accumulators by key, in hexadecimal digits, by store and partition.
    state: BTreeMap<String, BTreeMap<String, String>>,
    /// Pipeline file and state, by name.
    pipelines: BTreeMap<String, (String, String)>,
    /// Hashes, by reference.
    modules: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct HeldTopic {
    settings: serde_json::Value,
    internal: bool,
    partitions: Vec<HeldPartition>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct HeldPartition {
    start: i64,
    end: i64,
    /// Offset, timestamp, key and value.
    records: Vec<(i64, i64, Option<String>, Option<String>)>,
}

/// A stored batch of an idempotent producer, which the partition remembers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HeldBatch {
    topic: String,
    partition: u32,
    producer_id: i64,
    epoch: i16,
    sequence: i32,
    records: i32,
    base_offset: i64,
}

/// The manifest of a directory.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: String,
    held: Held,
    /// The last batches of each producer.
    batches: Vec<HeldBatch>,
}

/// Whether retention, compaction and merging run continuously or not at all.
#[derive(Clone, Copy, PartialEq)]
enum Cleaning {
    AllTheTime,
    Never,
}

fn open(data: &Path, cleaning: Cleaning) -> Result<Instance, StoreError> {
    let interval = match cleaning {
        Cleaning::AllTheTime => Duration::from_millis(1),
        Cleaning::Never => Duration::from_secs(24 * 3600),
    };
    let mut registry = Registry::default();
    let settings = BrokerSettings { journal_bytes_max: JOURNAL_BYTES, ..BrokerSettings::default() };
    let options = StoreOptions {
        // A small tail makes most reads go to the disk.
        tail_bytes_max: Some(1_000),
        cleaning_interval: Some(interval),
        ..StoreOptions::default()
    };
    let clock = Arc::new(SetClock::new(NOW_MS));
    let broker = Broker::open(data, settings, options, clock, &mut registry)?;
    let runtime = Runtime::open(broker.clone(), RuntimeSettings::default(), &mut registry).unwrap();
    Ok(Instance { broker, runtime })
}

// ---- reading

async fn held(instance: &Instance) -> Held {
    let mut found = Held::default();
    let mut names = BTreeMap::new();
    for topic in instance.broker.topics() {
        let mut partitions = Vec::new();
        for partition in topic.partitions() {
            names.insert((topic.id(), partition.name().partition), partition.name().to_string());
            let records = read_from(&instance.broker, partition, partition.start()).await;
            let record = |record: &millstream_record::Record| {
                (record.offset, record.timestamp_ms, text(record.key.as_ref()), text(record.value.as_ref()))
            };
            partitions.push(HeldPartition {
                start: partition.start().get(),
                end: partition.end().get(),
                records: records.iter().map(record).collect(),
            });
        }
        let meta = topic.meta();
        let settings = serde_json::to_value(&meta.settings).unwrap();
        let topic_held = HeldTopic { settings, internal: meta.internal, partitions };
        found.topics.insert(topic.name().to_string(), topic_held);
    }
    for group in instance.broker.groups().all() {
        let offsets = group.all_committed().into_iter();
        let offsets = offsets.map(|(topic, partition, at)| (names[&(topic, partition)].clone(), at.get())).collect();
        found.groups.insert(group.id().to_string(), (format!("{:?}", group.kind()), offsets));
    }
    for pipeline in instance.runtime.pipelines() {
        let state = format!("{:?}", pipeline.state());
        found.pipelines.insert(pipeline.name().to_owned(), (pipeline.yaml(), state));
        for stage in pipeline.stages() {
            let store = format!("{}/{}", pipeline.name(), stage.name());
            for number in 0..4 {
                let entries = instance.broker.state().partition(&store, number).scan(b"", usize::MAX).unwrap();
                let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                let entries: BTreeMap<_, _> = entries
                    .iter()
                    .map(|(key, accumulator)| (String::from_utf8(key.clone()).unwrap(), digits(accumulator)))
                    .collect();
                if !entries.is_empty() {
                    found.state.insert(format!("{store} {number}"), entries);
                }
            }
        }
    }
    for module in instance.runtime.modules().all() {
        found.modules.insert(module.reference.clone(), module.hash.to_string());
    }
    found
}

fn format_of(data: &Path) -> String {
    fs::read_to_string(data.join("FORMAT")).unwrap().trim().to_owned()
}

// ---- writing

fn batch_of(of: &HeldBatch) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::Zstd);
    builder.set_producer(of.producer_id, of.epoch, of.sequence);
    for number in of.sequence..of.sequence + of.records {
        let (key, value) = (format!("k{}", number % 7), format!("{} {} {number}", of.producer_id, of.epoch));
        builder.push(NOW_MS + i64::from(number), Some(key.as_bytes()), Some(value.as_bytes()), []);
    }
    builder.finish().unwrap()
}

/// Appends a batch of a producer. Returns the batch with its offset.
async fn append_numbered(broker: &Broker, mut of: HeldBatch) -> HeldBatch {
    let topic = broker.topic(&of.topic).unwrap();
    let partition = topic.partition(of.partition).unwrap();
    let receipt = broker.produce(&topic, partition, vec![batch_of(&of)]).await.unwrap();
    of.base_offset = receipt.await.unwrap().base_offsets[0].get();
    of
}

async fn commit(broker: &Broker, group: &str, topic: &str, partition: u32, offset: i64) {
    let group = broker.groups().get_or_create(&GroupId::new(group).unwrap(), GroupKind::Consumer).unwrap();
    let place = TopicPartition { topic: TopicName::new(topic).unwrap(), partition };
    broker.set_offsets(&group, &[(place, Offset::new(offset).unwrap())]).await.unwrap();
}

/// The size of a round.
#[derive(Clone, Copy, PartialEq)]
enum Size {
    /// A whole part of the journal.
    Large,
    /// A fraction of a part.
    Small,
}

/// Writes one round of records to every topic, with all compressions, and with and without keys, headers and values.
async fn write_round(broker: &Broker, round: i64, size: Size) {
    const COMPRESSIONS: [Compression; 5] =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for topic in broker.topics().iter().filter(|topic| !topic.meta().internal) {
        let name = topic.name().as_str();
        if ["counts", "kept-counts"].contains(&name) {
            continue;
        }
        for partition in 0..topic.partition_count() {
            let mut builder = BatchBuilder::new(COMPRESSIONS[(round as usize + partition as usize) % 5]);
            for number in 0..5 {
                let key = format!("{name}-{}", (round * 3 + number) % 11);
                let value = format!("{name} {partition} {round} {number} {}", "- ".repeat(60));
                let is_keyed = topic.meta().settings.cleanup.compacts() || name == "kept" || number != 4;
                let is_tombstone = name != "lines" && number == 3;
                builder.push(
                    NOW_MS - 10_000 + round * 100 + number,
                    is_keyed.then_some(key.as_bytes()),
                    (!is_tombstone).then_some(value.as_bytes()),
                    [("h", Some(&b"header"[..])), ("null", None)],
                );
            }
            append(broker, topic, partition, builder.finish().unwrap()).await.unwrap();
        }
        if name == "sized" && size == Size::Large {
            // This is more than the topic's retention keeps, and more than the journal holds.
            for _ in 0..3 {
                let large = batch_of_one(NOW_MS + round, "large", Some(&format!("{round} ").repeat(1_500)));
                append(broker, topic, 0, large).await.unwrap();
            }
        }
    }
}

/// Writes a new directory that contains something of everything, and closes it in an orderly way.
async fn write(data: &Path) -> Manifest {
    let instance = open(data, Cleaning::AllTheTime).unwrap();
    let broker = &instance.broker;
    let topic = async |name: &str, partitions: u32, settings: TopicSettings| {
        broker.create_topic(&TopicName::new(name).unwrap(), partitions, settings, false).await.unwrap()
    };
    let retention_bytes = Some(JOURNAL_BYTES);
    topic("lines", 2, TopicSettings::default()).await;
    topic("kept", 3, TopicSettings { batch_bytes_max: Some(100_000), ..Default::default() }).await;
    topic("sized", 1, TopicSettings { retention_bytes, ..Default::default() }).await;
    topic("aged", 1, TopicSettings { retention_ms: Some(9_000), ..Default::default() }).await;
    let compacted = TopicSettings { cleanup: Cleanup::Compact, delete_retention_ms: Some(1_000), ..Default::default() };
    topic("compacted", 1, compacted).await;
    let both = TopicSettings {
        cleanup: Cleanup::CompactAndDelete,
        retention_ms: Some(36_000_000),
        retention_bytes: Some(4 * JOURNAL_BYTES),
        delete_retention_ms: Some(2_000),
        batch_bytes_max: Some(200_000),
        ..Default::default()
    };
    topic("both", 2, both).await;
    topic("gone", 2, TopicSettings::default()).await;
    topic("grown", 1, TopicSettings::default()).await;
    for module in ["words", "count"] {
        instance.push(module).await;
    }
    instance.apply(PIPELINE).await;
    let mut batches = Vec::new();
    let identity = |ProducerIdentity { id, epoch }: ProducerIdentity| (id.get(), epoch);
    let first = broker.init_producer(None).await.unwrap();
    let second = broker.init_producer(None).await.unwrap();
    let again = broker.init_producer(Some(second)).await.unwrap();
    let start = |name: &str| broker.topic(name).unwrap().partitions()[0].start().get();
    for round in 0..40 {
        if round == 10 {
            // All that there is now is too old. Later it could be in one segment with records that are not.
            wait_until("retention has deleted old records", || start("aged") > 0).await;
        }
        write_round(broker, round, Size::Large).await;
        for (producer, partition) in [(first, 0), (if round < 20 { second } else { again }, 1)] {
            let (producer_id, epoch) = identity(producer);
            let sequence = (if epoch > 0 { round - 20 } else { round }) as i32 * 3;
            let topic = "kept".to_owned();
            let batch = HeldBatch { topic, partition, producer_id, epoch, sequence, records: 3, base_offset: 0 };
            batches.push(append_numbered(broker, batch).await);
        }
        if round == 10 {
            commit(broker, "readers", "kept", 0, 7).await;
            commit(broker, "readers", "lines", 1, 3).await;
            commit(broker, "dropped", "kept", 0, 1).await;
            commit(broker, "of-gone", "gone", 0, 1).await;
            broker.alter_topic(&TopicName::new("grown").unwrap(), &grow(3)).await.unwrap();
        }
        if round == 20 {
            broker.delete_topic(&TopicName::new("gone").unwrap()).await.unwrap();
            broker.delete_group("dropped").await.unwrap();
        }
    }
    instance.apply(PAUSED).await;
    settled(&instance).await;
    instance.runtime.pause("paused").await.unwrap();
    wait_until("retention has deleted records", || start("sized") > 0 && start("aged") > 0).await;
    let compacted = broker.topic("compacted").unwrap().partitions()[0].clone();
    let limit = Limit::new("compaction has removed records");
    while read_from(broker, &compacted, Offset::ZERO).await.len() as i64 == compacted.end().get() {
        limit.check();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    instance.stop().await;

    // The last records stay in the journal, in addition to the sealed ones.
    let instance = open(data, Cleaning::Never).unwrap();
    let broker = &instance.broker;
    let limit = Limit::new("there are segments, and the journal is not empty");
    let mut round = 40;
    loop {
        limit.check();
        let segments = broker.store().size().segments;
        // The journal is far from being sealed.
        let is_left = (1..JOURNAL_BYTES / 8).contains(&journal_bytes(broker, |_| true));
        if segments >= SEGMENTS && is_left {
            break;
        }
        // Large rounds are sealed at once, and small rounds stay in the journal.
        let size = if segments < SEGMENTS { Size::Large } else { Size::Small };
        write_round(broker, round, size).await;
        settled(&instance).await;
        round += 1;
    }
    commit(broker, "readers", "kept", 0, 9).await;
    commit(broker, "others", "sized", 0, broker.topic("sized").unwrap().partitions()[0].start().get()).await;
    settled(&instance).await;
    assert!(journal_bytes(broker, |_| true) > 0, "the journal must not be empty");
    // The last batches of each producer, as many as a partition remembers at most.
    let batches = [0, 1].map(|partition| {
        let of = batches.iter().filter(|batch| batch.partition == partition);
        of.rev().take(5).cloned().collect::<Vec<_>>()
    });
    let manifest = Manifest { format: format_of(data), held: held(&instance).await, batches: batches.concat() };
    instance.stop().await;
    manifest
}

fn grow(partitions: u32) -> TopicAlteration {
    TopicAlteration { partitions: Some(partitions), ..TopicAlteration::default() }
}

// ---- what must hold

/// Decodes a count as the module stores it, which is postcard's variable-length integer.
fn stored_count(digits: &str) -> usize {
    let bytes = (0..digits.len()).step_by(2).map(|at| usize::from_str_radix(&digits[at..at + 2], 16).unwrap());
    bytes.rev().fold(0, |count, byte| count << 7 | byte & 0x7f)
}

/// Counts the words of all lines.
fn words(held: &Held) -> BTreeMap<String, usize> {
    let mut words = BTreeMap::new();
    for (_, _, _, value) in held.topics["lines"].partitions.iter().flat_map(|partition| &partition.records) {
        let line = value.as_ref().unwrap();
        for word in line.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty()) {
            *words.entry(word.to_owned()).or_default() += 1;
        }
    }
    words
}

fn counted(held: &Held) -> BTreeMap<String, usize> {
    let of = held.state.iter().filter(|(store, _)| store.starts_with("p/"));
    of.flat_map(|(_, entries)| entries).map(|(key, digits)| (key.clone(), stored_count(digits))).collect()
}

/// Checks that a copy of a directory is sound, holds what its manifest says, and can still be used.
async fn check_goes_on(data: &Path, manifest: &Manifest) {
    let report = check(data, false).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    for times in 0..2 {
        let instance = open(data, Cleaning::Never).unwrap();
        settled(&instance).await;
        let found = held(&instance).await;
        for (name, topic) in &manifest.held.topics {
            assert_eq!(Some(topic), found.topics.get(name), "topic {name}, open {times}");
        }
        assert_eq!(found, manifest.held, "open {times}");
        assert_eq!(counted(&found), words(&found));
        // Batches that idempotent producers sent before are recognized, and answered with their offsets.
        for batch in &manifest.batches {
            let again = append_numbered(&instance.broker, batch.clone()).await;
            assert_eq!(again.base_offset, batch.base_offset, "{batch:?}");
        }
        assert_eq!(held(&instance).await.topics, found.topics, "no record may be stored twice");
        instance.stop().await;
    }

    // The directory can be used further, including the cleaning of old records.
    let instance = open(data, Cleaning::AllTheTime).unwrap();
    let broker = &instance.broker;
    for producer in manifest.batches.chunk_by(|a, b| a.partition == b.partition) {
        let last = producer.iter().max_by_key(|batch| batch.sequence).unwrap();
        let next = HeldBatch { sequence: last.sequence + last.records, ..last.clone() };
        let end = broker.topic(&next.topic).unwrap().partition(next.partition).unwrap().end().get();
        assert_eq!(append_numbered(broker, next).await.base_offset, end, "the next batch must be appended");
    }
    let sealed = broker.store().size().segment_bytes;
    for round in 41..71 {
        write_round(broker, round, Size::Large).await;
    }
    commit(broker, "readers", "kept", 0, 20).await;
    broker.alter_topic(&TopicName::new("grown").unwrap(), &grow(4)).await.unwrap();
    let keep_more = TopicAlteration { retention_bytes: Change::Set(8 * JOURNAL_BYTES), ..Default::default() };
    broker.alter_topic(&TopicName::new("sized").unwrap(), &keep_more).await.unwrap();
    broker.create_topic(&TopicName::new("new").unwrap(), 1, TopicSettings::default(), false).await.unwrap();
    let fresh = broker.init_producer(None).await.unwrap();
    let handed_out = manifest.batches.iter().filter_map(|batch| ProducerId::new(batch.producer_id));
    assert!(handed_out.max() < Some(fresh.id), "a new producer must not get an id that was already handed out");
    instance.runtime.resume("paused").await.unwrap();
    settled(&instance).await;
    wait_until("more of the journal is sealed", || broker.store().size().segment_bytes != sealed).await;
    instance.stop().await;

    let instance = open(data, Cleaning::Never).unwrap();
    settled(&instance).await;
    let before = held(&instance).await;
    assert_eq!(counted(&before), words(&before), "the pipeline must have processed each record exactly once");
    let lines = |held: &Held| held.topics["lines"].partitions[0].records.clone();
    assert!(
        lines(&before).starts_with(&lines(&manifest.held)),
        "the existing records must remain, with the new ones after them"
    );
    assert!(lines(&before).len() > lines(&manifest.held).len());
    let lag = instance.broker.group_offsets(instance.runtime.pipeline("paused").unwrap().group());
    assert!(lag.iter().all(|offset| offset.lag == 0), "{lag:?}");
    instance.stop().await;
    let report = check(data, false).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    let instance = open(data, Cleaning::Never).unwrap();
    settled(&instance).await;
    assert_eq!(held(&instance).await, before);
    instance.stop().await;
}

fn run(command: &mut Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn golden() -> PathBuf {
    root().join("tests/golden")
}

/// Packs a data directory and a backup of it, each into an archive with the manifest.
async fn pack(folder: &Path, manifest: &Manifest) {
    let number = manifest.format.rsplit(' ').next().unwrap();
    fs::create_dir_all(golden()).unwrap();
    fs::write(folder.join("manifest.json"), serde_json::to_vec(manifest).unwrap()).unwrap();
    pack_folder(folder, "data", &format!("format-{number}.tar.gz"));
    let instance = open(&folder.join("data"), Cleaning::Never).unwrap();
    let store = instance.broker.store().clone();
    let to = folder.join("backup");
    tokio::task::spawn_blocking(move || {
        let mut backup = BackupFolder::create(&to).unwrap();
        let write = |piece: Piece| {
            backup.write(&piece.file, piece.offset, &piece.bytes).unwrap();
            ControlFlow::Continue(())
        };
        let written = Snapshot::take(&store, NOW_MS).unwrap().copy(write).unwrap();
        backup.finish(&written).unwrap();
    })
    .await
    .unwrap();
    instance.stop().await;
    pack_folder(folder, "backup", &format!("backup-format-{number}.tar.gz"));
}

fn pack_folder(folder: &Path, name: &str, archive: &str) {
    // Another process must not find a lock of this one.
    let _ = fs::remove_file(folder.join(name).join("LOCK"));
    let tar = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-cf", "golden.tar"];
    run(Command::new("tar").current_dir(folder).args(tar).args([name, "manifest.json"]));
    run(Command::new("gzip").current_dir(folder).args(["-9nf", "golden.tar"]));
    let file = golden().join(archive);
    fs::copy(folder.join("golden.tar.gz"), &file).unwrap();
    println!("{} has {} bytes", file.display(), fs::metadata(&file).unwrap().len());
}

/// The golden archives whose names begin like this, unpacked, with their manifests.
fn unpacked(begin: &str) -> Vec<(PathBuf, tempfile::TempDir, Manifest)> {
    let archives = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    let named = archives.filter(|archive| archive.file_name().unwrap().to_str().unwrap().starts_with(begin));
    named
        .map(|archive| {
            let folder = tempfile::tempdir().unwrap();
            run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()));
            let manifest = fs::read(folder.path().join("manifest.json")).unwrap();
            (archive, folder, serde_json::from_slice(&manifest).unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_this_version_holds_what_was_written_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let manifest = write(&data).await;
    if std::env::var_os("MILLSTREAM_WRITE_GOLDEN").is_some() {
        pack(folder.path(), &manifest).await;
    }
    check_goes_on(&data, &manifest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_earlier_versions_are_read_and_go_on_or_are_refused_by_their_format() {
    let fresh = tempfile::tempdir().unwrap();
    let instance = open(fresh.path(), Cleaning::Never).unwrap();
    instance.stop().await;
    let format = format_of(fresh.path());
    let mut same_format = 0;
    for (archive, folder, manifest) in unpacked("format-") {
        let data = folder.path().join("data");
        assert_eq!(format_of(&data), manifest.format);
        if manifest.format == format {
            same_format += 1;
            check_goes_on(&data, &manifest).await;
        } else {
            let refused = open(&data, Cleaning::Never).unwrap_err();
            assert!(matches!(refused, StoreError::Format { .. }), "{}: {refused}", archive.display());
            let refused = refused.to_string();
            assert!(refused.contains("nothing was changed") && refused.contains("restore the backup"), "{refused}");
        }
    }
    assert!(same_format > 0, "there must be a directory with {format:?} that an earlier version wrote");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_of_this_format_and_of_the_one_before_are_restored_and_go_on() {
    let mut formats = Vec::new();
    for (_, folder, manifest) in unpacked("backup-format-") {
        let (from, data) = (folder.path().join("backup"), folder.path().join("data"));
        let restored = restore(&from, &data, |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(restored.data_format, manifest.format);
        check_goes_on(&data, &manifest).await;
        // Whichever format they come from, topics have UUIDs, and keep them.
        let uuids = async || {
            let instance = open(&data, Cleaning::Never).unwrap();
            let uuids: BTreeMap<_, _> =
                instance.broker.topics().iter().map(|topic| (topic.name().clone(), topic.uuid())).collect();
            instance.stop().await;
            uuids
        };
        let found = uuids().await;
        assert!(found.values().all(|uuid| !uuid.is_nil()), "{found:?}");
        assert_eq!(found.values().collect::<std::collections::BTreeSet<_>>().len(), found.len());
        assert_eq!(uuids().await, found);
        formats.push(manifest.format);
    }
    formats.sort();
    assert_eq!(formats, [4, 5].map(|number| format!("millstream data directory, format {number}")));
}
