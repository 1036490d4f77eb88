//! Damage on disk. A flipped bit never results in a wrong record, `millstream check` finds it, and `--repair` keeps
//! everything that is sound.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_broker::broker::check::check;
use millstream_broker::groups::GroupKind;
use millstream_broker::log::commit::Commit;
use millstream_broker::log::partition::Partition;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::{Report, StoreError, StoreOptions};
use millstream_broker::{Broker, BrokerError, GroupId, Offset};
use millstream_record::{BatchBuilder, Compression, split_batches};
use millstream_tests::folder;
use millstream_tests::instance::wait_until;
use millstream_tests::running::{Limit, Running, append};
use millstream_tests::server::millstream;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use millstream_tests::workload::{
    Contents, Held, TOPICS, Workload, block_on, contents, difference, for_seeds, for_seeds_until, open_with,
    records_of, state_change,
};

const DATABASE: &str = "millstream.redb";

/// A closed data directory with segments and a journal, and its contents.
struct Written {
    data: tempfile::TempDir,
    holds: Contents,
    /// The offsets of each batch, by topic and partition.
    batches: BTreeMap<(usize, u32), Vec<Range<i64>>>,
}

/// Whether the directory was closed in an orderly way, or its files are as a kill leaves them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Stopped,
    Killed,
}

fn write(seed: u64, ended: Ended) -> Written {
    let mut data = folder();
    let mut random = StdRng::seed_from_u64(seed);
    let mut workload = Workload::default();
    let mut batches: BTreeMap<_, Vec<_>> = BTreeMap::new();
    block_on(async {
        let broker = open_with(data.path(), StoreOptions::default()).unwrap();
        let steps = random.random_range(30..90);
        workload.run(&broker, &mut random, steps).await.unwrap();
        // On a busy machine the sealer may be late.
        let limit = Limit::new("part of the journal is sealed");
        while broker.store().size().segments == 0 {
            limit.check();
            workload.run(&broker, &mut random, 5).await.unwrap();
        }
        // This only reads. Further requests would remove values that are sealed but still in the journal.
        assert_eq!(contents(&broker).await, workload.ahead);
        for (topic, partition) in partitions(&broker) {
            let Read { held, .. } = read(&broker, &partition).await;
            batches.insert((topic, partition.name().partition), held.into_iter().map(|(offsets, _)| offsets).collect());
        }
        // redb takes damage to what its very last commit wrote for an interrupted commit. These commits are therefore
        // in a store that no workload reads.
        for _ in 0..2 {
            let beside = state_change("beside/all", 0, b"k", Some(b"v"), 1);
            broker.commit(Commit { state: vec![beside], ..Commit::default() }).await.unwrap().await.unwrap();
        }
        broker.stop();
        if ended == Ended::Killed {
            // The databases are still open.
            let copy = folder();
            copy_folder(data.path(), copy.path());
            data = copy;
        }
    });
    Written { data, holds: workload.ahead, batches }
}

fn partitions(broker: &Broker) -> Vec<(usize, Arc<Partition>)> {
    let mut found = Vec::new();
    for topic in broker.topics() {
        let number = TOPICS.iter().position(|name| *name == topic.name().as_str()).unwrap();
        found.extend(topic.partitions().iter().map(|partition| (number, partition.clone())));
    }
    found
}

/// The offsets of a batch, and its records.
type HeldBatch = (Range<i64>, Vec<(usize, Held)>);

/// The result of reading a partition past its damage.
#[derive(Debug, Default)]
struct Read {
    /// Records by batch.
    held: Vec<HeldBatch>,
    damaged: Vec<Range<i64>>,
}

