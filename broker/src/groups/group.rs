//! A group: its offsets, its membership, and the generation that fences writes of its readers.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::classic::Claim;
use super::member_id::MemberId;
use super::membership::Membership;
use super::offsets::{CommittedOffset, Offsets, StoredOffset};
use crate::error::{BrokerError, MemberError};
use crate::hash::HashSet;
use crate::name::{GroupId, ProducerId, TopicPartition};
use crate::store::place::{Offset, Place, TopicId};

/// The kind of a group's readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GroupKind {
    /// Clients, to which the broker assigns partitions.
    Consumer = 1,
    /// The tasks of a pipeline, which the runtime assigns.
    Pipeline = 2,
}

impl GroupKind {
    pub(crate) fn from_journal(kind: u8) -> Option<Self> {
        [Self::Consumer, Self::Pipeline].into_iter().find(|known| *known as u8 == kind)
    }

    pub(crate) fn owner(self) -> &'static str {
        match self {
            Self::Consumer => "consumers",
            Self::Pipeline => "a pipeline",
        }
    }
}

/// The state of the pipeline that a group belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineState {
    /// Its tasks run.
    Running,
    /// A user paused it.
    Paused,
    /// A failure stopped it.
    Stopped,
}

impl fmt::Display for PipelineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The times since which groups must be unused to expire, by the idle clock, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleSince {
    /// The time for groups with committed offsets.
    pub with_offsets_ms: i64,
    /// The time for groups without committed offsets.
    pub without_offsets_ms: i64,
}

/// A group.
pub struct Group {
    id: GroupId,
    kind: GroupKind,
    generation: AtomicU64,
    offsets: Offsets,
    members: Mutex<Membership>,
    deadline_changed: Notify,
    /// Held while the members are stored.
    keeping: tokio::sync::Mutex<()>,
    /// The partitions whose offsets are part of open transactions, with their producers.
    pending: Mutex<HashSet<(ProducerId, Place)>>,
    /// When the group last had a member or committed something, in milliseconds since the epoch by the idle clock.
    active_at_ms: AtomicI64,
    pipeline: Mutex<Option<PipelineState>>,
    /// Whether the group was removed from the list of groups, so that it accepts no members or offsets.
    removed: AtomicBool,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({})", self.id)
    }
}

impl Group {
    pub(super) fn new(id: GroupId, kind: GroupKind) -> Self {
        Self {
            id,
            kind,
            generation: AtomicU64::new(0),
            offsets: Offsets::default(),
            members: Mutex::default(),
            deadline_changed: Notify::new(),
            keeping: tokio::sync::Mutex::new(()),
            pending: Mutex::default(),
            active_at_ms: AtomicI64::new(i64::MIN),
            pipeline: Mutex::default(),
            removed: AtomicBool::new(false),
        }
    }

    /// Returns the group's ID.
    pub fn id(&self) -> &GroupId {
        &self.id
    }

    /// Returns whether the readers are consumers or a pipeline.
    pub fn kind(&self) -> GroupKind {
        self.kind
    }

