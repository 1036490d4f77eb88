//! Transactions over partitions and group offsets (KIP-98, KIP-360, KIP-890).
//!
//! A commit of the log spans partitions, groups and the catalog. So the end of a transaction is one commit: a control batch
//! in each partition, the offsets of groups, and the new state of the transactional id. There is no prepare phase and
//! nothing to complete after a crash. Records of the transaction are in the log before, and offsets are in the entry of the
//! transactional id in the catalog.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_record::{RecordBatch, TransactionEnd};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Broker;
use super::operation::to_its_end;
use super::produce::{Queued, queued};
use crate::error::{BrokerError, TransactionError};
use crate::groups::classic::Claim;
use crate::groups::{CommittedOffset, GroupKind};
use crate::log::catalog_entries::to_json;
use crate::log::commit::{Append, Commit, Fence, OffsetChange};
use crate::log::partition::Partition;
use crate::log::queue::Receipt;
use crate::log::topic::Topic;
use crate::log::topics::Topics;
use crate::name::{GroupId, ProducerId, ProducerIdentity};
use crate::store::place::{Offset, Place, TopicId};
use crate::store::{CatalogChange, Store, StoreError};

/// Prefix of the catalog's entries of transactional ids.
const PREFIX: &str = "transaction/";

/// The settings of transactions.
#[derive(Clone, Copy, Debug)]
pub struct TransactionSettings {
    /// Longest timeout that a producer may ask for: Kafka's `transaction.max.timeout.ms`.
    pub timeout_max_ms: u64,
    /// How long a transactional id may be unused until it is forgotten: Kafka's `transactional.id.expiration.ms`.
    pub id_expiry_ms: u64,
    /// How often transactions that are open for too long are looked for: Kafka's
    /// `transaction.abort.timed.out.transaction.cleanup.interval.ms`.
    pub check_interval_ms: u64,
}

impl Default for TransactionSettings {
    fn default() -> Self {
        Self { timeout_max_ms: 900_000, id_expiry_ms: 7 * 24 * 3_600_000, check_interval_ms: 1_000 }
    }
}

/// How the last transaction of an id ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// There was none.
    #[default]
    None,
    Committed,
    Aborted,
}

/// A transactional id's entry in the catalog.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    producer_id: i64,
    epoch: i16,
    timeout_ms: u64,
    outcome: Outcome,
    /// When the entry was written, in ms since the epoch.
    used_at_ms: i64,
    /// When the open transaction began, in ms since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began_at_ms: Option<i64>,
    /// The offsets that the open transaction commits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    offsets: Vec<EntryOffset>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct EntryOffset {
    group: String,
    topic: u32,
    partition: u32,
    offset: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_epoch: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
}

/// The offsets that a transaction commits.
type Offsets = BTreeMap<(GroupId, TopicId, u32), CommittedOffset>;

/// A transactional id, and its open transaction if there is one.
#[derive(Debug)]
struct Transaction {
    id: Arc<str>,
    producer: ProducerIdentity,
    timeout_ms: u64,
    outcome: Outcome,
    used_at_ms: i64,
    /// When the open transaction began.
    began: Option<(Instant, i64)>,
    /// Whether the catalog says when it began.
    began_is_stored: bool,
    /// The partitions of the open transaction.
    partitions: BTreeMap<Place, Arc<Partition>>,
    groups: BTreeSet<GroupId>,
    offsets: Offsets,
    /// Whether the transaction was open when the server stopped. Partitions that were added to it without records are not
    /// known any more.
    is_recovered: bool,
}

impl Transaction {
    fn begin(&mut self, now_ms: i64) {
        self.began.get_or_insert((Instant::now(), now_ms));
    }

    fn is_open(&self) -> bool {
        self.began.is_some()
    }

    fn is_overdue(&self) -> bool {
        self.began.is_some_and(|(began, _)| began.elapsed() >= Duration::from_millis(self.timeout_ms))
    }

    /// Returns the entry of an id whose transaction is not open.
    fn ended_entry(&self, producer: ProducerIdentity, outcome: Outcome, now_ms: i64) -> CatalogChange {
        self.entry(producer, outcome, &Offsets::new(), None, now_ms)
    }

