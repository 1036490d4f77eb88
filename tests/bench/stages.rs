//! One stage over batches of 1,000 records, including the decoding to columns, compared with plain Rust.

use std::hint::black_box;
use std::time::Instant;

use millstream_broker::Broker;
use millstream_broker::log::commit::Commit;
use millstream_broker::store::StateChange;
use millstream_record::{Columns, Limits, RecordBatch};
use millstream_runtime::host::{CallLimits, Engine, EngineSettings, Guest, LogContext};
use millstream_runtime::stage::aggregate::Aggregated;
use millstream_runtime::stage::{aggregate, filter, map};
use millstream_runtime::state::TaskState;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::median;
use millstream_tests::measure::turns::{Side, sides};

use crate::plan::Plan;
use crate::{embedded, yardstick};

const RECORDS: usize = 1_000;
const KEYS: u64 = 1_000;
const ROUNDS: usize = 7;
const BATCHES_A_ROUND: u64 = 2_000;

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    let engine = Engine::new(EngineSettings::default()).unwrap();
    for (size, value_bytes) in [("100 B", 100), ("1 KiB", 1_024)] {
        let seeds = 0..50;
        let batches: Vec<RecordBatch> = seeds.map(|seed| yardstick::batch(RECORDS, value_bytes, KEYS, seed)).collect();

        let name = format!("stage filter, {size}");
        if plan.wants_any(&name, &["absolute"]) {
            let mut guest = guest(&engine, "bench-filter");
            let mut ours = |input| drop(black_box(filter::run(&mut guest, input).unwrap()));
            let mut native = |input| drop(black_box(yardstick::filter(&input)));
            let (ours, native) = measure(plan, &batches, &mut ours, &mut native);
            let figure = Figure::new(&name, ours, Unit::NanosecondsPerRecord);
            report.add(figure.beside("native Rust", native).at_most(3.0 * native));
            if value_bytes == 100 {
                let name = format!("{name}, absolute");
                report.add(Figure::new(name, ours, Unit::NanosecondsPerRecord).at_most(40.0));
            }
        }
        let name = format!("stage map, {size}");
        if plan.wants(&name) {
            let mut guest = guest(&engine, "bench-map");
            let mut ours = |input| drop(black_box(map::run(&mut guest, input).unwrap()));
            let mut native = |input| drop(black_box(yardstick::map(&input)));
            let (ours, native) = measure(plan, &batches, &mut ours, &mut native);
            report.add(Figure::new(name, ours, Unit::NanosecondsPerRecord).beside("native Rust", native));
        }
        let name = format!("stage aggregate, {size}");
        if plan.wants(&name) {
            let (ours, native) = measure_aggregate(plan, &batches, guest(&engine, "bench-aggregate"));
            let beside = "native Rust over the same state";
            report.add(Figure::new(name, ours, Unit::NanosecondsPerRecord).beside(beside, native));
        }
    }
}

fn guest(engine: &Engine, name: &str) -> Guest {
    let module = engine.compile(&millstream_tests::guest(name)).unwrap();
    Guest::new(engine, &module, Vec::new(), CallLimits::default(), LogContext::default())
}

/// Returns the nanoseconds per record of the stage, and those of the same code in native Rust.
fn measure(
    plan: &Plan,
    batches: &[RecordBatch],
    ours: &mut dyn FnMut(Columns),
    native: &mut dyn FnMut(Columns),
) -> (f64, f64) {
    let count = plan.records(BATCHES_A_ROUND);
    // Warm-up.
    ns_a_record(batches, count / 10, ours);
    ns_a_record(batches, count / 10, native);
    let (mut of_ours, mut of_native) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds(ROUNDS) {
        for side in sides(round) {
            match side {
                Side::Ours => of_ours.push(ns_a_record(batches, count, ours)),
                Side::Yardstick => of_native.push(ns_a_record(batches, count, native)),
            }
        }
    }
    (median(of_ours), median(of_native))
}

fn ns_a_record(batches: &[RecordBatch], count: u64, run: &mut dyn FnMut(Columns)) -> f64 {
    let begun = Instant::now();
    for batch in batches.iter().cycle().take(count as usize) {
        run(decoded(batch));
    }
    begun.elapsed().as_nanos() as f64 / (count * RECORDS as u64) as f64
}

fn decoded(batch: &RecordBatch) -> Columns {
    let mut columns = Columns::default();
    columns.append_batch(batch, 0, &Limits::default()).unwrap();
    columns
}

/// Measures the aggregate and its yardstick. Each has its own state, which contains every key.
fn measure_aggregate(plan: &Plan, batches: &[RecordBatch], mut guest: Guest) -> (f64, f64) {
    let data = tempfile::tempdir().unwrap();
    let broker = embedded::open(data.path());
    let mut ours =
        |input: &Columns, state: &TaskState| aggregate::run(&mut guest, input, state, state.hasher()).unwrap();
    let mut native = yardstick::aggregate;
    let mut of_ours = Task::new(&broker, "bench/ours", batches, &mut ours);
    let mut of_native = Task::new(&broker, "bench/native", batches, &mut native);
    let measured =
        measure(plan, batches, &mut |input| drop(black_box(of_ours.step(&input, &mut ours))), &mut |input| {
            drop(black_box(of_native.step(&input, &mut native)))
        });
    broker.stop();
    measured
}

/// The state of a task across its steps.
struct Task {
    state: TaskState,
    steps: u64,
}

impl Task {
    /// Creates state that is committed after one pass over all batches.
    fn new(
        broker: &Broker,
        store: &'static str,
        batches: &[RecordBatch],
        run: &mut impl FnMut(&Columns, &TaskState) -> Aggregated,
    ) -> Self {
        let state = TaskState::new(store.into(), 0, broker.state().partition(store, 0));
        let mut task = Self { state, steps: 0 };
        let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for batch in batches {
            let change = task.step(&decoded(batch), run);
            let commit = Commit { state: vec![change], ..Commit::default() };
            tokio.block_on(async { broker.commit(commit).await.unwrap().await.unwrap() });
        }
        task
    }

    /// Processes a batch and keeps the changed state.
    fn step(&mut self, input: &Columns, run: &mut impl FnMut(&Columns, &TaskState) -> Aggregated) -> StateChange {
        let made = run(input, &self.state);
        let change = self.state.change(self.steps, made.groups, &made.before, made.accumulators);
        // Two steps are in flight, as when commits keep up with processing.
        self.steps += 1;
        self.state.committed_up_to(self.steps.saturating_sub(3));
        change
    }
}
