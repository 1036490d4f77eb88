//! The project's chores: `cargo xtask guests|demo|test|bench|soak`.

mod bench;
mod demo;
mod process;
mod soak;
mod wasm;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Millstream's chores")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build everything and run the example job on real data
    Demo,
    /// Build what the tests need and run them all, or those whose name contains FILTER
    Test {
        /// A part of a test's name
        filter: Option<String>,
    },
    /// Measure: prints a table and writes target/bench.json
    Bench {
        /// A tenth of the records: to see that it works, not to quote
        #[arg(long)]
        quick: bool,
        /// Only the benchmarks whose name contains this
        only: Option<String>,
    },
    /// Kill a working server again and again, and check everything that it keeps
    Soak {
        /// How long it works; checks come on top
        #[arg(long, value_name = "N", default_value_t = 10.0)]
        minutes: f64,
        /// Repeats a run's random choices; each run prints its own
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
    },
    /// Build the modules under guests/ into target/guests
    Guests,
}

fn main() -> Result<()> {
    let root = root()?;
    match Args::parse().chore {
        Chore::Guests => wasm::build_guests(&root).map(drop),
        Chore::Demo => demo::run(&root),
        Chore::Test { filter } => test(&root, filter.as_deref()),
        Chore::Bench { quick, only } => bench::run(&root, quick, only.as_deref()),
        Chore::Soak { minutes, seed } => soak::run(&root, minutes, seed),
    }
}

/// The workspace's folder.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask has no parent folder")
}

fn test(root: &Path, filter: Option<&str>) -> Result<()> {
    wasm::build_guests(root)?;
    // The tests run the real server.
    process::run(process::cargo(root).args(["build", "--bin", "millstream", "--examples"]))?;
    let mut native = process::cargo(&root.join("guests"));
    native.env("CARGO_TARGET_DIR", root.join("target/guests-native")).arg("test").args(filter);
    println!("The guests and their SDK, natively:");
    process::run(&mut native)?;
    println!("The workspace:");
    process::run(process::cargo(root).args(["test", "--workspace"]).args(filter))
}
