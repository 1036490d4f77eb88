//! The filter stage: keeps or drops each record.

use millstream_record::Columns;

use super::halving::halve;
use super::{Outcome, StageError, failed_records};
use crate::host::Guest;

/// Runs a filter on a batch.
///
/// # Errors
/// [`StageError`] if the stage cannot continue.
pub fn run(guest: &mut Guest, input: Columns) -> Result<Outcome, StageError> {
    let mut verdicts: Vec<u8> = Vec::new();
    let failures = halve(input.len(), |part| {
        // Parts come in order. A skipped part is a single record that failed.
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
