//! Members that join and hear of their assignments with heartbeats (KIP-848). They are members like those with a stream:
//! what differs is how they are told, and that they must be heard of within their sessions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regex_lite::Regex;

use super::assign::Assignor;
use super::member_id::MemberId;
use super::members::{Beating, Circumstances, Member, Members, NewMember};
use crate::error::MemberError;
use crate::name::{TopicName, TopicPartition};

/// What a member says with a heartbeat. Fields that are `None` are as they were.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// The member's id, which its client chose.
    pub member: Arc<str>,
    /// Its static id.
    pub instance: Option<Arc<str>>,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// The client's address.
    pub client_host: Arc<str>,
    /// The member epoch that it knows. 0 to join.
    pub epoch: u64,
    /// The topics that it names.
    pub topics: Option<BTreeSet<TopicName>>,
    /// A pattern for the names of further topics. `Some(None)` stands for none.
    pub pattern: Option<Option<Regex>>,
    /// How long it may take to give partitions back.
    pub rebalance_timeout: Option<Duration>,
    /// The assignor that it asks for.
    pub assignor: Option<Assignor>,
    /// The partitions that it has.
    pub owned: Option<BTreeSet<TopicPartition>>,
    /// How long it may send nothing until it is removed.
    pub session_timeout: Duration,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The member's epoch.
    pub epoch: u64,
    /// The partitions that it may have, if they are news. Others that it has it must give back.
    pub assignment: Option<BTreeSet<TopicPartition>>,
}

/// A description of a member.
#[derive(Clone, Debug)]
pub struct ConsumerMember {
    /// Its id.
    pub member: String,
    /// Its static id.
    pub instance: Option<Arc<str>>,
    /// What the client calls itself.
    pub client_id: String,
    /// The client's address. Empty for a member with a stream.
    pub client_host: Arc<str>,
    /// Its epoch.
    pub epoch: u64,
    /// The topics that it names.
    pub topics: BTreeSet<TopicName>,
    /// Its pattern for the names of topics.
    pub pattern: Option<String>,
    /// The partitions that it has.
    pub owned: Vec<TopicPartition>,
    /// The partitions that it is to have.
    pub target: Vec<TopicPartition>,
}

impl Members {
    /// Returns the member that sends a heartbeat. `None` if it joins with it.
    ///
    /// # Errors
    /// [`MemberError`] if it is not a member and does not join, or if its epoch is over.
    pub fn check_heartbeat(&self, heartbeat: &Heartbeat) -> Result<Option<MemberId>, MemberError> {
        let unknown = || MemberError::UnknownMember { member: heartbeat.member.to_string() };
        if let Some((id, of_instance)) = heartbeat.instance.as_ref().and_then(|instance| self.of_instance(instance))
            && of_instance.name != heartbeat.member
        {
            let instance = heartbeat.instance.as_deref().unwrap_or_default().to_owned();
            return match (heartbeat.epoch, of_instance.is_away) {
                // A static member that was started again has another id.
                (0, true) => Ok(Some(id)),
                (0, false) => Err(MemberError::UnreleasedInstance { instance }),
                _ => Err(MemberError::FencedInstance { instance, member: heartbeat.member.to_string() }),
            };
        }
        let Some((id, beating)) = self.of_name(&heartbeat.member) else {
            return if heartbeat.epoch == 0 { Ok(None) } else { Err(unknown()) };
        };
        let (told, partitions) = &beating.told;
        let owns_no_other = || heartbeat.owned.as_ref().is_none_or(|owned| owned.is_subset(partitions));
        // The answer to the last heartbeat may have been lost.
        let knows = heartbeat.epoch == 0
            || heartbeat.epoch == *told
            || (heartbeat.epoch == beating.told_before && owns_no_other());
        match knows {
            true => Ok(Some(id)),
            false => Err(MemberError::FencedEpoch { epoch: heartbeat.epoch, current: *told }),
        }
    }

