//! How property tests get their random choices.

use proptest::test_runner::{Config, RngSeed};

/// The configuration of a property test. It prints its seed, which a failed test shows; with
/// `MILLSTREAM_TEST_SEED` set to that, the same cases run again. `MILLSTREAM_TEST_CASES` multiplies their
/// number.
pub(crate) fn seeded() -> Config {
    let number = |variable: &str| -> Option<u64> {
        let text = std::env::var(variable).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text:?}")))
    };
    let default = Config::default();
    let seed = number("MILLSTREAM_TEST_SEED").unwrap_or_else(random);
    println!("MILLSTREAM_TEST_SEED={seed}");
    let times = number("MILLSTREAM_TEST_CASES").unwrap_or(1);
    let cases = u32::try_from(u64::from(default.cases) * times).unwrap_or(u32::MAX);
    // The seed says it all: no file beside the sources.
    Config { rng_seed: RngSeed::Fixed(seed), cases, failure_persistence: None, ..default }
}

/// Another number in each process, without a library for it.
fn random() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}
