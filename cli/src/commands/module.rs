//! `millstream module`: push, list, describe and remove modules.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use clap::Subcommand;
use millstream_api::v1;
use millstream_client::Client;
use serde_json::{Value, json};

use crate::output::{Column, Out, OutputArgs, Table};
use crate::progress::Progress;
use crate::{text, timestamp};

/// Number of characters of a hash shown to people, which is enough to tell modules apart.
pub(crate) const HASH_CHARS: usize = 12;

/// The `module` subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Upload a WebAssembly module; the server checks and compiles it before it answers
    #[command(after_help = "\
Examples:
  millstream module push delayed ./delayed.wasm
  millstream module push delayed:v2 ./delayed.wasm")]
    Push {
        /// NAME or NAME:TAG; the default tag is `latest`
        reference: String,
        /// The .wasm file: a component, or a core module built with wit-bindgen
        file: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the modules
    #[command(after_help = "\
Example:
  millstream module list")]
    List(OutputArgs),
    /// Show a module and the pipelines that use it
    #[command(after_help = "\
Example:
  millstream module describe delayed:v2")]
    Describe {
        /// NAME, NAME:TAG or a hash
        reference: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove a module that no pipeline uses
    #[command(after_help = "\
Example:
  millstream module remove delayed:v2")]
    Remove {
        /// NAME or NAME:TAG
        reference: String,
    },
}

/// Runs a `module` subcommand.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Push { reference, file, output } => push(reference, &file, &output, client).await,
        Command::List(output) => list(&output, client).await,
        Command::Describe { reference, output } => describe(&reference, &output, client).await,
        Command::Remove { reference } => {
            client.admin().remove_module(&reference).await?;
            let mut out = Out::new();
            out.line(format_args!("removed module {reference}"))?;
            out.finish()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Reads the bytes of a module file.
pub(crate) fn read(file: &Path) -> anyhow::Result<Bytes> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read module {}", file.display()))?;
    Ok(Bytes::from(bytes))
}

/// Uploads a module and shows a spinner meanwhile, because the server compiles it before it answers.
pub(crate) async fn upload(reference: &str, bytes: Bytes, client: &Client) -> anyhow::Result<v1::PushModuleResponse> {
    let progress = Progress::endless();
    progress.say(format!("pushing {reference}, {}", text::size(bytes.len() as u64)));
    Ok(client.admin().push_module(reference, bytes).await?)
}

async fn push(reference: String, file: &Path, output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let pushed = upload(&reference, read(file)?, client).await?;
    let module = pushed.module.unwrap_or_default();
    let mut out = Out::new();
    if output.json() {
        let mut shown = to_json(&module);
        shown["changed"] = pushed.changed.into();
        out.json(&shown)?;
    } else {
        let (kind, hash) = (&module.kind, short(&module.hash));
        let size = text::size(module.bytes);
        let what = if pushed.changed { "pushed" } else { "unchanged:" };
        out.line(format_args!("{what} {} ({kind}, {size}, {hash})", module.reference))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn list(output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let modules = client.admin().list_modules().await?;
    let mut out = Out::new();
    if output.json() {
        out.json(&modules.iter().map(to_json).collect::<Vec<_>>())?;
    } else {
        let mut table = Table::new(&[
            Column::Text("module"),
            Column::Text("kind"),
            Column::Number("size"),
            Column::Text("hash"),
            Column::Text("pushed"),
        ]);
        for module in &modules {
            table.row([
                module.reference.clone(),
                module.kind.clone(),
                text::size(module.bytes),
                short(&module.hash).to_owned(),
                timestamp::format(module.pushed_at_ms),
            ]);
        }
        out.table(&table)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn describe(reference: &str, output: &OutputArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let described = client.admin().describe_module(reference).await?;
    let module = described.module.unwrap_or_default();
    let mut out = Out::new();
    if output.json() {
        let mut shown = to_json(&module);
        let uses = described.used_by.iter().map(|by| json!({ "pipeline": by.pipeline, "stage": by.stage }));
        shown["used_by"] = uses.collect();
        out.json(&shown)?;
    } else {
        let uses: Vec<_> =
            described.used_by.iter().map(|by| format!("pipeline {}, stage {}", by.pipeline, by.stage)).collect();
        out.table(&Table::fields([
            ("module", module.reference),
            ("kind", module.kind),
            ("size", text::size(module.bytes)),
            ("hash", module.hash),
            ("pushed", timestamp::format(module.pushed_at_ms)),
            ("used by", if uses.is_empty() { "no pipeline".into() } else { uses.join("\n") }),
        ]))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the first [`HASH_CHARS`] characters of a hash.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..HASH_CHARS).unwrap_or(hash)
}

fn to_json(module: &v1::Module) -> Value {
    json!({
        "reference": module.reference,
        "hash": module.hash,
        "kind": module.kind,
        "bytes": module.bytes,
        "pushed_at_ms": module.pushed_at_ms,
    })
}