    /// Returns the entry of an id whose transaction is open.
    fn open_entry(&self, offsets: &Offsets, now_ms: i64) -> CatalogChange {
        let began_at_ms = self.began.map_or(now_ms, |(_, began_ms)| began_ms);
        self.entry(self.producer, self.outcome, offsets, Some(began_at_ms), now_ms)
    }

    fn entry(
        &self,
        producer: ProducerIdentity,
        outcome: Outcome,
        offsets: &Offsets,
        began_at_ms: Option<i64>,
        now_ms: i64,
    ) -> CatalogChange {
        let offset =
            |((group, topic, partition), committed): (&(GroupId, TopicId, u32), &CommittedOffset)| EntryOffset {
                group: group.as_str().to_owned(),
                topic: topic.0,
                partition: *partition,
                offset: committed.offset.get(),
                leader_epoch: committed.leader_epoch,
                metadata: committed.metadata.as_deref().map(str::to_owned),
            };
        let entry = Entry {
            producer_id: producer.id.get(),
            epoch: producer.epoch,
            timeout_ms: self.timeout_ms,
            outcome,
            used_at_ms: now_ms,
            began_at_ms,
            offsets: offsets.iter().map(offset).collect(),
        };
        CatalogChange::put(key(&self.id), to_json(&entry))
    }

    /// Checks that a request is of the current producer.
    fn check(&self, producer: ProducerIdentity) -> Result<(), BrokerError> {
        let refused = |source| Err(BrokerError::Transaction { id: self.id.to_string(), source });
        if producer.id != self.producer.id {
            return refused(TransactionError::OtherProducer { sent: producer.id, current: self.producer.id });
        }
        if producer.epoch != self.producer.epoch {
            return refused(TransactionError::Fenced { epoch: producer.epoch, current: self.producer.epoch });
        }
        Ok(())
    }

    fn refused(&self, source: TransactionError) -> BrokerError {
        BrokerError::Transaction { id: self.id.to_string(), source }
    }
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

type Shared = Arc<tokio::sync::Mutex<Transaction>>;

/// All transactional ids.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    by_id: Mutex<HashMap<Arc<str>, Shared>>,
    is_watched: std::sync::atomic::AtomicBool,
}

/// What there is to say about a transactional id.
#[derive(Clone, Debug)]
pub struct TransactionDescription {
    /// The id.
    pub id: Arc<str>,
    /// Its producer.
    pub producer: ProducerIdentity,
    /// Kafka's name of its state.
    pub state: &'static str,
    /// How long a transaction may be open, in ms.
    pub timeout_ms: u64,
    /// When the open transaction began, in ms since the epoch.
    pub began_ms: Option<i64>,
    /// The partitions of the open transaction.
    pub partitions: Vec<Arc<Partition>>,
}

