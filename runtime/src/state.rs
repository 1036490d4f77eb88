//! A task's view of its accumulators: the committed ones, overlaid with the changes of its steps that are not yet on
//! disk.

use std::collections::VecDeque;
use std::sync::Arc;

use millstream_broker::hash::SeededState;
use millstream_broker::log::state::StatePartition;
use millstream_broker::store::StateChange;
use millstream_record::{Column, ColumnReader};

use crate::stage::aggregate::{Accumulators, Groups};

/// The accumulators of one stage in one partition, as the task's next step sees them.
#[derive(Debug)]
pub struct TaskState {
    store: Arc<str>,
    partition: u32,
    committed: Arc<StatePartition>,
    /// Changes of steps that are queued and not yet known to be on disk, with the number of each step, oldest first.
    in_flight: VecDeque<(u64, Delta)>,
    hasher: SeededState,
}

#[derive(Debug)]
struct Delta {
    groups: Groups,
    accumulators: Column,
    starts: Vec<u32>,
}

impl Delta {
    fn new(groups: Groups, accumulators: Column) -> Self {
        let mut at = 0;
        let starts = accumulators.lengths.iter().map(|length| {
            let start = at;
            at += (*length).max(0) as u32;
            start
        });
        Self { starts: starts.collect(), groups, accumulators }
    }

    fn get(&self, group: usize) -> Option<&[u8]> {
        let len = usize::try_from(self.accumulators.lengths[group]).ok()?;
        let start = self.starts[group] as usize;
        Some(&self.accumulators.bytes[start..start + len])
    }
}

impl TaskState {
    /// Creates the state of `store` in `partition`, with nothing in flight.
    pub fn new(store: Arc<str>, partition: u32, committed: Arc<StatePartition>) -> Self {
        Self { store, partition, committed, in_flight: VecDeque::new(), hasher: SeededState::default() }
    }

    /// Returns the hasher for this task's groups.
    pub fn hasher(&self) -> &SeededState {
        &self.hasher
    }

    /// Records the changes of a step, which the next step sees at once, and returns them for the commit. `before` has
    /// the accumulators of the keys before the step.
    pub fn change(&mut self, step: u64, groups: Groups, before: &Column, accumulators: Column) -> StateChange {
        let present = |column: &Column| column.lengths.iter().filter(|length| **length >= 0).count() as i64;
        let change = StateChange {
            added: present(&accumulators) - present(before),
            store: self.store.clone(),
            partition: self.partition,
            keys: groups.keys.clone(),
            accumulators: accumulators.clone(),
            ..StateChange::default()
        };
        self.in_flight.push_back((step, Delta::new(groups, accumulators)));
        change
    }

    /// Drops the changes of steps up to `step`, which are committed, because the committed state now has them.
    pub fn committed_up_to(&mut self, step: u64) {
        while self.in_flight.front().is_some_and(|(of, _)| *of <= step) {
            self.in_flight.pop_front();
        }
    }

    /// Reverts the changes of a step that will not be committed.
    pub fn take_back(&mut self, step: u64) {
        while self.in_flight.back().is_some_and(|(of, _)| *of >= step) {
            self.in_flight.pop_back();
        }
    }
}

impl Accumulators for TaskState {
    fn look_up(&self, groups: &Groups, found: &mut Column) -> Result<(), String> {
        let all = 0..groups.len();
        if self.in_flight.is_empty() {
            let keys = all.map(|group| groups.key(group));
            return self.committed.look_up(keys, |entry| found.push(entry)).map_err(|error| error.to_string());
        }
        // The newest change of a key wins. Keys without a change are looked up together.
        let newest = |group: usize| {
            let (hash, key) = (groups.hash(group), groups.key(group));
            let mut deltas = self.in_flight.iter().rev();
            deltas.find_map(|(_, delta)| delta.groups.find(hash, key).map(|at| delta.get(at)))
        };
        let changed: Vec<Option<Option<&[u8]>>> = all.map(newest).collect();
        let missing = changed.iter().enumerate().filter(|(_, changed)| changed.is_none());
        let mut committed = Column::default();
        let missing = missing.map(|(group, _)| groups.key(group));
        self.committed.look_up(missing, |entry| committed.push(entry)).map_err(|error| error.to_string())?;
        let committed = ColumnReader::new(&committed);
        let mut next = 0;
        for changed in changed {
            match changed {
                Some(entry) => found.push(entry),
                None => {
                    found.push(committed.get(next));
                    next += 1;
                }
            }
        }
        Ok(())
    }
}
