//! What the servers and the runtime call: topics, writing, reading, groups.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use millstream_record::{Limits, RecordBatch};
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::clock::Clock;
use crate::error::BrokerError;
use crate::groups::assign::MemberId;
use crate::groups::members::MemberEvent;
use crate::groups::{Group, GroupKind, Groups};
use crate::log::catalog::{NEXT_PRODUCER_ID, NEXT_TOPIC_ID, catalog_number, load_topics, to_json, topic_key};
use crate::log::cleaner::{Cleaner, CleanerOptions};
use crate::log::commit::{Append, Commit, Fence, OffsetChange};
use crate::log::committer::Committer;
use crate::log::domain::Domain;
use crate::log::partition::Partition;
use crate::log::producers::ProducerIds;
use crate::log::queue::CommitQueue;
use crate::log::queue::Receipt;
use crate::log::readers::Readers;
use crate::log::sealer::sealer;
use crate::log::start::Restoring;
use crate::log::state::StateIndex;
use crate::log::topic::{PARTITIONS_MAX, Topic, TopicAlteration, TopicMeta, TopicSettings, TopicUse};
use crate::metrics::{BrokerCollector, BrokerMetrics};
use crate::name::TopicPartition;
use crate::name::{GroupId, TopicName};
use crate::name::{ProducerId, ProducerIdentity};
use crate::quota::{QuotaSettings, Quotas};
use crate::store::place::{Offset, TopicId};
use crate::store::{CatalogChange, Store, StoreError, StoreOptions};

/// Bytes that may wait for the committer: half a second of a slow disk. A write beyond waits.
const QUEUED_BYTES_MAX_DEFAULT: usize = 64 << 20;

/// Bytes that the journal keeps: a quarter of a second to read at a start.
pub const JOURNAL_BYTES_MAX_DEFAULT: u64 = 128 << 20;

/// A permit of the queue's semaphore stands for this many bytes: permits are counted in 32 bits.
const PERMIT_BYTES: usize = 1024;

fn permits_max(settings: &BrokerSettings) -> usize {
    (settings.queued_bytes_max / PERMIT_BYTES).max(1)
}

/// A week: as long as Kafka keeps a producer's transactional id.
const PRODUCER_EXPIRY_MS_DEFAULT: u64 = 7 * 24 * 60 * 60 * 1_000;

/// The broker's settings, checked and with defaults filled in.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Bounds for record batches from outside.
    pub limits: Limits,
    /// Bytes that may wait for the committer.
    pub queued_bytes_max: usize,
    /// What each client may produce and fetch. Default: all it can.
    pub quotas: QuotaSettings,
    /// Bytes that the journal keeps, of whatever partitions: under full load half is sealed while the other half
    /// fills. Three commits may come on top. A start reads it all, and no topic's `retention_bytes` can be less.
    pub journal_bytes_max: u64,
    /// Nothing is appended while the disk has room for fewer bytes; `None` for as many as the journal keeps. They
    /// are for sealing what is there; reading goes on, and when there is room again, so does writing.
    pub disk_reserve_bytes: Option<u64>,
    /// A partition forgets an idempotent producer that appended nothing for this long.
    pub producer_expiry_ms: u64,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            queued_bytes_max: QUEUED_BYTES_MAX_DEFAULT,
            quotas: QuotaSettings::default(),
            journal_bytes_max: JOURNAL_BYTES_MAX_DEFAULT,
            disk_reserve_bytes: None,
            producer_expiry_ms: PRODUCER_EXPIRY_MS_DEFAULT,
        }
    }
}

/// A data directory at work. Cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

/// A broker that this does not keep open.
#[derive(Clone)]
pub struct WeakBroker(Weak<Inner>);

impl std::fmt::Debug for WeakBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeakBroker")
    }
}

impl WeakBroker {
    /// The broker, if it is still open.
    pub fn upgrade(&self) -> Option<Broker> {
        self.0.upgrade().map(Broker)
    }
}

