//! The members of a consumer group: joining, the cooperative hand-over of partitions (KIP-848, KIP-429), leaving.
//!
//! ```text
//!  join ──► owned grows by free partitions ◄───────────┐
//!             │ another member's join or leave         │
//!             ▼                                        │
//!           Revoke(partitions) ──► Revoked ──► free ───┘
//!             │ no Revoked before the member's deadline
//!             ▼
//!           removed; all that it owned is free
//! ```
//! A partition has at most one owner at any time, because it is only assigned when nobody owns it. The state machine
//! gets the time as an argument. Its caller must call [`Members::remove_overdue`] when a deadline has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regex_lite::Regex;
use tokio::sync::mpsc;

use super::assign::{Assignment, Assignor};
use super::member_id::MemberId;
use crate::name::TopicName;
use crate::name::TopicPartition;
use crate::store::place::TopicId;

/// Topics that members may read, with the incarnation and the number of partitions of each.
pub type KnownTopics = BTreeMap<TopicName, (TopicId, u32)>;

/// A notification from the group to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// The member gets partitions in addition to those that it has.
    Assigned {
        /// The group's generation.
        generation: u64,
        /// The new partitions. May be empty.
        added: Vec<TopicPartition>,
        /// All partitions that the member has after this.
        all: Vec<TopicPartition>,
    },
    /// The member must give partitions back. It first commits, and then confirms.
    Revoke {
        /// The group's generation.
        generation: u64,
        /// The partitions that are moved to other members.
        partitions: Vec<TopicPartition>,
        /// When the member is removed if it has not given them back.
        deadline: Instant,
    },
}

/// The properties of a member that joins.
#[derive(Clone, Debug)]
pub struct NewMember {
    /// The name that the client chose for itself. It may be empty.
    pub client_id: String,
    /// The topics that it reads.
    pub topics: BTreeSet<TopicName>,
    /// How long it may take to give partitions back.
    pub rebalance_timeout: Duration,
    /// The assignor that it asks for. `None` if it leaves the choice to the group.
    pub assignor: Option<Assignor>,
}

/// The context of a change.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The generation that begins with the change.
    pub generation: u64,
    /// The topics that members may read.
    pub topics: &'a KnownTopics,
    /// The current time.
    pub now: Instant,
}

/// What a member that sends heartbeats is beside its topics and partitions.
#[derive(Debug)]
pub(super) struct Beating {
    pub(super) name: Arc<str>,
    pub(super) instance: Option<Arc<str>>,
    pub(super) client_host: Arc<str>,
    /// The topics that it names. Those that its pattern matches are not among them.
    pub(super) named: BTreeSet<TopicName>,
    pub(super) pattern: Option<Regex>,
    pub(super) session_timeout: Duration,
    /// When the member is removed if it sends nothing.
    pub(super) session_ends: Instant,
    /// The epoch and the partitions in the last answer, and the epoch in the one before.
    pub(super) told: (u64, BTreeSet<TopicPartition>),
    pub(super) told_before: u64,
    /// Whether the static member left in order to return.
    pub(super) is_away: bool,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) client_id: String,
    pub(super) topics: BTreeSet<TopicName>,
    pub(super) rebalance_timeout: Duration,
    pub(super) assignor: Option<Assignor>,
    /// The last generation in which the member had nothing left to give back.
    pub(super) epoch: u64,
    /// The partitions that it may read and commit, with the incarnations of the topics.
    pub(super) owned: BTreeMap<TopicPartition, TopicId>,
    /// The subset of `owned` that it was asked to give back.
    pub(super) revoking: BTreeSet<TopicPartition>,
    /// When it must have given them back.
    deadline: Option<Instant>,
    /// Notifies a member that has a stream. Others hear of changes when they send heartbeats.
    events: Option<mpsc::UnboundedSender<MemberEvent>>,
    /// Whether it was notified of its first assignment.
    greeted: bool,
    /// What a member that sends heartbeats is beside that.
    pub(super) beating: Option<Beating>,
}

impl Member {
    /// Creates a member that owns nothing yet.
    pub(super) fn new(new: NewMember, epoch: u64) -> Self {
        let NewMember { client_id, topics, rebalance_timeout, assignor } = new;
        Self {
            client_id,
            topics,
            rebalance_timeout,
            assignor,
            epoch,
            owned: BTreeMap::new(),
            revoking: BTreeSet::new(),
            deadline: None,
            events: None,
            greeted: false,
            beating: None,
        }
    }

