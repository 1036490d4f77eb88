//! `millstream state`: prints the keyed state of aggregate stages, as of the last commit.

use std::process::ExitCode;

use anyhow::bail;
use bytes::Bytes;
use clap::Subcommand;
use futures::StreamExt;
use millstream_api::v1;
use millstream_client::Client;
use serde_json::{Value, json};

use crate::output::{Column, Out, OutputArgs, Table};
use crate::record::JsonBytes;
use crate::{amount, text};

/// The `state` subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the state of a stage for one key
    #[command(after_help = "\
Examples:
  millstream state get delayed-flights LAX
  millstream state get delayed-flights LAX --stage mean-delay --output json")]
    Get {
        /// The pipeline
        pipeline: String,
        /// The key
        key: String,
        /// The aggregate stage; may be omitted if the pipeline has only one
        #[arg(long)]
        stage: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List keys with the state of a stage for each
    #[command(after_help = "\
Examples:
  millstream state list delayed-flights
  millstream state list delayed-flights --prefix L --max 20")]
    List(List),
}

/// Arguments of `state list`.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// The pipeline
    pipeline: String,
    /// The aggregate stage; may be omitted if the pipeline has only one
    #[arg(long)]
    stage: Option<String>,
    /// List only keys with this prefix
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Maximum number of keys to list
    #[arg(long, value_name = "N", default_value = "1000", value_parser = amount::whole)]
    max: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs a `state` subcommand.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Get { pipeline, key, stage, output } => {
            get(&pipeline, &stage.unwrap_or_default(), key, &output, client).await
        }
        Command::List(args) => list(args, client).await,
    }
}

async fn get(
    pipeline: &str,
    stage: &str,
    key: String,
    output: &OutputArgs,
    client: &Client,
) -> anyhow::Result<ExitCode> {
    let key = Bytes::from(key.into_bytes());
    let Some(entry) = client.admin().get_state(pipeline, stage, key.clone()).await? else {
        bail!(
            "pipeline {pipeline} holds nothing for key {}: `millstream state list {pipeline}` lists its keys",
            text::escaped(&key)
        );
    };
    let mut out = Out::new();
    if output.json() {
        out.json(&to_json(&entry))?;
    } else {
        out.line(shown(&entry))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn list(args: List, client: &Client) -> anyhow::Result<ExitCode> {
    let request = v1::ListStateRequest {
        pipeline: args.pipeline,
        stage: args.stage.unwrap_or_default(),
        key_prefix: Bytes::from(args.prefix.into_bytes()),
        max_keys: Some(args.max).filter(|max| *max > 0).unwrap_or(1),
    };
    let mut answers = client.admin().list_state(request).await?;
    let mut entries = Vec::new();
    while let Some(entry) = answers.next().await {
        entries.push(entry?);
    }
    // The server sends entries in no particular order, so they are sorted for readers.
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let mut out = Out::new();
    if args.output.json() {
        out.json(&entries.iter().map(to_json).collect::<Vec<_>>())?;
    } else {
        let mut table = Table::new(&[Column::Text("key"), Column::Number("partition"), Column::Text("value")]);
        for entry in &entries {
            table.row([text::escaped(&entry.key), entry.partition.to_string(), shown(entry)]);
        }
        out.table(&table)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the value that the module derives from the accumulator, or the accumulator itself if there is none.
fn shown(entry: &v1::StateEntry) -> String {
    text::escaped(entry.value.as_ref().unwrap_or(&entry.accumulator))
}

fn to_json(entry: &v1::StateEntry) -> Value {
    json!({
        "key": JsonBytes(&entry.key),
        "partition": entry.partition,
        "value": entry.value.as_deref().map(JsonBytes),
        "accumulator": JsonBytes(&entry.accumulator),
    })
}
