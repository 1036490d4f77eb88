//! What a check found.

use serde::Serialize;

use super::super::segment::BlockFault;
use crate::store::place::Offset;

/// What was read, and every damage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// In the order of files.
    pub damages: Vec<Damage>,
    /// Files in the data directory's folder of segments that are no part of the store: a crash left them, and
    /// the next start removes them. No damage.
    pub unregistered: Vec<String>,
    /// Segments that were read.
    pub segments: u64,
    /// Sound record batches, in segments and the journal.
    pub batches: u64,
    /// Bytes of these.
    pub batch_bytes: u64,
    /// Commits of the journal that are not sealed.
    pub commits: u64,
}

/// One place that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// In the data directory.
    pub file: String,
    /// Whose records are lost; left out where none are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Of the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The first offset that is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_offset: Option<i64>,
    /// The last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_offset: Option<i64>,
    /// What is wrong, and what it costs where it is no record.
    pub reason: String,
    /// Whether `repair` can put it right or cut it out: else only a backup has what was there.
    pub repairable: bool,
    /// Whether `repair` put it right or cut it out.
    pub repaired: bool,
}

impl Damage {
    /// Damage that costs no record.
    pub(super) fn of_file(file: &str, reason: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            topic: None,
            partition: None,
            first_offset: None,
            last_offset: None,
            reason: reason.into(),
            repairable: true,
            repaired: false,
        }
    }

    /// Damage that only a backup makes good.
    pub(super) fn beyond_repair(file: &str, reason: impl std::fmt::Display) -> Self {
        Self { repairable: false, ..Self::of_file(file, format!("{reason}; go back to a backup")) }
    }

    pub(super) fn of_records(file: &str, topic: &str, partition: u32, fault: &BlockFault) -> Self {
        Self {
            file: file.to_owned(),
            topic: Some(topic.to_owned()),
            partition: Some(partition),
            first_offset: Some(fault.base.get()),
            last_offset: Some(fault.end.get() - 1),
            reason: fault.reason.clone(),
            repairable: true,
            repaired: false,
        }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, topic, partition, first_offset, last_offset, reason, .. } = self;
        write!(f, "{file}: ")?;
        if let (Some(topic), Some(partition)) = (topic, partition) {
            write!(f, "topic {topic}, partition {partition}, ")?;
        }
        if let (Some(first), Some(last)) = (first_offset, last_offset) {
            write!(f, "offsets {first} to {last}: ")?;
        }
        f.write_str(reason)
    }
}

impl Report {
    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.damages.is_empty()
    }

    /// Whether `repair` can put anything right.
    pub fn is_repairable(&self) -> bool {
        self.damages.iter().any(|damage| damage.repairable)
    }

    /// Whether all of it is beyond what `repair` can do.
    pub(super) fn set_beyond_repair(&mut self) {
        self.damages.iter_mut().for_each(|damage| damage.repairable = false);
    }

    /// Whether nothing is damaged any more.
    pub fn is_repaired(&self) -> bool {
        self.damages.iter().all(|damage| damage.repaired)
    }

    pub(super) fn lost(
        &mut self,
        file: &str,
        topic: &str,
        partition: u32,
        lost: std::ops::Range<Offset>,
        reason: &str,
    ) {
        let fault = BlockFault { base: lost.start, end: lost.end, reason: reason.to_owned() };
        self.damages.push(Damage::of_records(file, topic, partition, &fault));
    }
}
