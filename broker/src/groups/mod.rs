//! Groups: who reads which partitions, and how far they are. A group is of one kind: consumers,
//! to whom the broker assigns partitions (`members.rs`), or a pipeline, whose tasks the runtime
//! assigns. Offsets, lag, describe and reset are the same for both.

pub mod assign;
pub mod members;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::hash::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};

use crate::error::BrokerError;
use crate::name::GroupId;
use crate::store::place::{Offset, Place, TopicId};
use members::Members;

/// Who a group's readers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GroupKind {
    /// Clients; the broker assigns.
    Consumer = 1,
    /// A pipeline's tasks.
    Pipeline = 2,
}

impl GroupKind {
    pub(crate) fn from_journal(kind: u8) -> Option<Self> {
        [Self::Consumer, Self::Pipeline].into_iter().find(|known| *known as u8 == kind)
    }

    fn owner(self) -> &'static str {
        match self {
            Self::Consumer => "consumers",
            Self::Pipeline => "a pipeline",
        }
    }
}

/// What a pipeline does with its group, for those who ask about the group.
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

type Offsets = HashMap<Place, Offset>;

/// One group.
pub struct Group {
    id: GroupId,
    kind: GroupKind,
    generation: AtomicU64,
    /// What the committer has accepted; a little ahead of `committed` while a commit runs.
    assigned: Mutex<Offsets>,
    /// What is on disk.
    committed: RwLock<Offsets>,
    /// What was committed since the journal was sealed, and is in no table.
    unsealed: Mutex<HashSet<Place>>,
    members: Mutex<Members>,
    pipeline: Mutex<Option<PipelineState>>,
    /// Whether it was taken out of [`Groups`]: it takes no member and no offset any more.
    removed: AtomicBool,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({})", self.id)
    }
}

impl Group {
    fn new(id: GroupId, kind: GroupKind) -> Self {
        Self {
            id,
            kind,
            generation: AtomicU64::new(0),
            assigned: Mutex::default(),
            committed: RwLock::default(),
            unsealed: Mutex::default(),
            members: Mutex::default(),
            pipeline: Mutex::default(),
            removed: AtomicBool::new(false),
        }
    }

    /// Whether it was deleted since it was looked up. Who holds its [`members`](Self::members) sees it stay so.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// The group's name.
    pub fn id(&self) -> &GroupId {
        &self.id
    }

    /// Consumers or a pipeline.
    pub fn kind(&self) -> GroupKind {
        self.kind
    }

    /// Grows with each assignment; a write of an earlier one is refused.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Ends the current generation: whatever was sent in it and is not yet accepted is refused.
    pub fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The offset of the next record to read, where one was committed.
    pub fn committed(&self, topic: TopicId, partition: u32) -> Option<Offset> {
        self.committed.read().get(&(topic, partition)).copied()
    }

    /// Every committed offset.
    pub fn all_committed(&self) -> Vec<(TopicId, u32, Offset)> {
        let committed = self.committed.read();
        let mut all: Vec<_> =
            committed.iter().map(|((topic, partition), offset)| (*topic, *partition, *offset)).collect();
        all.sort_unstable();
        all
    }

    /// Whether an offset was committed in any partition of the topic.
    pub fn has_committed(&self, topic: TopicId) -> bool {
        self.committed.read().keys().any(|(of, _)| *of == topic)
    }

    /// For a pipeline's group: what the pipeline does.
    pub fn pipeline_state(&self) -> Option<PipelineState> {
        *self.pipeline.lock()
    }

    /// Says what the pipeline does.
    pub fn set_pipeline_state(&self, state: PipelineState) {
        *self.pipeline.lock() = Some(state);
    }

