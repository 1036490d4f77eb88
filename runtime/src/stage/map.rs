//! Map: none, one or many outputs a record.

use millstream_record::Columns;

use super::halving::halve;
use super::{Outcome, StageError, failed_records};
use crate::host::{Guest, Mapped};

/// Runs a map over a batch.
///
/// # Errors
/// [`StageError`] where the stage can't go on.
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

/// The outputs with their sources' columns where the map left its own out.
pub(crate) fn assemble(input: Columns, mapped: Mapped) -> Columns {
    let sources = &mapped.sources;
    // The usual map: one output a record. What it leaves out is taken over as it is.
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
