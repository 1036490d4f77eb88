//! `millstream test`: a pipeline file on a few records, in this process.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::input::FieldArgs;
use crate::output::OutputArgs;

const EXAMPLES: &str = "\
Examples:
  millstream test -f pipeline.yaml --input flights.ndjson
  millstream test -f pipeline.yaml --input flights.ndjson.gz --key-field origin --timestamp-field date
  head -100 flights.ndjson | millstream test -f pipeline.yaml --output json";

/// Run a pipeline file on records from a file, without a server: outputs, failures and state
///
/// The engine is the server's. Modules are taken from the paths in the file.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The pipeline file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The records, one a line; a name that ends in .gz is unpacked [default: stdin]
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Partitions of the source topic: records are spread over them as a producer would
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) partitions: NonZeroU32,
    #[command(flatten)]
    pub(crate) fields: FieldArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build cannot test {}: it was made without the engine", args.file.display())
}
