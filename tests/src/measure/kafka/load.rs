//! Kafka's own load tools: ProducerPerformance and ConsumerPerformance.

use anyhow::{Context, Result};

use super::jars::Jars;
use super::node::Node;
use crate::measure::process::{cpu_seconds, ended_children_cpu_seconds, settled};
use crate::measure::samples::Latency;

/// When Kafka acknowledges a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushing {
    /// Once the record is in the page cache, which is Kafka's default.
    PageCache,
    /// Once the record is on disk (`flush.messages=1`), which is what our acknowledgement means.
    EveryMessage,
}

/// The records that a producer sends.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The topic.
    pub topic: &'a str,
    /// Number of measured records.
    pub records: u64,
    /// Number of records that the same tool sends before, unmeasured, while the JVMs compile.
    pub warm_up: u64,
    /// Size of each value, in bytes.
    pub value_bytes: usize,
    /// Records per second, or as fast as possible if `None`.
    pub per_second: Option<u64>,
    /// The producer's `batch.size`, in bytes.
    pub batch_bytes: usize,
    /// The producer's `linger.ms`.
    pub linger_ms: u64,
}

/// Measurements of ProducerPerformance. It measures latencies from when a record was sent, not from when it was due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Produced {
    /// Records per second.
    pub records_per_s: f64,
    /// Time to the acknowledgement, in whole milliseconds, including the wait for room in the producer's buffer.
    pub latency: Latency,
    /// CPU time of the server per record, in microseconds, until the server is idle.
    pub server_cpu_us: f64,
    /// CPU time of the tool per record, in microseconds, including its start.
    pub client_cpu_us: f64,
}

/// Measurements of ConsumerPerformance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Consumed {
    /// Number of records that were read.
    pub records: f64,
    /// Records per second while fetching. The time to join the group is not counted.
    pub records_per_s: f64,
}

/// A server that Kafka's tools are run against: a node of Kafka, or a server of ours.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Kafka's jars.
    pub jars: &'a Jars,
    /// The address for clients.
    pub address: &'a str,
    /// The process id.
    pub pid: u32,
}

impl Node {
    /// Returns this node as the target of tools.
    pub fn target(&self) -> Target<'_> {
        Target { jars: self.jars(), address: self.address(), pid: self.pid() }
    }
}

impl Target<'_> {
    /// Creates a topic.
    ///
    /// # Errors
    /// Returns an error if the tool fails.
    pub fn create_topic(&self, name: &str, partitions: u32, flushing: Flushing) -> Result<()> {
        let partitions = partitions.to_string();
        let server = ["--bootstrap-server", self.address];
        let mut arguments = [&server[..], &["--create", "--topic", name, "--partitions", &partitions]].concat();
        if flushing == Flushing::EveryMessage {
            arguments.extend(["--config", "flush.messages=1"]);
        }
        self.jars.run("org.apache.kafka.tools.TopicCommand", &arguments).map(drop)
    }

    /// Sends a load, and waits until the server is idle.
    ///
    /// # Errors
    /// Returns an error if the tool fails, or if its output has an unknown format.
    pub async fn produce(&self, load: Load<'_>) -> Result<Produced> {
        let total = load.records + load.warm_up;
        let (records, warm_up, size) = (total.to_string(), load.warm_up.to_string(), load.value_bytes.to_string());
        let throughput = load.per_second.map_or_else(|| "-1".to_owned(), |rate| rate.to_string());
        let batch = format!("batch.size={}", load.batch_bytes);
        let linger = format!("linger.ms={}", load.linger_ms);
        let mut arguments = vec!["--bootstrap-server", self.address, "--topic", load.topic, "--num-records", &records];
        arguments.extend(["--record-size", &size, "--throughput", &throughput]);
        if load.warm_up > 0 {
            arguments.extend(["--warmup-records", &warm_up]);
        }
        arguments.extend(["--command-property", &batch, &linger]);
        let (server, client) = (cpu_seconds(self.pid), ended_children_cpu_seconds());
        let said = self.jars.run("org.apache.kafka.tools.ProducerPerformance", &arguments)?;
        let client_cpu_us = (ended_children_cpu_seconds() - client) * 1e6 / total as f64;
        // The CPU time includes the server's deferred work for these records. A server that does not become idle is
        // measured when the wait ends.
        settled(self.pid).await;
        let server_cpu_us = (cpu_seconds(self.pid) - server) * 1e6 / total as f64;
        let produced = Produced::read(&said).with_context(|| format!("ProducerPerformance said {said:?}"))?;
        Ok(Produced { server_cpu_us, client_cpu_us, ..produced })
    }

    /// Reads this many records of a topic from its start.
    ///
    /// # Errors
    /// Returns an error in the same cases as [`Target::produce`].
    pub fn consume(&self, topic: &str, records: u64) -> Result<Consumed> {
        let records = records.to_string();
        let arguments =
            ["--bootstrap-server", self.address, "--topic", topic, "--num-records", &records, "--hide-header"];
        let said = self.jars.run("org.apache.kafka.tools.ConsumerPerformance", &arguments)?;
        Consumed::read(&said).with_context(|| format!("ConsumerPerformance said {said:?}"))
    }
}

impl Produced {
    /// Parses the output of the tool, which does not contain CPU times. The last line is about the steady state, after
    /// the warm-up if there was one: `800000 steady state records sent, 167855.6 records/sec (16.01 MB/sec), 1426.21 ms
    /// avg latency, 1846.00 ms max latency, 1478 ms 50th, 1793 ms 95th, 1832 ms 99th, 1839 ms 99.9th.`
    pub fn read(said: &str) -> Option<Self> {
        let line = said.lines().rfind(|line| line.contains("99.9th"))?;
        // Returns the number before a word.
        let before = |word: &str| {
            let part = line.split(", ").find_map(|part| part.trim_end_matches('.').split_once(word))?;
            part.0.trim().parse::<f64>().ok()
        };
        Some(Self {
            records_per_s: before(" records/sec")?,
            latency: Latency {
                samples: line.split_whitespace().next()?.parse().ok()?,
                p50_ms: before(" ms 50th")?,
                p99_ms: before(" ms 99th")?,
                p999_ms: before(" ms 99.9th")?,
                max_ms: before(" ms max latency")?,
            },
            server_cpu_us: 0.0,
            client_cpu_us: 0.0,
        })
    }
}

impl Consumed {
    /// Parses the output of the tool: start, end, MB, MB/s, records, records/s, and for the fetching alone: ms to join,
    /// ms, MB/s, records/s.
    pub fn read(said: &str) -> Option<Self> {
        let line = said.lines().rfind(|line| line.split(", ").count() == 10)?;
        let fields: Vec<&str> = line.split(", ").map(str::trim).collect();
        Some(Self { records: fields[4].parse().ok()?, records_per_s: fields[9].parse().ok()? })
    }
}
