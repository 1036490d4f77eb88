//! Code shared by tests and benchmarks: a real server process, a broker and a runtime in this process, the built
//! modules, and the flights data set.

pub mod disk;
pub mod held;
pub mod hooked;
pub mod instance;
pub mod kafka_client;
pub mod kafka_member;
pub mod measure;
pub mod proxy;
pub mod running;
pub mod server;
pub mod soak;
pub mod workload;

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use millstream_client::{Client, ClientError, Position, v1};
use serde::Deserialize;

/// Creates a temporary folder for the files of a test. It is in memory if the system has `/dev/shm`, because there are
/// many.
///
/// # Panics
/// Panics if no folder can be created.
pub fn folder() -> tempfile::TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("a temporary folder can be created")
}

/// Returns the workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the tests is in the workspace")
}

/// Returns the folder where the build puts programs, which is the one above the folder of this test binary.
pub fn target_dir() -> PathBuf {
    let me = std::env::current_exe().expect("the path of the test binary is known");
    let dir = me.parent().expect("the file is in a folder");
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.parent().expect("the folder `deps` has a parent").to_owned()
    } else {
        dir.to_owned()
    }
}

/// Returns a module that `cargo xtask guests` built.
///
/// # Panics
/// Panics if the module was not built.
pub fn guest(name: &str) -> Bytes {
    let path = guest_path(name);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{}: {error}: run `cargo xtask guests` first", path.display()),
    }
}

/// Returns the path of a module that `cargo xtask guests` built.
pub fn guest_path(name: &str) -> PathBuf {
    root().join("target/guests").join(format!("{name}.wasm"))
}

/// Creates a consumer group that never reads, so that the repartition topic keeps its records.
///
/// # Errors
/// Returns the server's error.
pub async fn keep(client: &Client, topic: &str) -> Result<(), ClientError> {
    let starts = client.admin().list_offsets(topic, &[], Position::Earliest).await?;
    let start = |at: v1::PartitionOffset| v1::TopicPartitionOffset {
        topic: topic.to_owned(),
        partition: at.partition,
        offset: at.offset,
    };
    client.admin().commit_offsets(&format!("keeps-{topic}"), starts.into_iter().map(start).collect()).await
}

/// One flight of `data/flights-20k.ndjson.gz`.
#[derive(Clone, Debug, Deserialize)]
pub struct Flight {
    /// Date and time, such as `2001/01/01 00:47`.
    pub date: String,
    /// Delay in minutes.
    pub delay: i64,
    /// Airport of departure.
    pub origin: String,
    /// Airport of arrival.
    pub destination: String,
    /// The line of the file.
    #[serde(skip)]
    pub line: String,
}

/// Returns all 20,000 flights.
///
/// # Panics
/// Panics if the file differs from the committed one.
pub fn flights() -> Vec<Flight> {
    let path = root().join("data/flights-20k.ndjson.gz");
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("the flights file is valid gzip");
    let flight = |line: &str| {
        let mut flight: Flight = serde_json::from_str(line).expect("each line is a valid flight");
        flight.line = line.to_owned();
        flight
    };
    text.lines().map(flight).collect()
}
