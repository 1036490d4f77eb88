//! Measuring: a release build of the server and of `tests/bench`, which does the rest.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{process, wasm};

pub(crate) fn run(root: &Path, quick: bool, only: Option<&str>) -> Result<()> {
    wasm::build_guests(root)?;
    let mut build = process::cargo(root);
    process::run(build.args(["build", "--release", "--bin", "millstream", "--bin", "millstream-bench"]))?;
    let release = root.join("target/release");
    let mut bench = Command::new(release.join("millstream-bench"));
    bench.arg("--json").arg(root.join("target/bench.json"));
    if quick {
        bench.arg("--quick");
    }
    process::run(bench.args(only))
}
