//! `cargo xtask interop`: runs clients of Kafka against a server, each scenario against a fresh one, and prints a table.
//!
//! The clients' programs are in tests/interop. What they need is installed into target/interop, in pinned versions.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::Table;

use crate::process;

/// The exit code of a scenario that a client cannot do.
const SKIPPED: i32 = 77;

/// How long a scenario may take.
const SCENARIO_MAX: Duration = Duration::from_secs(240);

/// How long a server runs until it is killed in the scenarios that kill it.
const KILLED_AFTER: Duration = Duration::from_millis(1_500);

/// The scenarios, and whether the server is killed meanwhile.
const SCENARIOS: [(&str, bool); 13] = [
    ("produce-consume", false),
    ("codecs", false),
    ("nulls-headers", false),
    ("group", false),
    ("consumer-protocol", false),
    ("commit-resume", false),
    ("seek-time", false),
    ("admin", false),
    ("transactions", false),
    ("large", false),
    ("many-topics", false),
    ("kill", true),
    ("kill-transactions", true),
];

/// What a client's program runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Platform {
    Python,
    Node,
}

/// A client: its name, its platform and its program.
const CLIENTS: [(&str, Platform, &str); 5] = [
    ("confluent-kafka 2.16.1 (librdkafka)", Platform::Python, "confluent.py"),
    ("kafka-python 3.0.12", Platform::Python, "kafka_python.py"),
    ("aiokafka 0.14.0", Platform::Python, "aiokafka_client.py"),
    ("kafkajs 2.2.4", Platform::Node, "kafkajs.js"),
    ("@platformatic/kafka 2.12.0", Platform::Node, "platformatic.js"),
];

/// The clients of the core that every change must pass, and the scenario that takes too long for it.
const CORE: [&str; 2] = ["confluent.py", "kafkajs.js"];
const NOT_IN_CORE: &str = "kill-transactions";

/// What a scenario came to.
enum Outcome {
    Passed,
    Skipped,
    Failed(String),
}

