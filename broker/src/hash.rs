//! Hash maps whose order comes from the system's randomness alone, not from addresses or the clock: where that randomness
//! is given, as in a simulation, a run that iterates over one does the same again.

use std::hash::{BuildHasher, RandomState};

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};

/// A map with a [`SeededState`].
pub type HashMap<K, V> = hashbrown::HashMap<K, V, SeededState>;

/// A set with a [`SeededState`].
pub type HashSet<T> = hashbrown::HashSet<T, SeededState>;

/// Makes hashers as hashbrown's own default does, each with a seed that the standard library's [`RandomState`] gives.
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
