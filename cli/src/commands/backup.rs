//! `millstream backup`: copies all data of a running server to a local folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use futures::StreamExt;
use millstream_api::v1;
use millstream_api::v1::backup_chunk::Chunk;
use millstream_broker::store::backup::{BackupError, BackupFile, BackupFolder, Manifest};
use millstream_client::Client;
use serde_json::{Value, json};

use crate::exit::Interrupted;
use crate::interrupt::Interrupt;
use crate::output::{Out, OutputArgs};
use crate::progress::Progress;
use crate::{text, timestamp};

const EXAMPLES: &str = "\
Examples:
  millstream backup --to ./backup-2024-05-01
  millstream backup --to /mnt/backups/monday --server 10.0.0.7:7070

`millstream restore` creates a data directory from the backup.";

/// Copy all data of a running server to a folder
///
/// The backup has the server's data as of one moment: records, topics, modules, pipelines, committed offsets of groups
/// and state. The server keeps serving requests meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The folder to write to, on this machine; it must be new or empty
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `backup`.
pub(crate) async fn run(args: Args, client: &Client) -> anyhow::Result<ExitCode> {
    let mut interrupt = Interrupt::new()?;
    let folder = BackupFolder::create(&args.to)?;
    let received = tokio::select! {
        received = receive(folder, client) => received,
        () = interrupt.wait() => Err(Interrupted("the unfinished backup was removed".to_owned()).into()),
    };
    let manifest = received.with_context(|| format!("no backup was written to {}", args.to.display()))?;
    let mut out = Out::new();
    if args.output.json() {
        let mut shown = to_json(&manifest);
        shown["to"] = args.to.display().to_string().into();
        out.json(&shown)?;
    } else {
        out.line(format_args!("backed up to {}: {}", args.to.display(), shown(&manifest)))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Writes what the server sends to the folder. If it fails or is dropped, the folder removes what was written.
async fn receive(mut folder: BackupFolder, client: &Client) -> anyhow::Result<Manifest> {
    let mut chunks = client.admin().backup().await?;
    let mut progress = Progress::endless();
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await.transpose()? {
        match chunk.chunk {
            Some(Chunk::Begun(begun)) => {
                folder.check_room(begun.bytes)?;
                progress = Progress::of_bytes(begun.bytes);
            }
            Some(Chunk::Piece(v1::BackupPiece { file, offset, bytes: piece })) => {
                bytes += piece.len() as u64;
                progress.set(bytes, file.clone());
                blocking(|| folder.write(&file, offset, &piece))?;
            }
            Some(Chunk::Manifest(manifest)) => {
                let manifest = from_proto(manifest);
                blocking(|| folder.finish(&manifest))?;
                return Ok(manifest);
            }
            None => bail!(
                "the server sent a chunk that this version does not know: use the same version of millstream as the server"
            ),
        }
    }
    bail!("the server ended the backup before it was complete")
}

/// Runs blocking work on the current thread rather than on another one, so that the future still owns the folder when
/// an interrupt drops it.
fn blocking<T>(work: impl FnOnce() -> Result<T, BackupError>) -> Result<T, BackupError> {
    tokio::task::block_in_place(work)
}

fn from_proto(manifest: v1::BackupManifest) -> Manifest {
    let v1::BackupManifest { format, data_format, version, created_at_ms, files } = manifest;
    let file = |v1::BackupFile { name, bytes, crc32c }| BackupFile { name, bytes, crc32c };
    Manifest { format, data_format, version, created_at_ms, files: files.into_iter().map(file).collect() }
}

/// Describes a backup in text, for people.
pub(crate) fn shown(manifest: &Manifest) -> String {
    let files = text::plural(manifest.files.len() as u64, "file");
    let (size, time) = (text::size(manifest.bytes()), timestamp::format(manifest.created_at_ms));
    format!("{files}, {size}, as of {time}")
}

/// Describes a backup in JSON, for programs.
pub(crate) fn to_json(manifest: &Manifest) -> Value {
    json!({
        "files": manifest.files.len(),
        "bytes": manifest.bytes(),
        "version": manifest.version,
        "created_at_ms": manifest.created_at_ms,
    })
}
