//! One stage over batches of 1,000 records, decoding to columns included, beside plain Rust.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use millstream_broker::clock::SystemClock;
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerSettings};
use millstream_record::{Columns, Limits, RecordBatch};
use millstream_runtime::host::{CallLimits, Engine, EngineSettings, Guest, LogContext};
use millstream_runtime::stage::{aggregate, filter, map};
use millstream_runtime::state::TaskState;
use prometheus_client::registry::Registry;

use crate::Plan;
use crate::report::{Report, Target, median};
use crate::yardstick;

const RECORDS: usize = 1_000;
const KEYS: u64 = 1_000;
const ROUNDS: usize = 7;
const BATCHES_A_ROUND: u64 = 2_000;

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants("stage") {
        return;
    }
    let engine = Engine::new(EngineSettings::default()).unwrap();
    for value_bytes in [100, 1_024] {
        let batches: Vec<RecordBatch> =
            (0..50).map(|seed| yardstick::batch(RECORDS, value_bytes, KEYS, seed)).collect();
        let size = if value_bytes == 100 { "100 B" } else { "1 KiB" };
        let decode = |batch: &RecordBatch| {
            let mut columns = Columns::default();
            columns.append_batch(batch, 0, &Limits::default()).unwrap();
            columns
        };
        let mut add =
            |name: &str, ours: &mut dyn FnMut(Columns), native: &mut dyn FnMut(Columns), most: Option<f64>| {
                let (mut of_ours, mut of_native) = (Vec::new(), Vec::new());
                for _ in 0..plan.rounds(ROUNDS) {
                    of_native.push(ns_a_record(plan, &batches, &decode, native));
                    of_ours.push(ns_a_record(plan, &batches, &decode, ours));
                }
                let (ours, native) = (median(of_ours), median(of_native));
                let name = format!("stage {name}, {size}");
                report.beside(
                    &name,
                    ours,
                    "ns/record",
                    ("native Rust", native),
                    most.map(|most| Target::AtMost(most * native)),
                );
                if name == "stage filter, 100 B" {
                    report.figure(format!("{name}, absolute"), ours, "ns/record", Some(Target::AtMost(40.0)));
                }
            };
        let mut guest = guest(&engine, "bench-filter");
        let mut ours = |input: Columns| drop(black_box(filter::run(&mut guest, input).unwrap()));
        add("filter", &mut ours, &mut |input| drop(black_box(yardstick::filter(&input))), Some(3.0));

        let mut guest = self::guest(&engine, "bench-map");
        let mut ours = |input: Columns| drop(black_box(map::run(&mut guest, input).unwrap()));
        add("map", &mut ours, &mut |input| drop(black_box(yardstick::map(&input))), None);

        let mut guest = self::guest(&engine, "bench-aggregate");
        let data = tempfile::tempdir().unwrap();
        let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
        let clock = Arc::new(SystemClock);
        let broker = Broker::open(data.path(), settings, options, clock, &mut Registry::default()).unwrap();
        let mut state = TaskState::new("p/s".into(), 0, broker.state().partition("p/s", 0));
        let mut step = 0;
        let mut ours = |input: Columns| {
            let hasher = state.hasher().clone();
            let made = aggregate::run(&mut guest, &input, &state, &hasher).unwrap();
            drop(black_box(state.change(step, made.groups, &made.before, made.accumulators)));
            // As when commits keep up: two steps are in flight.
            step += 1;
            state.committed_up_to(step.saturating_sub(3));
        };
        let mut sums = HashMap::new();
        let mut native = |input: Columns| drop(black_box(yardstick::aggregate(&input, &mut sums)));
        add("aggregate", &mut ours, &mut native, None);
        broker.stop();
    }
}

fn guest(engine: &Engine, name: &str) -> Guest {
    let module = engine.compile(&millstream_tests::guest(name)).unwrap();
    Guest::new(engine, &module, Vec::new(), CallLimits::default(), LogContext::default())
}

fn ns_a_record(
    plan: &Plan,
    batches: &[RecordBatch],
    decode: &dyn Fn(&RecordBatch) -> Columns,
    run: &mut dyn FnMut(Columns),
) -> f64 {
    let count = plan.records(BATCHES_A_ROUND);
    let begun = Instant::now();
    for batch in batches.iter().cycle().take(count as usize) {
        run(decode(batch));
    }
    begun.elapsed().as_nanos() as f64 / (count * RECORDS as u64) as f64
}
