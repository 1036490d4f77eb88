//! One group: its offsets, its membership, and the generation that fences what its readers write.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::members::{MemberId, Members};
use super::offsets::{CommittedOffset, Offsets, StoredOffset};
use crate::error::BrokerError;
use crate::name::{GroupId, TopicPartition};
use crate::store::place::{Offset, TopicId};

/// Who a group's readers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GroupKind {
    /// Clients; the broker assigns.
    Consumer = 1,
    /// A pipeline's tasks; the runtime assigns.
    Pipeline = 2,
}

impl GroupKind {
    pub(crate) fn from_journal(kind: u8) -> Option<Self> {
        [Self::Consumer, Self::Pipeline].into_iter().find(|known| *known as u8 == kind)
    }

    pub(super) fn owner(self) -> &'static str {
        match self {
            Self::Consumer => "consumers",
            Self::Pipeline => "a pipeline",
        }
    }
}

/// What a pipeline does with its group.
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

/// Groups that nobody used since these times expire. By the idle clock, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleSince {
    /// For groups that have committed offsets.
    pub with_offsets_ms: i64,
    /// For groups that have none.
    pub without_offsets_ms: i64,
}

/// One group.
pub struct Group {
    id: GroupId,
    kind: GroupKind,
    generation: AtomicU64,
    offsets: Offsets,
    members: Mutex<Members>,
    /// When the group last had a member or committed something, in milliseconds since the epoch by the idle clock.
    active_at_ms: AtomicI64,
    pipeline: Mutex<Option<PipelineState>>,
    /// Whether it was taken out of the list of groups: it takes no member and no offset any more.
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
            active_at_ms: AtomicI64::new(i64::MIN),
            pipeline: Mutex::default(),
            removed: AtomicBool::new(false),
        }
    }

    /// The group's id.
    pub fn id(&self) -> &GroupId {
        &self.id
    }

    /// Consumers or a pipeline.
    pub fn kind(&self) -> GroupKind {
        self.kind
    }

    /// Whether the group was deleted since it was looked up. It does not change while [`members`](Self::members) is locked.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
        self.next_generation();
    }

    // ---- generation

    /// Grows with each assignment; a write of an earlier generation is refused.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Ends the current generation: commits of it that are not accepted yet are refused.
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

    /// The members, for consumers.
    pub fn members(&self) -> parking_lot::MutexGuard<'_, Members> {
        self.members.lock()
    }

    /// For a pipeline's group: what the pipeline does.
    pub fn pipeline_state(&self) -> Option<PipelineState> {
        *self.pipeline.lock()
    }

    /// Says what the pipeline does.
    pub fn set_pipeline_state(&self, state: PipelineState) {
        *self.pipeline.lock() = Some(state);
    }

    /// Refuses what would change the offsets while readers use them.
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
                1 => "1 member reads; stop it first".to_owned(),
                members => format!("{members} members read; stop them first"),
            },
        };
        Err(BrokerError::GroupInUse { group: self.id.clone(), by })
    }

    /// Refuses a commit of somebody who is no member, or of a partition that is not the member's. The committer asks, so that a
    /// partition which was given to another member meanwhile is noticed. `epoch` is the member epoch that the commit names.
    pub(crate) fn check_member<'p>(
        &self,
        member: &MemberId,
        epoch: Option<u64>,
        mut partitions: impl Iterator<Item = (TopicId, &'p TopicPartition)>,
    ) -> Result<(), BrokerError> {
        let members = self.members.lock();
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

    // ---- offsets

    /// The offset of the next record to read, where one was committed.
    pub fn committed(&self, topic: TopicId, partition: u32) -> Option<Offset> {
        self.offsets.offset((topic, partition))
    }

    /// All that was committed in a partition.
    pub fn stored_offset(&self, topic: TopicId, partition: u32) -> Option<StoredOffset> {
        self.offsets.get((topic, partition))
    }

    /// Every committed offset.
    pub fn all_committed(&self) -> Vec<(TopicId, u32, Offset)> {
        let all = self.offsets.all().into_iter();
        all.map(|((topic, partition), stored)| (topic, partition, stored.committed.offset)).collect()
    }

    /// Whether an offset was committed in any partition of the topic.
    pub fn has_committed(&self, topic: TopicId) -> bool {
        self.offsets.has_topic(topic)
    }

    /// Whether the group stands where a change expects it. Committer only.
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

    /// A commit with this offset was accepted. Committer only.
    pub(crate) fn accept_offset(&self, topic: TopicId, partition: u32, offset: Option<&CommittedOffset>) {
        self.offsets.accept((topic, partition), offset.map(|committed| committed.offset));
    }

    /// A commit with this offset is on disk.
    pub(crate) fn store_offset(&self, topic: TopicId, partition: u32, offset: Option<StoredOffset>) {
        self.offsets.store((topic, partition), offset);
    }

    /// Sets an offset that the tables have, at the start.
    pub(crate) fn restore_offset(&self, topic: TopicId, partition: u32, offset: StoredOffset) {
        self.offsets.restore((topic, partition), offset);
    }

    /// What was committed or removed since this was last called, for the tables.
    pub(crate) fn take_unsealed(&self) -> Vec<((TopicId, u32), Option<StoredOffset>)> {
        self.offsets.take_unsealed()
    }

    /// All that the tables must have of the group.
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

    /// The group has a member, or commits something, at this time of the idle clock, in milliseconds since the epoch.
    pub(crate) fn set_active(&self, idle_ms: i64) {
        self.active_at_ms.fetch_max(idle_ms, Ordering::Relaxed);
    }

    /// Whether nothing is kept of the group any more (KIP-211): it has no members, and nobody used it for the time that
    /// is given to groups with offsets, or to those without. Groups of pipelines live as long as their pipelines.
    pub fn is_expired(&self, since: IdleSince) -> bool {
        let since_ms = if self.offsets.is_empty() { since.without_offsets_ms } else { since.with_offsets_ms };
        self.kind == GroupKind::Consumer
            && self.members.lock().is_empty()
            && self.active_at_ms.load(Ordering::Relaxed) < since_ms
    }

    /// A group that was made and not used yet counts as used from the first time that somebody looks.
    pub(crate) fn set_active_if_never(&self, idle_ms: i64) {
        let _ = self.active_at_ms.compare_exchange(i64::MIN, idle_ms, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Places whose offsets nobody uses: members read, but not in these topics, and the last commit is older than
    /// `before_ms`, by the wall clock.
    pub(crate) fn expired_offsets(&self, reads: impl Fn(TopicId) -> bool, before_ms: i64) -> Vec<(TopicId, u32)> {
        let all = self.offsets.all().into_iter();
        let expired = all.filter(|((topic, _), stored)| {
            stored.committed_at_ms.is_some_and(|at_ms| at_ms < before_ms) && !reads(*topic)
        });
        expired.map(|(place, _)| place).collect()
    }
}
