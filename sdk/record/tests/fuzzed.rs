//! Runs the bodies of the fuzz targets on inputs that failed in the past, on the vectors, and on generated inputs.
//! `cargo xtask fuzz` tries many more.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use proptest::prelude::*;

// A separate crate in `fuzz/`, included here as a module.
#[allow(unreachable_pub)]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;
mod seeded;

/// Returns the contents of all files in a folder.
fn inputs(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let inputs: Vec<_> = files.map(|path| fs::read(path).unwrap()).collect();
    assert!(!inputs.is_empty());
    inputs
}

#[test]
fn what_once_failed_is_handled() {
    inputs("fuzz/regressions/batch").iter().chain(&inputs("tests/vectors")).for_each(|input| fuzz::batch(input));
}

proptest! {
    #![proptest_config(seeded::seeded())]

    #[test]
    fn a_vector_with_other_bytes_is_refused_or_read(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let inputs = inputs("tests/vectors");
        let mut input = inputs[which.index(inputs.len())].clone();
        for (at, byte) in changes {
            let at = at.index(input.len());
            input[at] = byte;
        }
        fuzz::batch(&input);
    }

    #[test]
    fn columns_of_any_bytes_are_refused_or_of_use(input in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::columns(&input);
    }
}
