//! Assigns partitions to members. These are pure functions.

use std::collections::{BTreeMap, BTreeSet};

use super::member_id::MemberId;
use crate::name::TopicName;
use crate::name::TopicPartition;

/// The partitions that each member reads.
pub type Assignment = BTreeMap<MemberId, BTreeSet<TopicPartition>>;

/// A way of assigning partitions. The names are those of Kafka's server-side assignors (KIP-848).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// The loads of members that read the same topics differ by at most one partition, and a partition only moves if
    /// balance requires it (KIP-429's cooperative assignment).
    #[default]
    Uniform,
    /// Each member gets consecutive partitions of each topic. Members that read several topics with the same number of
    /// partitions get the same partitions of each, so that a member can join them.
    Range,
}

impl Assignor {
    /// All assignors. The default is the first one.
    pub const ALL: [Self; 2] = [Self::Uniform, Self::Range];

    /// Returns the assignor's name in Kafka's protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// Returns the assignor with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|assignor| assignor.name() == name)
    }

    /// Assigns every partition to one member that subscribes to its topic.
    ///
    /// `subscriptions` has the topics that each member reads, `current` the current assignment, and `partitions` the
    /// number of partitions of each topic.
    pub fn assign(
        self,
        subscriptions: &BTreeMap<MemberId, BTreeSet<TopicName>>,
        current: &Assignment,
        partitions: &BTreeMap<TopicName, u32>,
    ) -> Assignment {
        match self {
            Self::Uniform => uniform(subscriptions, current, partitions),
            Self::Range => range(subscriptions, partitions),
        }
    }
}

fn range(subscriptions: &BTreeMap<MemberId, BTreeSet<TopicName>>, partitions: &BTreeMap<TopicName, u32>) -> Assignment {
    let mut target: Assignment = subscriptions.keys().map(|id| (*id, BTreeSet::new())).collect();
    for (topic, count) in partitions {
        let readers: Vec<MemberId> = eligible(subscriptions, topic).copied().collect();
        let Ok(all) = u32::try_from(readers.len()) else { continue };
        if all == 0 {
            continue;
        }
        // The first members get one partition more if the partitions cannot be divided evenly.
        let (share, more) = (count / all, count % all);
        let mut next = 0;
        for (reader, number) in readers.into_iter().zip(0..) {
            let end = next + share + u32::from(number < more);
            let owned = (next..end).map(|partition| TopicPartition { topic: topic.clone(), partition });
            target.entry(reader).or_default().extend(owned);
            next = end;
        }
    }
    target
}

fn uniform(
    subscriptions: &BTreeMap<MemberId, BTreeSet<TopicName>>,
    current: &Assignment,
    partitions: &BTreeMap<TopicName, u32>,
) -> Assignment {
    let mut target: Assignment = subscriptions.keys().map(|id| (*id, BTreeSet::new())).collect();
    let mut free = BTreeSet::new();
    for (topic, count) in partitions {
        free.extend((0..*count).map(|partition| TopicPartition { topic: topic.clone(), partition }));
    }
    for (member, owned) in current {
        let Some(topics) = subscriptions.get(member) else { continue };
        for partition in owned.iter().filter(|partition| topics.contains(&partition.topic)) {
            if free.remove(partition) {
                target.entry(*member).or_default().insert(partition.clone());
            }
        }
    }
    for partition in free {
        let least = eligible(subscriptions, &partition.topic).min_by_key(|id| target[*id].len());
        if let Some(member) = least.copied() {
            target.entry(member).or_default().insert(partition);
        }
    }
    while let Some((from, to, partition)) = improvement(subscriptions, &target) {
        target.entry(from).or_default().remove(&partition);
        target.entry(to).or_default().insert(partition);
    }
    target
}

fn eligible<'a>(
    subscriptions: &'a BTreeMap<MemberId, BTreeSet<TopicName>>,
    topic: &'a TopicName,
) -> impl Iterator<Item = &'a MemberId> {
    subscriptions.iter().filter(|(_, topics)| topics.contains(topic)).map(|(id, _)| id)
}

