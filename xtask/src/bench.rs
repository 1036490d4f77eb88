//! Measuring: a release build of the server and of `tests/bench`, which does the rest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{process, wasm};

/// What `cargo xtask bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A tenth of the records: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Print each figure beside that of an older report, such as a copy of target/bench.json
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Only the benchmarks whose name contains this
    only: Option<String>,
}

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    wasm::build_guests(root)?;
    let mut build = process::cargo(root);
    process::run(build.args(["build", "--release", "--bin", "millstream", "--bin", "millstream-bench"]))?;
    let release = root.join("target/release");
    let mut bench = Command::new(release.join("millstream-bench"));
    bench.arg("--json").arg(root.join("target/bench.json"));
    if args.quick {
        bench.arg("--quick");
    }
    if let Some(old) = &args.compare {
        bench.arg("--compare").arg(old);
    }
    process::run(bench.args(&args.only))
}
