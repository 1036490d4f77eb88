//! The producer's task, which sends sealed batches in order with many in flight, and reports the outcome of each.
//!
//! A batch is first open (`batching.rs`). In this task, it is in `queue`, then in `in_flight`, and possibly in
//! `refused` and again in `queue`, until its records are stored, permanently refused, or timed out.
//!
//! An idempotent producer numbers a batch when it is first sent, and sends it again with the same numbers after a lost
//! connection, so that the server stores it once. If a numbered batch is given up, the server would refuse the batches
//! after it because of the gap. In that case, only batches that may be stored are sent again, with their numbers; when
//! all of those are answered, the next epoch starts and the remaining batches are numbered again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use millstream_api::v1;
use millstream_api::v1::log_client::LogClient;
use millstream_record::RecordBatch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::batching::{Event, Partition, Sealed};
use super::delivery::Batch;
use super::sequences::{IN_FLIGHT_OF_PARTITION_MAX, Sequences};
use super::{CLOSED, Shared};
use crate::backoff::Backoff;
use crate::client::Channel;
use crate::error::ClientError;

pub(super) struct Sender {
    shared: Arc<Shared>,
    channel: Channel,
    connection: Option<Connection>,
    sequences: Sequences,
    events: VecDeque<Event>,
    /// Open batches, the oldest first. Some may have been sealed meanwhile.
    lingering: VecDeque<(Arc<Partition>, Arc<Batch>)>,
    /// Batches to send, in order.
    queue: VecDeque<Pending>,
    /// Batches that were sent on the connection, in order, and are not answered yet.
    in_flight: VecDeque<Pending>,
    /// Batches that were temporarily refused. Nothing is sent until all batches in flight are answered; then these
    /// batches are sent first, which keeps the order.
    refused: Vec<Pending>,
    next_seq: u64,
    /// Numbers of all sealed batches without an outcome.
    outstanding: BTreeSet<u64>,
    /// Flushes that wait until all batches before the given number have an outcome.
    flushes: Vec<(u64, oneshot::Sender<Result<(), ClientError>>)>,
    first_failure: Option<ClientError>,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

/// A produce stream.
struct Connection {
    requests: mpsc::UnboundedSender<v1::ProduceRequest>,
    answers: Streaming<v1::ProduceResponse>,
    /// Number of requests that the transport accepted and that may have reached the server.
    taken: Arc<AtomicU64>,
    answered: u64,
}

/// A sealed batch without an outcome.
struct Pending {
    seq: u64,
    batch: Arc<Batch>,
    encoded: RecordBatch,
    reserved: u32,
    /// The batch was sent with sequence numbers, which it keeps.
    numbered: bool,
    /// The batch was sent and its answer was lost, so it may be stored.
    in_doubt: bool,
}

impl Pending {
    fn records(&self) -> u32 {
        self.encoded.record_count()
    }

    fn is_of(&self, batch: &Batch) -> bool {
        self.batch.partition == batch.partition && self.batch.topic == batch.topic
    }

