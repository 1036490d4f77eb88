//! `millstream serve`: the server in this process.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

const EXAMPLES: &str = "\
Examples:
  millstream serve --data ./data
  millstream serve --data /var/lib/millstream --grpc 0.0.0.0:7070 --http 0.0.0.0:7071 --log-format json

Ctrl-C or SIGTERM stops it: what was taken is committed and answered first.";

/// Run the server: the broker, the pipelines and their HTTP side in one process
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The folder that holds everything; made where it is missing. One server at a time uses it
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where the gRPC services listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub(crate) grpc: SocketAddr,
    /// Where health and metrics are served over HTTP
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    pub(crate) http: SocketAddr,
    /// How log lines look, on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// What is logged: a level, or levels by module such as `warn,millstream_runtime=debug`
    #[arg(long, value_name = "FILTER", env = "MILLSTREAM_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Threads that serve requests and run stages; one a core when left out
    #[arg(long, value_name = "N")]
    pub(crate) worker_threads: Option<NonZeroUsize>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Serves until it is told to stop.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build cannot serve {}: it was made without the server", args.data.display())
}
