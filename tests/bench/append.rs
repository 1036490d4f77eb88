//! Durable append in this process, compared with a bare redb loop and with a plain file.

use millstream_broker::log::topic::TopicSettings;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::median;
use millstream_tests::measure::turns::order;

use crate::embedded::{self, IN_FLIGHT};
use crate::plan::Plan;
use crate::yardstick;

const ROUNDS: usize = 5;
/// Number of one-megabyte commits in each round.
const MEGABYTES_A_ROUND: u64 = 400;

#[derive(Clone, Copy)]
enum Contender {
    Ours,
    Redb,
    File,
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    for (name, partitions) in [("append, durable, 1 partition", 1), ("append, durable, 100 partitions", 100)] {
        if !plan.wants(name) {
            continue;
        }
        let megabytes = plan.records(MEGABYTES_A_ROUND);
        let (mut ours, mut redb, mut file) = (Vec::new(), Vec::new(), Vec::new());
        // Warm-up.
        append(partitions, megabytes / 10).await;
        for round in 0..plan.rounds(ROUNDS) {
            for contender in order(round, &[Contender::Ours, Contender::Redb, Contender::File]) {
                let folder = tempfile::tempdir().unwrap();
                match contender {
                    Contender::Ours => ours.push(append(partitions, megabytes).await),
                    Contender::Redb => redb.push(yardstick::bare_redb(folder.path(), megabytes).mb_per_s),
                    Contender::File => file.push(yardstick::bare_file(folder.path(), megabytes).mb_per_s),
                }
            }
        }
        let redb = median(redb);
        report.add(
            Figure::new(name, median(ours), Unit::MegabytesPerSecond)
                .beside("bare redb, 16 x 65,472 B a commit", redb)
                .beside("plain file, the same with fdatasync", median(file))
                .at_least(0.6 * redb),
        );
    }
}

/// Returns the throughput in MB per second.
async fn append(partitions: u32, megabytes: u64) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let broker = embedded::open(folder.path());
    let topic = embedded::topic(&broker, "t", partitions, TopicSettings::default()).await;
    // The batch is as large as those that the client sends.
    let batch = yardstick::batch(550, 100, 1_000, 1);
    let batches = megabytes * 1_000_000 / batch.as_bytes().len() as u64;
    let appended = embedded::append(&broker, &topic, &batch, batches, IN_FLIGHT).await;
    embedded::stop(broker).await;
    appended.mb_per_s
}
