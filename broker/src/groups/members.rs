//! A consumer group's members: joining, the cooperative hand-over of partitions, leaving.
//!
//! ```text
//!  join ──► owned grows by what is free ◄──────────────┐
//!             │ another member's join or leave         │
//!             ▼                                        │
//!           Revoke(what moves) ──► Revoked ──► free ───┘
//!             │ no Revoked within the rebalance timeout
//!             ▼
//!           removed, all that it owned is free
//! ```
//! A partition has one owner at every moment: it is assigned only when nobody owns it.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;

use super::assign::{Assignment, MemberId, assign};
use crate::name::TopicName;
use crate::name::TopicPartition;

/// What the group tells a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// These are yours now, beside what you have. May be empty.
    Assigned {
        /// The group's generation.
        generation: u64,
        /// New ones.
        added: Vec<TopicPartition>,
        /// All that the member has after this.
        all: Vec<TopicPartition>,
    },
    /// Give these back: commit, then say so.
    Revoke {
        /// The group's generation.
        generation: u64,
        /// What moves.
        partitions: Vec<TopicPartition>,
    },
}

#[derive(Debug)]
struct Member {
    client_id: String,
    topics: BTreeSet<TopicName>,
    /// What it may read and commit.
    owned: BTreeSet<TopicPartition>,
    /// The part of `owned` that it was asked to give back.
    revoking: BTreeSet<TopicPartition>,
    events: mpsc::UnboundedSender<MemberEvent>,
    /// Whether it was told of its first assignment.
    greeted: bool,
}

/// The members of one group.
#[derive(Debug, Default)]
pub struct Members {
    members: BTreeMap<MemberId, Member>,
    target: Assignment,
    next_id: u64,
}

impl Members {
    /// Adds a member and assigns anew. `generation` is the group's next one.
    pub fn join(
        &mut self,
        client_id: &str,
        topics: BTreeSet<TopicName>,
        partitions: &BTreeMap<TopicName, u32>,
        generation: u64,
    ) -> (MemberId, mpsc::UnboundedReceiver<MemberEvent>) {
        self.next_id += 1;
        let prefix = if client_id.is_empty() { "member" } else { client_id };
        let id = format!("{prefix}-{}", self.next_id);
        // Unbounded, but at most two events a partition that moves stand in it.
        let (events, receiver) = mpsc::unbounded_channel();
        let member = Member {
            client_id: client_id.to_owned(),
            topics,
            owned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            events,
            greeted: false,
        };
        self.members.insert(id.clone(), member);
        self.rebalance(partitions, generation);
        (id, receiver)
    }

    /// Removes a member; all that it owned is free.
    pub fn leave(&mut self, id: &str, partitions: &BTreeMap<TopicName, u32>, generation: u64) {
        if self.members.remove(id).is_some() {
            self.rebalance(partitions, generation);
        }
    }

    /// A member gave partitions back.
    pub fn revoked(&mut self, id: &str, partitions: &[TopicPartition], generation: u64) {
        let Some(member) = self.members.get_mut(id) else { return };
        for partition in partitions {
            if member.revoking.remove(partition) {
                member.owned.remove(partition);
            }
        }
        self.reconcile(generation);
    }

    /// Assigns anew, after members or topics changed.
    pub fn rebalance(&mut self, partitions: &BTreeMap<TopicName, u32>, generation: u64) {
        let subscriptions = self.members.iter().map(|(id, member)| (id.clone(), member.topics.clone())).collect();
        let current = std::mem::take(&mut self.target);
        self.target = assign(&subscriptions, &current, partitions);
        // What no longer exists is nobody's, without asking.
        for member in self.members.values_mut() {
            let exists = |p: &TopicPartition| partitions.get(&p.topic).is_some_and(|count| p.partition < *count);
            member.owned.retain(exists);
            member.revoking.retain(exists);
        }
        self.reconcile(generation);
    }

    /// Asks for what moves, and assigns what is free.
    fn reconcile(&mut self, generation: u64) {
        let mut taken: BTreeSet<TopicPartition> = BTreeSet::new();
        for (id, member) in &mut self.members {
            let target = &self.target[id];
            // A partition that comes back to its owner before the hand-over stays revoked: the
            // member may have stopped reading it already. It gives it back and gets it again.
            let moving: Vec<_> =
                member.owned.difference(target).filter(|p| !member.revoking.contains(p)).cloned().collect();
            if !moving.is_empty() {
                member.revoking.extend(moving.iter().cloned());
                // A member whose stream just ended is removed in a moment.
                let _ = member.events.send(MemberEvent::Revoke { generation, partitions: moving });
            }
            taken.extend(member.owned.iter().cloned());
        }
        for (id, member) in &mut self.members {
            let added: Vec<_> = self.target[id].difference(&taken).cloned().collect();
            if added.is_empty() && member.greeted {
                continue;
            }
            member.greeted = true;
            member.owned.extend(added.iter().cloned());
            let all = member.owned.difference(&member.revoking).cloned().collect();
            let _ = member.events.send(MemberEvent::Assigned { generation, added, all });
        }
    }

