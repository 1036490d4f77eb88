//! Tests that batches written by real Kafka clients are read as the records that were put in. `vectors/README.md`
//! describes how they were made.

// The lint's exception for tests does not cover the helper functions.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use millstream_record::{
    BatchBuilder, BatchError, Columns, Compression, Header, Limits, Record, RecordBatch, TimestampType,
};
use serde_json::Value;

/// Minimum number of vectors, so that the tests do not pass on an empty folder.
const VECTORS_MIN: usize = 40;

struct Vector {
    name: String,
    bytes: Bytes,
    expected: Value,
}

fn vectors() -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "bin"));
    paths.sort();
    assert!(paths.len() >= VECTORS_MIN, "only {} vectors", paths.len());
    let vectors = paths.into_iter().map(|path| Vector {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        bytes: fs::read(&path).unwrap().into(),
        expected: serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap(),
    });
    vectors.collect()
}

fn accepted() -> impl Iterator<Item = Vector> {
    vectors().into_iter().filter(|vector| vector.expected.get("refused").is_none())
}

fn base64(text: &str) -> Bytes {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = ALPHABET.iter().position(|known| *known == byte).expect("a base64 digit");
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out.into()
}

/// Parses null, base64, or, for a long run of one byte, that byte and its number of repetitions.
fn bytes(value: &Value) -> Option<Bytes> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(base64(text)),
        run => {
            let (byte, times) = (run["byte"].as_u64().unwrap(), run["times"].as_u64().unwrap());
            Some(vec![byte as u8; times as usize].into())
        }
    }
}

fn expected_records(expected: &Value) -> Vec<Record> {
    let base_offset = expected["base_offset"].as_i64().unwrap();
    let header =
        |header: &Value| Header { name: header["name"].as_str().unwrap().to_owned(), value: bytes(&header["value"]) };
    let record = |record: &Value| Record {
        offset: base_offset + record["offset_delta"].as_i64().unwrap(),
        timestamp_ms: record["timestamp_ms"].as_i64().unwrap(),
        key: bytes(&record["key"]),
        value: bytes(&record["value"]),
        headers: record.get("headers").map_or(Vec::new(), |all| all.as_array().unwrap().iter().map(header).collect()),
    };
    expected["records"].as_array().unwrap().iter().map(record).collect()
}

fn read(batch: &RecordBatch, limits: &Limits) -> Vec<Record> {
    let records = batch.records(limits).unwrap();
    records.iter().map(|record| records.to_record(&record.unwrap())).collect()
}

#[test]
fn batches_of_kafka_clients_are_read_as_they_were_written() {
    let limits = Limits::default();
    let mut codecs = Vec::new();
    for Vector { name, bytes, expected } in accepted() {
        let batch = RecordBatch::check(bytes, &limits).unwrap_or_else(|e| panic!("{name}: {e}"));
        let records = expected_records(&expected);
        assert_eq!(read(&batch, &limits), records, "{name}");

        let int = |field: &str| expected[field].as_i64().unwrap();
        assert_eq!(batch.compression().name(), expected["codec"].as_str().unwrap(), "{name}");
        assert_eq!(batch.record_count() as usize, records.len(), "{name}");
        assert_eq!(batch.base_offset(), int("base_offset"), "{name}");
        assert_eq!(batch.next_offset(), int("base_offset") + records.len() as i64, "{name}");
        assert_eq!(i64::from(batch.leader_epoch()), int("leader_epoch"), "{name}");
        assert_eq!(batch.producer_id(), int("producer_id"), "{name}");
        assert_eq!(i64::from(batch.producer_epoch()), int("producer_epoch"), "{name}");
        assert_eq!(i64::from(batch.base_sequence()), int("base_sequence"), "{name}");
        assert_eq!(batch.is_transactional(), expected["transactional"].as_bool().unwrap(), "{name}");
        assert!(!batch.is_control(), "{name}");
        assert_eq!(Some(batch.max_timestamp_ms()), records.iter().map(|record| record.timestamp_ms).max(), "{name}");
        let timestamp_type = match &expected["log_append_time_ms"] {
            Value::Null => TimestampType::CreateTime,
            _ => TimestampType::LogAppendTime,
        };
        assert_eq!(batch.timestamp_type(), timestamp_type, "{name}");
        codecs.push(batch.compression());
    }
    for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        assert!(codecs.contains(&codec), "no vector of {codec}");
    }
}

#[test]
fn batches_of_kafka_clients_make_columns() {
    let limits = Limits::default();
    for Vector { name, bytes, expected } in accepted() {
        let batch = RecordBatch::check(bytes, &limits).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut columns = Columns::default();
        columns.append_batch(&batch, i64::MIN, &limits).unwrap();
        columns.check().unwrap();
        let mut want = Columns::default();
        for record in expected_records(&expected) {
            let headers = record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()));
            want.push(record.offset, record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), headers);
        }
        assert_eq!(columns, want, "{name}");
    }
}

/// Kafka's producer and our builder use the same record layout: uncompressed batches are equal byte for byte, except
/// for the fields that only a log sets.
#[test]
fn our_builder_writes_the_bytes_that_kafka_clients_write() {
    let limits = Limits::default();
    let mut compared = 0;
    for Vector { name, bytes, expected } in accepted() {
        let batch = RecordBatch::check(bytes, &limits).unwrap_or_else(|e| panic!("{name}: {e}"));
        if batch.is_transactional() || batch.timestamp_type() != TimestampType::CreateTime {
            continue;
        }
        let mut ours = BatchBuilder::new(Compression::None);
        ours.set_producer(batch.producer_id(), batch.producer_epoch(), batch.base_sequence());
        for record in expected_records(&expected) {
            let headers = record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()));
            ours.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), headers);
        }
        let ours = ours.finish().unwrap();
        let bodies = (ours.records(&limits).unwrap(), batch.records(&limits).unwrap());
        assert_eq!(bodies.0.body(), bodies.1.body(), "{name}");
        if batch.compression() == Compression::None {
            // Compares everything from the checksum on.
            assert_eq!(ours.as_bytes()[17..], batch.as_bytes()[17..], "{name}");
        }
        compared += 1;
    }
    assert!(compared >= VECTORS_MIN - 10, "only {compared} compared");
}

#[test]
fn what_no_producer_may_send_is_refused() {
    let mut refused = 0;
    for Vector { name, bytes, expected } in vectors() {
        let Some(why) = expected.get("refused") else { continue };
        let error = RecordBatch::check(bytes, &Limits::default()).expect_err(&name);
        let known = match error {
            BatchError::Control => "control",
            BatchError::Count { .. } => "count",
            BatchError::Magic(1) => "magic",
            _ => "another",
        };
        assert_eq!(why, known, "{name}: {error}");
        refused += 1;
    }
    assert!(refused >= 4, "only {refused} refused");
}
