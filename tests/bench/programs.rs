//! The `millstream` program of an older build beside this build's, by turns in one run: the effect of a change on each
//! path.
//!
//! In every round, each program serves from a new, empty directory. A figure is the median of the rounds. That is true
//! for tails too, because the worst round shows a stall of the machine rather than the difference between two programs.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use millstream_client::{ConsumerSettings, Position, ProducerSettings, v1};
use millstream_tests::measure::open_loop::OpenLoop;
use millstream_tests::measure::process::{cpu_seconds, largest_resident_bytes};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, median};
use millstream_tests::measure::turns::{Side, sides};
use millstream_tests::server::{Server, millstream};
use tempfile::TempDir;

use crate::fan_out::fan_out;
use crate::latency::SAMPLES_A_SECOND;
use crate::load::{self, Consumed};
use crate::pipelines::{PassedOn, pipeline_on};
use crate::plan::Plan;

const ROUNDS: usize = 5;
/// Partitions of topics that take a steady load.
const PARTITIONS: u32 = 4;
/// Allows a connection for each idle consumer.
const CONNECTIONS_MAX: [&str; 2] = ["--connections-max", "20000"];
/// Seconds of a steady load in each round.
const SECONDS: u64 = 10;

/// A path of the server that is measured.
#[derive(Clone, Copy, Debug)]
enum Case {
    /// Produce at full speed, then read from the tail and from the start.
    Stream { value_bytes: usize, partitions: u32, records: u64 },
    /// Acknowledgements under a steady load.
    Acknowledge { per_second: u64, value_bytes: usize },
    /// From a producer through a pipeline to a consumer, under a steady load.
    PassOn { per_second: u64 },
    /// Filter, map and aggregate at full speed.
    Pipeline { keys: u64, records: u64 },
    /// Groups that each read everything.
    FanOut { groups: u32, records: u64 },
    /// Consumers that wait for records, while nothing is written and while another topic is written to.
    IdlePolls { polls: usize },
    /// A start after SIGKILL.
    Start { records: u64 },
}

const CASES: [Case; 13] = [
    Case::Stream { value_bytes: 100, partitions: 1, records: 5_000_000 },
    Case::Stream { value_bytes: 100, partitions: 8, records: 5_000_000 },
    Case::Stream { value_bytes: 1_024, partitions: 1, records: 600_000 },
    Case::Stream { value_bytes: 1_024, partitions: 8, records: 600_000 },
    Case::Acknowledge { per_second: 10_000, value_bytes: 100 },
    Case::Acknowledge { per_second: 10_000, value_bytes: 1_024 },
    Case::Acknowledge { per_second: 500_000, value_bytes: 100 },
    Case::PassOn { per_second: 10_000 },
    Case::Pipeline { keys: 1_000, records: 4_000_000 },
    Case::Pipeline { keys: 1_000_000, records: 2_000_000 },
    Case::FanOut { groups: 4, records: 2_000_000 },
    Case::IdlePolls { polls: 10_000 },
    Case::Start { records: 1_000_000 },
];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream { value_bytes, partitions, .. } => {
                write!(f, "old and new, {value_bytes} B, {partitions} partitions")
            }
            Self::Acknowledge { per_second, value_bytes } => {
                write!(f, "old and new, acknowledgement of {value_bytes} B at {per_second}/s")
            }
            Self::PassOn { per_second } => write!(f, "old and new, produce to pipeline to consumer at {per_second}/s"),
            Self::Pipeline { keys, .. } => write!(f, "old and new, pipeline of three stages, {keys} keys"),
            Self::FanOut { groups, .. } => write!(f, "old and new, {groups} groups"),
            Self::IdlePolls { polls } => write!(f, "old and new, {polls} idle consumers"),
            Self::Start { .. } => write!(f, "old and new, start after SIGKILL"),
        }
    }
}

