//! Topics: creating, altering and deleting them, and which pipelines use them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use uuid::Uuid;

use super::Broker;
use super::operation::to_its_end;
use crate::error::BrokerError;
use crate::log::catalog_entries::{NEXT_TOPIC_ID, catalog_number, to_json, topic_key};
use crate::log::commit::{Commit, OffsetChange, Upkeep};
use crate::log::partition::Partition;
use crate::log::topic::{PARTITIONS_MAX, Topic, TopicAlteration, TopicMeta, TopicSettings, TopicUse};
use crate::log::transactions::{aborted_key, transactional_key};
use crate::name::TopicName;
use crate::store::CatalogChange;
use crate::store::place::{Offset, TopicId};

/// Maximum number of offsets that one commit sets when partitions are added: about a megabyte.
const OFFSETS_A_COMMIT_MAX: usize = 10_000;

impl Broker {
    /// Creates a topic.
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
        let (broker, name) = (self.clone(), name.clone());
        to_its_end(async move { broker.create(&name, partitions, settings, internal).await }).await
    }

    /// Checks whether a topic can be created.
    ///
    /// # Errors
    /// As [`Broker::create_topic`].
    pub fn check_new_topic(
        &self,
        name: &TopicName,
        partitions: u32,
        settings: &TopicSettings,
    ) -> Result<(), BrokerError> {
        check_partitions(partitions, 1)?;
        settings.check(self.0.settings.journal_bytes_max)?;
        if self.0.topics.read().get(name.as_str()).is_some() {
            return Err(BrokerError::TopicExists { topic: name.clone() });
        }
        Ok(())
    }

    async fn create(
        &self,
        name: &TopicName,
        partitions: u32,
        settings: TopicSettings,
        internal: bool,
    ) -> Result<Arc<Topic>, BrokerError> {
        let _changing = self.0.changing_topics.lock().await;
        self.check_new_topic(name, partitions, &settings)?;
        let id = catalog_number(&self.0.store, NEXT_TOPIC_ID)?.unwrap_or(1);
        let created_at_ms = self.0.clock.now_ms();
        let uuid = Uuid::new_v4();
        let meta = TopicMeta { id, uuid, partitions, settings, internal, keys_moved: false, created_at_ms };
        let catalog = vec![
            CatalogChange::put(topic_key(name), to_json(&meta)),
            CatalogChange::put(NEXT_TOPIC_ID, (id + 1).to_string().into_bytes()),
        ];
        self.commit(Commit { catalog, ..Commit::default() }).await?.await?;
        let topic = Arc::new(Topic::new(name.clone(), meta));
        self.0.topics.write().insert(topic.clone());
        self.topics_changed(name);
        Ok(topic)
    }

    /// Changes a topic's settings and adds partitions to it, while it is read and written. Operations in progress
    /// continue with the previous settings; later requests see the change. Groups that read the topic start at the
    /// first record of each new partition, even if they started at the latest record in others.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`], [`BrokerError::TopicInternal`], [`BrokerError::PartitionsInUse`],
    /// [`BrokerError::InvalidArgument`], [`BrokerError::Storage`]. In each case nothing was changed.
    pub async fn alter_topic(&self, name: &TopicName, change: &TopicAlteration) -> Result<Arc<Topic>, BrokerError> {
        let (broker, name, change) = (self.clone(), name.clone(), change.clone());
        to_its_end(async move { broker.alter(&name, &change).await }).await
    }

    /// Checks whether a topic can be altered. Returns its catalog entry afterwards.
    ///
    /// # Errors
    /// As [`Broker::alter_topic`].
    pub fn check_alteration(&self, before: &Topic, change: &TopicAlteration) -> Result<TopicMeta, BrokerError> {
        let name = before.name();
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
        // This also applies if nothing is stored yet, because producers that do not know the new partitions continue
        // with the old ones.
        let keys_moved = before.meta().keys_moved || partitions > current;
        Ok(TopicMeta { partitions, settings, keys_moved, ..before.meta().clone() })
    }

    async fn alter(&self, name: &TopicName, change: &TopicAlteration) -> Result<Arc<Topic>, BrokerError> {
        let _changing = self.0.changing_topics.lock().await;
        let before = self.topic(name.as_str())?;
        let (partitions, current) = (change.partitions.unwrap_or(before.partition_count()), before.partition_count());
        let meta = self.check_alteration(&before, change)?;
        if meta == *before.meta() {
            return Ok(before);
        }
        let catalog = vec![CatalogChange::put(topic_key(name), to_json(&meta))];
        // The offsets of many groups and partitions may exceed what one commit should contain. If the alteration is
        // interrupted, offsets of partitions that do not exist do no harm.
        let mut offsets = self.offsets_of_added(&before, partitions);
        loop {
            let part: Vec<OffsetChange> = offsets.by_ref().take(OFFSETS_A_COMMIT_MAX).collect();
            if part.len() < OFFSETS_A_COMMIT_MAX {
                self.commit(Commit { catalog, offsets: part, ..Commit::default() }).await?.await?;
                break;
            }
            self.commit(Commit { offsets: part, ..Commit::default() }).await?.await?;
        }
        let topic = Arc::new(before.altered(meta));
        self.0.topics.write().insert(topic.clone());
        if partitions > current {
            self.topics_changed(name);
        }
        self.0.altered.send_modify(|times| *times += 1);
        Ok(topic)
    }

    /// Refuses to add partitions if an aggregate relies on the topic's partitioning, because keys would move away from
    /// its state.
    fn check_no_state(&self, topic: &TopicName, partitions: u32, current: u32) -> Result<(), BrokerError> {
        for (pipeline, topics) in self.0.in_use.read().iter() {
            if let Some(stage) = topics.get(topic).and_then(|of| of.aggregate.clone()) {
                let (topic, pipeline) = (topic.clone(), pipeline.clone());
                return Err(BrokerError::PartitionsInUse { topic, partitions, current, pipeline, stage });
            }
        }
        Ok(())
    }

    /// Returns offsets that make every group that reads the topic start new partitions at the first record. A group
    /// that started at the latest record must not miss records that are written before its members learn of the
    /// partitions.
    fn offsets_of_added(&self, topic: &Arc<Topic>, partitions: u32) -> impl Iterator<Item = OffsetChange> + use<> {
        let (topic, added) = (topic.clone(), topic.partition_count()..partitions);
        let mut groups = if added.is_empty() { Vec::new() } else { self.0.groups.all() };
        groups.retain(|group| group.members().reads(topic.name()) || group.has_committed(topic.id()));
        groups.into_iter().flat_map(move |group| {
            let topic = topic.clone();
            added.clone().map(move |partition| OffsetChange {
                group: group.clone(),
                topic: topic.clone(),
                partition,
                to: Some(Offset::ZERO.into()),
                expected: None,
            })
        })
    }

    /// Returns a receiver that is notified when a topic was altered.
    pub fn watch_altered(&self) -> watch::Receiver<u64> {
        self.0.altered.subscribe()
    }

    /// Waits until no topic is being created, altered or deleted, and prevents this until the returned guard is
    /// dropped.
    pub async fn hold_topics(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.changing_topics.lock().await
    }

    /// Returns the pipelines that use a topic.
    fn users(&self, topic: &TopicName) -> Vec<String> {
        let in_use = self.0.in_use.read();
        in_use.iter().filter(|(_, topics)| topics.contains_key(topic)).map(|(pipeline, _)| pipeline.clone()).collect()
    }

    /// Deletes a topic, its records, and every group's offsets in it.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`], [`BrokerError::TopicInUse`], [`BrokerError::Storage`].
    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), BrokerError> {
        let (broker, name) = (self.clone(), name.clone());
        to_its_end(async move { broker.delete(&name).await }).await
    }

    async fn delete(&self, name: &TopicName) -> Result<(), BrokerError> {
        let _changing = self.0.changing_topics.lock().await;
        let topic = self.topic(name.as_str())?;
        let pipelines = self.users(name);
        if !pipelines.is_empty() {
            return Err(BrokerError::TopicInUse { topic: name.clone(), pipelines });
        }
        // From here on the committer refuses writes to the topic.
        topic.partitions().iter().for_each(|partition| partition.set_deleted(true));
        let mut catalog = vec![CatalogChange::remove(topic_key(name))];
        for partition in topic.partitions().iter().filter(|partition| partition.is_transactional()) {
            let place = partition.place();
            catalog.push(CatalogChange::remove(transactional_key(place)));
            let aborted = partition.aborted_before(Offset::MAX).into_iter();
            catalog.extend(aborted.map(|aborted| CatalogChange::remove(aborted_key(place, aborted.last))));
        }
        let deletion = Commit { catalog, deleted_topics: vec![topic.id()], ..Commit::default() };
        let removed = async { self.commit(deletion).await?.await };
        if let Err(error) = removed.await {
            // The topic may still exist, and its content can be read.
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

    /// Deletes the records of a partition before an offset, `None` for the end: its log start offset moves there. Returns
    /// the log start offset, which may be further.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`], [`BrokerError::TopicInternal`], [`BrokerError::RecordsKept`],
    /// [`BrokerError::Storage`].
    pub async fn delete_records(
        &self,
        topic: &Topic,
        partition: &Arc<Partition>,
        before: Option<Offset>,
    ) -> Result<Offset, BrokerError> {
        if topic.meta().internal {
            return Err(BrokerError::TopicInternal { topic: topic.name().clone() });
        }
        if !topic.meta().settings.cleanup.deletes() {
            return Err(BrokerError::RecordsKept { topic: topic.name().clone() });
        }
        let end = partition.end();
        let before = before.unwrap_or(end);
        if before > end {
            return Err(partition.out_of_range(before));
        }
        if before > partition.start() {
            let queue = self.0.queue.read().clone().ok_or(BrokerError::ShuttingDown)?;
            let log_starts = vec![(partition.clone(), before)];
            let deleted = queue.push_upkeep(Upkeep { log_starts, ..Upkeep::default() });
            drop(queue);
            deleted.await?;
        }
        Ok(partition.start())
    }

    /// Sets which topics a pipeline uses, and how. They cannot be deleted, and alterations that their use forbids are
    /// refused. An empty map ends the use.
    pub fn set_topics_in_use(&self, pipeline: &str, topics: BTreeMap<TopicName, TopicUse>) {
        let mut in_use = self.0.in_use.write();
        match topics.is_empty() {
            true => in_use.remove(pipeline),
            false => in_use.insert(pipeline.to_owned(), topics),
        };
    }

    /// Returns a topic by name.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`].
    pub fn topic(&self, name: &str) -> Result<Arc<Topic>, BrokerError> {
        let topics = self.0.topics.read();
        topics.get(name).cloned().ok_or_else(|| BrokerError::UnknownTopic { topic: name.to_owned() })
    }

    /// Returns a topic by name. If the client passes the UUID that it expects, the topic must have it.
    ///
    /// # Errors
    /// [`BrokerError::UnknownTopic`], [`BrokerError::UnknownTopicId`].
    pub fn topic_with_id(&self, name: &str, topic_id: Option<Uuid>) -> Result<Arc<Topic>, BrokerError> {
        let topic = self.topic(name)?;
        let current = topic.uuid();
        match topic_id.filter(|topic_id| *topic_id != current) {
            Some(topic_id) => Err(BrokerError::UnknownTopicId { topic: topic.name().clone(), topic_id, current }),
            None => Ok(topic),
        }
    }

    /// Returns a topic by its UUID.
    pub fn topic_by_uuid(&self, uuid: Uuid) -> Option<Arc<Topic>> {
        self.0.topics.read().by_uuid(uuid).cloned()
    }

    /// Returns all topics, sorted by name.
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.0.topics.read().values().cloned().collect()
    }

    pub(super) fn partition_by_id(&self, topic: TopicId, partition: u32) -> Option<Arc<Partition>> {
        let topics = self.0.topics.read();
        topics.by_id(topic)?.partitions().get(partition as usize).cloned()
    }
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
