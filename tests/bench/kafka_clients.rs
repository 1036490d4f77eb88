//! Kafka's clients against our server, by turns with Apache Kafka: its own load tools (Java), and librdkafka by way of the
//! program in tests/interop/rust. The client is the same for all, and so is the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use millstream_tests::measure::kafka::{Flushing, Jars, Load, Node, Target, VERSION};
use millstream_tests::measure::page_cache::ColdFiles;
use millstream_tests::measure::process::{cpu_seconds, largest_resident_bytes, resident_bytes, settled};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, median};
use millstream_tests::measure::turns::order;
use millstream_tests::root;
use millstream_tests::server::Server;
use tempfile::TempDir;

use crate::kafka::{self, CONTENDERS, Contender};
use crate::load::median_of;
use crate::plan::Plan;

const NAME: &str = "kafka clients";
const ROUNDS: usize = 3;
const PARTITIONS: u32 = 4;
const LINGER_MS: u64 = 5;

/// How long a server that was just started rests until its memory is read.
const IDLE_FOR: Duration = Duration::from_secs(3);

/// Which client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Java,
    Librdkafka,
}

/// A load, and what it is called.
struct Case {
    client: Client,
    what: &'static str,
    value_bytes: usize,
    batch_bytes: usize,
    records: u64,
    /// Records per second from the producer to a consumer, or as many as possible are produced if `None`.
    rate: Option<u64>,
    /// Arguments of the program for librdkafka.
    more: &'static [&'static str],
}

const fn case(client: Client, what: &'static str, value_bytes: usize, batch_bytes: usize, records: u64) -> Case {
    Case { client, what, value_bytes, batch_bytes, records, rate: None, more: &[] }
}

const KIB: usize = 1_024;

const CASES: [Case; 16] = [
    case(Client::Java, "100 B, batches of 16 KiB", 100, 16 * KIB, 3_000_000),
    case(Client::Java, "100 B, batches of 128 KiB", 100, 128 * KIB, 5_000_000),
    case(Client::Java, "1 KiB, batches of 16 KiB", KIB, 16 * KIB, 500_000),
    case(Client::Java, "1 KiB, batches of 128 KiB", KIB, 128 * KIB, 800_000),
    case(Client::Librdkafka, "100 B, batches of 16 KiB", 100, 16 * KIB, 3_000_000),
    case(Client::Librdkafka, "100 B, batches of 128 KiB", 100, 128 * KIB, 3_000_000),
    case(Client::Librdkafka, "1 KiB, batches of 16 KiB", KIB, 16 * KIB, 500_000),
    case(Client::Librdkafka, "1 KiB, batches of 128 KiB", KIB, 128 * KIB, 800_000),
    Case {
        more: &["compression.type=lz4"],
        ..case(Client::Librdkafka, "100 B, lz4, no keys", 100, 128 * KIB, 5_000_000)
    },
    Case {
        more: &["compression.type=lz4", "keyed=true"],
        ..case(Client::Librdkafka, "100 B, lz4, keys", 100, 128 * KIB, 5_000_000)
    },
    Case { more: &["random=true"], ..case(Client::Librdkafka, "1 KiB, random", KIB, 128 * KIB, 800_000) },
    Case { more: &["producers=50"], ..case(Client::Librdkafka, "100 B, 50 producers", 100, 128 * KIB, 5_000_000) },
    end_to_end("10,000 records/s", 10_000, &["linger.ms=0"]),
    end_to_end("20,000 records/s", 20_000, &["random=true"]),
    end_to_end("20,000 records/s, keys", 20_000, &["random=true", "keyed=true"]),
    end_to_end("100,000 records/s", 100_000, &["compression.type=lz4"]),
];

/// Records of 1 KiB for ten seconds, from a producer to a consumer.
const fn end_to_end(what: &'static str, rate: u64, more: &'static [&'static str]) -> Case {
    let of = case(Client::Librdkafka, what, if rate >= 100_000 { 100 } else { KIB }, 128 * KIB, 10 * rate);
    Case { rate: Some(rate), more, ..of }
}

/// The cases whose topics are read afterwards.
const READ: [&str; 2] = ["100 B, batches of 128 KiB", "1 KiB, batches of 128 KiB"];

impl Case {
    fn name(&self) -> String {
        let what = if self.rate.is_some() { "produce to consume" } else { "produce" };
        let client = match self.client {
            Client::Java => "Java",
            Client::Librdkafka => "librdkafka",
        };
        format!("{NAME}, {client}, {what}, {}", self.what)
    }
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    let idle = format!("{NAME}, memory of a server without data");
    if plan.wants(&idle) {
        add_idle(&idle, report).await;
    }
    let wanted: Vec<&Case> = CASES.iter().filter(|case| plan.wants(&case.name())).collect();
    if wanted.is_empty() {
        return;
    }
    let jars = match Jars::prepare(&root().join("target/kafka")) {
        Ok(jars) => jars,
        Err(error) => return report.leave_out(&format!("{NAME}: Apache Kafka {VERSION}"), &format!("{error:#}")),
    };
    for case in wanted {
        if let Err(error) = case.measure(plan, &jars, report).await {
            report.leave_out(&case.name(), &format!("{error:#}"));
        }
    }
}

async fn add_idle(name: &str, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let server = started(folder.path());
    tokio::time::sleep(IDLE_FOR).await;
    report.add(Figure::new(name, resident_bytes(server.pid()) as f64 / 1e6, Unit::Megabytes).at_most(33.5));
}

fn started(folder: &Path) -> Server {
    Server::start_with(folder, &["--kafka-address", "127.0.0.1:0"])
}

/// Both servers, on folders of their own.
struct Both<'a> {
    jars: &'a Jars,
    ours: Server,
    node: Node,
    folder: TempDir,
    _kafka_folder: TempDir,
}

