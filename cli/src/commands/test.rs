//! `millstream test`: runs a pipeline file on a few records, in this process.

mod trial;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use millstream_api::v1;
use millstream_runtime::RuntimeError;
use serde_json::{Value, json};

use super::apply::{self, NOT_UPLOADED};
use crate::exit;
use crate::input::{FieldArgs, Input};
use crate::output::{Column, Out, OutputArgs, Table};
use crate::record::{self, Part, Printer};
use crate::{amount, text};
use trial::{Outcome, Trial};

const EXAMPLES: &str = "\
Examples:
  millstream test -f pipeline.yaml --input flights.ndjson
  millstream test -f pipeline.yaml --input flights.ndjson.gz --key-field origin --timestamp-field date
  millstream test -f pipeline.yaml --module delayed=./delayed.wasm --input flights.ndjson
  head -100 flights.ndjson | millstream test -f pipeline.yaml --output json";

/// Run a pipeline file on records from a file, without a server: outputs, failures and state
///
/// The engine is the same as the server's, with a temporary data directory that is removed afterwards. Modules are read
/// from the paths in the file, and from --module. Exits with 1 if the pipeline stops.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The pipeline file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The file of records, one per line; a file whose name ends in .gz is decompressed [default: stdin]
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// The file of a module that the pipeline file names without a path; may be given more than once
    #[arg(long = "module", value_name = "NAME=FILE", value_parser = parse_module)]
    pub(crate) modules: Vec<(String, PathBuf)>,
    /// The source topic to write the records to, if the file has several [default: the first]
    #[arg(long, value_name = "TOPIC")]
    pub(crate) topic: Option<String>,
    /// Number of partitions of the source topics; records are distributed over them as a producer does it
    #[arg(long, value_name = "N", default_value = "1", value_parser = amount::positive::<NonZeroU32>)]
    pub(crate) partitions: NonZeroU32,
    #[command(flatten)]
    pub(crate) fields: FieldArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

fn parse_module(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("write NAME=FILE".to_owned()),
    }
}

/// Runs `test`.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut file = apply::File::read(&args.file)?;
    if !file.mistakes.is_empty() {
        file.print_mistakes("the pipeline was not run");
        return Ok(ExitCode::from(exit::REFUSED));
    }
    let spec = millstream_runtime::pipeline::parse(&file.text)?;
    let sources: Vec<String> = spec.from.iter().map(|topic| topic.value.clone()).collect();
    let source = args.topic.clone().unwrap_or_else(|| sources[0].clone());
    anyhow::ensure!(
        sources.contains(&source),
        "--topic {source} is not one of the file's source topics: {}",
        sources.join(", ")
    );

    let trial = Trial::start(&sources, args.partitions.get()).await?;
    for (name, path) in &args.modules {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        trial.push(name, Bytes::from(bytes)).await.with_context(|| path.display().to_string())?;
    }
    for module in &file.modules {
        if let Err(error) = trial.push(&module.reference, module.bytes.clone()).await {
            let (line, column, message) = (module.line, module.column, error.to_string());
            file.mistakes.push(v1::Mistake { line, column, message });
        }
    }
    if file.mistakes.is_empty() {
        let paths = file.modules.iter().map(|module| (module.path.clone(), module.reference.clone())).collect();
        match trial.apply(&file.text, &paths).await {
            Ok(()) => {}
            Err(RuntimeError::Mistakes(mistakes)) => {
                let mistake = |m: millstream_runtime::pipeline::Mistake| v1::Mistake {
                    line: m.line,
                    column: m.column,
                    message: m.message.replace(NOT_UPLOADED, &format!("{NOT_UPLOADED}: name its file with --module")),
                };
                file.mistakes = mistakes.into_iter().map(mistake).collect();
            }
            Err(error) => return Err(error.into()),
        }
    }
    if !file.mistakes.is_empty() {
        file.print_mistakes("the pipeline was not run");
        trial.stop().await?;
        return Ok(ExitCode::from(exit::REFUSED));
    }
    let mut input = Input::open(args.input.as_deref(), args.fields.clone())?;
    while let Some(block) = tokio::task::block_in_place(|| input.next_block())? {
        let lines = block.into_iter().collect::<Result<Vec<_>, _>>()?;
        trial.produce(&source, &lines).await?;
    }
    let outcome = trial.outcome().await?;
    trial.stop().await?;

    let mut out = Out::new();
    if args.output.json() {
        out.json(&to_json(&outcome))?;
    } else {
        print(&mut out, &outcome)?;
    }
    out.finish()?;
    match &outcome.stopped {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => {
            exit::say(format_args!("error: the pipeline stopped: {reason}"));
            Ok(ExitCode::from(exit::REFUSED))
        }
    }
}