struct Inner {
    settings: BrokerSettings,
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    topics: Arc<RwLock<BTreeMap<TopicName, Arc<Topic>>>>,
    /// Topics that must not be deleted, and the pipelines that use them.
    in_use: RwLock<BTreeMap<String, BTreeMap<TopicName, TopicUse>>>,
    /// Counts alterations: who keeps what it knows of topics looks again.
    altered: watch::Sender<u64>,
    /// Held while topics are made, altered or deleted: the catalog and `topics` change together.
    changing_topics: tokio::sync::Mutex<()>,
    producer_ids: ProducerIds,
    groups: Arc<Groups>,
    state: Arc<StateIndex>,
    readers: Readers,
    metrics: BrokerMetrics,
    quotas: Quotas,
    queue: RwLock<Option<CommitQueue>>,
    room: Arc<Semaphore>,
    failure: watch::Receiver<Option<Arc<StoreError>>>,
    stopping: watch::Sender<bool>,
    /// The store's threads.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Where one group stands in one partition.
#[derive(Clone, Debug)]
pub struct GroupOffset {
    /// The partition.
    pub partition: TopicPartition,
    /// The next record to read, where one was committed.
    pub committed: Option<Offset>,
    /// The log end offset.
    pub end: Offset,
    /// Records between the two.
    pub lag: u64,
}

impl Broker {
    /// Opens or makes a data directory, and rebuilds memory from its journal. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] where the directory is in use, of another format, corrupt, or unreadable.
    pub fn open(
        path: &Path,
        settings: BrokerSettings,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Self, StoreError> {
        let disk_reserve_bytes = settings.disk_reserve_bytes.unwrap_or(settings.journal_bytes_max);
        let cleaner_options = CleanerOptions::new(&options);
        let (store, extents) = Store::open(path, options, disk_reserve_bytes)?;
        let store = Arc::new(store);
        let topics = load_topics(&store)?;
        let groups = Arc::new(Groups::default());
        let state = Arc::new(StateIndex::new(store.tables().clone()));
        let (sealer_handle, sealer) = sealer(settings.journal_bytes_max);
        let now_ms = clock.now_ms();
        let restoring = Restoring { store: &store, topics: &topics, groups: &groups, state: &state, now_ms };
        let journal = restoring.run(extents, &sealer_handle, settings.producer_expiry_ms)?;
        let producer_ids = ProducerIds::new(catalog_number(&store, NEXT_PRODUCER_ID)?.unwrap_or(0));
        let topics = Arc::new(RwLock::new(topics));
        let domain = Arc::new(Domain { topics: topics.clone(), groups: groups.clone(), clock: clock.clone() });
        let metrics = BrokerMetrics::register(registry);
        let readers = Readers::new()?;
        let (failed, failure) = watch::channel(None);
        let (queue, committer) = Committer::start(
            store.clone(),
            state.clone(),
            domain.clone(),
            metrics.clone(),
            journal,
            sealer_handle,
            failed,
        )?;
        let sealer = sealer.start(store.clone(), domain.clone(), queue.downgrade())?;
        let cleaner = Cleaner::new(store.clone(), domain, queue.downgrade(), settings.limits, cleaner_options);
        let [retention, cleaner] = cleaner.start()?;
        let broker = Self(Arc::new(Inner {
            room: Arc::new(Semaphore::new(permits_max(&settings))),
            quotas: Quotas::new(settings.quotas.clone()),
            settings,
            clock,
            store,
            topics,
            in_use: RwLock::default(),
            altered: watch::Sender::new(0),
            changing_topics: tokio::sync::Mutex::default(),
            producer_ids,
            groups,
            state,
            readers,
            metrics,
            queue: RwLock::new(Some(queue)),
            failure,
            stopping: watch::Sender::new(false),
            threads: Mutex::new(vec![committer, sealer, retention, cleaner]),
        }));
        registry.register_collector(Box::new(BrokerCollector(broker.downgrade())));
        Ok(broker)
    }

    /// A handle that does not keep the broker open.
    pub fn downgrade(&self) -> WeakBroker {
        WeakBroker(Arc::downgrade(&self.0))
    }

    /// The settings it was opened with.
    pub fn settings(&self) -> &BrokerSettings {
        &self.0.settings
    }

    /// The clock it was given.
    pub fn clock(&self) -> &dyn Clock {
        self.0.clock.as_ref()
    }

    /// The data directory.
    pub fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Who reads what is not in memory.
    pub(crate) fn readers(&self) -> &Readers {
        &self.0.readers
    }

    /// Every group.
    pub fn groups(&self) -> &Groups {
        &self.0.groups
    }

    /// Every stage's committed state.
    pub fn state(&self) -> &StateIndex {
        &self.0.state
    }

    /// The broker's counters.
    pub fn metrics(&self) -> &BrokerMetrics {
        &self.0.metrics
    }

    /// Who may read and write how fast.
    pub fn quotas(&self) -> &Quotas {
        &self.0.quotas
    }

    /// Becomes `Some` when the store fails: the process must end with that reason.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<StoreError>>> {
        self.0.failure.clone()
    }

