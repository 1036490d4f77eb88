//! A member of a consumer group from joining to leaving: its assignments and revocations, its read positions, and its
//! commits. The APIs translate the events to their protocol, and pass on the member's requests.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use std::time::Instant;

use tokio::sync::mpsc;

use super::Broker;
use super::caller::Caller;
use super::fetch::{Fetch, FetchFrom, Fetched, WAIT_MAX};
use crate::error::BrokerError;
use crate::groups::assign::Assignor;
use crate::groups::members::{MemberEvent, NewMember};
use crate::groups::{Group, MemberId};
use crate::log::partition::Partition;
use crate::log::queue::Receipt;
use crate::log::reader::View;
use crate::name::{GroupId, TopicName, TopicPartition};
use crate::store::place::{Offset, TopicId};

/// Default time that a member may take to give partitions back.
const REBALANCE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// The properties of a member that joins.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) group: GroupId,
    /// The name that the client chose for itself. It may be empty.
    pub(crate) client_id: String,
    /// The topics that it reads, at least one.
    pub(crate) topics: BTreeSet<TopicName>,
    /// Whether reading starts at the first record in partitions without a committed offset. Otherwise it starts at the
    /// end.
    pub(crate) from_earliest: bool,
    /// How long the member may take to give partitions back.
    pub(crate) rebalance_timeout: Option<Duration>,
    /// The assignor that the member asks for, if any.
    pub(crate) assignor: Option<Assignor>,
}

/// An event of a member.
#[derive(Debug)]
pub(crate) enum Event {
    /// The member gets these partitions in addition to those that it has. The list may be empty.
    Assigned {
        generation: u64,
        /// The new partitions, and the offsets from which they are read.
        added: Positions,
        /// All partitions that the member has after this.
        all: Vec<TopicPartition>,
    },
    /// The member must give these partitions back.
    Revoke { generation: u64, partitions: Vec<TopicPartition> },
    /// Records of its partitions, each with the offset that was requested. The member reports with
    /// [`Consumer::advance`] what it has taken.
    Fetched(Vec<(Fetched, Offset)>),
    /// Retention deleted records before the member read them. Reading continues at the log start offset.
    Missed {
        partition: TopicPartition,
        /// Number of missed records.
        records: u64,
        log_start: Offset,
    },
    /// The member did not give partitions back in time and was removed from the group.
    Overdue(Duration),
}

/// A future that makes progress whenever it is polled, and is kept between calls.
type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Partitions, each with an offset.
type Positions = Vec<(TopicPartition, Offset)>;

/// A partition that the member reads, and its position.
struct Reading {
    partition: Arc<Partition>,
    next: Offset,
}

/// A member. It leaves its group when it is dropped.
pub(crate) struct Consumer {
    broker: Broker,
    caller: Caller,
    group: Arc<Group>,
    member: MemberId,
    events: mpsc::UnboundedReceiver<MemberEvent>,
    from_earliest: bool,
    /// The topics with their partition counts at the time of joining. Partitions added later are read from the first
    /// record.
    joined: BTreeMap<TopicId, u32>,
    rebalance_timeout: Duration,
    reading: BTreeMap<TopicPartition, Reading>,
    /// Missed records that were not reported yet.
    missed: Vec<(TopicPartition, u64, Offset)>,
    /// The read in progress. It continues regardless of what the member sends or receives, as long as the member reads
    /// the same partitions.
    fetching: Option<Waiting<Vec<Fetched>>>,
    /// The partition that the last read started with. The next read starts with the partition after it, so that all get
    /// their turn.
    first: Option<TopicPartition>,
    /// An assignment that is reported once the group's first positions in it are on disk.
    beginning: Option<(Waiting<()>, Event)>,
    /// When to check the group for members that hold partitions for too long.
    deadline: Option<Instant>,
}

