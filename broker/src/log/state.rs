//! The accumulators of aggregate stages.
//!
//! A store is the state of one stage, named `pipeline/stage`. It is divided by the partition of the task that owns it,
//! and each partition into namespaces with separate keys. Only committed changes are here. The changes in the journal
//! are in memory in two layers. Commits change the `young` layer. When the sealer begins, it becomes the `old` layer,
//! which is kept until the tables contain all of it. A look-up checks young, then old, and then the tables.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::hash::{HashMap, HashSet};
use millstream_record::{Column, ColumnReader};
use parking_lot::RwLock;

use crate::store::{Count, KeyRange, Namespace, StateChange, StatePlace, StoreError, Tables};

/// A key and its accumulator.
pub type KeyAndAccumulator = (Vec<u8>, Vec<u8>);

/// Accumulators by key, with `None` for a removed key.
type Entries = HashMap<Box<[u8]>, Option<Box<[u8]>>>;

/// The changes of a part of the journal.
#[derive(Debug, Default)]
struct Layer {
    entries: Entries,
    /// Whether the store was dropped before these changes, so that older layers and the tables are hidden.
    hides_older: bool,
    /// Keys that were removed before these changes and not set since.
    removed: Removed,
}

/// Disjoint ranges of keys: the end of each range by its start, with `None` if it has no end.
#[derive(Clone, Debug, Default)]
struct Removed(BTreeMap<Box<[u8]>, Option<Box<[u8]>>>);

impl Removed {
    /// Adds a range. Overlapping and adjacent ranges are merged.
    fn add(&mut self, KeyRange { from, to }: &KeyRange) {
        if to.as_ref().is_some_and(|to| to <= from) {
            return;
        }
        let (mut from, mut to): (Box<[u8]>, Option<Box<[u8]>>) =
            (from.as_slice().into(), to.as_deref().map(Into::into));
        let reaches = |end: &Option<Box<[u8]>>, key: &[u8]| end.as_deref().is_none_or(|end| key <= end);
        loop {
            // The last range that starts no later than this one ends.
            let met = match &to {
                Some(to) => self.0.range::<[u8], _>((Unbounded, Included(&**to))).next_back(),
                None => self.0.iter().next_back(),
            };
            let Some((begin, end)) = met.filter(|(begin, end)| **begin >= from || reaches(end, &from)) else { break };
            let (begin, end) = (begin.clone(), end.clone());
            self.0.remove(&begin);
            to = to.zip(end).map(|(to, end)| to.max(end));
            from = from.min(begin);
        }
        self.0.insert(from, to);
    }

    fn has(&self, key: &[u8]) -> bool {
        let before = self.0.range::<[u8], _>((Unbounded, Included(key))).next_back();
        before.is_some_and(|(_, end)| end.as_deref().is_none_or(|end| key < end))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A namespace of a partition of a store. By default it is the one of the accumulators.
pub struct StatePartition {
    store: Arc<str>,
    number: u32,
    namespace: Namespace,
    tables: Arc<Tables>,
    young: RwLock<Layer>,
    old: RwLock<Option<Arc<Layer>>>,
    keys: AtomicI64,
    /// The number of keys that was read from the tables at start includes the journal's changes before this sequence
    /// number.
    counted_to: AtomicU64,
}

impl fmt::Debug for StatePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatePartition({}, {})", self.store, self.number)
    }
}

/// The result of looking up a key in a layer.
enum Seen<'a> {
    Here(Option<&'a [u8]>),
    Older,
}

impl Layer {
    fn get(&self, key: &[u8]) -> Seen<'_> {
        match self.entries.get(key) {
            Some(entry) => Seen::Here(entry.as_deref()),
            None if self.hides_older || self.removed.has(key) => Seen::Here(None),
            None => Seen::Older,
        }
    }

    fn has(&self, key: &[u8]) -> bool {
        matches!(self.get(key), Seen::Here(_))
    }
}

