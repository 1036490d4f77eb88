//! `millstream pipeline`: list, describe, pause, resume and delete pipelines. `apply` creates them.

use std::process::ExitCode;

use clap::Subcommand;
use millstream_api::v1;
use millstream_client::Client;
use serde_json::{Value, json};

use super::{group, module};
use crate::output::{Column, Out, OutputArgs, Table};
use crate::text;

/// The `pipeline` subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the pipelines with their state and lag
    #[command(after_help = "\
Examples:
  millstream pipeline list
  millstream pipeline list --output json")]
    List(OutputArgs),
    /// Show a pipeline: its stages with their counts, its lag, and the reason if it stopped
    #[command(after_help = "\
Examples:
  millstream pipeline describe delayed-flights
  millstream pipeline describe delayed-flights --yaml > pipeline.yaml")]
    Describe {
        /// The pipeline
        name: String,
        /// Print only the pipeline file, as it was applied
        #[arg(long, conflicts_with = "output")]
        yaml: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Pause a pipeline at a commit; `resume` continues from there
    #[command(after_help = "\
Example:
  millstream pipeline pause delayed-flights")]
    Pause {
        /// The pipeline
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Resume a pipeline that was paused, or that stopped because of a failure
    #[command(after_help = "\
Example:
  millstream pipeline resume delayed-flights")]
    Resume {
        /// The pipeline
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete a pipeline with its group, state and repartition topics; output topics are kept
    #[command(after_help = "\
Example:
  millstream pipeline delete delayed-flights")]
    Delete {
        /// The pipeline
        name: String,
    },
}

/// Runs a `pipeline` subcommand.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(output) => list(&output, client).await,
        Command::Describe { name, yaml: true, .. } => yaml(&name, client).await,
        Command::Describe { name, output, .. } => describe(&name, &output, client).await,
        Command::Pause { name, output } => changed(&client.admin().pause_pipeline(&name).await?, &output),
        Command::Resume { name, output } => changed(&client.admin().resume_pipeline(&name).await?, &output),
        Command::Delete { name } => {
            client.admin().delete_pipeline(&name).await?;
            let mut out = Out::new();
            out.line(format_args!("deleted pipeline {name}"))?;
            out.finish()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let pipelines = client.admin().list_pipelines().await?;
    let mut out = Out::new();
    if output.json() {
        out.json(&pipelines.iter().map(to_json).collect::<Vec<_>>())?;
    } else {
        let mut table = Table::new(&[
            Column::Text("pipeline"),
            Column::Text("state"),
            Column::Text("from"),
            Column::Text("to"),
            Column::Number("version"),
            Column::Number("tasks"),
            Column::Number("lag"),
        ]);
        for pipeline in &pipelines {
            table.row([
                pipeline.name.clone(),
                pipeline.state.clone(),
                pipeline.from.join(" "),
                pipeline.to.join(" "),
                text::count(pipeline.version),
                text::count(pipeline.tasks.into()),
                text::count(pipeline.lag),
            ]);
        }
        out.table(&table)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn yaml(name: &str, client: &Client) -> anyhow::Result<ExitCode> {
    let described = client.admin().describe_pipeline(name).await?;
    let mut out = Out::new();
    out.line(described.yaml.trim_end_matches('\n'))?;
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn describe(name: &str, output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let described = client.admin().describe_pipeline(name).await?;
    let pipeline = described.pipeline.unwrap_or_default();
    let mut out = Out::new();
    if output.json() {
        let mut shown = to_json(&pipeline);
        shown["stages"] = described.stages.iter().map(stage_to_json).collect();
        shown["offsets"] = described.offsets.iter().map(group::offset_to_json).collect();
        shown["yaml"] = described.yaml.into();
        out.json(&shown)?;
    } else {
        out.table(&fields(&pipeline))?;
        out.line("")?;
        out.table(&stages(&described.stages))?;
        if !described.offsets.is_empty() {
            out.line("")?;
            out.table(&group::offsets(&described.offsets))?;
        }
        if !pipeline.reason.is_empty() {
            out.line("")?;
            out.line(how_to_go_on(&pipeline))?;
        }
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the commands that start a stopped pipeline again.
fn how_to_go_on(pipeline: &v1::Pipeline) -> String {
    let v1::Pipeline { name, reason, .. } = pipeline;
    let resume = format!("`millstream pipeline resume {name}`");
    let Some(Place { topic, partition, offset }) = Place::in_reason(reason) else {
        return format!("{resume} tries again");
    };
    let reset = format!("millstream group reset {name} --topic {topic} --partition {partition}");
    if reason.contains(RECORDS_DELETED) {
        format!("to continue at the first record that is still stored, run `{reset} --to earliest`, and then {resume}")
    } else {
        let next = offset + 1;
        format!("{resume} tries the record again; to leave it out, first run `{reset} --to {next}`")
    }
}

/// Part of the reason of a pipeline whose source records were deleted by retention before it read them.
const RECORDS_DELETED: &str = "the records were deleted before they were read";

/// The record at which a pipeline stopped.
#[derive(Debug, PartialEq)]
struct Place<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
}

impl<'a> Place<'a> {
    /// Returns the first place that a pipeline's reason names, if it names one.
    fn in_reason(reason: &'a str) -> Option<Self> {
        let (_, rest) = reason.split_once("topic ")?;
        let (topic, rest) = rest.split_once(", partition ")?;
        let (partition, rest) = rest.split_once(", offset ")?;
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { topic, partition: partition.parse().ok()?, offset: rest[..digits].parse().ok()? })
    }
}

fn fields(pipeline: &v1::Pipeline) -> Table {
    let reason = (!pipeline.reason.is_empty()).then(|| ("reason", pipeline.reason.clone()));
    let before = [("pipeline", pipeline.name.clone()), ("state", pipeline.state.clone())];
    let after = [
        ("from", pipeline.from.join(" ")),
        ("to", pipeline.to.join(" ")),
        ("version", text::count(pipeline.version)),
        ("tasks", text::count(pipeline.tasks.into())),
        ("lag", text::count(pipeline.lag)),
    ];
    Table::fields(before.into_iter().chain(reason).chain(after))
}

fn stages(stages: &[v1::Stage]) -> Table {
    let mut table = Table::new(&[
        Column::Text("stage"),
        Column::Text("kind"),
        Column::Text("module"),
        Column::Text("hash"),
        Column::Text("on failure"),
        Column::Number("in"),
        Column::Number("out"),
        Column::Number("failures"),
        Column::Number("keys"),
    ]);
    for stage in stages {
        table.row([
            stage.name.clone(),
            stage.kind.clone(),
            stage.module.clone(),
            module::short(&stage.module_hash).to_owned(),
            stage.on_failure.clone(),
            text::count(stage.records_in),
            text::count(stage.records_out),
            text::count(stage.failures),
            if stage.kind == "aggregate" { text::count(stage.keys) } else { "-".into() },
        ]);
    }
    table
}

fn changed(pipeline: &v1::Pipeline, output: &OutputArgs) -> anyhow::Result<ExitCode> {
    let mut out = Out::new();
    if output.json() {
        out.json(&to_json(pipeline))?;
    } else {
        out.line(format_args!("pipeline {} is {}", pipeline.name, pipeline.state))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a pipeline as JSON.
pub(crate) fn to_json(pipeline: &v1::Pipeline) -> Value {
    json!({
        "name": pipeline.name,
        "state": pipeline.state,
        "reason": Some(&pipeline.reason).filter(|reason| !reason.is_empty()),
        "from": pipeline.from,
        "to": pipeline.to,
        "version": pipeline.version,
        "tasks": pipeline.tasks,
        "lag": pipeline.lag,
    })
}

fn stage_to_json(stage: &v1::Stage) -> Value {
    json!({
        "name": stage.name,
        "kind": stage.kind,
        "module": stage.module,
        "module_hash": stage.module_hash,
        "on_failure": stage.on_failure,
        "records_in": stage.records_in,
        "records_out": stage.records_out,
        "failures": stage.failures,
        "keys": stage.keys,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_the_place_of_a_record() {
        let reason = "stage delayed, topic in, partition 3, offset 41: the value is not the expected JSON";
        assert_eq!(Place::in_reason(reason), Some(Place { topic: "in", partition: 3, offset: 41 }));
        let reason = "topic lines, partition 0, offset 1: topic lines, partition 0: offset 1 is out of range";
        assert_eq!(Place::in_reason(reason), Some(Place { topic: "lines", partition: 0, offset: 1 }));
        for reason in
            ["", "the module cannot be loaded", "topic t, partition x, offset 1", "topic t, partition 1, offset "]
        {
            assert_eq!(Place::in_reason(reason), None, "{reason}");
        }
    }
}
