//! The members of a group by Kafka's classic protocol: the members agree on a protocol, and the leading member assigns the
//! partitions (KIP-62, KIP-345 for static members, KIP-394 for member ids, KIP-814 for leaders that return).
//!
//! ```text
//!            ┌───── all members joined, or the time is over ────┐
//!            │                                                  ▼
//!  Empty ─► Preparing ◄── a member joins, leaves, ────── Completing
//!    ▲       │     ▲      expires, or sends no sync             │
//!    └───────┘     │                                            │ the leader sent the assignment
//!  nobody is left  └────────────── the same ────────── Stable ◄─┘
//! ```
//! The state machine gets the time as an argument. Its caller must call [`Classic::on_time`] at [`Classic::deadline`]. It must
//! also store what [`Classic::to_keep`] returns, and then call [`Classic::kept`]: members get their assignments after that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indexmap::IndexMap;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::kept::{Base64, Kept, KeptMember, KeptProtocol};
use crate::error::MemberError;
use crate::hash::HashMap;
use crate::name::{TopicName, TopicPartition};

/// Maximum size of what the members of a group say about themselves, in bytes. The answer to the leader holds all of it.
const MEMBERS_BYTES_MAX: usize = 64 << 20;

/// Maximum number of ids that were given to members which have not joined with them yet.
const PENDING_MAX: usize = 10_000;

/// The bounds of a group.
#[derive(Clone, Copy, Debug)]
pub struct ClassicLimits {
    /// How long the first rebalance of an empty group waits for further members: Kafka's
    /// `group.initial.rebalance.delay.ms`.
    pub initial_delay: Duration,
    /// Maximum number of members: Kafka's `group.max.size`.
    pub members_max: usize,
}

type Result<T> = std::result::Result<T, MemberError>;

/// A request to join.
#[derive(Clone, Debug)]
pub struct ClassicJoin {
    /// The member's id. Empty for a new member.
    pub member: String,
    /// The static id, if the member has one (KIP-345).
    pub instance: Option<Arc<str>>,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// The client's address.
    pub client_host: Arc<str>,
    /// How long the member may send nothing until it is removed.
    pub session_timeout: Duration,
    /// How long it may take to join a rebalance.
    pub rebalance_timeout: Duration,
    /// The kind of its protocols, such as `consumer` or `connect`.
    pub protocol_type: Arc<str>,
    /// The protocols that it can use, the preferred one first.
    pub protocols: Vec<JoinProtocol>,
    /// Whether a new dynamic member must join again with the id that it is given (KIP-394).
    pub needs_id: bool,
    /// Whether a leader that is told so keeps the group's assignment (KIP-814).
    pub may_skip_assignment: bool,
}

/// A protocol that a member can use: for consumers, the name of an assignor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinProtocol {
    /// The name.
    pub name: Arc<str>,
    /// What the member tells the leader. The broker does not look inside.
    pub metadata: Bytes,
    /// The topics that a consumer subscribes to, as far as they are known.
    pub topics: BTreeSet<TopicName>,
}

/// The answer to a member that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The member's id.
    pub member: Arc<str>,
    /// The generation that begins.
    pub generation: i32,
    /// The kind of protocol.
    pub protocol_type: Arc<str>,
    /// The protocol that the group uses.
    pub protocol: Arc<str>,
    /// The id of the leading member.
    pub leader: Arc<str>,
    /// Whether the leader keeps the assignment that the group has (KIP-814).
    pub skip_assignment: bool,
    /// For the leader, all members. Empty for others.
    pub members: Vec<JoinedMember>,
}

/// A member, for the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub member: Arc<str>,
    /// Its static id.
    pub instance: Option<Arc<str>>,
    /// What it says about itself in the group's protocol.
    pub metadata: Bytes,
}

/// A request for an assignment.
#[derive(Clone, Debug)]
pub struct ClassicSync {
    /// The sender.
    pub claim: Claim,
    /// The kind of protocol, if the sender's version of the API has it.
    pub protocol_type: Option<String>,
    /// The protocol, if the sender's version of the API has it.
    pub protocol: Option<String>,
    /// Of the leader, what each member is assigned.
    pub assignments: Vec<(String, ClassicAssignment)>,
}

