//! Consumers, which read as a member of a group or from chosen partitions.
//!
//! Each consumer has a task that reads (`member.rs` if the group assigns the partitions, otherwise `partitions.rs`) and
//! stores the records in `shared.rs`, from which the handle takes them.

mod member;
mod partitions;
mod records;
mod shared;

use std::sync::Arc;
use std::time::Duration;
use std::vec;

use futures::{Stream, stream};
use millstream_api::v1;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use self::records::{ConsumedRecord, RecordSet, RecordSetIter};
pub use self::shared::Assignment;
use self::shared::{Assigned, Shared, UpTo, to_offsets};
use crate::client::Client;
use crate::error::ClientError;
use crate::position::Position;

/// When offsets are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// Offsets are committed at an interval, when partitions are given back, and on [`Consumer::close`]. A record
    /// counts as processed, and its offset is committed, once the application has asked for the next one.
    Auto {
        /// Interval between commits, in ms.
        interval_ms: u64,
    },
    /// Offsets are committed only by [`Consumer::commit`] and [`Consumer::commit_offsets`].
    Manual,
}

/// What a consumer reads, and how.
#[derive(Clone, Debug)]
pub struct ConsumerSettings {
    /// The topics, at least one.
    pub topics: Vec<String>,
    /// The partitions to read, of exactly one topic. If this is empty (the default), the consumer reads all partitions,
    /// or those that the broker assigns if there is a group. If partitions are given together with a group, the
    /// consumer does not join the group, but it starts at the group's offsets and commits for the group.
    pub partitions: Vec<u32>,
    /// The consumer group. Without a group, the consumer reads every record of the partitions.
    pub group: Option<String>,
    /// Where to start. With a group, this applies only to partitions without a committed offset, and members of a group
    /// can start only at the earliest or the latest record. Default latest.
    pub from: Position,
    /// Whether to end at the log end offsets at the time when reading starts, or restarts after a lost connection.
    /// Default false.
    pub until_end: bool,
    /// When offsets are committed. Without a group, nothing is committed. Default every 5,000 ms.
    pub commit: CommitMode,
    /// Maximum size of one set of records, in bytes; a single record batch may be larger. For members of a group, the
    /// broker chooses the size. Default 1 MiB.
    pub fetch_bytes_max: usize,
    /// Maximum number of bytes that are received but not yet taken by the application. Default 8 MiB.
    pub buffer_bytes_max: usize,
    /// Whether to verify the checksum of every batch. Default true.
    pub check_crcs: bool,
    /// Name of the client, which `group describe` shows. It consists of the characters a-z A-Z 0-9 . _ - and may be
    /// empty.
    pub client_id: String,
    /// How long a member may process records of partitions that it must give back, in ms. Default 60,000.
    pub rebalance_timeout_ms: u32,
    /// Wait before the first attempt to reconnect, in ms. It doubles with each attempt, up to one second. Default 100.
    pub retry_backoff_ms: u64,
    /// How long to try to reconnect to a server that was reachable before, in ms. If the server was never reachable,
    /// the consumer fails immediately. Default 120,000.
    pub reconnect_timeout_ms: u64,
}

impl Default for ConsumerSettings {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            partitions: Vec::new(),
            group: None,
            from: Position::Latest,
            until_end: false,
            commit: CommitMode::Auto { interval_ms: 5_000 },
            fetch_bytes_max: 1 << 20,
            buffer_bytes_max: 8 << 20,
            check_crcs: true,
            client_id: String::new(),
            rebalance_timeout_ms: 60_000,
            retry_backoff_ms: 100,
            reconnect_timeout_ms: 120_000,
        }
    }
}

impl ConsumerSettings {
    /// Returns the default settings for reading one topic.
    pub fn topic(topic: impl Into<String>) -> Self {
        Self::topics([topic])
    }

