//! Runs a stage on a batch, one record at a time.

use crate::aggregate::Aggregate;
use crate::batch::{Batch, Column};
use crate::error::Result;
use crate::output::{Mapped, Output};
use crate::record::Record;

/// Index and reason of each failure.
type Failures = Vec<(u32, String)>;

#[derive(Debug)]
pub struct Filtered {
    pub verdicts: Vec<u8>,
    pub failures: Failures,
}

const DROP: u8 = 0;
const KEEP: u8 = 1;
const FAILED: u8 = 2;

pub fn run_filter(batch: &Batch, mut filter: impl FnMut(&Record<'_>) -> Result<bool>) -> Filtered {
    let mut verdicts = Vec::with_capacity(batch.offsets.len());
    let mut failures = Vec::new();
    for (index, record) in batch.records().enumerate() {
        verdicts.push(match filter(&record) {
            Ok(true) => KEEP,
            Ok(false) => DROP,
            Err(error) => {
                failures.push((index as u32, error.into_reason()));
                FAILED
            }
        });
    }
    Filtered { verdicts, failures }
}

pub fn run_map<'b>(batch: &'b Batch, mut map: impl FnMut(&Record<'b>, &mut Output<'b>) -> Result<()>) -> Mapped {
    let mut out = Output::new(batch);
    for (index, record) in batch.records().enumerate() {
        out.begin(index as u32, &record);
        let mark = out.mark();
        if let Err(error) = map(&record, &mut out) {
            out.fail(&mark, error.into_reason());
        }
    }
    out.finish()
}

#[derive(Debug)]
pub struct Added {
    pub accumulators: Column,
    pub failures: Failures,
}

/// An accumulator during `run_add`.
struct Fold<A> {
    accumulator: A,
    /// The accumulator's encoding before the record `since`. If this is `None`, it is the one that the host sent.
    encoded: Option<Vec<u8>>,
    since: usize,
}

pub fn run_add<S: Aggregate>(stage: &S, batch: &Batch, groups: &[u32], accumulators: &Column) -> Added {
    let sent: Vec<Option<&[u8]>> = accumulators.iter().collect();
    let mut folds: Vec<Fold<S::Accumulator>> =
        sent.iter().map(|encoded| Fold { accumulator: decode::<S>(*encoded), encoded: None, since: 0 }).collect();
    let mut failures = Vec::new();
    for (index, (record, &group)) in batch.records().zip(groups).enumerate() {
        let fold = &mut folds[group as usize];
        if let Err(error) = stage.add(&mut fold.accumulator, &record) {
            failures.push((index as u32, error.into_reason()));
            undo(stage, fold, sent[group as usize], batch, groups, index);
        }
    }
    let mut out =
        Column { lengths: Vec::with_capacity(folds.len()), bytes: Vec::with_capacity(accumulators.bytes.len()) };
    for fold in &folds {
        encode::<S>(&fold.accumulator, &mut out);
    }
    Added { accumulators: out, failures }
}

/// Resets the accumulator to its state before record `index`: the records since the last failure are added again to the
/// state at that failure.
fn undo<S: Aggregate>(
    stage: &S,
    fold: &mut Fold<S::Accumulator>,
    sent: Option<&[u8]>,
    batch: &Batch,
    groups: &[u32],
    index: usize,
) {
    let group = groups[index];
    fold.accumulator = decode::<S>(fold.encoded.as_deref().or(sent));
    let again = batch.records().zip(groups).take(index).skip(fold.since).filter(|(_, of)| **of == group);
    for (record, _) in again {
        // These records were added before without an error, in the same order.
        if let Err(error) = stage.add(&mut fold.accumulator, &record) {
            panic!("add is not a pure function: a record that was added before fails when it is added again: {error}");
        }
    }
    let mut encoded = Column::default();
    encode::<S>(&fold.accumulator, &mut encoded);
    fold.encoded = Some(encoded.bytes);
    fold.since = index + 1;
}

pub fn run_merge<S: Aggregate>(stage: &S, left: &Column, right: &Column) -> Column {
    let mut out = Column::default();
    for (left, right) in left.iter().zip(right.iter()) {
        let mut accumulator = decode::<S>(left);
        if let Err(error) = stage.merge(&mut accumulator, decode::<S>(right)) {
            panic!("two accumulators cannot be merged: {error}");
        }
        encode::<S>(&accumulator, &mut out);
    }
    out
}

#[derive(Debug)]
pub struct Finished {
    pub values: Column,
    pub failures: Failures,
}

pub fn run_finish<S: Aggregate>(stage: &S, keys: &Column, accumulators: &Column) -> Finished {
    let mut values = Column::default();
    let mut failures = Vec::new();
    for (index, (key, accumulator)) in keys.iter().zip(accumulators.iter()).enumerate() {
        match stage.finish(key.unwrap_or_default(), &decode::<S>(accumulator)) {
            Ok(value) => values.push(value.0.as_deref()),
            Err(error) => {
                failures.push((index as u32, error.into_reason()));
                values.push(None);
            }
        }
    }
    Finished { values, failures }
}

fn decode<S: Aggregate>(encoded: Option<&[u8]>) -> S::Accumulator {
    let Some(encoded) = encoded else { return S::Accumulator::default() };
    match postcard::from_bytes(encoded) {
        Ok(accumulator) => accumulator,
        Err(error) => panic!(
            "the stored accumulator does not have this module's type ({error}): after a change of the \
             type, rename the stage so that it starts with empty state"
        ),
    }
}

fn encode<S: Aggregate>(accumulator: &S::Accumulator, column: &mut Column) {
    let encoded = column.push_with(|bytes| postcard::to_io(accumulator, bytes).map(drop));
    if let Err(error) = encoded {
        panic!("the accumulator cannot be encoded: {error}");
    }
}
