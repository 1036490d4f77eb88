//! Appends 10 GB through the journal into segments in this process, compared with the bare loops before and after it.

use millstream_broker::log::topic::TopicSettings;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::median;

use crate::embedded::{self, IN_FLIGHT};
use crate::plan::Plan;
use crate::stolen::Stolen;
use crate::yardstick::{self, Bare};

const NAME: &str = "sustained durable append with sealing, 10 GB";
const BYTES: u64 = 10_000_000_000;
/// Megabytes of each bare loop, before and after. Together they write as much as our append.
const BARE_MEGABYTES: u64 = 5_000;

/// The results of the bare loops.
struct Yardsticks {
    redb: Bare,
    file: Bare,
}

impl Yardsticks {
    fn measure(plan: &Plan) -> Self {
        let bare = |run: fn(&std::path::Path, u64) -> Bare| {
            let folder = tempfile::tempdir().unwrap();
            run(folder.path(), plan.records(BARE_MEGABYTES))
        };
        Self { redb: bare(yardstick::bare_redb), file: bare(yardstick::bare_file) }
    }
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let before = Yardsticks::measure(plan);
    let folder = tempfile::tempdir().unwrap();
    let broker = embedded::open(folder.path());
    let topic = embedded::topic(&broker, "t", 4, TopicSettings::default()).await;
    let batch = yardstick::batch(550, 100, 1_000, 1);
    let batches = plan.records(BYTES) / batch.as_bytes().len() as u64;
    let stolen = Stolen::watch();
    let appended = embedded::append(&broker, &topic, &batch, batches, IN_FLIGHT).await;
    let stolen_ms = stolen.during(&appended.longest);
    embedded::stop(broker).await;
    drop(folder);
    let after = Yardsticks::measure(plan);

    let both = |of: fn(&Yardsticks) -> f64| [of(&before), of(&after)];
    let redb = median(both(|of| of.redb.mb_per_s).to_vec());
    report.add(
        Figure::new(NAME, appended.mb_per_s, Unit::MegabytesPerSecond)
            .beside("bare redb, 16 x 65,472 B a commit", redb)
            .beside("plain file, the same with fdatasync", median(both(|of| of.file.mb_per_s).to_vec()))
            .at_least(0.4 * redb),
    );
    // A batch waits behind four commits in a closed loop.
    let latency = appended.latency;
    let milliseconds = |what: &str, value| Figure::new(format!("{NAME}, {what}"), value, Unit::Milliseconds);
    report.add(milliseconds("acknowledgement behind four commits, p50", latency.p50_ms));
    let p99 = milliseconds("acknowledgement behind four commits, p99", latency.p99_ms);
    report.add(p99.at_most(5.0 * latency.p50_ms));
    report.add(milliseconds("acknowledgement behind four commits, max", latency.max_ms));
    report.add(milliseconds("what the host took of all cores in that time", stolen_ms));
    let [redb_longest, file_longest] =
        [both(|of| of.redb.longest_ms), both(|of| of.file.longest_ms)].map(|both| both.into_iter().fold(0.0, f64::max));
    report.add(
        milliseconds("longest time without an acknowledgement", appended.stall_ms)
            .beside("the longest of bare redb's as many commits", redb_longest)
            .beside("the longest of a plain file's as many fdatasyncs", file_longest)
            // If the disk itself stalls for longer than 100 ms, its longest stall is the limit.
            .at_most(redb_longest.max(100.0)),
    );
}
