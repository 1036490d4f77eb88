//! The program of `cargo xtask simulate`, which runs the store and the domain under a simulator. A seed decides
//! everything: the operations, the faults, the thread schedule and the time. The same seed repeats the same run.
//!
//! Each process runs one simulation at a time. Several runs are distributed over as many processes as there are
//! processors.
#![allow(clippy::unwrap_used)]

mod clocks;
mod crashes;
mod full_disks;
mod maintenance;
mod model;
mod numbers;
mod partitions;
mod run;
mod upgrades;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use run::{Workload, simulate};

/// With at least this many runs of a workload, all its events must have been met.
const RUNS_MEET_ALL: u64 = 40;

const WORKLOADS: &[Workload] = &[
    Workload { name: "crashes", share: 6, run: crashes::crashes, meets: &["a fault", "a failed read"] },
    Workload {
        name: "cleaning",
        share: 6,
        run: crashes::cleaning,
        meets: &["a fault", "a damaged read", "a failed read", "compaction", "retention"],
    },
    Workload {
        name: "full-disk",
        share: 2,
        run: full_disks::full_disk,
        meets: &["a commit that found no room", "a sealer that found no room"],
    },
    Workload { name: "reserve", share: 1, run: full_disks::reserve, meets: &["a refusal"] },
    Workload { name: "model", share: 4, run: model::model, meets: &["a reopening"] },
    Workload { name: "every-call", share: 1, run: numbers::every_call, meets: &["the last call"] },
    Workload { name: "power-losses", share: 3, run: numbers::power_losses, meets: &["a loss of power"] },
    Workload { name: "clocks", share: 3, run: clocks::clocks, meets: &["a jump ahead", "a jump back", "compaction"] },
    Workload { name: "partitions", share: 1, run: partitions::partitions, meets: &["a loss of power", "segments"] },
    Workload { name: "repair-of-sound", share: 2, run: maintenance::repair_of_sound, meets: &["a loss of power"] },
    Workload {
        name: "repair-of-damaged",
        share: 3,
        run: maintenance::repair_of_damaged,
        meets: &["damage", "a loss of power"],
    },
    Workload {
        name: "backups",
        share: 3,
        run: maintenance::backups,
        meets: &["a restore", "a loss of power during a backup", "a loss of power during a restore"],
    },
    Workload { name: "upgrades", share: 1, run: upgrades::upgrades, meets: &["a loss of power"] },
    Workload { name: "sealing-waits", share: 1, run: full_disks::sealing_waits, meets: &["sealing that waited"] },
];

