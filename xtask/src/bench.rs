//! `cargo xtask bench`: builds the server and `tests/bench` in release mode and runs the benchmarks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{interop, process, wasm};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Use a tenth of the records: a check that the benchmarks work, whose figures are not meant to be quoted
    #[arg(long)]
    quick: bool,
    /// Print each figure next to that of an older report, such as a copy of target/bench.json
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Compare the server with that of an older build, such as a copy of an earlier target/release/millstream: both take
    /// turns in one run
    #[arg(long, value_name = "PROGRAM", conflicts_with = "compare")]
    beside: Option<PathBuf>,
    /// Run only the benchmarks whose name contains this text
    only: Option<String>,
}

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    wasm::build_guests(root)?;
    let mut build = process::cargo(root);
    process::run(build.args(["build", "--release", "--bin", "millstream", "--bin", "millstream-bench"]))?;
    if args.only.as_ref().is_none_or(|only| only.contains("kafka")) {
        // Without a C compiler, the benchmarks report that librdkafka was left out.
        if let Err(error) = interop::build_rust(root) {
            eprintln!("{error:#}");
        }
    }
    let release = root.join("target/release");
    let mut bench = Command::new(release.join("millstream-bench"));
    bench.arg("--json").arg(root.join("target/bench.json"));
    if args.quick {
        bench.arg("--quick");
    }
    if let Some(old) = &args.compare {
        bench.arg("--compare").arg(old);
    }
    if let Some(program) = &args.beside {
        bench.arg("--beside").arg(program);
    }
    process::run(bench.args(&args.only))
}