    fn unknown_outcome(&self, reason: String) -> ClientError {
        ClientError::UnknownOutcome {
            topic: self.batch.topic.to_string(),
            partition: self.batch.partition,
            records: self.records(),
            reason,
        }
    }
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            channel: shared.client.own_channel(),
            connection: None,
            sequences: Sequences::default(),
            events: VecDeque::new(),
            lingering: VecDeque::new(),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            refused: Vec::new(),
            next_seq: 0,
            outstanding: BTreeSet::new(),
            flushes: Vec::new(),
            first_failure: None,
            retry_at: None,
            backoff: Backoff::new(shared.settings.retry_backoff_ms),
            shared,
        }
    }

    /// Runs until the producer is closed and every batch has an outcome.
    pub(super) async fn run(mut self) {
        loop {
            // Read this before taking the events, so that later events are not lost.
            let closed = self.shared.outbox.is_closed();
            self.hear();
            self.expire();
            self.seal_lingering(closed);
            self.hear();
            if closed && self.lingering.is_empty() && self.outstanding.is_empty() {
                return;
            }
            self.send().await;
            self.settle_flushes();
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                answer = next_answer(&mut self.connection) => self.answered(answer),
                () = self.shared.outbox.wake.notified() => {}
                () = until(deadline) => {}
            }
        }
    }

    fn hear(&mut self) {
        self.shared.outbox.take(&mut self.events);
        while let Some(event) = self.events.pop_front() {
            match event {
                Event::Opened(partition, batch) => self.lingering.push_back((partition, batch)),
                Event::Sealed(sealed) => self.enqueue(sealed),
                Event::Flush(done) => {
                    for (partition, batch) in self.lingering.drain(..) {
                        partition.seal_if(&batch, &self.shared);
                    }
                    // The batches that were just sealed are handled before this event.
                    self.shared.outbox.push(Event::Flushing(done));
                }
                Event::Flushing(done) => self.flushes.push((self.next_seq, done)),
            }
        }
    }

    fn enqueue(&mut self, mut sealed: Sealed) {
        while self.lingering.front().is_some_and(|(_, batch)| batch.is_sealed()) {
            self.lingering.pop_front();
        }
        let Some(encoded) = sealed.builder.finish() else {
            return self.shared.release(sealed.reserved);
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        self.outstanding.insert(seq);
        let Sealed { batch, reserved, .. } = sealed;
        self.queue.push_back(Pending { seq, batch, encoded, reserved, numbered: false, in_doubt: false });
    }

    /// Whether a batch could be sent immediately.
    fn fits_in_flight(&self, batch: &Batch) -> bool {
        self.queue.is_empty() && self.refused.is_empty() && self.retry_at.is_none() && self.may_send(batch)
    }

    /// Whether another batch of the same partition may be in flight.
    fn may_send(&self, batch: &Batch) -> bool {
        let of_partition = || self.in_flight.iter().filter(|pending| pending.is_of(batch)).count();
        self.in_flight.len() < self.shared.settings.in_flight_max.max(1)
            && (!self.shared.settings.idempotent || of_partition() < IN_FLIGHT_OF_PARTITION_MAX)
    }

    /// Seals batches that have lingered long enough. A batch that cannot be sent yet stays open and grows.
    fn seal_lingering(&mut self, closed: bool) {
        // Answers free buffer memory. If none are expected, only sealing the open batches can free it.
        let now_or_never = closed || self.outstanding.is_empty() && self.shared.outbox.is_hurried();
        let mut free_slots = self.shared.settings.in_flight_max.max(1).saturating_sub(self.in_flight.len());
        while let Some((_, batch)) = self.lingering.front() {
            let due = batch.opened_at + self.linger() <= Instant::now();
            if !(now_or_never || due && free_slots > 0 && self.fits_in_flight(batch)) {
                break;
            }
            free_slots = free_slots.saturating_sub(1);
            if let Some((partition, batch)) = self.lingering.pop_front() {
                partition.seal_if(&batch, &self.shared);
            }
        }
    }

    fn linger(&self) -> Duration {
        Duration::from_millis(self.shared.settings.linger_ms)
    }

    /// Returns the time of the next action that is not triggered by an event.
    fn next_deadline(&self) -> Option<Instant> {
        let linger = self.lingering.front().filter(|(_, batch)| self.fits_in_flight(batch));
        let linger = linger.map(|(_, batch)| batch.opened_at + self.linger());
        let waiting = self.queue.front().map(|pending| self.deadline(pending));
        let in_flight = self.in_flight.front().map(|pending| self.deadline(pending));
        let retry = self.retry_at.filter(|_| !self.queue.is_empty() || !self.lingering.is_empty());
        [linger, waiting, in_flight, retry].into_iter().flatten().min()
    }

    fn deadline(&self, pending: &Pending) -> Instant {
        pending.batch.opened_at + self.shared.delivery_timeout()
    }

    /// Gives up batches whose delivery timeout has passed.
    fn expire(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if self.in_flight.front().is_some_and(|pending| self.deadline(pending) <= now) {
            let timeout_ms = self.shared.settings.delivery_timeout_ms;
            self.lost(format!("no answer within {timeout_ms} ms"), true);
        }
        while let Some(pending) =
            self.queue.pop_front_if(|pending| pending.batch.opened_at + self.shared.delivery_timeout() <= now)
        {
            let after_ms = self.shared.settings.delivery_timeout_ms;
            let error = if pending.in_doubt {
                let last = self.shared.trouble.lock().clone();
                pending.unknown_outcome(last.unwrap_or_else(|| format!("no answer within {after_ms} ms")))
            } else {
                let (topic, partition) = (&pending.batch.topic, pending.batch.partition);
                ClientError::Timeout {
                    what: format!("topic {topic}, partition {partition}: sending {} records", pending.records()),
                    after_ms,
                    last: self.shared.trouble.lock().clone(),
                }
            };
            self.give_up(pending, error);
        }
    }

    async fn send(&mut self) {
        if self.queue.is_empty() || !self.refused.is_empty() || self.retry_at.is_some() {
            return;
        }
        if self.connection.is_none() {
            match self.connect().await {
                Ok(connection) => self.connection = Some(connection),
                Err(error) => return self.trouble(error.to_string()),
            }
        }
        if self.must_begin() && !self.awaits_answers() {
            match self.init_producer().await {
                Ok(()) => self.queue.iter_mut().for_each(|pending| pending.numbered = false),
                Err(error) => return self.trouble(error.to_string()),
            }
        }
        while let Some(mut pending) = self.next_to_send() {
            let Some(connection) = &self.connection else { return };
            if self.shared.settings.idempotent && !pending.numbered {
                pending.encoded = self.sequences.number(&pending.batch, pending.encoded);
                pending.numbered = true;
            }
            // If the stream has ended, this is detected where its answers are read.
            let _ = connection.requests.send(v1::ProduceRequest {
                topic: pending.batch.topic.to_string(),
                partition: Some(pending.batch.partition),
                batches: pending.encoded.as_bytes().clone(),
                records: Vec::new(),
            });
            self.in_flight.push_back(pending);
        }
    }

    /// Whether batches cannot be numbered until there is a producer id or the next epoch.
    fn must_begin(&self) -> bool {
        self.shared.settings.idempotent && self.sequences.must_begin()
    }

    /// Whether a batch may be stored with its current numbers, so that they must not change yet.
    fn awaits_answers(&self) -> bool {
        !self.in_flight.is_empty() || self.queue.iter().any(|pending| pending.in_doubt)
    }

    fn next_to_send(&mut self) -> Option<Pending> {
        let place = if self.must_begin() { self.queue.iter().position(|pending| pending.in_doubt)? } else { 0 };
        let next = self.queue.get(place)?;
        if self.may_send(&next.batch) { self.queue.remove(place) } else { None }
    }

    async fn connect(&mut self) -> Result<Connection, ClientError> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let taken = Arc::new(AtomicU64::new(0));
        let counter = taken.clone();
        let stream = UnboundedReceiverStream::new(receiver).inspect(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let mut client = LogClient::new(self.channel.clone());
        let answers = self.in_time(client.produce_stream(stream)).await?;
        Ok(Connection { requests, answers, taken, answered: 0 })
    }

    /// Requests a producer id, or the next epoch of the current id.
    async fn init_producer(&mut self) -> Result<(), ClientError> {
        let mut client = LogClient::new(self.channel.clone());
        let request = v1::InitProducerRequest { current: self.sequences.current() };
        let given = self.in_time(client.init_producer(request)).await.inspect_err(|error| {
            if error.code() == Some(v1::ErrorCode::UnknownProducerId) {
                self.sequences.forget_identity();
            }
        })?;
        let server = self.shared.client.server();
        let given = given.producer.ok_or_else(|| ClientError::lacks(server, "producer"))?;
        let begun = self.sequences.begin(&given);
        begun.map_err(|message| ClientError::Protocol { server: server.to_owned(), message })
    }

    /// Waits for an answer until the deadline of the first batch in the queue.
    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, ClientError> {
        let server = self.shared.client.server();
        let deadline = self.queue.front().map(|pending| self.deadline(pending));
        tokio::select! {
            answer = call => answer.map(tonic::Response::into_inner).map_err(|status| ClientError::from_status(server, &status)),
            () = until(deadline) => Err(ClientError::Unavailable {
                server: server.to_owned(),
                reason: "the server does not answer".to_owned(),
            }),
        }
    }

    fn answered(&mut self, answer: Answer) {
        let answer = match answer {
            Answer::Is(answer) => answer,
            // Before the server ends a stream without an error, it answers all requests that it received.
            Answer::Ended => return self.lost("the server ended the stream".to_owned(), false),
            Answer::Lost(status) => {
                let error = ClientError::from_status(self.shared.client.server(), &status);
                let reason = match error {
                    ClientError::Unavailable { reason, .. } => reason,
                    error => error.to_string(),
                };
                return self.lost(reason, true);
            }
        };
        if let Some(connection) = &mut self.connection {
            connection.answered += 1;
        }
        let Some(pending) = self.in_flight.pop_front() else {
            return self.lost("the server sent an answer without a request".to_owned(), true);
        };
        match answer.error {
            None => self.stored(pending, &answer.appended),
            Some(error) => self.refuse(pending, ClientError::refused(error)),
        }
        self.retry_refused();
    }

    fn stored(&mut self, pending: Pending, appended: &[v1::Appended]) {
        self.backoff.reset();
        *self.shared.trouble.lock() = None;
        self.fail_overtaken(&pending);
        let outcome = match appended {
            [one] if one.record_count == pending.records() && one.partition == pending.batch.partition => {
                Ok(one.base_offset)
            }
            other => Err(ClientError::Protocol {
                server: self.shared.client.server().to_owned(),
                message: format!(
                    "{} records were sent to partition {}, but the answer is {other:?}",
                    pending.records(),
                    pending.batch.partition
                ),
            }),
        };
        self.done(pending, outcome);
    }

    fn refuse(&mut self, pending: Pending, error: ClientError) {
        use v1::ErrorCode as E;
        let out_of_order =
            matches!(error.code(), Some(E::OutOfOrderSequence | E::StaleProducerEpoch | E::UnknownProducerId));
        if out_of_order {
            self.sequences.set_gap();
        }
        if let Some(E::StaleProducerEpoch | E::UnknownProducerId) = error.code() {
            self.sequences.forget_identity();
        }
        // The outcome of the first attempt of a batch in doubt is unknown.
        if error.is_retriable() || out_of_order && !pending.in_doubt {
            *self.shared.trouble.lock() = Some(error.to_string());
            self.refused.push(pending);
            return;
        }
        if let Some(E::UnknownTopic | E::UnknownPartition) = error.code()
            && let Some(topic) = self.shared.topics.read().get(&pending.batch.topic)
        {
            topic.set_stale();
        }
        let error = if pending.in_doubt { pending.unknown_outcome(error.to_string()) } else { error };
        self.give_up(pending, error);
    }

    /// Fails the refused batches that precede `by`, a batch of the same partition that is or may be stored. They can no
    /// longer be stored in order.
    fn fail_overtaken(&mut self, by: &Pending) {
        let is_overtaken = |pending: &Pending| pending.seq < by.seq && pending.is_of(&by.batch);
        let mut overtaken: Vec<Pending> = self.refused.extract_if(.., |pending| is_overtaken(pending)).collect();
        if self.must_begin() {
            // Only in this case may a later batch have been sent before one that is still queued.
            let (earlier, rest): (VecDeque<_>, _) = self.queue.drain(..).partition(is_overtaken);
            self.queue = rest;
            overtaken.extend(earlier);
        }
        for pending in overtaken {
            let last = self.shared.trouble.lock().clone().unwrap_or_default();
            let message = format!("{last} (not sent again because later records are already stored)");
            self.give_up(pending, ClientError::Refused { code: v1::ErrorCode::ShuttingDown, message });
        }
    }

    /// Queues the refused batches first, once nothing is in flight.
    fn retry_refused(&mut self) {
        if self.refused.is_empty() || !self.in_flight.is_empty() {
            return;
        }
        self.requeue(Vec::new());
        let reason = self.shared.trouble.lock().clone().unwrap_or_default();
        self.trouble(reason);
    }

    /// Handles a lost connection. The batches that it accepted may be stored, unless `unknown` is false.
    fn lost(&mut self, reason: String, unknown: bool) {
        let Some(connection) = self.connection.take() else { return };
        let taken = connection.taken.load(Ordering::SeqCst).saturating_sub(connection.answered);
        drop(connection);
        let unknown = if unknown { usize::try_from(taken).unwrap_or(usize::MAX) } else { 0 };
        let mut again = Vec::with_capacity(self.in_flight.len());
        let sends_again = self.shared.settings.idempotent || self.shared.settings.retry_unknown;
        for (index, mut pending) in std::mem::take(&mut self.in_flight).into_iter().enumerate() {
            pending.in_doubt |= index < unknown;
            if sends_again || !pending.in_doubt {
                again.push(pending);
                continue;
            }
            self.fail_overtaken(&pending);
            let error = pending.unknown_outcome(reason.clone());
            self.done(pending, Err(error));
        }
        self.requeue(again);
        self.trouble(reason);
    }

    fn requeue(&mut self, again: Vec<Pending>) {
        for pending in std::mem::take(&mut self.refused).into_iter().chain(again).rev() {
            self.queue.push_front(pending);
        }
    }

    /// Schedules the next attempt.
    fn trouble(&mut self, reason: String) {
        let wait = self.backoff.next();
        tracing::debug!(server = self.shared.client.server(), reason, "producing again in {wait:?}");
        *self.shared.trouble.lock() = Some(reason);
        self.retry_at = Some(Instant::now() + wait);
    }

    /// Gives up a batch that will not be stored, or whose outcome stays unknown. If it has sequence numbers, they are
    /// missing from now on.
    fn give_up(&mut self, pending: Pending, error: ClientError) {
        if pending.numbered {
            self.sequences.set_gap();
        }
        self.done(pending, Err(error));
    }

    fn done(&mut self, pending: Pending, outcome: Result<u64, ClientError>) {
        if let Err(error) = &outcome
            && self.first_failure.is_none()
        {
            self.first_failure = Some(error.clone());
        }
        self.outstanding.remove(&pending.seq);
        self.shared.release(pending.reserved);
        pending.batch.complete(outcome);
    }

    fn settle_flushes(&mut self) {
        let first = self.outstanding.first().copied().unwrap_or(u64::MAX);
        if self.flushes.iter().all(|(seq, _)| *seq > first) {
            return;
        }
        let outcome = self.first_failure.take().map_or(Ok(()), Err);
        for (_, done) in self.flushes.extract_if(.., |(seq, _)| *seq <= first) {
            let _ = done.send(outcome.clone());
        }
    }
}

