//! Records that a stage failed on: the failure policies of pipeline files, and dead letters.

use millstream_record::{Columns, ColumnsReader};
use serde::{Deserialize, Serialize};

use crate::host::ModuleHash;

/// What happens to a record that a stage failed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailurePolicy {
    /// The pipeline stops before the record and reports the reason.
    #[default]
    Stop,
    /// The record is dropped.
    Skip,
    /// The record goes to the dead letter topic unchanged, with headers that say where it came from and why it failed.
    DeadLetter,
}

impl FailurePolicy {
    /// Returns the policy's name in pipeline files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Skip => "skip",
            Self::DeadLetter => "dead-letter",
        }
    }
}

/// The failure of one record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Index of the record in the batch.
    pub index: u32,
    /// The reason.
    pub reason: String,
}

/// The origin of dead letters.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterOrigin<'a> {
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// The stage's name.
    pub stage: &'a str,
    /// The stage's module.
    pub module: &'a ModuleHash,
    /// The source topic, which is the repartition topic after a repartition.
    pub topic: &'a str,
    /// The source partition.
    pub partition: u32,
}

/// Returns the failed records, in the same order and unchanged except for the headers `millstream.*`, which are
/// appended and say where each record came from and why it failed.
pub fn dead_letters(failed: &Columns, failures: &[Failure], origin: &DeadLetterOrigin<'_>) -> Columns {
    let reader = ColumnsReader::new(failed);
    let (module, partition) = (origin.module.to_string(), origin.partition.to_string());
    let mut out = Columns::default();
    for (index, failure) in failures.iter().enumerate() {
        let row = reader.row(index);
        let offset = row.offset.to_string();
        let added: [(&str, &str); 7] = [
            ("millstream.pipeline", origin.pipeline),
            ("millstream.stage", origin.stage),
            ("millstream.module", &module),
            ("millstream.topic", origin.topic),
            ("millstream.partition", &partition),
            ("millstream.offset", &offset),
            ("millstream.reason", &failure.reason),
        ];
        let headers =
            reader.headers(index).chain(added.into_iter().map(|(name, value)| (name, Some(value.as_bytes()))));
        out.push(row.offset, row.timestamp_ms, row.key, row.value, headers);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_keeps_the_record_and_says_where_it_comes_from() {
        let mut failed = Columns::default();
        failed.push(41, 7, Some(b"k"), Some(b"v"), [("h", None)].into_iter());
        let failures = [Failure { index: 3, reason: "no JSON".into() }];
        let module = ModuleHash::of(b"m");
        let origin = DeadLetterOrigin { pipeline: "p", stage: "s", module: &module, topic: "t", partition: 2 };
        let letters = dead_letters(&failed, &failures, &origin);
        let reader = ColumnsReader::new(&letters);
        assert_eq!((reader.row(0).key, reader.row(0).value), (Some(&b"k"[..]), Some(&b"v"[..])));
        let headers: Vec<_> = reader.headers(0).collect();
        assert_eq!(headers[0], ("h", None));
        assert_eq!(headers.len(), 8);
        assert!(headers.contains(&("millstream.offset", Some(b"41"))));
        assert!(headers.contains(&("millstream.reason", Some(b"no JSON"))));
    }
}
