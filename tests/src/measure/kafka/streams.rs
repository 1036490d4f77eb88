//! Kafka Streams with the topology of our benchmark's pipeline: `StreamsYardstick.java`, which Java compiles when it
//! runs it.

use anyhow::{Context, Result};

use super::node::Node;

const PROGRAM: &str = include_str!("StreamsYardstick.java");

/// The work of a run.
#[derive(Clone, Copy, Debug)]
pub struct StreamsLoad {
    /// Number of measured records.
    pub records: u64,
    /// Number of records that are processed before, so that the JVMs compile.
    pub warm_up: u64,
    /// Number of distinct keys.
    pub keys: u64,
    /// Number of threads that run tasks (`num.stream.threads`).
    pub threads: usize,
}

impl Node {
    /// Runs a filter, a map and an aggregate exactly once over records that are already in a topic, with all other
    /// settings at their defaults. Returns the records per second, from when it may process to the commit of the last
    /// record. A node can run this only once, because the topics have fixed names.
    ///
    /// # Errors
    /// Returns an error if the program cannot be compiled, for which it needs a JDK, or if it fails.
    pub fn streams(&self, load: StreamsLoad) -> Result<f64> {
        let folder = tempfile::tempdir().context("no folder for Kafka Streams")?;
        let program = folder.path().join("StreamsYardstick.java");
        std::fs::write(&program, PROGRAM).with_context(|| format!("can't write {}", program.display()))?;
        let state = folder.path().join("state");
        let numbers = [load.threads as u64, load.keys, load.warm_up, load.records].map(|number| number.to_string());
        let mut arguments = vec![self.address(), state.to_str().context("a folder's name is not UTF-8")?];
        arguments.extend(numbers.iter().map(String::as_str));
        let said = self.jars().run(program.to_str().context("a folder's name is not UTF-8")?, &arguments)?;
        let rate = said.lines().find_map(|line| line.strip_prefix("records_per_s=")?.parse().ok());
        rate.with_context(|| format!("StreamsYardstick said {said:?}"))
    }
}
