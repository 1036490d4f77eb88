//! An Apache Kafka node as a yardstick. Once an operation on it fails, Kafka is left out, and the report contains the
//! reason.

use std::path::Path;

use anyhow::Result;
use millstream_client::ProducerSettings;
use millstream_tests::measure::kafka::{Flushing, Jars, Load, Node, Produced, StreamsLoad, VERSION};
use millstream_tests::measure::page_cache::ColdFiles;
use millstream_tests::measure::report::Report;
use millstream_tests::root;

/// What is measured in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Ours,
    Kafka(Flushing),
}

pub(crate) const CONTENDERS: [Contender; 3] =
    [Contender::Ours, Contender::Kafka(Flushing::PageCache), Contender::Kafka(Flushing::EveryMessage)];

impl Contender {
    /// Returns its place among the contenders.
    pub(crate) fn index(self) -> usize {
        CONTENDERS.iter().position(|contender| *contender == self).unwrap_or_default()
    }

    /// Returns the name of its topic of a round.
    pub(crate) fn topic(self, round: usize) -> String {
        format!("t{}-{round}", self.index())
    }

    /// Returns its name as a yardstick.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Ours => "Millstream".to_owned(),
            Self::Kafka(flushing) => name(flushing),
        }
    }
}

/// A node, or `None` once an operation on it has failed.
pub(crate) struct Kafka {
    node: Option<Node>,
}

impl Kafka {
    /// Starts a node on a folder.
    pub(crate) fn start(folder: &Path, report: &mut Report) -> Self {
        let node = Jars::prepare(&root().join("target/kafka")).and_then(|jars| Node::start(&jars, folder));
        Self { node: or_left_out(node, report) }
    }

    /// Produces to a new topic, with the settings of our producer.
    pub(crate) async fn produce(
        &mut self,
        partitions: u32,
        flushing: Flushing,
        load: Load<'_>,
        report: &mut Report,
    ) -> Option<Produced> {
        let node = self.node.as_ref()?;
        let produced = async {
            node.target().create_topic(load.topic, partitions, flushing)?;
            let produced = node.target().produce(load).await?;
            // Data that Kafka left in the page cache must not be written to disk while others are measured.
            ColdFiles::of(&node.data())?;
            Ok(produced)
        };
        let produced = produced.await;
        self.keep(produced, report)
    }

    /// Restarts the node, with an empty page cache.
    pub(crate) fn restart_cold(&mut self, report: &mut Report) {
        if let Some(node) = &mut self.node {
            let restarted = node.restart(|data| Ok(ColdFiles::of(data).map(drop)?));
            self.keep(restarted, report);
        }
    }

    /// Reads this many records of a topic from its start, with an empty page cache. Returns the records per second.
    pub(crate) fn consume_cold(&mut self, topic: &str, records: u64, report: &mut Report) -> Option<f64> {
        let node = self.node.as_ref()?;
        let consumed =
            ColdFiles::of(&node.data()).map_err(Into::into).and_then(|_| node.target().consume(topic, records));
        self.keep(consumed, report).map(|consumed| consumed.records_per_s)
    }

    /// Runs Kafka Streams over records that are already in a topic. Returns the records per second.
    pub(crate) fn streams(&mut self, load: StreamsLoad, report: &mut Report) -> Option<f64> {
        let rate = self.node.as_ref()?.streams(load);
        self.keep(rate, report)
    }

    fn keep<T>(&mut self, outcome: Result<T>, report: &mut Report) -> Option<T> {
        let kept = or_left_out(outcome, report);
        if kept.is_none() {
            self.node = None;
        }
        kept
    }
}

/// Returns the result, or adds the reason for the failure to the report.
fn or_left_out<T>(outcome: Result<T>, report: &mut Report) -> Option<T> {
    outcome.inspect_err(|error| report.leave_out(&format!("Apache Kafka {VERSION}"), &format!("{error:#}"))).ok()
}

/// Minimum size of the values that warm up a JVM, in bytes. Otherwise the warm-up is a fifth of the measured records.
const WARM_UP_BYTES_MIN: u64 = 50_000_000;

/// Returns a load that runs as fast as possible, with batches as in our producer's defaults.
pub(crate) fn load(topic: &str, value_bytes: usize, records: u64) -> Load<'_> {
    let ours = ProducerSettings::default();
    Load {
        topic,
        records,
        warm_up: (records / 5).max(WARM_UP_BYTES_MIN / value_bytes as u64),
        value_bytes,
        per_second: None,
        batch_bytes: ours.batch_bytes,
        linger_ms: ours.linger_ms,
    }
}

/// Returns the name of a yardstick.
pub(crate) fn name(flushing: Flushing) -> String {
    let acknowledges = match flushing {
        Flushing::PageCache => "page cache",
        Flushing::EveryMessage => "flush.messages=1",
    };
    format!("Apache Kafka {VERSION}, {acknowledges}")
}
