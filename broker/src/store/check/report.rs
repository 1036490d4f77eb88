//! The report of a check.

use serde::Serialize;

use super::super::segment::BlockFault;
use crate::store::place::Offset;

/// What a check read, and all damage it found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// All damage, in the order of the files.
    pub damages: Vec<Damage>,
    /// Files in the segments folder of the data directory that are not part of the store. They are left over from a
    /// crash, and the next start removes them. They are not damage.
    pub unregistered: Vec<String>,
    /// Number of segments that were read.
    pub segments: u64,
    /// Number of intact record batches, in segments and the journal.
    pub batches: u64,
    /// Total size of these batches, in bytes.
    pub batch_bytes: u64,
    /// Number of commits in the journal that are not sealed.
    pub commits: u64,
}

/// One damaged place in the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The damaged file, relative to the data directory.
    pub file: String,
    /// The topic whose records are lost; omitted if no records are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The partition whose records are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The first offset that is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_offset: Option<i64>,
    /// The last offset that is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_offset: Option<i64>,
    /// What is wrong and, if no records are lost, what the consequence is.
    pub reason: String,
    /// Whether `repair` can fix the damage or cut it out. If not, the data can only be restored from a backup.
    pub repairable: bool,
    /// Whether `repair` has fixed the damage or cut it out.
    pub repaired: bool,
}

impl Damage {
    /// Damage by which no records are lost.
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

    /// Damage that can only be undone by restoring a backup.
    pub(super) fn beyond_repair(file: &str, reason: impl std::fmt::Display) -> Self {
        Self { repairable: false, ..Self::of_file(file, format!("{reason}; restore a backup")) }
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
    /// Returns whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.damages.is_empty()
    }

    /// Returns whether `repair` can fix any of the damage.
    pub fn is_repairable(&self) -> bool {
        self.damages.iter().any(|damage| damage.repairable)
    }

    /// Marks all damage as not repairable.
    pub(super) fn set_beyond_repair(&mut self) {
        self.damages.iter_mut().for_each(|damage| damage.repairable = false);
    }

    /// Returns whether all damage has been repaired.
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
