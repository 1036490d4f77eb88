//! `millstream topic`: create, list, describe, alter and delete topics.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use millstream_api::v1;
use millstream_client::Client;
use serde_json::{Value, json};

use crate::exit::Usage;
use crate::output::{Column, Out, OutputArgs, Table};
use crate::{amount, text, timestamp};

/// The `topic` subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a topic
    #[command(after_help = "\
Examples:
  millstream topic create flights --partitions 4
  millstream topic create clicks --partitions 8 --retention 7d --retention-bytes 10GiB
  millstream topic create balances --cleanup compact --delete-retention 1h")]
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
    /// Change a topic's settings and add partitions, while it is read and written
    #[command(after_help = "\
Examples:
  millstream topic alter clicks --retention 30d --no-retention-bytes
  millstream topic alter clicks --cleanup compact,delete --delete-retention 1h
  millstream topic alter clicks --partitions 16    # keys may map to other partitions from then on")]
    Alter(Alter),
    /// Delete a topic with its records and all groups' committed offsets in it
    #[command(after_help = "\
Example:
  millstream topic delete flights")]
    Delete {
        /// The topic
        name: String,
        /// Succeed if the topic does not exist
        #[arg(long)]
        if_exists: bool,
    },
}

/// The default that the API documents for a topic that does not set the limit.
const TIMESTAMP_AFTER_MAX_MS_DEFAULT: u64 = 3_600_000;

/// The settings of a topic.
#[derive(Debug, clap::Args)]
struct Settings {
    /// What happens to old records: deletion by retention, compaction to the last record of each key, or both
    #[arg(long, value_enum, value_name = "HOW")]
    cleanup: Option<Cleanup>,
    /// How long records are kept, such as 7d or 36h [default: forever]
    #[arg(long, value_name = "DURATION", value_parser = amount::milliseconds)]
    retention: Option<u64>,
    /// How many bytes of records each partition keeps, such as 10GiB [default: everything]
    #[arg(long, value_name = "SIZE", value_parser = amount::bytes)]
    retention_bytes: Option<u64>,
    /// How long a compacted topic keeps records with a null value [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = amount::milliseconds)]
    delete_retention: Option<u64>,
    /// The largest record batch that the topic accepts, such as 1MiB [default: the server's limit]
    #[arg(long, value_name = "SIZE", value_parser = batch_bytes)]
    batch_bytes_max: Option<u32>,
    /// How far before the server's time a record's timestamp may be, such as 30d [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = amount::milliseconds)]
    timestamp_before_max: Option<u64>,
    /// How far after the server's time a record's timestamp may be [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = amount::milliseconds)]
    timestamp_after_max: Option<u64>,
}

/// Values of `--cleanup`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cleanup {
    /// Delete records by retention [default]
    Delete,
    /// Keep only the last record of each key
    Compact,
    /// Both
    #[value(name = "compact,delete")]
    CompactAndDelete,
}

impl Settings {
    fn to_wire(&self) -> v1::TopicSettings {
        let cleanup = self.cleanup.map(|cleanup| match cleanup {
            Cleanup::Delete => v1::Cleanup::Delete,
            Cleanup::Compact => v1::Cleanup::Compact,
            Cleanup::CompactAndDelete => v1::Cleanup::CompactAndDelete,
        });
        v1::TopicSettings {
            retention_ms: self.retention,
            retention_bytes: self.retention_bytes,
            batch_bytes_max: self.batch_bytes_max,
            cleanup: cleanup.map(i32::from),
            delete_retention_ms: self.delete_retention,
            timestamp_before_max_ms: self.timestamp_before_max,
            timestamp_after_max_ms: self.timestamp_after_max,
        }
    }
}

fn batch_bytes(text: &str) -> Result<u32, String> {
    u32::try_from(amount::bytes(text)?).map_err(|_| "record batches cannot be this large".to_owned())
}