impl Transactions {
    /// Reads all transactional ids from the catalog. A transaction that was open when the server stopped is open, and the
    /// time that the server was away counts, as in Kafka.
    pub(super) fn load(
        store: &Store,
        topics: &Topics,
        groups: &crate::groups::Groups,
        now_ms: i64,
    ) -> Result<Self, StoreError> {
        let mut open: HashMap<ProducerId, Vec<Arc<Partition>>> = HashMap::new();
        for partition in topics.values().flat_map(|topic| topic.partitions()) {
            for (producer, _) in partition.producers().open_transactions() {
                open.entry(producer).or_default().push(partition.clone());
            }
        }
        let mut by_id: HashMap<Arc<str>, Shared> = HashMap::new();
        for (key, value) in store.catalog_scan(PREFIX)? {
            let corrupt = |reason: String| StoreError::Corrupt { what: format!("catalog entry {key:?}"), reason };
            let entry: Entry = serde_json::from_slice(&value).map_err(|error| corrupt(error.to_string()))?;
            let producer_id = ProducerId::new(entry.producer_id);
            let producer_id = producer_id.ok_or_else(|| corrupt(format!("producer id {}", entry.producer_id)))?;
            let mut offsets = Offsets::new();
            for of in entry.offsets {
                let group = GroupId::new(&of.group).map_err(|error| corrupt(error.to_string()))?;
                let offset = Offset::new(of.offset).ok_or_else(|| corrupt(format!("offset {}", of.offset)))?;
                let metadata = of.metadata.as_deref().map(Arc::from);
                let committed = CommittedOffset { offset, leader_epoch: of.leader_epoch, metadata };
                if let Ok(known) = groups.get_or_create(&group, GroupKind::Consumer) {
                    known.set_pending(producer_id, (TopicId(of.topic), of.partition));
                }
                offsets.insert((group, TopicId(of.topic), of.partition), committed);
            }
            let partitions = open.remove(&producer_id).unwrap_or_default();
            let is_open = !partitions.is_empty() || !offsets.is_empty();
            let began_ms = entry.began_at_ms.unwrap_or(now_ms);
            let open_for = Duration::from_millis(u64::try_from(now_ms.saturating_sub(began_ms)).unwrap_or(0));
            // A machine that has not been up for so long cannot say when that was, so the time begins anew.
            let began = Instant::now().checked_sub(open_for).unwrap_or_else(Instant::now);
            let id: Arc<str> = key[PREFIX.len()..].into();
            let transaction = Transaction {
                id: id.clone(),
                producer: ProducerIdentity { id: producer_id, epoch: entry.epoch },
                timeout_ms: entry.timeout_ms,
                outcome: entry.outcome,
                used_at_ms: entry.used_at_ms,
                began: is_open.then_some((began, began_ms)),
                began_is_stored: is_open && entry.began_at_ms.is_some(),
                partitions: partitions.into_iter().map(|partition| (partition.place(), partition)).collect(),
                groups: offsets.keys().map(|(group, ..)| group.clone()).collect(),
                offsets,
                // Partitions may have been added before the stop whose records did not come.
                is_recovered: true,
            };
            by_id.insert(id, Arc::new(tokio::sync::Mutex::new(transaction)));
        }
        Ok(Self { by_id: Mutex::new(by_id), is_watched: false.into() })
    }

    fn get(&self, id: &str) -> Result<Shared, BrokerError> {
        let found = self.by_id.lock().get(id).cloned();
        found.ok_or_else(|| BrokerError::Transaction { id: id.to_owned(), source: TransactionError::UnknownId })
    }

    fn all(&self) -> Vec<Shared> {
        let mut all: Vec<_> = self.by_id.lock().iter().map(|(id, of)| (id.clone(), of.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.into_iter().map(|(_, of)| of).collect()
    }
}

/// Records that a producer sends in a transaction.
#[derive(Clone, Debug)]
pub struct InTransaction<'a> {
    /// The transactional id.
    pub id: &'a str,
    /// Whether partitions join the transaction with their first records (KIP-890). Otherwise they must have been added
    /// before.
    pub adds_partitions: bool,
}

impl Broker {
    /// Gives a transactional id to a producer. The producer that had it is fenced, and its open transaction is aborted.
    ///
    /// `current` is what the producer has, if it asks for its next epoch (KIP-360).
    ///
    /// # Errors
    /// [`BrokerError::Transaction`], [`BrokerError::Storage`].
    pub async fn init_transactional(
        &self,
        id: &str,
        timeout_ms: i32,
        current: Option<ProducerIdentity>,
    ) -> Result<ProducerIdentity, BrokerError> {
        let max_ms = self.0.settings.transactions.timeout_max_ms;
        let timeout = u64::try_from(timeout_ms).ok().filter(|ms| (1..=max_ms).contains(ms));
        let timeout_ms = timeout.ok_or_else(|| BrokerError::Transaction {
            id: id.to_owned(),
            source: TransactionError::InvalidTimeout { timeout_ms, max_ms },
        })?;
        self.watch_transactions();
        let (broker, id) = (self.clone(), id.to_owned());
        to_its_end(async move { broker.init_transactional_to_its_end(&id, timeout_ms, current).await }).await
    }

