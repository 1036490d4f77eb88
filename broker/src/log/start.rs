//! Start: rebuilds memory, the sealed part from the registry of segments and the tables, and the rest from the journal.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millstream_record::BatchHeader;

use crate::groups::{CommittedOffset, Group, GroupKind, Groups, StoredOffset};
use crate::log::partition::Partition;
use crate::log::producers::Producer;
use crate::log::sealer::SealerHandle;
use crate::log::state::StateIndex;
use crate::log::topics::Topics;
use crate::log::transactions::{ABORTED_PREFIX, TRANSACTIONAL_PREFIX, read_aborted, read_transactional};
use crate::name::GroupId;
use crate::name::ProducerId;
use crate::store::journal::{CommittedRow, OffsetEntry};
use crate::store::place::{Offset, Place, TopicId};
use crate::store::recovery::{Entry, Replayed, TopicExtents, location};
use crate::store::segment::{Scanned, scan};
use crate::store::{Store, StoreError, Tables};

/// What is rebuilt, and from which sources.
pub(crate) struct Restoring<'a> {
    pub(crate) store: &'a Store,
    pub(crate) topics: &'a Topics,
    pub(crate) groups: &'a Groups,
    pub(crate) state: &'a StateIndex,
    pub(crate) now_ms: i64,
    /// See [`crate::BrokerSettings::offsets_retention_ms`].
    pub(crate) offsets_retention_ms: u64,
}

/// Grace period of one hour for groups that exist at a start, so that they do not expire earlier, however long the
/// server was down.
const GRACE_MS: i64 = 60 * 60 * 1_000;

fn stored(row: &CommittedRow<'_>) -> StoredOffset {
    let metadata = Some(row.metadata).filter(|metadata| !metadata.is_empty()).map(Into::into);
    StoredOffset {
        committed: CommittedOffset { offset: row.offset, leader_epoch: row.leader_epoch, metadata },
        committed_at_ms: row.committed_at_ms,
    }
}