    /// Returns when the broker stops: long calls end then.
    pub async fn stopped(&self) {
        // The sender lives as long as the broker.
        let _ = self.0.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Whether a stop is under way.
    pub fn is_stopping(&self) -> bool {
        *self.0.stopping.borrow()
    }

    /// Ends long polls and streams. Writes that are queued are still committed and answered.
    pub fn begin_stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// Commits what is queued, refuses what comes after, and waits for the end of the store's threads.
    /// Blocks.
    pub fn stop(&self) {
        self.begin_stop();
        drop(self.0.queue.write().take());
        for thread in std::mem::take(&mut *self.0.threads.lock()) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!("the thread {name:?} panicked");
            }
        }
    }

    // ---- topics

    /// Makes a topic.
    ///
    /// # Errors
    /// [`BrokerError::TopicExists`], [`BrokerError::InvalidArgument`], [`BrokerError::Storage`].
    pub async fn create_topic(
        &self,
        name: &TopicName,
        partitions: u32,
        settings: TopicSettings,
        internal: bool,
    ) -> Result<Arc<Topic>, BrokerError> {
        check_partitions(partitions, 1)?;
        settings.check(self.0.settings.journal_bytes_max)?;
        let _changing = self.0.changing_topics.lock().await;
        if self.0.topics.read().contains_key(name) {
            return Err(BrokerError::TopicExists { topic: name.clone() });
        }
        let id = catalog_number(&self.0.store, NEXT_TOPIC_ID)?.unwrap_or(1);
        let created_at_ms = self.0.clock.now_ms();
        let meta = TopicMeta { id, partitions, settings, internal, keys_moved: false, created_at_ms };
        let catalog = vec![
            CatalogChange::put(topic_key(name), to_json(&meta)),
            CatalogChange::put(NEXT_TOPIC_ID, (id + 1).to_string().into_bytes()),
        ];
        self.commit(Commit { catalog, ..Commit::default() }).await?.await?;
        let topic = Arc::new(Topic::new(name.clone(), meta));
        self.0.topics.write().insert(name.clone(), topic.clone());
        self.topics_changed(name);
        Ok(topic)
    }

    /// Changes a topic's settings, and adds partitions to it, while it is read and written. What began
    /// before goes on with what it knew; requests that come afterwards see the change. Groups that read the
    /// topic begin at the first record of each new partition, also those that began at the latest.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`], [`BrokerError::TopicInternal`], [`BrokerError::PartitionsInUse`],
    /// [`BrokerError::InvalidArgument`], [`BrokerError::Storage`]. Nothing was changed then.
    pub async fn alter_topic(&self, name: &TopicName, change: &TopicAlteration) -> Result<Arc<Topic>, BrokerError> {
        let _changing = self.0.changing_topics.lock().await;
        let before = self.topic(name.as_str())?;
        if before.meta().internal {
            return Err(BrokerError::TopicInternal { topic: name.clone() });
        }
        let current = before.partition_count();
        let partitions = change.partitions.unwrap_or(current);
        check_partitions(partitions, current)?;
        let settings = change.settings(&before.meta().settings);
        settings.check(self.0.settings.journal_bytes_max)?;
        if partitions > current {
            self.check_no_state(name, partitions, current)?;
        }
        // Also where nothing is stored yet: producers that don't know of the new partitions go on with the old.
        let keys_moved = before.meta().keys_moved || partitions > current;
        let meta = TopicMeta { partitions, settings, keys_moved, ..before.meta().clone() };
        if meta == *before.meta() {
            return Ok(before);
        }
        let catalog = vec![CatalogChange::put(topic_key(name), to_json(&meta))];
        let offsets = self.offsets_of_added(&before, partitions);
        self.commit(Commit { catalog, offsets, ..Commit::default() }).await?.await?;
        let topic = Arc::new(before.altered(meta));
        self.0.topics.write().insert(name.clone(), topic.clone());
        if partitions > current {
            self.topics_changed(name);
        }
        self.0.altered.send_modify(|times| *times += 1);
        Ok(topic)
    }

