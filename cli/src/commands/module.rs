//! `millstream module`: push, list, describe, remove.

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

/// So much of a hash tells modules apart for people.
pub(crate) const HASH_CHARS: usize = 12;

/// What can be done with modules.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Upload a WebAssembly module; it is checked and compiled before the answer
    #[command(after_help = "\
Examples:
  millstream module push delayed ./delayed.wasm
  millstream module push delayed:v2 ./delayed.wasm")]
    Push {
        /// NAME or NAME:TAG; the tag is `latest` when left out
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

/// Does it.
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

/// A module's bytes.
pub(crate) fn read(file: &Path) -> anyhow::Result<Bytes> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read module {}", file.display()))?;
    Ok(Bytes::from(bytes))
}

/// Uploads, with a spinner: the server compiles before it answers.
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

/// A hash's first characters.
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
