//! `cargo xtask soak`: builds the server and `tests/soak`, and runs the soak test.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{process, wasm};

pub(crate) fn run(root: &Path, minutes: f64, seed: Option<u64>) -> Result<()> {
    wasm::build_guests(root)?;
    // The dev profile has assertions enabled, which find many of the defects that a soak test can reveal.
    let mut build = process::cargo(root);
    process::run(build.args(["build", "--bin", "millstream", "--bin", "millstream-soak"]))?;
    let mut soak = Command::new(root.join("target/debug/millstream-soak"));
    soak.args(["--minutes", &minutes.to_string()]);
    if let Some(seed) = seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    process::run(&mut soak)
}
