//! The project's development tasks: `cargo xtask guests|demo|test|simulate|fuzz|bench|soak`.

mod bench;
mod demo;
mod fuzz;
mod interop;
mod process;
mod simulate;
mod soak;
mod wasm;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Millstream")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build everything and run the example job on real data
    Demo,
    /// Build what the tests need and run all tests, or those whose name contains FILTER
    Test {
        /// Part of the names of the tests to run
        filter: Option<String>,
    },
    /// Run the benchmarks, print a table and write target/bench.json
    Bench(bench::Args),
    /// Run the store and the domain in a simulator that is deterministic for each seed: --seed N, --runs N, --help
    #[command(disable_help_flag = true)]
    Simulate {
        /// Arguments of the simulator; see `cargo xtask simulate --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Kill a server under load repeatedly, and check all data that it keeps
    Soak {
        /// How long the server runs in total, in minutes, not counting the checks
        #[arg(long, value_name = "N", default_value_t = 10.0)]
        minutes: f64,
        /// Repeat the random choices of an earlier run; each run prints its seed
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
    },
    /// Run all fuzz targets, or only the named one; inputs that once failed are tried first
    Fuzz {
        /// How long each target runs, in seconds
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
        /// Repeat the random choices of an earlier run
        #[arg(long, value_name = "S")]
        seed: Option<u32>,
        /// Name of a target, which is a file in sdk/record/fuzz/fuzz_targets or broker/fuzz/fuzz_targets
        only: Option<String>,
    },
    /// Run clients of Kafka against a server, and print what works: needs python3 and node
    Interop {
        /// Run only the clients that every change must pass
        #[arg(long)]
        core: bool,
        /// Part of the names of the clients to run
        filter: Option<String>,
        /// Part of the names of the scenarios to run
        #[arg(long, value_name = "NAME")]
        scenario: Option<String>,
        /// Write the results into the table of docs/compat.md
        #[arg(long)]
        write: bool,
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
        Chore::Interop { core, filter, scenario, write } => {
            interop::run(&root, core, filter.as_deref(), scenario.as_deref(), write)
        }
        Chore::Soak { minutes, seed } => soak::run(&root, minutes, seed),
    }
}

/// Returns the workspace's folder.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask has no parent folder")
}

fn test(root: &Path, filter: Option<&str>) -> Result<()> {
    wasm::build_guests(root)?;
    // The tests run the real server program.
    process::run(process::cargo(root).args(["build", "--bin", "millstream", "--examples"]))?;
    let mut native = process::cargo(&root.join("guests"));
    native.env("CARGO_TARGET_DIR", root.join("target/guests-native")).arg("test").args(filter);
    println!("Testing the guests and their SDK natively:");
    process::run(&mut native)?;
    println!("Testing the workspace:");
    process::run(process::cargo(root).args(["test", "--workspace"]).args(filter))
}