    /// Returns the default settings for reading several topics.
    pub fn topics(topics: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { topics: topics.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Sets [`ConsumerSettings::group`].
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets [`ConsumerSettings::partitions`].
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.partitions = partitions.into_iter().collect();
        self
    }

    /// Sets [`ConsumerSettings::from`].
    #[must_use]
    pub fn from(mut self, from: Position) -> Self {
        self.from = from;
        self
    }

    /// Sets [`ConsumerSettings::until_end`].
    #[must_use]
    pub fn until_end(mut self) -> Self {
        self.until_end = true;
        self
    }

    /// Sets [`ConsumerSettings::commit`].
    #[must_use]
    pub fn commit(mut self, commit: CommitMode) -> Self {
        self.commit = commit;
        self
    }

    /// Whether the broker assigns the partitions.
    fn is_member(&self) -> bool {
        self.group.is_some() && self.partitions.is_empty()
    }

    fn check(&self) -> Result<(), ClientError> {
        let invalid = |what, reason: &str| Err(ClientError::InvalidArgument { what, reason: reason.to_owned() });
        if self.topics.is_empty() {
            return invalid("topics", "at least one topic is required");
        }
        if !self.partitions.is_empty() && self.topics.len() > 1 {
            return invalid("partitions", "can only be set for a single topic");
        }
        if self.is_member() && matches!(self.from, Position::Offset(_) | Position::TimestampMs(_)) {
            return invalid(
                "from",
                "members of a group start at the earliest or latest record; use reset_group to set the group's offsets",
            );
        }
        if self.buffer_bytes_max == 0 || self.fetch_bytes_max == 0 {
            return invalid("buffer_bytes_max", "buffer_bytes_max and fetch_bytes_max must be more than 0");
        }
        Ok(())
    }

    fn auto_commit_interval(&self) -> Option<Duration> {
        match (self.commit, &self.group) {
            (CommitMode::Auto { interval_ms }, Some(_)) => Some(Duration::from_millis(interval_ms.max(1))),
            _ => None,
        }
    }
}

/// Reads records, in sets or one at a time.
///
/// With a group, every record is delivered **at least once**: records that were not committed are delivered again after
/// a crash, after a lost connection, and after their partition moved to another member while the application processed
/// them.
///
/// A partition that cannot be read is reported once, for example when its offset is out of range; the error then names
/// this offset and the available ones. After that, a member of a group continues with its other partitions, and any
/// other consumer ends.
///
/// Dropping the consumer leaves the group without a final commit; [`Consumer::close`] commits and leaves.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    /// The set that `next` reads from.
    current: Option<Current>,
    /// A batch was invalid. Nothing more is read, because a commit would skip that batch.
    broken: bool,
}

/// A set whose records are handed out one at a time.
#[derive(Debug)]
struct Current {
    set: RecordSet,
    partition: Arc<Assigned>,
    records: vec::IntoIter<Result<ConsumedRecord, ClientError>>,
    next_batch: usize,
    next_offset: u64,
}

impl Client {
    /// Creates a consumer, which has its own connection. It immediately connects in the background, and joins its group
    /// if it has one. Errors of that are returned by its first call to `next`.
    ///
    /// # Errors
    /// [`ClientError::InvalidArgument`] if the settings contradict each other.
    ///
    /// # Panics
    /// Panics if called outside a tokio runtime.
    pub fn consumer(&self, settings: ConsumerSettings) -> Result<Consumer, ClientError> {
        Consumer::start(self.clone(), settings)
    }
}

impl Consumer {
    pub(crate) fn start(client: Client, settings: ConsumerSettings) -> Result<Self, ClientError> {
        settings.check()?;
        let is_member = settings.is_member();
        let shared = Arc::new(Shared::new(client, settings));
        let task = if is_member {
            tokio::spawn(member::run(shared.clone()))
        } else {
            tokio::spawn(partitions::run(shared.clone()))
        };
        Ok(Self { shared, task: Some(task), current: None, broken: false })
    }

