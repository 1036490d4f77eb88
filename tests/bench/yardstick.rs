//! What Millstream is measured against: plain Rust, and a bare redb.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millstream_record::{BatchBuilder, Columns, ColumnsReader, Compression, RecordBatch};
use redb::{Database, TableDefinition};

/// A record batch of `records` records with values of `value_bytes`, keys out of `keys`.
pub(crate) fn batch(records: usize, value_bytes: usize, keys: u64, seed: u64) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    let mut value = vec![b'x'; value_bytes];
    for index in 0..records {
        let number = mix(seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
        // One in ten is dropped by the filter.
        value[0] = if number.is_multiple_of(10) { b'a' } else { b'b' };
        value[8..16].copy_from_slice(&number.to_be_bytes());
        let key = format!("key-{:08}", number % keys);
        builder.push(index as i64, Some(key.as_bytes()), Some(&value), []);
    }
    builder.finish().unwrap()
}

/// A number that looks random.
pub(crate) fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The filter of `bench-filter`, natively.
pub(crate) fn filter(input: &Columns) -> Columns {
    let keep: Vec<u8> = input
        .values
        .iter()
        .map(|value| u8::from(value.and_then(<[u8]>::first).is_some_and(|byte| byte.is_multiple_of(2))))
        .collect();
    input.select(&keep)
}

/// The map of `bench-map`, natively.
pub(crate) fn map(input: &Columns) -> Columns {
    let mut out = input.clone();
    let mut at = 0;
    for &length in &out.values.lengths {
        at += length as usize;
        out.values.bytes[at - 1] ^= 1;
    }
    out
}

/// The aggregate of `bench-aggregate`, natively.
pub(crate) fn aggregate(input: &Columns, state: &mut HashMap<Vec<u8>, [i64; 3]>) -> Columns {
    let mut touched: HashMap<&[u8], usize> = HashMap::new();
    let mut order: Vec<&[u8]> = Vec::new();
    let reader = ColumnsReader::new(input);
    for index in 0..input.len() {
        let row = reader.row(index);
        let key = row.key.unwrap();
        touched.entry(key).or_insert_with(|| {
            order.push(key);
            order.len() - 1
        });
        if !state.contains_key(key) {
            state.insert(key.to_vec(), [0; 3]);
        }
        let stats = state.get_mut(key).unwrap();
        stats[0] += 1;
        stats[1] += row.value.map_or(0, <[u8]>::len) as i64;
        stats[2] = stats[2].max(row.timestamp_ms);
    }
    let mut out = Columns::default();
    for key in order {
        let stats = state[key];
        let mut value = [0; 24];
        for (field, out) in stats.iter().zip(value.chunks_exact_mut(8)) {
            out.copy_from_slice(&field.to_le_bytes());
        }
        out.push(0, stats[2], Some(key), Some(&value), std::iter::empty());
    }
    out
}

/// What the host of a virtual machine takes of its cores, moment by moment: nothing in it goes on meanwhile.
pub(crate) struct Stolen {
    ended: Arc<AtomicBool>,
    samples: JoinHandle<Vec<(Instant, f64)>>,
}

impl Stolen {
    /// Looks from now on, each few milliseconds.
    pub(crate) fn watch() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let samples = std::thread::spawn(move || {
            let mut samples = vec![(Instant::now(), stolen_ms())];
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                samples.push((Instant::now(), stolen_ms()));
            }
            samples
        });
        Self { ended, samples }
    }

    /// Milliseconds of that time, of all cores together; 0 where the system does not tell.
    pub(crate) fn during(self, time: &Range<Instant>) -> f64 {
        self.ended.store(true, Ordering::Relaxed);
        let samples = self.samples.join().unwrap();
        let before = samples.iter().rfind(|(at, _)| *at <= time.start).unwrap_or(&samples[0]);
        let after = samples.iter().find(|(at, _)| *at >= time.end).unwrap_or(&samples[samples.len() - 1]);
        after.1 - before.1
    }
}

/// Of all cores, since the machine began. See proc_stat(5): the eighth number, in hundredths of a second.
fn stolen_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let of_all = stat.lines().next().and_then(|line| line.split_whitespace().nth(8));
    of_all.and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0) * 10.0
}

/// What a bare redb did.
pub(crate) struct Bare {
    pub(crate) mb_per_s: f64,
    /// Its longest commit.
    pub(crate) longest_ms: f64,
}

/// A bare redb that commits 16 values of 65,472 bytes at a time.
pub(crate) fn bare_redb(folder: &Path, commits: u64) -> Bare {
    const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");
    const VALUES: u64 = 16;
    let value = vec![7u8; 65_472];
    let database = Database::create(folder.join("bare.redb")).unwrap();
    let mut longest_ms = 0.0f64;
    let begun = Instant::now();
    for commit in 0..commits {
        let asked = Instant::now();
        let transaction = database.begin_write().unwrap();
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            for index in 0..VALUES {
                table.insert(commit * VALUES + index, value.as_slice()).unwrap();
            }
        }
        transaction.commit().unwrap();
        longest_ms = longest_ms.max(asked.elapsed().as_secs_f64() * 1e3);
    }
    let megabytes = (commits * VALUES) as f64 * value.len() as f64 / 1e6;
    Bare { mb_per_s: megabytes / begun.elapsed().as_secs_f64(), longest_ms }
}
