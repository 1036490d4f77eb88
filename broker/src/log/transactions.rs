//! The transactions of one partition as its readers see them: which are open, so that records after their beginnings are not
//! stable yet, and which were aborted, so that nobody who reads committed records sees theirs.
//!
//! The log holds records of all transactions, as in Kafka's format. A control batch marks the end of each. Aborted
//! transactions are also entries of the catalog, in the same commit as their control batches.

use std::collections::{BTreeMap, VecDeque};

use millstream_record::BatchHeader;

use super::producers::Transition;
use crate::hash::HashMap;
use crate::name::ProducerId;
use crate::store::StoreError;
use crate::store::place::{Offset, Place, TopicId};

/// Prefix of the catalog's entries of aborted transactions.
pub(crate) const ABORTED_PREFIX: &str = "aborted/";
/// Prefix of the catalog's entries of partitions that have records of transactions.
pub(crate) const TRANSACTIONAL_PREFIX: &str = "transactional/";

/// An aborted transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// Its producer.
    pub producer_id: ProducerId,
    /// The offset of its first record.
    pub first: Offset,
    /// The offset of its control batch.
    pub last: Offset,
}

/// The transactions of a partition.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// What the committer has accepted and not published yet: offsets of batches with what they do.
    accepted: VecDeque<(Offset, Transition, bool)>,
    open: HashMap<ProducerId, Offset>,
    /// Aborted transactions by the offsets of their control batches.
    aborted: BTreeMap<Offset, Aborted>,
}

impl Transactions {
    /// Notes what an accepted batch at `offset` does. `is_abort` says whether a transaction that ends is aborted. Returns
    /// the transaction if it is aborted and has records.
    pub(super) fn accept(&mut self, offset: Offset, transition: Transition, is_abort: bool) -> Option<Aborted> {
        self.accepted.push_back((offset, transition, is_abort));
        match transition {
            Transition::Ends(producer_id, Some(first)) if is_abort => {
                Some(Aborted { producer_id, first, last: offset })
            }
            _ => None,
        }
    }

    /// Publishes what was accepted before `end`. Returns the last stable offset if the log ends at `end`.
    pub(super) fn publish(&mut self, end: Offset) -> Offset {
        while let Some((offset, transition, is_abort)) = self.accepted.pop_front_if(|(offset, ..)| *offset < end) {
            match transition {
                Transition::Begins(producer_id) => drop(self.open.insert(producer_id, offset)),
                Transition::Ends(producer_id, first) => {
                    self.open.remove(&producer_id);
                    if let Some(first) = first.filter(|_| is_abort) {
                        self.aborted.insert(offset, Aborted { producer_id, first, last: offset });
                    }
                }
            }
        }
        self.stable(end)
    }

    /// Sets the open transactions at start. Returns the last stable offset.
    pub(super) fn restore(&mut self, open: impl Iterator<Item = (ProducerId, Offset)>, end: Offset) -> Offset {
        self.open = open.collect();
        self.stable(end)
    }

    pub(super) fn restore_aborted(&mut self, aborted: Aborted) {
        self.aborted.insert(aborted.last, aborted);
    }

    fn stable(&self, end: Offset) -> Offset {
        self.open.values().min().copied().unwrap_or(end).min(end)
    }

    /// Returns the aborted transactions that have records in a range of offsets, in the order of their control batches.
    pub(super) fn aborted(&self, from: Offset, to: Offset) -> Vec<Aborted> {
        self.aborted.range(from..).map(|(_, aborted)| *aborted).filter(|aborted| aborted.first < to).collect()
    }

    /// Returns the aborted transactions whose control batches are before an offset.
    pub(super) fn aborted_before(&self, offset: Offset) -> Vec<Aborted> {
        self.aborted.range(..offset).map(|(_, aborted)| *aborted).collect()
    }

    /// Forgets the aborted transactions whose control batches are before an offset.
    pub(super) fn forget_before(&mut self, offset: Offset) {
        self.aborted = self.aborted.split_off(&offset);
    }
}

/// Returns whether a batch has records that a reader of committed records must not see.
pub(super) fn is_hidden(header: &BatchHeader, aborted: &[Aborted]) -> bool {
    let is_of = |aborted: &Aborted| {
        aborted.producer_id.get() == header.producer_id
            && (aborted.first.get()..=aborted.last.get()).contains(&header.base_offset)
    };
    header.is_control || (header.is_transactional && aborted.iter().any(is_of))
}

/// Returns the key of the catalog's entry of an aborted transaction.
pub(crate) fn aborted_key((topic, partition): Place, last: Offset) -> String {
    format!("{ABORTED_PREFIX}{}/{partition}/{last}", topic.0)
}

/// Returns the value of the catalog's entry of an aborted transaction.
pub(crate) fn aborted_value(aborted: &Aborted) -> Vec<u8> {
    format!("{},{}", aborted.producer_id, aborted.first).into_bytes()
}

/// Reads the catalog's entry of an aborted transaction.
pub(crate) fn read_aborted(key: &str, value: &[u8]) -> Result<(Place, Aborted), StoreError> {
    let read = || {
        let mut place = key.strip_prefix(ABORTED_PREFIX)?.split('/');
        let topic = place.next()?.parse().ok()?;
        let partition = place.next()?.parse().ok()?;
        let last = place.next()?.parse().ok().and_then(Offset::new)?;
        let (id, first) = std::str::from_utf8(value).ok()?.split_once(',')?;
        let producer_id = id.parse().ok().and_then(ProducerId::new)?;
        let first = first.parse().ok().and_then(Offset::new)?;
        Some(((TopicId(topic), partition), Aborted { producer_id, first, last }))
    };
    read().ok_or_else(|| StoreError::Corrupt {
        what: format!("catalog entry {key:?}"),
        reason: format!("{value:?} is not an aborted transaction"),
    })
}

/// Returns the key of the catalog's entry of a partition that has records of transactions.
pub(crate) fn transactional_key((topic, partition): Place) -> String {
    format!("{TRANSACTIONAL_PREFIX}{}/{partition}", topic.0)
}

/// Reads the catalog's entry of a partition that has records of transactions.
pub(crate) fn read_transactional(key: &str) -> Result<Place, StoreError> {
    let read = || {
        let (topic, partition) = key.strip_prefix(TRANSACTIONAL_PREFIX)?.split_once('/')?;
        Some((TopicId(topic.parse().ok()?), partition.parse().ok()?))
    };
    read().ok_or_else(|| StoreError::Corrupt {
        what: format!("catalog entry {key:?}"),
        reason: "it is not about a partition".to_owned(),
    })
}
