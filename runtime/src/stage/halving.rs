//! The search for the records that make a call fail. A trap or an exceeded limit does not say which record caused it,
//! so the batch is halved, and each half is run with a fresh instance, until the record is alone.

use std::ops::Range;

use super::StageError;
use crate::failure::Failure;
use crate::host::CallError;

/// Maximum number of interrupted calls for one batch. Each takes the whole deadline. With the default of one second,
/// and the 14 halvings that one record in 10,000 takes, this allows for four such records.
const DEADLINES_MAX: u32 = 64;

/// Calls `attempt` with the whole range, and with its halves if that fails for a reason that a record may have caused.
/// `attempt` keeps its own results, and returns failures by their index in its range.
///
/// # Errors
/// [`StageError`] if fewer records do not help.
pub(super) fn halve(
    records: usize,
    mut attempt: impl FnMut(Range<usize>) -> Result<Vec<(u32, String)>, CallError>,
) -> Result<Vec<Failure>, StageError> {
    let mut failures = Vec::new();
    let mut deadlines = 0;
    // The last entry is next: the left half is pushed after the right one.
    let mut pending: Vec<Range<usize>> = Vec::new();
    if records > 0 {
        pending.push(0..records);
    }
    while let Some(part) = pending.pop() {
        let begin = part.start as u32;
        match attempt(part.clone()) {
            Ok(found) => {
                failures.extend(found.into_iter().map(|(index, reason)| Failure { index: begin + index, reason }));
            }
            Err(error) if !error.may_be_a_records() => return Err(StageError::Guest(error)),
            Err(error) => {
                if matches!(error, CallError::Deadline { .. }) {
                    deadlines += 1;
                    if deadlines > DEADLINES_MAX {
                        return Err(StageError::Stuck { calls: deadlines, records });
                    }
                }
                if part.len() == 1 {
                    failures.push(Failure { index: begin, reason: error.to_string() });
                } else {
                    let middle = part.start + part.len() / 2;
                    pending.push(middle..part.end);
                    pending.push(part.start..middle);
                }
            }
        }
    }
    Ok(failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trap() -> CallError {
        CallError::Trap { reason: "boom".into() }
    }

    #[test]
    fn the_records_at_fault_are_found_and_the_others_keep_their_order() {
        for bad in [vec![], vec![0], vec![6], vec![2, 3, 4], (0..7).collect::<Vec<usize>>()] {
            let mut handled = Vec::new();
            let failures = halve(7, |part| {
                if part.clone().any(|index| bad.contains(&index)) {
                    return Err(trap());
                }
                handled.extend(part);
                Ok(vec![])
            })
            .unwrap();
            let found: Vec<usize> = failures.iter().map(|failure| failure.index as usize).collect();
            assert_eq!(found, bad);
            assert_eq!(handled, (0..7).filter(|index| !bad.contains(index)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_no_record_can_be_blamed_for_ends_the_search() {
        let error = CallError::Configure { reason: "no".into() };
        assert!(matches!(halve(3, |_| Err(error.clone())), Err(StageError::Guest(_))));
    }

    #[test]
    fn a_search_with_too_many_deadlines_ends() {
        let error = CallError::Deadline { call_deadline_ms: 1 };
        let mut calls = 0;
        let result = halve(100_000, |_| {
            calls += 1;
            Err(error.clone())
        });
        assert!(matches!(result, Err(StageError::Stuck { .. })));
        assert_eq!(calls, DEADLINES_MAX + 1);
    }
}
