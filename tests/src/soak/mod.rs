//! Runs a real server under a mixed load, kills it again and again, and checks it against a model: `cargo xtask soak`.
//!
//! The run consists of phases. Clients work while the server is killed (`workload`). Then they come to rest, the server
//! is killed once more, and everything that it holds is read and compared (`checker`) with what the clients know
//! (`model`).

mod checker;
mod model;
mod workload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};

use self::checker::{Before, caught_up, check_after_restart, check_all};
use self::model::{Known, PRODUCERS};
use self::workload::{Part, administer, produce, read, set_up, tail};
use crate::proxy::Proxy;
use crate::server::{Server, start_and_kill};

/// The smallest possible journal, so that sealing is in progress all the time.
const ARGUMENTS: [&str; 2] = ["--journal-bytes-max", "1MiB"];
/// Number of concurrent members of each group.
const MEMBERS: usize = 3;
/// Length of the first phase, in seconds. Each phase is twice as long as the previous one, because its check reads
/// twice as much.
const PHASE_SECONDS_MIN: u64 = 30;
/// Maximum length of a phase, in seconds, so that a violation is found soon after it occurred.
const PHASE_SECONDS_MAX: u64 = 240;
/// Time between two kills, in ms.
const LIFE_MS: std::ops::Range<u64> = 1_000..4_500;
/// Time between two lines of progress, in seconds.
const PROGRESS_SECONDS: u64 = 10;

/// Parameters of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long clients work while servers are killed. The checks take additional time.
    pub duration: Duration,
    /// Seed of all random choices. It does not reproduce their timing.
    pub seed: u64,
    /// An empty folder for the server's data.
    pub data: PathBuf,
}

/// Totals of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Number of acknowledged records.
    pub records: u64,
    /// Number of killed servers, including those that were not ready yet.
    pub kills: u64,
    /// Number of servers that were asked to stop.
    pub stops: u64,
    /// Number of topics that were created and deleted.
    pub topics_deleted: u64,
    /// Number of records that were read and compared.
    pub checked: u64,
    /// Duration of the longest start, in ms.
    pub start_ms_max: u64,
    /// Duration of the longest stop, in ms.
    pub stop_ms_max: u64,
    /// Maximum resident memory of a server, in bytes.
    pub resident_bytes_max: u64,
    /// Size of the data directory, in bytes.
    pub data_bytes: u64,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} records acknowledged, {} checked; {} kills, {} stops, {} topics deleted; data {} MiB, server at most {} \
             MiB, longest start {} ms, longest stop {} ms",
            self.records,
            self.checked,
            self.kills,
            self.stops,
            self.topics_deleted,
            self.data_bytes >> 20,
            self.resident_bytes_max >> 20,
            self.start_ms_max,
            self.stop_ms_max,
        )
    }
}

/// Runs the soak test, and prints its progress.
///
/// # Errors
/// Returns the violation: what is wrong, with which value, and in which topic, partition and offset.
///
/// # Panics
/// Panics if the server does not start or does not answer.
pub async fn run(plan: &Plan) -> Result<Summary> {
    let mut soak = Soak::start(plan).await?;
    let mut left = plan.duration;
    let mut phase = Duration::from_secs(PHASE_SECONDS_MIN);
    while !left.is_zero() {
        // A short last phase is merged into this one.
        let length = if left < phase * 2 { left } else { phase };
        soak.phase(length).await?;
        left -= length;
        phase = (phase * 2).min(Duration::from_secs(PHASE_SECONDS_MAX));
    }
    soak.stop()?;
    Ok(soak.summary)
}

struct Soak {
    plan: Plan,
    random: StdRng,
    known: Arc<Known>,
    proxy: Proxy,
    server: Server,
    summary: Summary,
    begun: Instant,
    printed: Instant,
}

impl Soak {
    async fn start(plan: &Plan) -> Result<Self> {
        let server = Server::start_with(&plan.data, &ARGUMENTS);
        let proxy = Proxy::start(&server).await;
        set_up(&proxy.client()).await.context("making topics and pipelines")?;
        Ok(Self {
            plan: plan.clone(),
            random: StdRng::seed_from_u64(plan.seed),
            known: Arc::default(),
            proxy,
            server,
            summary: Summary::default(),
            begun: Instant::now(),
            printed: Instant::now(),
        })
    }