/// What a member is assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassicAssignment {
    /// As the leader wrote it. The broker does not look inside.
    pub bytes: Bytes,
    /// The partitions in it, as far as they are known.
    pub partitions: Vec<TopicPartition>,
}

/// The answer to a request for an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The kind of protocol.
    pub protocol_type: Arc<str>,
    /// The protocol that the group uses.
    pub protocol: Arc<str>,
    /// The member's assignment.
    pub assignment: Bytes,
}

/// Who a sender says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The member's id.
    pub member: String,
    /// Its static id.
    pub instance: Option<String>,
    /// Its generation.
    pub generation: i32,
}

/// Waits for the answer to a member that joins. If the sender is gone, another request of the member took its place.
pub type WaitForJoin = oneshot::Receiver<Result<Joined>>;

/// Waits for a member's assignment.
pub type WaitForSync = oneshot::Receiver<Result<Synced>>;

/// The phase of the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// There are no members.
    #[default]
    Empty,
    /// The members join.
    Preparing,
    /// The members wait for the leader's assignment.
    Completing,
    /// Every member can have its assignment.
    Stable,
}

impl Phase {
    /// Returns Kafka's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Preparing => "PreparingRebalance",
            Self::Completing => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

#[derive(Debug)]
struct Member {
    instance: Option<Arc<str>>,
    client_id: Arc<str>,
    client_host: Arc<str>,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    protocols: Vec<JoinProtocol>,
    assignment: ClassicAssignment,
    /// When the member is removed if it sends nothing. It does not count while the member waits for an answer.
    deadline: Instant,
    joining: Option<oneshot::Sender<Result<Joined>>>,
    syncing: Option<oneshot::Sender<Result<Synced>>>,
    /// Whether the member has asked for the assignment of this generation.
    synced: bool,
}

impl Member {
    fn waits(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|own| &*own.name == protocol)
    }

    fn bytes(&self) -> usize {
        protocols_bytes(&self.protocols) + self.assignment.bytes.len()
    }

    fn metadata(&self, protocol: &str) -> Bytes {
        let own = self.protocols.iter().find(|own| &*own.name == protocol);
        own.map(|own| own.metadata.clone()).unwrap_or_default()
    }
}

fn protocols_bytes(protocols: &[JoinProtocol]) -> usize {
    protocols.iter().map(|protocol| protocol.name.len() + protocol.metadata.len()).sum()
}

/// A description of a member.
#[derive(Clone, Debug)]
pub struct ClassicMember {
    /// Its id.
    pub member: Arc<str>,
    /// Its static id.
    pub instance: Option<Arc<str>>,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// The client's address.
    pub client_host: Arc<str>,
    /// What it says about itself in the group's protocol.
    pub metadata: Bytes,
    /// Its assignment.
    pub assignment: ClassicAssignment,
}

/// The members of one group.
#[derive(Debug, Default)]
pub struct Classic {
    phase: Phase,
    generation: i32,
    protocol_type: Option<Arc<str>>,
    protocol: Option<Arc<str>>,
    leader: Option<Arc<str>>,
    /// In the order in which they joined.
    members: IndexMap<Arc<str>, Member>,
    /// Member ids by static id.
    instances: HashMap<Arc<str>, Arc<str>>,
    /// Ids that new members must join with, and until when (KIP-394).
    pending: HashMap<Arc<str>, Instant>,
    /// When the phase ends if members are missing.
    phase_ends: Option<Instant>,
    /// In the first rebalance of an empty group, until when the phase may be prolonged for further members.
    initial_until: Option<Instant>,
    /// Whether the leader has brought the assignments of this generation, and they are not kept yet.
    is_assigned: bool,
    /// Whether something is kept of the group.
    is_kept: bool,
}

