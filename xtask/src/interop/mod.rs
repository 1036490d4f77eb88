//! `cargo xtask interop`: runs clients of Kafka against a server, each scenario against a fresh one, and prints a table.
//!
//! The clients' programs are in tests/interop. What they need is installed into target/interop, in pinned versions.

mod card;
mod install;
mod proxy;
mod server;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use comfy_table::Table;

use crate::process;
use install::{Installed, Platform};
use server::Server;

pub(crate) use install::build_rust;

/// The exit code of a scenario that a client cannot do.
const SKIPPED: i32 = 77;

/// How long a scenario may take.
const SCENARIO_MAX: Duration = Duration::from_secs(240);

/// What happens to the server of a scenario meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// It is killed and started again, after a time between these, in ms.
    Kills(u64, u64),
    /// All connections are cut, after a time between these, in ms.
    Cuts(u64, u64),
}

/// A scenario: its name, what happens meanwhile, and arguments of the server.
struct Scenario {
    name: &'static str,
    fault: Fault,
    arguments: &'static [&'static str],
}

const fn scenario(name: &'static str, fault: Fault) -> Scenario {
    Scenario { name, fault, arguments: &[] }
}

const SCENARIOS: [Scenario; 18] = [
    scenario("produce-consume", Fault::Nothing),
    scenario("codecs", Fault::Nothing),
    scenario("nulls-headers", Fault::Nothing),
    scenario("group", Fault::Nothing),
    scenario("consumer-protocol", Fault::Nothing),
    scenario("commit-resume", Fault::Nothing),
    scenario("seek-time", Fault::Nothing),
    scenario("admin", Fault::Nothing),
    scenario("transactions", Fault::Nothing),
    scenario("large", Fault::Nothing),
    scenario("many-topics", Fault::Nothing),
    // Sealed records are compacted, and the smallest journal is sealed soonest.
    Scenario { name: "compacted", fault: Fault::Nothing, arguments: &["--journal-bytes-max", "1MiB"] },
    scenario("kill", Fault::Kills(500, 2_500)),
    scenario("disconnects", Fault::Cuts(100, 500)),
    scenario("kill-transactions", Fault::Kills(500, 2_500)),
    scenario("kill-consumer-protocol", Fault::Kills(500, 2_500)),
    scenario("streams-wordcount", Fault::Nothing),
    // Kafka Streams needs some seconds to begin.
    scenario("kill-streams", Fault::Kills(3_000, 7_000)),
];

/// A client: its name, its platform, and its program or version.
struct Client {
    name: &'static str,
    platform: Platform,
    program: &'static str,
}

const fn client(name: &'static str, platform: Platform, program: &'static str) -> Client {
    Client { name, platform, program }
}

const CLIENTS: [Client; 15] = [
    client("confluent-kafka 2.16.1 (librdkafka)", Platform::Python, "confluent.py"),
    client("kafka-python 3.0.12", Platform::Python, "kafka_python.py"),
    client("aiokafka 0.14.0", Platform::Python, "aiokafka_client.py"),
    client("kafkajs 2.2.4", Platform::Node, "kafkajs.js"),
    client("@platformatic/kafka 2.12.0", Platform::Node, "platformatic.js"),
    client("@confluentinc/kafka-javascript 1.10.1", Platform::Node, "confluent.js"),
    client("rdkafka 0.39.0 (Rust)", Platform::Rust, "millstream-interop"),
    client("kcat 1.7.1", Platform::Shell, "kcat.sh"),
    client("franz-go 1.22.3", Platform::Go, "franz"),
    client("sarama 1.61.1", Platform::Go, "sarama"),
    client("kafka-go 0.4.51", Platform::Go, "segmentio"),
    client("Java 2.8.2", Platform::Java, "2.8.2"),
    client("Java 3.9.2", Platform::Java, "3.9.2"),
    client("Java 4.4.0", Platform::Java, "4.4.0"),
    client("Kafka Streams 4.4.0", Platform::Streams, "4.4.0"),
];

/// The clients of the core that every change must pass, and the scenarios that take too long for it.
const CORE: [&str; 2] = ["confluent.py", "kafkajs.js"];
const NOT_IN_CORE: [&str; 3] = ["kill-transactions", "kill-consumer-protocol", "disconnects"];

/// What a scenario came to.
enum Outcome {
    Passed,
    Skipped,
    Failed(String),
}

