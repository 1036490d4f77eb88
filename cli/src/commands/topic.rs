//! `millstream topic`: create, list, describe, delete.

use std::process::ExitCode;

use clap::Subcommand;
use millstream_api::v1;
use millstream_client::Client;
use serde_json::{Value, json};

use crate::output::{Column, Out, OutputArgs, Table};
use crate::{text, timestamp};

/// What can be done with topics.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a topic
    #[command(after_help = "\
Examples:
  millstream topic create flights --partitions 4
  millstream topic create clicks --partitions 8 --retention-ms 604800000    # a week")]
    Create(Create),
    /// List the topics
    #[command(after_help = "\
Examples:
  millstream topic list
  millstream topic list --output json")]
    List(OutputArgs),
    /// Show a topic, its settings and its partitions
    #[command(after_help = "\
Example:
  millstream topic describe flights")]
    Describe {
        /// The topic
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete a topic with its records and every group's offsets in it
    #[command(after_help = "\
Example:
  millstream topic delete flights")]
    Delete {
        /// The topic
        name: String,
        /// A topic that is not there is no error
        #[arg(long)]
        if_exists: bool,
    },
}

/// `topic create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// 1 to 249 of the characters a-z A-Z 0-9 . _ -
    name: String,
    /// How many partitions; their number stays
    #[arg(long, value_name = "N", default_value = "1")]
    partitions: u32,
    /// How long records are kept, in milliseconds [default: for ever]
    #[arg(long, value_name = "MS")]
    retention_ms: Option<u64>,
    /// How much is kept of each partition, in bytes [default: everything]
    #[arg(long, value_name = "BYTES")]
    retention_bytes: Option<u64>,
    /// The largest record batch that is taken, in bytes [default: the server's]
    #[arg(long, value_name = "BYTES")]
    batch_bytes_max: Option<u32>,
    /// A topic that is there already is no error; it stays as it is
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Does it.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(args) => create(args, client).await,
        Command::List(output) => list(&output, client).await,
        Command::Describe { name, output } => describe(&name, &output, client).await,
        Command::Delete { name, if_exists } => delete(&name, if_exists, client).await,
    }
}

async fn create(args: Create, client: &Client) -> anyhow::Result<ExitCode> {
    let settings = v1::TopicSettings {
        retention_ms: args.retention_ms,
        retention_bytes: args.retention_bytes,
        batch_bytes_max: args.batch_bytes_max,
    };
    let (topic, what) = match client.admin().create_topic(&args.name, Some(args.partitions), settings).await {
        Ok(topic) => (topic, "created"),
        Err(error) if args.if_not_exists && error.code() == Some(v1::ErrorCode::AlreadyExists) => {
            let described = client.admin().describe_topic(&args.name).await?;
            (described.topic.unwrap_or_default(), "there was")
        }
        Err(error) => return Err(error.into()),
    };
    let mut out = Out::new();
    if args.output.json() {
        out.json(&to_json(&topic))?;
    } else {
        let partitions = text::plural(topic.partitions.into(), "partition");
        out.line(format_args!("{what} topic {} with {partitions}", topic.name))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn delete(name: &str, if_exists: bool, client: &Client) -> anyhow::Result<ExitCode> {
    let mut out = Out::new();
    match client.admin().delete_topic(name).await {
        Ok(()) => out.line(format_args!("deleted topic {name}"))?,
        Err(error) if if_exists && error.code() == Some(v1::ErrorCode::UnknownTopic) => {
            out.line(format_args!("there was no topic {name}"))?;
        }
        Err(error) => return Err(error.into()),
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn list(output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let topics = client.admin().list_topics().await?;
    let mut out = Out::new();
    if output.json() {
        out.json(&topics.iter().map(to_json).collect::<Vec<_>>())?;
    } else {
        let mut table = Table::new(&[
            Column::Text("topic"),
            Column::Number("partitions"),
            Column::Number("records"),
            Column::Number("size"),
            Column::Text("retention"),
        ]);
        for topic in &topics {
            table.row([
                named(topic),
                text::count(topic.partitions.into()),
                text::count(topic.records),
                text::size(topic.bytes),
                retention(&topic.settings.unwrap_or_default()),
            ]);
        }
        out.table(&table)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn describe(name: &str, output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let described = client.admin().describe_topic(name).await?;
    let topic = described.topic.unwrap_or_default();
    let mut out = Out::new();
    if output.json() {
        let mut shown = to_json(&topic);
        shown["partition_list"] = described.partition_list.iter().map(partition_to_json).collect();
        out.json(&shown)?;
    } else {
        let settings = topic.settings.unwrap_or_default();
        let batch_bytes_max = settings.batch_bytes_max.map(|bytes| text::size(bytes.into()));
        out.table(&Table::fields([
            ("topic", named(&topic)),
            ("partitions", text::count(topic.partitions.into())),
            ("records", text::count(topic.records)),
            ("size", text::size(topic.bytes)),
            ("retention", retention(&settings)),
            ("batch size", batch_bytes_max.map_or_else(|| "the server's limit".into(), |max| format!("up to {max}"))),
            ("created", timestamp::format(topic.created_at_ms)),
        ]))?;
        out.line("")?;
        out.table(&partitions(&described.partition_list))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn partitions(list: &[v1::Partition]) -> Table {
    let mut table = Table::new(&[
        Column::Number("partition"),
        Column::Number("log start"),
        Column::Number("log end"),
        Column::Number("size"),
        Column::Text("latest record"),
    ]);
    for partition in list {
        table.row([
            partition.partition.to_string(),
            text::count(partition.log_start_offset),
            text::count(partition.log_end_offset),
            text::size(partition.bytes),
            partition.max_timestamp_ms.map_or_else(|| "-".into(), timestamp::format),
        ]);
    }
    table
}

fn named(topic: &v1::Topic) -> String {
    let note = if topic.internal { " (internal)" } else { "" };
    format!("{}{note}", topic.name)
}

fn retention(settings: &v1::TopicSettings) -> String {
    let limits = [settings.retention_ms.map(text::milliseconds), settings.retention_bytes.map(text::size)];
    let limits: Vec<_> = limits.into_iter().flatten().collect();
    if limits.is_empty() { "everything".into() } else { limits.join(", ") }
}

fn to_json(topic: &v1::Topic) -> Value {
    let settings = topic.settings.unwrap_or_default();
    json!({
        "name": topic.name,
        "partitions": topic.partitions,
        "records": topic.records,
        "bytes": topic.bytes,
        "settings": {
            "retention_ms": settings.retention_ms,
            "retention_bytes": settings.retention_bytes,
            "batch_bytes_max": settings.batch_bytes_max,
        },
        "internal": topic.internal,
        "created_at_ms": topic.created_at_ms,
    })
}

fn partition_to_json(partition: &v1::Partition) -> Value {
    json!({
        "partition": partition.partition,
        "log_start_offset": partition.log_start_offset,
        "log_end_offset": partition.log_end_offset,
        "bytes": partition.bytes,
        "max_timestamp_ms": partition.max_timestamp_ms,
    })
}