    /// The members, for consumers.
    pub fn members(&self) -> parking_lot::MutexGuard<'_, Members> {
        self.members.lock()
    }

    /// Refuses what would pull the offsets from under readers.
    ///
    /// # Errors
    /// [`BrokerError::GroupInUse`].
    pub fn check_unused(&self) -> Result<(), BrokerError> {
        let by = match self.kind {
            GroupKind::Pipeline if self.pipeline_state() == Some(PipelineState::Running) => {
                format!("its pipeline is running; `millstream pipeline pause {}` stops it", self.id)
            }
            GroupKind::Pipeline => return Ok(()),
            GroupKind::Consumer => match self.members.lock().len() {
                0 => return Ok(()),
                1 => "1 member reads".to_owned(),
                members => format!("{members} members read"),
            },
        };
        Err(BrokerError::GroupInUse { group: self.id.clone(), by })
    }

    pub(crate) fn check_generation(&self, generation: u64) -> Result<(), BrokerError> {
        let current = self.generation();
        if generation == current {
            return Ok(());
        }
        Err(BrokerError::StaleGeneration { group: self.id.clone(), generation, current })
    }

    /// Whether the group stands where a change expects it. Committer only.
    pub(crate) fn check_expected(
        &self,
        topic: TopicId,
        partition: u32,
        expected: Option<Offset>,
    ) -> Result<(), BrokerError> {
        let current = self.assigned.lock().get(&(topic, partition)).copied();
        if current == expected {
            return Ok(());
        }
        let shown = |offset: Option<Offset>| offset.map_or(-1, Offset::get);
        Err(BrokerError::StaleOffset {
            group: self.id.clone(),
            topic_id: topic.0,
            partition,
            expected: shown(expected),
            current: shown(current),
        })
    }

    pub(crate) fn set_assigned(&self, topic: TopicId, partition: u32, offset: Offset) {
        self.assigned.lock().insert((topic, partition), offset);
    }

    pub(crate) fn set_committed(&self, topic: TopicId, partition: u32, offset: Offset) {
        self.committed.write().insert((topic, partition), offset);
        self.unsealed.lock().insert((topic, partition));
    }

    /// What the tables say, at the start.
    pub(crate) fn restore(&self, topic: TopicId, partition: u32, offset: Offset) {
        self.assigned.lock().insert((topic, partition), offset);
        self.committed.write().insert((topic, partition), offset);
    }

    /// What was committed, or forgotten, since the last time this was called: for the tables.
    pub(crate) fn take_unsealed(&self) -> Vec<(TopicId, u32, Option<Offset>)> {
        let unsealed = std::mem::take(&mut *self.unsealed.lock());
        let committed = self.committed.read();
        unsealed.into_iter().map(|place| (place.0, place.1, committed.get(&place).copied())).collect()
    }

    pub(crate) fn clear_offsets(&self) {
        self.assigned.lock().clear();
        self.committed.write().clear();
    }

    pub(crate) fn forget_topic(&self, topic: TopicId) {
        self.assigned.lock().retain(|(of, _), _| *of != topic);
        let mut unsealed = self.unsealed.lock();
        self.committed.write().retain(|(of, partition), _| {
            if *of == topic {
                unsealed.insert((*of, *partition));
            }
            *of != topic
        });
    }
}

/// Every group, by name.
#[derive(Debug, Default)]
pub struct Groups {
    groups: RwLock<HashMap<GroupId, Arc<Group>>>,
}

impl Groups {
    /// The group of that name, made where there is none.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`].
    pub fn get_or_create(&self, id: &GroupId, kind: GroupKind) -> Result<Arc<Group>, BrokerError> {
        let mut groups = self.groups.write();
        let group = groups.entry(id.clone()).or_insert_with(|| Arc::new(Group::new(id.clone(), kind)));
        if group.kind == kind {
            return Ok(group.clone());
        }
        Err(BrokerError::GroupOfOtherKind { group: id.clone(), kind: group.kind.owner() })
    }

    /// The group of that name.
    ///
    /// # Errors
    /// [`BrokerError::UnknownGroup`].
    pub fn get(&self, id: &str) -> Result<Arc<Group>, BrokerError> {
        let groups = self.groups.read();
        groups.get(id).cloned().ok_or_else(|| BrokerError::UnknownGroup { group: id.to_owned() })
    }

    /// Every group, by name.
    pub fn all(&self) -> Vec<Arc<Group>> {
        let mut all: Vec<_> = self.groups.read().values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Forgets a group whose offsets a commit dropped, unless it has members or offsets again. Who looked it up
    /// before can't write in it any more: a fence of that time is of a generation that is over. Committer only, and a
    /// start: nothing is accepted meanwhile.
    pub(crate) fn remove(&self, group: &Arc<Group>) {
        let mut groups = self.groups.write();
        let members = group.members();
        let is_known = groups.get(&group.id).is_some_and(|known| Arc::ptr_eq(known, group));
        if is_known && members.is_empty() && group.committed.read().is_empty() {
            groups.remove(&group.id);
            group.removed.store(true, Ordering::Release);
            group.next_generation();
        }
    }
}
