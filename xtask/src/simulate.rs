//! `cargo xtask simulate`: runs the store and the domain in a simulator. The simulator itself is in `tests/simulate`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process;

/// Builds the simulator and runs it with `arguments`.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    // No package is named, because libraries would then be built again with other features.
    process::run(process::cargo(root).args(["build", "--quiet", "--bin", "millstream-simulate"]))?;
    process::run(Command::new(root.join("target/debug/millstream-simulate")).args(arguments))
}
