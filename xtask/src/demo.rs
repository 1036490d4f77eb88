//! The example job, on real flights.

use std::path::Path;

use anyhow::Result;

pub(crate) fn run(_root: &Path) -> Result<()> {
    anyhow::bail!("not yet")
}
