//! What a commit holds: appends, offsets, state, catalog entries, and the upkeep of the store's own threads.

use std::sync::Arc;

use bytes::Bytes;
use millstream_record::RecordBatch;

use super::partition::Partition;
use super::topic::Topic;
use crate::error::BrokerError;
use crate::groups::{CommittedOffset, Group, IdleSince, MemberId};
use crate::store::journal::CHUNK_BYTES;
use crate::store::place::{Offset, TopicId};
use crate::store::segment::{Extent, SegmentId, SegmentMeta};
use crate::store::{CatalogChange, StateChange};

/// A small request's own cost in bytes, so that a flood of empty ones is bounded too.
const REQUEST_OVERHEAD_BYTES: usize = 128;

/// What happens wholly or not at all.
#[derive(Debug, Default)]
pub struct Commit {
    /// Record batches to append. A commit whose batches are all stored already (by their producers'
    /// sequence numbers) was done before: nothing of it is done again.
    pub appends: Vec<Append>,
    /// Committed offsets to set.
    pub offsets: Vec<OffsetChange>,
    /// Accumulators to set.
    pub state: Vec<StateChange>,
    /// Stores whose state is removed, `pipeline/stage`.
    pub drop_state: Vec<Arc<str>>,
    /// Groups whose offsets are removed.
    pub drop_groups: Vec<Arc<Group>>,
    /// Catalog entries to set or remove.
    pub catalog: Vec<CatalogChange>,
    /// Topics that the catalog has no more: where their logs start is forgotten.
    pub deleted_topics: Vec<TopicId>,
    /// What refuses the commit where its sender no longer owns what it writes for.
    pub fence: Option<Fence>,
}

/// Batches for one partition, in order.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where to.
    pub partition: Arc<Partition>,
    /// What; their base offsets are assigned by the commit.
    pub batches: Vec<RecordBatch>,
}

/// One committed offset.
#[derive(Clone, Debug)]
pub struct OffsetChange {
    /// The group that commits.
    pub group: Arc<Group>,
    /// The topic.
    pub topic: Arc<Topic>,
    /// The partition.
    pub partition: u32,
    /// What the group commits. `None` removes what it committed before.
    pub to: Option<CommittedOffset>,
    /// `Some` refuses the commit where the group's committed offset is another one; `Some(None)` where it has committed
    /// anything.
    pub expected: Option<Option<Offset>>,
}

/// What the store's own threads change, in a commit of its own or with others.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// Segments that become part of the store, or whose extents in use change.
    pub(crate) segments: Vec<SegmentMeta>,
    /// Segments that are no longer part of it.
    pub(crate) removed: Vec<SegmentId>,
    /// Journal values before this sequence number are in segments and tables now.
    pub(crate) sealed_to: Option<u64>,
    /// Whose extents change, with those that it gets: instead of runs where a part of the journal was
    /// sealed, else instead of the extents with these offsets.
    pub(crate) extents: Vec<(Arc<Partition>, Vec<Extent>)>,
    /// Records below these offsets are no longer kept.
    pub(crate) log_starts: Vec<(Arc<Partition>, Offset)>,
    /// The sealer waits for it, and commits may be waiting for the sealer.
    pub(crate) is_of_sealer: bool,
}

impl Upkeep {
    /// A new segment becomes part of the store. Each of `partitions` has one extent in it, in that order.
    pub(crate) fn add_segment(&mut self, meta: SegmentMeta, partitions: impl Iterator<Item = Arc<Partition>>) {
        self.extents.extend(partitions.zip(meta.extents.iter().map(|owned| vec![owned.extent])));
        self.segments.push(meta);
    }
}

/// The room on the disk that a commit needs, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// Hardly any: settings with what belongs to them, and removals, which make room.
    #[default]
    Nothing,
    /// Little: offsets alone.
    Offsets,
    /// It makes what is stored more.
    Room,
}

/// Proof that the sender still owns what it writes for. The committer checks it, in the order of the queue.
#[derive(Clone, Debug)]
pub enum Fence {
    /// The group is still in the generation in which the sender was assigned.
    Generation {
        /// The group.
        group: Arc<Group>,
        /// The generation.
        generation: u64,
    },
    /// The sender is a member of the group, and owns each partition in [`Commit::offsets`].
    Member {
        /// The group.
        group: Arc<Group>,
        /// The member.
        member: MemberId,
        /// The member epoch that the sender named, where its protocol has it do so (KIP-848).
        epoch: Option<u64>,
    },
    /// Nobody uses the group: see [`Group::is_expired`].
    Expired {
        /// The group.
        group: Arc<Group>,
        /// What it was compared with.
        before: IdleSince,
    },
}