    /// Whether the member may commit for the partition.
    pub fn owns(&self, id: &str, partition: &TopicPartition) -> bool {
        self.members.get(id).is_some_and(|member| member.owned.contains(partition))
    }

    /// Whether the member is still one.
    pub fn contains(&self, id: &str) -> bool {
        self.members.contains_key(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether partitions are on their way from one member to another.
    pub fn is_rebalancing(&self) -> bool {
        self.members.values().any(|member| !member.revoking.is_empty())
    }

    /// Whether a member reads this topic, or would.
    pub fn reads(&self, topic: &TopicName) -> bool {
        self.members.values().any(|member| member.topics.contains(topic))
    }

    /// Topics that members read.
    pub fn topics(&self) -> BTreeSet<TopicName> {
        self.members.values().flat_map(|member| member.topics.iter().cloned()).collect()
    }

    /// Each member's id, client id and partitions.
    pub fn describe(&self) -> Vec<(MemberId, String, Vec<TopicPartition>)> {
        let describe = |(id, member): (&MemberId, &Member)| {
            (id.clone(), member.client_id.clone(), member.owned.iter().cloned().collect())
        };
        self.members.iter().map(describe).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;

    type Events = mpsc::UnboundedReceiver<MemberEvent>;

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
        fn partitions() -> BTreeMap<TopicName, u32> {
            BTreeMap::from([(topic(), 7)])
        }

        fn join(&mut self) {
            self.generation += 1;
            let (id, events) = self.members.join("c", BTreeSet::from([topic()]), &Self::partitions(), self.generation);
            self.live.push((id, events, BTreeSet::new()));
        }

        fn leave(&mut self, which: usize) {
            if self.live.is_empty() {
                return;
            }
            let (id, ..) = self.live.remove(which % self.live.len());
            self.asked.retain(|(member, _)| *member != id);
            self.generation += 1;
            self.members.leave(&id, &Self::partitions(), self.generation);
        }

        fn answer_one(&mut self, which: usize) {
            if self.asked.is_empty() {
                return;
            }
            let (id, partitions) = self.asked.remove(which % self.asked.len());
            if let Some((_, _, has)) = self.live.iter_mut().find(|(member, ..)| *member == id) {
                has.retain(|p| !partitions.contains(p));
            }
            self.members.revoked(&id, &partitions, self.generation);
        }

        fn drain(&mut self) {
            for (id, events, has) in &mut self.live {
                while let Ok(event) = events.try_recv() {
                    match event {
                        MemberEvent::Assigned { added, .. } => has.extend(added),
                        MemberEvent::Revoke { partitions, .. } => self.asked.push((id.clone(), partitions)),
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
        let (mut members, partitions) = (Members::default(), BTreeMap::from([(topic(), 4)]));
        let (first, mut of_first) = members.join("a", BTreeSet::from([topic()]), &partitions, 1);
        let (second, _of_second) = members.join("b", BTreeSet::from([topic()]), &partitions, 2);
        let asked = match &events(&mut of_first)[..] {
            [MemberEvent::Assigned { .. }, MemberEvent::Revoke { partitions, .. }] => partitions.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(asked.len(), 2);
        let all: Vec<_> = (0..4).map(partition).collect();
        members.revoked(&first, &all, 3);
        for partition in &all {
            let moved = asked.contains(partition);
            assert_eq!(
                (members.owns(&first, partition), members.owns(&second, partition)),
                (!moved, moved),
                "{partition}"
            );
        }
        assert!(!members.is_rebalancing());
    }

    #[test]
    fn what_a_member_is_to_give_back_is_not_of_its_assignment() {
        let mut members = Members::default();
        let both = BTreeSet::from([topic()]);
        let (_, mut of_first) = members.join("a", both.clone(), &BTreeMap::from([(topic(), 4)]), 1);
        members.join("b", both, &BTreeMap::from([(topic(), 4)]), 2);
        members.rebalance(&BTreeMap::from([(topic(), 8)]), 3);
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
        let both = BTreeSet::from([topic()]);
        let (first, _of_first) = members.join("a", both.clone(), &BTreeMap::from([(topic(), 4)]), 1);
        let (_, mut of_second) = members.join("b", both, &BTreeMap::from([(topic(), 4)]), 2);
        assert!(members.is_rebalancing());
        members.rebalance(&BTreeMap::new(), 3);
        assert!(!members.is_rebalancing(), "nobody gives back what is no more");
        assert!((0..4).all(|number| !members.owns(&first, &partition(number))));
        // An answer that comes late is none for a topic of that name that was made since.
        members.rebalance(&BTreeMap::from([(topic(), 1)]), 4);
        let owner = members.owns(&first, &partition(0));
        members.revoked(&first, &[partition(0)], 5);
        assert_eq!(members.owns(&first, &partition(0)), owner);
        assert!(events(&mut of_second).iter().all(|event| !matches!(event, MemberEvent::Revoke { .. })));
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