impl Classic {
    /// Adds a member, or notes that a member has joined the rebalance. The answer follows when all members have.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn join(&mut self, join: ClassicJoin, limits: ClassicLimits, now: Instant) -> Result<WaitForJoin> {
        self.check_protocols(&join)?;
        if join.member.is_empty() {
            return self.join_new(join, limits, now);
        }
        if self.pending.contains_key(join.member.as_str()) {
            self.check_room(&join, limits)?;
            self.pending.remove(join.member.as_str());
            let id: Arc<str> = join.member.as_str().into();
            return Ok(self.add(id, join, limits, now));
        }
        self.check_member(&join.member, join.instance.as_deref())?;
        let id: Arc<str> = join.member.as_str().into();
        let unchanged = self.members[&id].protocols == join.protocols;
        match self.phase {
            // The answer to an earlier request was lost.
            Phase::Completing if unchanged => Ok(self.answer_at_once(&id, now)),
            // A leader that joins again asks for a rebalance, for example because topics changed.
            Phase::Stable if unchanged && self.leader.as_ref() != Some(&id) => Ok(self.answer_at_once(&id, now)),
            _ => Ok(self.join_again(&id, join, limits, now)),
        }
    }

    fn join_new(&mut self, join: ClassicJoin, limits: ClassicLimits, now: Instant) -> Result<WaitForJoin> {
        let prefix = join.instance.as_ref().unwrap_or(&join.client_id);
        let id: Arc<str> = format!("{prefix}-{}", Uuid::new_v4()).into();
        if let Some(replaced) = join.instance.as_ref().and_then(|instance| self.instances.get(instance)).cloned() {
            return Ok(self.replace(&replaced, id, join, limits, now));
        }
        self.check_room(&join, limits)?;
        if join.instance.is_none() && join.needs_id {
            self.pending.insert(id.clone(), now + join.session_timeout);
            return Err(MemberError::MemberIdRequired { member: id });
        }
        Ok(self.add(id, join, limits, now))
    }

    fn check_room(&self, join: &ClassicJoin, limits: ClassicLimits) -> Result<()> {
        let full = |bound: String| Err(MemberError::Full { bound });
        if self.members.len() >= limits.members_max {
            return full(format!("it has {} members, which is the maximum", self.members.len()));
        }
        if self.pending.len() >= PENDING_MAX {
            return full(format!("{PENDING_MAX} new members have not joined with the ids that they were given"));
        }
        let bytes = self.members.values().map(Member::bytes).sum::<usize>() + protocols_bytes(&join.protocols);
        if bytes > MEMBERS_BYTES_MAX {
            return full(format!(
                "its members would say {bytes} bytes about themselves, {MEMBERS_BYTES_MAX} are allowed"
            ));
        }
        Ok(())
    }

    /// Checks that there is a protocol which the joining member and all others support.
    fn check_protocols(&self, join: &ClassicJoin) -> Result<()> {
        let inconsistent = |reason: String| Err(MemberError::Inconsistent { reason });
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return inconsistent("the member names no protocol".to_owned());
        }
        match &self.protocol_type {
            Some(own) if !self.members.is_empty() && **own != *join.protocol_type => {
                return inconsistent(format!(
                    "the member's protocols are of the type {:?}, and the group's of {own:?}",
                    join.protocol_type
                ));
            }
            _ => {}
        }
        let others = || self.members.iter().filter(|(id, _)| ***id != *join.member).map(|(_, member)| member);
        if join.protocols.iter().any(|protocol| others().all(|other| other.supports(&protocol.name))) {
            return Ok(());
        }
        let own: Vec<&str> = join.protocols.iter().map(|protocol| &*protocol.name).collect();
        inconsistent(format!("the other members of the group support none of {}", own.join(", ")))
    }

    /// Checks that a member exists, and that nobody has taken its static id over.
    fn check_member(&self, member: &str, instance: Option<&str>) -> Result<()> {
        if let Some(instance) = instance {
            match self.instances.get(instance) {
                Some(current) if **current == *member => {}
                Some(_) => {
                    return Err(MemberError::FencedInstance {
                        instance: instance.to_owned(),
                        member: member.to_owned(),
                    });
                }
                None => return Err(MemberError::UnknownMember { member: member.to_owned() }),
            }
        }
        match self.members.contains_key(member) {
            true => Ok(()),
            false => Err(MemberError::UnknownMember { member: member.to_owned() }),
        }
    }

    fn check_generation(&self, generation: i32) -> Result<()> {
        if generation == self.generation {
            return Ok(());
        }
        Err(MemberError::IllegalGeneration { generation, current: self.generation })
    }

    fn add(&mut self, id: Arc<str>, join: ClassicJoin, limits: ClassicLimits, now: Instant) -> WaitForJoin {
        let (answer, wait) = oneshot::channel();
        if let Some(instance) = &join.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        self.leader.get_or_insert_with(|| id.clone());
        let member = Member {
            deadline: now + join.session_timeout,
            instance: join.instance,
            client_id: join.client_id,
            client_host: join.client_host,
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout,
            protocols: join.protocols,
            assignment: ClassicAssignment::default(),
            joining: Some(answer),
            syncing: None,
            synced: false,
        };
        self.members.insert(id, member);
        // The first rebalance of a group waits again for each further member.
        if let Some(until) = self.initial_until {
            self.phase_ends = Some((now + limits.initial_delay).min(until));
        }
        self.prepare(limits, now);
        wait
    }

    /// Notes a changed member that joins, and begins a rebalance if there is none.
    fn join_again(&mut self, id: &Arc<str>, join: ClassicJoin, limits: ClassicLimits, now: Instant) -> WaitForJoin {
        let (answer, wait) = oneshot::channel();
        let member = &mut self.members[id];
        member.client_id = join.client_id;
        member.client_host = join.client_host;
        member.session_timeout = join.session_timeout;
        member.rebalance_timeout = join.rebalance_timeout;
        member.protocols = join.protocols;
        member.joining = Some(answer);
        member.deadline = now + join.session_timeout;
        self.prepare(limits, now);
        wait
    }

    /// Replaces a static member by one with the same static id, which was started again. The assignment stays if the
    /// group's protocol does.
    fn replace(
        &mut self,
        replaced: &Arc<str>,
        id: Arc<str>,
        join: ClassicJoin,
        limits: ClassicLimits,
        now: Instant,
    ) -> WaitForJoin {
        let leader_before = self.leader.clone();
        let Some((index, _, mut member)) = self.members.shift_remove_full(replaced) else {
            // Static ids are only noted for members.
            return self.add(id, join, limits, now);
        };
        let fenced = || MemberError::FencedInstance {
            instance: join.instance.as_deref().unwrap_or_default().to_owned(),
            member: replaced.to_string(),
        };
        // A request of the replaced member whose connection is gone needs no answer.
        member.joining.take().map(|waiting| waiting.send(Err(fenced())));
        member.syncing.take().map(|waiting| waiting.send(Err(fenced())));
        self.members.shift_insert(index, id.clone(), member);
        if let Some(instance) = &join.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        if self.leader.as_ref() == Some(replaced) {
            self.leader = Some(id.clone());
        }
        if self.phase != Phase::Stable {
            return self.join_again(&id, join, limits, now);
        }
        let may_skip = join.may_skip_assignment;
        let member = &mut self.members[&id];
        member.protocols.clone_from(&join.protocols);
        if self.choose_protocol() != self.protocol {
            return self.join_again(&id, join, limits, now);
        }
        let member = &mut self.members[&id];
        member.client_id = join.client_id;
        member.client_host = join.client_host;
        member.session_timeout = join.session_timeout;
        member.rebalance_timeout = join.rebalance_timeout;
        let mut joined = self.joined(&id);
        if may_skip {
            joined.skip_assignment = self.leader.as_ref() == Some(&id);
        } else {
            // A client that does not know of this must not assign: it is told that another member leads.
            joined.members.clear();
            joined.leader = leader_before.unwrap_or(joined.leader);
        }
        self.touch(&id, now);
        answered(Ok(joined))
    }

    /// Answers a member that has joined the current generation.
    fn answer_at_once(&mut self, id: &Arc<str>, now: Instant) -> WaitForJoin {
        self.touch(id, now);
        answered(Ok(self.joined(id)))
    }

    /// Returns the answer to a member that joined the current generation.
    fn joined(&self, id: &Arc<str>) -> Joined {
        let protocol = self.protocol.clone().unwrap_or_default();
        let leader = self.leader.clone().unwrap_or_default();
        let member = |(id, member): (&Arc<str>, &Member)| JoinedMember {
            member: id.clone(),
            instance: member.instance.clone(),
            metadata: member.metadata(&protocol),
        };
        let members = if leader == *id { self.members.iter().map(member).collect() } else { Vec::new() };
        Joined {
            member: id.clone(),
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol,
            leader,
            skip_assignment: false,
            members,
        }
    }

    /// Begins a rebalance, unless there is one already. Completes it if all members have joined.
    fn prepare(&mut self, limits: ClassicLimits, now: Instant) {
        if self.phase != Phase::Preparing {
            for member in self.members.values_mut() {
                member.synced = false;
                if let Some(waiting) = member.syncing.take() {
                    member.deadline = now + member.session_timeout;
                    // The peer may be gone.
                    let _ = waiting.send(Err(MemberError::Rebalancing));
                }
            }
            let whole = self.rebalance_timeout();
            if self.phase == Phase::Empty && !limits.initial_delay.is_zero() {
                self.initial_until = Some(now + whole.max(limits.initial_delay));
                self.phase_ends = Some(now + limits.initial_delay);
            } else {
                self.initial_until = None;
                self.phase_ends = Some(now + whole);
            }
            self.phase = Phase::Preparing;
            self.is_assigned = false;
        }
        self.complete_if_all_joined(now);
    }

    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default()
    }

    fn complete_if_all_joined(&mut self, now: Instant) {
        let all = self.pending.is_empty() && self.members.values().all(|member| member.joining.is_some());
        if self.phase == Phase::Preparing && self.initial_until.is_none() && all {
            self.complete(now);
        }
    }

    /// Ends the phase in which members join: a generation of those that have begins.
    fn complete(&mut self, now: Instant) {
        let missing = |member: &Member| member.joining.is_none() && member.instance.is_none();
        self.members.retain(|_, member| !missing(member));
        let leads = |id: &Arc<str>| self.members.get(id).is_some_and(|member| member.joining.is_some());
        if !self.leader.as_ref().is_some_and(leads) {
            let next = self.members.iter().find(|(_, member)| member.joining.is_some());
            let next = next.map(|(id, _)| id.clone());
            if next.is_none() && !self.members.is_empty() {
                // Only static members are left, and none has joined. They have until their sessions end.
                self.phase_ends = Some(now + self.rebalance_timeout());
                self.initial_until = None;
                return;
            }
            self.leader = next;
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.is_assigned = false;
        self.initial_until = None;
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.protocol = None;
            self.phase_ends = None;
            return;
        }
        self.protocol = self.choose_protocol();
        self.phase = Phase::Completing;
        self.phase_ends = Some(now + self.rebalance_timeout());
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            let member = &mut self.members[&id];
            member.synced = false;
            if let Some(waiting) = member.joining.take() {
                member.deadline = now + member.session_timeout;
                // The peer may be gone. Its session ends then.
                let _ = waiting.send(Ok(joined));
            }
        }
    }

    /// Returns the protocol with the most votes. Each member votes for its first one that all members support.
    fn choose_protocol(&self) -> Option<Arc<str>> {
        let mut votes: IndexMap<&Arc<str>, usize> = IndexMap::new();
        for member in self.members.values() {
            let is_common =
                |protocol: &&JoinProtocol| self.members.values().all(|other| other.supports(&protocol.name));
            if let Some(protocol) = member.protocols.iter().find(is_common) {
                *votes.entry(&protocol.name).or_default() += 1;
            }
        }
        let mut best: Option<(&Arc<str>, usize)> = None;
        for (name, votes) in votes {
            if best.is_none_or(|(_, most)| votes > most) {
                best = Some((name, votes));
            }
        }
        best.map(|(name, _)| name.clone())
    }

    /// Asks for a member's assignment. The leader brings the assignments of all. The answer follows when it has.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn sync(&mut self, sync: ClassicSync, now: Instant) -> Result<WaitForSync> {
        self.check(&sync.claim)?;
        let differs = |sent: &Option<String>, own: &Option<Arc<str>>| {
            sent.as_deref().is_some_and(|sent| own.as_deref() != Some(sent))
        };
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            let reason = format!(
                "the member syncs with the protocol {:?}, and the group uses {:?}",
                sync.protocol.unwrap_or_default(),
                self.protocol.as_deref().unwrap_or_default()
            );
            return Err(MemberError::Inconsistent { reason });
        }
        let id: Arc<str> = sync.claim.member.as_str().into();
        match self.phase {
            Phase::Empty => Err(MemberError::UnknownMember { member: sync.claim.member }),
            Phase::Preparing => Err(MemberError::Rebalancing),
            Phase::Stable => {
                self.members[&id].synced = true;
                self.end_if_all_synced();
                self.touch(&id, now);
                Ok(answered(Ok(self.synced(&id))))
            }
            Phase::Completing => {
                let (answer, wait) = oneshot::channel();
                let member = &mut self.members[&id];
                member.synced = true;
                member.syncing = Some(answer);
                if self.leader.as_ref() == Some(&id) {
                    self.assign(sync.assignments);
                }
                self.end_if_all_synced();
                Ok(wait)
            }
        }
    }

    /// Takes the leader's assignments over.
    fn assign(&mut self, assignments: Vec<(String, ClassicAssignment)>) {
        let mut assignments: HashMap<String, ClassicAssignment> = assignments.into_iter().collect();
        for (id, member) in &mut self.members {
            member.assignment = assignments.remove(&**id).unwrap_or_default();
        }
        self.is_assigned = true;
    }

    /// Returns whether something must be stored before the members get their assignments.
    pub fn is_to_keep(&self) -> bool {
        self.phase == Phase::Completing && self.is_assigned
    }

    /// Returns what must be stored before the members get their assignments, if there is something.
    pub fn to_keep(&self) -> Option<Kept> {
        if !self.is_to_keep() {
            return None;
        }
        let member = |(id, member): (&Arc<str>, &Member)| KeptMember {
            member: id.to_string(),
            instance: member.instance.as_deref().map(str::to_owned),
            client_id: member.client_id.to_string(),
            client_host: member.client_host.to_string(),
            session_timeout_ms: member.session_timeout.as_millis() as u64,
            rebalance_timeout_ms: member.rebalance_timeout.as_millis() as u64,
            protocols: member.protocols.iter().map(Into::into).collect(),
            assignment: Base64(member.assignment.bytes.clone()),
            partitions: (member.assignment.partitions.iter())
                .map(|partition| (partition.topic.to_string(), partition.partition))
                .collect(),
        };
        Some(Kept {
            generation: self.generation,
            protocol_type: self.protocol_type.as_deref().unwrap_or_default().to_owned(),
            protocol: self.protocol.as_deref().unwrap_or_default().to_owned(),
            leader: self.leader.as_deref().unwrap_or_default().to_owned(),
            members: self.members.iter().map(member).collect(),
        })
    }

    /// Notes that the assignments of a generation are kept, and answers those that wait for theirs.
    pub fn kept(&mut self, generation: i32, now: Instant) {
        self.is_kept = true;
        if self.generation != generation || self.phase != Phase::Completing || !self.is_assigned {
            return;
        }
        self.phase = Phase::Stable;
        self.is_assigned = false;
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            let synced = self.synced(&id);
            let member = &mut self.members[&id];
            if let Some(waiting) = member.syncing.take() {
                member.deadline = now + member.session_timeout;
                // The peer may be gone. Its session ends then.
                let _ = waiting.send(Ok(synced));
            }
        }
    }

    /// Returns whether what is kept of the group must be removed, because there are no members any more.
    pub fn is_to_forget(&self) -> bool {
        self.is_kept && self.members.is_empty()
    }

    /// Notes that nothing is kept of the group.
    pub fn forgotten(&mut self) {
        self.is_kept = false;
    }

    /// Returns a group whose members are those that were kept. Their sessions begin anew.
    pub fn restore(kept: &Kept, now: Instant) -> Self {
        let mut restored = Self {
            phase: Phase::Stable,
            generation: kept.generation,
            protocol_type: Some(kept.protocol_type.as_str().into()),
            protocol: Some(kept.protocol.as_str().into()),
            leader: Some(kept.leader.as_str().into()),
            is_kept: true,
            ..Self::default()
        };
        for kept in &kept.members {
            let id: Arc<str> = kept.member.as_str().into();
            let session_timeout = Duration::from_millis(kept.session_timeout_ms);
            let instance: Option<Arc<str>> = kept.instance.as_deref().map(Into::into);
            if let Some(instance) = &instance {
                restored.instances.insert(instance.clone(), id.clone());
            }
            let member = Member {
                instance,
                client_id: kept.client_id.as_str().into(),
                client_host: kept.client_host.as_str().into(),
                session_timeout,
                rebalance_timeout: Duration::from_millis(kept.rebalance_timeout_ms),
                protocols: kept.protocols.iter().map(Into::into).collect(),
                assignment: kept_assignment(kept),
                deadline: now + session_timeout,
                joining: None,
                syncing: None,
                synced: true,
            };
            restored.members.insert(id, member);
        }
        restored
    }

    fn synced(&self, id: &Arc<str>) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: self.members[id].assignment.bytes.clone(),
        }
    }

    /// The phase in which members must ask for their assignments ends when all have.
    fn end_if_all_synced(&mut self) {
        if self.members.values().all(|member| member.synced) {
            self.phase_ends = None;
        }
    }

    /// Notes that a member is alive.
    ///
    /// # Errors
    /// [`MemberError`]. [`MemberError::Rebalancing`] if the member must join again.
    pub fn heartbeat(&mut self, claim: &Claim, now: Instant) -> Result<()> {
        self.check(claim)?;
        let id: Arc<str> = claim.member.as_str().into();
        self.touch(&id, now);
        match self.phase {
            Phase::Preparing => Err(MemberError::Rebalancing),
            _ => Ok(()),
        }
    }

    fn touch(&mut self, id: &Arc<str>, now: Instant) {
        let member = &mut self.members[id];
        member.deadline = now + member.session_timeout;
    }

    fn check(&self, claim: &Claim) -> Result<()> {
        self.check_member(&claim.member, claim.instance.as_deref())?;
        self.check_generation(claim.generation)
    }

    /// Refuses a commit of offsets by a sender that is not a member of this generation. A commit without a member id and
    /// a generation is of a client that reads without a group, which is allowed while there are no members. `in_transaction`
    /// says whether the offsets are part of a transaction: early versions of it name no member.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn check_commit(&self, claim: &Claim, in_transaction: bool) -> Result<()> {
        if claim.generation < 0 && self.members.is_empty() {
            return Ok(());
        }
        if claim.generation >= 0 || !claim.member.is_empty() || claim.instance.is_some() {
            self.check(claim)?;
        } else if !in_transaction {
            return Err(MemberError::UnknownMember { member: claim.member.clone() });
        }
        match self.phase {
            Phase::Completing if !in_transaction => Err(MemberError::Rebalancing),
            _ => Ok(()),
        }
    }

    /// Removes a member that leaves. A static member may be named by its static id alone, with an empty member id.
    ///
    /// # Errors
    /// [`MemberError::UnknownMember`], [`MemberError::FencedInstance`].
    pub fn leave(&mut self, member: &str, instance: Option<&str>, limits: ClassicLimits, now: Instant) -> Result<()> {
        if member.is_empty()
            && let Some(instance) = instance
        {
            let id = self.instances.get(instance).cloned();
            let id = id.ok_or_else(|| MemberError::UnknownMember { member: String::new() })?;
            self.remove(&id, limits, now);
            return Ok(());
        }
        if self.pending.remove(member).is_some() {
            self.complete_if_all_joined(now);
            return Ok(());
        }
        self.check_member(member, instance)?;
        self.remove(&member.into(), limits, now);
        Ok(())
    }

    fn remove(&mut self, id: &Arc<str>, limits: ClassicLimits, now: Instant) {
        let Some(member) = self.members.shift_remove(id) else { return };
        let gone = || MemberError::UnknownMember { member: id.to_string() };
        // The peer may be gone.
        member.joining.map(|waiting| waiting.send(Err(gone())));
        member.syncing.map(|waiting| waiting.send(Err(gone())));
        if let Some(instance) = &member.instance
            && self.instances.get(instance) == Some(id)
        {
            self.instances.remove(instance);
        }
        if self.leader.as_ref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
        self.prepare(limits, now);
    }

    /// Returns when [`Self::on_time`] must be called next.
    pub fn deadline(&self) -> Option<Instant> {
        let sessions = self.members.values().filter(|member| !member.waits()).map(|member| member.deadline);
        sessions.chain(self.pending.values().copied()).chain(self.phase_ends).min()
    }

    /// Removes members whose sessions are over, and ends a phase whose time is over.
    pub fn on_time(&mut self, limits: ClassicLimits, now: Instant) {
        let pending = self.pending.len();
        self.pending.retain(|_, until| now < *until);
        if self.pending.len() < pending {
            self.complete_if_all_joined(now);
        }
        let expired: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, member)| !member.waits() && member.deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            // An earlier removal may have answered this member.
            if self.members.get(&id).is_some_and(|member| !member.waits() && member.deadline <= now) {
                self.remove(&id, limits, now);
            }
        }
        if self.phase_ends.is_none_or(|ends| now < ends) {
            return;
        }
        match self.phase {
            Phase::Preparing => self.complete(now),
            Phase::Completing | Phase::Stable => {
                self.phase_ends = None;
                let late: Vec<_> =
                    self.members.iter().filter(|(_, member)| !member.synced).map(|(id, _)| id.clone()).collect();
                late.iter().for_each(|id| self.remove(id, limits, now));
            }
            Phase::Empty => self.phase_ends = None,
        }
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns the kind of protocol, which is empty if there never was a member.
    pub fn protocol_type(&self) -> Arc<str> {
        self.protocol_type.clone().unwrap_or_default()
    }

    /// Returns the protocol that the group uses, which is empty while members join.
    pub fn protocol(&self) -> Arc<str> {
        match self.phase {
            Phase::Stable | Phase::Completing => self.protocol.clone().unwrap_or_default(),
            Phase::Empty | Phase::Preparing => Arc::default(),
        }
    }

    /// Returns the topics that the members subscribe to.
    pub fn topics(&self) -> BTreeSet<TopicName> {
        let protocols = self.members.values().flat_map(|member| &member.protocols);
        protocols.flat_map(|protocol| protocol.topics.iter().cloned()).collect()
    }

    /// Returns whether a member subscribes to a topic.
    pub fn reads(&self, topic: &TopicName) -> bool {
        let mut protocols = self.members.values().flat_map(|member| &member.protocols);
        protocols.any(|protocol| protocol.topics.contains(topic))
    }

    /// Describes the members, in the order in which they joined.
    pub fn describe(&self) -> Vec<ClassicMember> {
        let protocol = self.protocol();
        let is_stable = self.phase == Phase::Stable;
        let member = |(id, member): (&Arc<str>, &Member)| ClassicMember {
            member: id.clone(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: if is_stable { member.metadata(&protocol) } else { Bytes::new() },
            assignment: if is_stable { member.assignment.clone() } else { ClassicAssignment::default() },
        };
        self.members.iter().map(member).collect()
    }
}