    async fn init_transactional_to_its_end(
        &self,
        id: &str,
        timeout_ms: u64,
        current: Option<ProducerIdentity>,
    ) -> Result<ProducerIdentity, BrokerError> {
        let known = self.0.transactions.get(id);
        let shared = match known {
            Ok(shared) => shared,
            Err(_) => {
                // Where the id expired, its producer goes on with a new identity.
                let producer = self.init_producer(None).await?;
                let transaction = Transaction {
                    id: id.into(),
                    producer,
                    timeout_ms,
                    outcome: Outcome::None,
                    used_at_ms: self.0.clock.now_ms(),
                    began: None,
                    began_is_stored: false,
                    partitions: BTreeMap::new(),
                    groups: BTreeSet::new(),
                    offsets: Offsets::new(),
                    is_recovered: false,
                };
                let entry = transaction.ended_entry(producer, Outcome::None, transaction.used_at_ms);
                let added = {
                    let mut by_id = self.0.transactions.by_id.lock();
                    match by_id.get(id) {
                        Some(other) => Err(other.clone()),
                        None => {
                            let added = Arc::new(tokio::sync::Mutex::new(transaction));
                            by_id.insert(id.into(), added.clone());
                            Ok(added)
                        }
                    }
                };
                match added {
                    Ok(_) => {
                        self.commit_entry(entry).await?;
                        return Ok(producer);
                    }
                    // Another producer was faster. This one takes over from it.
                    Err(other) => other,
                }
            }
        };
        let mut transaction = shared.lock().await;
        if let Some(current) = current {
            let of = transaction.producer;
            // A producer that did not get the answer to its last request asks again with the epoch before.
            let asks_again = current.id == of.id && current.epoch.checked_add(1) == Some(of.epoch);
            if asks_again && !transaction.is_open() {
                return Ok(of);
            }
            if current != of {
                let source = TransactionError::Fenced { epoch: current.epoch, current: of.epoch };
                return Err(transaction.refused(source));
            }
        }
        transaction.timeout_ms = timeout_ms;
        let next = self.next_identity(transaction.producer).await?;
        if transaction.is_open() {
            self.end(&mut transaction, TransactionEnd::Abort, next, true).await?;
        } else {
            let now_ms = self.0.clock.now_ms();
            let entry = transaction.ended_entry(next, Outcome::None, now_ms);
            self.commit_entry(entry).await?;
            transaction.used_at_ms = now_ms;
        }
        transaction.producer = next;
        transaction.outcome = Outcome::None;
        Ok(next)
    }

    /// Returns the identity that follows: the next epoch, or a new id after the last one. The largest epoch is kept for
    /// fencing.
    async fn next_identity(
        &self,
        ProducerIdentity { id, epoch }: ProducerIdentity,
    ) -> Result<ProducerIdentity, BrokerError> {
        match epoch.checked_add(1).filter(|next| *next < i16::MAX) {
            Some(epoch) => Ok(ProducerIdentity { id, epoch }),
            None => self.init_producer(None).await,
        }
    }

    /// Adds partitions to a transaction, which begins with the first of them.
    ///
    /// # Errors
    /// [`BrokerError::Transaction`].
    pub async fn add_to_transaction(
        &self,
        id: &str,
        producer: ProducerIdentity,
        partitions: Vec<Arc<Partition>>,
    ) -> Result<(), BrokerError> {
        let shared = self.0.transactions.get(id)?;
        let mut transaction = shared.lock().await;
        transaction.check(producer)?;
        if !partitions.is_empty() {
            transaction.begin(self.0.clock.now_ms());
        }
        transaction.partitions.extend(partitions.into_iter().map(|partition| (partition.place(), partition)));
        Ok(())
    }

    /// Returns which of these partitions are in the open transaction.
    ///
    /// # Errors
    /// [`BrokerError::Transaction`].
    pub async fn is_in_transaction(
        &self,
        id: &str,
        producer: ProducerIdentity,
        partitions: &[Arc<Partition>],
    ) -> Result<Vec<bool>, BrokerError> {
        let shared = self.0.transactions.get(id)?;
        let transaction = shared.lock().await;
        transaction.check(producer)?;
        Ok(partitions.iter().map(|partition| transaction.partitions.contains_key(&partition.place())).collect())
    }

