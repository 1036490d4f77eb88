//! Durable append in this process, beside a bare redb loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use millstream_broker::clock::SystemClock;
use millstream_broker::store::StoreOptions;
use millstream_broker::topic::TopicSettings;
use millstream_broker::{Broker, BrokerSettings, TopicName};
use prometheus_client::registry::Registry;

use crate::Plan;
use crate::report::{Report, Target, median};
use crate::yardstick;

const ROUNDS: usize = 5;
/// Commits of a megabyte a round.
const MEGABYTES_A_ROUND: u64 = 400;
/// Batches that wait for an answer: four commits' worth.
const IN_FLIGHT: usize = 64;

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants("append") {
        return;
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for partitions in [1, 100] {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..plan.rounds(ROUNDS) {
            let folder = tempfile::tempdir().unwrap();
            bare.push(yardstick::bare_redb(folder.path(), plan.records(MEGABYTES_A_ROUND)).mb_per_s);
            ours.push(tokio.block_on(append(partitions, plan.records(MEGABYTES_A_ROUND))));
        }
        let (ours, bare) = (median(ours), median(bare));
        let name = format!("append, durable, {partitions} partition{}", if partitions == 1 { "" } else { "s" });
        report.beside(
            name,
            ours,
            "MB/s",
            ("bare redb, 16 x 65,472 B a commit", bare),
            Some(Target::AtLeast(0.6 * bare)),
        );
    }
}

async fn append(partitions: u32, megabytes: u64) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let mut registry = Registry::default();
    let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
    let broker = Broker::open(folder.path(), settings, options, Arc::new(SystemClock), &mut registry).unwrap();
    let name = TopicName::new("t").unwrap();
    let topic = broker.create_topic(&name, partitions, TopicSettings::default(), false).await.unwrap();
    // As large as what the client sends.
    let batch = yardstick::batch(550, 100, 1_000, 1);
    let batches = megabytes * 1_000_000 / batch.as_bytes().len() as u64;
    let mut waiting = VecDeque::new();
    let begun = Instant::now();
    for number in 0..batches {
        if waiting.len() >= IN_FLIGHT {
            let receipt: millstream_broker::store::Receipt = waiting.pop_front().unwrap();
            receipt.await.unwrap();
        }
        let partition = topic.partition((number % u64::from(partitions)) as u32).unwrap();
        waiting.push_back(broker.produce(&topic, partition, vec![batch.clone()]).await.unwrap());
    }
    for receipt in waiting {
        receipt.await.unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
    (batches * batch.as_bytes().len() as u64) as f64 / 1e6 / took
}