    /// Sends an event to a member that has a stream. Sending fails if the stream just ended: the member is then about to be
    /// removed.
    fn notify(&self, event: MemberEvent) {
        if let Some(events) = &self.events {
            let _ = events.send(event);
        }
    }

    /// Returns the partitions that it may have: those that it owns and is not to give back.
    pub(super) fn assignment(&self) -> BTreeSet<TopicPartition> {
        self.owned.keys().filter(|partition| !self.revoking.contains(partition)).cloned().collect()
    }

    /// Returns when the member is removed if nothing comes of it.
    fn removal(&self) -> Option<Instant> {
        let session = self.beating.as_ref().map(|beating| beating.session_ends);
        self.deadline.into_iter().chain(session).min()
    }
}

/// The members of one group.
#[derive(Debug, Default)]
pub struct Members {
    pub(super) members: BTreeMap<MemberId, Member>,
    pub(super) target: Assignment,
    /// The incarnations of the topics in `target`.
    topic_ids: BTreeMap<TopicName, TopicId>,
    joined: u64,
}

impl Members {
    /// Adds a member and rebalances.
    pub fn join(&mut self, new: NewMember, of: Circumstances<'_>) -> (MemberId, mpsc::UnboundedReceiver<MemberEvent>) {
        // The channel is unbounded, but holds at most two events for each partition that moves.
        let (events, receiver) = mpsc::unbounded_channel();
        let member = Member { events: Some(events), ..Member::new(new, of.generation) };
        let id = self.add(member);
        self.rebalance(of);
        (id, receiver)
    }

    /// Adds a member, without rebalancing.
    pub(super) fn add(&mut self, member: Member) -> MemberId {
        self.joined += 1;
        let id = MemberId::new(self.joined);
        self.members.insert(id, member);
        id
    }

    /// Removes a member, whose partitions become free, and rebalances.
    pub fn leave(&mut self, id: &MemberId, of: Circumstances<'_>) {
        if self.members.remove(id).is_some() {
            self.rebalance(of);
        }
    }

    /// Returns whether the deadline of a member has passed.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Returns when [`Self::remove_overdue`] must be called next.
    pub fn deadline(&self) -> Option<Instant> {
        self.members.values().filter_map(Member::removal).min()
    }

    /// Removes the members that did not give partitions back by their deadlines, or sent no heartbeats. Their event channels
    /// are closed.
    pub fn remove_overdue(&mut self, of: Circumstances<'_>) {
        self.members.retain(|_, member| member.removal().is_none_or(|removal| of.now < removal));
        self.rebalance(of);
    }

    /// Notes that a member gave partitions back. It keeps those that it was not asked for.
    pub fn revoked(&mut self, id: &MemberId, partitions: &[TopicPartition], generation: u64, now: Instant) {
        let Some(member) = self.members.get_mut(id) else { return };
        for partition in partitions {
            if member.revoking.remove(partition) {
                member.owned.remove(partition);
            }
        }
        self.reconcile(generation, now);
    }

    /// Assigns all partitions again after members or topics changed.
    pub fn rebalance(&mut self, of: Circumstances<'_>) {
        let subscriptions = self.members.iter().map(|(id, member)| (*id, member.topics.clone())).collect();
        let counts = of.topics.iter().map(|(name, (_, count))| (name.clone(), *count)).collect();
        let current = std::mem::take(&mut self.target);
        self.target = self.assignor().assign(&subscriptions, &current, &counts);
        self.topic_ids = of.topics.iter().map(|(name, (id, _))| (name.clone(), *id)).collect();
        // Partitions that no longer exist, or whose topic was deleted and created again under the same name, have no
        // owner, and nobody is asked to give them back.
        for member in self.members.values_mut() {
            member.owned.retain(|partition, owned| {
                let known = of.topics.get(&partition.topic);
                known.is_some_and(|(id, count)| id == owned && partition.partition < *count)
            });
            member.revoking.retain(|partition| member.owned.contains_key(partition));
        }
        self.reconcile(of.generation, of.now);
    }

    /// Returns the assignor that most members ask for (KIP-848). If two have the same number of votes, the first one of
    /// [`Assignor::ALL`] is used, and so it is if no member asks for one.
    pub(crate) fn assignor(&self) -> Assignor {
        let votes = |assignor: &Assignor| self.members.values().filter(|m| m.assignor == Some(*assignor)).count();
        let most = Assignor::ALL.into_iter().rev().max_by_key(votes);
        most.unwrap_or_default()
    }

