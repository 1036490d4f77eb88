//! Filter: one verdict a record.

use millstream_record::Columns;

use super::halving::halve;
use super::{Outcome, StageError, failed_records};
use crate::host::Guest;

/// Runs a filter over a batch.
///
/// # Errors
/// [`StageError`] where the stage can't go on.
pub fn run(guest: &mut Guest, input: Columns) -> Result<Outcome, StageError> {
    let mut verdicts: Vec<u8> = Vec::new();
    let failures = halve(input.len(), |part| {
        // Parts come in order: one that was skipped was a record that failed alone.
        verdicts.resize(part.start, 0);
        let filtered = if part.len() == input.len() { guest.filter(&input) } else { guest.filter(&input.slice(part)) }?;
        if verdicts.is_empty() {
            verdicts = filtered.verdicts;
        } else {
            verdicts.extend_from_slice(&filtered.verdicts);
        }
        Ok(filtered.failures)
    })?;
    verdicts.resize(input.len(), 0);
    let failed = failed_records(&input, &failures);
    let output = if verdicts.contains(&0) { input.select(&verdicts) } else { input };
    Ok(Outcome { output, failures, failed })
}
