//! What a commit contains: appends, offsets, state, catalog entries, and upkeep by the store's own threads.

use std::sync::Arc;

use bytes::Bytes;
use millstream_record::RecordBatch;

use super::partition::Partition;
use super::topic::Topic;
use crate::error::BrokerError;
use crate::groups::classic::Claim;
use crate::groups::{CommittedOffset, Group, IdleSince, MemberId};
use crate::store::journal::CHUNK_BYTES;
use crate::store::place::{Offset, TopicId};
use crate::store::segment::{Extent, SegmentId, SegmentMeta};
use crate::store::{CatalogChange, StateChange};

/// The fixed cost of a request in bytes, so that the queue also bounds the number of empty requests.
const REQUEST_OVERHEAD_BYTES: usize = 128;

/// A set of changes that is applied atomically.
#[derive(Debug, Default)]
pub struct Commit {
    /// Record batches to append. If all of a commit's batches are already stored (according to their producers'
    /// sequence numbers), the commit was done before, and nothing of it is done again.
    pub appends: Vec<Append>,
    /// Committed offsets to set.
    pub offsets: Vec<OffsetChange>,
    /// Accumulators to set.
    pub state: Vec<StateChange>,
    /// Stores whose state is removed, named `pipeline/stage`.
    pub drop_state: Vec<Arc<str>>,
    /// Groups whose offsets are removed.
    pub drop_groups: Vec<Arc<Group>>,
    /// Catalog entries to set or remove.
    pub catalog: Vec<CatalogChange>,
    /// Topics that are no longer in the catalog, whose log start offsets are removed.
    pub deleted_topics: Vec<TopicId>,
    /// Refuses the commit if its sender no longer owns what it writes for.
    pub fence: Option<Fence>,
}

/// Batches for one partition, in order.
#[derive(Clone, Debug)]
pub struct Append {
    /// The partition to append to.
    pub partition: Arc<Partition>,
    /// The batches to append. The commit assigns their base offsets.
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
    /// The new committed offset. `None` removes the group's committed offset.
    pub to: Option<CommittedOffset>,
    /// The committed offset that the group must have; otherwise the commit is refused. `Some(None)` means that the
    /// group must not have a committed offset. `None` skips the check.
    pub expected: Option<Option<Offset>>,
}

/// Changes by the store's own threads, in a commit of their own or together with others.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// Segments that are added to the store, or whose extents change.
    pub(crate) segments: Vec<SegmentMeta>,
    /// Segments that are removed from the store.
    pub(crate) removed: Vec<SegmentId>,
    /// The new sealed mark: journal values before this sequence number are in segments and tables.
    pub(crate) sealed_to: Option<u64>,
    /// Partitions whose extents change, with their new extents. If a part of the journal was sealed, these replace its
    /// runs; otherwise they replace the extents with the same offsets.
    pub(crate) extents: Vec<(Arc<Partition>, Vec<Extent>)>,
    /// New log start offsets, by partition.
    pub(crate) log_starts: Vec<(Arc<Partition>, Offset)>,
    /// Whether it is from the sealer. The sealer waits for it, and commits may be waiting for the sealer.
    pub(crate) is_of_sealer: bool,
}

impl Upkeep {
    /// Adds a new segment to the store. Each of `partitions` has one extent in it, in this order.
    pub(crate) fn add_segment(&mut self, meta: SegmentMeta, partitions: impl Iterator<Item = Arc<Partition>>) {
        self.extents.extend(partitions.zip(meta.extents.iter().map(|owned| vec![owned.extent])));
        self.segments.push(meta);
    }
}

/// How much room on the disk a commit needs, in ascending order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// Hardly any: settings and related entries, and removals, which make room.
    #[default]
    Nothing,
    /// Little: only offsets.
    Offsets,
    /// The commit increases the amount of stored data.
    Room,
}

/// Proof that the sender still owns what it writes for. The committer verifies it in queue order.
#[derive(Clone, Debug)]
pub enum Fence {
    /// The group must still be in the generation in which the sender was assigned.
    Generation {
        /// The group.
        group: Arc<Group>,
        /// The generation.
        generation: u64,
    },
    /// The sender must be a member of the group and own each partition in [`Commit::offsets`].
    Member {
        /// The group.
        group: Arc<Group>,
        /// The member.
        member: MemberId,
        /// The member epoch in the request, if the sender's protocol has one (KIP-848).
        epoch: Option<u64>,
    },
    /// The sender must be a member of the current generation of the group, or the group must have no members if the sender
    /// claims to be none.
    Claim {
        /// The group.
        group: Arc<Group>,
        /// Who the sender says that it is.
        claim: Claim,
        /// Whether the offsets are part of a transaction.
        in_transaction: bool,
    },
    /// The group must be unused: see [`Group::is_expired`].
    Expired {
        /// The group.
        group: Arc<Group>,
        /// The times to compare with.
        before: IdleSince,
    },
}

impl Fence {
    /// Returns the group.
    pub fn group(&self) -> &Arc<Group> {
        match self {
            Self::Generation { group, .. }
            | Self::Member { group, .. }
            | Self::Claim { group, .. }
            | Self::Expired { group, .. } => group,
        }
    }

    /// Refuses a commit of these offsets if its sender no longer owns what it writes for.
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
            Self::Claim { group, claim, in_transaction } => group.check_claim(claim, *in_transaction),
            Self::Expired { group, before } if group.is_expired(*before) => Ok(()),
            Self::Expired { group, .. } => {
                let by = "it was used again".to_owned();
                Err(BrokerError::GroupInUse { group: group.id().clone(), by })
            }
        }
    }
}

/// The result of a commit.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// The offset of the first record of each [`Append`].
    pub base_offsets: Vec<Offset>,
}

impl Commit {
    /// Returns how much room on the disk the commit needs.
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

    /// Returns about how many bytes the commit adds to the journal.
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
        // The size of the content, eight bytes for each key, and the fixed cost of a request twice.
        assert_eq!(commit.bytes(), 2 * batch_bytes + (5 + 6) + 2 * 8 + 2 * 8 + 3 + 2 * REQUEST_OVERHEAD_BYTES);
        assert_eq!(Commit::default().bytes(), REQUEST_OVERHEAD_BYTES);
    }
}
