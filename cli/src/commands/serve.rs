//! `millstream serve`: the server in this process.

mod bounds;
mod http;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use millstream_broker::broker::quota::QuotaSettings;
use millstream_broker::clock::SystemClock;
use millstream_broker::store::{StoreError, StoreOptions};
use millstream_broker::{Broker, BrokerSettings};
use millstream_runtime::host::EngineSettings;
use millstream_runtime::{Runtime, RuntimeSettings};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::RoutesBuilder;
use tracing_subscriber::EnvFilter;

use self::bounds::BoundsArgs;
use crate::amount;

const EXAMPLES: &str = "\
Examples:
  millstream serve --data ./millstream-data
  millstream serve --data /var/lib/millstream --grpc 0.0.0.0:7070 --http 0.0.0.0:7071 --log-format json
  millstream serve --data ./millstream-data --produce-bytes-per-s-max 10000000 --quota importer=produce:50000000

Ctrl-C or SIGTERM stops it: what was taken is committed and answered first.";

/// Run the server: the broker, the pipelines and their HTTP side in one process
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The folder that holds everything; made where it is missing. One server at a time uses it
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where the gRPC services listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070", value_parser = amount::address)]
    pub(crate) grpc: SocketAddr,
    /// Where health and metrics are served over HTTP
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071", value_parser = amount::address)]
    pub(crate) http: SocketAddr,
    /// How log lines look, on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// What is logged: a level, or levels by module such as `warn,millstream_runtime=debug`
    #[arg(long, value_name = "FILTER", env = "MILLSTREAM_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Threads that serve requests and run stages; one a core when left out
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroUsize>)]
    pub(crate) worker_threads: Option<NonZeroUsize>,
    /// Bytes of new records that are kept in the journal before they are sealed into segments, 1MiB or more: a start reads
    /// them all, and no topic's retention_bytes can be less [default: 128MiB]
    #[arg(long, value_name = "SIZE", value_parser = journal_bytes)]
    pub(crate) journal_bytes_max: Option<u64>,
    /// While the disk has less room than this, writes are refused and reads go on; it is for putting in order what is
    /// stored already [default: as --journal-bytes-max]
    #[arg(long, value_name = "SIZE", value_parser = amount::bytes)]
    pub(crate) disk_reserve_bytes: Option<u64>,
    #[command(flatten)]
    pub(crate) bounds: BoundsArgs,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// A stop waits this long for open calls to end; what is committed is committed by then.
const STOP_SECONDS_MAX: u64 = 20;

/// Files that are open beside the connections: the data directory's, HTTP's, the runtime's.
const FILES_BESIDE_CONNECTIONS: u64 = 1_000;

/// The least that `--journal-bytes-max` can be: the largest record batch of a topic with default settings.
const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// Reads `--journal-bytes-max`.
fn journal_bytes(text: &str) -> Result<u64, String> {
    let bytes = amount::bytes(text)?;
    if bytes < JOURNAL_BYTES_MIN {
        return Err(format!("{bytes} bytes are too few: use 1MiB or more, which one record batch may fill"));
    }
    Ok(bytes)
}

