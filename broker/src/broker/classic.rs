//! Groups by Kafka's classic protocol: joining, assignments, heartbeats and leaving, and the time of sessions and
//! rebalances.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Broker;
use super::groups::{circumstances, known_topics};
use super::operation::to_its_end;
use crate::error::{BrokerError, MemberError};
use crate::groups::classic::{Claim, ClassicJoin, ClassicLimits, ClassicSync, WaitForJoin, WaitForSync};
use crate::groups::{Group, GroupKind, Membership};
use crate::log::catalog_entries::{GROUP_MEMBERS_PREFIX, to_json};
use crate::name::GroupId;
use crate::store::CatalogChange;

/// Key of the catalog's entry with the members of a group.
fn members_key(id: &GroupId) -> String {
    format!("{GROUP_MEMBERS_PREFIX}{id}")
}

/// The settings of groups.
#[derive(Clone, Copy, Debug)]
pub struct GroupSettings {
    /// Lowest session timeout that members may ask for: Kafka's `group.min.session.timeout.ms`.
    pub session_timeout_min_ms: u64,
    /// Highest session timeout that members may ask for: Kafka's `group.max.session.timeout.ms`.
    pub session_timeout_max_ms: u64,
    /// How long the first rebalance of an empty group waits for further members: Kafka's
    /// `group.initial.rebalance.delay.ms`.
    pub initial_rebalance_delay_ms: u64,
    /// Maximum number of members of a group: Kafka's `group.max.size`.
    pub members_max: usize,
    /// How long a member that sends heartbeats may send nothing: Kafka's `group.consumer.session.timeout.ms`.
    pub consumer_session_timeout_ms: u64,
    /// How often such a member sends a heartbeat: Kafka's `group.consumer.heartbeat.interval.ms`.
    pub consumer_heartbeat_interval_ms: u64,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            session_timeout_min_ms: 6_000,
            session_timeout_max_ms: 1_800_000,
            // A rebalance on one node is over within milliseconds.
            initial_rebalance_delay_ms: 0,
            members_max: 10_000,
            consumer_session_timeout_ms: 45_000,
            // A rebalance takes as long as members take to hear of it.
            consumer_heartbeat_interval_ms: 2_000,
        }
    }
}

impl GroupSettings {
    fn limits(&self) -> ClassicLimits {
        let initial_delay = Duration::from_millis(self.initial_rebalance_delay_ms);
        ClassicLimits { initial_delay, members_max: self.members_max }
    }

    /// Checks a session timeout, and returns it.
    ///
    /// # Errors
    /// [`BrokerError::InvalidSessionTimeout`].
    pub fn session_timeout(&self, group: &GroupId, session_timeout_ms: i32) -> Result<Duration, BrokerError> {
        let (min_ms, max_ms) = (self.session_timeout_min_ms, self.session_timeout_max_ms);
        match u64::try_from(session_timeout_ms) {
            Ok(ms) if (min_ms..=max_ms).contains(&ms) => Ok(Duration::from_millis(ms)),
            _ => Err(BrokerError::InvalidSessionTimeout { group: group.clone(), session_timeout_ms, min_ms, max_ms }),
        }
    }
}

impl Broker {
    /// Adds a member to a group, or notes that a member joins the group's rebalance.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`], [`BrokerError::OtherMembers`], [`BrokerError::Member`].
    pub fn join_classic(&self, id: &GroupId, join: ClassicJoin) -> Result<WaitForJoin, BrokerError> {
        loop {
            let group = if join.member.is_empty() {
                self.0.groups.get_or_create(id, GroupKind::Consumer)?
            } else {
                self.group_of(id.as_str(), &join.member)?
            };
            if group.kind() == GroupKind::Pipeline {
                return Err(BrokerError::GroupOfOtherKind { group: id.clone(), kind: group.kind().owner() });
            }
            let members = &mut *group.members();
            if group.is_removed() {
                continue;
            }
            if !members.consumer.is_empty() {
                return Err(BrokerError::OtherMembers { group: id.clone() });
            }
            let was_empty = members.is_empty();
            group.set_active(self.0.domain.idle.now_ms());
            let joined = members.classic.join(join, self.0.settings.groups.limits(), Instant::now());
            if was_empty && !members.is_empty() {
                // Commits from outside that were decided while there were no members are refused.
                group.next_generation();
            }
            self.keep_time(&group, members);
            return joined.map_err(|source| group.refused(source));
        }
    }