/// Runs the clients whose name contains `filter`, or those of the core, in the scenarios whose name contains `only`.
/// `writes_card` writes the results into the report card.
pub(crate) fn run(root: &Path, core: bool, filter: Option<&str>, only: Option<&str>, writes_card: bool) -> Result<()> {
    process::run(process::cargo(root).args(["build", "--bin", "millstream"]))?;
    let wanted = |client: &&Client| {
        (!core || CORE.contains(&client.program)) && filter.is_none_or(|filter| client.name.contains(filter))
    };
    let clients: Vec<&Client> = CLIENTS.iter().filter(wanted).collect();
    if clients.is_empty() {
        bail!("no client has {:?} in its name", filter.unwrap_or_default());
    }
    let scenarios: Vec<&Scenario> =
        SCENARIOS.iter().filter(|scenario| only.is_none_or(|only| scenario.name.contains(only))).collect();
    if scenarios.is_empty() {
        bail!("no scenario has {:?} in its name", only.unwrap_or_default());
    }
    let mut table = Table::new();
    table.set_header(std::iter::once("client").chain(scenarios.iter().map(|scenario| scenario.name)));
    let (mut failures, mut missing) = (Vec::new(), Vec::new());
    for client in clients {
        let installed = match install::install(root, client.platform, client.program) {
            Ok(installed) => installed,
            Err(error) => {
                missing.push(format!("{}: {error:#}", client.name));
                continue;
            }
        };
        let mut row = vec![client.name.to_owned()];
        for scenario in &scenarios {
            let begun = Instant::now();
            let outcome = match core && NOT_IN_CORE.contains(&scenario.name) {
                true => Outcome::Skipped,
                false => run_scenario(root, &installed, scenario)?,
            };
            row.push(match outcome {
                Outcome::Passed => "ok".to_owned(),
                Outcome::Skipped => "-".to_owned(),
                Outcome::Failed(output) => {
                    failures.push(format!("{}, {}:\n{output}", client.name, scenario.name));
                    "FAILED".to_owned()
                }
            });
            let result = row.last().map_or("", String::as_str);
            let seconds = begun.elapsed().as_secs_f32();
            eprintln!("{}: {}: {result} ({seconds:.1} s)", client.name, scenario.name);
            if writes_card {
                card::keep(root, client.name, scenario.name, result)?;
            }
        }
        table.add_row(row);
    }
    if writes_card {
        card::write(root)?;
    }
    println!("{table}");
    missing.iter().for_each(|missing| println!("left out, {missing}"));
    failures.iter().for_each(|failure| println!("\n{failure}"));
    match failures.len() {
        0 => Ok(()),
        failures => bail!("{failures} scenarios failed"),
    }
}

fn run_scenario(root: &Path, installed: &Installed, scenario: &Scenario) -> Result<Outcome> {
    let mut server = Server::start(root, matches!(scenario.fault, Fault::Cuts(..)), scenario.arguments)?;
    let log = root.join("target/interop/client.log");
    let out = std::fs::File::create(&log).context("cannot create target/interop/client.log")?;
    let mut client = installed
        .command()
        .args([&server.kafka, scenario.name])
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot use target/interop/client.log twice")?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("cannot run {}", installed.program.display()))?;
    let begun = Instant::now();
    let mut next = begun + pause(scenario.fault);
    let status = loop {
        if let Some(status) = client.try_wait().context("cannot wait for a client")? {
            break Some(status);
        }
        if begun.elapsed() > SCENARIO_MAX {
            client.kill().context("cannot stop a client")?;
            client.wait().context("cannot wait for a client")?;
            break None;
        }
        if Instant::now() > next {
            match scenario.fault {
                Fault::Nothing => {}
                Fault::Kills(..) => server.restart()?,
                Fault::Cuts(..) => server.cut(),
            }
            next = Instant::now() + pause(scenario.fault);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    Ok(match status.map(|status| status.code()) {
        Some(Some(0)) => Outcome::Passed,
        Some(Some(SKIPPED)) => Outcome::Skipped,
        None => Outcome::Failed(format!("it did not end within {SCENARIO_MAX:?}\n{}", last_lines(&said))),
        Some(_) => Outcome::Failed(last_lines(&said)),
    })
}

/// Returns how long the server is left alone: some time between the bounds.
fn pause(fault: Fault) -> Duration {
    let (least, most) = match fault {
        Fault::Nothing => return SCENARIO_MAX,
        Fault::Kills(least, most) | Fault::Cuts(least, most) => (least, most),
    };
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    Duration::from_millis(least + u64::from(nanos / 1_000) % (most - least))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