    /// Returns the next records of one partition, or `None` at the end. Calling this marks all records returned before
    /// as processed.
    ///
    /// This is cancel-safe: no records are lost if the future is dropped.
    ///
    /// # Errors
    /// Fails if reading is no longer possible. The next call returns `None`, unless the consumer is a member of a group
    /// and continues with other partitions.
    pub async fn next_batch(&mut self) -> Option<Result<RecordSet, ClientError>> {
        if let Some(mut rest) = self.current.take()
            && !rest.partition.is_revoked()
            && rest.next_offset < rest.set.next_offset()
        {
            rest.set.skip_to(rest.next_offset);
            rest.partition.processed(rest.next_offset);
            rest.partition.hand_out(rest.set.next_offset());
            return Some(Ok(rest.set));
        }
        match self.take().await? {
            Ok((set, partition)) => {
                partition.hand_out(set.next_offset());
                Some(Ok(set))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Returns the next record, or `None` at the end. Calling this marks all records returned before as processed.
    ///
    /// This is cancel-safe: no records are lost if the future is dropped.
    ///
    /// # Errors
    /// See [`Consumer::next_batch`].
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord, ClientError>> {
        loop {
            if let Some(current) = &mut self.current {
                match current.next() {
                    Some(Ok(record)) => return Some(Ok(record)),
                    Some(Err(error)) => {
                        self.current = None;
                        self.broken = true;
                        return Some(Err(error));
                    }
                    None => self.current = None,
                }
            }
            match self.take().await? {
                Ok((set, partition)) => {
                    let next_offset = set.first_offset();
                    let records = Vec::new().into_iter();
                    self.current = Some(Current { set, partition, records, next_batch: 0, next_offset });
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Returns the records as a stream, which ends when [`Consumer::next`] does. Dropping the stream drops the
    /// consumer.
    pub fn into_stream(self) -> impl Stream<Item = Result<ConsumedRecord, ClientError>> + Send + 'static {
        stream::unfold(self, |mut consumer| async move { Some((consumer.next().await?, consumer)) })
    }

    /// Returns the reason if currently no records can arrive because the connection or the membership is lost. The
    /// consumer retries until [`ConsumerSettings::reconnect_timeout_ms`] has passed.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// Returns the number of records that retention deleted before this member of a group read them, since the consumer
    /// was created. Reading continues after them.
    pub fn missed_records(&self) -> u64 {
        self.shared.missed_records()
    }

    /// Returns how many times a topic that this consumer reads without a membership was deleted and created again since the
    /// consumer was created. Reading continues at the first record of the new topic.
    pub fn recreated_topics(&self) -> u64 {
        self.shared.recreated_topics()
    }

    async fn take(&mut self) -> Option<Result<(RecordSet, Arc<Assigned>), ClientError>> {
        if self.broken {
            return None;
        }
        match self.shared.take().await? {
            Ok(fetched) => match RecordSet::new(&fetched, self.shared.settings.check_crcs) {
                Ok(set) => Some(Ok((set, fetched.partition))),
                Err(error) => {
                    self.broken = true;
                    Some(Err(error))
                }
            },
            Err(error) => Some(Err(error)),
        }
    }

    /// Commits the offsets of all records that were handed out, and waits until the offsets are on disk.
    ///
    /// # Errors
    /// Fails if there is no group, if the server refuses the commit, or if the connection is lost. The records may be
    /// delivered again.
    pub async fn commit(&self) -> Result<(), ClientError> {
        self.group()?;
        let offsets = self.shared.to_commit(UpTo::Handed);
        if offsets.is_empty() {
            return Ok(());
        }
        self.commit_known(to_offsets(&offsets), offsets).await
    }

    /// Commits the given offsets. Each is the offset of the next record to read.
    ///
    /// # Errors
    /// See [`Consumer::commit`].
    pub async fn commit_offsets(
        &self,
        offsets: impl IntoIterator<Item = v1::TopicPartitionOffset>,
    ) -> Result<(), ClientError> {
        self.group()?;
        let offsets: Vec<_> = offsets.into_iter().collect();
        let known = self.shared.find(&offsets);
        self.commit_known(offsets, known).await
    }

    async fn commit_known(
        &self,
        offsets: Vec<v1::TopicPartitionOffset>,
        known: Vec<(Arc<Assigned>, u64)>,
    ) -> Result<(), ClientError> {
        if !self.shared.settings.is_member() {
            return partitions::commit(&self.shared, offsets, &known).await;
        }
        let (sender, answer) = oneshot::channel();
        self.shared.commit_as_member(offsets, known, Some(sender))?;
        answer.await.unwrap_or_else(|_| Err(self.shared.membership_lost()))
    }

    fn group(&self) -> Result<(), ClientError> {
        if self.shared.settings.group.is_some() {
            return Ok(());
        }
        let reason = "a consumer without a group has no offsets to commit".to_owned();
        Err(ClientError::InvalidArgument { what: "group", reason })
    }

    /// Returns what this consumer currently reads. It is empty until the consumer has connected.
    pub fn assignment(&self) -> Assignment {
        self.shared.assignment.borrow().clone()
    }

    /// Returns a receiver that is updated with the assignment after every rebalance.
    pub fn assignments(&self) -> watch::Receiver<Assignment> {
        self.shared.assignment.subscribe()
    }

    /// Commits the offsets if commits are automatic, with all records that were handed out counting as processed, and
    /// leaves the group.
    ///
    /// # Errors
    /// Fails if the final commit fails. The records may be delivered again to other members.
    pub async fn close(mut self) -> Result<(), ClientError> {
        let mut committed = Ok(());
        self.shared.settle();
        if self.shared.settings.auto_commit_interval().is_some() {
            committed = self.commit().await;
        }
        self.shared.close();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
            && error.is_panic()
        {
            tracing::error!("the consumer's task panicked");
        }
        committed
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Current {
    fn next(&mut self) -> Option<Result<ConsumedRecord, ClientError>> {
        // The application has processed the records before this offset.
        self.partition.processed(self.next_offset);
        if self.partition.is_revoked() {
            return None;
        }
        loop {
            match self.records.next() {
                Some(Ok(record)) => {
                    self.next_offset = record.offset + 1;
                    self.partition.hand_out(self.next_offset);
                    return Some(Ok(record));
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {}
            }
            match self.set.owned(self.next_batch) {
                Some(records) => {
                    self.next_batch += 1;
                    self.records = records.into_iter();
                }
                None => {
                    self.partition.hand_out(self.set.next_offset());
                    self.partition.processed(self.set.next_offset());
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use futures::poll;
    use millstream_api::v1;
    use millstream_record::{BatchBuilder, Compression, patch_batch};

    use super::shared::{Fetched, UpTo};
    use super::*;

    /// Returns a batch of four records starting at offset 100.
    fn run() -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None);
        (0..4).for_each(|_| builder.push(7, None, Some(b"value"), []));
        let mut run = BytesMut::from(&builder.finish().unwrap().as_bytes()[..]);
        patch_batch(&mut run, 100, 0);
        run.freeze()
    }

    /// Creates a member without a task; the tests do the task's work.
    fn member() -> Consumer {
        let client = Client::new("127.0.0.1:1").unwrap();
        let shared = Arc::new(Shared::new(client, ConsumerSettings::topic("t").group("g")));
        let partition = Assigned::new("t".into(), 0, 100);
        shared.assign(1, [partition.clone()]);
        let fetched =
            Fetched { partition, runs: vec![run()], bytes: 1, from: 100, next_offset: 104, log_end_offset: 104 };
        shared.push(fetched);
        Consumer { shared, task: None, current: None, broken: false }
    }

    fn revoke(consumer: &Consumer) {
        consumer.shared.revoke(2, &[v1::TopicPartition { topic: "t".to_owned(), partition: 0 }]);
    }

    #[tokio::test]
    async fn a_set_has_what_is_left_after_single_records() {
        let mut consumer = member();
        for offset in [100, 101] {
            assert_eq!(consumer.next().await.unwrap().unwrap().offset, offset);
        }
        let rest = consumer.next_batch().await.unwrap().unwrap();
        assert_eq!((rest.first_offset(), rest.next_offset()), (102, 104));
        assert!(poll!(std::pin::pin!(consumer.next_batch())).is_pending());
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_set_whose_records_were_all_handed_out_or_whose_partition_is_revoked() {
        for is_revoked in [false, true] {
            let mut consumer = member();
            let taken = if is_revoked { 2 } else { 4 };
            for _ in 0..taken {
                consumer.next().await.unwrap().unwrap();
            }
            if is_revoked {
                revoke(&consumer);
            }
            assert!(poll!(std::pin::pin!(consumer.next_batch())).is_pending(), "revoked: {is_revoked}");
            let to_commit: Vec<_> =
                consumer.shared.to_commit(UpTo::Handed).into_iter().map(|(_, offset)| offset).collect();
            assert_eq!(to_commit, [100 + taken], "revoked: {is_revoked}");
        }
    }

    #[tokio::test]
    async fn single_records_of_a_partition_that_is_revoked_are_not_handed_out() {
        let mut consumer = member();
        consumer.next().await.unwrap().unwrap();
        revoke(&consumer);
        assert!(poll!(std::pin::pin!(consumer.next())).is_pending());
    }
}