impl<'a> Both<'a> {
    fn start(jars: &'a Jars) -> Result<Self> {
        let (folder, kafka_folder) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let node = Node::start(jars, kafka_folder.path())?;
        Ok(Self { jars, ours: started(folder.path()), node, folder, _kafka_folder: kafka_folder })
    }

    fn target(&self, contender: Contender) -> Target<'_> {
        match contender {
            Contender::Ours => Target { jars: self.jars, address: self.ours.kafka(), pid: self.ours.pid() },
            Contender::Kafka(_) => self.node.target(),
        }
    }

    fn create(&self, contender: Contender, topic: &str) -> Result<()> {
        let flushing = match contender {
            Contender::Ours => Flushing::PageCache,
            Contender::Kafka(flushing) => flushing,
        };
        self.target(contender).create_topic(topic, PARTITIONS, flushing)
    }
}

/// The result of a round.
struct Measured {
    records_per_s: f64,
    latency: Latency,
    /// CPU time of the server per record, in microseconds, until it is idle.
    server_cpu_us: f64,
}

impl Case {
    async fn measure(&self, plan: &Plan, jars: &Jars, report: &mut Report) -> Result<()> {
        let mut both = Both::start(jars)?;
        let mut rounds = CONTENDERS.map(|_| Vec::new());
        let count = plan.rounds(ROUNDS);
        if self.client == Client::Librdkafka {
            for contender in CONTENDERS {
                let topic = format!("warm-up-{}", contender.index());
                both.create(contender, &topic)?;
                self.librdkafka(both.target(contender), &topic, plan.records(self.records) / 5).await?;
            }
        }
        for round in 0..count {
            for contender in order(round, &CONTENDERS) {
                let topic = contender.topic(round);
                both.create(contender, &topic)?;
                let target = both.target(contender);
                rounds[contender.index()].push(match self.client {
                    Client::Java => self.java(target, &topic, plan.records(self.records)).await?,
                    Client::Librdkafka => self.librdkafka(target, &topic, plan.records(self.records)).await?,
                });
                // What is only in the page cache must not be written to the disk while another is measured.
                rustix::fs::sync();
            }
        }
        self.add(report, &rounds, &both);
        if self.rate.is_none() && READ.contains(&self.what) {
            self.read(plan, &mut both, count, report)?;
        }
        Ok(())
    }

    async fn java(&self, target: Target<'_>, topic: &str, records: u64) -> Result<Measured> {
        let (value_bytes, batch_bytes) = (self.value_bytes, self.batch_bytes);
        let load = Load { batch_bytes, linger_ms: LINGER_MS, ..kafka::load(topic, value_bytes, records) };
        let produced = target.produce(load).await?;
        let (records_per_s, server_cpu_us) = (produced.records_per_s, produced.server_cpu_us);
        Ok(Measured { records_per_s, latency: produced.latency, server_cpu_us })
    }

    async fn librdkafka(&self, target: Target<'_>, topic: &str, records: u64) -> Result<Measured> {
        let (records, bytes) = (records.to_string(), self.value_bytes.to_string());
        let mut settings = vec![
            ("topic", topic.to_owned()),
            ("records", records.clone()),
            ("bytes", bytes),
            ("batch.size", self.batch_bytes.to_string()),
            ("partitions", PARTITIONS.to_string()),
        ];
        if !self.more.iter().any(|more| more.starts_with("linger.ms")) {
            settings.push(("linger.ms", LINGER_MS.to_string()));
        }
        let mode = if self.rate.is_some() { "end-to-end" } else { "produce" };
        settings.extend(self.rate.map(|rate| ("rate", rate.to_string())));
        let mut arguments: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        arguments.extend(self.more.iter().map(|more| (*more).to_owned()));
        let before = cpu_seconds(target.pid);
        let result = librdkafka(target.address, mode, &arguments)?;
        settled(target.pid).await;
        let cpu = cpu_seconds(target.pid) - before;
        Ok(Measured { server_cpu_us: cpu * 1e6 / records.parse::<f64>()?, ..result })
    }