    /// Returns the topics that the sender of a heartbeat reads, if they or its assignor changed, or if it joins. Topics of a
    /// pattern are found with `matching`.
    pub fn changed_topics(
        &self,
        id: Option<MemberId>,
        heartbeat: &Heartbeat,
        matching: impl Fn(&Regex) -> BTreeSet<TopicName>,
    ) -> Option<BTreeSet<TopicName>> {
        let member = id.and_then(|id| self.members.get(&id));
        let beating = member.and_then(|member| member.beating.as_ref());
        let named = heartbeat.topics.as_ref().or(beating.map(|beating| &beating.named));
        let pattern = match &heartbeat.pattern {
            Some(pattern) => pattern.as_ref(),
            None => beating.and_then(|beating| beating.pattern.as_ref()),
        };
        let mut topics = named.cloned().unwrap_or_default();
        topics.extend(pattern.iter().flat_map(|pattern| matching(pattern)));
        let Some(member) = member else { return Some(topics) };
        let has_other_assignor = heartbeat.assignor.is_some() && heartbeat.assignor != member.assignor;
        (topics != member.topics || has_other_assignor).then_some(topics)
    }

    /// Takes over what a heartbeat says of the member, and adds a member that joins. If `changed` has the topics that it
    /// reads from now on, the group is rebalanced. Returns the member.
    ///
    /// # Errors
    /// [`MemberError::Full`].
    pub fn take_over(
        &mut self,
        id: Option<MemberId>,
        heartbeat: &Heartbeat,
        changed: Option<(BTreeSet<TopicName>, Circumstances<'_>)>,
        members_max: usize,
        now: Instant,
    ) -> Result<MemberId, MemberError> {
        let id = match id {
            Some(id) => id,
            None if self.len() >= members_max => {
                let bound = format!("it has {} members, which is the maximum", self.len());
                return Err(MemberError::Full { bound });
            }
            None => {
                let new = NewMember {
                    client_id: heartbeat.client_id.to_string(),
                    topics: BTreeSet::new(),
                    rebalance_timeout: Duration::ZERO,
                    assignor: None,
                };
                let beating = Beating {
                    name: heartbeat.member.clone(),
                    instance: heartbeat.instance.clone(),
                    client_host: heartbeat.client_host.clone(),
                    named: BTreeSet::new(),
                    pattern: None,
                    session_timeout: heartbeat.session_timeout,
                    session_ends: now + heartbeat.session_timeout,
                    told: (0, BTreeSet::new()),
                    told_before: 0,
                    is_away: false,
                };
                let mut member = Member::new(new, 0);
                member.beating = Some(beating);
                self.add(member)
            }
        };
        if let Some(member) = self.members.get_mut(&id) {
            member.rebalance_timeout = heartbeat.rebalance_timeout.unwrap_or(member.rebalance_timeout);
            member.assignor = heartbeat.assignor.or(member.assignor);
            if let Some(beating) = &mut member.beating {
                beating.name = heartbeat.member.clone();
                beating.client_host = heartbeat.client_host.clone();
                beating.is_away = false;
                beating.session_ends = now + beating.session_timeout;
                beating.named = heartbeat.topics.clone().unwrap_or_else(|| std::mem::take(&mut beating.named));
                beating.pattern = heartbeat.pattern.clone().unwrap_or_else(|| beating.pattern.take());
            }
        }
        if let Some((topics, of)) = changed {
            if let Some(member) = self.members.get_mut(&id) {
                member.topics = topics;
            }
            self.rebalance(of);
        }
        Ok(id)
    }

    /// Notes what the sender of a heartbeat has given back, and returns the answer.
    pub fn beat(&mut self, id: &MemberId, heartbeat: &Heartbeat, generation: u64, now: Instant) -> Beat {
        if let (Some(owned), Some(member)) = (&heartbeat.owned, self.members.get(id)) {
            let given_back: Vec<_> = member.revoking.difference(owned).cloned().collect();
            if !given_back.is_empty() {
                self.revoked(id, &given_back, generation, now);
            }
        }
        let Some((member, assignment)) = self.members.get_mut(id).map(|member| {
            let assignment = member.assignment();
            (member, assignment)
        }) else {
            return Beat { epoch: 0, assignment: None };
        };
        let epoch = member.epoch;
        let Some(beating) = &mut member.beating else { return Beat { epoch, assignment: None } };
        let is_news = assignment != beating.told.1 || heartbeat.epoch != beating.told.0 || heartbeat.epoch == 0;
        if beating.told.0 != epoch {
            beating.told_before = beating.told.0;
        }
        beating.told = (epoch, assignment.clone());
        Beat { epoch, assignment: is_news.then_some(assignment) }
    }

    /// Finds the member that leaves. A static member that leaves in order to return keeps its partitions: `None`.
    ///
    /// # Errors
    /// [`MemberError::UnknownMember`], [`MemberError::FencedInstance`].
    pub fn leaving(
        &mut self,
        name: &str,
        instance: Option<&str>,
        returns: bool,
    ) -> Result<Option<MemberId>, MemberError> {
        let member = name.to_owned();
        let Some((id, beating)) = self.of_name(name) else {
            return Err(MemberError::UnknownMember { member });
        };
        if let Some(instance) = instance
            && beating.instance.as_deref() != Some(instance)
        {
            return Err(MemberError::FencedInstance { instance: instance.to_owned(), member });
        }
        if !(returns && beating.instance.is_some()) {
            return Ok(Some(id));
        }
        if let Some(beating) = self.members.get_mut(&id).and_then(|member| member.beating.as_mut()) {
            beating.is_away = true;
        }
        Ok(None)
    }

    /// Refuses a request of a sender that is not a member, or whose epoch is over.
    ///
    /// # Errors
    /// [`MemberError::UnknownMember`], [`MemberError::StaleEpoch`].
    pub fn check_epoch(&self, name: &str, epoch: i32) -> Result<(), MemberError> {
        let Some((_, beating)) = self.of_name(name) else {
            return Err(MemberError::UnknownMember { member: name.to_owned() });
        };
        let current = beating.told.0;
        if u64::try_from(epoch) == Ok(current) {
            return Ok(());
        }
        Err(MemberError::StaleEpoch { epoch, current })
    }

    /// Finds the topics of all patterns again with `matching`. The caller rebalances.
    pub(crate) fn match_again(&mut self, matching: impl Fn(&Regex) -> BTreeSet<TopicName>) {
        for member in self.members.values_mut() {
            if let Some(Beating { named, pattern: Some(pattern), .. }) = &member.beating {
                member.topics = named.clone();
                member.topics.extend(matching(pattern));
            }
        }
    }

    /// Describes the members in full.
    pub fn describe_members(&self) -> Vec<ConsumerMember> {
        let describe = |(id, member): (&MemberId, &Member)| {
            let beating = member.beating.as_ref();
            ConsumerMember {
                member: self.shown(id),
                instance: beating.and_then(|beating| beating.instance.clone()),
                client_id: member.client_id.clone(),
                client_host: beating.map(|beating| beating.client_host.clone()).unwrap_or_default(),
                epoch: member.epoch,
                topics: beating.map_or_else(|| member.topics.clone(), |beating| beating.named.clone()),
                pattern: beating.and_then(|beating| beating.pattern.as_ref()).map(|of| of.as_str().to_owned()),
                owned: member.owned.keys().cloned().collect(),
                target: self.target.get(id).into_iter().flatten().cloned().collect(),
            }
        };
        self.members.iter().map(describe).collect()
    }

    fn of_name(&self, name: &str) -> Option<(MemberId, &Beating)> {
        self.beating().find(|(_, beating)| *beating.name == *name)
    }

    fn of_instance(&self, instance: &str) -> Option<(MemberId, &Beating)> {
        self.beating().find(|(_, beating)| beating.instance.as_deref() == Some(instance))
    }

    fn beating(&self) -> impl Iterator<Item = (MemberId, &Beating)> {
        self.members.iter().filter_map(|(id, member)| Some((*id, member.beating.as_ref()?)))
    }
}
