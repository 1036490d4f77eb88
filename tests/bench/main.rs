//! The program of `cargo xtask bench`: Millstream's figures, each with its yardstick from the same run.
//!
//! Machines differ and measurements are noisy, so quote ratios and medians of several rounds. Each benchmark is a file.
//! Their measuring instruments are in `millstream_tests::measure`.
#![allow(clippy::unwrap_used)]

mod append;
mod backup;
mod clients;
mod cold_reader;
mod compaction;
mod compression;
mod embedded;
mod fan_out;
mod kafka;
mod kafka_clients;
mod kafka_scale;
mod latency;
mod load;
mod partitions;
mod pipelines;
mod plan;
mod programs;
mod rebalance;
mod retention;
mod stages;
mod start;
mod state;
mod stolen;
mod streaming;
mod sustained;
mod yardstick;

use std::process::ExitCode;

use anyhow::{Result, bail};
use millstream_tests::measure::comparison::Comparison;
use millstream_tests::measure::report::Report;

use plan::{Arguments, Plan};

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<()> {
    let Arguments { plan, json, old, beside } = Arguments::read(std::env::args().skip(1))?;
    let mut report = Report::new(plan.run());
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match beside {
        Some(old) => tokio.block_on(programs::run(&old, &plan, &mut report)),
        None => {
            stages::run(&plan, &mut report);
            tokio.block_on(measure(&plan, &mut report));
        }
    }
    if report.figures.is_empty() {
        bail!("no benchmark's name contains {:?}", plan.run().only.unwrap_or_default());
    }
    println!("{report}");
    if let Some(old) = old {
        println!("Compared:\n\n{}", Comparison::of(&old, &report));
    }
    if let Some(path) = json {
        report.write(&path)?;
        println!("written to {}", path.display());
    }
    Ok(())
}

async fn measure(plan: &Plan, report: &mut Report) {
    append::run(plan, report).await;
    streaming::run(plan, report).await;
    latency::run(plan, report).await;
    clients::run(plan, report).await;
    kafka_clients::run(plan, report).await;
    kafka_scale::run(plan, report);
    fan_out::run(plan, report).await;
    compression::run(plan, report).await;
    rebalance::run(plan, report).await;
    pipelines::run(plan, report).await;
    sustained::run(plan, report).await;
    partitions::run(plan, report).await;
    cold_reader::run(plan, report).await;
    retention::run(plan, report).await;
    compaction::run(plan, report).await;
    backup::run(plan, report).await;
    start::run(plan, report).await;
    state::run(plan, report).await;
}
