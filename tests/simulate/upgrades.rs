//! Data directories of this format that earlier versions wrote, and backups of this format and of the one before
//! (`tests/golden`), opened by this version, which loses power meanwhile.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millstream_broker::broker::check::check_on;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::store::backup::restore_on;
use millstream_broker::store::{DATA_FORMAT, FileSystem, Open, StoreOptions};
use millstream_broker::{Broker, BrokerError, Offset};
use millstream_tests::disk::{Disk, Effect, Fault};
use millstream_tests::root;
use millstream_tests::workload::{Held, block_on, open_with};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crashes::DATA;
use crate::model::records_of_slice;
use crate::run::Run;

/// The unpacked directories, sorted by the names of their archives.
static GOLDEN: OnceLock<(tempfile::TempDir, Vec<PathBuf>)> = OnceLock::new();

/// Unpacks the directories. This happens before simulations begin, because it runs other programs.
pub(crate) fn unpack() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut unpacked = Vec::new();
    let archives = root().join("tests/golden");
    for entry in std::fs::read_dir(&archives).with_context(|| format!("no folder {}", archives.display()))? {
        let archive = entry?.path();
        let to = folder.path().join(archive.file_name().context("a file has a name")?);
        std::fs::create_dir(&to)?;
        let status = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&to).status()?;
        ensure!(status.success(), "{} can't be unpacked: {status}", archive.display());
        unpacked.push(to);
    }
    let current = |folder: &PathBuf| {
        let data = data_directory(folder);
        data.is_none_or(|data| std::fs::read_to_string(data.join("FORMAT")).unwrap().trim() == DATA_FORMAT)
    };
    unpacked.retain(current);
    unpacked.sort();
    ensure!(!unpacked.is_empty(), "{} holds no directory", archives.display());
    // This is the only place that sets it.
    let _ = GOLDEN.set((folder, unpacked));
    Ok(())
}

/// Finds the data directory in an unpacked archive, which is the folder with a format file.
fn data_directory(folder: &Path) -> Option<PathBuf> {
    if folder.join("FORMAT").exists() {
        return Some(folder.to_owned());
    }
    let inside = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    inside.filter(|path| path.is_dir()).find_map(|path| data_directory(&path))
}

/// Puts what an archive holds on the disk, as a data directory.
fn place(disk: &Disk, unpacked: &Path) {
    if let Some(data) = data_directory(unpacked) {
        return load(disk, &data, Path::new(DATA));
    }
    let backup = Path::new("/backup");
    load(disk, &unpacked.join("backup"), backup);
    restore_on(&disk.file_system(), backup, Path::new(DATA), |_, _| ControlFlow::Continue(())).unwrap();
}

/// Copies a folder of the machine's to the disk, and makes it durable there.
fn load(system: &dyn FileSystem, from: &Path, to: &Path) {
    system.make_folder(to).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            load(system, &from, &to);
            continue;
        }
        let bytes = std::fs::read(&from).unwrap();
        let file = system.open(&to, Open::New).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        file.write(0, &bytes).unwrap();
        file.sync_data().unwrap();
    }
    system.sync_folder(to).unwrap();
    system.sync_folder(to.parent().unwrap()).unwrap();
}

/// The contents of a partition.
#[derive(Debug, PartialEq)]
struct HeldPartition {
    start: Offset,
    end: Offset,
    /// The records, with their offsets.
    records: Vec<(usize, Held)>,
    /// Whether retention or compaction may remove some of them.
    is_cleaned: bool,
}

impl HeldPartition {
    /// Returns whether this is what remains of `all`. Without cleaning, both must be equal.
    fn is_left_of(&self, all: &Self) -> bool {
        let is_there = |record: &(usize, Held)| {
            all.records.binary_search_by_key(&record.0, |(at, _)| *at).is_ok_and(|at| all.records[at] == *record)
        };
        if all.is_cleaned {
            self.end == all.end && self.start >= all.start && self.records.iter().all(is_there)
        } else {
            self == all
        }
    }
}

/// Everything that a broker holds.
#[derive(Debug, Default, PartialEq)]
struct Holdings {
    /// By topic and partition.
    partitions: BTreeMap<(String, u32), HeldPartition>,
    /// By group, topic and partition.
    offsets: BTreeMap<(String, u32, u32), Offset>,
    /// By store, partition and key.
    state: BTreeMap<(String, u32, Vec<u8>), Vec<u8>>,
}