    /// Asks for a member's assignment. Members get theirs once the leader has brought those of all, and they are stored with
    /// the group's members.
    ///
    /// # Errors
    /// [`BrokerError::Member`].
    pub async fn sync_classic(&self, id: &str, sync: ClassicSync) -> Result<WaitForSync, BrokerError> {
        let group = self.group_of(id, &sync.claim.member)?;
        let (synced, is_to_keep) = {
            let members = &mut *group.members();
            let synced = members.classic.sync(sync, Instant::now());
            self.keep_time(&group, members);
            (synced, members.classic.is_to_keep())
        };
        let synced = synced.map_err(|source| group.refused(source))?;
        if is_to_keep {
            let broker = self.clone();
            to_its_end(async move { broker.keep_members(&group).await }).await;
        }
        Ok(synced)
    }

    /// Stores the members of a group, and lets them have their assignments.
    async fn keep_members(&self, group: &Arc<Group>) {
        let _keeping = group.keeping().lock().await;
        // Another request may have stored them already.
        let Some(kept) = group.members().classic.to_keep() else { return };
        let entry = CatalogChange::put(members_key(group.id()), to_json(&kept));
        if let Err(error) = self.commit_entry(entry).await {
            tracing::warn!(
                group = %group.id(), %error,
                "the members of a group could not be stored: if the server is started again, they must join again"
            );
        }
        let members = &mut *group.members();
        members.classic.kept(kept.generation, Instant::now());
        self.keep_time(group, members);
    }

    /// Removes what is stored of the members of a group that has none any more.
    async fn forget_members(&self, group: &Arc<Group>) {
        let _keeping = group.keeping().lock().await;
        if !group.members().classic.is_to_forget() {
            return;
        }
        match self.commit_entry(CatalogChange::remove(members_key(group.id()))).await {
            Ok(()) | Err(BrokerError::ShuttingDown) => {}
            Err(error) => tracing::warn!(
                group = %group.id(), %error,
                "it could not be stored that a group has no members: if the server is started again, its members seem to be \
                 there until their sessions end"
            ),
        }
        group.members().classic.forgotten();
    }

    /// Begins to keep the time of groups that were restored with members.
    pub fn watch_groups(&self) {
        for group in self.0.groups.all() {
            self.keep_time(&group, &mut group.members());
        }
    }

    /// Notes that a member is alive.
    ///
    /// # Errors
    /// [`BrokerError::Member`].
    pub fn heartbeat_classic(&self, id: &str, claim: &Claim) -> Result<(), BrokerError> {
        let group = self.group_of(id, &claim.member)?;
        let alive = group.members().classic.heartbeat(claim, Instant::now());
        alive.map_err(|source| group.refused(source))
    }

    /// Removes a member, which is named by its member id, or by its static id if the member id is empty.
    ///
    /// # Errors
    /// [`BrokerError::Member`].
    pub fn leave_classic(&self, id: &str, member: &str, instance: Option<&str>) -> Result<(), BrokerError> {
        let group = self.group_of(id, member)?;
        let members = &mut *group.members();
        let left = members.classic.leave(member, instance, self.0.settings.groups.limits(), Instant::now());
        group.set_active(self.0.domain.idle.now_ms());
        self.keep_time(&group, members);
        left.map_err(|source| group.refused(source))
    }

    /// Returns the group of a member. A group that does not exist has no such member.
    pub(super) fn group_of(&self, id: &str, member: &str) -> Result<Arc<Group>, BrokerError> {
        let id = GroupId::new(id)?;
        self.0.groups.get(id.as_str()).map_err(|_| {
            let source = MemberError::UnknownMember { member: member.to_owned() };
            BrokerError::Member { group: id, source }
        })
    }

    /// Ends sessions and phases of a group in time, as long as it has members.
    pub(super) fn keep_time(&self, group: &Arc<Group>, members: &mut Membership) {
        if members.is_timed {
            group.deadline_changed().notify_one();
            return;
        }
        if members.deadline().is_none() {
            return;
        }
        members.is_timed = true;
        let (group, domain, limits) = (group.clone(), self.0.domain.clone(), self.0.settings.groups.limits());
        let weak = self.downgrade();
        let mut stopping = self.0.stopping.subscribe();
        tokio::spawn(async move {
            loop {
                let deadline = {
                    let members = &mut *group.members();
                    let now = Instant::now();
                    members.classic.on_time(limits, now);
                    if members.consumer.is_overdue(now) {
                        let topics = known_topics(&domain.topics.read(), &members.consumer.topics());
                        members.consumer.remove_overdue(circumstances(&group, &topics));
                    }
                    match members.deadline() {
                        _ if members.classic.is_to_forget() => None,
                        None => {
                            members.is_timed = false;
                            group.set_active(domain.idle.now_ms());
                            return;
                        }
                        deadline => deadline,
                    }
                };
                let Some(deadline) = deadline else {
                    let Some(broker) = weak.upgrade() else { return };
                    broker.forget_members(&group).await;
                    continue;
                };
                tokio::select! {
                    () = tokio::time::sleep_until(deadline.into()) => {}
                    () = group.deadline_changed().notified() => {}
                    // The broker is stopping, or gone.
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                }
            }
        });
    }
}
