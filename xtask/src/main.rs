//! The project's chores: `cargo xtask guests|demo|test|simulate|fuzz|bench|soak`.

mod bench;
mod demo;
mod fuzz;
mod process;
mod simulate;
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
    Bench(bench::Args),
    /// Run the store and the domain under a simulator, where a seed decides everything: --seed N, --runs N, --help
    #[command(disable_help_flag = true)]
    Simulate {
        /// As `cargo xtask simulate --help` says
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
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
    /// Run every fuzz target for a while, or the one named; what once failed is tried first
    Fuzz {
        /// How long each target runs
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
        /// Repeats a run's random choices
        #[arg(long, value_name = "S")]
        seed: Option<u32>,
        /// A target's name: a file of sdk/record/fuzz/fuzz_targets
        only: Option<String>,
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
        Chore::Bench(args) => bench::run(&root, &args),
        Chore::Simulate { arguments } => simulate::run(&root, &arguments),
        Chore::Fuzz { seconds, seed, only } => fuzz::run(&root, seconds, only.as_deref(), seed),
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