    /// Asks members to give back partitions that move, and assigns free partitions.
    fn reconcile(&mut self, generation: u64, now: Instant) {
        let mut taken: BTreeSet<TopicPartition> = BTreeSet::new();
        for (id, member) in &mut self.members {
            let target = &self.target[id];
            // If a partition is assigned to its owner again before the hand-over, it stays revoked, because the member
            // may have stopped reading it already. The member gives it back and gets it again.
            let is_moving =
                |partition: &&TopicPartition| !target.contains(partition) && !member.revoking.contains(partition);
            let moving: Vec<_> = member.owned.keys().filter(is_moving).cloned().collect();
            if !moving.is_empty() {
                let deadline = *member.deadline.get_or_insert(now + member.rebalance_timeout);
                member.revoking.extend(moving.iter().cloned());
                member.notify(MemberEvent::Revoke { generation, partitions: moving, deadline });
            }
            if member.revoking.is_empty() {
                member.deadline = None;
                member.epoch = generation;
            }
            taken.extend(member.owned.keys().cloned());
        }
        for (id, member) in &mut self.members {
            let added: Vec<_> = self.target[id].difference(&taken).cloned().collect();
            if added.is_empty() && member.greeted {
                continue;
            }
            member.greeted = true;
            member.owned.extend(added.iter().map(|partition| (partition.clone(), self.topic_ids[&partition.topic])));
            member.notify(MemberEvent::Assigned { generation, added, all: member.assignment().into_iter().collect() });
        }
    }

    /// Returns whether the member may commit for a partition of this topic.
    pub fn owns(&self, id: &MemberId, topic: TopicId, partition: &TopicPartition) -> bool {
        self.members.get(id).is_some_and(|member| member.owned.get(partition) == Some(&topic))
    }

    /// Returns the member's epoch (KIP-848), or `None` if it is not a member.
    pub fn epoch(&self, id: &MemberId) -> Option<u64> {
        self.members.get(id).map(|member| member.epoch)
    }