    fn add(&self, report: &mut Report, rounds: &[Vec<Measured>; 3], both: &Both<'_>) {
        let name = self.name();
        let of = |figure: fn(&Measured) -> f64| CONTENDERS.map(|one| median_of(&rounds[one.index()], figure));
        let mut add = |name: String, values: [f64; 3], unit: Unit, target: fn(Figure, [f64; 3]) -> Figure| {
            let figure = Figure::new(name, values[0], unit);
            let beside = CONTENDERS[1..].iter().zip(&values[1..]);
            let figure = beside.fold(figure, |figure, (kafka, value)| figure.beside(kafka.name(), *value));
            report.add(target(figure, values));
        };
        let as_it_comes = |figure: Figure, _| figure;
        if self.rate.is_none() {
            let rates = of(|round| round.records_per_s);
            add(name.clone(), rates, Unit::RecordsPerSecond, |figure, [_, unflushed, _]| figure.at_least(unflushed));
            let megabytes = rates.map(|rate| rate * self.value_bytes as f64 / 1e6);
            add(name.clone(), megabytes, Unit::MegabytesPerSecond, as_it_comes);
        }
        let cpu = of(|round| round.server_cpu_us);
        let half = |figure: Figure, [_, unflushed, _]: [f64; 3]| figure.at_most(unflushed / 2.0);
        add(format!("{name}, server CPU"), cpu, Unit::MicrosecondsPerRecord, half);
        // Kafka's two settings run in one node, so its memory is that of both.
        let memory = CONTENDERS.map(|one| largest_resident_bytes(both.target(one).pid) as f64 / 1e6);
        let bound = |figure: Figure, _| figure.at_most(100.7);
        add(format!("{name}, largest memory of the server"), memory, Unit::Megabytes, bound);
        let latencies = rounds.each_ref().map(|rounds| rounds.iter().map(|one| one.latency).collect::<Vec<_>>());
        let names = CONTENDERS.map(Contender::name);
        let beside = [(names[1].as_str(), &latencies[1][..]), (names[2].as_str(), &latencies[2][..])];
        let what = if self.rate.is_some() { "from when due to when read" } else { "acknowledgement at full load" };
        report.add_latency_beside(&format!("{name}, {what},"), &latencies[0], &beside);
    }

    /// Reads the topics of the rounds: while they are in memory, and again with nothing in memory.
    fn read(&self, plan: &Plan, both: &mut Both<'_>, rounds: usize, report: &mut Report) -> Result<()> {
        let records = plan.records(self.records);
        let name = self.name().replace("produce", "consume");
        for cold in [false, true] {
            let mut rates = [Vec::new(), Vec::new()];
            for round in 0..rounds {
                for (side, contender) in order(round, &[(0, CONTENDERS[0]), (1, CONTENDERS[1])]) {
                    // Kafka's tool reads the topic that was written last from the page cache.
                    let topic = contender.topic(if cold { round } else { rounds - 1 });
                    if cold {
                        both.forget(contender)?;
                    }
                    let target = both.target(contender);
                    rates[side].push(match self.client {
                        Client::Java => target.consume(&topic, records)?.records_per_s,
                        Client::Librdkafka => {
                            let settings = [
                                format!("topic={topic}"),
                                format!("records={records}"),
                                format!("partitions={PARTITIONS}"),
                            ];
                            librdkafka(target.address, "consume", &settings)?.records_per_s
                        }
                    });
                }
            }
            let [ours, theirs] = rates.map(median);
            let from = if cold { "from the start, cold" } else { "warm" };
            let figure = Figure::new(format!("{name}, {from}"), ours, Unit::RecordsPerSecond);
            report.add(figure.beside(kafka::name(Flushing::PageCache), theirs).at_least(2.0 * theirs));
        }
        Ok(())
    }
}

impl Both<'_> {
    /// Restarts a server with an empty page cache.
    fn forget(&mut self, contender: Contender) -> Result<()> {
        if let Contender::Kafka(_) = contender {
            return self.node.restart(|data| Ok(ColdFiles::of(data).map(drop)?));
        }
        if !self.ours.terminate().success() {
            bail!("the server did not stop as it should");
        }
        ColdFiles::of(self.folder.path())?;
        self.ours.restart();
        Ok(())
    }
}

/// Runs the program for librdkafka. The result has no CPU time of the server.
fn librdkafka(address: &str, mode: &str, settings: &[String]) -> Result<Measured> {
    let program: PathBuf = root().join("target/interop/rust/release/millstream-interop");
    let mut command = Command::new(&program);
    let output = command.arg(address).arg(mode).args(settings).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("librdkafka: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let said: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("librdkafka's program said no JSON")?;
    let number = |name: &str| said[name].as_f64().with_context(|| format!("librdkafka's program said no {name}"));
    let latency = Latency {
        samples: number("samples")? as usize,
        p50_ms: number("p50_ms")?,
        p99_ms: number("p99_ms")?,
        p999_ms: number("p999_ms")?,
        max_ms: number("max_ms")?,
    };
    Ok(Measured { records_per_s: number("records_per_s")?, latency, server_cpu_us: 0.0 })
}
