//! A producer's descriptions of topics. Each topic is looked up when it is first used and again at intervals, because
//! partitions may have been added or limits changed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use millstream_api::v1;
use tokio::time::Instant;

use super::Shared;
use super::batching::Topic;
use crate::backoff::Backoff;
use crate::error::ClientError;

/// Refreshes the topics until the producer is dropped or closed.
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
    pub(super) fn known_topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().get(name).filter(|topic| !topic.is_stale()).cloned()
    }

    /// Looks up a topic that is unknown or whose description is outdated.
    pub(super) async fn describe(&self, name: &Arc<str>) -> Result<Arc<Topic>, ClientError> {
        let begun = Instant::now();
        let _one = self.describing.lock().await;
        if let Some(topic) = self.known_topic(name) {
            return Ok(topic);
        }
        let described = self.lookup_in_time(name, begun).await?;
        let before = self.topics.read().get(name).cloned();
        let topic = Arc::new(Topic::new(name, &described, before.as_deref(), &self.settings));
        self.topics.write().insert(name.clone(), topic.clone());
        Ok(topic)
    }

    /// Retries until the delivery timeout, counted from `begun`. If no topic has been looked up yet, the server may not
    /// exist, and the first error is returned immediately.
    async fn lookup_in_time(&self, name: &str, begun: Instant) -> Result<v1::Topic, ClientError> {
        let mut backoff = Backoff::new(self.settings.retry_backoff_ms);
        let timeout = |last: Option<String>| ClientError::Timeout {
            what: format!("looking up topic {name}"),
            after_ms: self.settings.delivery_timeout_ms,
            last,
        };
        loop {
            self.check_open()?;
            // Other lookups may have used up the time.
            if begun.elapsed() > self.delivery_timeout() {
                return Err(timeout(None));
            }
            let error = match self.lookup(name).await {
                Err(error) if error.is_retriable() && !self.topics.read().is_empty() => error,
                other => return other,
            };
            let wait = backoff.next();
            if begun.elapsed() + wait > self.delivery_timeout() {
                return Err(timeout(Some(error.to_string())));
            }
            tracing::debug!(topic = name, %error, "looking the topic up again in {wait:?}");
            tokio::time::sleep(wait).await;
        }
    }

    async fn lookup(&self, name: &str) -> Result<v1::Topic, ClientError> {
        let described = self.client.admin().describe_topic(name).await?;
        described.topic.ok_or_else(|| ClientError::lacks(self.client.server(), "topic"))
    }

    /// Looks up each known topic. If that fails, the old description is kept, and the next send to the topic returns
    /// the error.
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
        // A sender that found the topic outdated meanwhile has already looked it up.
        let current = topics.get(known.name()).filter(|current| Arc::ptr_eq(current, known));
        if current.is_some() && !known.is_as(&described) {
            let topic = Arc::new(Topic::new(known.name(), &described, Some(known), &self.settings));
            topics.insert(known.name().clone(), topic);
            known.set_stale();
        }
        Ok(())
    }
}
