//! `millstream serve`: runs the server in this process.

mod bounds;
mod http;
mod kafka;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use millstream_broker::clock::SystemClock;
use millstream_broker::kafka::KafkaSettings;
use millstream_broker::store::{StoreError, StoreOptions};
use millstream_broker::{Broker, BrokerSettings};
use millstream_runtime::host::EngineSettings;
use millstream_runtime::{Runtime, RuntimeSettings};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::RoutesBuilder;
use tracing_subscriber::EnvFilter;

use self::bounds::BoundsArgs;
use self::kafka::KafkaArgs;
use crate::amount;

const EXAMPLES: &str = "\
Examples:
  millstream serve --data ./millstream-data
  millstream serve --data /var/lib/millstream --grpc 0.0.0.0:7070 --http 0.0.0.0:7071 --log-format json
  millstream serve --data ./millstream-data --produce-bytes-per-s-max 10000000 --quota importer=produce:50000000

Ctrl-C or SIGTERM stops the server: it first commits and answers the requests that it has accepted.";

/// Run the server: the broker, the pipelines and the HTTP endpoints in one process
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The data directory; created if it does not exist. Only one server can use it at a time
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// The address of the gRPC services; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070", value_parser = amount::address)]
    pub(crate) grpc: SocketAddr,
    /// The address of the HTTP endpoints for health and metrics; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071", value_parser = amount::address)]
    pub(crate) http: SocketAddr,
    #[command(flatten)]
    pub(crate) kafka: KafkaArgs,
    /// Format of the log on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// What to log: a level, or levels by module such as `warn,millstream_runtime=debug`
    #[arg(long, value_name = "FILTER", env = "MILLSTREAM_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Number of threads that serve requests and run stages [default: one per core]
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroUsize>)]
    pub(crate) worker_threads: Option<NonZeroUsize>,
    /// Maximum size of the journal, which holds new records until they are sealed into segments; 1MiB or more. The
    /// server reads all of it at startup, and no topic's retention_bytes can be less [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = journal_bytes)]
    pub(crate) journal_bytes_max: Option<u64>,
    /// Writes are refused while the disk has less free space than this, and reads continue; the reserve is needed to
    /// reorganize data that is already stored [default: same as --journal-bytes-max]
    #[arg(long, value_name = "SIZE", value_parser = amount::bytes)]
    pub(crate) disk_reserve_bytes: Option<u64>,
    /// How long the committed offsets of a consumer group are kept after its last member left and its last commit, such
    /// as 12h or 7d [default: 7d]
    #[arg(long, value_name = "DURATION", value_parser = amount::milliseconds)]
    pub(crate) offsets_retention: Option<u64>,
    #[command(flatten)]
    pub(crate) bounds: BoundsArgs,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people
    Text,
    /// One JSON object per line
    Json,
}

/// How long a stop waits for open calls to end, in seconds. Committed writes are safe in any case.
const STOP_SECONDS_MAX: u64 = 20;

/// Number of open files allowed for beside the connections: those of the data directory, of HTTP and of the runtime.
const FILES_BESIDE_CONNECTIONS: u64 = 1_000;

/// Minimum of `--journal-bytes-max`: the largest record batch of a topic with default settings, in bytes.
const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// Parses `--journal-bytes-max`.
fn journal_bytes(text: &str) -> Result<u64, String> {
    let bytes = amount::bytes(text)?;
    if bytes < JOURNAL_BYTES_MIN {
        return Err(format!(
            "{bytes} bytes are too few: use 1MiB or more, because one record batch can be as large as that"
        ));
    }
    Ok(bytes)
}