impl StatePartition {
    fn new(store: Arc<str>, number: u32, namespace: Namespace, tables: Arc<Tables>) -> Self {
        Self {
            store,
            number,
            namespace,
            tables,
            young: RwLock::default(),
            old: RwLock::default(),
            keys: AtomicI64::new(0),
            counted_to: AtomicU64::new(0),
        }
    }

    fn place(&self) -> StatePlace<'_> {
        StatePlace { store: &self.store, partition: self.number, namespace: self.namespace }
    }

    /// Calls `found` with the accumulator of each key, in the order of `keys`. Blocks on disk reads for keys that are
    /// not in memory.
    ///
    /// # Errors
    /// An I/O or database error.
    pub fn look_up<'k>(
        &self,
        keys: impl Iterator<Item = &'k [u8]>,
        mut found: impl FnMut(Option<&[u8]>),
    ) -> Result<(), StoreError> {
        let mut in_memory = Column::default();
        let mut older: Vec<(usize, &'k [u8])> = Vec::new();
        {
            let young = self.young.read();
            // The old layer is read after the young one, so that changes that move from young to old meanwhile are
            // found here.
            let old = self.old.read().clone();
            for (index, key) in keys.enumerate() {
                let mut seen = young.get(key);
                if let (Seen::Older, Some(old)) = (&seen, &old) {
                    seen = old.get(key);
                }
                match seen {
                    Seen::Here(accumulator) => in_memory.push(accumulator),
                    Seen::Older => {
                        older.push((index, key));
                        in_memory.push(None);
                    }
                }
            }
        }
        let mut stored = Column::default();
        let older_keys = older.iter().map(|(_, key)| *key);
        if !older.is_empty() {
            self.tables.state_look_up(self.place(), older_keys, |entry| stored.push(entry))?;
        }
        let count = in_memory.len();
        let (in_memory, stored) = (ColumnReader::new(&in_memory), ColumnReader::new(&stored));
        let mut next_older = older.iter().enumerate().map(|(at, (index, _))| (*index, at)).peekable();
        for index in 0..count {
            match next_older.next_if(|(of, _)| *of == index) {
                Some((_, at)) => found(stored.get(at)),
                None => found(in_memory.get(index)),
            }
        }
        Ok(())
    }

    /// Returns the accumulator of one key.
    ///
    /// # Errors
    /// An I/O or database error.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut found = None;
        self.look_up(std::iter::once(key), |entry| found = entry.map(<[u8]>::to_vec))?;
        Ok(found)
    }

    /// Returns up to `max` keys that start with `prefix`, in no particular order. Each comes with the accumulator that
    /// it had when the scan began or with a newer one. A key that is added or removed meanwhile may be included or not.
    ///
    /// # Errors
    /// An I/O or database error.
    pub fn scan(&self, prefix: &[u8], max: usize) -> Result<Vec<KeyAndAccumulator>, StoreError> {
        let mut found = Vec::new();
        let mut hides_tables = false;
        // The keys in memory when the scan began. If the sealer moves some to the tables meanwhile, they are no longer
        // in any layer, although the tables may have been read in their earlier state.
        let mut young_keys: HashSet<Box<[u8]>> = HashSet::default();
        let mut young_removed = Removed::default();
        let old = {
            let young = self.young.read();
            let old = self.old.read().clone();
            young_keys.extend(young.entries.keys().filter(|key| key.starts_with(prefix)).cloned());
            young_removed.clone_from(&young.removed);
            let layers: Vec<&Layer> = std::iter::once(&*young).chain(old.as_deref()).collect();
            for (depth, layer) in layers.iter().enumerate() {
                for (key, entry) in layer.entries.iter().filter(|(key, _)| key.starts_with(prefix)) {
                    if found.len() == max {
                        return Ok(found);
                    }
                    let hidden = layers[..depth].iter().any(|newer| matches!(newer.get(key), Seen::Here(_)));
                    if let (false, Some(accumulator)) = (hidden, entry) {
                        found.push((key.to_vec(), accumulator.to_vec()));
                    }
                }
                hides_tables |= layer.hides_older;
            }
            old
        };
        if found.len() == max || hides_tables {
            return Ok(found);
        }
        // The locks are released here, so that commits continue during the scan.
        self.tables.state_scan(self.place(), prefix, |key, accumulator| {
            let was_young = young_keys.contains(key) || young_removed.has(key);
            let was_in_memory = was_young || old.as_deref().is_some_and(|old| old.has(key));
            if !was_in_memory {
                found.push((key.to_vec(), accumulator.to_vec()));
            }
            found.len() < max
        })?;
        Ok(found)
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        usize::try_from(self.keys.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Returns whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn apply(&self, StateChange { removed, keys, accumulators, added, .. }: &StateChange, seq: u64) {
        if self.counts(seq) {
            self.keys.fetch_add(*added, Ordering::Relaxed);
        }
        let mut young = self.young.write();
        if !removed.is_empty() {
            let mut ranges = Removed::default();
            removed.iter().for_each(|range| ranges.add(range));
            young.entries.retain(|key, _| !ranges.has(key));
            removed.iter().for_each(|range| young.removed.add(range));
        }
        let entries = &mut young.entries;
        for (key, accumulator) in keys.iter().zip(accumulators.iter()) {
            let Some(key) = key else { continue };
            match (entries.get_mut(key), accumulator) {
                // Accumulators usually keep their size, in which case nothing is allocated.
                (Some(Some(old)), Some(new)) if old.len() == new.len() => old.copy_from_slice(new),
                (Some(entry), new) => *entry = new.map(Into::into),
                (None, new) => {
                    entries.insert(key.into(), new.map(Into::into));
                }
            }
        }
    }

    fn clear(&self, seq: u64) {
        let mut young = self.young.write();
        young.entries.clear();
        young.removed = Removed::default();
        young.hides_older = true;
        if self.counts(seq) {
            self.keys.store(0, Ordering::Relaxed);
        }
    }

    /// Returns whether a change at this sequence number has not been counted yet.
    fn counts(&self, seq: u64) -> bool {
        seq >= self.counted_to.load(Ordering::Relaxed)
    }

    /// Makes the young layer the old one.
    fn freeze(&self) -> Arc<Layer> {
        let mut young = self.young.write();
        let frozen = Arc::new(std::mem::take(&mut *young));
        *self.old.write() = Some(frozen.clone());
        frozen
    }
}

/// The namespaces of the partitions of a store.
type Partitions = BTreeMap<(u32, Namespace), Arc<StatePartition>>;

/// The committed accumulators of all stores.
#[derive(Debug)]
pub struct StateIndex {
    tables: Arc<Tables>,
    stores: RwLock<HashMap<Arc<str>, Partitions>>,
}

/// The changes to one partition of a store in the part of the journal that is being sealed.
#[derive(Debug)]
pub(crate) struct Frozen {
    partition: Arc<StatePartition>,
    layer: Arc<Layer>,
    /// Number of keys when it was frozen.
    pub(crate) keys: i64,
}

impl Frozen {
    pub(crate) fn store(&self) -> &str {
        &self.partition.store
    }

    pub(crate) fn place(&self) -> StatePlace<'_> {
        self.partition.place()
    }

    /// Returns the ranges of keys to remove before the changes are applied.
    pub(crate) fn removed(&self) -> impl Iterator<Item = KeyRange> {
        self.layer
            .removed
            .0
            .iter()
            .map(|(from, to)| KeyRange { from: from.to_vec(), to: to.as_deref().map(<[u8]>::to_vec) })
    }

    /// Returns whether the store was dropped, so that its older keys must be removed from the tables.
    pub(crate) fn drops_older(&self) -> bool {
        self.layer.hides_older
    }

    /// Returns the number of changed keys.
    pub(crate) fn len(&self) -> usize {
        self.layer.entries.len()
    }

    /// Returns the changes, sorted by key.
    pub(crate) fn sorted(&self) -> Vec<(&[u8], Option<&[u8]>)> {
        let mut rows: Vec<_> = self.layer.entries.iter().map(|(key, entry)| (&**key, entry.as_deref())).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows
    }

    /// Releases the old layer once the tables contain all of it.
    pub(crate) fn release(self) {
        *self.partition.old.write() = None;
    }
}

