//! All topics: by name, by the store's number, and by UUID.

use std::collections::BTreeMap;
use std::collections::btree_map::Values;
use std::sync::Arc;

use uuid::Uuid;

use super::topic::Topic;
use crate::hash::HashMap;
use crate::name::TopicName;
use crate::store::place::TopicId;

/// All topics.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    by_name: BTreeMap<TopicName, Arc<Topic>>,
    by_id: HashMap<TopicId, Arc<Topic>>,
    by_uuid: HashMap<Uuid, Arc<Topic>>,
}

impl Topics {
    /// Adds a topic, or replaces the one of this name by the same topic with other settings.
    pub(crate) fn insert(&mut self, topic: Arc<Topic>) {
        self.by_id.insert(topic.id(), topic.clone());
        self.by_uuid.insert(topic.uuid(), topic.clone());
        self.by_name.insert(topic.name().clone(), topic);
    }

    /// Removes a topic.
    pub(crate) fn remove(&mut self, name: &TopicName) {
        if let Some(topic) = self.by_name.remove(name) {
            self.by_id.remove(&topic.id());
            self.by_uuid.remove(&topic.uuid());
        }
    }

    /// Returns a topic by its name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_name.get(name)
    }

    /// Returns a topic by the store's number.
    pub(crate) fn by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.by_id.get(&id)
    }

    /// Returns a topic by its UUID.
    pub(crate) fn by_uuid(&self, uuid: Uuid) -> Option<&Arc<Topic>> {
        self.by_uuid.get(&uuid)
    }

    /// Returns all topics, sorted by name.
    pub(crate) fn values(&self) -> Values<'_, TopicName, Arc<Topic>> {
        self.by_name.values()
    }
}

impl FromIterator<Arc<Topic>> for Topics {
    fn from_iter<I: IntoIterator<Item = Arc<Topic>>>(topics: I) -> Self {
        let mut all = Self::default();
        topics.into_iter().for_each(|topic| all.insert(topic));
        all
    }
}
