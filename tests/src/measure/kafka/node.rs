//! A Kafka node in KRaft mode: broker and controller in one process, on loopback.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::jars::{Jars, last_lines};

/// Java options of Kafka's own start script: the heap size and the garbage collector's settings.
const JAVA_OPTIONS: [&str; 7] = [
    "-Xms1g",
    "-Xmx1g",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];

/// Time within which a node must listen.
const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// A running Kafka node. It is killed when dropped.
#[derive(Debug)]
pub struct Node {
    jars: Jars,
    folder: PathBuf,
    address: String,
    process: Child,
}

impl Node {
    /// Starts a node on a new folder, and waits until it listens.
    ///
    /// # Errors
    /// Returns the reason why the node does not start.
    pub fn start(jars: &Jars, folder: &Path) -> Result<Self> {
        let [broker, controller] = free_ports()?;
        let settings = folder.join("server.properties");
        std::fs::write(&settings, properties(folder, broker, controller)).context("can't write Kafka's settings")?;
        let id = jars.run("kafka.tools.StorageTool", &["random-uuid"])?;
        let id = id.lines().last().unwrap_or_default().trim().to_owned();
        jars.run("kafka.tools.StorageTool", &["format", "-t", &id, "-c", &settings.to_string_lossy()])?;
        let address = format!("127.0.0.1:{broker}");
        let process = spawn(jars, folder)?;
        let mut node = Self { jars: jars.clone(), folder: folder.to_owned(), address, process };
        node.wait_until_it_listens()?;
        Ok(node)
    }

    /// Returns the address that clients connect to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the jars that the node runs from.
    pub fn jars(&self) -> &Jars {
        &self.jars
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the folder of the node's logs.
    pub fn data(&self) -> PathBuf {
        data(&self.folder)
    }

    /// Stops the node with SIGTERM, calls `between` with the folder of its logs, and starts it again.
    ///
    /// # Errors
    /// Returns an error if the node does not stop or start, and the error of `between`.
    pub fn restart(&mut self, between: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().context("can't run kill")?;
        if !told.success() {
            bail!("the Kafka node can't be told to stop: {told}");
        }
        self.process.wait().context("the Kafka node does not end")?;
        between(&self.data())?;
        self.process = spawn(&self.jars, &self.folder)?;
        self.wait_until_it_listens()
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let until = Instant::now() + STARTS_WITHIN;
        while TcpStream::connect(&self.address).is_err() {
            let ended = self.process.try_wait().context("can't ask for the Kafka node")?;
            if ended.is_some() || Instant::now() > until {
                let said = std::fs::read_to_string(self.folder.join("output")).unwrap_or_default();
                bail!("the Kafka node did not start: {}", last_lines(&said));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn spawn(jars: &Jars, folder: &Path) -> Result<Child> {
    let output = std::fs::File::create(folder.join("output")).context("can't write Kafka's output")?;
    let mut java = Command::new("java");
    java.args(JAVA_OPTIONS).args(jars.java().get_args()).arg("kafka.Kafka").arg(folder.join("server.properties"));
    let out = output.try_clone().context("can't write Kafka's output")?;
    java.stdin(Stdio::null()).stdout(out).stderr(output).spawn().context("can't run java")
}

/// Returns two free ports. Kafka cannot choose its own port, because its settings contain the address that it
/// advertises to clients.
fn free_ports() -> Result<[u16; 2]> {
    let listener = || std::net::TcpListener::bind("127.0.0.1:0").context("no free port");
    let (one, other) = (listener()?, listener()?);
    Ok([one.local_addr()?.port(), other.local_addr()?.port()])
}

/// Returns the settings that a single node needs. All other settings keep Kafka's defaults.
fn properties(folder: &Path, broker: u16, controller: u16) -> String {
    let listeners = format!("PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}");
    let mut out = String::new();
    for (name, value) in [
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.quorum.voters", &format!("1@127.0.0.1:{controller}")),
        ("listeners", &listeners),
        ("advertised.listeners", &format!("PLAINTEXT://127.0.0.1:{broker}")),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("log.dirs", &data(folder).to_string_lossy()),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
    ] {
        writeln!(out, "{name}={value}").expect("writing to a string does not fail");
    }
    out
}
