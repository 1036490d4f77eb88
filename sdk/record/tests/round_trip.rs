//! Tests that records survive a round trip through a batch, and that invalid batches are rejected without harm.
#![allow(clippy::unwrap_used)]

use millstream_record::checksum;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use millstream_record::{
    BatchBuilder, BatchError, Columns, ColumnsReader, Compression, Limits, RecordBatch, patch_batch, sequence_after,
    split_batches,
};
use proptest::prelude::*;

mod seeded;

/// Counts live and peak allocations, to check the parser's memory limit.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls are forwarded to the system allocator; the counters do not touch the allocated memory.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Debug)]
struct Model {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..200))
}

fn record() -> impl Strategy<Value = Model> {
    let headers = prop::collection::vec(("[a-cé]{0,5}", bytes()), 0..4);
    (any::<i32>(), bytes(), bytes(), headers).prop_map(|(timestamp, key, value, headers)| Model {
        timestamp_ms: i64::from(timestamp),
        key,
        value,
        headers,
    })
}

fn codec() -> impl Strategy<Value = Compression> {
    prop::sample::select(vec![
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ])
}

fn build(records: &[Model], codec: Compression) -> RecordBatch {
    let mut builder = BatchBuilder::new(codec);
    for record in records {
        let headers: Vec<_> = record.headers.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect();
        builder.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), headers.iter().copied());
    }
    builder.finish().expect("records were pushed")
}

/// Reads a batch in every possible way. The test is that this returns.
fn read_all(bytes: &Bytes, limits: &Limits) {
    if let Ok(batch) = RecordBatch::check(bytes.clone(), limits) {
        assert_eq!(batch.records(limits).unwrap().iter().filter(Result::is_ok).count(), batch.record_count() as usize);
    }
    for batch in split_batches(bytes.clone()).flatten() {
        if let Ok(records) = batch.records(limits) {
            records.iter().flatten().for_each(|record| assert!(record.headers().count() < 1_000_000));
        }
        let mut columns = Columns::default();
        if columns.append_batch(&batch, 0, limits).is_ok() {
            columns.check().unwrap();
        }
    }
}

proptest! {
    #![proptest_config(seeded::seeded())]

    #[test]
    fn records_come_back_as_pushed(records in prop::collection::vec(record(), 1..30), codec in codec(), base in 0i64..1 << 40) {
        let limits = Limits::default();
        let mut encoded = build(&records, codec).into_bytes().to_vec();
        patch_batch(&mut encoded, base, 3);
        let batch = RecordBatch::check(encoded.into(), &limits).unwrap();
        prop_assert_eq!(batch.record_count() as usize, records.len());
        prop_assert_eq!((batch.base_offset(), batch.leader_epoch(), batch.compression()), (base, 3, codec));
        prop_assert_eq!(batch.max_timestamp_ms(), records.iter().map(|r| r.timestamp_ms).max().unwrap());

        let read = batch.records(&limits).unwrap();
        let mut columns = Columns::default();
        columns.append_batch(&batch, base, &limits).unwrap();
        columns.check().unwrap();
        let rows = ColumnsReader::new(&columns);
        for (index, (view, record)) in read.iter().zip(&records).enumerate() {
            let view = view.unwrap();
            prop_assert_eq!(view.offset, base + index as i64);
            prop_assert_eq!(view.timestamp_ms, record.timestamp_ms);
            prop_assert_eq!(view.key, record.key.as_deref());
            prop_assert_eq!(view.value, record.value.as_deref());
            let headers: Vec<_> = record.headers.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect();
            prop_assert_eq!(view.headers().collect::<Vec<_>>(), headers.clone());
            let row = rows.row(index);
            prop_assert_eq!((row.offset, row.timestamp_ms, row.key, row.value), (view.offset, view.timestamp_ms, view.key, view.value));
            prop_assert_eq!(rows.headers(index).collect::<Vec<_>>(), headers);
            let owned = read.to_record(&view);
            prop_assert_eq!(owned.key.as_deref(), record.key.as_deref());
        }
    }

    #[test]
    fn columns_are_cut_and_joined_like_rows(records in prop::collection::vec(record(), 1..30), mask in prop::collection::vec(0u8..2, 30), cut in 0usize..30) {
        let limits = Limits::default();
        let mut columns = Columns::default();
        columns.append_batch(&build(&records, Compression::None), 0, &limits).unwrap();
        let mask = &mask[..records.len()];
        let kept: Vec<u32> = (0..records.len() as u32).filter(|i| mask[*i as usize] != 0).collect();
        let selected = columns.select(mask);
        selected.check().unwrap();
        prop_assert_eq!(&selected, &columns.gather(&kept));

        let cut = cut.min(records.len());
        let (mut left, right) = (columns.slice(0..cut), columns.slice(cut..records.len()));
        left.extend(&right);
        left.check().unwrap();
        let all: Vec<u32> = (0..records.len() as u32).collect();
        prop_assert_eq!(left.gather(&all), columns.gather(&all));
    }

    #[test]
    fn mutated_batches_are_refused_or_read_within_bounds(
        records in prop::collection::vec(record(), 1..10), codec in codec(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), fix_crc: bool,
    ) {
        let limits = Limits { batch_bytes_max: 1 << 20, inflated_bytes_max: 1 << 20, record_bytes_max: 1 << 20 };
        let mut encoded = build(&records, codec).into_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(encoded.len());
            encoded[at] = byte;
        }
        if fix_crc {
            let crc = checksum::crc32c(&encoded[21..]);
            encoded[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let size = encoded.len();
        read_all(&Bytes::from(encoded), &limits);
        // Decompressed bytes count twice (body and columns), and the columns of small records take up to 8 times the
        // input. The last term allows for other tests that run in parallel.
        let bound = 4 * limits.inflated_bytes_max + 64 * size + (48 << 20);
        let peak = PEAK.load(Ordering::Relaxed) - before.min(PEAK.load(Ordering::Relaxed));
        prop_assert!(peak < bound, "{} bytes were allocated for {}", peak, size);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), magic: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() > 16 {
            bytes[16] = 2;
        }
        read_all(&bytes.into(), &Limits::default());
    }
}

