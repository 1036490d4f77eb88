//! Backups of a running server, and what is restored from them: everything that was acknowledged before, and outputs,
//! state and offsets of each pipeline from a single moment.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use millstream_broker::clock::SystemClock;
use millstream_broker::groups::{Group, GroupKind};
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::StoreOptions;
use millstream_broker::store::backup::{BackupError, BackupFolder, Manifest, Snapshot, restore};
use millstream_broker::{Broker, BrokerSettings, GroupId, Offset, TopicName, TopicPartition};
use millstream_client::{ClientError, v1};
use millstream_runtime::{Runtime, RuntimeSettings};
use millstream_tests::instance::{Instance, records, wait_until};
use millstream_tests::running::Limit;
use millstream_tests::server::{Ran, Server, millstream, run};
use millstream_tests::{flights, guest_path};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tempfile::TempDir;

use super::exactly_once::{Load, Pair, counts, keyed, last_counts, pairs, settled};

/// Maximum size of the journal. It is sealed in halves of this size, so that sealing happens all the time.
const JOURNAL_BYTES: u64 = 128 << 10;

const PARTITIONS: u32 = 3;
const PIPELINE: &str = "pipeline: p\nfrom: in\nstages:\n- aggregate: count\nto: out\n";
const READERS: &str = "readers";

fn open_broker(data: &Path) -> (Broker, Registry) {
    let mut registry = Registry::default();
    let settings = BrokerSettings { journal_bytes_max: JOURNAL_BYTES, ..BrokerSettings::default() };
    // A small tail makes most reads go to the disk.
    let options = StoreOptions { tail_bytes_max: Some(10_000), ..StoreOptions::default() };
    (Broker::open(data, settings, options, Arc::new(SystemClock), &mut registry).unwrap(), registry)
}

fn open(data: &Path) -> Instance {
    let (broker, mut registry) = open_broker(data);
    let runtime = Runtime::open(broker.clone(), RuntimeSettings::default(), &mut registry).unwrap();
    Instance { broker, runtime }
}