    /// Returns whether the group was deleted after it was looked up. This does not change while
    /// [`members`](Self::members) is locked.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
        self.next_generation();
    }

    // ---- generation

    /// Returns the generation, which grows with each assignment. Writes of an earlier generation are refused.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Ends the current generation, so that its commits which are not accepted yet will be refused. Returns the new
    /// one.
    pub fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn check_generation(&self, generation: u64) -> Result<(), BrokerError> {
        let current = self.generation();
        if generation == current {
            return Ok(());
        }
        Err(BrokerError::StaleGeneration { group: self.id.clone(), generation, current })
    }

    // ---- membership

    /// Locks and returns the members of a consumer group.
    pub fn members(&self) -> parking_lot::MutexGuard<'_, Membership> {
        self.members.lock()
    }

    /// Is notified when a deadline of the members may have become earlier.
    /// Returns the lock that is held while the members are stored.
    pub(crate) fn keeping(&self) -> &tokio::sync::Mutex<()> {
        &self.keeping
    }

    pub(crate) fn deadline_changed(&self) -> &Notify {
        &self.deadline_changed
    }

    /// Returns the state of the pipeline, if the group belongs to a pipeline.
    pub fn pipeline_state(&self) -> Option<PipelineState> {
        *self.pipeline.lock()
    }

    /// Sets the state of the pipeline.
    pub fn set_pipeline_state(&self, state: PipelineState) {
        *self.pipeline.lock() = Some(state);
    }

    /// Returns an error if the group has active readers, which would conflict with changing its offsets.
    ///
    /// # Errors
    /// [`BrokerError::GroupInUse`].
    pub fn check_unused(&self) -> Result<(), BrokerError> {
        let by = match self.kind {
            GroupKind::Pipeline if self.pipeline_state() == Some(PipelineState::Running) => {
                "its pipeline is running; pause the pipeline first".to_owned()
            }
            GroupKind::Pipeline => return Ok(()),
            GroupKind::Consumer => match self.members.lock().len() {
                0 => return Ok(()),
                1 => "it has 1 active member; stop it first".to_owned(),
                members => format!("it has {members} active members; stop them first"),
            },
        };
        Err(BrokerError::GroupInUse { group: self.id.clone(), by })
    }

    /// Refuses a commit by a non-member, or for partitions that the member does not own. The committer calls this, so
    /// that it notices partitions that were reassigned meanwhile. `epoch` is the member epoch in the commit.
    pub(crate) fn check_member<'p>(
        &self,
        member: &MemberId,
        epoch: Option<u64>,
        mut partitions: impl Iterator<Item = (TopicId, &'p TopicPartition)>,
    ) -> Result<(), BrokerError> {
        let members = &self.members.lock().consumer;
        let Some(current) = members.epoch(member) else {
            return Err(BrokerError::UnknownMember { group: self.id.clone(), member: member.to_string() });
        };
        if let Some(epoch) = epoch.filter(|epoch| *epoch != current) {
            return Err(BrokerError::StaleMemberEpoch {
                group: self.id.clone(),
                member: member.to_string(),
                epoch,
                current,
            });
        }
        match partitions.find(|(topic, partition)| !members.owns(member, *topic, partition)) {
            None => Ok(()),
            Some((_, partition)) => Err(BrokerError::NotAssigned {
                group: self.id.clone(),
                member: member.to_string(),
                topic: partition.topic.clone(),
                partition: partition.partition,
            }),
        }
    }

    /// Refuses a commit by a client that is not a member of the current generation. The committer calls this, so that it
    /// notices a rebalance that began meanwhile.
    pub(crate) fn check_claim(&self, claim: &Claim, in_transaction: bool) -> Result<(), BrokerError> {
        if self.is_removed() {
            return Err(BrokerError::UnknownGroup { group: self.id.to_string() });
        }
        let members = self.members.lock();
        let checked = if members.consumer.is_empty() {
            members.classic.check_commit(claim, in_transaction)
        } else {
            members.consumer.check_epoch(&claim.member, claim.generation)
        };
        checked.map_err(|source| self.refused(source))
    }

    /// Returns the error for a request of a member that is refused.
    pub(crate) fn refused(&self, source: MemberError) -> BrokerError {
        BrokerError::Member { group: self.id.clone(), source }
    }

    // ---- offsets

    /// Returns the offset of the next record to read, if one was committed.
    pub fn committed(&self, topic: TopicId, partition: u32) -> Option<Offset> {
        self.offsets.offset((topic, partition))
    }

    /// Returns the committed offset of a partition with its metadata and commit time.
    pub fn stored_offset(&self, topic: TopicId, partition: u32) -> Option<StoredOffset> {
        self.offsets.get((topic, partition))
    }

    /// Returns whether an open transaction commits an offset of a partition (KIP-447).
    pub fn is_pending(&self, place: Place) -> bool {
        self.pending.lock().iter().any(|(_, of)| *of == place)
    }

    pub(crate) fn set_pending(&self, producer: ProducerId, place: Place) {
        self.pending.lock().insert((producer, place));
    }

    pub(crate) fn clear_pending(&self, producer: ProducerId, place: Place) {
        self.pending.lock().remove(&(producer, place));
    }

    /// Returns all committed offsets.
    pub fn all_committed(&self) -> Vec<(TopicId, u32, Offset)> {
        self.offsets.all_offsets()
    }

    /// Returns whether an offset was committed in any partition of the topic.
    pub fn has_committed(&self, topic: TopicId) -> bool {
        self.offsets.has_topic(topic)
    }

    /// Returns an error if the accepted offset is not the expected one. Only the committer calls this.
    pub(crate) fn check_expected(
        &self,
        topic: TopicId,
        partition: u32,
        expected: Option<Offset>,
    ) -> Result<(), BrokerError> {
        let current = self.offsets.accepted((topic, partition));
        if current == expected {
            return Ok(());
        }
        Err(BrokerError::StaleOffset { group: self.id.clone(), topic_id: topic.0, partition, expected, current })
    }

    /// Notes that a commit with this offset was accepted. Only the committer calls this.
    pub(crate) fn accept_offset(&self, topic: TopicId, partition: u32, offset: Option<&CommittedOffset>) {
        self.offsets.accept((topic, partition), offset.map(|committed| committed.offset));
    }

    /// Notes that a commit with this offset is on disk.
    pub(crate) fn store_offset(&self, topic: TopicId, partition: u32, offset: Option<StoredOffset>) {
        self.offsets.store((topic, partition), offset);
    }

    /// Sets an offset from the tables at start.
    pub(crate) fn restore_offset(&self, topic: TopicId, partition: u32, offset: StoredOffset) {
        self.offsets.restore((topic, partition), offset);
    }

    /// Returns the offsets that were committed or removed since the last call, for the tables.
    pub(crate) fn take_unsealed(&self) -> Vec<((TopicId, u32), Option<StoredOffset>)> {
        self.offsets.take_unsealed()
    }

    /// Returns all offsets that the tables must contain for the group.
    pub(crate) fn all_stored(&self) -> Vec<((TopicId, u32), StoredOffset)> {
        self.offsets.all()
    }

    pub(crate) fn clear_offsets(&self) {
        self.offsets.clear();
    }

    pub(crate) fn forget_topic(&self, topic: TopicId) {
        self.offsets.forget_topic(topic);
    }

    pub(super) fn has_no_offsets(&self) -> bool {
        self.offsets.is_empty()
    }

    // ---- expiry

    /// Notes that the group has a member, or commits something, at this time of the idle clock, in milliseconds since
    /// the epoch.
    pub(crate) fn set_active(&self, idle_ms: i64) {
        self.active_at_ms.fetch_max(idle_ms, Ordering::Relaxed);
    }

    /// Returns whether the group has expired (KIP-211): it has no members, and was not used since the time in `since`
    /// for groups with or without offsets. Groups of pipelines exist as long as their pipelines.
    pub fn is_expired(&self, since: IdleSince) -> bool {
        let since_ms = if self.offsets.is_empty() { since.without_offsets_ms } else { since.with_offsets_ms };
        self.kind == GroupKind::Consumer
            && self.members.lock().is_empty()
            && self.active_at_ms.load(Ordering::Relaxed) < since_ms
    }

    /// Sets the time of last use to `idle_ms` if the group was created but never used.
    pub(crate) fn set_active_if_never(&self, idle_ms: i64) {
        let _ = self.active_at_ms.compare_exchange(i64::MIN, idle_ms, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Returns the partitions whose offsets are unused: their topics are not read according to `reads`, and the last
    /// commit is older than `before_ms` by the wall clock.
    pub(crate) fn expired_offsets(&self, reads: impl Fn(TopicId) -> bool, before_ms: i64) -> Vec<(TopicId, u32)> {
        self.offsets.places_where(|(topic, _), stored| {
            stored.committed_at_ms.is_some_and(|at_ms| at_ms < before_ms) && !reads(topic)
        })
    }
}
