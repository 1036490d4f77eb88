//! Soaking: a build of the server and of `tests/soak`, which does the rest.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{process, wasm};

pub(crate) fn run(root: &Path, minutes: f64, seed: Option<u64>) -> Result<()> {
    wasm::build_guests(root)?;
    // The profile with assertions: they are half of what may be found.
    let mut build = process::cargo(root);
    process::run(build.args(["build", "--bin", "millstream", "--bin", "millstream-soak"]))?;
    let mut soak = Command::new(root.join("target/debug/millstream-soak"));
    soak.args(["--minutes", &minutes.to_string()]);
    if let Some(seed) = seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    process::run(&mut soak)
}