/// Returns a partition whose move makes the loads more even, with the members that it moves from and to. Each move
/// lowers the sum of squared loads, so repeated moves terminate.
fn improvement(
    subscriptions: &BTreeMap<MemberId, BTreeSet<TopicName>>,
    target: &Assignment,
) -> Option<(MemberId, MemberId, TopicPartition)> {
    let mut by_load: Vec<_> = target.iter().collect();
    by_load.sort_by_key(|(_, owned)| std::cmp::Reverse(owned.len()));
    for (from, owned) in &by_load {
        for (to, others) in by_load.iter().rev() {
            if owned.len() <= others.len() + 1 {
                break;
            }
            let movable = owned.iter().rfind(|p| subscriptions[*to].contains(&p.topic));
            if let Some(partition) = movable {
                return Some((**from, **to, partition.clone()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).unwrap()
    }

    fn everyone(members: &[usize], topics: &[&str]) -> BTreeMap<MemberId, BTreeSet<TopicName>> {
        let topics: BTreeSet<_> = topics.iter().map(|name| topic(name)).collect();
        members.iter().map(|n| (MemberId::numbered(*n as u64), topics.clone())).collect()
    }

    proptest! {
        #![proptest_config(seeded())]

        #[test]
        fn assignments_are_complete_balanced_and_sticky(
            rounds in prop::collection::vec(prop::collection::btree_set(0usize..8, 1..6), 1..6),
            a in 0u32..20, b in 0u32..20,
        ) {
            let partitions = BTreeMap::from([(topic("a"), a), (topic("b"), b)]);
            let mut current = Assignment::new();
            for members in rounds {
                let members: Vec<usize> = members.into_iter().collect();
                let subscriptions = everyone(&members, &["a", "b"]);
                let target = Assignor::Uniform.assign(&subscriptions, &current, &partitions);

                let total: usize = target.values().map(BTreeSet::len).sum();
                let distinct: BTreeSet<_> = target.values().flatten().collect();
                prop_assert_eq!(total, (a + b) as usize);
                prop_assert_eq!(distinct.len(), total);
                let loads: Vec<usize> = target.values().map(BTreeSet::len).collect();
                let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
                prop_assert!(most - least <= 1, "{:?}", loads);

                // A member only loses partitions down to the fair share.
                for (member, owned) in &current {
                    let Some(now) = target.get(member) else { continue };
                    if owned.difference(now).count() > 0 {
                        prop_assert!(now.len() >= *least && owned.len() > *least);
                        prop_assert!(now.is_subset(owned), "{member:?} lost some and gained others");
                    }
                }
                current = target;
            }
        }
    }

    #[test]
    fn a_topic_goes_only_to_those_who_read_it() {
        let [first, second] = [1, 2].map(MemberId::numbered);
        let subscriptions =
            BTreeMap::from([(first, BTreeSet::from([topic("a")])), (second, BTreeSet::from([topic("a"), topic("b")]))]);
        let partitions = BTreeMap::from([(topic("a"), 2), (topic("b"), 4)]);
        let target = Assignor::Uniform.assign(&subscriptions, &Assignment::new(), &partitions);
        assert_eq!(target[&first].len(), 2);
        assert_eq!(target[&second].len(), 4);
        assert!(target[&second].iter().all(|p| p.topic.as_str() == "b"));
    }

    #[test]
    fn ranges_are_consecutive_and_the_same_in_each_topic() {
        let subscriptions = everyone(&[1, 2, 3], &["a", "b"]);
        let partitions = BTreeMap::from([(topic("a"), 8), (topic("b"), 8)]);
        let target = Assignor::Range.assign(&subscriptions, &Assignment::new(), &partitions);
        for (member, expected) in [(1, 0..3), (2, 3..6), (3, 6..8)] {
            for name in ["a", "b"] {
                let owned = target[&MemberId::numbered(member)].iter().filter(|p| p.topic.as_str() == name);
                assert_eq!(owned.map(|p| p.partition).collect::<Vec<_>>(), expected.clone().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_range_goes_only_to_those_who_read_the_topic() {
        let [first, second] = [1, 2].map(MemberId::numbered);
        let subscriptions =
            BTreeMap::from([(first, BTreeSet::from([topic("a")])), (second, BTreeSet::from([topic("a"), topic("b")]))]);
        let partitions = BTreeMap::from([(topic("a"), 1), (topic("b"), 2), (topic("unread"), 3)]);
        let target = Assignor::Range.assign(&subscriptions, &Assignment::new(), &partitions);
        let names = |id| target[&id].iter().map(TopicPartition::to_string).collect::<Vec<_>>();
        // More members than partitions: the last ones get none.
        assert_eq!(names(first).len(), 1);
        assert_eq!(names(second).len(), 2);
        assert!(target[&second].iter().all(|p| p.topic.as_str() == "b"));
    }

    #[test]
    fn an_assignor_is_found_by_its_name() {
        for assignor in Assignor::ALL {
            assert_eq!(Assignor::by_name(assignor.name()), Some(assignor));
        }
        assert_eq!(Assignor::by_name("sticky"), None);
    }
}
