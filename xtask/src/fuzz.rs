//! `cargo xtask fuzz`: runs each fuzz target of `sdk/record/fuzz` and `broker/fuzz` for some time, with the project's own toolchain.
//!
//! Neither cargo-fuzz nor a nightly compiler is needed: libFuzzer relies on the coverage that LLVM instruments, and the
//! address sanitizer, which cargo-fuzz adds, is for unsafe code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The crates with fuzz targets, and where the initial inputs of each are.
const CRATES: [(&str, &str); 2] =
    [("sdk/record/fuzz", "sdk/record/tests/vectors"), ("broker/fuzz", "broker/fuzz/vectors")];

/// Flags that make LLVM count which code a run has reached, and report comparisons to libFuzzer.
const RUSTFLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Maximum length of an input, in bytes. Most formats are exercised completely by shorter inputs, and an input with a
/// wrong length field need not be long.
const INPUT_BYTES_MAX: usize = 4 << 10;

/// Time in seconds after which an input counts as a failure. Targets take microseconds.
const INPUT_SECONDS_MAX: u32 = 10;

/// Memory in MB above which an input counts as a failure, more than the limits of the targets allow.
const MEMORY_MB_MAX: u32 = 1 << 9;

/// A fuzz target.
struct Target {
    name: String,
    /// The folder of its crate, relative to the workspace.
    folder: &'static str,
    /// The folder of its initial inputs, relative to the workspace.
    vectors: &'static str,
}

/// Runs each target, or only the named one, for the given time in seconds. `seed` repeats a run's random choices.
pub(crate) fn run(root: &Path, seconds: u32, only: Option<&str>, seed: Option<u32>) -> Result<()> {
    let targets = targets(root)?;
    let chosen: Vec<&Target> = targets.iter().filter(|target| only.is_none_or(|only| only == target.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        bail!("there is no fuzz target {:?}, the targets are {}", only.unwrap_or_default(), names.join(", "));
    }
    for (folder, _) in CRATES.iter().filter(|(folder, _)| chosen.iter().any(|target| target.folder == *folder)) {
        build(root, folder)?;
    }
    let programs = programs(root)?;
    // A target uses about one core, so as many run at once as there are cores.
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    for targets in chosen.chunks(at_once) {
        std::thread::scope(|scope| {
            let start = |target| {
                let programs = &programs;
                scope.spawn(move || fuzz(root, programs, target, seconds, seed))
            };
            let running: Vec<_> = targets.iter().map(|target| start(*target)).collect();
            let ended = running.into_iter().map(|target| target.join().expect("fuzzing does not panic"));
            ended.collect::<Result<Vec<()>>>()
        })?;
    }
    Ok(())
}

/// Returns the targets, each of which is a file.
fn targets(root: &Path) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for (folder, vectors) in CRATES {
        for path in files(&root.join(folder).join("fuzz_targets"))? {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            targets.extend(name.map(|name| Target { name, folder, vectors }));
        }
    }
    targets.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(targets)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    paths.collect()
}

/// Builds the targets of a crate.
fn build(root: &Path, folder: &str) -> Result<()> {
    let mut build = process::cargo(&root.join(folder));
    build.env("CARGO_TARGET_DIR", root.join("target/fuzz")).env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    // With an explicit target, build scripts and macros are built without these flags.
    process::run(build.args(["build", "--release", "--locked", "--bins", "--target", &host()?]))
}

/// Returns the folder with the programs.
fn programs(root: &Path) -> Result<PathBuf> {
    Ok(root.join("target/fuzz").join(host()?).join("release"))
}

fn host() -> Result<String> {
    let version = process::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not print its host")
}

fn fuzz(root: &Path, programs: &Path, target: &Target, seconds: u32, seed: Option<u32>) -> Result<()> {
    let Target { name, folder, vectors } = target;
    let program = programs.join(name);
    let kept = root.join("target/fuzz-corpus").join(name);
    let failed = root.join("target/fuzz-failures").join(name);
    for made in [&kept, &failed] {
        fs::create_dir_all(made).with_context(|| format!("cannot create {}", made.display()))?;
    }
    println!("Fuzzing {name} for {seconds} s");
    let mut command = Command::new(&program);
    // New inputs are written to the first folder. The others only have initial inputs.
    command.arg(&kept);
    let begins = [root.join(vectors), root.join(folder).join("regressions").join(name)];
    command.args(begins.iter().filter(|folder| folder.exists()));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MB_MAX}"));
    command.arg(format!("-artifact_prefix={}/", failed.display()));
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    command.args(seed.map(|seed| format!("-seed={seed}")));
    // libFuzzer prints everything on stderr, including a dictionary of values that it found.
    let ran = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if !ran.status.success() {
        bail!(
            "{said}\nfuzz target {name} found a failure: the input is the newest file in {}; keep it in \
             {folder}/regressions/{name}",
            failed.display()
        );
    }
    let number = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim);
    let (inputs, new) = (number("stat::number_of_executed_units:"), number("stat::new_units_added:"));
    println!("Fuzzed {name}: {inputs} inputs, {new} of them reached new code");
    Ok(())
}