fn print(out: &mut Out, outcome: &Outcome) -> anyhow::Result<()> {
    for (title, topics) in [("output", &outcome.outputs), ("dead letters", &outcome.dead_letters)] {
        for topic in topics {
            out.line(format_args!(
                "{title}: topic {}, {}",
                topic.name,
                text::plural(topic.records.len() as u64, "record")
            ))?;
            let parts = match title {
                "output" => vec![Part::Key, Part::Value],
                _ => vec![Part::Key, Part::Value, Part::Headers],
            };
            let printer = Printer::new(crate::output::Format::Text, parts);
            for (partition, of) in &topic.records {
                printer.print(out, &record::stored(&topic.name, *partition, of))?;
            }
            out.line("")?;
        }
    }
    for (stage, entries) in &outcome.state {
        out.line(format_args!("state: stage {stage}, {}", text::plural(entries.len() as u64, "key")))?;
        let mut table = Table::new(&[Column::Text("KEY"), Column::Text("VALUE")]);
        for (key, value) in entries {
            let value = value.as_ref().map_or_else(|| "null".to_owned(), |value| text::escaped(value));
            table.row([text::escaped(key), value]);
        }
        out.table(&table)?;
        out.line("")?;
    }
    let columns = [
        Column::Text("STAGE"),
        Column::Text("KIND"),
        Column::Number("IN"),
        Column::Number("OUT"),
        Column::Number("FAILURES"),
    ];
    let mut table = Table::new(&columns);
    for stage in &outcome.stages {
        let numbers = [stage.records_in, stage.records_out, stage.failures].map(text::count);
        let [records_in, records_out, failures] = numbers;
        table.row([stage.name.clone(), stage.kind.clone(), records_in, records_out, failures]);
    }
    Ok(out.table(&table)?)
}

fn to_json(outcome: &Outcome) -> Value {
    let topics = |topics: &[trial::TopicRecords]| {
        let records = |topic: &trial::TopicRecords| {
            let shown = |(partition, of): &(u32, millstream_record::Record)| {
                serde_json::to_value(record::stored(&topic.name, *partition, of)).unwrap_or_default()
            };
            (topic.name.clone(), topic.records.iter().map(shown).collect::<Value>())
        };
        topics.iter().map(records).collect::<serde_json::Map<_, _>>()
    };
    let bytes = |bytes: &[u8]| serde_json::to_value(record::JsonBytes(bytes)).unwrap_or_default();
    let state = |(stage, entries): &(String, trial::Entries)| {
        let entry = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| json!({ "key": bytes(key), "value": value.as_deref().map(bytes) });
        (stage.clone(), entries.iter().map(entry).collect::<Value>())
    };
    let stage = |stage: &trial::StageCounts| {
        json!({
            "name": stage.name, "kind": stage.kind,
            "records_in": stage.records_in, "records_out": stage.records_out, "failures": stage.failures,
        })
    };
    json!({
        "outputs": topics(&outcome.outputs),
        "dead_letters": topics(&outcome.dead_letters),
        "state": outcome.state.iter().map(state).collect::<serde_json::Map<_, _>>(),
        "stages": outcome.stages.iter().map(stage).collect::<Value>(),
        "stopped": outcome.stopped,
    })
}