async fn read(broker: &Broker, partition: &Arc<Partition>) -> Read {
    let mut found = Read::default();
    let mut from = partition.start();
    while from < partition.end() {
        let range = ReadRange { from, until: None, bytes_max: 30_000, one_at_least: true };
        match broker.read(partition, range).await {
            Ok(slice) => {
                for batch in slice.runs.iter().cloned().flat_map(split_batches).map(Result::unwrap) {
                    let offsets = batch.base_offset()..batch.next_offset();
                    found.held.push((offsets, records_of(&batch)));
                }
                assert!(slice.next > from, "a read of {} must advance", partition.name());
                from = slice.next;
            }
            Err(BrokerError::Damaged { topic, partition: number, first, last, .. }) => {
                assert_eq!((&topic, number), (&partition.name().topic, partition.name().partition));
                assert!(
                    first <= last && last >= from,
                    "{}: the damaged offsets {first} to {last} are not ahead of the read",
                    partition.name()
                );
                found.damaged.push(first.get().max(from.get())..last.get() + 1);
                from = last.next();
            }
            Err(error) => panic!("{error}"),
        }
    }
    found
}

/// Reads everything twice, because the first read brings data into memory. Returns the damaged offsets.
async fn check_reads(broker: &Broker, written: &Written) -> Vec<(usize, u32, Range<i64>)> {
    let mut damaged = Vec::new();
    for (topic, partition) in partitions(broker) {
        let number = partition.name().partition;
        let expected = &written.holds.topics[&topic][number as usize];
        assert_eq!(partition.end(), Offset::new(expected.len() as i64).unwrap());
        let first = read(broker, &partition).await;
        let again = read(broker, &partition).await;
        assert_eq!(first.damaged, again.damaged, "a repeated read must report the same damage");
        for (at, record) in [&first, &again].into_iter().flat_map(|read| &read.held).flat_map(|(_, held)| held) {
            assert_eq!(*record, expected[*at], "{} offset {at}", partition.name());
        }
        damaged.extend(first.damaged.into_iter().map(|offsets| (topic, number, offsets)));
    }
    damaged
}

/// Checks that only damaged records are missing, and that the damage is within one batch. Returns whether there is any
/// damage.
async fn check_costs_one_batch_at_most(broker: &Broker, written: &Written) -> bool {
    let damaged = check_reads(broker, written).await;
    for (topic, partition, offsets) in &damaged {
        let batches = &written.batches[&(*topic, *partition)];
        let hit = batches.iter().any(|batch| batch.start <= offsets.start && offsets.end <= batch.end);
        assert!(
            hit,
            "the damage of {} {partition} {offsets:?} is not within one of the batches {batches:?}",
            TOPICS[*topic]
        );
    }
    assert!(damaged.len() <= 1, "a flipped bit damaged more than one batch: {damaged:?}");
    for (topic, partition) in partitions(broker) {
        let number = partition.name().partition;
        let read = read(broker, &partition).await;
        let there: i64 = read.held.iter().map(|(offsets, _)| offsets.end - offsets.start).sum();
        let lost: i64 = read.damaged.iter().map(|offsets| offsets.end - offsets.start).sum();
        let all = written.holds.topics[&topic][number as usize].len() as i64;
        assert_eq!(there + lost, all, "{} must have all records except the damaged ones", partition.name());
    }
    !damaged.is_empty()
}

pub(super) fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if entry.is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_folder(&entry, &to);
        } else {
            std::fs::copy(&entry, &to).unwrap();
        }
    }
}

fn flip(file: &Path, position: usize, bit: u8) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[position] ^= 1 << bit;
    std::fs::write(file, bytes).unwrap();
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let folder = data.join("segments");
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Returns the registered segments, whose files readers may use.
fn registered(report: &Report, data: &Path) -> Vec<PathBuf> {
    let is_registered = |path: &PathBuf| {
        let name = format!("segments/{}", path.file_name().unwrap().to_str().unwrap());
        !report.unregistered.contains(&name)
    };
    segments(data).into_iter().filter(is_registered).collect()
}

