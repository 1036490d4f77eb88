//! Writes batches built by `BatchBuilder` into a folder, each with a `.json` file that describes its contents, so that
//! `tests/vectors/generate-java` can read them with Kafka's client:
//!
//! ```text
//! cargo run -p millstream-record --example write_vectors -- FOLDER
//! ```

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use millstream_record::{BatchBuilder, Compression, patch_batch};
use serde_json::{Value, json};

const T: i64 = 1_760_000_000_000;

type Headers = Vec<(&'static str, Option<Vec<u8>>)>;

#[derive(Clone, Default)]
struct Entry {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Headers,
}

#[derive(Clone, Copy)]
struct Shape {
    codec: Compression,
    base_offset: i64,
    leader_epoch: i32,
    producer: (i64, i16, i32),
}

impl Shape {
    fn plain(codec: Compression) -> Self {
        Self { codec, base_offset: 0, leader_epoch: -1, producer: (-1, -1, -1) }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: write_vectors FOLDER")?);
    fs::create_dir_all(&folder)?;
    let one = [Entry { timestamp_ms: T, ..Entry::default() }];
    for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let shape = Shape::plain(codec);
        write(&folder, &format!("rust-{codec}"), shape, &mixed())?;
        write(&folder, &format!("rust-{codec}-one-all-null"), shape, &one)?;
        // Larger than one block of every codec: 32 KiB in Snappy's framing, up to 4 MiB in LZ4.
        write(&folder, &format!("rust-{codec}-runs"), shape, &large(4 << 20, |i| (i / 1000) as u8))?;
        write(&folder, &format!("rust-{codec}-noise"), shape, &large(300_000, noise))?;
        let from_a_log = Shape { base_offset: 5_000_000_000, leader_epoch: 17, producer: (4711, 3, 99), ..shape };
        write(&folder, &format!("rust-{codec}-from-a-log"), from_a_log, &mixed())?;
        let many: Vec<Entry> = (0..5000).map(|i| entry(T - i, b"key", Some(i.to_string().as_bytes()))).collect();
        write(&folder, &format!("rust-{codec}-many"), shape, &many)?;
    }
    let extreme = [entry(0, b"0", None), entry(i64::MAX, b"max", None), entry(1, b"1", None)];
    write(&folder, "rust-timestamps-extreme", Shape::plain(Compression::None), &extreme)?;
    Ok(())
}

fn entry(timestamp_ms: i64, key: &[u8], value: Option<&[u8]>) -> Entry {
    Entry { timestamp_ms, key: Some(key.to_vec()), value: value.map(<[u8]>::to_vec), headers: Vec::new() }
}

fn mixed() -> Vec<Entry> {
    let with_headers: Headers = vec![
        ("trace", Some(vec![0, 1, 0xfe, 0xff])),
        ("trace", Some(b"again".to_vec())),
        ("null", None),
        ("empty", Some(Vec::new())),
        ("größe-鍵-🗝", Some(b"1".to_vec())),
        ("", Some(b"no name".to_vec())),
    ];
    vec![
        entry(T, b"key-1", Some(b"value-1 value-1 value-1 value-1")),
        Entry { timestamp_ms: T + 3, value: Some(b"no key".to_vec()), ..Entry::default() },
        entry(T + 1, b"key-2", None),
        entry(T + 4, b"", Some(b"")),
        Entry { headers: with_headers, ..entry(T + 5, b"key-3", Some(b"{\"headers\":true}")) },
        Entry { timestamp_ms: T - 86_400_000, ..Entry::default() },
    ]
}

fn large(bytes: u32, byte: impl Fn(u32) -> u8) -> Vec<Entry> {
    let value: Vec<u8> = (0..bytes).map(byte).collect();
    vec![entry(T, b"1", Some(&value)), entry(T + 1, b"2", Some(&value[..value.len() / 2])), entry(T + 2, b"3", None)]
}

/// Returns bytes that do not compress.
fn noise(index: u32) -> u8 {
    let mixed = u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8
}

fn write(folder: &Path, name: &str, shape: Shape, entries: &[Entry]) -> Result<(), Box<dyn Error>> {
    let mut builder = BatchBuilder::new(shape.codec);
    let (id, epoch, sequence) = shape.producer;
    builder.set_producer(id, epoch, sequence);
    for entry in entries {
        let headers = entry.headers.iter().map(|(name, value)| (*name, value.as_deref()));
        builder.push(entry.timestamp_ms, entry.key.as_deref(), entry.value.as_deref(), headers);
    }
    let mut bytes = builder.finish().ok_or("no records")?.into_bytes().to_vec();
    patch_batch(&mut bytes, shape.base_offset, shape.leader_epoch);
    fs::write(folder.join(format!("{name}.bin")), bytes)?;

    let records: Vec<Value> = entries.iter().enumerate().map(|(index, entry)| described(index, entry)).collect();
    let expected = json!({
        "codec": shape.codec.name(),
        "base_offset": shape.base_offset,
        "leader_epoch": shape.leader_epoch,
        "log_append_time_ms": null,
        "producer_id": id,
        "producer_epoch": epoch,
        "base_sequence": sequence,
        "transactional": false,
        "records": records,
    });
    fs::write(folder.join(format!("{name}.json")), expected.to_string())?;
    Ok(())
}

fn described(index: usize, entry: &Entry) -> Value {
    let packed = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(base64);
    let headers: Vec<Value> =
        entry.headers.iter().map(|(name, value)| json!({ "name": name, "value": packed(value) })).collect();
    json!({
        "offset_delta": index,
        "timestamp_ms": entry.timestamp_ms,
        "key": packed(&entry.key),
        "value": packed(&entry.value),
        "headers": headers,
    })
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            out.push(if digit <= chunk.len() { ALPHABET[index] as char } else { '=' });
        }
    }
    out
}
