//! `millstream check`: finds damage in a data directory that no server uses, and removes it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use millstream_broker::broker::check::check;
use millstream_broker::store::Report;

use crate::exit::REFUSED;
use crate::output::{Out, OutputArgs};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  millstream check --data ./millstream-data
  millstream check --data ./millstream-data --repair
  millstream check --data ./millstream-data --output json | jq '.damages[]'

The check reads the whole journal, all segments and all tables. Without --repair it changes nothing.
With --repair it removes damaged record batches: readers skip their offsets without an error. It also rebuilds
redb's lists of free pages, which no check can verify: use --repair if the log says that redb panicked.

Exit codes: 0 no damage, or all damage was repaired; 1 there is damage, or the directory cannot be read.";

/// Find damage in the data directory of a stopped server, and optionally repair it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The data directory; no server may be using it
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Remove what is damaged and keep the rest
    #[arg(long)]
    pub(crate) repair: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Runs `check` and prints the damage that it found.
///
/// # Errors
/// If the directory is in use or cannot be read.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (data, repair) = (args.data.clone(), args.repair);
    let checked = tokio::task::spawn_blocking(move || check(&data, repair));
    let report = checked.await.context("the check panicked")??;
    let mut out = Out::new();
    if args.output.json() {
        out.json(&report)?;
    } else {
        print(&report, &args, &mut out)?;
    }
    out.finish()?;
    let sound = report.is_sound() || args.repair && report.is_repaired();
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

fn print(report: &Report, args: &Args, out: &mut Out) -> anyhow::Result<()> {
    for damage in &report.damages {
        let outcome = match (args.repair, damage.repaired) {
            (true, true) => " (repaired)",
            (true, false) => " (NOT repaired)",
            _ => "",
        };
        out.line(format_args!("{damage}{outcome}"))?;
    }
    for file in &report.unregistered {
        out.line(format_args!("{file}: left behind by a crash and not part of the store; the next start removes it"))?;
    }
    let Report { segments, batches, batch_bytes, commits, .. } = report;
    let [segments, commits] = [(segments, "segment"), (commits, "commit")].map(|(of, noun)| text::plural(*of, noun));
    let (batches, size) = (text::count(*batches), text::size(*batch_bytes));
    let read = format!("{batches} record batches, {size}, in {segments} and {commits} of the journal");
    match (report.damages.len(), args.repair) {
        (0, _) => out.line(format_args!("sound: {read}"))?,
        (damages, repair) => {
            let beyond = report.damages.iter().filter(|damage| !damage.repairable).count();
            let damages = text::plural(damages as u64, "damage");
            out.line(format_args!("{damages}; undamaged: {read}"))?;
            if report.is_repairable() && !repair {
                let data = args.data.display();
                out.line(format_args!(
                    "`millstream check --data {data} --repair` keeps all that is sound and removes the rest"
                ))?;
            }
            if beyond > 0 {
                let beyond = text::plural(beyond as u64, "damage");
                out.line(format_args!("{beyond} cannot be repaired: restore a backup with `millstream restore`"))?;
            }
        }
    }
    Ok(())
}