/// Serves until it is told to stop. A disk that is full ends only the writes.
///
/// # Errors
/// What keeps it from starting, or the storage failure that ended it.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    start_logging(&args)?;
    let begun = Instant::now();
    let quotas = args.bounds.quotas()?;
    // Before the data directory is made: where an address is taken, nothing is left behind. Who connects already waits.
    let grpc = listen(args.grpc, "--grpc").await?;
    let http = listen(args.http, "--http").await?;
    let mut registry = Registry::default();
    let (broker, runtime) = open(&args, quotas, &mut registry).await?;
    let module_bytes_max = EngineSettings::default().module_bytes_max;

    let mut routes = RoutesBuilder::default();
    millstream_broker::grpc::add_services(&mut routes, &broker);
    millstream_runtime::grpc::add_services(&mut routes, &runtime, module_bytes_max);
    let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
    let state = Arc::new(http::State { broker: broker.clone(), registry });

    let until_stopped = || {
        let broker = broker.clone();
        async move { broker.stopped().await }
    };
    let settings = args.bounds.serve_settings();
    allow_files(settings.connections_max);
    let grpc = tokio::spawn(millstream_broker::grpc::serve(routes, grpc, broker.clone(), settings, until_stopped()));
    let http = tokio::spawn(http::serve(http, state, until_stopped()));

    // Heard from here on: whoever reads that it serves may stop it at once.
    let stop_signal = stop_signal()?;
    // For people and for scripts that asked for port 0.
    let data = args.data.display();
    let version = env!("CARGO_PKG_VERSION");
    let mut out = io::stdout();
    // Who read it may have gone: the server stays.
    let _ = writeln!(out, "millstream {version} serves {data}: gRPC {grpc_address}, HTTP {http_address}");
    tracing::info!(%grpc_address, %http_address, %data, started_ms = begun.elapsed().as_millis() as u64, "ready");

    let failure = tokio::select! {
        signal = stop_signal => {
            tracing::info!(signal, "stopping");
            None
        }
        failure = storage_failure(&broker) => Some(failure),
    };
    // Tasks end at a commit while the committer still runs; then calls are answered; then it ends too.
    if failure.is_none() {
        runtime.stop().await;
    }
    broker.begin_stop();
    let ended = async { (grpc.await, http.await) };
    match tokio::time::timeout(Duration::from_secs(STOP_SECONDS_MAX), ended).await {
        Ok((grpc, http)) => {
            grpc.context("the gRPC server panicked")?.map_err(|error| anyhow::anyhow!("gRPC: {error}"))?;
            http.context("the HTTP server panicked")?.context("HTTP")?;
        }
        Err(_) => tracing::warn!("calls are still open after {STOP_SECONDS_MAX} s: ending without them"),
    }
    tokio::task::spawn_blocking(move || broker.stop()).await.context("the committer panicked")?;
    match failure {
        Some(failure) => anyhow::bail!("the storage failed, so the server ends: {failure}"),
        None => {
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Opens the data directory and starts its pipelines.
async fn open(args: &Args, quotas: QuotaSettings, registry: &mut Registry) -> anyhow::Result<(Broker, Runtime)> {
    let data = args.data.clone();
    let threads = args.worker_threads.map(NonZeroUsize::get);
    let journal_bytes_max = args.journal_bytes_max;
    let disk_reserve_bytes = args.disk_reserve_bytes;
    let mut own = std::mem::take(registry);
    let opened = tokio::task::spawn_blocking(move || {
        let clock = Arc::new(SystemClock);
        let mut settings = BrokerSettings { quotas, disk_reserve_bytes, ..BrokerSettings::default() };
        if let Some(bytes) = journal_bytes_max {
            settings.journal_bytes_max = bytes;
        }
        let broker = Broker::open(&data, settings, StoreOptions::default(), clock, &mut own)?;
        let engine = EngineSettings { cache_dir: Some(data.join("compiled")), ..EngineSettings::default() };
        let settings = RuntimeSettings { worker_threads: threads, engine };
        let runtime = Runtime::open(broker.clone(), settings, &mut own)?;
        anyhow::Ok((broker, runtime, own))
    });
    let (broker, runtime, own) = opened.await.context("opening the data directory panicked")??;
    *registry = own;
    Ok((broker, runtime))
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: choose another address with {flag}, or stop who has it"))
}

/// Each connection is an open file, and what a process may open is often far less than it could be.
fn allow_files(connections_max: usize) {
    let wanted = (connections_max as u64).saturating_add(FILES_BESIDE_CONNECTIONS);
    match rlimit::increase_nofile_limit(wanted) {
        Ok(allowed) if allowed >= wanted => {}
        Ok(allowed) => tracing::warn!(
            allowed,
            connections_max,
            "the process may open fewer files than --connections-max needs: raise its hard limit (ulimit -Hn)"
        ),
        Err(error) => tracing::warn!(%error, "cannot raise how many files the process may open"),
    }
}

fn start_logging(args: &Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log)
        .with_context(|| format!("--log {:?} is no level (error, warn, info, debug, trace) and no filter", args.log))?;
    // Where nobody reads the log any more, the server goes on without.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match args.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
    }
    Ok(())
}

/// Listens for signals at once, and returns when one comes.
fn stop_signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// The storage failure that ends the server. A full disk does not: reads go on.
async fn storage_failure(broker: &Broker) -> Arc<StoreError> {
    let mut failure = broker.failure();
    match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
        Ok(Some(failure)) if failure.is_disk_full() => {
            tracing::error!(%failure, "the disk is full: no more writes are taken; make room, and start the server again");
            std::future::pending().await
        }
        Ok(Some(failure)) => failure,
        // The committer ended without a failure: a stop is under way.
        _ => std::future::pending().await,
    }
}
