//! Map: none, one or many outputs a record.

use millstream_record::{Column, Columns};

use super::halving::halve;
use super::{Outcome, StageError, failed_records};
use crate::host::{Guest, Mapped};

/// Runs a map over a batch.
///
/// # Errors
/// [`StageError`] where the stage can't go on.
pub fn run(guest: &mut Guest, input: &Columns) -> Result<Outcome, StageError> {
    let mut output = Columns::default();
    let failures = halve(input.len(), |part| {
        if part.len() == input.len() {
            let mut mapped = guest.map(input)?;
            let failures = std::mem::take(&mut mapped.failures);
            output = assemble(input, mapped);
            Ok(failures)
        } else {
            let input = input.slice(part);
            let mut mapped = guest.map(&input)?;
            let failures = std::mem::take(&mut mapped.failures);
            output.extend(&assemble(&input, mapped));
            Ok(failures)
        }
    })?;
    let failed = failed_records(input, &failures);
    Ok(Outcome { output, failures, failed })
}

/// The outputs with their sources' columns where the map left its own out.
fn assemble(input: &Columns, mapped: Mapped) -> Columns {
    let sources = &mapped.sources;
    // The usual map: one output a record.
    let same = sources.len() == input.len() && sources.iter().enumerate().all(|(at, &source)| at == source as usize);
    let of = |column: &[i64]| -> Vec<i64> {
        if same { column.to_vec() } else { sources.iter().map(|&source| column[source as usize]).collect() }
    };
    let column_of = |column: &Column| if same { column.clone() } else { column.gather(sources) };
    Columns {
        offsets: of(&input.offsets),
        timestamps_ms: mapped.timestamps_ms.unwrap_or_else(|| of(&input.timestamps_ms)),
        keys: mapped.keys.unwrap_or_else(|| column_of(&input.keys)),
        values: mapped.values.unwrap_or_else(|| column_of(&input.values)),
        headers: mapped
            .headers
            .unwrap_or_else(|| if same { input.headers.clone() } else { input.gather_headers(sources) }),
    }
}