    /// Returns whether the member is still in the group.
    pub fn contains(&self, id: &MemberId) -> bool {
        self.members.contains_key(id)
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns whether partitions are being moved between members.
    pub fn is_rebalancing(&self) -> bool {
        self.members.values().any(|member| !member.revoking.is_empty())
    }

    /// Returns whether a member subscribes to this topic, by its name or by a pattern.
    pub fn reads(&self, topic: &TopicName) -> bool {
        self.members.values().any(|member| {
            let pattern = member.beating.as_ref().and_then(|beating| beating.pattern.as_ref());
            member.topics.contains(topic) || pattern.is_some_and(|pattern| pattern.is_match(topic.as_str()))
        })
    }

    /// Returns the topics that members subscribe to.
    pub fn topics(&self) -> BTreeSet<TopicName> {
        self.members.values().flat_map(|member| member.topics.iter().cloned()).collect()
    }

    /// Returns each member's ID, client ID and partitions.
    pub fn describe(&self) -> Vec<(String, String, Vec<TopicPartition>)> {
        let describe = |(id, member): (&MemberId, &Member)| {
            (self.shown(id), member.client_id.clone(), member.owned.keys().cloned().collect())
        };
        self.members.iter().map(describe).collect()
    }

    /// Returns a member's id as its client knows it.
    pub(super) fn shown(&self, id: &MemberId) -> String {
        let beating = self.members.get(id).and_then(|member| member.beating.as_ref());
        beating.map_or_else(|| id.to_string(), |beating| beating.name.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;

    type Events = mpsc::UnboundedReceiver<MemberEvent>;

    const ID: TopicId = TopicId(1);
    const TIMEOUT: Duration = Duration::from_secs(60);

    fn topics(count: u32) -> KnownTopics {
        BTreeMap::from([(topic(), (ID, count))])
    }

    fn of(topics: &KnownTopics, generation: u64) -> Circumstances<'_> {
        Circumstances { generation, topics, now: Instant::now() }
    }

    fn new(client_id: &str) -> NewMember {
        let topics = BTreeSet::from([topic()]);
        NewMember { client_id: client_id.to_owned(), topics, rebalance_timeout: TIMEOUT, assignor: None }
    }

    fn topic() -> TopicName {
        TopicName::new("t").unwrap()
    }

    #[derive(Default)]
    struct Model {
        members: Members,
        generation: u64,
        live: Vec<(MemberId, Events, BTreeSet<TopicPartition>)>,
        asked: Vec<(MemberId, Vec<TopicPartition>)>,
    }

    impl Model {
        fn topics() -> KnownTopics {
            topics(7)
        }

        fn join(&mut self) {
            self.generation += 1;
            let (id, events) = self.members.join(new("c"), of(&Self::topics(), self.generation));
            self.live.push((id, events, BTreeSet::new()));
        }

        fn leave(&mut self, which: usize) {
            if self.live.is_empty() {
                return;
            }
            let (id, ..) = self.live.remove(which % self.live.len());
            self.asked.retain(|(member, _)| *member != id);
            self.generation += 1;
            self.members.leave(&id, of(&Self::topics(), self.generation));
        }

        fn answer_one(&mut self, which: usize) {
            if self.asked.is_empty() {
                return;
            }
            let (id, partitions) = self.asked.remove(which % self.asked.len());
            if let Some((_, _, has)) = self.live.iter_mut().find(|(member, ..)| *member == id) {
                has.retain(|p| !partitions.contains(p));
            }
            self.members.revoked(&id, &partitions, self.generation, Instant::now());
        }

        fn drain(&mut self) {
            for (id, events, has) in &mut self.live {
                while let Ok(event) = events.try_recv() {
                    match event {
                        MemberEvent::Assigned { added, .. } => has.extend(added),
                        MemberEvent::Revoke { partitions, .. } => self.asked.push((*id, partitions)),
                    }
                }
            }
        }
    }

    fn events(of: &mut Events) -> Vec<MemberEvent> {
        std::iter::from_fn(|| of.try_recv().ok()).collect()
    }

    fn partition(number: u32) -> TopicPartition {
        TopicPartition { topic: topic(), partition: number }
    }

    #[test]
    fn what_a_member_was_not_asked_for_stays_its_own() {
        let (mut members, topics) = (Members::default(), topics(4));
        let (first, mut of_first) = members.join(new("a"), of(&topics, 1));
        let (second, _of_second) = members.join(new("b"), of(&topics, 2));
        let asked = match &events(&mut of_first)[..] {
            [MemberEvent::Assigned { .. }, MemberEvent::Revoke { partitions, .. }] => partitions.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(asked.len(), 2);
        let all: Vec<_> = (0..4).map(partition).collect();
        members.revoked(&first, &all, 3, Instant::now());
        for partition in &all {
            let moved = asked.contains(partition);
            assert_eq!(
                (members.owns(&first, ID, partition), members.owns(&second, ID, partition)),
                (!moved, moved),
                "{partition}"
            );
        }
        assert!(!members.is_rebalancing());
    }

    #[test]
    fn the_assignor_that_most_members_ask_for_is_used() {
        let (mut members, topics) = (Members::default(), topics(4));
        let voter = |assignor| NewMember { assignor, ..new("c") };
        let mut ids = Vec::new();
        for (generation, assignor) in [Some(Assignor::Range), None, Some(Assignor::Uniform)].into_iter().enumerate() {
            ids.push(members.join(voter(assignor), of(&topics, generation as u64)).0);
        }
        assert_eq!(members.assignor(), Assignor::Uniform, "two have one vote each");
        ids.push(members.join(voter(Some(Assignor::Range)), of(&topics, 3)).0);
        assert_eq!(members.assignor(), Assignor::Range);
        let range = members.target.values().filter(|owned| !owned.is_empty());
        assert!(range.into_iter().all(|owned| owned.len() == 1), "four members read four partitions");
        members.leave(&ids[3], of(&topics, 4));
        members.leave(&ids[0], of(&topics, 5));
        assert_eq!(members.assignor(), Assignor::Uniform);
    }

    #[test]
    fn what_a_member_is_to_give_back_is_not_of_its_assignment() {
        let mut members = Members::default();
        let (_, mut of_first) = members.join(new("a"), of(&topics(4), 1));
        members.join(new("b"), of(&topics(4), 2));
        members.rebalance(of(&topics(8), 3));
        match &events(&mut of_first)[..] {
            [
                MemberEvent::Assigned { .. },
                MemberEvent::Revoke { partitions, .. },
                MemberEvent::Assigned { added, all, .. },
            ] => {
                assert_eq!((partitions.len(), added.len(), all.len()), (2, 2, 4));
                assert!(
                    all.iter().all(|partition| !partitions.contains(partition)),
                    "{all:?} has some of {partitions:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_topic_that_goes_during_a_hand_over_ends_it() {
        let mut members = Members::default();
        let (first, _of_first) = members.join(new("a"), of(&topics(4), 1));
        let (_, mut of_second) = members.join(new("b"), of(&topics(4), 2));
        assert!(members.is_rebalancing());
        members.rebalance(of(&BTreeMap::new(), 3));
        assert!(!members.is_rebalancing(), "nobody gives back partitions of a deleted topic");
        assert!((0..4).all(|number| !members.owns(&first, ID, &partition(number))));
        // A late answer must not affect a topic of the same name that was created since.
        members.rebalance(of(&topics(1), 4));
        let owner = members.owns(&first, ID, &partition(0));
        members.revoked(&first, &[partition(0)], 5, Instant::now());
        assert_eq!(members.owns(&first, ID, &partition(0)), owner);
        assert!(events(&mut of_second).iter().all(|event| !matches!(event, MemberEvent::Revoke { .. })));
    }

    #[test]
    fn a_topic_that_is_made_again_is_another_one() {
        let mut members = Members::default();
        let (first, mut of_first) = members.join(new("a"), of(&topics(1), 1));
        assert!(members.owns(&first, ID, &partition(0)));
        let again = TopicId(2);
        members.rebalance(of(&BTreeMap::from([(topic(), (again, 1))]), 2));
        assert!(!members.owns(&first, ID, &partition(0)), "the records of the old topic are gone");
        assert!(members.owns(&first, again, &partition(0)));
        let told = events(&mut of_first);
        let is_assigned =
            |event: &MemberEvent| matches!(event, MemberEvent::Assigned { added, .. } if added.len() == 1);
        assert!(told.len() == 2 && told.iter().all(is_assigned), "{told:?}");
    }

    #[test]
    fn a_member_that_gives_nothing_back_is_removed_at_its_deadline() {
        let mut members = Members::default();
        let topics = topics(4);
        let begin = Instant::now();
        let at = |generation, passed| Circumstances { generation, topics: &topics, now: begin + passed };
        let (first, mut of_first) = members.join(new("a"), at(1, Duration::ZERO));
        let (second, _of_second) = members.join(new("b"), at(2, Duration::from_secs(1)));
        let deadline = begin + Duration::from_secs(1) + TIMEOUT;
        let told = events(&mut of_first);
        assert!(matches!(&told[1], MemberEvent::Revoke { deadline: told, .. } if *told == deadline), "{told:?}");
        // The member keeps the epoch of the last generation in which it had nothing to give back.
        assert_eq!((members.epoch(&first), members.epoch(&second)), (Some(1), Some(2)));
        assert!(!members.is_overdue(deadline - Duration::from_nanos(1)) && members.is_overdue(deadline));
        members.remove_overdue(at(3, TIMEOUT));
        assert_eq!(members.len(), 2, "it has one second left");
        members.remove_overdue(at(4, Duration::from_secs(1) + TIMEOUT));
        assert_eq!((members.epoch(&first), members.epoch(&second)), (None, Some(4)));
        assert!((0..4).all(|number| members.owns(&second, ID, &partition(number))));
        assert!(matches!(of_first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }

    proptest! {
        #![proptest_config(seeded())]

        #[test]
        fn a_partition_has_one_owner_at_every_moment_and_none_is_forgotten(
            steps in prop::collection::vec((0u8..4, 0usize..10), 1..60)
        ) {
            let mut model = Model::default();
            for (what, which) in steps {
                match what {
                    0 if model.live.len() < 9 => model.join(),
                    1 => model.leave(which),
                    _ => model.answer_one(which),
                }
                model.drain();
                let owned: Vec<_> = model.live.iter().flat_map(|(_, _, has)| has).collect();
                let distinct: BTreeSet<_> = owned.iter().collect();
                prop_assert_eq!(owned.len(), distinct.len(), "two members own a partition");
            }
            while !model.asked.is_empty() {
                model.answer_one(0);
                model.drain();
            }
            if !model.live.is_empty() {
                let owned: BTreeSet<_> = model.live.iter().flat_map(|(_, _, has)| has.iter().cloned()).collect();
                prop_assert_eq!(owned.len(), 7);
                prop_assert!(!model.members.is_rebalancing());
            }
        }
    }
}