    /// Announces that a transaction commits offsets of a group.
    ///
    /// # Errors
    /// [`BrokerError::Transaction`].
    pub async fn add_group_to_transaction(
        &self,
        id: &str,
        producer: ProducerIdentity,
        group: &GroupId,
    ) -> Result<(), BrokerError> {
        let shared = self.0.transactions.get(id)?;
        let mut transaction = shared.lock().await;
        transaction.check(producer)?;
        transaction.begin(self.0.clock.now_ms());
        transaction.groups.insert(group.clone());
        Ok(())
    }

    /// Queues record batches that are part of a transaction, as [`Broker::produce_bytes`] does for others.
    ///
    /// # Errors
    /// As [`Broker::produce_bytes`], and [`BrokerError::Transaction`].
    pub async fn produce_in_transaction(
        &self,
        of: &InTransaction<'_>,
        topic: &Arc<Topic>,
        partition: u32,
        bytes: Bytes,
    ) -> Result<(Receipt, Queued), BrokerError> {
        let to = topic.partition(partition)?;
        let batches = self.check_bytes(topic, partition, bytes, true).await?;
        let queued = queued(partition, &batches);
        let Some(first) = batches.first().filter(|batch| batch.is_transactional()) else {
            return Ok((self.append(to, batches, Vec::new()).await?, queued));
        };
        let shared = self.0.transactions.get(of.id)?;
        let mut transaction = shared.lock().await;
        let id = ProducerId::new(first.producer_id()).unwrap_or(transaction.producer.id);
        transaction.check(ProducerIdentity { id, epoch: first.producer_epoch() })?;
        let adds = of.adds_partitions || transaction.is_recovered;
        if !adds && !transaction.partitions.contains_key(&to.place()) {
            let source = TransactionError::NotAdded { partition: to.name().clone() };
            return Err(transaction.refused(source));
        }
        let now_ms = self.0.clock.now_ms();
        transaction.begin(now_ms);
        transaction.partitions.insert(to.place(), to.clone());
        // The first batch brings with it when the transaction began, which counts over a restart.
        let began = (!transaction.began_is_stored).then(|| transaction.open_entry(&transaction.offsets, now_ms));
        // The batch is queued under the lock, so that the end of the transaction comes after it in the log.
        let receipt = self.append(to, batches, began.into_iter().collect()).await?;
        transaction.began_is_stored = true;
        Ok((receipt, queued))
    }

    /// Stores offsets of a group that take effect when the transaction commits.
    ///
    /// `adds_group` says whether the group joins the transaction with its offsets (KIP-890). Otherwise it must have been
    /// added before.
    ///
    /// # Errors
    /// [`BrokerError::Transaction`], [`BrokerError::Member`], [`BrokerError::GroupOfOtherKind`], [`BrokerError::Storage`].
    pub async fn commit_in_transaction(
        &self,
        id: &str,
        producer: ProducerIdentity,
        group: &GroupId,
        claim: &Claim,
        offsets: &[(Arc<Topic>, u32, CommittedOffset)],
        adds_group: bool,
    ) -> Result<(), BrokerError> {
        let (broker, id, group) = (self.clone(), id.to_owned(), group.clone());
        let (claim, offsets) = (claim.clone(), offsets.to_vec());
        let committed = async move {
            broker.commit_in_transaction_to_its_end(&id, producer, &group, &claim, &offsets, adds_group).await
        };
        to_its_end(committed).await
    }

    async fn commit_in_transaction_to_its_end(
        &self,
        id: &str,
        producer: ProducerIdentity,
        group: &GroupId,
        claim: &Claim,
        offsets: &[(Arc<Topic>, u32, CommittedOffset)],
        adds_group: bool,
    ) -> Result<(), BrokerError> {
        let shared = self.0.transactions.get(id)?;
        let mut transaction = shared.lock().await;
        transaction.check(producer)?;
        if !adds_group && !transaction.groups.contains(group) && !transaction.is_recovered {
            return Err(transaction.refused(TransactionError::GroupNotAdded { group: group.clone() }));
        }
        let known = self.0.groups.get_or_create(group, GroupKind::Consumer)?;
        let mut all = transaction.offsets.clone();
        for (topic, partition, committed) in offsets {
            all.insert((group.clone(), topic.id(), *partition), committed.clone());
        }
        let now_ms = self.0.clock.now_ms();
        let entry = transaction.open_entry(&all, now_ms);
        let fence = Fence::Claim { group: known.clone(), claim: claim.clone(), in_transaction: true };
        self.commit(Commit { catalog: vec![entry], fence: Some(fence), ..Commit::default() }).await?.await?;
        for (topic, partition, _) in offsets {
            known.set_pending(producer.id, (topic.id(), *partition));
        }
        transaction.begin(now_ms);
        transaction.began_is_stored = true;
        transaction.groups.insert(group.clone());
        transaction.offsets = all;
        transaction.used_at_ms = now_ms;
        Ok(())
    }