impl StateIndex {
    pub(crate) fn new(tables: Arc<Tables>) -> Self {
        Self { tables, stores: RwLock::default() }
    }

    /// Returns the accumulators of a partition of a store. Creates them empty if there are none.
    pub fn partition(&self, store: &str, partition: u32) -> Arc<StatePartition> {
        self.namespace(store, partition, Namespace::VALUES)
    }

    /// Returns a namespace of a partition of a store. Creates it empty if it does not exist.
    pub fn namespace(&self, store: &str, partition: u32, namespace: Namespace) -> Arc<StatePartition> {
        let key = (partition, namespace);
        if let Some(found) = self.stores.read().get(store).and_then(|parts| parts.get(&key)) {
            return found.clone();
        }
        let mut stores = self.stores.write();
        let store: Arc<str> = store.into();
        let new = || Arc::new(StatePartition::new(store.clone(), partition, namespace, self.tables.clone()));
        stores.entry(store.clone()).or_default().entry(key).or_insert_with(new).clone()
    }

    /// Returns the partitions of a store that have accumulators, sorted by number.
    pub fn partitions(&self, store: &str) -> Vec<(u32, Arc<StatePartition>)> {
        let stores = self.stores.read();
        let partitions = stores.get(store).into_iter().flatten();
        let values = partitions.filter(|((_, of), partition)| *of == Namespace::VALUES && !partition.is_empty());
        values.map(|((number, _), partition)| (*number, partition.clone())).collect()
    }