/// Returns the parts of a segment file: header, blocks, index and footer.
fn parts(file: &Path) -> [Range<usize>; 4] {
    let bytes = std::fs::read(file).unwrap();
    let footer = bytes.len() - 24;
    let index = u64::from_le_bytes(bytes[footer..footer + 8].try_into().unwrap()) as usize;
    [0..8, 8..index, index..footer, footer..bytes.len()]
}

/// Checks a repaired directory: reads meet no damage, the existing records are correct, only the damaged batch is
/// missing, and the directory can be used further.
async fn check_repaired(data: &Path, written: &Written, lost_records: i64) {
    let broker = open_with(data, StoreOptions::default()).unwrap();
    let mut missing = 0;
    for (topic, partition) in partitions(&broker) {
        let expected = &written.holds.topics[&topic][partition.name().partition as usize];
        assert_eq!(partition.end(), Offset::new(expected.len() as i64).unwrap(), "offsets must not be reused");
        let read = read(&broker, &partition).await;
        assert_eq!(read.damaged, [], "reads of {} must skip what was cut out", partition.name());
        let records: Vec<_> = read.held.iter().flat_map(|(_, held)| held).collect();
        records.iter().for_each(|(at, record)| assert_eq!(*record, expected[*at]));
        missing += expected.len() as i64 - records.len() as i64;
    }
    assert_eq!(missing, lost_records, "only damaged records may be missing");
    if lost_records == 0 {
        let found = contents(&broker).await;
        assert!(found == written.holds, "{}", difference(&found, &written.holds));
    }
    // The journal can be written to, and its contents are sealed eventually.
    let mut holds = written.holds.clone();
    if lost_records > 0 {
        holds.begin_epochs();
    }
    let mut workload = Workload::of(holds);
    workload.run(&broker, &mut StdRng::seed_from_u64(1), 20).await.unwrap();
    broker.stop();
    drop(broker);
    let report = check(data, false).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

fn lost_records(report: &Report) -> i64 {
    let lost = |damage: &millstream_broker::store::Damage| Some(damage.last_offset? - damage.first_offset? + 1);
    report.damages.iter().filter_map(lost).sum()
}

#[test]
fn what_was_written_is_sound_and_a_check_changes_nothing() {
    for_seeds(20, |seed| {
        let written = write(seed, Ended::Stopped);
        let files = || -> BTreeMap<PathBuf, Vec<u8>> {
            let mut files = segments(written.data.path());
            files.extend([DATABASE, "tables.redb"].map(|name| written.data.path().join(name)));
            files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
        };
        let before = files();
        let report = check(written.data.path(), false).unwrap();
        assert!(report.is_sound(), "{report:#?}");
        let batches: usize = written.batches.values().map(Vec::len).sum();
        assert_eq!(report.batches, batches as u64);
        assert!(files() == before, "a check must not change any file");
        assert!(check(written.data.path(), true).unwrap().is_sound());
        block_on(check_repaired(written.data.path(), &written, 0));
    });
}

#[test]
fn a_flipped_bit_of_a_segment_costs_its_batch_at_most_and_a_repair_cuts_that_out() {
    for_seeds(120, |seed| {
        let written = write(seed % 10, [Ended::Stopped, Ended::Killed][seed as usize / 10 % 2]);
        let data = written.data.path();
        let mut random = StdRng::seed_from_u64(seed);
        let files = registered(&check(data, false).unwrap(), data);
        let file = &files[random.random_range(0..files.len())];
        let part = random.random_range(0..6usize).saturating_sub(2);
        let range = parts(file)[part].clone();
        if range.is_empty() {
            return;
        }
        let position = random.random_range(range);
        flip(file, position, random.random_range(0..8));
        let costs = block_on(async {
            let broker = open_with(data, StoreOptions::default()).unwrap();
            let costs = check_costs_one_batch_at_most(&broker, &written).await;
            broker.stop();
            costs
        });
        assert!(!costs || part == 1, "only a bit flipped in a batch may damage a batch");
        let report = check(data, false).unwrap();
        // The records of a deleted topic belong to no topic any more.
        assert!(!report.is_sound() || part == 1 && !costs, "byte {position} of {}", file.display());
        assert_eq!(lost_records(&report) > 0, costs, "{report:#?}");
        let repaired = check(data, true).unwrap();
        assert!(repaired.is_repaired(), "{repaired:#?}");
        block_on(check_repaired(data, &written, lost_records(&report)));
    });
}

#[test]
fn a_missing_or_cut_off_database_is_told_with_the_rest() {
    for left in [None, Some(0), Some(5)] {
        let written = write(0, Ended::Stopped);
        let database = written.data.path().join(DATABASE);
        match left {
            None => std::fs::remove_file(&database).unwrap(),
            Some(bytes) => std::fs::File::options().write(true).open(&database).unwrap().set_len(bytes).unwrap(),
        }
        for repair in [false, true] {
            let report = check(written.data.path(), repair).unwrap();
            assert!(!report.is_sound() && !report.is_repaired(), "{left:?}: {report:#?}");
            assert!(report.damages.iter().any(|damage| damage.file == DATABASE), "{left:?}: {report:#?}");
        }
    }
}

#[test]
fn a_missing_segment_costs_its_records_alone_and_a_repair_goes_on_past_them() {
    let (costly, told) = (AtomicU64::new(0), AtomicU64::new(0));
    // At least some of the missing segments are read.
    let enough = || costly.load(Ordering::Relaxed) > 0 && told.load(Ordering::Relaxed) > 0;
    for_seeds_until(10, enough, |seed| {
        let written = write(seed, Ended::Stopped);
        let data = written.data.path();
        let files = registered(&check(data, false).unwrap(), data);
        let file = &files[StdRng::seed_from_u64(seed).random_range(0..files.len())];
        std::fs::remove_file(file).unwrap();
        block_on(async {
            let broker = open_with(data, StoreOptions::default()).unwrap();
            for (_, partition) in partitions(&broker) {
                let range = ReadRange { from: partition.start(), until: None, bytes_max: 1, one_at_least: true };
                match broker.read(&partition, range).await {
                    Err(error @ BrokerError::UnreadableRecords { .. }) => {
                        let text = error.to_string();
                        let name = file.file_name().unwrap().to_str().unwrap();
                        assert!(text.contains(name) && text.contains("everything else goes on"), "{text}");
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                    read => drop(read.unwrap()),
                }
            }
            // Writes still work.
            broker.commit(Commit::default()).await.unwrap().await.unwrap();
            broker.stop();
        });
        let report = check(data, false).unwrap();
        // The records of a deleted topic belong to no topic any more.
        costly.fetch_add(u64::from(lost_records(&report) > 0), Ordering::Relaxed);
        assert!(check(data, true).unwrap().is_repaired());
        block_on(check_repaired(data, &written, lost_records(&report)));
    });
}

/// Returns the positions, in the database's file, of the journal's values that are sealed, or of those that are not.
fn journal_values(data: &Path, sealed: bool) -> Vec<Range<usize>> {
    let copy = folder();
    let copied = copy.path().join(DATABASE);
    std::fs::copy(data.join(DATABASE), &copied).unwrap();
    let database = redb::Database::open(&copied).unwrap();
    let read = database.begin_read().unwrap();
    let marks = read.open_table(TableDefinition::<&str, u64>::new("marks"));
    let sealed_to = marks.map_or(0, |marks| marks.get("sealed-to").unwrap().map_or(0, |mark| mark.value()));
    let journal = read.open_table(TableDefinition::<u64, &[u8]>::new("journal")).unwrap();
    let file = std::fs::read(data.join(DATABASE)).unwrap();
    let mut found = Vec::new();
    let wanted = if sealed { 0..sealed_to } else { sealed_to..u64::MAX };
    for value in journal.range(wanted).unwrap() {
        let value = value.unwrap().1.value().to_vec();
        // Unused pages may contain the value too.
        let places = (0..=file.len() - value.len()).filter(|at| file[*at..].starts_with(&value));
        found.extend(places.map(|at| at..at + value.len()));
    }
    found
}

/// Flips a bit of one of these values. Returns whether there is any such value.
fn flip_a_journal_value(data: &Path, sealed: bool, seed: u64) -> bool {
    let mut random = StdRng::seed_from_u64(seed);
    let values: Vec<usize> = journal_values(data, sealed).into_iter().flatten().collect();
    if values.is_empty() {
        return false;
    }
    let position = values[random.random_range(0..values.len())];
    flip(&data.join(DATABASE), position, random.random_range(0..8));
    true
}

#[test]
fn a_flipped_bit_of_the_journal_costs_its_batch_at_most_and_a_repair_cuts_that_out() {
    let [opened, costly, refused_by_redb] = [const { AtomicU64::new(0) }; 3];
    // The flips must include bits of batches, and cases after a kill in which redb verifies every page.
    let enough = || {
        let at_least = |count: &AtomicU64, least| count.load(Ordering::Relaxed) > least;
        at_least(&opened, 10) && at_least(&costly, 5) && at_least(&refused_by_redb, 10)
    };
    for_seeds_until(150, enough, |seed| {
        let ended = [Ended::Stopped, Ended::Killed][seed as usize / 10 % 2];
        let written = write(seed % 10, ended);
        let data = written.data.path();
        if !flip_a_journal_value(data, false, seed) {
            return;
        }
        let costs = match open_with(data, StoreOptions::default()) {
            // Values that are not record batches must be intact. After a kill, redb also verifies every page itself.
            Err(error) => {
                assert!(ended == Ended::Killed || matches!(error, StoreError::Corrupt { .. }), "{error}");
                assert!(error.is_of_damage(), "{error}");
                refused_by_redb.fetch_add(u64::from(ended == Ended::Killed), Ordering::Relaxed);
                None
            }
            Ok(broker) => block_on(async {
                opened.fetch_add(1, Ordering::Relaxed);
                let costs = check_costs_one_batch_at_most(&broker, &written).await;
                broker.stop();
                Some(costs)
            }),
        };
        let report = check(data, false).unwrap();
        let lost = lost_records(&report);
        if let Some(costs) = costs {
            costly.fetch_add(u64::from(costs), Ordering::Relaxed);
            assert_eq!(lost > 0, costs, "{report:#?}");
        } else {
            assert!(!report.is_sound());
            let in_a_batch = ended == Ended::Killed;
            assert!(lost == 0 || in_a_batch, "a bit flipped outside of the batches must be repairable: {report:#?}");
        }
        let repaired = check(data, true).unwrap();
        assert!(repaired.is_repaired(), "{repaired:#?}");
        block_on(check_repaired(data, &written, lost));
    });
}

#[test]
fn a_flipped_bit_of_what_is_sealed_and_still_in_the_journal_costs_nothing() {
    let flipped = AtomicU64::new(0);
    let enough = || flipped.load(Ordering::Relaxed) > 0;
    for_seeds_until(40, enough, |seed| {
        let written = write(seed, Ended::Stopped);
        let data = written.data.path();
        if !flip_a_journal_value(data, true, seed) {
            return;
        }
        let report = check(data, true).unwrap();
        assert_eq!(lost_records(&report), 0, "{report:#?}");
        assert!(report.is_repaired(), "{report:#?}");
        flipped.fetch_add(u64::from(!report.is_sound()), Ordering::Relaxed);
        block_on(check_repaired(data, &written, 0));
    });
}

#[test]
fn a_flipped_bit_of_redbs_own_pages_is_put_right_or_told() {
    for_seeds(40, |seed| {
        let ended = [Ended::Stopped, Ended::Killed][seed as usize / 10 % 2];
        let written = write(seed % 10, ended);
        let data = written.data.path();
        let mut random = StdRng::seed_from_u64(seed);
        let file = data.join(DATABASE);
        let bytes = std::fs::read(&file).unwrap();
        // Skips the header, of which redb keeps two copies, and the letters that the records consist of.
        let is_own = |position: &usize| !matches!(bytes[*position], 0 | b'a'..=b'p');
        let own: Vec<usize> = (4096..bytes.len()).filter(is_own).collect();
        let (position, bit) = (own[random.random_range(0..own.len())], random.random_range(0..8));
        flip(&file, position, bit);
        check_put_right_or_told(data, &written);
    });
}

#[test]
fn a_start_on_a_damaged_database_never_panics_and_ends_with_one_sentence() {
    let written = [Ended::Stopped, Ended::Killed].map(|ended| write(2, ended));
    let (refused, panicked) = (AtomicU64::new(0), AtomicU64::new(0));
    let enough = || refused.load(Ordering::Relaxed) >= 30 && panicked.load(Ordering::Relaxed) >= 3;
    for_seeds_until(150, enough, |seed| {
        let mut random = StdRng::seed_from_u64(seed);
        let data = folder();
        copy_folder(written[seed as usize % 2].data.path(), data.path());
        let file = data.path().join([DATABASE, "tables.redb"][seed as usize / 2 % 2]);
        let bytes = std::fs::metadata(&file).unwrap().len();
        let cut_to = match random.random_range(0..8) {
            0 => Some(bytes - 1),
            1 => Some(bytes - 4096),
            2 => Some(bytes / 2),
            _ => None,
        };
        match cut_to {
            Some(left) => std::fs::File::options().write(true).open(&file).unwrap().set_len(left).unwrap(),
            None => (0..4).for_each(|_| flip(&file, random.random_range(0..bytes as usize), random.random_range(0..8))),
        }
        let mut serve = Command::new(millstream());
        serve
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--kafka-address", "none", "--data"])
            .arg(data.path());
        let mut server = serve.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if !said.is_empty() {
            // The server serves what can be read. Closing may be more than redb can do in this process.
            server.kill().unwrap();
            server.wait().unwrap();
            return;
        }
        let ended = server.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{err}");
        // The line below the error says which command helps.
        let lines: Vec<&str> =
            err.lines().filter(|line| !line.starts_with("  `millstream check --data DIR`")).collect();
        let Some((line, logged)) = lines.split_last() else { panic!("the server printed no error") };
        let is_log = |line: &&str| line.starts_with("20") && (line.contains(" ERROR ") || line.contains(" WARN "));
        assert!(line.starts_with("error: ") && logged.iter().all(is_log), "{err}");
        panicked.fetch_add(u64::from(line.starts_with("error: the data directory ")), Ordering::Relaxed);
        refused.fetch_add(1, Ordering::Relaxed);
    });
}

/// Checks that the damage is either repaired or reported as needing a backup. Returns whether any damage was found.
fn check_put_right_or_told(data: &Path, written: &Written) -> bool {
    let report = check(data, true).unwrap();
    if report.is_sound() || report.is_repaired() {
        block_on(check_repaired(data, written, lost_records(&report)));
    } else {
        assert!(report.damages.iter().any(|damage| damage.reason.contains("backup")), "{report:#?}");
    }
    !report.is_sound()
}

#[test]
fn a_flipped_bit_of_redbs_lists_of_free_pages_is_put_right_by_a_repair() {
    let written = [DATABASE, "tables.redb"].map(|name| (name, write(1, Ended::Stopped)));
    let [told, anew] = [const { AtomicU64::new(0) }; 2];
    for_seeds(100, |seed| {
        let (name, written) = &written[seed as usize % 2];
        let data = folder();
        copy_folder(written.data.path(), data.path());
        let file = data.path().join(name);
        let mut random = StdRng::seed_from_u64(seed);
        let bytes = std::fs::read(&file).unwrap();
        // A bitmap of the regions of the file that have free pages, for each page size. It has 64 bits, of which one
        // region exists and the others count as full.
        let is_one = |at: &usize| bytes[*at..].starts_with(&[1, 0, 0, 0]) && bytes[at + 5..].starts_with(&[0xff; 7]);
        let bitmaps: Vec<usize> = (4096..bytes.len() - 12).filter(is_one).map(|at| at + 4).collect();
        let at = bitmaps[random.random_range(0..bitmaps.len())] + random.random_range(0..8);
        flip(&file, at, random.random_range(0..8));
        // Opening the database and closing it in an orderly way rewrites the list with a matching checksum.
        let used = seed / 2 % 2 == 1 && std::panic::catch_unwind(|| drop(redb::Database::open(&file).unwrap())).is_ok();
        anew.fetch_add(u64::from(used), Ordering::Relaxed);
        let was_told = check_put_right_or_told(data.path(), written);
        told.fetch_add(u64::from(was_told), Ordering::Relaxed);
    });
    if std::env::var("MILLSTREAM_TEST_SEED").is_err() {
        assert!(told.into_inner() > 10, "too few flips were found by the check");
        assert!(anew.into_inner() > 10, "too few lists were rewritten before the check");
    }
}

/// Returns the positions of the catalog's rows in the database, where they are stored as text.
fn catalog_rows(database: &Path) -> Vec<usize> {
    let bytes = std::fs::read(database).unwrap();
    (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"topic/") || bytes[*at..].starts_with(b"{\"id\":")).collect()
}

#[test]
fn a_flipped_bit_of_the_catalog_never_costs_a_topic_in_silence() {
    for_seeds(40, |seed| {
        let ended = [Ended::Stopped, Ended::Killed][seed as usize % 2];
        let written = write(seed % 10, ended);
        let data = written.data.path();
        let file = data.join(DATABASE);
        let mut random = StdRng::seed_from_u64(seed);
        // The rows of earlier commits are still in the file.
        let rows = catalog_rows(&file);
        let (within, bit) = (random.random_range(0..15), random.random_range(0..8));
        rows.iter().for_each(|at| flip(&file, at + within, bit));
        // A server does not start with this damage. After a kill, redb refuses the database first.
        match open_with(data, StoreOptions::default()) {
            Err(StoreError::Corrupt { .. } | StoreError::Database { .. }) => {}
            other => panic!("the broker must not open with this damage, the error is {:?}", other.err()),
        }
        let report = check(data, true).unwrap();
        assert!(!report.is_repaired(), "{report:#?}");
        assert!(report.damages.iter().any(|damage| damage.reason.contains("backup")), "{report:#?}");
    });
}

const TABLES: &str = "tables.redb";

/// Writes a data directory with a few sealed rows in each table, and closes it in an orderly way.
async fn write_rows(data: &Path) {
    let running = Running::open(data, 10_000);
    let retained = TopicSettings { retention_ms: Some(5_000), ..TopicSettings::default() };
    let topic = running.topic("t", 1, retained).await;
    let id = running.broker.init_producer(None).await.unwrap();
    for (number, timestamp_ms) in [1_000, 10_000].into_iter().enumerate() {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.set_producer(id.id.get(), id.epoch, number as i32);
        builder.push(timestamp_ms, Some(b"k"), Some(b"v"), []);
        append(&running.broker, &topic, 0, builder.finish().unwrap()).await.unwrap();
    }
    let partition = &topic.partitions()[0];
    wait_until("the old record is gone", || partition.start().get() == 1).await;
    for name in ["g", "h"] {
        let id = GroupId::new(name).unwrap();
        let group = running.broker.groups().get_or_create(&id, GroupKind::Consumer).unwrap();
        running.broker.set_offsets(&group, &[(partition.name().clone(), partition.end())]).await.unwrap();
    }
    for key in [b"first", b"other"] {
        let state = vec![state_change("p/count", 0, key, Some(b"accumulator"), 1)];
        running.broker.commit(Commit { state, ..Commit::default() }).await.unwrap().await.unwrap();
    }
    running.seal().await;
    running.stop().await;
}

/// The rows of a small table, which are in one leaf page.
struct Leaf {
    file: &'static str,
    table: &'static str,
    /// All keys, followed by all values.
    rows: Vec<u8>,
    /// Position of the rows in the leaf's page.
    begin: usize,
}

fn leaf<K: redb::Key + 'static, V: redb::Value + 'static>(
    data: &Path,
    file: &'static str,
    table: &'static str,
) -> Leaf {
    let copy = folder();
    let copied = copy.path().join(file);
    std::fs::copy(data.join(file), &copied).unwrap();
    let read = redb::Database::open(&copied).unwrap().begin_read().unwrap();
    let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
    for row in read.open_table(TableDefinition::<K, V>::new(table)).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        keys.extend_from_slice(K::as_bytes(&key.value()).as_ref());
        values.extend_from_slice(V::as_bytes(&value.value()).as_ref());
        count += 1;
    }
    assert!(count > 0, "table {table} must have rows");
    // The kind of the page and the number of rows, followed by the end of each if their lengths vary.
    let ends = usize::from(K::fixed_width().is_none()) + usize::from(V::fixed_width().is_none());
    Leaf { file, table, rows: [keys, values].concat(), begin: 4 + 4 * count * ends }
}

