//! Members of groups that send heartbeats (KIP-848).

use std::time::Instant;

use super::Broker;
use super::groups::{circumstances, matching};
use crate::error::BrokerError;
use crate::groups::GroupKind;
use crate::groups::heartbeats::{Beat, Heartbeat};
use crate::name::GroupId;

impl Broker {
    /// Adds a member to a group, or notes that a member is alive, what it reads and what it has given back.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`], [`BrokerError::OtherMembers`], [`BrokerError::Member`].
    pub fn heartbeat(&self, id: &GroupId, heartbeat: &Heartbeat) -> Result<Beat, BrokerError> {
        loop {
            let group = if heartbeat.epoch == 0 {
                self.0.groups.get_or_create(id, GroupKind::Consumer)?
            } else {
                self.group_of(id.as_str(), &heartbeat.member)?
            };
            if group.kind() == GroupKind::Pipeline {
                return Err(BrokerError::GroupOfOtherKind { group: id.clone(), kind: group.kind().owner() });
            }
            let members = &mut *group.members();
            if group.is_removed() {
                continue;
            }
            if !members.classic.is_empty() {
                return Err(BrokerError::OtherMembers { group: id.clone() });
            }
            let consumer = &mut members.consumer;
            let refused = |source| group.refused(source);
            let known = consumer.check_heartbeat(heartbeat).map_err(refused)?;
            let matching = |pattern: &_| matching(&self.0.topics.read(), pattern);
            let changed = consumer.changed_topics(known, heartbeat, matching);
            let topics = changed.as_ref().map(|changed| {
                let mut all = consumer.topics();
                all.extend(changed.iter().cloned());
                self.known_topics(&all)
            });
            let changed = changed.zip(topics.as_ref().map(|topics| circumstances(&group, topics)));
            let now = Instant::now();
            let members_max = self.0.settings.groups.members_max;
            let member = consumer.take_over(known, heartbeat, changed, members_max, now).map_err(refused)?;
            let beat = consumer.beat(&member, heartbeat, group.generation(), now);
            group.set_active(self.0.domain.idle.now_ms());
            self.keep_time(&group, members);
            return Ok(beat);
        }
    }

    /// Removes a member. A static member that `returns` keeps its partitions until its session ends.
    ///
    /// # Errors
    /// [`BrokerError::Member`].
    pub fn leave_with_heartbeat(
        &self,
        id: &GroupId,
        member: &str,
        instance: Option<&str>,
        returns: bool,
    ) -> Result<(), BrokerError> {
        let group = self.group_of(id.as_str(), member)?;
        let leaving = group.members().consumer.leaving(member, instance, returns);
        if let Some(leaving) = leaving.map_err(|source| group.refused(source))? {
            self.leave_group(&group, &leaving);
        }
        Ok(())
    }
}
