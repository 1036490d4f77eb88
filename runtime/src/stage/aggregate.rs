//! The aggregate stage: folds records by key. The host groups the records and keeps the accumulators. A batch emits one
//! update for each key.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use millstream_broker::hash::SeededState;
use millstream_record::{Column, ColumnReader, Columns};

use super::halving::halve;
use super::{Outcome, StageError, failed_records};
use crate::failure::Failure;
use crate::host::{CallError, Guest};

const NO_KEY: &str =
    "an aggregate needs a key, and the record has none: add one with an earlier map, or produce it with a key";

/// The groups of a batch: one for each key, numbered in order of first appearance.
#[derive(Debug, Default)]
pub struct Groups {
    /// The distinct keys.
    pub keys: Column,
    starts: Vec<u32>,
    table: HashTable<u32>,
    hasher: SeededState,
    hashes: Vec<u64>,
}

impl Groups {
    /// Creates groups with the hasher of their task, so that hashes within a task are comparable.
    pub fn new(hasher: SeededState) -> Self {
        Self { hasher, ..Self::default() }
    }

    /// Returns the number of groups.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Returns whether there are no groups.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Returns the hash of the key of group `index`.
    pub fn hash(&self, index: usize) -> u64 {
        self.hashes[index]
    }

    /// Returns the key of group `index`.
    pub fn key(&self, index: usize) -> &[u8] {
        let start = self.starts[index] as usize;
        &self.keys.bytes[start..start + self.keys.lengths[index] as usize]
    }

    /// Returns the group of `key`, whose hash is given.
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.table.find(hash, |&group| self.key(group as usize) == key).map(|&group| group as usize)
    }

    /// Returns the group of `key`, and creates it if the key is new.
    pub fn group_of(&mut self, key: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(key);
        if let Some(group) = self.find(hash, key) {
            return group as u32;
        }
        let group = self.hashes.len() as u32;
        self.starts.push(self.keys.bytes.len() as u32);
        self.keys.push(Some(key));
        self.hashes.push(hash);
        let hashes = &self.hashes;
        self.table.insert_unique(hash, group, |&group| hashes[group as usize]);
        group
    }
}

/// Lookup of a task's accumulators.
pub trait Accumulators {
    /// Appends to `found` the accumulator of each group's key, or null if there is none.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn look_up(&self, groups: &Groups, found: &mut Column) -> Result<(), String>;
}

/// The result of an aggregate for a batch: updates, failures, and the accumulators to store.
#[derive(Debug)]
pub struct Aggregated {
    /// One update for each key that has a record that did not fail, in order of first appearance. Its offset is the
    /// last, and its timestamp the largest, of the key's records in the batch.
    pub outcome: Outcome,
    /// The keys of the batch.
    pub groups: Groups,
    /// The accumulator of each key before the batch; null if there was none.
    pub before: Column,
    /// The accumulator of each key after the batch; null removes it.
    pub accumulators: Column,
}

/// Runs an aggregate on a batch.
///
/// # Errors
/// [`StageError`] if the stage cannot continue.
pub fn run(
    guest: &mut Guest,
    input: &Columns,
    state: &dyn Accumulators,
    hasher: &SeededState,
) -> Result<Aggregated, StageError> {
    let mut groups = Groups::new(hasher.clone());
    let mut failures = Vec::new();
    let mut of_record = Vec::with_capacity(input.len());
    for (index, key) in input.keys.iter().enumerate() {
        match key {
            Some(key) => of_record.push(groups.group_of(key)),
            None => failures.push(Failure { index: index as u32, reason: NO_KEY.to_owned() }),
        }
    }
    if failures.is_empty() {
        return fold(guest, input, groups, &of_record, state);
    }
    // Records without a key are left out of the call; the indices of failures are corrected afterwards.
    let mut mask = vec![1; input.len()];
    failures.iter().for_each(|failure| mask[failure.index as usize] = 0);
    let kept: Vec<u32> = (0..input.len() as u32).filter(|index| mask[*index as usize] == 1).collect();
    let mut folded = fold(guest, &input.select(&mask), groups, &of_record, state)?;
    let outcome = &mut folded.outcome;
    outcome.failures.iter_mut().for_each(|failure| failure.index = kept[failure.index as usize]);
    outcome.failures.append(&mut failures);
    outcome.failures.sort_by_key(|failure| failure.index);
    outcome.failed = failed_records(input, &outcome.failures);
    Ok(folded)
}

fn fold(
    guest: &mut Guest,
    input: &Columns,
    groups: Groups,
    of_record: &[u32],
    state: &dyn Accumulators,
) -> Result<Aggregated, StageError> {
    let mut before = Column::default();
    state.look_up(&groups, &mut before).map_err(StageError::State)?;
    let mut whole = None;
    let mut parts: Option<Parts> = None;
    let failures = halve(input.len(), |part| {
        if part.len() == input.len() {
            let evaluated = evaluate(guest, input, of_record, &groups.keys, &before)?;
            whole = Some((evaluated.accumulators, evaluated.values));
            return Ok(evaluated.failures);
        }
        let parts = parts.get_or_insert_with(|| Parts::new(&before));
        parts.add(guest, input, part, of_record, &groups)
    })?;
    let failed = failed_records(input, &failures);
    let (accumulators, values) = match (whole, parts) {
        (Some(whole), _) => whole,
        (None, Some(parts)) => parts.finish(),
        (None, None) => Default::default(),
    };
    let output = updates(input, of_record, &groups, values, &failures);
    Ok(Aggregated { outcome: Outcome { output, failures, failed }, groups, before, accumulators })
}

