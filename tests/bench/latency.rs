//! Acknowledgement latency under a steady load at 10, 50 and 80 % of the server's maximum throughput, while the server
//! seals. Latencies are measured from when each record was due.

use millstream_client::{ProducerSettings, v1};
use millstream_tests::measure::kafka::{Flushing, Load};
use millstream_tests::measure::open_loop::OpenLoop;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, median};
use millstream_tests::measure::turns::order;
use millstream_tests::server::Server;

use crate::kafka::{self, Kafka};
use crate::load;
use crate::plan::Plan;

/// The loads, in percent of the maximum throughput.
pub(crate) const LOADS_PERCENT: [u64; 3] = [10, 50, 80];

/// Number of timed records per second. In ten seconds, fifty of them are beyond p99.9.
pub(crate) const SAMPLES_A_SECOND: u64 = 5_000;

/// The flush settings of Kafka that are measured.
const KAFKA: [Flushing; 2] = [Flushing::PageCache, Flushing::EveryMessage];

const ROUNDS: usize = 3;
const SECONDS_A_ROUND: u64 = 10;
const PARTITIONS: u32 = 4;
const VALUE_BYTES: usize = 100;
/// Number of records of the closed loop that finds the maximum. It takes about ten seconds, so that sealing occurs
/// during it as in the open loops.
const RECORDS: u64 = 20_000_000;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    let name = "latency, open loop, 100 B";
    if !plan.wants(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let most = maximum(plan, &server).await;
    report.add(Figure::new(format!("{name}, the maximum (closed loop)"), most, Unit::RecordsPerSecond));
    let kafka_folder = tempfile::tempdir().unwrap();
    let mut kafka = Kafka::start(kafka_folder.path(), report);
    let seconds = plan.seconds(SECONDS_A_ROUND);
    let loads = LOADS_PERCENT.map(|percent| part_of(most, percent, seconds));
    let mut ours = LOADS_PERCENT.map(|_| Rounds::default());
    let mut of_kafka = KAFKA.map(|_| Vec::new());
    for round in 0..plan.rounds(ROUNDS) {
        for contender in order(round, &[None, Some(0), Some(1)]) {
            let Some(index) = contender else {
                for (percent, (load, ours)) in LOADS_PERCENT.iter().zip(loads.iter().zip(&mut ours)) {
                    ours.add(&server, &format!("at{percent}-{round}"), *load).await;
                    // Sealing that one load leaves behind must not slow down the next load.
                    load::settle(&server).await;
                }
                continue;
            };
            let topic = format!("t{round}-{index}");
            let per_second = loads[0].per_second;
            let all = kafka::load(&topic, VALUE_BYTES, per_second * seconds);
            let load = Load { per_second: Some(per_second), ..all };
            let produced = kafka.produce(PARTITIONS, KAFKA[index], load, report).await;
            of_kafka[index].extend(produced.map(|produced| produced.latency));
        }
    }
    let names = KAFKA.map(|flushing| format!("{}, counted from when sent", kafka::name(flushing)));
    let measured = names.iter().zip(&of_kafka).filter(|(_, rounds)| !rounds.is_empty());
    let mut beside: Vec<_> = measured.map(|(name, rounds)| (name.as_str(), rounds.as_slice())).collect();
    for (percent, measured) in LOADS_PERCENT.iter().zip(ours) {
        measured.report(report, &format!("{name}, at {percent} %"), &beside);
        // Kafka only runs the smallest load, because the others exceed its throughput.
        beside.clear();
    }
}

/// Returns a load of this percentage of the maximum.
pub(crate) fn part_of(most: f64, percent: u64, seconds: u64) -> OpenLoop {
    let per_second = ((most * percent as f64 / 100.0) as u64).max(1);
    OpenLoop::new(per_second, seconds, SAMPLES_A_SECOND)
}

/// Returns the server's maximum throughput in records per second, after a warm-up.
async fn maximum(plan: &Plan, server: &Server) -> f64 {
    let mut rates = Vec::new();
    for (topic, records) in [("warm-up", RECORDS / 20), ("most0", RECORDS), ("most1", RECORDS), ("most2", RECORDS)] {
        create(server, topic).await;
        rates.push(load::produce(server, topic, VALUE_BYTES, plan.records(records)).await.records_per_s);
    }
    median(rates.split_off(1))
}

async fn create(server: &Server, topic: &str) {
    server.client().admin().create_topic(topic, Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
}

/// The results of the rounds of one load.
#[derive(Default)]
struct Rounds {
    latencies: Vec<Latency>,
    /// Records per second that were due, and those that were acknowledged in each round.
    due: f64,
    acknowledged: Vec<f64>,
}

impl Rounds {
    async fn add(&mut self, server: &Server, topic: &str, load: OpenLoop) {
        create(server, topic).await;
        let producer = server.client().producer(ProducerSettings::default());
        let to = producer.topic(topic).await.unwrap();
        let answered = load.run(&to, |_, _, record| record.value.resize(VALUE_BYTES, b'x')).await.unwrap();
        producer.close().await.unwrap();
        self.latencies.push(Latency::of(answered.acknowledged_ms));
        self.due = load.per_second as f64;
        self.acknowledged.push(answered.records_per_s);
    }

    fn report(self, report: &mut Report, name: &str, beside: &[(&str, &[Latency])]) {
        report.add_latency_beside(&format!("{name}, acknowledgement"), &self.latencies, beside);
        // If fewer records are acknowledged than were due, the server is overloaded, and the latencies grow with the
        // duration of the load.
        let least = self.acknowledged.iter().copied().fold(f64::INFINITY, f64::min);
        let figure = Figure::new(format!("{name}, acknowledged at least"), least, Unit::RecordsPerSecond);
        report.add(figure.beside("due", self.due));
    }
}