    /// Refuses to move keys away from the state of an aggregate that takes the topic's partitioning as its own.
    fn check_no_state(&self, topic: &TopicName, partitions: u32, current: u32) -> Result<(), BrokerError> {
        for (pipeline, topics) in self.0.in_use.read().iter() {
            if let Some(stage) = topics.get(topic).and_then(|of| of.aggregate.clone()) {
                let (topic, pipeline) = (topic.clone(), pipeline.clone());
                return Err(BrokerError::PartitionsInUse { topic, partitions, current, pipeline, stage });
            }
        }
        Ok(())
    }

    /// Every group that reads a topic begins new partitions at their first record: a group that began at the
    /// latest must not miss what is written before its members learn of them.
    fn offsets_of_added(&self, topic: &Arc<Topic>, partitions: u32) -> Vec<OffsetChange> {
        let added = topic.partition_count()..partitions;
        if added.is_empty() {
            return Vec::new();
        }
        let mut groups = self.0.groups.all();
        groups.retain(|group| group.members().reads(topic.name()) || group.has_committed(topic.id()));
        let offset = |group: &Arc<Group>, partition| OffsetChange {
            group: group.clone(),
            topic: topic.clone(),
            partition,
            offset: Offset::ZERO,
            expected: None,
        };
        groups.iter().flat_map(|group| added.clone().map(|partition| offset(group, partition))).collect()
    }

    /// Wakes when a topic was altered.
    pub fn watch_altered(&self) -> watch::Receiver<u64> {
        self.0.altered.subscribe()
    }

    /// Waits until no topic is being made, altered or deleted, and keeps it so until the answer is dropped.
    pub async fn hold_topics(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.changing_topics.lock().await
    }

    /// Pipelines that use a topic.
    fn users(&self, topic: &TopicName) -> Vec<String> {
        let in_use = self.0.in_use.read();
        in_use.iter().filter(|(_, topics)| topics.contains_key(topic)).map(|(pipeline, _)| pipeline.clone()).collect()
    }