impl Leaf {
    /// Returns the positions of the rows in the file. Unused pages may contain them too.
    fn places(&self, data: &Path) -> Vec<usize> {
        const PAGE_BYTES: usize = 4096;
        let bytes = std::fs::read(data.join(self.file)).unwrap();
        let places = (self.begin..bytes.len()).step_by(PAGE_BYTES);
        let places: Vec<usize> = places.filter(|at| bytes[*at..].starts_with(&self.rows)).collect();
        assert!(!places.is_empty(), "the rows of {} must be in {}", self.table, self.file);
        places
    }
}

#[test]
fn a_flipped_bit_of_a_row_of_the_tables_of_the_marks_and_of_the_log_starts_is_told() {
    let written = folder();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(write_rows(written.path()));
    let data = written.path();
    let leaves = [
        leaf::<&[u8], &[u8]>(data, TABLES, "offsets"),
        leaf::<&[u8], &[u8]>(data, TABLES, "producers"),
        leaf::<&[u8], (i64, u64)>(data, TABLES, "counts"),
        leaf::<&[u8], &[u8]>(data, TABLES, "state/p/count"),
        leaf::<(u32, u32), i64>(data, DATABASE, "log-starts"),
        leaf::<&str, u64>(data, DATABASE, "marks"),
    ];
    assert!(check(data, false).unwrap().is_sound());
    for_seeds(120, |seed| {
        let leaf @ Leaf { file, table, .. } = &leaves[seed as usize % leaves.len()];
        let data = folder();
        copy_folder(written.path(), data.path());
        let mut random = StdRng::seed_from_u64(seed);
        let (within, bit) = (random.random_range(0..leaf.rows.len()), random.random_range(0..8));
        leaf.places(data.path()).iter().for_each(|at| flip(&data.path().join(file), at + within, bit));
        for repair in [false, true] {
            let report = check(data.path(), repair).unwrap();
            let said = format!("{table}, byte {within}, bit {bit}: {report:#?}");
            assert!(!report.is_sound() && !report.is_repaired(), "{said}");
            let needs_backup = report.damages.iter().filter(|damage| damage.reason.contains("backup"));
            assert!(needs_backup.map(|damage| damage.file.as_str()).any(|of| of == *file), "{said}");
        }
        // A server does not start if it depends on the damaged rows.
        if *file == DATABASE {
            let refused = open_with(data.path(), StoreOptions::default()).map(drop).unwrap_err();
            assert!(matches!(refused, StoreError::Corrupt { .. }), "{table}: {refused}");
        }
    });
}