/// The figures of one round, by name. Every round of a case has the same ones.
type Round = Vec<(&'static str, Unit, f64)>;

/// Measures this build's program beside `old`.
pub(crate) async fn run(old: &Path, plan: &Plan, report: &mut Report) {
    let new = millstream();
    for case in CASES {
        let name = case.to_string();
        if !plan.wants(&name) {
            continue;
        }
        let (mut of_new, mut of_old) = (Vec::new(), Vec::new());
        for round in 0..plan.rounds(ROUNDS) {
            for side in sides(round) {
                match side {
                    Side::Ours => of_new.push(case.measure(&new, plan).await),
                    Side::Yardstick => of_old.push(case.measure(old, plan).await),
                }
            }
        }
        for (index, (of, unit, _)) in of_new[0].iter().enumerate() {
            let of_rounds = |rounds: &[Round]| median(rounds.iter().map(|round| round[index].2).collect());
            let figure = Figure::new(format!("{name}, {of}"), of_rounds(&of_new), *unit);
            report.add(figure.beside("old", of_rounds(&of_old)));
        }
    }
}

impl Case {
    async fn measure(self, program: &Path, plan: &Plan) -> Round {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start_program(program, data.path(), &CONNECTIONS_MAX);
        match self {
            Self::Stream { value_bytes, partitions, records } => {
                stream(&server, &data, value_bytes, partitions, plan.records(records)).await
            }
            Self::Acknowledge { per_second, value_bytes } => {
                create(&server, "t", PARTITIONS).await;
                let load = OpenLoop::new(per_second, plan.seconds(SECONDS), SAMPLES_A_SECOND);
                let cpu = cpu_seconds(server.pid());
                let latency = load_steadily(&server, "t", load, value_bytes).await;
                let mut round = of_latency(latency);
                let cpu = (cpu_seconds(server.pid()) - cpu) * 1e6 / load.records as f64;
                round.push(("server CPU", Unit::MicrosecondsPerRecord, cpu));
                round
            }
            Self::PassOn { per_second } => {
                let load = OpenLoop::new(per_second, plan.seconds(SECONDS), SAMPLES_A_SECOND);
                of_latency(PassedOn::start_on(server, data).await.steadily(load).await)
            }
            Self::Pipeline { keys, records } => {
                let rate = pipeline_on(&server, keys, plan.records(records)).await;
                vec![("processed", Unit::RecordsPerSecond, rate), resident(&server)]
            }
            Self::FanOut { groups, records } => {
                let records = plan.records(records);
                create(&server, "t", PARTITIONS).await;
                load::produce(&server, "t", 100, records).await;
                let read = fan_out(&server, "group", groups, records).await;
                vec![
                    ("read by all", Unit::RecordsPerSecond, read.records_per_s),
                    ("server CPU", Unit::MicrosecondsPerRecord, read.server_cpu_us),
                ]
            }
            Self::IdlePolls { polls } => idle_polls(&server, polls, plan).await,
            Self::Start { records } => start(server, plan.records(records)).await,
        }
    }
}

async fn create(server: &Server, topic: &str, partitions: u32) {
    server.client().admin().create_topic(topic, Some(partitions), v1::TopicSettings::default()).await.unwrap();
}

fn resident(server: &Server) -> (&'static str, Unit, f64) {
    ("largest resident set", Unit::Megabytes, largest_resident_bytes(server.pid()) as f64 / 1e6)
}

fn of_latency(latency: Latency) -> Round {
    [("p50", latency.p50_ms), ("p99", latency.p99_ms), ("p99.9", latency.p999_ms)]
        .map(|(name, ms)| (name, Unit::Milliseconds, ms))
        .into()
}

async fn stream(server: &Server, data: &TempDir, value_bytes: usize, partitions: u32, records: u64) -> Round {
    /// Bytes of values that are read from the tail, which the server has in memory.
    const TAIL_BYTES: u64 = 40_000_000;
    create(server, "t", partitions).await;
    let produced = load::produce(server, "t", value_bytes, records).await;
    let produced_with = resident(server);
    let tail = TAIL_BYTES / value_bytes as u64 / u64::from(partitions);
    let from_tail = load::consume_tail(&server.client(), "t", tail).await;
    let Consumed { records_per_s, server_cpu_us, .. } = load::consume_cold(server, data.path(), "t", records).await;
    vec![
        ("produced", Unit::RecordsPerSecond, produced.records_per_s),
        ("server CPU of producing and sealing", Unit::MicrosecondsPerRecord, produced.server_cpu_us),
        produced_with,
        ("consumed from the tail", Unit::RecordsPerSecond, from_tail),
        ("consumed from the start, cold", Unit::RecordsPerSecond, records_per_s),
        ("server CPU of consuming from the start", Unit::MicrosecondsPerRecord, server_cpu_us),
    ]
}

/// Records are sent as soon as they are due, because a batch that waits to be filled would hide the server's share of the
/// latency.
async fn load_steadily(server: &Server, topic: &str, load: OpenLoop, value_bytes: usize) -> Latency {
    let producer = server.client().producer(ProducerSettings { linger_ms: 0, ..ProducerSettings::default() });
    let to = producer.topic(topic).await.unwrap();
    let answered = load.run(&to, |_, _, record| record.value.resize(value_bytes, b'x')).await.unwrap();
    producer.close().await.unwrap();
    Latency::of(answered.acknowledged_ms)
}

/// Measures the CPU time of a server on which `polls` consumers wait, each for all partitions of a topic: while nothing
/// is written, and while 10,000 records per second are written to another topic, without consumers and with them.
async fn idle_polls(server: &Server, polls: usize, plan: &Plan) -> Round {
    create(server, "quiet", PARTITIONS).await;
    create(server, "busy", PARTITIONS).await;
    let load = OpenLoop::new(10_000, plan.seconds(SECONDS), SAMPLES_A_SECOND);
    let busy = async || {
        let cpu = cpu_seconds(server.pid());
        load_steadily(server, "busy", load, 100).await;
        (cpu_seconds(server.pid()) - cpu) * 1e6 / load.records as f64
    };
    let alone = busy().await;
    let client = server.client();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..polls {
        let mut consumer = client.consumer(ConsumerSettings::topic("quiet").from(Position::Earliest)).unwrap();
        waiting.spawn(async move { consumer.next_batch().await.is_some() });
    }
    load::settle(server).await;
    let (cpu, begun) = (cpu_seconds(server.pid()), Instant::now());
    tokio::time::sleep(Duration::from_secs(plan.seconds(SECONDS))).await;
    let idle = (cpu_seconds(server.pid()) - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    let beside = busy().await;
    assert_eq!(waiting.len(), polls);
    assert!(waiting.try_join_next().is_none(), "no consumer has got a record or an error");
    vec![
        ("CPU of a core while nothing is written", Unit::Percent, idle),
        ("server CPU of producing without them", Unit::MicrosecondsPerRecord, alone),
        ("server CPU of producing beside them", Unit::MicrosecondsPerRecord, beside),
        resident(server),
    ]
}

async fn start(mut server: Server, records: u64) -> Round {
    const VALUE_BYTES: usize = 1_000;
    create(&server, "t", PARTITIONS).await;
    load::send(&server.client(), "t", VALUE_BYTES, records).await;
    server.kill();
    let begun = Instant::now();
    server.restart();
    vec![("ready", Unit::Seconds, begun.elapsed().as_secs_f64()), resident(&server)]
}
