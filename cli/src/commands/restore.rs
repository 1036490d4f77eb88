//! `millstream restore`: creates a data directory from a backup. It needs no server.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use millstream_broker::store::backup;

use crate::commands::backup::{shown, to_json};
use crate::exit::Interrupted;
use crate::interrupt::Interrupt;
use crate::output::{Out, OutputArgs};
use crate::progress::Progress;

const EXAMPLES: &str = "\
Example:
  millstream restore --from ./backup-2024-05-01 --data ./millstream-data
  millstream serve --data ./millstream-data";

/// Create a data directory from a backup, without a server
///
/// All checksums are verified. The data directory appears only when all of it is written.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The folder that `millstream backup` wrote
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The data directory to create; it must be new or empty
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `restore`.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut interrupt = Interrupt::new()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (from, data, stopped) = (args.from.clone(), args.data.clone(), stop.clone());
    let mut restoring = tokio::task::spawn_blocking(move || {
        let mut bar: Option<Progress> = None;
        backup::restore(&from, &data, |done, total| {
            bar.get_or_insert_with(|| Progress::of_bytes(total)).set(done, String::new());
            if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    let restored = tokio::select! {
        restored = &mut restoring => restored,
        () = interrupt.wait() => {
            // The restoring thread sees the flag and removes what it has written.
            stop.store(true, Ordering::Relaxed);
            restoring.await
        }
    };
    let manifest = match restored.context("the restore panicked")? {
        Err(backup::BackupError::Cancelled) => return Err(Interrupted("nothing was restored".to_owned()).into()),
        restored => restored?,
    };
    let mut out = Out::new();
    if args.output.json() {
        let mut shown = to_json(&manifest);
        shown["from"] = args.from.display().to_string().into();
        shown["data"] = args.data.display().to_string().into();
        out.json(&shown)?;
    } else {
        out.line(format_args!("restored {} to {}: {}", args.from.display(), args.data.display(), shown(&manifest)))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}