struct Evaluated {
    accumulators: Column,
    values: Column,
    failures: Vec<(u32, String)>,
    /// For each group whether it has a record that did not fail; `None` if all groups have.
    live: Option<Vec<bool>>,
}

/// Evaluates a batch once: add, then finish.
fn evaluate(
    guest: &mut Guest,
    input: &Columns,
    of_record: &[u32],
    keys: &Column,
    before: &Column,
) -> Result<Evaluated, CallError> {
    let added = guest.add(input, of_record, before)?;
    let finished = guest.finish(keys, &added.accumulators)?;
    let mut evaluated =
        Evaluated { accumulators: added.accumulators, values: finished.values, failures: added.failures, live: None };
    if evaluated.failures.is_empty() && finished.failures.is_empty() {
        return Ok(evaluated);
    }
    let live = live_groups(of_record, keys.len(), &evaluated.failures);
    // A group in which all records failed has nothing to finish, so a failure of `finish` for it is ignored.
    if let Some((_, reason)) = finished.failures.into_iter().find(|(group, _)| live[*group as usize]) {
        return Err(CallError::Finish { reason });
    }
    if live.contains(&false) {
        let (before, after) = (ColumnReader::new(before), ColumnReader::new(&evaluated.accumulators));
        let entry = |group: usize| if live[group] { after.get(group) } else { before.get(group) };
        evaluated.accumulators = (0..keys.len()).map(entry).collect();
        evaluated.live = Some(live);
    }
    Ok(evaluated)
}

/// Returns, for each group, whether it has a record that did not fail.
fn live_groups(of_record: &[u32], groups: usize, failures: &[(u32, String)]) -> Vec<bool> {
    let mut live = vec![false; groups];
    let mut failed = failures.iter().map(|(index, _)| *index as usize).peekable();
    for (index, &group) in of_record.iter().enumerate() {
        live[group as usize] |= failed.next_if_eq(&index).is_none();
    }
    live
}

/// The accumulators while a batch is evaluated in parts. Each part sees the results of the parts before it.
struct Parts {
    accumulators: Vec<Option<Vec<u8>>>,
    values: Vec<Option<Vec<u8>>>,
}

impl Parts {
    fn new(before: &Column) -> Self {
        let accumulators: Vec<_> = before.iter().map(|entry| entry.map(<[u8]>::to_vec)).collect();
        Self { values: vec![None; accumulators.len()], accumulators }
    }

    fn add(
        &mut self,
        guest: &mut Guest,
        input: &Columns,
        part: std::ops::Range<usize>,
        of_record: &[u32],
        groups: &Groups,
    ) -> Result<Vec<(u32, String)>, CallError> {
        // Numbers the groups of the part anew, in order of appearance.
        let mut here: Vec<u32> = Vec::new();
        let mut number = vec![u32::MAX; self.accumulators.len()];
        let mut renumbered = Vec::with_capacity(part.len());
        for &group in &of_record[part.clone()] {
            let slot = &mut number[group as usize];
            if *slot == u32::MAX {
                *slot = here.len() as u32;
                here.push(group);
            }
            renumbered.push(*slot);
        }
        let keys = groups.keys.gather(&here);
        let before: Column = here.iter().map(|&group| self.accumulators[group as usize].as_deref()).collect();
        let evaluated = evaluate(guest, &input.slice(part), &renumbered, &keys, &before)?;
        let (accumulators, values) = (ColumnReader::new(&evaluated.accumulators), ColumnReader::new(&evaluated.values));
        for (at, &group) in here.iter().enumerate() {
            if evaluated.live.as_ref().is_some_and(|live| !live[at]) {
                continue;
            }
            let group = group as usize;
            self.accumulators[group] = accumulators.get(at).map(<[u8]>::to_vec);
            self.values[group] = values.get(at).map(<[u8]>::to_vec);
        }
        Ok(evaluated.failures)
    }

    /// Returns accumulators and values.
    fn finish(self) -> (Column, Column) {
        let column = |entries: &[Option<Vec<u8>>]| entries.iter().map(Option::as_deref).collect();
        (column(&self.accumulators), column(&self.values))
    }
}

/// Returns one output for each key that has a record that did not fail.
fn updates(input: &Columns, of_record: &[u32], groups: &Groups, values: Column, failures: &[Failure]) -> Columns {
    let mut offsets = vec![-1; groups.len()];
    let mut timestamps_ms = vec![i64::MIN; groups.len()];
    let mut failed = failures.iter().map(|failure| failure.index as usize).peekable();
    for (index, &group) in of_record.iter().enumerate() {
        if failed.next_if_eq(&index).is_some() {
            continue;
        }
        let group = group as usize;
        offsets[group] = input.offsets[index];
        timestamps_ms[group] = timestamps_ms[group].max(input.timestamps_ms[index]);
    }
    let kept: Vec<u8> = offsets.iter().map(|offset| u8::from(*offset >= 0)).collect();
    let all = Columns { offsets, timestamps_ms, keys: groups.keys.clone(), values, ..Columns::default() };
    if kept.contains(&0) { all.select(&kept) } else { all }
}
