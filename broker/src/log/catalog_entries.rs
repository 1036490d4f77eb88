//! The broker's own entries in the catalog: the topics, and the next numbers to be assigned.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use uuid::Uuid;

use crate::groups::classic::Classic;
use crate::groups::kept::Kept;
use crate::groups::{GroupKind, Groups};
use crate::log::topic::{Topic, TopicMeta};
use crate::log::topics::Topics;
use crate::name::{GroupId, ProducerId, TopicName};
use crate::store::{Store, StoreError};

pub(crate) const TOPIC_PREFIX: &str = "topic/";
/// Key of the id of the next topic. Ids are never reused, so the records of a deleted topic can never reappear.
pub(crate) const NEXT_TOPIC_ID: &str = "next-topic-id";

/// Key of the first producer id that no process has reserved yet.
pub(crate) const NEXT_PRODUCER_ID: &str = "next-producer-id";

/// Prefix of the settings of groups.
pub(crate) const GROUP_SETTINGS_PREFIX: &str = "group-settings/";

pub(crate) fn load_group_settings(store: &Store, groups: &Groups) -> Result<(), StoreError> {
    for (key, value) in store.catalog_scan(GROUP_SETTINGS_PREFIX)? {
        let corrupt = |reason: String| StoreError::Corrupt { what: format!("catalog entry {key:?}"), reason };
        let id = GroupId::new(&key[GROUP_SETTINGS_PREFIX.len()..]).map_err(|error| corrupt(error.to_string()))?;
        groups.set_settings(&id, serde_json::from_slice(&value).map_err(|error| corrupt(error.to_string()))?);
    }
    Ok(())
}

/// Prefix of the members of groups by the classic protocol.
pub(crate) const GROUP_MEMBERS_PREFIX: &str = "group-members/";

/// Restores the members of groups. Their sessions begin anew.
pub(crate) fn load_group_members(store: &Store, groups: &Groups) -> Result<(), StoreError> {
    for (key, value) in store.catalog_scan(GROUP_MEMBERS_PREFIX)? {
        let corrupt = |reason: String| StoreError::Corrupt { what: format!("catalog entry {key:?}"), reason };
        let id = GroupId::new(&key[GROUP_MEMBERS_PREFIX.len()..]).map_err(|error| corrupt(error.to_string()))?;
        let kept: Kept = serde_json::from_slice(&value).map_err(|error| corrupt(error.to_string()))?;
        let group = groups.get_or_create(&id, GroupKind::Consumer).map_err(|error| corrupt(error.to_string()))?;
        group.members().classic = Classic::restore(&kept, Instant::now());
    }
    Ok(())
}

/// Key of the UUID of the data directory, which is the id of the cluster for Kafka's clients.
pub(crate) const CLUSTER_ID: &str = "cluster-id";

/// The last epoch that was handed out to a producer that asked for another one.
const PRODUCER_EPOCH_PREFIX: &str = "producer-epoch/";

pub(crate) fn producer_epoch_key(id: ProducerId) -> String {
    format!("{PRODUCER_EPOCH_PREFIX}{id}")
}

pub(crate) fn load_producer_epochs(store: &Store) -> Result<Vec<(ProducerId, i16)>, StoreError> {
    let entries = store.catalog_scan(PRODUCER_EPOCH_PREFIX)?;
    let read = |(key, value): (String, Bytes)| {
        let id = key[PRODUCER_EPOCH_PREFIX.len()..].parse().ok().and_then(ProducerId::new);
        let epoch = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
        id.zip(epoch).ok_or_else(|| StoreError::Corrupt {
            what: format!("catalog entry {key:?}"),
            reason: format!("{value:?} is not the epoch of a producer"),
        })
    };
    entries.into_iter().map(read).collect()
}

pub(crate) fn topic_key(name: &TopicName) -> String {
    format!("{TOPIC_PREFIX}{name}")
}

pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs serialise")
}

pub(crate) fn catalog_number<N: std::str::FromStr>(store: &Store, key: &str) -> Result<Option<N>, StoreError> {
    let Some(stored) = store.catalog_get(key)? else { return Ok(None) };
    let parsed = std::str::from_utf8(&stored).ok().and_then(|text| text.parse().ok());
    let corrupt = || StoreError::Corrupt {
        what: format!("catalog entry {key:?}"),
        reason: format!("{stored:?} is not a number"),
    };
    parsed.map(Some).ok_or_else(corrupt)
}

pub(crate) fn load_topics(store: &Store) -> Result<Topics, StoreError> {
    let mut topics = Topics::default();
    for (key, value) in store.catalog_scan(TOPIC_PREFIX)? {
        let corrupt = |reason: String| StoreError::Corrupt { what: format!("catalog entry {key:?}"), reason };
        let name = TopicName::new(&key[TOPIC_PREFIX.len()..]).map_err(|e| corrupt(e.to_string()))?;
        let mut meta: TopicMeta = serde_json::from_slice(&value).map_err(|e| corrupt(e.to_string()))?;
        if meta.uuid.is_nil() {
            meta.uuid = uuid_of_format_4(&meta);
        }
        topics.insert(Arc::new(Topic::new(name, meta)));
    }
    Ok(topics)
}

/// The UUID of a topic that data format 4 wrote, which had none. It is made of what identified the topic there, so that it
/// is the same at each start.
fn uuid_of_format_4(meta: &TopicMeta) -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&meta.created_at_ms.to_be_bytes());
    bytes[12..].copy_from_slice(&meta.id.to_be_bytes());
    Uuid::new_v8(bytes)
}