/// Backs up to a folder. Before each piece, `during` is called with the name of the piece's file, on a thread that may
/// block.
async fn back_up(broker: &Broker, to: &Path, mut during: impl FnMut(&str) + Send + 'static) -> Manifest {
    let (broker, mut folder) = (broker.clone(), BackupFolder::create(to).unwrap());
    let work = move || {
        let snapshot = Snapshot::take(broker.store(), broker.clock().now_ms()).unwrap();
        let manifest = snapshot.copy(|piece| {
            during(&piece.file);
            folder.write(&piece.file, piece.offset, &piece.bytes).unwrap();
            ControlFlow::Continue(())
        });
        let manifest = manifest.unwrap();
        folder.finish(&manifest).unwrap();
        manifest
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Opens a broker on a disk with this many free bytes.
fn open_on(data: &Path, free: &Arc<AtomicU64>) -> Broker {
    let free = free.clone();
    let options =
        StoreOptions { free_bytes: Some(Arc::new(move || Ok(free.load(Ordering::SeqCst)))), ..StoreOptions::default() };
    let settings = BrokerSettings { disk_reserve_bytes: Some(1 << 20), ..BrokerSettings::default() };
    Broker::open(data, settings, options, Arc::new(SystemClock), &mut Registry::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_leaves_the_commits_the_room_that_is_kept_for_them() {
    let data = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let broker = open_on(data.path(), &free);
    broker.create_topic(&TopicName::new("t").unwrap(), 1, TopicSettings::default(), false).await.unwrap();
    let take = || Snapshot::take(broker.store(), 0);
    take().unwrap();
    free.store(2 << 20, Ordering::SeqCst);
    let error = take().unwrap_err();
    let BackupError::NoRoomForJournal { free_bytes, reserve_bytes, .. } = &error else { panic!("{error}") };
    assert_eq!((*free_bytes, *reserve_bytes), (2 << 20, 1 << 20));
    for words in [data.path().to_str().unwrap(), "2097152 bytes free", "1048576 are kept", "make room"] {
        assert!(error.to_string().contains(words), "{words:?} is not in {error}");
    }
    free.store(u64::MAX, Ordering::SeqCst);
    take().unwrap();
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
}

fn restored(from: &Path, data: &Path) -> Result<Manifest, BackupError> {
    restore(from, data, |_, _| ControlFlow::Continue(()))
}

/// Returns a generator of records of about 300 bytes. There are so many keys that the unsealed part of the journal
/// contains few of them, and the others are read from the tables.
fn record() -> impl Fn(u32, usize) -> Pair + Clone + Send + Sync + 'static {
    let keyed = keyed(PARTITIONS, 1_000);
    move |partition, number| {
        let (key, value) = keyed(partition, number);
        (key, format!("{value:>300}"))
    }
}

fn ends(broker: &Broker, topic: &str) -> Vec<Offset> {
    broker.topic(topic).unwrap().partitions().iter().map(|partition| partition.end()).collect()
}

fn committed(broker: &Broker, group: &str, topic: &str) -> BTreeMap<u32, Offset> {
    let id = broker.topic(topic).unwrap().id();
    let all = broker.groups().get(group).unwrap().all_committed();
    all.into_iter().filter(|(of, ..)| *of == id).map(|(_, partition, offset)| (partition, offset)).collect()
}

/// Runs a group that commits the end of each partition, until the task is aborted.
fn reading(broker: &Broker) -> tokio::task::JoinHandle<()> {
    let group: Arc<Group> =
        broker.groups().get_or_create(&GroupId::new(READERS).unwrap(), GroupKind::Consumer).unwrap();
    let broker = broker.clone();
    tokio::spawn(async move {
        loop {
            let topic = broker.topic("in").unwrap();
            let offset = |partition: &Arc<millstream_broker::Partition>| {
                (TopicPartition { topic: topic.name().clone(), partition: partition.name().partition }, partition.end())
            };
            let offsets: Vec<_> = topic.partitions().iter().map(offset).collect();
            broker.set_offsets(&group, &offsets).await.unwrap();
        }
    })
}

/// Decodes a count as the module stores it, which is postcard's variable-length integer.
fn stored_count(accumulator: &[u8]) -> usize {
    accumulator.iter().rev().fold(0, |count, byte| count << 7 | usize::from(byte & 0x7f))
}

/// Offsets before a backup began.
struct Before {
    ends: Vec<Offset>,
    committed: BTreeMap<u32, Offset>,
    piped: BTreeMap<u32, Offset>,
}

impl Before {
    fn of(broker: &Broker) -> Self {
        Self {
            ends: ends(broker, "in"),
            committed: committed(broker, READERS, "in"),
            piped: committed(broker, "p", "in"),
        }
    }
}

/// Checks what must hold in a restored directory before anything else happens in it.
async fn check(broker: &Broker, before: &Before, record: &impl Fn(u32, usize) -> Pair) {
    let ends = ends(broker, "in");
    let (readers, piped) = (committed(broker, READERS, "in"), committed(broker, "p", "in"));
    let mut of_outputs: BTreeMap<String, usize> = BTreeMap::new();
    for partition in 0..broker.topic("out").unwrap().partition_count() {
        for output in records(broker, "out", partition).await {
            let text = |bytes: Option<bytes::Bytes>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            of_outputs.insert(text(output.key), text(output.value).parse().unwrap());
        }
    }
    let mut of_state = BTreeMap::new();
    let mut of_offsets = Vec::new();
    for partition in 0..PARTITIONS {
        let end = ends[partition as usize];
        assert!(end >= before.ends[partition as usize], "partition {partition}: acknowledged records are lost");
        let stored = records(broker, "in", partition).await;
        assert_eq!(stored.len() as i64, end.get());
        for (number, stored) in stored.iter().enumerate() {
            let (key, value) = record(partition, number);
            assert_eq!(stored.offset, number as i64);
            assert_eq!(stored.key.as_deref(), key.as_deref().map(str::as_bytes));
            assert_eq!(stored.value.as_deref(), Some(value.as_bytes()));
        }
        for (offsets, before) in [(&readers, &before.committed), (&piped, &before.piped)] {
            let offset = offsets.get(&partition).copied().unwrap_or_default();
            assert!(
                offset >= before.get(&partition).copied().unwrap_or_default() && offset <= end,
                "{offset} of {end}"
            );
        }
        let piped = piped.get(&partition).copied().unwrap_or_default();
        of_offsets.extend((0..piped.get() as usize).map(|number| record(partition, number)));
        let state = broker.state().partition("p/count", partition);
        let entries = state.scan(b"", usize::MAX).unwrap();
        assert_eq!(entries.len(), state.len());
        for (key, count) in entries {
            of_state.insert(String::from_utf8(key).unwrap(), stored_count(&count));
        }
    }
    let of_offsets = counts(&of_offsets);
    assert_eq!(of_state, of_offsets, "the state and the offsets must be from the same moment");
    assert_eq!(of_outputs, of_offsets, "the outputs and the offsets must be from the same moment");
}

async fn stop(broker: &Broker) {
    let broker = broker.clone();
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
}

fn segment_files(data: &Path) -> usize {
    fs::read_dir(data.join("segments")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_of_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let instance = open(&data);
    instance.topic("in", PARTITIONS).await;
    instance.push("count").await;
    instance.apply(PIPELINE).await;
    let record = record();
    let load = Load::start(&instance, "in", record.clone());
    let reading = reading(&instance.broker);
    let store = instance.broker.store().clone();
    let mut sealed = 0;
    for round in 0..4 {
        wait_until("another part of the journal is sealed", || store.size().segment_bytes > sealed).await;
        sealed = store.size().segment_bytes + (1 << 20);
        let before = Before::of(&instance.broker);
        let to = folder.path().join(format!("backup-{round}"));
        let (during, mut waited) = (store.clone(), round > 1);
        let manifest = back_up(&instance.broker, &to, move |file| {
            // At this point the tables or the segments have not been sent yet.
            if !waited && file == ["journal", "tables"][round] {
                waited = true;
                wait_for_a_merge(&during);
            }
        });
        let manifest = manifest.await;
        assert!(manifest.files.len() > 2, "the backup must contain segments: {manifest:?}");
        let copy = folder.path().join(format!("copy-{round}"));
        assert_eq!(restored(&to, &copy).unwrap(), manifest);
        let (broker, _) = open_broker(&copy);
        check(&broker, &before, &record).await;
        stop(&broker).await;
        drop(broker);

        let restored = open(&copy);
        let more = Load::start(&restored, "in", keyed(PARTITIONS, 50));
        more.more(500).await;
        more.stop().await;
        settled(&restored).await;
        let input = pairs(&restored, "in").await;
        assert_eq!(
            last_counts(&pairs(&restored, "out").await),
            counts(&input),
            "the pipelines must continue where they were"
        );
        restored.stop().await;
    }
    load.stop().await;
    reading.abort();
    instance.runtime.stop().await;
    wait_until("the files that were kept for backups are removed", || segment_files(&data) == store.size().segments)
        .await;
    instance.stop().await;
}

/// Waits until segments were merged, which removes files that a backup still reads.
fn wait_for_a_merge(store: &millstream_broker::store::Store) {
    let limit = Limit::new("segments are merged");
    let mut most = 0;
    loop {
        limit.check();
        let now = store.size().segments;
        if now < most {
            return;
        }
        most = now;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_and_a_fully_sealed_store_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (broker, _registry) = open_broker(&at("new"));
    back_up(&broker, &at("backup of new"), |_| ()).await;
    stop(&broker).await;
    restored(&at("backup of new"), &at("copy of new")).unwrap();
    let instance = open(&at("copy of new"));
    assert!(instance.broker.topics().is_empty());

    // A single commit is so large that it is sealed at once. Afterwards nothing in the journal is unsealed.
    instance.topic("in", 1).await;
    let large = "x".repeat(JOURNAL_BYTES as usize);
    instance.produce("in", 0, &[(None, &large)]).await;
    let store = instance.broker.store().clone();
    wait_until("the part of the journal is sealed", || store.size().segments == 1).await;
    back_up(&instance.broker, &at("backup of sealed"), |_| ()).await;
    instance.stop().await;
    restored(&at("backup of sealed"), &at("copy of sealed")).unwrap();
    let copy = open(&at("copy of sealed"));
    assert_eq!(copy.produce("in", 0, &[(None, "next")]).await, Offset::new(1).unwrap());
    copy.stop().await;
    let again = open(&at("copy of sealed"));
    assert_eq!(again.records("in", 0).await.len(), 2);
    again.stop().await;
}

// ---- damage

/// Makes a backup with segments, state, offsets and an unsealed part of the journal.
async fn small_backup(folder: &Path) -> (PathBuf, Manifest) {
    let instance = open(&folder.join("source"));
    instance.topic("in", PARTITIONS).await;
    instance.push("count").await;
    instance.apply(PIPELINE).await;
    let load = Load::start(&instance, "in", record());
    let store = instance.broker.store().clone();
    wait_until("part of the journal is sealed", || store.size().segments > 1).await;
    load.stop().await;
    settled(&instance).await;
    let to = folder.join("backup");
    let manifest = back_up(&instance.broker, &to, |_| ()).await;
    instance.stop().await;
    (to, manifest)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_anywhere_in_a_backup_is_found_and_nothing_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    let (backup, manifest) = small_backup(folder.path()).await;
    let there = names(folder.path());
    let refused = |what: &str, file: &Path| {
        let refused = restored(&backup, &folder.path().join("data")).unwrap_err();
        assert!(matches!(&refused, BackupError::Damaged { path, .. } if path == file), "{what}: {refused}");
        assert!(refused.to_string().contains("nothing was restored"), "{refused}");
        assert_eq!(names(folder.path()), there, "{what}");
    };
    let files = manifest.files.iter().map(|file| file.name.as_str()).chain(["BACKUP"]);
    for name in files {
        let file = backup.join(name);
        let sound = fs::read(&file).unwrap();
        for at in (0..sound.len()).step_by((sound.len() / 5).max(1)).chain([sound.len() - 1]) {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x40;
            fs::write(&file, damaged).unwrap();
            refused(&format!("{name}, byte {at}"), &file);
        }
        fs::write(&file, &sound[..sound.len() - 1]).unwrap();
        refused(&format!("{name}, one byte short"), &file);
        if name != "BACKUP" {
            fs::remove_file(&file).unwrap();
            refused(&format!("{name} is missing"), &file);
        }
        fs::write(&file, sound).unwrap();
    }
    restored(&backup, &folder.path().join("data")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_changes_nothing_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (backup, _) = small_backup(folder.path()).await;
    let data = folder.path().join("data");

    let cancelled = restore(&backup, &data, |_, _| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(BackupError::Cancelled)), "{cancelled:?}");
    assert_eq!(names(folder.path()), ["backup", "source"]);

    fs::create_dir(folder.path().join("data.restoring")).unwrap();
    let in_the_way = restored(&backup, &data).unwrap_err();
    assert!(in_the_way.to_string().contains("data.restoring is there already"), "{in_the_way}");
    fs::remove_dir(folder.path().join("data.restoring")).unwrap();

    // An empty directory is replaced.
    fs::create_dir(&data).unwrap();
    restored(&backup, &data).unwrap();
    let before = names(&data);
    let occupied = restored(&backup, &data).unwrap_err();
    assert!(occupied.to_string().contains("data is not empty"), "{occupied}");
    assert_eq!(names(&data), before);

    fs::remove_file(backup.join("BACKUP")).unwrap();
    let unfinished = restored(&backup, &folder.path().join("other")).unwrap_err();
    assert!(unfinished.to_string().contains("unfinished"), "{unfinished}");
    assert_eq!(names(folder.path()), ["backup", "data", "source"]);
}

// ---- the CLI

fn json_of(server: &Server, arguments: &[&str]) -> Value {
    let out = server.run(&[arguments, &["--output", "json"]].concat()).ok();
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
}

#[track_caller]
fn fails(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{}", ran.err);
    for word in words {
        assert!(ran.err.contains(word), "{:?} does not contain {word:?}", ran.err);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn pipelines_caught_up(server: &Server) {
    let lag = || json_of(server, &["pipeline", "list"])[0]["lag"].as_u64();
    let limit = Limit::new("the pipelines have caught up");
    while lag() != Some(0) {
        limit.check();
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn everything_comes_back_through_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let file = |name: &str, content: &str| {
        fs::write(at(name), content).unwrap();
        text(&at(name)).to_owned()
    };
    let server = Server::start(&at("data"));
    let lines: Vec<String> = flights().into_iter().take(3_000).map(|flight| flight.line).collect();
    let first = file("first.ndjson", &lines[..2_000].join("\n"));
    let second = file("second.ndjson", &lines[2_000..].join("\n"));
    server.run(&["topic", "create", "flights", "--partitions", "2", "--retention", "7d"]).ok();
    server.run(&["module", "push", "count", text(&guest_path("count"))]).ok();
    let pipeline = file(
        "p.yaml",
        "pipeline: by-origin\nfrom: flights\nstart: earliest\nstages:\n- aggregate: count\nto: counts\n",
    );
    server.run(&["apply", "-f", &pipeline]).ok();
    server.run(&["produce", "flights", "--file", &first, "--key-field", "origin"]).ok();
    server.run(&["consume", "flights", "--group", "g", "--from", "earliest", "--max", "700"]).ok();
    pipelines_caught_up(&server);

    let backup = at("backup");
    let summary = json_of(&server, &["backup", "--to", text(&backup)]);
    let bytes: u64 = ["journal", "tables"].map(|name| fs::metadata(backup.join(name)).unwrap().len()).iter().sum();
    assert_eq!(summary["bytes"], bytes, "{summary}");
    assert_eq!(summary["to"], text(&backup));
    let shown = |server: &Server| {
        let topic = json_of(server, &["topic", "describe", "flights"]);
        let modules = json_of(server, &["module", "list"]);
        let mut group = json_of(server, &["group", "describe", "g"]);
        // The generation counts events of this process.
        group["generation"] = Value::Null;
        let state = json_of(server, &["state", "list", "by-origin", "--max", "1000"]);
        let records = |topic| {
            let out = server.run(&["consume", topic, "--from", "earliest", "--until-end", "--output", "json"]).ok();
            let mut lines: Vec<_> = out.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        (topic, modules, group, state, records("flights"), records("counts"))
    };
    let source = shown(&server);
    assert_eq!(source.4.len(), 2_000);

    let data = at("restored");
    let ran = run(Command::new(millstream()).args(["restore", "--from", text(&backup), "--data", text(&data)]), "");
    let said = ran.ok();
    assert!(said.starts_with(&format!("restored {} to {}: 2 files, ", text(&backup), text(&data))), "{said}");
    let copy = Server::start(&data);
    assert!(shown(&copy) == source, "{:#?}\n\ndiffers from\n\n{source:#?}", shown(&copy));

    // Both continue from there, and reach the same result.
    for server in [&server, &copy] {
        server.run(&["produce", "flights", "--file", &second, "--key-field", "origin"]).ok();
        pipelines_caught_up(server);
    }
    assert_eq!(json_of(&copy, &["state", "list", "by-origin", "--max", "1000"]), shown(&server).3);
}

#[test]
fn the_program_leaves_no_half_backup() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("backup");
    let nobody =
        Command::new(millstream()).args(["backup", "--to", text(&to), "--server", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(3));
    assert!(!to.exists());

    let server = with_megabytes(&folder);
    fs::create_dir(&to).unwrap();
    fs::write(to.join("letter"), "dear").unwrap();
    fails(&server.run(&["backup", "--to", text(&to)]), 1, &["backup is not empty", "nothing was changed"]);
    assert_eq!(names(&to), ["letter"]);
    fs::remove_dir_all(&to).unwrap();

    // With this limit, no file can be larger than some KiB.
    let script = format!("trap '' XFSZ; ulimit -f 64; exec {} backup --to {}", millstream().display(), text(&to));
    let ran = run(Command::new("bash").args(["-c", &script]).env("MILLSTREAM_SERVER", &server.grpc), "");
    fails(&ran, 1, &["cannot write", "backup/journal", "no backup was written to"]);
    assert!(!to.exists());

    // The server may not know yet that the client is gone.
    let again = (0..600).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        server.run(&["backup", "--to", text(&to)])
    });
    let mut again = again.skip_while(|ran| ran.err.contains("another backup is being made"));
    again.next().expect("the server learns within a minute that the client is gone").ok();
    let copy = folder.path().join("copy");
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} restore --from {} --data {}",
        millstream().display(),
        text(&to),
        text(&copy)
    );
    fails(&run(Command::new("bash").args(["-c", &script]), ""), 1, &[""]);
    assert_eq!(names(folder.path()), ["backup", "data"]);
}

/// Restores with the CLI, and kills it after a time. Returns whether it had completed before.
fn restore_and_kill(backup: &Path, data: &Path, after: Duration) -> bool {
    let mut command = Command::new(millstream());
    command.args(["restore", "--from", text(backup), "--data", text(data)]);
    let mut program = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    program.kill().unwrap();
    program.wait().unwrap().success()
}

#[test]
fn a_restore_that_is_killed_leaves_the_whole_directory_or_none() {
    const KILLS: u32 = 40;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let server = with_megabytes(&folder);
    let backup = at("backup");
    server.run(&["backup", "--to", text(&backup)]).ok();
    drop(server);
    let whole = |data: &Path| {
        let report = millstream_broker::broker::check::check(data, false).unwrap();
        assert!(report.is_sound(), "{report:#?}");
        // The number of batches is the one that `with_megabytes` writes.
        assert_eq!((report.batches, report.unregistered.len()), (48, 0));
    };
    let begun = std::time::Instant::now();
    restored(&backup, &at("first")).unwrap();
    let takes = begun.elapsed();
    whole(&at("first"));
    let (mut halves, mut wholes) = (0, 0);
    for kill in 0..KILLS {
        let data = at("copy");
        // A program takes some time to start, and debug builds are slow, so some restores complete.
        let ended = restore_and_kill(&backup, &data, takes * 2 * kill / KILLS);
        let building = at("copy.restoring");
        halves += u32::from(building.exists());
        if data.exists() {
            wholes += 1;
            assert!(
                !building.exists(),
                "the restored directory exists, but the one under construction was not removed"
            );
            whole(&data);
            fs::remove_dir_all(&data).unwrap();
        } else {
            assert!(!ended, "a restore that succeeded must have created the directory");
        }
        if building.exists() {
            // A folder that a killed restore left behind is not mistaken for anything else.
            let refused = restored(&backup, &data).unwrap_err();
            assert!(matches!(refused, BackupError::InTheWay { .. }), "{refused}");
            assert!(!data.exists());
            fs::remove_dir_all(&building).unwrap();
        }
    }
    assert!(halves > 0 && wholes > 0, "of {KILLS} kills, {halves} were during the restore and {wholes} after its end");
    restored(&backup, &at("copy")).unwrap();
    whole(&at("copy"));
}

#[test]
fn a_server_that_ends_in_between_leaves_no_backup() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = with_megabytes(&folder);
    let to = folder.path().join("backup");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(millstream());
    let address = listener.local_addr().unwrap().to_string();
    command.args(["backup", "--to", text(&to), "--server", &address]);
    let program = std::thread::spawn(move || run(&mut command, ""));
    let (client, _) = listener.accept().unwrap();
    let upstream = TcpStream::connect(&server.grpc).unwrap();
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
    let requests = std::thread::spawn(move || {
        // Runs until either end is closed.
        let _ = std::io::copy(&mut from_client, &mut to_server);
    });
    let (mut from_server, mut to_client) = (upstream, client);
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0;
    while passed < 2 << 20 {
        let read = from_server.read(&mut buffer).unwrap();
        assert!(read > 0, "the backup ended too early");
        to_client.write_all(&buffer[..read]).unwrap();
        passed += read;
    }
    server.kill();
    to_client.shutdown(std::net::Shutdown::Both).unwrap();
    drop((from_server, to_client, listener));
    let ran = program.join().unwrap();
    requests.join().unwrap();
    fails(&ran, 3, &["no backup was written to"]);
    assert!(!to.exists());
}

/// Starts a server with several times the data that the connection and the server hold of a backup in flight.
fn with_megabytes(folder: &TempDir) -> Server {
    let data = folder.path().join("data");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let instance = Instance::open(&data);
        instance.topic("t", 1).await;
        let value = "0123456789".repeat(50_000);
        for _ in 0..48 {
            instance.produce("t", 0, &[(None, &value)]).await;
        }
        instance.stop().await;
    });
    Server::start(&data)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_at_a_time_is_sent_at_its_readers_pace_and_a_stop_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| scope.spawn(|| with_megabytes(&folder)).join().unwrap())
    });
    let admin = server.client().admin();
    let mut first = admin.backup().await.unwrap();
    let begun = first.next().await.unwrap().unwrap();
    assert!(matches!(begun.chunk, Some(v1::backup_chunk::Chunk::Begun(begun)) if begun.bytes > 20 << 20));
    // As long as the first backup is not read, it is in progress.
    let refused = admin.backup().await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Some(v1::ErrorCode::InUse), "{refused}");
    drop(first);
    let limit = Limit::new("the first backup is over");
    let mut second = loop {
        limit.check();
        match admin.backup().await {
            Ok(second) => break second,
            Err(ClientError::Refused { code: v1::ErrorCode::InUse, .. }) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    second.next().await.unwrap().unwrap();

    let sent = Command::new("kill").args(["-TERM", &server.pid().to_string()]).status().unwrap();
    assert!(sent.success());
    wait_until("the server accepts no more connections", || TcpStream::connect(&server.grpc).is_err()).await;
    let end = loop {
        match second.next().await {
            Some(Ok(chunk)) => {
                let manifest = matches!(chunk.chunk, Some(v1::backup_chunk::Chunk::Manifest(_)));
                assert!(!manifest, "the backup must not complete after the server was told to stop");
            }
            Some(Err(error)) => break error,
            None => panic!("the stream ended without an error"),
        }
    };
    assert_eq!(end.code(), Some(v1::ErrorCode::ShuttingDown), "{end}");
}
