//! The yardsticks of Millstream: plain Rust code, a bare redb, and a plain file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use millstream_record::{BatchBuilder, Column, Columns, ColumnsReader, Compression, RecordBatch};
use millstream_runtime::stage::Outcome;
use millstream_runtime::stage::aggregate::{Accumulators, Aggregated, Groups};
use millstream_runtime::state::TaskState;
use millstream_tests::measure::samples::milliseconds;
use redb::{Database, TableDefinition};

/// Builds a record batch of `records` records with values of `value_bytes` bytes and with `keys` distinct keys.
pub(crate) fn batch(records: usize, value_bytes: usize, keys: u64, seed: u64) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    let mut value = vec![b'x'; value_bytes];
    for index in 0..records {
        let number = mix(seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
        // The filter drops one out of ten records.
        value[0] = if number.is_multiple_of(10) { b'a' } else { b'b' };
        value[8..16].copy_from_slice(&number.to_be_bytes());
        let key = format!("key-{:08}", number % keys);
        builder.push(index as i64, Some(key.as_bytes()), Some(&value), []);
    }
    builder.finish().unwrap()
}

/// Returns a number that looks random.
pub(crate) fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Implements `bench-filter` in native code.
pub(crate) fn filter(input: &Columns) -> Columns {
    let keep: Vec<u8> = input
        .values
        .iter()
        .map(|value| u8::from(value.and_then(<[u8]>::first).is_some_and(|byte| byte.is_multiple_of(2))))
        .collect();
    input.select(&keep)
}

/// Implements `bench-map` in native code.
pub(crate) fn map(input: &Columns) -> Columns {
    let mut out = input.clone();
    let mut at = 0;
    for &length in &out.values.lengths {
        at += length as usize;
        out.values.bytes[at - 1] ^= 1;
    }
    out
}

/// Implements `bench-aggregate` in native code, on the same state as in a task: the grouping, the lookups and the
/// stored state are the same.
pub(crate) fn aggregate(input: &Columns, state: &TaskState) -> Aggregated {
    let mut groups = Groups::new(state.hasher().clone());
    let of_record: Vec<u32> = input.keys.iter().map(|key| groups.group_of(key.unwrap())).collect();
    let mut before = Column::default();
    state.look_up(&groups, &mut before).unwrap();
    let mut stats: Vec<Stats> = before.iter().map(|entry| entry.map_or(Stats::default(), Stats::decode)).collect();
    let reader = ColumnsReader::new(input);
    for (index, &group) in of_record.iter().enumerate() {
        let row = reader.row(index);
        stats[group as usize].add(row.value.map_or(0, <[u8]>::len), row.timestamp_ms);
    }
    let (mut accumulators, mut output) = (Column::default(), Columns::default());
    for (group, stats) in stats.iter().enumerate() {
        let encoded = stats.encode();
        accumulators.push(Some(&encoded));
        output.push(0, stats.0[2], Some(groups.key(group)), Some(&encoded), std::iter::empty());
    }
    Aggregated {
        outcome: Outcome { output, failures: Vec::new(), failed: Columns::default() },
        groups,
        before,
        accumulators,
    }
}

/// Number of records, total size of their values, and their largest timestamp.
#[derive(Clone, Copy, Default)]
struct Stats([i64; 3]);

impl Stats {
    fn decode(bytes: &[u8]) -> Self {
        let mut fields = bytes.as_chunks::<8>().0.iter().map(|field| i64::from_le_bytes(*field));
        Self(std::array::from_fn(|_| fields.next().unwrap()))
    }

    fn add(&mut self, value_bytes: usize, timestamp_ms: i64) {
        self.0[0] += 1;
        self.0[1] += value_bytes as i64;
        self.0[2] = self.0[2].max(timestamp_ms);
    }

    fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (field, out) in self.0.iter().zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// Number of values in one commit of the bare loops.
const VALUES: u64 = 16;
/// Size of each value, in bytes. It fits in pages of 64 KiB.
const VALUE_BYTES: usize = 65_472;

/// The result of a bare loop.
pub(crate) struct Bare {
    pub(crate) mb_per_s: f64,
    /// Duration of the longest commit, in ms.
    pub(crate) longest_ms: f64,
}

/// Times this many commits of 16 values of 65,472 bytes.
fn bare(commits: u64, mut commit: impl FnMut(u64, &[u8])) -> Bare {
    let value = vec![7u8; VALUE_BYTES];
    let mut longest = Duration::ZERO;
    let begun = Instant::now();
    for number in 0..commits {
        let asked = Instant::now();
        commit(number, &value);
        longest = longest.max(asked.elapsed());
    }
    let megabytes = (commits * VALUES) as f64 * VALUE_BYTES as f64 / 1e6;
    Bare { mb_per_s: megabytes / begun.elapsed().as_secs_f64(), longest_ms: milliseconds(longest) }
}

/// Runs a bare redb that commits 16 values at a time.
pub(crate) fn bare_redb(folder: &Path, commits: u64) -> Bare {
    const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");
    let database = Database::create(folder.join("bare.redb")).unwrap();
    bare(commits, |commit, value| {
        let transaction = database.begin_write().unwrap();
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            for index in 0..VALUES {
                table.insert(commit * VALUES + index, value).unwrap();
            }
        }
        transaction.commit().unwrap();
    })
}

/// Measures the layer below redb: appends the same bytes to a plain file, with an fdatasync in place of each commit.
pub(crate) fn bare_file(folder: &Path, commits: u64) -> Bare {
    let mut file = File::create(folder.join("bare.file")).unwrap();
    bare(commits, |_, value| {
        for _ in 0..VALUES {
            file.write_all(value).unwrap();
        }
        file.sync_data().unwrap();
    })
}
