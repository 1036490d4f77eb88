//! The random seed of property tests.

use proptest::test_runner::{Config, RngSeed};

/// Returns the configuration of a property test. It prints the seed, which the output of a failed test shows; set
/// `MILLSTREAM_TEST_SEED` to that value to run the same cases again. `MILLSTREAM_TEST_CASES` multiplies the number of
/// cases.
pub(crate) fn seeded() -> Config {
    let number = |variable: &str| -> Option<u64> {
        let text = std::env::var(variable).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text:?}")))
    };
    let default = Config::default();
    let seed = number("MILLSTREAM_TEST_SEED").unwrap_or_else(random);
    println!("MILLSTREAM_TEST_SEED={seed}");
    let times = number("MILLSTREAM_TEST_CASES").unwrap_or(1);
    let cases = u32::try_from(u64::from(default.cases) * times).unwrap_or(u32::MAX);
    // The seed is enough to reproduce a failure, so no file is written next to the sources.
    Config { rng_seed: RngSeed::Fixed(seed), cases, failure_persistence: None, ..default }
}

/// Returns a number that differs between processes, without a dependency on a library for random numbers.
fn random() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}
