//! Randomness of a run: all of it comes from the seed.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Random numbers of one run, or of one of its parts.
#[derive(Debug)]
pub(crate) struct Random(StdRng);

impl Random {
    /// The numbers that belong to a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`, which must not be 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.random_range(0..end)
    }

    /// Whether something happens that has this probability, from 0 to 1.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// Fills a buffer.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}