pub(crate) fn run(root: &Path, core: bool, filter: Option<&str>) -> Result<()> {
    process::run(process::cargo(root).args(["build", "--bin", "millstream"]))?;
    let wanted = |name: &str, program: &str| {
        (!core || CORE.contains(&program)) && filter.is_none_or(|filter| name.contains(filter))
    };
    let clients: Vec<_> = CLIENTS.into_iter().filter(|(name, _, program)| wanted(name, program)).collect();
    if clients.is_empty() {
        bail!("no client has {:?} in its name", filter.unwrap_or_default());
    }
    let mut table = Table::new();
    table.set_header([&["client"][..], &SCENARIOS.map(|(name, _)| name)].concat());
    let (mut failures, mut missing) = (Vec::new(), Vec::new());
    for (name, platform, program) in clients {
        let installed = match install(root, platform) {
            Ok(installed) => installed,
            Err(error) => {
                missing.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        let mut row = vec![name.to_owned()];
        for (scenario, kills) in SCENARIOS {
            let outcome = match core && scenario == NOT_IN_CORE {
                true => Outcome::Skipped,
                false => run_scenario(root, &installed, platform, program, scenario, kills)?,
            };
            row.push(match outcome {
                Outcome::Passed => "ok".to_owned(),
                Outcome::Skipped => "-".to_owned(),
                Outcome::Failed(output) => {
                    failures.push(format!("{name}, {scenario}:\n{output}"));
                    "FAILED".to_owned()
                }
            });
            eprintln!("{name}: {scenario}: {}", row.last().map_or("", String::as_str));
        }
        table.add_row(row);
    }
    println!("{table}");
    missing.iter().for_each(|missing| println!("left out, {missing}"));
    failures.iter().for_each(|failure| println!("\n{failure}"));
    match failures.len() {
        0 => Ok(()),
        failures => bail!("{failures} scenarios failed"),
    }
}

/// Installs what the programs of a platform need. Returns the program that runs them.
fn install(root: &Path, platform: Platform) -> Result<PathBuf> {
    let (programs, target) = (root.join("tests/interop"), root.join("target/interop"));
    std::fs::create_dir_all(&target).context("cannot create target/interop")?;
    match platform {
        Platform::Python => {
            let folder = target.join("python");
            let python = folder.join("bin/python");
            let done = folder.join("installed");
            let requirements = programs.join("python/requirements.txt");
            if !is_same(&done, &requirements)? {
                process::output(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
                let mut pip = Command::new(&python);
                process::output(pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements))?;
                std::fs::copy(&requirements, &done).context("cannot write to target/interop")?;
            }
            Ok(python)
        }
        Platform::Node => {
            let folder = target.join("node");
            let (packages, done) = (programs.join("node/package.json"), folder.join("package.json"));
            if !is_same(&done, &packages)? {
                std::fs::create_dir_all(&folder).context("cannot create target/interop/node")?;
                let mut npm = Command::new("npm");
                npm.current_dir(&folder).args(["install", "--no-audit", "--no-fund", "--loglevel=error"]);
                std::fs::copy(&packages, &done).context("cannot write to target/interop")?;
                if let Err(error) = process::output(&mut npm) {
                    std::fs::remove_file(&done).context("cannot remove a file of target/interop")?;
                    return Err(error);
                }
            }
            Ok(PathBuf::from("node"))
        }
    }
}

/// Returns whether both files have the same content. One that does not exist is different.
fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let wanted = std::fs::read(other).with_context(|| format!("cannot read {}", other.display()))?;
    Ok(std::fs::read(one).is_ok_and(|found| found == wanted))
}

fn run_scenario(
    root: &Path,
    installed: &Path,
    platform: Platform,
    program: &str,
    scenario: &str,
    kills: bool,
) -> Result<Outcome> {
    let folder = root.join("target/interop/data");
    let mut server = Server::start(root, &folder)?;
    let (programs, modules) = (root.join("tests/interop"), root.join("target/interop/node/node_modules"));
    let mut command = Command::new(installed);
    let file = match platform {
        Platform::Python => programs.join("python").join(program),
        Platform::Node => programs.join("node").join(program),
    };
    let log = root.join("target/interop/client.log");
    let out = std::fs::File::create(&log).context("cannot create target/interop/client.log")?;
    command.env("NODE_PATH", modules).arg(file).arg(&server.kafka).arg(scenario);
    let mut client = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot use target/interop/client.log twice")?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("cannot run {}", installed.display()))?;
    let begun = Instant::now();
    let mut started = Instant::now();
    let status = loop {
        if let Some(status) = client.try_wait().context("cannot wait for a client")? {
            break Some(status);
        }
        if begun.elapsed() > SCENARIO_MAX {
            client.kill().context("cannot stop a client")?;
            client.wait().context("cannot wait for a client")?;
            break None;
        }
        if kills && started.elapsed() > KILLED_AFTER {
            server.restart(root, &folder)?;
            started = Instant::now();
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

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// A server on a folder of its own. It is killed when dropped.
struct Server {
    kafka: String,
    process: Child,
}

impl Server {
    fn start(root: &Path, folder: &Path) -> Result<Self> {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("cannot clean up"),
            _ => {}
        }
        let kafka = free_address()?;
        let process = spawn(root, folder, &kafka)?;
        let server = Self { kafka, process };
        server.wait()?;
        Ok(server)
    }

    /// Kills the server, and starts it again on the same address.
    fn restart(&mut self, root: &Path, folder: &Path) -> Result<()> {
        self.stop()?;
        self.process = spawn(root, folder, &self.kafka)?;
        self.wait()
    }

    fn stop(&mut self) -> Result<()> {
        self.process.kill().context("cannot kill the server")?;
        self.process.wait().context("cannot wait for the server").map(drop)
    }

    fn wait(&self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(&self.kafka).is_err() {
            if Instant::now() > limit {
                bail!("the server does not listen on {} within a minute", self.kafka);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.stop();
    }
}

fn spawn(root: &Path, folder: &Path, kafka: &str) -> Result<Child> {
    Command::new(root.join("target/debug/millstream"))
        .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "warn", "--kafka-address", kafka])
        .arg("--data")
        .arg(folder)
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the server")
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener.local_addr().context("a listener has no address")?.to_string())
}