impl Fence {
    /// The group.
    pub fn group(&self) -> &Arc<Group> {
        match self {
            Self::Generation { group, .. } | Self::Member { group, .. } | Self::Expired { group, .. } => group,
        }
    }

    /// Refuses a commit of these offsets whose sender no longer owns what it writes for.
    pub(super) fn check(&self, offsets: &[OffsetChange]) -> Result<(), BrokerError> {
        match self {
            Self::Generation { group, generation } => group.check_generation(*generation),
            Self::Member { group, member, epoch } => {
                let partitions = offsets.iter().filter_map(|change| {
                    let partition = change.topic.partition(change.partition).ok()?;
                    Some((change.topic.id(), partition.name()))
                });
                group.check_member(member, *epoch, partitions)
            }
            Self::Expired { group, before } if group.is_expired(*before) => Ok(()),
            Self::Expired { group, .. } => {
                let by = "it was used again".to_owned();
                Err(BrokerError::GroupInUse { group: group.id().clone(), by })
            }
        }
    }
}

/// What a commit did.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// For each [`Append`] the offset of its first record.
    pub base_offsets: Vec<Offset>,
}

impl Commit {
    /// How much room on the disk it needs.
    pub(super) fn needs(&self) -> Needs {
        let large = |change: &CatalogChange| change.value.as_ref().is_some_and(|value| value.len() > CHUNK_BYTES);
        if !self.appends.is_empty() || !self.state.is_empty() || self.catalog.iter().any(large) {
            Needs::Room
        } else if !self.offsets.is_empty() && self.catalog.is_empty() {
            Needs::Offsets
        } else {
            Needs::Nothing
        }
    }

    /// About how many bytes it adds to the journal.
    pub fn bytes(&self) -> usize {
        let batches = self.appends.iter().flat_map(|append| &append.batches);
        let state = self
            .state
            .iter()
            .map(|change| change.keys.bytes.len() + change.accumulators.bytes.len() + 8 * change.keys.lengths.len());
        let metadata = self.offsets.iter().filter_map(|change| change.to.as_ref()?.metadata.as_ref());
        let catalog = self.catalog.iter().filter_map(|change| change.value.as_ref());
        REQUEST_OVERHEAD_BYTES * (1 + self.appends.len() + self.offsets.len())
            + batches.map(|batch| batch.as_bytes().len()).sum::<usize>()
            + state.sum::<usize>()
            + catalog.map(Bytes::len).sum::<usize>()
            + metadata.map(|metadata| metadata.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use millstream_record::{BatchBuilder, Column, Compression};

    use super::*;
    use crate::name::{TopicName, TopicPartition};

    #[test]
    fn a_commit_counts_all_that_it_holds() {
        let name = TopicPartition { topic: TopicName::new("t").unwrap(), partition: 0 };
        let partition = Arc::new(Partition::new(TopicId(1), name));
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(0, None, Some(&[b'v'; 1_000]), []);
        let batch = builder.finish().unwrap();
        let batch_bytes = batch.as_bytes().len();
        let appends = vec![Append { partition, batches: vec![batch.clone(), batch] }];
        let (mut keys, mut accumulators) = (Column::default(), Column::default());
        for key in [&b"first"[..], b"second"] {
            keys.push(Some(key));
            accumulators.push(Some(b"12345678"));
        }
        let state = vec![StateChange { store: "p/s".into(), keys, accumulators, added: 2, ..StateChange::default() }];
        let catalog =
            vec![CatalogChange::put("k".to_owned(), Bytes::from_static(b"123")), CatalogChange::remove("l".to_owned())];
        let commit = Commit { appends, state, catalog, ..Commit::default() };
        // What it holds, eight bytes for each key, and twice what a request costs by itself.
        assert_eq!(commit.bytes(), 2 * batch_bytes + (5 + 6) + 2 * 8 + 2 * 8 + 3 + 2 * REQUEST_OVERHEAD_BYTES);
        assert_eq!(Commit::default().bytes(), REQUEST_OVERHEAD_BYTES);
    }
}