fn with_crc(mut encoded: Vec<u8>) -> Bytes {
    let crc = checksum::crc32c(&encoded[21..]);
    encoded[17..21].copy_from_slice(&crc.to_be_bytes());
    encoded.into()
}

fn one(value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, None, Some(value), []);
    builder.finish().unwrap().into_bytes().to_vec()
}

#[test]
fn each_lie_has_its_error() {
    let limits = Limits::default();
    let check = |bytes: Vec<u8>| RecordBatch::check(bytes.into(), &limits).unwrap_err();

    let mut wrong_crc = one(b"value");
    *wrong_crc.last_mut().unwrap() ^= 1;
    assert!(matches!(check(wrong_crc), BatchError::Crc { .. }));

    for count in [0i32, 2, 1000, -1, i32::MAX] {
        let mut lying = one(b"value");
        lying[57..61].copy_from_slice(&count.to_be_bytes());
        lying[23..27].copy_from_slice(&(count.wrapping_sub(1)).to_be_bytes());
        let error = RecordBatch::check(with_crc(lying), &limits).unwrap_err();
        assert!(matches!(error, BatchError::Count { .. }), "{count}: {error}");
    }

    let mut old = one(b"value");
    old[16] = 1;
    assert_eq!(check(old), BatchError::Magic(1));

    let mut trailing = one(b"value");
    trailing.push(0);
    assert_eq!(check(trailing), BatchError::TrailingBytes(1));

    let cut = one(b"value");
    assert!(matches!(check(cut[..cut.len() - 1].to_vec()), BatchError::Truncated { .. }));

    let mut codec = one(b"value");
    codec[22] = 7;
    assert_eq!(RecordBatch::check(with_crc(codec), &limits).unwrap_err(), BatchError::UnknownCompression(7));

    let mut control = one(b"value");
    control[22] = 0x20;
    assert_eq!(RecordBatch::check(with_crc(control), &limits).unwrap_err(), BatchError::Control);

    let small = Limits { batch_bytes_max: 70, ..limits };
    assert!(matches!(RecordBatch::check(one(&[0; 100]).into(), &small), Err(BatchError::TooLarge { .. })));
    let small = Limits { record_bytes_max: 50, ..limits };
    assert!(matches!(RecordBatch::check(one(&[0; 100]).into(), &small), Err(BatchError::RecordTooLarge { .. })));
}

#[test]
fn a_bomb_is_refused_at_its_bound() {
    let limits = Limits { inflated_bytes_max: 1 << 20, ..Limits::default() };
    for codec in [Compression::Gzip, Compression::Lz4, Compression::Zstd, Compression::Snappy] {
        let mut builder = BatchBuilder::new(codec);
        builder.push(0, None, Some(&vec![0; 14 << 20]), []);
        let bomb = builder.finish().unwrap();
        assert!(bomb.as_bytes().len() < 1 << 20, "{codec}");
        let error = RecordBatch::check(bomb.into_bytes(), &limits).unwrap_err();
        assert_eq!(error, BatchError::InflatesTooFar { bytes_max: 1 << 20 }, "{codec}");
    }
}

#[test]
fn append_time_is_every_records_time() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(5, None, Some(b"a"), []);
    builder.push(9, None, Some(b"b"), []);
    let mut encoded = builder.finish().unwrap().into_bytes().to_vec();
    encoded[22] |= 0x08;
    let batch = RecordBatch::check(with_crc(encoded), &Limits::default()).unwrap();
    let records = batch.records(&Limits::default()).unwrap();
    let times: Vec<_> = records.iter().map(|record| record.unwrap().timestamp_ms).collect();
    assert_eq!(times, [9, 9]);
}

#[test]
fn a_batch_takes_another_producer_whoever_shares_its_bytes() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(5, Some(b"key"), Some(b"value"), []);
    let first = builder.finish().unwrap();
    let shared = first.clone();
    let numbered = first.with_producer(7, 3, i32::MAX);
    assert_eq!((numbered.producer_id(), numbered.producer_epoch(), numbered.base_sequence()), (7, 3, i32::MAX));
    let again = numbered.with_producer(8, 0, 1);
    let checked = RecordBatch::check(again.into_bytes(), &Limits::default()).unwrap();
    assert_eq!(checked.producer_id(), 8);
    assert_eq!(shared.producer_id(), -1);
    shared.verify_crc().unwrap();
    assert_eq!(checked.with_producer(-1, -1, -1), shared);
}

#[test]
fn a_producer_without_epoch_or_sequence_is_refused() {
    for (epoch, base_sequence) in [(-1, 0), (0, -1)] {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.set_producer(7, epoch, base_sequence);
        builder.push(5, None, None, []);
        let refused = RecordBatch::check(builder.finish().unwrap().into_bytes(), &Limits::default());
        assert_eq!(refused.unwrap_err(), BatchError::Producer { id: 7, epoch, base_sequence });
    }
}

#[test]
fn sequences_begin_again_at_zero_after_the_largest() {
    let after = [(0, 1), (i32::MAX, 1), (i32::MAX - 1, 3), (i32::MAX, i32::MAX as u32), (5, 0)];
    assert_eq!(after.map(|(sequence, records)| sequence_after(sequence, records)), [1, 0, 1, i32::MAX - 1, 5]);
}
