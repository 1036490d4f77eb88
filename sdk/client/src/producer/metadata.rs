//! What a producer knows of its topics is looked up again now and then: partitions may have been added,
//! and limits altered.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Shared;
use super::batching::Topic;
use crate::error::ClientError;

/// Refreshes until the producer is gone or closed.
pub(super) async fn refresh(shared: Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        if shared.check_open().is_err() {
            return;
        }
        shared.refresh_topics().await;
    }
}

impl Shared {
    /// Looks up each known topic. One that can't be looked up stays as it was known: who sends to it learns
    /// what is wrong.
    async fn refresh_topics(&self) {
        let known: Vec<Arc<Topic>> = self.topics.read().values().cloned().collect();
        for topic in known {
            if let Err(error) = self.refresh_topic(&topic).await {
                let server = self.client.server();
                tracing::debug!(server, topic = &**topic.name(), %error, "a topic could not be looked up again");
            }
        }
    }

    async fn refresh_topic(&self, known: &Arc<Topic>) -> Result<(), ClientError> {
        let _one = self.describing.lock().await;
        let described = self.lookup(known.name()).await?;
        let mut topics = self.topics.write();
        // Who found it stale meanwhile has looked it up already.
        let current = topics.get(known.name()).filter(|current| Arc::ptr_eq(current, known));
        if current.is_some() && !known.is_as(&described) {
            let topic = Arc::new(Topic::new(known.name(), &described, Some(known), &self.settings));
            topics.insert(known.name().clone(), topic);
            known.set_stale();
        }
        Ok(())
    }
}
