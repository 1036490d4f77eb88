//! Disk usage compared with the retention limit, after five times that amount was produced.

use std::time::Duration;

use millstream_broker::log::topic::TopicSettings;
use millstream_tests::measure::report::{Figure, Report, Unit};

use crate::embedded::{self, IN_FLIGHT};
use crate::plan::Plan;
use crate::yardstick;

const NAME: &str = "disk in steady retention of 2 GB, at most";
const KEEPS: u64 = 2_000_000_000;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = embedded::open(folder.path());
    let settings = TopicSettings { retention_bytes: Some(KEEPS), ..TopicSettings::default() };
    let topic = embedded::topic(&broker, "t", 1, settings).await;
    let batch = yardstick::batch(550, 100, 1_000, 1);
    embedded::append(&broker, &topic, &batch, 5 * KEEPS / batch.as_bytes().len() as u64, IN_FLIGHT).await;
    let mut most = 0;
    for _ in 0..plan.records(20).max(5) {
        // In the steady state, retention removes as much as is produced.
        embedded::append(&broker, &topic, &batch, 500, 8).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let size = broker.store().size();
        most = most.max(size.journal_bytes + size.table_bytes + size.segment_bytes);
    }
    embedded::stop(broker).await;
    let kept = KEEPS as f64 / 1e6;
    let figure = Figure::new(NAME, most as f64 / 1e6, Unit::Megabytes);
    report.add(figure.beside("what is kept", kept).at_most(1.3 * kept));
}
