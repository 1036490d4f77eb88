//! The random numbers of a run, all of which are derived from the seed.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Generator of the random numbers of a run, or of a part of a run.
#[derive(Debug)]
pub(crate) struct Random(StdRng);

impl Random {
    /// Creates the generator for a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Returns any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a number below `end`, which must not be 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.random_range(0..end)
    }

    /// Returns true with this probability, from 0 to 1.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// Fills a buffer with random bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}