    /// Runs clients while the server is killed, and then checks everything.
    async fn phase(&mut self, length: Duration) -> Result<()> {
        let (stop_writing, writing) = watch::channel(false);
        let (stop_reading, reading) = watch::channel(false);
        let mut writers = JoinSet::new();
        for index in 0..PRODUCERS.len() {
            writers.spawn(produce(self.part(&writing), index));
        }
        writers.spawn(administer(self.part(&writing)));
        let mut readers = JoinSet::new();
        for _ in 0..MEMBERS {
            readers.spawn(read(self.part(&reading)));
            readers.spawn(tail(self.part(&reading)));
        }

        let end = Instant::now() + length;
        let mut kill = Instant::now() + self.life();
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
            ended(&mut writers)?;
            ended(&mut readers)?;
            self.progress().await?;
            if Instant::now() >= kill {
                self.restart().await?;
                kill = Instant::now() + self.life();
            }
        }
        stop_writing.send_replace(true);
        all_ended(writers).await?;
        caught_up(&self.server.client(), &self.known).await?;
        ended(&mut readers)?;
        stop_reading.send_replace(true);
        all_ended(readers).await?;
        // After a restart, the check reads what was recovered, and not only what is in memory.
        self.restart().await?;
        self.summary.checked += check_all(&self.server.client(), &self.known, self.plan.seed).await?;
        self.count()?;
        println!("{:>5} s  checked: {}", self.begun.elapsed().as_secs(), self.summary);
        Ok(())
    }

    fn part(&mut self, stop: &watch::Receiver<bool>) -> Part {
        Part {
            client: self.proxy.client(),
            known: self.known.clone(),
            seed: self.plan.seed,
            random: StdRng::seed_from_u64(self.random.random()),
            stop: stop.clone(),
        }
    }

    fn life(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(LIFE_MS))
    }

    /// Asks the server to stop, and waits until it ends. Clients continue meanwhile, because the server closes their
    /// streams in an orderly way.
    fn stop(&mut self) -> Result<()> {
        let stopping = Instant::now();
        let status = block_in_place(|| self.server.terminate());
        ensure!(status.success(), "the server ended with {status} when it was asked to stop");
        self.summary.stop_ms_max = self.summary.stop_ms_max.max(stopping.elapsed().as_millis() as u64);
        Ok(())
    }

    /// Restarts the server. Usually it is killed, and some of its successors may be killed before they are ready.
    async fn restart(&mut self) -> Result<()> {
        ensure!(self.server.is_running(), "the server ended unexpectedly; its error is on stderr");
        self.summary.resident_bytes_max = self.summary.resident_bytes_max.max(self.server.resident_bytes());
        if self.random.random_bool(0.2) {
            // Existing connections may finish, but no new ones are forwarded.
            self.stop()?;
            self.proxy.pass_to_nobody();
            self.summary.stops += 1;
        } else {
            self.proxy.pass_to_nobody();
            self.server.kill();
            self.summary.kills += 1;
            while self.random.random_bool(0.25) {
                let after = Duration::from_millis(self.random.random_range(0..80));
                block_in_place(|| start_and_kill(&self.plan.data, &ARGUMENTS, after));
                self.summary.kills += 1;
            }
        }
        let before = Before::of(&self.known);
        let starting = Instant::now();
        block_in_place(|| self.server.restart());
        self.summary.start_ms_max = self.summary.start_ms_max.max(starting.elapsed().as_millis() as u64);
        self.proxy.pass_to(&self.server);
        check_after_restart(&self.server.client(), &self.known, &before).await.context("after a restart")
    }

    fn count(&mut self) -> Result<()> {
        self.summary.records = self.known.acks();
        self.summary.topics_deleted = self.known.deleted.lock().len() as u64;
        self.summary.data_bytes = folder_bytes(&self.plan.data)?;
        let resident_bytes = self.server.resident_bytes();
        self.summary.resident_bytes_max = self.summary.resident_bytes_max.max(resident_bytes);
        Ok(())
    }

    async fn progress(&mut self) -> Result<()> {
        if self.printed.elapsed() < Duration::from_secs(PROGRESS_SECONDS) {
            return Ok(());
        }
        self.printed = Instant::now();
        self.count()?;
        let topics = self.server.client().admin().list_topics().await?;
        println!(
            "{:>5} s  {} records, {} kills, {} stops, {} topics deleted; logs {} MiB, data {} MiB, server {} MiB",
            self.begun.elapsed().as_secs(),
            self.summary.records,
            self.summary.kills,
            self.summary.stops,
            self.summary.topics_deleted,
            topics.iter().map(|topic| topic.bytes).sum::<u64>() >> 20,
            self.summary.data_bytes >> 20,
            self.server.resident_bytes() >> 20,
        );
        Ok(())
    }
}

/// Returns the error of a client that ended before it was told to, because such a client found a violation.
fn ended(clients: &mut JoinSet<Result<()>>) -> Result<()> {
    match clients.try_join_next() {
        Some(client) => client.context("a client panicked")?,
        None => Ok(()),
    }
}

async fn all_ended(mut clients: JoinSet<Result<()>>) -> Result<()> {
    while let Some(client) = clients.join_next().await {
        client.context("a client panicked")??;
    }
    Ok(())
}

/// Returns the size of all files under a folder, in bytes. Files that are removed meanwhile are not counted.
fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += folder_bytes(&entry.path())?,
            Ok(metadata) => bytes += metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| entry.path().display().to_string()),
        }
    }
    Ok(bytes)
}
