//! The map stage: turns each record into any number of outputs.

use millstream_record::Columns;

use super::halving::halve;
use super::{Outcome, StageError, failed_records};
use crate::host::{Guest, Mapped};

/// Runs a map on a batch.
///
/// # Errors
/// [`StageError`] if the stage cannot continue.
pub fn run(guest: &mut Guest, input: Columns) -> Result<Outcome, StageError> {
    let mut whole = None;
    let mut parts = Columns::default();
    let failures = halve(input.len(), |part| {
        if part.len() == input.len() {
            let mut mapped = guest.map(&input)?;
            let failures = std::mem::take(&mut mapped.failures);
            whole = Some(mapped);
            Ok(failures)
        } else {
            let input = input.slice(part);
            let mut mapped = guest.map(&input)?;
            let failures = std::mem::take(&mut mapped.failures);
            parts.extend(&assemble(input, mapped));
            Ok(failures)
        }
    })?;
    let failed = failed_records(&input, &failures);
    let output = match whole {
        Some(mapped) => assemble(input, mapped),
        None => parts,
    };
    Ok(Outcome { output, failures, failed })
}

/// Returns the outputs. Columns that the map left out are taken from the source records.
pub(crate) fn assemble(input: Columns, mapped: Mapped) -> Columns {
    let sources = &mapped.sources;
    // The common case of one output per record: columns that the map left out are moved from the input.
    if sources.len() == input.len() && sources.iter().enumerate().all(|(at, &source)| at == source as usize) {
        return Columns {
            offsets: input.offsets,
            timestamps_ms: mapped.timestamps_ms.unwrap_or(input.timestamps_ms),
            keys: mapped.keys.unwrap_or(input.keys),
            values: mapped.values.unwrap_or(input.values),
            headers: mapped.headers.unwrap_or(input.headers),
        };
    }
    let of = |column: &[i64]| -> Vec<i64> { sources.iter().map(|&source| column[source as usize]).collect() };
    Columns {
        offsets: of(&input.offsets),
        timestamps_ms: mapped.timestamps_ms.unwrap_or_else(|| of(&input.timestamps_ms)),
        keys: mapped.keys.unwrap_or_else(|| input.keys.gather(sources)),
        values: mapped.values.unwrap_or_else(|| input.values.gather(sources)),
        headers: mapped.headers.unwrap_or_else(|| input.gather_headers(sources)),
    }
}