/// Serves until a signal stops the server or the storage fails. A full disk only stops writes.
///
/// # Errors
/// An error that prevents the start, or the storage failure that ended the server.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    start_logging(&args)?;
    let begun = Instant::now();
    let quotas = args.bounds.quotas()?;
    // The addresses are bound before the data directory is created, so that nothing is left behind if an address is in
    // use. Clients that connect already wait until the server is ready.
    let grpc = listen(args.grpc, "--grpc")?;
    let http = listen(args.http, "--http")?;
    let mut kafka = Vec::new();
    for (address, advertised) in args.kafka.listeners()? {
        kafka.push((listen(address, "--kafka-address")?, advertised));
    }
    let mut broker_settings = BrokerSettings { quotas, ..BrokerSettings::default() };
    let kafka_settings = args.kafka.settings(&args.bounds.serve_settings(), &mut broker_settings)?;
    let mut registry = Registry::default();
    let (broker, runtime) = open(&args, broker_settings, &mut registry).await?;
    broker.watch_groups();
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
    let kafka_addresses: Vec<SocketAddr> =
        kafka.iter().map(|(listener, _)| listener.local_addr()).collect::<Result<_, _>>()?;
    let kafka = kafka.into_iter().map(|(listener, advertised)| {
        let settings = KafkaSettings { advertised, ..kafka_settings.clone() };
        tokio::spawn(millstream_broker::kafka::serve(listener, broker.clone(), settings, until_stopped()))
    });
    let kafka: Vec<_> = kafka.collect();
    // Transactions that were open when the server stopped end in time, even if no client comes back.
    broker.watch_transactions();

    // The signal handlers are installed before the line below, whose reader may stop the server at once.
    let stop_signal = stop_signal()?;
    // This line is for people, and for scripts that asked for port 0.
    let data = args.data.display();
    let version = env!("CARGO_PKG_VERSION");
    let mut out = io::stdout();
    // An error is ignored, because the server keeps running when the reader of its stdout is gone.
    let kafka_of_line: String = kafka_addresses.iter().map(|address| format!(", Kafka {address}")).collect();
    let _ =
        writeln!(out, "millstream {version} serves {data}: gRPC {grpc_address}, HTTP {http_address}{kafka_of_line}");
    tracing::info!(%grpc_address, %http_address, %data, started_ms = begun.elapsed().as_millis() as u64, "ready");

    let failure = tokio::select! {
        signal = stop_signal => {
            tracing::info!(signal, "stopping");
            None
        }
        failure = storage_failure(&broker) => Some(failure),
    };
    // The tasks end at a commit while the committer still runs, then open calls are answered, then the committer ends.
    if failure.is_none() {
        runtime.stop().await;
    }
    broker.begin_stop();
    let kafka_ended = async {
        for listener in kafka {
            listener.await?;
        }
        Ok::<_, tokio::task::JoinError>(())
    };
    let ended = async { (grpc.await, http.await, kafka_ended.await) };
    match tokio::time::timeout(Duration::from_secs(STOP_SECONDS_MAX), ended).await {
        Ok((grpc, http, kafka)) => {
            grpc.context("the gRPC server panicked")?.map_err(|error| anyhow::anyhow!("gRPC: {error}"))?;
            http.context("the HTTP server panicked")?.context("HTTP")?;
            kafka.context("the server of Kafka's protocol panicked")?;
        }
        Err(_) => tracing::warn!("calls are still open after {STOP_SECONDS_MAX} s: stopping without waiting for them"),
    }
    tokio::task::spawn_blocking(move || broker.stop()).await.context("the committer panicked")?;
    match failure {
        Some(failure) => Err(anyhow::Error::new(failure).context("the storage failed, so the server stopped")),
        None => {
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Opens the data directory and starts its pipelines.
async fn open(args: &Args, settings: BrokerSettings, registry: &mut Registry) -> anyhow::Result<(Broker, Runtime)> {
    let data = args.data.clone();
    let threads = args.worker_threads.map(NonZeroUsize::get);
    let (journal_bytes_max, offsets_retention_ms) = (args.journal_bytes_max, args.offsets_retention);
    let disk_reserve_bytes = args.disk_reserve_bytes;
    let mut own = std::mem::take(registry);
    let opened = tokio::task::spawn_blocking(move || {
        let clock = Arc::new(SystemClock);
        let mut settings = BrokerSettings { disk_reserve_bytes, ..settings };
        if let Some(bytes) = journal_bytes_max {
            settings.journal_bytes_max = bytes;
        }
        if let Some(ms) = offsets_retention_ms {
            settings.offsets_retention_ms = ms;
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

/// How many connections may wait to be accepted. The system may allow fewer (somaxconn). If a client's connection finds no
/// room, the client tries again after a second only, so the room is for all clients that come back after a restart.
const BACKLOG: u32 = 4_096;

fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let listening = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A server that was just stopped leaves connections behind that would keep the address.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listening().with_context(|| {
        format!("cannot listen on {address}: choose another address with {flag}, or stop the program that uses it")
    })
}

/// Raises the limit of open files. Each connection is an open file, and the default limit is often far below the hard
/// limit.
fn allow_files(connections_max: usize) {
    let wanted = (connections_max as u64).saturating_add(FILES_BESIDE_CONNECTIONS);
    match rlimit::increase_nofile_limit(wanted) {
        Ok(allowed) if allowed >= wanted => {}
        Ok(allowed) => tracing::warn!(
            allowed,
            connections_max,
            "the process may open fewer files than --connections-max needs: raise its hard limit (ulimit -Hn)"
        ),
        Err(error) => tracing::warn!(%error, "cannot raise the number of files that the process may open"),
    }
}

fn start_logging(args: &Args) -> anyhow::Result<()> {
    let wrong = || {
        format!(
            "--log {:?} is neither a level (error, warn, info, debug, trace) nor levels by module, such as \
             warn,millstream_runtime=debug",
            args.log
        )
    };
    let filter = EnvFilter::try_new(&args.log).with_context(wrong)?;
    // A word that is no level would be taken for a module that logs everything, and nothing else would be logged.
    let is_level = |part: &str| part.parse::<tracing::level_filters::LevelFilter>().is_ok();
    if !args.log.split(',').all(|part| part.contains(['=', '[']) || is_level(part.trim())) {
        anyhow::bail!(wrong());
    }
    // The server continues without a log if stderr is closed.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match args.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
    }
    Ok(())
}

/// Installs the signal handlers at once, and returns a future that completes at the first signal.
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

/// Waits for the storage failure that ends the server. A full disk does not end it, because reads continue.
async fn storage_failure(broker: &Broker) -> Arc<StoreError> {
    let mut failure = broker.failure();
    match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
        Ok(Some(failure)) if failure.is_disk_full() => {
            tracing::error!(%failure, "the disk is full: no more writes are accepted; make room and restart the server");
            std::future::pending().await
        }
        Ok(Some(failure)) => failure,
        // The committer ended without a failure, so the server is being stopped.
        _ => std::future::pending().await,
    }
}