    /// Ends a transaction. If `bumps` is set, the producer gets its next epoch (KIP-890), which is returned. Otherwise its
    /// identity stays.
    ///
    /// # Errors
    /// [`BrokerError::Transaction`], [`BrokerError::Storage`].
    pub async fn end_transaction(
        &self,
        id: &str,
        producer: ProducerIdentity,
        end: TransactionEnd,
        bumps: bool,
    ) -> Result<ProducerIdentity, BrokerError> {
        let (broker, id) = (self.clone(), id.to_owned());
        to_its_end(async move { broker.end_to_its_end(&id, producer, end, bumps).await }).await
    }

    async fn end_to_its_end(
        &self,
        id: &str,
        producer: ProducerIdentity,
        end: TransactionEnd,
        bumps: bool,
    ) -> Result<ProducerIdentity, BrokerError> {
        let shared = self.0.transactions.get(id)?;
        let mut transaction = shared.lock().await;
        let outcome = match end {
            TransactionEnd::Commit => Outcome::Committed,
            TransactionEnd::Abort => Outcome::Aborted,
        };
        let current = transaction.producer;
        // The answer to the same request was lost: the epoch is the next one already.
        let was_bumped = producer.id == current.id && producer.epoch.checked_add(1) == Some(current.epoch);
        if bumps && !transaction.is_open() && was_bumped && transaction.outcome == outcome {
            return Ok(current);
        }
        transaction.check(producer)?;
        if !transaction.is_open() {
            match (end, bumps) {
                _ if !bumps && transaction.outcome == outcome => return Ok(current),
                // A producer that is not sure whether anything was sent aborts, to be safe.
                (TransactionEnd::Abort, true) => {}
                // A restart forgets that partitions and groups were added of which nothing else came.
                (TransactionEnd::Abort, false) if transaction.is_recovered => {}
                _ => return Err(transaction.refused(TransactionError::NotOpen)),
            }
        }
        let next = if bumps { self.next_identity(current).await? } else { current };
        self.end(&mut transaction, end, next, bumps).await?;
        transaction.producer = next;
        transaction.outcome = outcome;
        Ok(next)
    }

