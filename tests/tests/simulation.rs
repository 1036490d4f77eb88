//! Runs the simulator, `tests/simulate`. It is a separate program, because a process runs one simulation at a time.
//!
//! `MILLSTREAM_TEST_CASES` multiplies the number of runs, and `MILLSTREAM_TEST_SEED` is the first seed.

use std::process::Command;

use super::crash::number_of;

/// Returns the lines of the program's output, one for each run: seed, workload, hash of the trace, scheduling points,
/// and events.
fn runs(arguments: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_millstream-simulate")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_seed_does_the_same_again_alone_and_after_others() {
    // Enough runs for every workload to run.
    let together = runs(&["--seed", "0", "--runs", "40", "--stride", "1"]);
    assert_eq!(together.len(), 40);
    for line in &together {
        let seed = line.split('\t').next().unwrap();
        assert_eq!(runs(&["--seed", seed]), [line.as_str()], "seed {seed} must repeat its trace");
    }
    let mut hashes: Vec<_> = together.iter().map(|line| line.split('\t').nth(2).unwrap()).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), together.len(), "different seeds must have different traces");
}

#[test]
fn all_workloads_hold_under_the_simulator() {
    let count = 300 * number_of("MILLSTREAM_TEST_CASES").unwrap_or(1);
    let first = number_of("MILLSTREAM_TEST_SEED").unwrap_or(0);
    for line in runs(&["--seed", &first.to_string(), "--runs", &count.to_string()]) {
        println!("{line}");
    }
}