impl Consumer {
    /// Joins a group.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`], [`BrokerError::UnknownTopic`].
    pub(crate) fn join(broker: Broker, caller: Caller, join: Join) -> Result<Self, BrokerError> {
        let known = join.topics.iter().filter_map(|topic| broker.topic(topic.as_str()).ok());
        let joined = known.map(|topic| (topic.id(), topic.partition_count())).collect();
        let rebalance_timeout = join.rebalance_timeout.unwrap_or(REBALANCE_TIMEOUT_DEFAULT);
        let Join { client_id, topics, assignor, .. } = join;
        let new = NewMember { client_id, topics, rebalance_timeout, assignor };
        let (group, member, events) = broker.join_group(&join.group, new)?;
        Ok(Self {
            broker,
            caller,
            group,
            member,
            events,
            from_earliest: join.from_earliest,
            joined,
            rebalance_timeout,
            reading: BTreeMap::new(),
            missed: Vec::new(),
            fetching: None,
            first: None,
            beginning: None,
            deadline: None,
        })
    }

    /// Returns the member's ID.
    pub(crate) fn member(&self) -> &MemberId {
        &self.member
    }

    /// Waits for the next event. `bytes_max` limits the size of a read that is started now, in bytes of batches. With 0
    /// no read is started, but one in progress continues. Nothing is lost if the future is dropped and the method is
    /// called again.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Event {
        loop {
            if let Some((beginning, _)) = &mut self.beginning {
                beginning.await;
            }
            if let Some((_, assigned)) = self.beginning.take() {
                return assigned;
            }
            if let Some((partition, records, log_start)) = self.missed.pop() {
                return Event::Missed { partition, records, log_start };
            }
            if let Some(event) = self.wait(bytes_max).await {
                return event;
            }
        }
    }

    /// Returns `None` for an event that is reported later.
    async fn wait(&mut self, bytes_max: usize) -> Option<Event> {
        if self.fetching.is_none() && bytes_max > 0 {
            self.begin_fetch(bytes_max);
            if !self.missed.is_empty() {
                return None;
            }
        }
        let fetching = &mut self.fetching;
        let fetched = async {
            match fetching {
                Some(fetching) => fetching.await,
                None => std::future::pending().await,
            }
        };
        let deadline = self.deadline;
        let overdue = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Some(event) => self.happened(event),
                None => Some(Event::Overdue(self.rebalance_timeout)),
            },
            () = overdue => {
                self.deadline = None;
                self.broker.remove_overdue(&self.group);
                None
            }
            fetched = fetched => {
                self.fetching = None;
                Some(self.fetched(fetched))
            }
        }
    }

    fn begin_fetch(&mut self, bytes_max: usize) {
        if self.reading.is_empty() {
            return;
        }
        for (name, reading) in &mut self.reading {
            missed(&mut self.missed, name, reading);
        }
        let from = |reading: &Reading| FetchFrom {
            partition: reading.partition.clone(),
            offset: reading.next,
            until: None,
            bytes_max: usize::MAX,
            view: View::Committed,
        };
        let mut all: Vec<FetchFrom> = self.reading.values().map(from).collect();
        // Each read starts with another partition, because the first partition may fill it.
        let turn = self.first.as_ref().map_or(0, |first| self.reading.keys().take_while(|name| *name <= first).count());
        let turn = turn % all.len();
        all.rotate_left(turn);
        self.first = all.first().map(|from| from.partition.name().clone());
        let fetch = Fetch { from: all, bytes_min: 1, bytes_max, wait_max: WAIT_MAX };
        let caller = self.caller.clone();
        self.fetching = Some(Box::pin(async move { caller.fetch(&fetch).await }));
    }

    /// Drops results that are out of date because the partition is no longer read, or is read from another offset.
    fn fetched(&mut self, fetched: Vec<Fetched>) -> Event {
        let mut found = Vec::with_capacity(fetched.len());
        for fetched in fetched {
            let Some(reading) = self.reading.get_mut(fetched.partition.name()) else { continue };
            match &fetched.slice {
                Ok(slice) if slice.next <= reading.next => {}
                Err(BrokerError::OffsetOutOfRange { .. }) if reading.next < reading.partition.start() => {
                    missed(&mut self.missed, fetched.partition.name(), reading);
                }
                read => {
                    let (failed, from) = (read.is_err(), reading.next);
                    if failed {
                        // The error is reported once. The other partitions are read on.
                        self.reading.remove(fetched.partition.name());
                    }
                    found.push((fetched, from));
                }
            }
        }
        Event::Fetched(found)
    }

    /// Notes that the member has the partition's records before `next`, so that reading continues there.
    pub(crate) fn advance(&mut self, partition: &TopicPartition, next: Offset) {
        if let Some(reading) = self.reading.get_mut(partition) {
            reading.next = next;
        }
    }

    fn happened(&mut self, event: MemberEvent) -> Option<Event> {
        // A read of other partitions, or of the same ones at other offsets, is no longer useful.
        self.fetching = None;
        match event {
            MemberEvent::Assigned { generation, added, all } => {
                let (added, begun) = self.assigned(added);
                let assigned = Event::Assigned { generation, added, all };
                if begun.is_empty() {
                    return Some(assigned);
                }
                self.beginning = Some((self.begin(begun), assigned));
                None
            }
            MemberEvent::Revoke { generation, partitions, deadline } => {
                for partition in &partitions {
                    self.reading.remove(partition);
                }
                self.deadline = Some(deadline);
                Some(Event::Revoke { generation, partitions })
            }
        }
    }

    /// Starts reading partitions. Returns their offsets, and those of the partitions in which the group starts at the
    /// end.
    fn assigned(&mut self, added: Vec<TopicPartition>) -> (Positions, Positions) {
        let mut offsets = Vec::with_capacity(added.len());
        let mut begun = Vec::new();
        for name in added {
            let topic = self.broker.topic(name.topic.as_str());
            // If the topic was deleted, the next event takes the partition away.
            let Ok(partition) = topic.and_then(|topic| topic.partition(name.partition).cloned()) else { continue };
            let is_known = self.joined.get(&partition.topic_id()).is_some_and(|count| name.partition < *count);
            let committed = self.group.committed(partition.topic_id(), name.partition);
            if committed.is_none() && !self.from_earliest && is_known {
                begun.push((name.clone(), partition.stable_end()));
            }
            let begin = begun.last().filter(|(of, _)| *of == name).map_or(partition.start(), |(_, end)| *end);
            let mut reading = Reading { partition, next: committed.unwrap_or(begin) };
            missed(&mut self.missed, &name, &mut reading);
            offsets.push((name.clone(), reading.next));
            self.reading.insert(name, reading);
        }
        (offsets, begun)
    }

    /// Commits the positions of a group that starts at the end, so that the next reader does not miss records that
    /// arrive until then.
    fn begin(&self, positions: Positions) -> Waiting<()> {
        let (broker, group, member) = (self.broker.clone(), self.group.clone(), self.member);
        Box::pin(async move {
            let committed = async { broker.commit_as_member(&group, &member, &positions).await?.await };
            if let Err(error) = committed.await {
                tracing::warn!(group = %group.id(), %error, "cannot commit the first position of a group");
            }
        })
    }

    /// Queues offsets to commit, as far as they are valid. Also returns the error of the first invalid one: a deleted
    /// topic must not prevent the commit of others. An offset before the log start offset is replaced by the log start
    /// offset, because the records in between can no longer be read.
    pub(crate) async fn commit<'t>(
        &mut self,
        offsets: impl IntoIterator<Item = (&'t str, u32, u64)>,
    ) -> (Result<Receipt, BrokerError>, Option<BrokerError>) {
        let mut refused = None;
        let mut valid = Vec::new();
        for (topic, partition, offset) in offsets {
            let checked = self.broker.topic(topic).and_then(|topic| {
                let partition = topic.partition(partition)?;
                let offset = partition.offset_in_range(offset.max(partition.start().into()))?;
                Ok((partition.name().clone(), offset))
            });
            match checked {
                Ok(offset) => valid.push(offset),
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        match refused {
            Some(error) if valid.is_empty() => (Err(error), None),
            refused => (self.broker.commit_as_member(&self.group, &self.member, &valid).await, refused),
        }
    }

    /// Notes that the member gave partitions back. Its commits for them must be on disk, because the next owner starts
    /// there.
    pub(crate) fn revoked(&self, partitions: &[TopicPartition]) {
        self.broker.revoked(&self.group, &self.member, partitions);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.broker.leave_group(&self.group, &self.member);
    }
}

/// Moves a position that retention has passed to the log start offset, and notes how many records were missed.
fn missed(missed: &mut Vec<(TopicPartition, u64, Offset)>, name: &TopicPartition, reading: &mut Reading) {
    let start = reading.partition.start();
    if reading.next < start {
        missed.push((name.clone(), start.since(reading.next), start));
        reading.next = start;
    }
}