impl Restoring<'_> {
    pub(crate) fn run(&self, extents: TopicExtents, sealer: &SealerHandle) -> Result<Replayed, StoreError> {
        self.partitions(extents)?;
        self.tables()?;
        self.producers()?;
        self.transactions()?;
        let replayed = self.journal(sealer)?;
        self.topics.values().flat_map(|topic| topic.partitions()).for_each(|partition| partition.restore_stable());
        Ok(replayed)
    }

    fn partitions(&self, mut extents: TopicExtents) -> Result<(), StoreError> {
        let mut starts: HashMap<Place, Offset> = HashMap::new();
        for (topic, partition, start) in self.store.log_starts()? {
            starts.insert((TopicId(topic), partition), Offset::new(start).unwrap_or_default());
        }
        // Extents and log start offsets of deleted topics remain in the maps, and are ignored.
        for topic in self.topics.values() {
            let id = topic.id();
            let mut extents = extents.remove(&id).unwrap_or_default().into_iter();
            for (number, partition) in (0..).zip(topic.partitions()) {
                let start = starts.remove(&(id, number)).unwrap_or_default();
                let restored = partition.restore(start, extents.next().unwrap_or_default());
                restored.map_err(|reason| StoreError::Corrupt { what: "the registry of segments".into(), reason })?;
            }
        }
        Ok(())
    }

    fn tables(&self) -> Result<(), StoreError> {
        let tables = self.store.tables();
        for (store, partition, count) in tables.counts()? {
            self.state.set_count(&store, partition, count);
        }
        // Offsets remain here if a topic was deleted and the server ended before the next part of the journal was
        // sealed.
        let mut forgotten = Vec::new();
        tables.offsets(|entry| {
            let OffsetEntry { group, kind, topic, partition, committed } = entry;
            match committed.filter(|_| self.topics.by_id(topic).is_some()) {
                Some(committed) => {
                    let corrupt = |reason: String| StoreError::Corrupt { what: "table offsets".into(), reason };
                    let group = self.group(group, kind).map_err(corrupt)?;
                    self.mark_active(&group, &committed);
                    group.restore_offset(topic, partition, stored(&committed));
                }
                None => forgotten.push((Tables::offset_key(group, topic.0, partition), None)),
            }
            Ok(())
        })?;
        tables.write_offsets(&forgotten)
    }

    /// Restores producers from the tables, and removes those of deleted topics from the tables. The time that the
    /// server was down is not counted as idle: each producer is idle from now on.
    fn producers(&self) -> Result<(), StoreError> {
        let mut forgotten = Vec::new();
        self.store.tables().producers(|topic, number, id, row| {
            let corrupt = |reason: String| StoreError::Corrupt { what: "table producers".into(), reason };
            let producer = Producer::decode(row).map_err(corrupt)?;
            let partition = self.topics.by_id(TopicId(topic)).and_then(|topic| topic.partition(number).ok());
            match (partition, ProducerId::new(id)) {
                (Some(partition), Some(id)) => partition.producers().restore(id, producer.idle_since(self.now_ms)),
                _ => forgotten.push((Tables::producer_key(topic, number, id), None)),
            }
            Ok(())
        })?;
        self.store.tables().write_producers(&forgotten)
    }

    /// Restores which partitions have records of transactions, and the aborted ones. Entries of deleted topics are ignored.
    fn transactions(&self) -> Result<(), StoreError> {
        let partition = |(topic, number): Place| self.topics.by_id(topic)?.partition(number).ok();
        for (key, _) in self.store.catalog_scan(TRANSACTIONAL_PREFIX)? {
            if let Some(partition) = partition(read_transactional(&key)?) {
                partition.set_transactional();
            }
        }
        for (key, value) in self.store.catalog_scan(ABORTED_PREFIX)? {
            let (place, aborted) = read_aborted(&key, &value)?;
            if let Some(partition) = partition(place) {
                partition.restore_aborted(aborted);
            }
        }
        Ok(())
    }

    /// Marks a group as active when it committed. It expires [`GRACE_MS`] after the start at the earliest, because its
    /// members may come back.
    fn mark_active(&self, group: &Group, committed: &CommittedRow<'_>) {
        let grace_ms = i64::try_from(self.offsets_retention_ms).unwrap_or(i64::MAX).min(GRACE_MS);
        let expires_later = self.now_ms.saturating_sub_unsigned(self.offsets_retention_ms).saturating_add(grace_ms);
        group.set_active(committed.committed_at_ms.unwrap_or(self.now_ms).min(self.now_ms).max(expires_later));
    }

    fn group(&self, id: &str, kind: u8) -> Result<Arc<Group>, String> {
        let kind = GroupKind::from_journal(kind).ok_or("a group has an unknown kind")?;
        let id = GroupId::new(id).map_err(|e| e.to_string())?;
        self.groups.get_or_create(&id, kind).map_err(|e| e.to_string())
    }

    fn journal(&self, sealer: &SealerHandle) -> Result<Replayed, StoreError> {
        self.store.replay(|seq, entry| {
            match entry {
                Entry::Batches { run, pos, batches, sound } => {
                    // Records of a deleted topic stay in the journal until it is trimmed.
                    let Some(topic) = self.topics.by_id(run.topic) else { return Ok(()) };
                    let partition = topic.partition(run.partition).map_err(|e| e.to_string())?;
                    if !sound {
                        tracing::error!(
                            partition = %partition.name(), base = %run.base, end = %run.end,
                            "a record batch in the journal is damaged; a check of the data directory reports which"
                        );
                    }
                    replay_producers(partition, run.base..run.end, batches, sound, self.now_ms);
                    let at = location(seq, pos, batches);
                    if run.end > partition.start() {
                        if run.base != partition.end() {
                            let (name, end) = (partition.name(), partition.end());
                            return Err(format!("{name}: records at offset {} cannot follow offset {end}", run.base));
                        }
                        partition.publish(run.run(at));
                    } else if !partition.producers().is_empty() {
                        partition.publish_gone(run.run(at));
                    }
                }
                Entry::Offset(entry) => {
                    if self.topics.by_id(entry.topic).is_some() {
                        let group = self.group(entry.group, entry.kind)?;
                        let stored = entry.committed.map(|committed| {
                            self.mark_active(&group, &committed);
                            stored(&committed)
                        });
                        let committed = stored.as_ref().map(|stored| &stored.committed);
                        group.accept_offset(entry.topic, entry.partition, committed);
                        group.store_offset(entry.topic, entry.partition, stored);
                    }
                }
                Entry::State(change) => self.state.apply(&change, seq),
                Entry::DropState { store } => self.state.drop_store(store, seq),
                Entry::DropGroup { group } => {
                    if let Ok(id) = GroupId::new(group) {
                        if let Ok(group) = self.groups.get(id.as_str()) {
                            group.clear_offsets();
                            self.groups.remove(&group);
                        }
                        sealer.group_dropped(&id);
                    }
                }
            }
            Ok(())
        })
    }
}

/// Restores what a partition knows about the producers of batches in the journal. The journal does not contain the time
/// of an append, so the current time is used. Damaged batches are skipped, because their producer is unknown.
fn replay_producers(partition: &Partition, offsets: Range<Offset>, batches: &[u8], sound: bool, now_ms: i64) {
    let mut producers = partition.producers();
    if !sound {
        for scanned in scan(&Bytes::copy_from_slice(batches), offsets) {
            if let Scanned::Batch { header, .. } = scanned {
                producers.replay(&header, now_ms);
            }
        }
        return;
    }
    let mut pos = 0;
    while let Ok(header) = BatchHeader::parse(&batches[pos..]) {
        producers.replay(&header, now_ms);
        pos += header.batch_bytes;
    }
}
