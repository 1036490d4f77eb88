//! Hash maps whose iteration order depends only on the system's random numbers, and not on addresses or the clock. If
//! the random numbers are controlled, as in a simulation, runs that iterate over such a map are reproducible.

use std::hash::{BuildHasher, RandomState};

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};

/// A hash map that uses [`SeededState`].
pub type HashMap<K, V> = hashbrown::HashMap<K, V, SeededState>;

/// A hash set that uses [`SeededState`].
pub type HashSet<T> = hashbrown::HashSet<T, SeededState>;

/// Builds the same hashers as hashbrown's default, but takes the seed from the standard library's [`RandomState`].
#[derive(Clone, Debug)]
pub struct SeededState(SeedableRandomState);

impl Default for SeededState {
    fn default() -> Self {
        let seed = RandomState::new().hash_one(0u64);
        Self(SeedableRandomState::with_seed(seed, SharedSeed::global_fixed()))
    }
}

impl BuildHasher for SeededState {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}