    /// Deletes a topic, its records, and every group's offsets in it.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`], [`BrokerError::TopicInUse`], [`BrokerError::Storage`].
    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), BrokerError> {
        let _changing = self.0.changing_topics.lock().await;
        let topic = self.topic(name.as_str())?;
        let pipelines = self.users(name);
        if !pipelines.is_empty() {
            return Err(BrokerError::TopicInUse { topic: name.clone(), pipelines });
        }
        // From here on the committer refuses writes to it.
        topic.partitions().iter().for_each(|partition| partition.set_deleted(true));
        let catalog = vec![CatalogChange::remove(topic_key(name))];
        let deletion = Commit { catalog, deleted_topics: vec![topic.id()], ..Commit::default() };
        let removed = async { self.commit(deletion).await?.await };
        if let Err(error) = removed.await {
            // It may be there: what it holds can be read.
            topic.partitions().iter().for_each(|partition| partition.set_deleted(false));
            return Err(error);
        }
        self.0.topics.write().remove(name);
        self.0.store.registry().touch();
        for group in self.0.groups.all() {
            group.forget_topic(topic.id());
        }
        self.0.metrics.forget(name);
        self.topics_changed(name);
        Ok(())
    }

    /// Says which topics a pipeline uses, and how: they can't be deleted, nor what their use forbids. None of
    /// them ends that.
    pub fn set_topics_in_use(&self, pipeline: &str, topics: BTreeMap<TopicName, TopicUse>) {
        let mut in_use = self.0.in_use.write();
        match topics.is_empty() {
            true => in_use.remove(pipeline),
            false => in_use.insert(pipeline.to_owned(), topics),
        };
    }

    /// A topic by name.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`].
    pub fn topic(&self, name: &str) -> Result<Arc<Topic>, BrokerError> {
        let topics = self.0.topics.read();
        topics.get(name).cloned().ok_or_else(|| BrokerError::UnknownTopic { topic: name.to_owned() })
    }

    /// Every topic, by name.
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.0.topics.read().values().cloned().collect()
    }

    fn partition_by_id(&self, topic: TopicId, partition: u32) -> Option<Arc<Partition>> {
        let topics = self.0.topics.read();
        let topic = topics.values().find(|candidate| candidate.id() == topic)?;
        topic.partitions().get(partition as usize).cloned()
    }

    // ---- writing

    /// Queues a commit, once there is room for it in the queue.
    ///
    /// # Errors
    /// [`BrokerError::ShuttingDown`]; the [`Receipt`] has everything else.
    pub async fn commit(&self, commit: Commit) -> Result<Receipt, BrokerError> {
        let permits = (commit.bytes() / PERMIT_BYTES + 1).min(permits_max(&self.0.settings));
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let permit = self.0.room.clone().acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| BrokerError::ShuttingDown)?;
        let queue = self.0.queue.read();
        let queue = queue.as_ref().ok_or(BrokerError::ShuttingDown)?;
        Ok(queue.push(commit, Some(permit)))
    }

    /// Bytes of commits that wait to be on disk, in whole KiB.
    pub(crate) fn queued_bytes(&self) -> usize {
        (permits_max(&self.0.settings) - self.0.room.available_permits()) * PERMIT_BYTES
    }

    /// Appends batches to one partition; the receipt is answered when they are on disk. Batches of an
    /// idempotent producer that are there already are not appended again: the receipt says where they
    /// are.
    ///
    /// # Errors
    /// [`BrokerError::BatchTooLarge`], [`BrokerError::NullKey`], [`BrokerError::UnknownProducerId`] and
    /// [`BrokerError::ShuttingDown`]; the receipt has the rest.
    pub async fn produce(
        &self,
        topic: &Topic,
        partition: &Arc<Partition>,
        batches: Vec<RecordBatch>,
    ) -> Result<Receipt, BrokerError> {
        let batch_bytes_max = topic.meta().settings.batch_bytes_max();
        for batch in &batches {
            let len = batch.as_bytes().len();
            if len > batch_bytes_max {
                return Err(BrokerError::BatchTooLarge {
                    topic: topic.name().clone(),
                    partition: partition.name().partition,
                    bytes: len,
                    batch_bytes_max,
                });
            }
            if let Some(producer_id) = ProducerId::new(batch.producer_id()) {
                self.check_handed_out(producer_id)?;
            }
        }
        topic.check_keys(partition.name().partition, &batches, &self.0.settings.limits)?;
        let append = Append { partition: partition.clone(), batches };
        self.commit(Commit { appends: vec![append], ..Commit::default() }).await
    }

    // ---- idempotent producers

    /// Gives a producer an id of its own, or the one that it has the next epoch (KIP-98, KIP-360). An
    /// epoch that is the last gives way to a new id.
    ///
    /// # Errors
    /// [`BrokerError::UnknownProducerId`], [`BrokerError::InvalidArgument`] for a negative epoch,
    /// [`BrokerError::ShuttingDown`], [`BrokerError::Storage`].
    pub async fn init_producer(&self, current: Option<ProducerIdentity>) -> Result<ProducerIdentity, BrokerError> {
        if let Some(ProducerIdentity { id, epoch }) = current {
            self.check_handed_out(id)?;
            if epoch < 0 {
                return Err(BrokerError::InvalidArgument {
                    what: "producer epoch",
                    value: epoch.to_string(),
                    allowed: format!("use 0 to {}", i16::MAX),
                });
            }
            if let Some(epoch) = epoch.checked_add(1) {
                return Ok(ProducerIdentity { id, epoch });
            }
        }
        let reserve = async |until: i64| {
            let catalog = vec![CatalogChange::put(NEXT_PRODUCER_ID, until.to_string().into_bytes())];
            self.commit(Commit { catalog, ..Commit::default() }).await?.await?;
            // What many short-lived producers leave behind is bounded by this.
            self.forget_idle_producers();
            Ok(())
        };
        Ok(ProducerIdentity { id: self.0.producer_ids.next(reserve).await?, epoch: 0 })
    }

    /// Forgets, in every partition, the producers that were idle for longer than
    /// [`BrokerSettings::producer_expiry_ms`].
    pub fn forget_idle_producers(&self) {
        let expiry_ms = i64::try_from(self.0.settings.producer_expiry_ms).unwrap_or(i64::MAX);
        let before_ms = self.0.clock.now_ms().saturating_sub(expiry_ms);
        for topic in self.topics() {
            topic.partitions().iter().for_each(|partition| partition.producers().forget_idle(before_ms));
        }
    }

    fn check_handed_out(&self, producer_id: ProducerId) -> Result<(), BrokerError> {
        if self.0.producer_ids.knows(producer_id) {
            return Ok(());
        }
        Err(BrokerError::UnknownProducerId { producer_id })
    }

    // ---- groups

    /// Where a group stands in each partition that it has committed, or that its members read.
    pub fn group_offsets(&self, group: &Group) -> Vec<GroupOffset> {
        let mut partitions: BTreeMap<TopicPartition, (Arc<Partition>, Option<Offset>)> = BTreeMap::new();
        for (topic, partition, offset) in group.all_committed() {
            if let Some(found) = self.partition_by_id(topic, partition) {
                partitions.insert(found.name().clone(), (found, Some(offset)));
            }
        }
        let topics = group.members().topics();
        for topic in topics.iter().filter_map(|name| self.topic(name.as_str()).ok()) {
            for partition in topic.partitions() {
                partitions.entry(partition.name().clone()).or_insert_with(|| (partition.clone(), None));
            }
        }
        let offset = |(name, (partition, committed)): (TopicPartition, (Arc<Partition>, Option<Offset>))| {
            let end = partition.end();
            let lag = end.since(committed.unwrap_or(partition.start()));
            GroupOffset { partition: name, committed, end, lag }
        };
        partitions.into_iter().map(offset).collect()
    }

    /// Adds a member to a consumer group.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`], [`BrokerError::UnknownTopic`].
    pub fn join_group(
        &self,
        id: &GroupId,
        client_id: &str,
        topics: BTreeSet<TopicName>,
    ) -> Result<(Arc<Group>, MemberId, mpsc::UnboundedReceiver<MemberEvent>), BrokerError> {
        for topic in &topics {
            self.topic(topic.as_str())?;
        }
        loop {
            let group = self.0.groups.get_or_create(id, GroupKind::Consumer)?;
            let mut members = group.members();
            if group.is_removed() {
                continue;
            }
            let mut counts = self.partition_counts(&members.topics());
            counts.extend(self.partition_counts(&topics));
            let (member, events) = members.join(client_id, topics, &counts, group.next_generation());
            drop(members);
            return Ok((group, member, events));
        }
    }

    /// Removes a member; its partitions go to the others.
    pub fn leave_group(&self, group: &Group, member: &str) {
        let mut members = group.members();
        if members.contains(member) {
            let counts = self.partition_counts(&members.topics());
            members.leave(member, &counts, group.next_generation());
        }
    }

    /// A member gave partitions back.
    pub fn revoked(&self, group: &Group, member: &str, partitions: &[TopicPartition]) {
        group.members().revoked(member, partitions, group.generation());
    }

    /// Queues a member's offsets, where it owns the partitions.
    ///
    /// # Errors
    /// [`BrokerError::NotAssigned`], [`BrokerError::OffsetOutOfRange`],
    /// [`BrokerError::UnknownTopic`]; the receipt has the rest.
    pub async fn commit_as_member(
        &self,
        group: &Arc<Group>,
        member: &str,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<Receipt, BrokerError> {
        let commit = {
            let members = group.members();
            if let Some((partition, _)) = offsets.iter().find(|(partition, _)| !members.owns(member, partition)) {
                return Err(BrokerError::NotAssigned {
                    group: group.id().clone(),
                    member: member.to_owned(),
                    topic: partition.topic.clone(),
                    partition: partition.partition,
                });
            }
            self.offsets_commit(group, offsets)?
        };
        self.commit(commit).await
    }

    /// Sets a group's offsets from outside, where nobody reads in it.
    ///
    /// # Errors
    /// [`BrokerError::GroupInUse`], [`BrokerError::OffsetOutOfRange`], [`BrokerError::UnknownTopic`],
    /// [`BrokerError::Storage`].
    pub async fn set_offsets(
        &self,
        group: &Arc<Group>,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<(), BrokerError> {
        let fence = unused(group)?;
        let commit = Commit { fence: Some(fence), ..self.offsets_commit(group, offsets)? };
        self.commit(commit).await?.await.map(drop)
    }

    fn offsets_commit(&self, group: &Arc<Group>, offsets: &[(TopicPartition, Offset)]) -> Result<Commit, BrokerError> {
        let mut commit = Commit::default();
        for (name, offset) in offsets {
            let topic = self.topic(name.topic.as_str())?;
            let partition = topic.partition(name.partition)?;
            if *offset < partition.start() || *offset > partition.end() {
                return Err(partition.out_of_range(*offset));
            }
            commit.offsets.push(OffsetChange {
                group: group.clone(),
                topic: topic.clone(),
                partition: name.partition,
                offset: *offset,
                expected: None,
            });
        }
        Ok(commit)
    }

    /// Deletes a group that nobody reads in, with its offsets.
    ///
    /// # Errors
    /// [`BrokerError::UnknownGroup`], [`BrokerError::GroupInUse`],
    /// [`BrokerError::GroupOfOtherKind`] for a pipeline's, [`BrokerError::Storage`].
    pub async fn delete_group(&self, id: &str) -> Result<(), BrokerError> {
        let group = self.0.groups.get(id)?;
        if group.kind() == GroupKind::Pipeline {
            let by = format!("it belongs to a pipeline; `millstream pipeline delete {id}` deletes both");
            return Err(BrokerError::GroupInUse { group: group.id().clone(), by });
        }
        let fence = Some(unused(&group)?);
        self.commit(Commit { drop_groups: vec![group], fence, ..Commit::default() }).await?.await.map(drop)
    }

    fn topics_changed(&self, topic: &TopicName) {
        for group in self.0.groups.all() {
            let mut members = group.members();
            if members.reads(topic) {
                let counts = self.partition_counts(&members.topics());
                members.rebalance(&counts, group.next_generation());
            }
        }
    }

    fn partition_counts(&self, topics: &BTreeSet<TopicName>) -> BTreeMap<TopicName, u32> {
        let known = self.0.topics.read();
        let count = |name: &TopicName| known.get(name).map(|topic| (name.clone(), topic.partition_count()));
        topics.iter().filter_map(count).collect()
    }
}

/// A group that nobody reads in; whoever joins or resumes meanwhile ends the fence's generation.
fn unused(group: &Arc<Group>) -> Result<Fence, BrokerError> {
    let fence = Fence { group: group.clone(), generation: group.generation() };
    group.check_unused()?;
    if group.is_removed() {
        return Err(BrokerError::UnknownGroup { group: group.id().to_string() });
    }
    Ok(fence)
}

fn check_partitions(partitions: u32, min: u32) -> Result<(), BrokerError> {
    if (min..=PARTITIONS_MAX).contains(&partitions) {
        return Ok(());
    }
    let why = if min > 1 { ": partitions can be added, not removed" } else { "" };
    Err(BrokerError::InvalidArgument {
        what: "partitions",
        value: partitions.to_string(),
        allowed: format!("use {min} to {PARTITIONS_MAX}{why}"),
    })
}