impl From<&JoinProtocol> for KeptProtocol {
    fn from(protocol: &JoinProtocol) -> Self {
        Self {
            name: protocol.name.to_string(),
            metadata: Base64(protocol.metadata.clone()),
            topics: protocol.topics.iter().map(TopicName::to_string).collect(),
        }
    }
}

impl From<&KeptProtocol> for JoinProtocol {
    fn from(kept: &KeptProtocol) -> Self {
        Self {
            name: Arc::from(kept.name.as_str()),
            metadata: kept.metadata.0.clone(),
            // A name that is no longer valid is of no topic.
            topics: kept.topics.iter().filter_map(|topic| TopicName::new(topic).ok()).collect(),
        }
    }
}

/// Returns the assignment of a member that was kept.
fn kept_assignment(kept: &KeptMember) -> ClassicAssignment {
    let partition = |(topic, partition): &(String, u32)| {
        TopicName::new(topic).ok().map(|topic| TopicPartition { topic, partition: *partition })
    };
    ClassicAssignment {
        bytes: kept.assignment.0.clone(),
        partitions: kept.partitions.iter().filter_map(partition).collect(),
    }
}

/// Returns an answer that is there already.
fn answered<T>(answer: Result<T>) -> oneshot::Receiver<Result<T>> {
    let (sender, receiver) = oneshot::channel();
    // The receiver is in this function.
    let _ = sender.send(answer);
    receiver
}
