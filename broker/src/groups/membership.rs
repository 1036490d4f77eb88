//! The members of a group, by whichever protocol they joined. All members of a group use the same one. It changes when the
//! group has no members.

use std::collections::BTreeSet;
use std::time::Instant;

use super::classic::{Classic, Phase};
use super::members::Members;
use crate::name::{TopicName, TopicPartition};

/// The members of one group.
#[derive(Debug, Default)]
pub struct Membership {
    /// Those to which the broker assigns partitions.
    pub consumer: Members,
    /// Those that assign partitions among themselves.
    pub classic: Classic,
    /// Whether somebody waits for the next deadline.
    pub(crate) is_timed: bool,
}

/// What there is to say about a member, whatever its protocol.
#[derive(Clone, Debug)]
pub struct MemberDescription {
    /// Its id.
    pub member_id: String,
    /// What the client calls itself.
    pub client_id: String,
    /// The partitions that it reads.
    pub partitions: Vec<TopicPartition>,
}

/// The state of a group of consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipState {
    /// There are no members.
    Empty,
    /// Partitions are being moved between members.
    Rebalancing,
    /// Each member has its partitions.
    Stable,
}

impl Membership {
    /// Returns when something must be done in time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.consumer.deadline().into_iter().chain(self.classic.deadline()).min()
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.consumer.len() + self.classic.len()
    }

    /// Returns whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.consumer.is_empty() && self.classic.is_empty()
    }

    /// Returns the state.
    pub fn state(&self) -> MembershipState {
        if self.is_empty() {
            MembershipState::Empty
        } else if self.consumer.is_rebalancing() || matches!(self.classic.phase(), Phase::Preparing | Phase::Completing)
        {
            MembershipState::Rebalancing
        } else {
            MembershipState::Stable
        }
    }

    /// Returns whether a member subscribes to this topic.
    pub fn reads(&self, topic: &TopicName) -> bool {
        self.consumer.reads(topic) || self.classic.reads(topic)
    }

    /// Returns the topics that members subscribe to.
    pub fn topics(&self) -> BTreeSet<TopicName> {
        let mut topics = self.consumer.topics();
        topics.append(&mut self.classic.topics());
        topics
    }

    /// Describes the members.
    pub fn describe(&self) -> Vec<MemberDescription> {
        let consumers = self.consumer.describe().into_iter();
        let consumers =
            consumers.map(|(member_id, client_id, partitions)| MemberDescription { member_id, client_id, partitions });
        let classic = self.classic.describe().into_iter().map(|member| MemberDescription {
            member_id: member.member.to_string(),
            client_id: member.client_id.to_string(),
            partitions: member.assignment.partitions,
        });
        consumers.chain(classic).collect()
    }
}
