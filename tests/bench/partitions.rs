//! Small batches of ten 100-byte records each, spread over increasing numbers of partitions.

use millstream_broker::log::topic::TopicSettings;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::Latency;
use millstream_tests::measure::turns::order;

use crate::embedded::{self, Appended};
use crate::load::median_of;
use crate::plan::Plan;
use crate::yardstick;

const NAME: &str = "partitions curve";
const ROUNDS: usize = 3;
const BATCHES: u64 = 400_000;
/// Number of batches in flight.
const IN_FLIGHT: usize = 1_000;
const COUNTS: [u32; 4] = [1, 100, 1_000, 10_000];

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    // Warm-up.
    append(COUNTS[0], plan.records(BATCHES) / 10).await;
    let mut rounds = COUNTS.map(|_| Vec::new());
    for round in 0..plan.rounds(ROUNDS) {
        for index in order(round, &[0, 1, 2, 3]) {
            rounds[index].push(append(COUNTS[index], plan.records(BATCHES)).await);
        }
    }
    let rate = |rounds: &[Appended]| median_of(rounds, |round| round.records_per_s);
    let one = rate(&rounds[0]);
    for (count, rounds) in COUNTS.iter().zip(&rounds) {
        let name = format!("{NAME}, {count}");
        let mut figure = Figure::new(&name, rate(rounds), Unit::RecordsPerSecond);
        if *count > 1 {
            figure = figure.beside("one partition", one);
        }
        report.add(if *count == 1_000 { figure.at_least(one / 2.0) } else { figure });
        let latencies: Vec<Latency> = rounds.iter().map(|round| round.latency).collect();
        report.add_latency(&format!("{name}, acknowledgement at full load (closed loop),"), &latencies);
    }
}

async fn append(partitions: u32, batches: u64) -> Appended {
    let batch = yardstick::batch(10, 100, 1_000, 1);
    let folder = tempfile::tempdir().unwrap();
    let broker = embedded::open(folder.path());
    let topic = embedded::topic(&broker, "t", partitions, TopicSettings::default()).await;
    let appended = embedded::append(&broker, &topic, &batch, batches, IN_FLIGHT).await;
    embedded::stop(broker).await;
    appended
}