    /// Sets the number of keys of a partition and the sequence number up to which they are counted, as read from the
    /// tables.
    pub(crate) fn set_count(&self, store: &str, partition: u32, count: Count) {
        let partition = self.partition(store, partition);
        partition.keys.store(count.keys, Ordering::Relaxed);
        partition.counted_to.store(count.counted_to, Ordering::Relaxed);
    }

    /// Makes a change visible whose commit's blob starts at sequence number `seq`.
    pub(crate) fn apply(&self, change: &StateChange, seq: u64) {
        self.namespace(&change.store, change.partition, change.namespace).apply(change, seq);
    }

    /// Empties a store in the same way as [`StateIndex::apply`].
    pub(crate) fn drop_store(&self, store: &str, seq: u64) {
        let stores = self.stores.read();
        stores.get(store).into_iter().flatten().for_each(|(_, partition)| partition.clear(seq));
    }

    /// Returns what has changed since the last call, for the sealer. The committer's thread calls it between two
    /// commits.
    pub(crate) fn freeze(&self) -> Vec<Frozen> {
        let stores = self.stores.read();
        let partitions = stores.values().flat_map(BTreeMap::values);
        let changed = partitions.filter(|partition| {
            let young = partition.young.read();
            young.hides_older || !young.entries.is_empty() || !young.removed.is_empty()
        });
        changed
            .map(|partition| Frozen {
                keys: partition.keys.load(Ordering::Relaxed),
                layer: partition.freeze(),
                partition: partition.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;

    proptest! {
        #![proptest_config(seeded())]

        #[test]
        fn ranges_have_the_keys_that_were_added_to_them(
            ranges in prop::collection::vec((0u8..30, prop::option::of(0u8..30)), 0..10),
        ) {
            let mut removed = Removed::default();
            let mut model = BTreeSet::new();
            for (from, to) in ranges {
                removed.add(&KeyRange { from: vec![from], to: to.map(|to| vec![to]) });
                model.extend(from..to.unwrap_or(31));
            }
            for key in 0u8..31 {
                prop_assert_eq!(removed.has(&[key]), model.contains(&key), "{}", key);
            }
            let ends: Vec<_> = removed.0.iter().collect();
            for pair in ends.windows(2) {
                prop_assert!(pair[0].1.as_ref().is_some_and(|end| end < pair[1].0), "{:?} meet", pair);
            }
        }
    }
}
