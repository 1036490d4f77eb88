//! Kafka Streams at the work of our benchmark's pipeline: `StreamsYardstick.java`, which Java compiles as it runs it.

use anyhow::{Context, Result};

use super::node::Node;

const PROGRAM: &str = include_str!("StreamsYardstick.java");

/// What there is to do.
#[derive(Clone, Copy, Debug)]
pub struct StreamsLoad {
    /// Records that are measured.
    pub records: u64,
    /// Records that go through before, so that the JVMs compile.
    pub warm_up: u64,
    /// Distinct keys.
    pub keys: u64,
    /// Threads that run tasks (`num.stream.threads`).
    pub threads: usize,
}

impl Node {
    /// Runs filter, map and aggregate exactly once over what is in a topic already, with all else at its default. Records a
    /// second, from when it may process to the commit of the last one. A node can do it once: the topics are its own.
    ///
    /// # Errors
    /// Where the program can't be compiled or fails: it needs a JDK.
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
