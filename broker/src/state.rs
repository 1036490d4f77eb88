//! The accumulators of aggregate stages, in memory: what the journal's state changes add up to.
//!
//! A store is one stage's state, `pipeline/stage`; it is divided by the partition of the task that
//! owns it. Only committed changes are here.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use millstream_record::Column;
use parking_lot::RwLock;

/// Changes that one step makes to one partition of a store.
#[derive(Clone, Debug)]
pub struct StateChange {
    /// `pipeline/stage`.
    pub store: Arc<str>,
    /// The task's partition.
    pub partition: u32,
    /// Keys, one a change; none is null.
    pub keys: Column,
    /// The new accumulators, as many as keys. Null removes the key.
    pub accumulators: Column,
}

/// Accumulators by key.
type Entries = HashMap<Box<[u8]>, Box<[u8]>>;

/// The accumulators of one partition of a store.
#[derive(Debug, Default)]
pub struct StatePartition {
    entries: RwLock<Entries>,
}

impl StatePartition {
    /// Calls `found` with the accumulator of each key in turn, under one lock.
    pub fn look_up<'k>(&self, keys: impl Iterator<Item = &'k [u8]>, mut found: impl FnMut(Option<&[u8]>)) {
        let entries = self.entries.read();
        for key in keys {
            found(entries.get(key).map(AsRef::as_ref));
        }
    }

    /// The accumulator of one key.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.entries.read().get(key).map(|accumulator| accumulator.to_vec())
    }

    /// Up to `max` keys that begin with `prefix`, in no particular order.
    pub fn scan(&self, prefix: &[u8], max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries = self.entries.read();
        let matching = entries.iter().filter(|(key, _)| key.starts_with(prefix));
        matching.take(max).map(|(key, accumulator)| (key.to_vec(), accumulator.to_vec())).collect()
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.entries.read().len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn apply(&self, keys: &Column, accumulators: &Column) {
        let mut entries = self.entries.write();
        for (key, accumulator) in keys.iter().zip(accumulators.iter()) {
            let Some(key) = key else { continue };
            match accumulator {
                None => {
                    entries.remove(key);
                }
                Some(new) => match entries.get_mut(key) {
                    // The usual accumulator keeps its size: no allocation.
                    Some(old) if old.len() == new.len() => old.copy_from_slice(new),
                    Some(old) => *old = new.into(),
                    None => {
                        entries.insert(key.into(), new.into());
                    }
                },
            }
        }
    }
}

/// The partitions of one store, by number.
type Partitions = BTreeMap<u32, Arc<StatePartition>>;

/// Every store's committed accumulators.
#[derive(Debug, Default)]
pub struct StateIndex {
    stores: RwLock<HashMap<Arc<str>, Partitions>>,
}

impl StateIndex {
    /// One partition of a store; made empty where it was not.
    pub fn partition(&self, store: &str, partition: u32) -> Arc<StatePartition> {
        if let Some(found) = self.stores.read().get(store).and_then(|parts| parts.get(&partition)) {
            return found.clone();
        }
        let mut stores = self.stores.write();
        stores.entry(store.into()).or_default().entry(partition).or_default().clone()
    }

    /// The partitions that a store has, by number.
    pub fn partitions(&self, store: &str) -> Vec<(u32, Arc<StatePartition>)> {
        let stores = self.stores.read();
        let partitions = stores.get(store).into_iter().flatten();
        partitions.map(|(number, partition)| (*number, partition.clone())).collect()
    }

    pub(crate) fn apply(&self, change: &StateChange) {
        self.partition(&change.store, change.partition).apply(&change.keys, &change.accumulators);
    }

    pub(crate) fn drop_store(&self, store: &str) {
        self.stores.write().remove(store);
    }
}