/// Arguments of `topic create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// The name: 1 to 249 of the characters a-z A-Z 0-9 . _ -
    name: String,
    /// Number of partitions; more can be added later
    #[arg(long, value_name = "N", default_value = "1", value_parser = amount::whole)]
    partitions: u32,
    #[command(flatten)]
    settings: Settings,
    /// Succeed if the topic already exists, and leave it unchanged
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `topic alter`. Settings that are not given are unchanged.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Alter {
    /// The topic
    name: String,
    /// The new number of partitions, which must not be less than the current number
    #[arg(long, value_name = "N", value_parser = amount::whole)]
    partitions: Option<u32>,
    #[command(flatten)]
    set: Settings,
    /// Keep records forever
    #[arg(long, conflicts_with = "retention")]
    no_retention: bool,
    /// Keep all records of each partition, whatever their size
    #[arg(long, conflicts_with = "retention_bytes")]
    no_retention_bytes: bool,
    /// Reset to the default how long records with a null value are kept
    #[arg(long, conflicts_with = "delete_retention")]
    no_delete_retention: bool,
    /// Reset the largest accepted record batch to the default
    #[arg(long, conflicts_with = "batch_bytes_max")]
    no_batch_bytes_max: bool,
    /// Accept timestamps however far before the server's time
    #[arg(long, conflicts_with = "timestamp_before_max")]
    no_timestamp_before_max: bool,
    /// Reset to the default how far after the server's time timestamps may be
    #[arg(long, conflicts_with = "timestamp_after_max")]
    no_timestamp_after_max: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs a `topic` subcommand.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(args) => create(args, client).await,
        Command::List(output) => list(&output, client).await,
        Command::Describe { name, output } => describe(&name, &output, client).await,
        Command::Alter(args) => alter(args, client).await,
        Command::Delete { name, if_exists } => delete(&name, if_exists, client).await,
    }
}

