//! `cargo xtask simulate`: the store and the domain under a simulator. The program itself is in `tests/simulate`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process;

/// `arguments` go to the program as they are.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    // No package is named: with it, features of libraries would be others, and all of them be built again.
    process::run(process::cargo(root).args(["build", "--quiet", "--bin", "millstream-simulate"]))?;
    process::run(Command::new(root.join("target/debug/millstream-simulate")).args(arguments))
}