    /// Ends a transaction in one commit. `next` is the identity that the producer has afterwards. If `fences` is set, what
    /// the producer sends with its current epoch is refused from then on.
    async fn end(
        &self,
        transaction: &mut Transaction,
        end: TransactionEnd,
        next: ProducerIdentity,
        fences: bool,
    ) -> Result<(), BrokerError> {
        let current = transaction.producer;
        let outcome = if end == TransactionEnd::Commit { Outcome::Committed } else { Outcome::Aborted };
        // Where the next identity has another id, the current one is fenced by the largest epoch.
        let epoch = match fences {
            true if next.id == current.id => next.epoch,
            true => i16::MAX,
            false => current.epoch,
        };
        loop {
            let now_ms = self.0.clock.now_ms();
            let marker = RecordBatch::end_of_transaction(end, current.id.get(), epoch, now_ms);
            let mut commit = Commit::default();
            let partitions = transaction.partitions.values().filter(|partition| !partition.is_deleted());
            commit.appends.extend(
                partitions.map(|partition| Append { partition: partition.clone(), batches: vec![marker.clone()] }),
            );
            if end == TransactionEnd::Commit {
                for ((group, topic, partition), committed) in &transaction.offsets {
                    let topic = self.0.topics.read().by_id(*topic).cloned();
                    let Some(topic) = topic.filter(|topic| !topic.is_deleted()) else { continue };
                    let group = self.0.groups.get_or_create(group, GroupKind::Consumer)?;
                    let to = Some(committed.clone());
                    commit.offsets.push(OffsetChange { group, topic, partition: *partition, to, expected: None });
                }
            }
            commit.catalog.push(transaction.ended_entry(next, outcome, now_ms));
            match self.commit(commit).await?.await {
                Ok(_) => {
                    transaction.used_at_ms = now_ms;
                    break;
                }
                // A topic was deleted meanwhile, and its part of the transaction with it.
                Err(BrokerError::UnknownTopic { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for (group, topic, partition) in transaction.offsets.keys() {
            if let Ok(group) = self.0.groups.get(group.as_str()) {
                group.clear_pending(current.id, (*topic, *partition));
            }
        }
        transaction.began = None;
        transaction.began_is_stored = false;
        transaction.partitions.clear();
        transaction.groups.clear();
        transaction.offsets.clear();
        transaction.is_recovered = false;
        Ok(())
    }

    /// Describes a transactional id.
    ///
    /// # Errors
    /// [`BrokerError::Transaction`].
    pub async fn describe_transaction(&self, id: &str) -> Result<TransactionDescription, BrokerError> {
        let shared = self.0.transactions.get(id)?;
        let transaction = shared.lock().await;
        Ok(describe(&transaction))
    }

    /// Describes all transactional ids, in their order.
    pub async fn transactions(&self) -> Vec<TransactionDescription> {
        let mut all = Vec::new();
        for shared in self.0.transactions.all() {
            all.push(describe(&*shared.lock().await));
        }
        all
    }

    /// Ends transactions that are open for too long, and forgets transactional ids that are not used, as long as the broker
    /// is open. Begins only once.
    pub fn watch_transactions(&self) {
        if self.0.transactions.is_watched.swap(true, std::sync::atomic::Ordering::AcqRel) {
            return;
        }
        let (weak, mut stopping) = (self.downgrade(), self.0.stopping.subscribe());
        let interval = Duration::from_millis(self.0.settings.transactions.check_interval_ms.max(1));
        tokio::spawn(async move {
            while let Some(broker) = weak.upgrade() {
                broker.end_overdue().await;
                drop(broker);
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                }
            }
        });
    }

    async fn end_overdue(&self) {
        let expired_ms = self.0.clock.now_ms().saturating_sub_unsigned(self.0.settings.transactions.id_expiry_ms);
        for shared in self.0.transactions.all() {
            // A transaction that is being used is looked at in the next round.
            let Ok(mut transaction) = shared.try_lock() else { continue };
            if transaction.is_overdue() {
                let id = transaction.id.clone();
                let ended = async {
                    let next = self.next_identity(transaction.producer).await?;
                    self.end(&mut transaction, TransactionEnd::Abort, next, true).await?;
                    transaction.producer = next;
                    transaction.outcome = Outcome::Aborted;
                    Ok::<_, BrokerError>(())
                };
                match ended.await {
                    Ok(()) => {
                        tracing::info!(id = &*id, "a transaction was open for longer than its timeout and is aborted")
                    }
                    Err(BrokerError::ShuttingDown) => return,
                    Err(error) => tracing::warn!(id = &*id, %error, "a transaction cannot be aborted"),
                }
            } else if !transaction.is_open() && transaction.used_at_ms < expired_ms {
                let id = transaction.id.clone();
                if self.commit_entry(CatalogChange::remove(key(&id))).await.is_ok() {
                    self.0.transactions.by_id.lock().remove(&id);
                }
            }
        }
    }
}

fn describe(transaction: &Transaction) -> TransactionDescription {
    TransactionDescription {
        id: transaction.id.clone(),
        producer: transaction.producer,
        state: match (transaction.is_open(), transaction.outcome) {
            (true, _) => "Ongoing",
            (false, Outcome::None) => "Empty",
            (false, Outcome::Committed) => "CompleteCommit",
            (false, Outcome::Aborted) => "CompleteAbort",
        },
        timeout_ms: transaction.timeout_ms,
        began_ms: transaction.began.map(|(_, began_ms)| began_ms),
        partitions: transaction.partitions.values().cloned().collect(),
    }
}
