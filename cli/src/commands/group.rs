//! `millstream group`: list, describe, reset and delete consumer groups. Pipelines are groups too.

use std::process::ExitCode;

use clap::Subcommand;
use millstream_api::v1;
use millstream_client::{Client, Position};
use serde_json::{Value, json};

use crate::output::{Column, Out, OutputArgs, Table};
use crate::{position, text};

/// The `group` subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the groups with their lag
    #[command(after_help = "\
Examples:
  millstream group list
  millstream group list --output json")]
    List(OutputArgs),
    /// Show a group's members, and its offsets and lag in each partition
    #[command(after_help = "\
Example:
  millstream group describe billing")]
    Describe {
        /// The group, or the pipeline
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Set a group's committed offsets; refused while the group has members or its pipeline runs
    #[command(after_help = "\
Examples:
  millstream group reset billing --topic flights --to earliest
  millstream group reset billing --topic flights --to '2024-05-01 12:00' --dry-run
  millstream group reset billing --topic flights --partition 0 --to 1500")]
    Reset(Reset),
    /// Delete a group and its committed offsets
    #[command(after_help = "\
Example:
  millstream group delete billing")]
    Delete {
        /// The group
        name: String,
    },
}

/// Arguments of `group reset`.
#[derive(Debug, clap::Args)]
pub(crate) struct Reset {
    /// The group, or the pipeline
    name: String,
    /// The topic whose offsets are set
    #[arg(long)]
    topic: String,
    /// The new position: earliest, latest, an offset, or a time (the first record at or after it)
    #[arg(long, value_name = "POSITION", value_parser = position::parse)]
    to: Position,
    /// Reset only this partition; may be given more than once
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u32>,
    /// Print what would change, but change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs a `group` subcommand.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(output) => list(&output, client).await,
        Command::Describe { name, output } => describe(&name, &output, client).await,
        Command::Reset(args) => reset(args, client).await,
        Command::Delete { name } => {
            client.admin().delete_group(&name).await?;
            let mut out = Out::new();
            out.line(format_args!("deleted group {name}"))?;
            out.finish()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let groups = client.admin().list_groups().await?;
    let mut out = Out::new();
    if output.json() {
        out.json(&groups.iter().map(to_json).collect::<Vec<_>>())?;
    } else {
        let mut table = Table::new(&[
            Column::Text("group"),
            Column::Text("kind"),
            Column::Text("state"),
            Column::Number("members"),
            Column::Number("lag"),
        ]);
        for group in &groups {
            table.row([
                group.name.clone(),
                kind(group).to_owned(),
                group.state.clone(),
                text::count(group.members.into()),
                text::count(group.lag),
            ]);
        }
        out.table(&table)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn describe(name: &str, output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let described = client.admin().describe_group(name).await?;
    let group = described.group.unwrap_or_default();
    let mut out = Out::new();
    if output.json() {
        let mut shown = to_json(&group);
        shown["member_list"] = described.members.iter().map(member_to_json).collect();
        shown["offsets"] = described.offsets.iter().map(offset_to_json).collect();
        out.json(&shown)?;
    } else {
        out.table(&Table::fields([
            ("group", group.name.clone()),
            ("kind", kind(&group).to_owned()),
            ("state", group.state.clone()),
            ("generation", text::count(group.generation)),
            ("lag", text::count(group.lag)),
        ]))?;
        if !described.members.is_empty() {
            out.line("")?;
            out.table(&members(&described.members))?;
        }
        if !described.offsets.is_empty() {
            out.line("")?;
            out.table(&offsets(&described.offsets))?;
        }
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn members(members: &[v1::Member]) -> Table {
    let mut table = Table::new(&[Column::Text("member"), Column::Text("client"), Column::Text("partitions")]);
    for member in members {
        let partitions = member.partitions.iter().map(|of| format!("{}/{}", of.topic, of.partition));
        let partitions = partitions.collect::<Vec<_>>().join(" ");
        table.row([member.member_id.clone(), member.client_id.clone(), partitions]);
    }
    table
}

/// Returns a table of committed offsets and lag, one row per partition.
pub(crate) fn offsets(offsets: &[v1::GroupOffset]) -> Table {
    let mut table = Table::new(&[
        Column::Text("topic"),
        Column::Number("partition"),
        Column::Number("committed"),
        Column::Number("log end"),
        Column::Number("lag"),
        Column::Text("member"),
    ]);
    for offset in offsets {
        table.row([
            offset.topic.clone(),
            offset.partition.to_string(),
            offset.committed_offset.map_or_else(|| "-".into(), text::count),
            text::count(offset.log_end_offset),
            text::count(offset.lag),
            offset.member_id.clone(),
        ]);
    }
    table
}

async fn reset(args: Reset, client: &Client) -> anyhow::Result<ExitCode> {
    let request = v1::ResetGroupRequest {
        group: args.name.clone(),
        topic: args.topic.clone(),
        partitions: args.partitions.clone(),
        to: Some(args.to.into()),
        dry_run: args.dry_run,
    };
    let offsets = client.admin().reset_group(request).await?;
    let mut out = Out::new();
    if args.output.json() {
        let offsets = offsets.iter();
        let offsets = offsets.map(|to| json!({ "topic": to.topic, "partition": to.partition, "offset": to.offset }));
        out.json(&json!({ "group": args.name, "dry_run": args.dry_run, "offsets": offsets.collect::<Value>() }))?;
    } else {
        let mut table = Table::new(&[Column::Text("topic"), Column::Number("partition"), Column::Number("offset")]);
        for to in &offsets {
            table.row([to.topic.clone(), to.partition.to_string(), text::count(to.offset)]);
        }
        let what = if args.dry_run { "would be reset" } else { "was reset" };
        out.line(format_args!("group {} {what} to {}:", args.name, position::shown(args.to)))?;
        out.table(&table)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn kind(group: &v1::Group) -> &'static str {
    match group.kind() {
        v1::GroupKind::Consumer => "consumer",
        v1::GroupKind::Pipeline => "pipeline",
        v1::GroupKind::Unspecified => "unknown",
    }
}

fn to_json(group: &v1::Group) -> Value {
    json!({
        "name": group.name,
        "kind": kind(group),
        "state": group.state,
        "members": group.members,
        "generation": group.generation,
        "lag": group.lag,
    })
}

fn member_to_json(member: &v1::Member) -> Value {
    let partitions = member.partitions.iter();
    let partitions = partitions.map(|of| json!({ "topic": of.topic, "partition": of.partition }));
    json!({
        "member_id": member.member_id,
        "client_id": member.client_id,
        "partitions": partitions.collect::<Value>(),
    })
}

/// Returns one partition's offsets and lag as JSON.
pub(crate) fn offset_to_json(offset: &v1::GroupOffset) -> Value {
    let member_id = Some(&offset.member_id).filter(|id| !id.is_empty());
    json!({
        "topic": offset.topic,
        "partition": offset.partition,
        "committed_offset": offset.committed_offset,
        "log_end_offset": offset.log_end_offset,
        "lag": offset.lag,
        "member_id": member_id,
    })
}