async fn holdings(broker: &Broker) -> Holdings {
    let mut found = Holdings::default();
    for topic in broker.topics() {
        let settings = &topic.meta().settings;
        let has_retention = settings.retention_ms.is_some() || settings.retention_bytes.is_some();
        let is_cleaned = has_retention || settings.cleanup.compacts() || topic.meta().internal;
        for partition in topic.partitions() {
            let (mut from, mut records) = (partition.start(), Vec::new());
            while from < partition.end() {
                let range = ReadRange { from, until: None, bytes_max: 1 << 20, one_at_least: true };
                let slice = match broker.read(partition, range).await {
                    // Retention removed records before they could be read.
                    Err(BrokerError::OffsetOutOfRange { start, .. }) if from < start => {
                        (from, records) = (start, Vec::new());
                        continue;
                    }
                    read => read.unwrap(),
                };
                records.extend(records_of_slice(&slice));
                from = slice.next;
            }
            let name = (topic.name().as_str().to_owned(), partition.name().partition);
            let (start, end) = (partition.start(), partition.end());
            found.partitions.insert(name, HeldPartition { start, end, records, is_cleaned });
        }
    }
    for group in broker.groups().all() {
        for (topic, partition, offset) in group.all_committed() {
            found.offsets.insert((group.id().as_str().to_owned(), topic.0, partition), offset);
        }
    }
    for (key, _) in broker.store().catalog_scan("").unwrap() {
        let Some(pipeline) = key.strip_prefix("pipeline/") else { continue };
        for stage in STAGES {
            let store = format!("{pipeline}/{stage}");
            for (partition, state) in broker.state().partitions(&store) {
                for (key, accumulator) in state.scan(b"", usize::MAX).unwrap() {
                    found.state.insert((store.clone(), partition, key), accumulator);
                }
            }
        }
    }
    found
}

/// Names of the aggregates in the golden directories' pipelines.
const STAGES: [&str; 1] = ["count"];

/// Checks that the directory holds the expected contents no matter how often its first opening loses power.
pub(crate) fn upgrades(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let (_, all) = GOLDEN.get().expect("they are unpacked");
        let from = &all[random.random_range(0..all.len())];
        let expected = {
            let disk = Disk::default();
            place(&disk, from);
            // Before anything is cleaned.
            let options = StoreOptions { cleaning_interval: Some(Duration::from_secs(3_600)), ..disk.options() };
            let broker = open_with(Path::new(DATA), options).unwrap();
            let expected = holdings(&broker).await;
            broker.stop();
            expected
        };
        assert!(!expected.partitions.is_empty() && !expected.offsets.is_empty() && !expected.state.is_empty());
        let disk = Disk::default();
        place(&disk, from);
        for _ in 0..random.random_range(1..4) {
            let number = random.random_range(1..150);
            disk.set_faults([Fault { file: None, call: None, number, effect: Effect::PowerOff }]);
            if let Ok(broker) = open_with(Path::new(DATA), disk.options()) {
                // Gives sealing, merging and retention time to process the existing data.
                tokio::time::sleep(Duration::from_secs(3)).await;
                broker.stop();
            }
            if disk.struck() {
                run.met("a loss of power");
            }
            disk.lose_power(random.random());
        }
        let broker = open_with(Path::new(DATA), disk.options()).unwrap();
        let found = holdings(&broker).await;
        assert_eq!(found.offsets, expected.offsets);
        assert_eq!(found.state, expected.state);
        assert!(found.partitions.keys().eq(expected.partitions.keys()));
        for (name, partition) in &found.partitions {
            let all = &expected.partitions[name];
            let shown =
                |of: &HeldPartition| (of.start, of.end, of.records.iter().map(|(at, _)| *at).collect::<Vec<_>>());
            assert!(
                partition.is_left_of(all),
                "{name:?} holds {:?}, expected what remains of {:?}",
                shown(partition),
                shown(all)
            );
        }
        broker.stop();
        drop(broker);
        let report = check_on(&disk.file_system(), Path::new(DATA), false).unwrap();
        assert!(report.is_sound(), "{report:#?}");
    });
}
