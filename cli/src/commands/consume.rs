//! `millstream consume`: records of a topic to stdout.

use std::process::ExitCode;

use millstream_client::{Client, Position};

use crate::output::OutputArgs;
use crate::position;
use crate::record::Part;

const EXAMPLES: &str = "\
Examples:
  millstream consume flights --from earliest --max 10
  millstream consume flights --from '2024-05-01 12:00' --until-end --output json > flights.ndjson
  millstream consume flights --group billing --from earliest
  millstream consume flights --print partition,offset,key,value";

/// Read records of a topic, and print one a line
///
/// Without --until-end or --max this goes on until Ctrl-C. As text, a value is printed as it is, and
/// bytes that are no text as \xNN; JSON has everything, and {"base64": …} for such bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic
    topic: String,
    /// Where to begin: earliest, latest, an offset, or a time (the first record at or after it). With
    /// --group: where no offset is committed, earliest or latest
    #[arg(long, value_name = "POSITION", default_value = "latest", value_parser = position::parse)]
    from: Position,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// End where the partitions end at the start of this command
    #[arg(long)]
    until_end: bool,
    /// Only this partition; may be given more than once
    #[arg(long = "partition", value_name = "P", conflicts_with = "group")]
    partitions: Vec<u32>,
    /// Join this consumer group, and commit what was printed
    #[arg(long, value_name = "G")]
    group: Option<String>,
    /// What is printed of a record as text, in this order, with tabs between
    #[arg(long, value_enum, value_name = "PART,…", value_delimiter = ',', default_value = "value")]
    print: Vec<Part>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Does it.
pub(crate) async fn run(_args: Args, _client: &Client) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