#[derive(Debug, Parser)]
#[command(name = "cargo xtask simulate", about = "Runs the store and the domain under a simulator")]
struct Args {
    /// First seed; with --runs 1, that seed alone is run
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of seeds to run
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Workload to run; by default the seed chooses one
    #[arg(long)]
    workload: Option<String>,
    /// Write the trace of the run to this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Distance between two seeds of this process; other processes run the seeds in between
    #[arg(long, hide = true)]
    stride: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.stride {
        Some(stride) => run_all(&args, stride),
        None if args.runs == 1 => run_all(&args, 1),
        None => share(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn workload(args: &Args, seed: u64) -> Result<Workload> {
    if let Some(name) = &args.workload {
        let known = || WORKLOADS.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
        let found = WORKLOADS.iter().find(|workload| workload.name == name);
        return found.copied().with_context(|| format!("there is no workload {name:?}: use one of {}", known()));
    }
    let mut at = seed % WORKLOADS.iter().map(|workload| workload.share).sum::<u64>();
    let mut workloads = WORKLOADS.iter();
    loop {
        let workload = workloads.next().context("the seed's share belongs to a workload")?;
        if at < workload.share {
            return Ok(*workload);
        }
        at -= workload.share;
    }
}

/// Runs every `stride`-th seed in this process, and prints one line for each.
fn run_all(args: &Args, stride: u64) -> Result<()> {
    upgrades::unpack()?;
    for seed in (args.seed..args.seed + args.runs).step_by(usize::try_from(stride)?) {
        let workload = workload(args, seed)?;
        let outcome = simulate(workload, seed, args.trace.is_some());
        if let Some(file) = &args.trace {
            std::fs::write(file, outcome.lines.join("\n") + "\n")
                .with_context(|| format!("can't write {}", file.display()))?;
        }
        let Ok(met) = outcome.result else {
            bail!(
                "seed {seed} failed in workload {}: `cargo xtask simulate --seed {seed} --workload {}` repeats it",
                workload.name,
                workload.name
            );
        };
        let met = met.into_iter().collect::<Vec<_>>().join("; ");
        println!("{seed}\t{}\t{:016x}\t{}\t{met}", workload.name, outcome.trace_hash, outcome.points);
    }
    Ok(())
}

/// Summary of the runs of a workload.
#[derive(Debug, Default)]
struct Tally {
    runs: u64,
    points: u64,
    met: BTreeMap<String, u64>,
}

/// Distributes the seeds over processes, and prints a summary.
fn share(args: &Args) -> Result<()> {
    let begun = std::time::Instant::now();
    let processes = std::thread::available_parallelism()?.get() as u64;
    let program = std::env::current_exe()?;
    let mut children = Vec::new();
    for number in 0..processes.min(args.runs) {
        let mut command = Command::new(&program);
        command.args(["--seed", &(args.seed + number).to_string(), "--runs", &(args.runs - number).to_string()]);
        command.args(["--stride", &processes.to_string()]);
        if let Some(workload) = &args.workload {
            command.args(["--workload", workload]);
        }
        children.push(command.stdout(Stdio::piped()).spawn().context("can't start a process of its own")?);
    }
    let tallies: Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = children.into_iter().map(|child| scope.spawn(|| tally(child))).collect();
        threads.into_iter().map(|thread| thread.join().expect("reading a child's output does not panic")).collect()
    });
    let mut all: BTreeMap<String, Tally> = BTreeMap::new();
    for (name, tally) in tallies?.into_iter().flatten() {
        let of = all.entry(name).or_default();
        of.runs += tally.runs;
        of.points += tally.points;
        tally.met.into_iter().for_each(|(what, count)| *of.met.entry(what).or_default() += count);
    }
    for (name, Tally { runs, points, met }) in &all {
        let met: Vec<_> = met.iter().map(|(what, count)| format!("{what} in {count}")).collect();
        println!("{name}: {runs} runs, {} scheduling points each; {}", points / runs, met.join(", "));
    }
    println!("{} runs in {:.0} s", args.runs, begun.elapsed().as_secs_f64());
    for workload in WORKLOADS {
        let Some(tally) = all.get(workload.name).filter(|tally| tally.runs >= RUNS_MEET_ALL) else { continue };
        for what in workload.meets {
            ensure!(
                tally.met.contains_key(*what),
                "no run of {} met {what}, so the runs prove nothing about it",
                workload.name
            );
        }
    }
    Ok(())
}

/// Sums up the lines that a process prints about its runs.
fn tally(mut child: Child) -> Result<BTreeMap<String, Tally>> {
    let mut all: BTreeMap<String, Tally> = BTreeMap::new();
    for line in BufReader::new(child.stdout.take().context("stdout is piped")?).lines() {
        let line = line?;
        let fields: Vec<&str> = line.split('\t').collect();
        let [_, name, _, points, met] = fields[..] else { bail!("a run's line: {line:?}") };
        let of = all.entry(name.to_owned()).or_default();
        of.runs += 1;
        of.points += points.parse::<u64>()?;
        for what in met.split("; ").filter(|what| !what.is_empty()) {
            *of.met.entry(what.to_owned()).or_default() += 1;
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "a run failed: {status}");
    Ok(all)
}