impl Drop for Sender {
    /// Completes everything that callers wait for, even if the runtime ends first.
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        for topic in self.shared.topics.read().values() {
            topic.close(&self.shared);
        }
        self.connection = None;
        for pending in std::mem::take(&mut self.in_flight) {
            let error = pending.unknown_outcome("the producer's runtime ended".to_owned());
            self.done(pending, Err(error));
        }
        for pending in self.queue.drain(..).chain(self.refused.drain(..)) {
            let doubt = || pending.unknown_outcome("the producer's runtime ended".to_owned());
            pending.batch.complete(Err(if pending.in_doubt { doubt() } else { CLOSED }));
        }
        self.events.drain(..).for_each(Event::refuse);
        self.shared.outbox.end();
        self.shared.free_units.close();
    }
}

enum Answer {
    Is(v1::ProduceResponse),
    /// The stream ended without an error, with the server's trailers.
    Ended,
    Lost(tonic::Status),
}

async fn next_answer(connection: &mut Option<Connection>) -> Answer {
    let Some(connection) = connection else { return std::future::pending().await };
    match connection.answers.message().await {
        Ok(Some(answer)) => Answer::Is(answer),
        Ok(None) => match connection.answers.trailers().await {
            Ok(Some(_)) => Answer::Ended,
            Ok(None) => Answer::Lost(tonic::Status::unavailable("the stream ended without trailers")),
            Err(status) => Answer::Lost(status),
        },
        Err(status) => Answer::Lost(status),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use millstream_record::{BatchBuilder, Compression};

    use super::super::ProducerSettings;
    use super::super::delivery::Delivery;
    use super::*;
    use crate::client::Client;

    /// A sender that does not run; the tests play the server's answers.
    struct Scripted(Sender);

    impl Scripted {
        fn start(idempotent: bool) -> Self {
            let settings = ProducerSettings { idempotent, retry_backoff_ms: 1, ..Default::default() };
            let client = Client::new("127.0.0.1:1").unwrap();
            let mut sender = Sender::new(Arc::new(Shared::new(client, settings)));
            if idempotent {
                sender.sequences.begin(&v1::ProducerIdentity { producer_id: 7, epoch: 0 }).unwrap();
            }
            Self(sender)
        }

        /// Queues a batch of one record.
        fn queue(&mut self, partition: u32) -> Arc<Batch> {
            let batch = Batch::open("t".into(), partition);
            let mut builder = BatchBuilder::new(Compression::None);
            builder.push(0, None, Some(b"x"), []);
            self.0.enqueue(Sealed { batch: batch.clone(), builder, reserved: 0 });
            batch
        }

        /// Puts a batch of one record in flight.
        fn send(&mut self, partition: u32) -> Arc<Batch> {
            let batch = self.queue(partition);
            let mut pending = self.0.queue.pop_back().unwrap();
            if self.0.shared.settings.idempotent {
                pending.encoded = self.0.sequences.number(&batch, pending.encoded);
                pending.numbered = true;
            }
            self.0.in_flight.push_back(pending);
            batch
        }

        /// Answers that the first batch in flight is stored.
        fn stored(&mut self, base_offset: u64) {
            let partition = self.0.in_flight[0].batch.partition;
            let appended = vec![v1::Appended { partition, base_offset, record_count: 1 }];
            self.0.answered(Answer::Is(v1::ProduceResponse { appended, ..Default::default() }));
        }

        /// Answers that the first batch in flight is refused.
        fn refused(&mut self, code: v1::ErrorCode) {
            let error = Some(v1::Error { code: code as i32, message: "no".to_owned() });
            self.0.answered(Answer::Is(v1::ProduceResponse { error, ..Default::default() }));
        }

        fn partitions_queued(&self) -> Vec<u32> {
            self.0.queue.iter().map(|pending| pending.batch.partition).collect()
        }
    }

    fn outcome(batch: &Arc<Batch>) -> Option<Result<u64, ClientError>> {
        Delivery::new(batch.clone(), 0, 0).outcome().map(|outcome| outcome.map(|at| at.offset))
    }

    #[tokio::test]
    async fn no_more_batches_are_on_their_way_to_a_partition_than_it_remembers() {
        for idempotent in [true, false] {
            let mut sender = Scripted::start(idempotent);
            for sent in 0..IN_FLIGHT_OF_PARTITION_MAX {
                assert!(sender.0.may_send(&Batch::open("t".into(), 0)), "{sent} are on their way");
                sender.send(0);
            }
            assert_eq!(sender.0.may_send(&Batch::open("t".into(), 0)), !idempotent);
            assert!(sender.0.may_send(&Batch::open("t".into(), 1)), "another partition has its own");
            sender.stored(0);
            assert!(sender.0.may_send(&Batch::open("t".into(), 0)), "an answer ends a wait");
        }
        let mut sender = Scripted::start(false);
        let most = sender.0.shared.settings.in_flight_max;
        for partition in 0..most {
            assert!(sender.0.may_send(&Batch::open("t".into(), 0)));
            sender.send(partition as u32);
        }
        assert!(!sender.0.may_send(&Batch::open("t".into(), 0)), "{most} are on their way");
    }

    #[tokio::test]
    async fn what_was_refused_is_not_sent_behind_what_followed_it_and_is_stored() {
        let mut sender = Scripted::start(false);
        let (overtaken, other, later) = (sender.send(0), sender.send(1), sender.send(0));
        let queued = sender.queue(0);
        sender.refused(v1::ErrorCode::TimedOut);
        sender.refused(v1::ErrorCode::TimedOut);
        assert!(outcome(&overtaken).is_none() && sender.0.in_flight.len() == 1);
        sender.stored(40);
        assert!(matches!(outcome(&later), Some(Ok(40))));
        let told = outcome(&overtaken).unwrap().unwrap_err().to_string();
        assert!(told.contains("later records are already stored"), "{told}");
        // The batch of the other partition is sent before the one that was never sent.
        assert_eq!(sender.partitions_queued(), [1, 0]);
        assert!(outcome(&other).is_none() && outcome(&queued).is_none());
        assert!(sender.0.retry_at.is_some());
    }

    #[tokio::test]
    async fn a_numbered_batch_that_waits_is_given_up_once_a_later_one_turns_out_stored() {
        let mut sender = Scripted::start(true);
        let (given_up, earlier, later) = (sender.send(0), sender.send(0), sender.send(0));
        let elsewhere = sender.send(1);
        sender.refused(v1::ErrorCode::InvalidRequest);
        assert!(outcome(&given_up).unwrap().is_err());
        // Its number is missing, so nothing is numbered until the next epoch.
        assert!(sender.0.must_begin());
        let waits = sender.0.in_flight.pop_front().unwrap();
        sender.0.queue.push_back(waits);
        sender.stored(7);
        assert!(matches!(outcome(&later), Some(Ok(7))));
        assert!(outcome(&earlier).unwrap().is_err());
        sender.stored(0);
        assert!(matches!(outcome(&elsewhere), Some(Ok(0))));
        assert!(sender.0.queue.is_empty() && sender.0.outstanding.is_empty());
    }

    #[tokio::test]
    async fn only_a_number_that_was_given_is_missing() {
        let mut sender = Scripted::start(true);
        sender.queue(0);
        let never_sent = sender.0.queue.pop_back().unwrap();
        sender.0.give_up(never_sent, CLOSED);
        assert!(!sender.0.must_begin());
        sender.send(0);
        sender.refused(v1::ErrorCode::TimedOut);
        assert!(!sender.0.must_begin(), "the batch is sent again with its numbers");
    }

    #[tokio::test]
    async fn waits_grow_with_each_failure_and_begin_anew_once_something_is_stored() {
        let mut sender = Scripted::start(true);
        for attempt in 0..3 {
            let batch = sender.send(0);
            sender.refused(v1::ErrorCode::TimedOut);
            assert!(outcome(&batch).is_none(), "attempt {attempt}");
            sender.0.queue.clear();
        }
        assert_eq!(sender.0.backoff.next(), Duration::from_millis(8));
        sender.send(0);
        sender.stored(0);
        assert_eq!(sender.0.backoff.next(), Duration::from_millis(1));
        assert_eq!(*sender.0.shared.trouble.lock(), None);
    }
}