async fn create(args: Create, client: &Client) -> anyhow::Result<ExitCode> {
    let settings = args.settings.to_wire();
    let (topic, what) = match client.admin().create_topic(&args.name, Some(args.partitions), settings).await {
        Ok(topic) => (topic, "created"),
        Err(error) if args.if_not_exists && error.code() == Some(v1::ErrorCode::AlreadyExists) => {
            let described = client.admin().describe_topic(&args.name).await?;
            (described.topic.unwrap_or_default(), "found existing")
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

async fn alter(args: Alter, client: &Client) -> anyhow::Result<ExitCode> {
    use v1::TopicSetting as Setting;
    let unset = [
        (args.no_retention, Setting::RetentionMs),
        (args.no_retention_bytes, Setting::RetentionBytes),
        (args.no_delete_retention, Setting::DeleteRetentionMs),
        (args.no_batch_bytes_max, Setting::BatchBytesMax),
        (args.no_timestamp_before_max, Setting::TimestampBeforeMaxMs),
        (args.no_timestamp_after_max, Setting::TimestampAfterMaxMs),
    ];
    let request = v1::AlterTopicRequest {
        name: args.name,
        set: Some(args.set.to_wire()),
        unset: unset.into_iter().filter(|(named, _)| *named).map(|(_, setting)| setting.into()).collect(),
        partitions: args.partitions,
    };
    if request.set == Some(v1::TopicSettings::default()) && request.unset.is_empty() && request.partitions.is_none() {
        let what = "nothing to alter: name a setting or --partitions, see `millstream topic alter --help`";
        return Err(Usage(what.to_owned()).into());
    }
    let topic = client.admin().alter_topic(request).await?;
    let mut out = Out::new();
    if args.output.json() {
        out.json(&to_json(&topic))?;
    } else {
        out.line(format_args!("altered topic {}", topic.name))?;
        out.table(&fields(&topic))?;
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
                retention(topic),
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
        out.table(&fields(&topic))?;
        out.line("")?;
        out.table(&partitions(&described.partition_list))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn fields(topic: &v1::Topic) -> Table {
    let settings = topic.settings.unwrap_or_default();
    let batch_bytes_max = settings.batch_bytes_max.map(|bytes| text::size(bytes.into()));
    let mut fields = vec![
        ("topic", named(topic)),
        ("id", topic.topic_id.clone()),
        ("partitions", text::count(topic.partitions.into())),
        ("records", text::count(topic.records)),
        ("size", text::size(topic.bytes)),
        ("segments", text::count(topic.segments.into())),
        ("cleanup", cleanup(&settings).to_owned()),
        ("retention", retention(topic)),
    ];
    if settings.cleanup() != v1::Cleanup::Delete {
        let kept = settings.delete_retention_ms.map_or_else(|| "the server's default".into(), text::milliseconds);
        fields.push(("tombstones", kept));
    }
    let before = settings.timestamp_before_max_ms.map(|ms| format!("up to {} ago, ", text::milliseconds(ms)));
    let after = text::milliseconds(settings.timestamp_after_max_ms.unwrap_or(TIMESTAMP_AFTER_MAX_MS_DEFAULT));
    fields.extend([
        ("timestamps", format!("{}up to {after} ahead of the server", before.unwrap_or_default())),
        ("batch size", batch_bytes_max.map_or_else(|| "the server's limit".into(), |max| format!("up to {max}"))),
        ("created", timestamp::format(topic.created_at_ms)),
    ]);
    Table::fields(fields)
}

fn partitions(list: &[v1::Partition]) -> Table {
    let mut table = Table::new(&[
        Column::Number("partition"),
        Column::Number("log start"),
        Column::Number("log end"),
        Column::Number("size"),
        Column::Number("segments"),
        Column::Text("earliest record"),
        Column::Text("latest record"),
    ]);
    for partition in list {
        table.row([
            partition.partition.to_string(),
            text::count(partition.log_start_offset),
            text::count(partition.log_end_offset),
            text::size(partition.bytes),
            text::count(partition.segments.into()),
            partition.first_timestamp_ms.map_or_else(|| "-".into(), timestamp::format),
            partition.max_timestamp_ms.map_or_else(|| "-".into(), timestamp::format),
        ]);
    }
    table
}

fn named(topic: &v1::Topic) -> String {
    let note = if topic.internal { " (internal)" } else { "" };
    format!("{}{note}", topic.name)
}

/// Returns the cleanup setting as Kafka and `--cleanup` write it.
fn cleanup(settings: &v1::TopicSettings) -> &'static str {
    match settings.cleanup() {
        v1::Cleanup::Delete => "delete",
        v1::Cleanup::Compact => "compact",
        v1::Cleanup::CompactAndDelete => "compact,delete",
    }
}

fn retention(topic: &v1::Topic) -> String {
    // A repartition topic keeps only what its pipeline has not read.
    if topic.internal {
        return "until read".into();
    }
    let settings = topic.settings.unwrap_or_default();
    let limits = [settings.retention_ms.map(text::milliseconds), settings.retention_bytes.map(text::size)];
    let limits: Vec<_> = limits.into_iter().flatten().collect();
    if limits.is_empty() { "everything".into() } else { limits.join(", ") }
}

fn to_json(topic: &v1::Topic) -> Value {
    let settings = topic.settings.unwrap_or_default();
    json!({
        "name": topic.name,
        "id": topic.topic_id,
        "partitions": topic.partitions,
        "records": topic.records,
        "bytes": topic.bytes,
        "segments": topic.segments,
        "settings": {
            "cleanup": cleanup(&settings),
            "retention_ms": settings.retention_ms,
            "retention_bytes": settings.retention_bytes,
            "delete_retention_ms": settings.delete_retention_ms,
            "batch_bytes_max": settings.batch_bytes_max,
            "timestamp_before_max_ms": settings.timestamp_before_max_ms,
            "timestamp_after_max_ms": settings.timestamp_after_max_ms,
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
        "segments": partition.segments,
        "first_timestamp_ms": partition.first_timestamp_ms,
        "max_timestamp_ms": partition.max_timestamp_ms,
    })
}
