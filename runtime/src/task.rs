//! A task: one pipeline on one source partition. It reads, runs the stages and commits. The next batch is read and run
//! while the commit of the previous one is written to disk.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_broker::{Offset, TopicPartition};
use millstream_record::{BatchError, Columns, Limits, RecordBatch, split_batches};
use tokio::sync::watch;

use crate::deploy::{LoadedSubtopology, Stage};
use crate::encode::{OutputTopic, encode};
use crate::failure::{DeadLetterOrigin, FailurePolicy, dead_letters};
use crate::host::StageKind;
use crate::log::{Log, LogError, ReadBatches, Step};
use crate::pool::{Guests, WorkerPool};
use crate::stage::{Outcome, StageError, aggregate, filter, map};
use crate::state::TaskState;

/// Size of the record batches in one step, in bytes: 10,000 records of 100 bytes. With larger steps, the cost per
/// record of a call and a commit falls no further.
const STEP_BYTES: usize = 1 << 20;

/// Decoded bytes from which a step takes no further batch, because compressed batches grow when they are decoded. This
/// is eight times the size of a read, the best compression that logs reach.
const DECODED_BYTES_MAX: usize = 8 << 20;

/// Maximum number of steps in flight to the disk, so that one is waiting while another is written.
const IN_FLIGHT_MAX: usize = 3;

/// Time after which a step that the log had no space for is retried. Freeing space takes longer than this.
const NO_ROOM_RETRY: Duration = Duration::from_secs(1);

/// The parts of a task.
#[derive(Debug)]
pub struct Task<L> {
    /// The log to read from and to commit to.
    pub log: L,
    /// The stages.
    pub subtopology: Arc<LoadedSubtopology>,
    /// The source partition.
    pub source: TopicPartition,
    /// The worker threads on which the stages run.
    pub pool: Arc<WorkerPool>,
    /// Limits for decoding batches.
    pub limits: Limits,
    /// Becomes true when the task must end, at a commit.
    pub stop: watch::Receiver<bool>,
}

/// The reason why a task ended by itself. It continues at `offset` when it is started again.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// The source partition.
    pub source: TopicPartition,
    /// The offset of the record before which the task stopped.
    pub offset: Offset,
    /// The stage that failed, if one did.
    pub stage: Option<Arc<str>>,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, offset, stage, reason } = self;
        if let Some(stage) = stage {
            write!(f, "stage {stage}, ")?;
        }
        write!(f, "topic {}, partition {}, offset {offset}: {reason}", source.topic, source.partition)
    }
}

impl<L: Log> Task<L> {
    /// Runs until the task is told to stop, or cannot continue.
    ///
    /// # Errors
    /// [`Stopped`] if the pipeline must stop and report the reason. All steps before it are committed.
    pub async fn run(self) -> Result<(), Stopped> {
        let mut stop = self.stop.clone();
        loop {
            match self.pass().await {
                Ok(()) => return Ok(()),
                Err(Ended::Stopped(stopped)) => return Err(stopped),
                // The next pass continues from the last commit.
                Err(Ended::NoRoom(reason)) => {
                    tracing::warn!(pipeline = &*self.subtopology.pipeline, source = %self.source, reason, "a task is waiting for disk space");
                }
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                () = tokio::time::sleep(NO_ROOM_RETRY) => {}
            }
        }
    }

    async fn pass(&self) -> Result<(), Ended> {
        let mut at = self.log.committed(&self.source).map_err(|error| self.stopped(None, Offset::ZERO, error))?;
        let mut states = self.states();
        let mut stop = self.stop.clone();
        let mut in_flight = InFlight::default();
        for number in 0u64.. {
            let from = at.unwrap_or(Offset::ZERO);
            let read = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                read = self.read(from, &mut in_flight, &mut states) => read,
            };
            let Some(batches) = self.going_on(from, read)? else { break };

            let running = self.run_stages(number, from, batches, std::mem::take(&mut states));
            let Some((back, ran)) = running.await else { break };
            states = back;
            let ran = ran.map_err(|error| self.stopped(None, from, error))?;

            if ran.next > from {
                let step = Step {
                    source: self.source.clone(),
                    from: at,
                    next: ran.next,
                    outputs: ran.outputs,
                    state: ran.state,
                };
                in_flight.wait_for_slot(&mut states).await.map_or_else(|error| self.ended(from, error), Ok)?;
                let queued = self.log.commit(step).await;
                let Some(receipt) = self.going_on(from, queued)? else { break };
                in_flight.push(number, receipt);
                at = Some(ran.next);
            }
            if let Some(stopped) = ran.stopped {
                in_flight.wait_for_all(&mut states).await.map_or_else(|error| self.ended(from, error), Ok)?;
                return Err(stopped.into());
            }
        }
        let from = at.unwrap_or(Offset::ZERO);
        in_flight.wait_for_all(&mut states).await.map_or_else(|error| self.ended(from, error), Ok)
    }

    /// Reads the next batches. Commits that complete meanwhile are recorded.
    async fn read(
        &self,
        from: Offset,
        in_flight: &mut InFlight<L::Receipt>,
        states: &mut States,
    ) -> Result<ReadBatches, LogError> {
        while let Some(oldest) = in_flight.oldest() {
            tokio::select! {
                biased;
                done = oldest => in_flight.done(done, states)?,
                read = self.log.read(&self.source, from, STEP_BYTES) => return read,
            }
        }
        self.log.read(&self.source, from, STEP_BYTES).await
    }

    /// Runs the stages on a worker. Returns `None` if the pool stops.
    async fn run_stages(
        &self,
        number: u64,
        from: Offset,
        batches: ReadBatches,
        mut states: States,
    ) -> Option<(States, Result<Ran, String>)> {
        let (subtopology, source, limits) = (self.subtopology.clone(), self.source.clone(), self.limits);
        let job = move |guests: &mut Guests| {
            let ran = Run { subtopology: &subtopology, source: &source, number, guests, states: &mut states }
                .batches(from, batches, &limits);
            (states, ran)
        };
        self.pool.run(job).await
    }

    fn states(&self) -> States {
        let stages = self.subtopology.stages.iter();
        let state = |stage: &Arc<Stage>| {
            (stage.kind() == StageKind::Aggregate).then(|| {
                let committed = self.log.accumulators(stage.store(), self.source.partition);
                TaskState::new(stage.store().clone(), self.source.partition, committed)
            })
        };
        stages.map(state).collect()
    }

    /// Returns `None` if the task ends without a failure of its own.
    fn going_on<T>(&self, at: Offset, result: Result<T, LogError>) -> Result<Option<T>, Ended> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.ended(at, error).map(|()| None),
        }
    }

    fn ended(&self, at: Offset, error: LogError) -> Result<(), Ended> {
        match error {
            LogError::Fenced(why) => {
                tracing::debug!(pipeline = &*self.subtopology.pipeline, source = %self.source, why, "a task was replaced");
                Ok(())
            }
            LogError::ShuttingDown => Ok(()),
            LogError::NoRoom(reason) => Err(Ended::NoRoom(reason)),
            LogError::Failed(reason) => Err(self.stopped(None, at, reason).into()),
        }
    }

    fn stopped(&self, stage: Option<Arc<str>>, offset: Offset, reason: impl fmt::Display) -> Stopped {
        Stopped { source: self.source.clone(), offset, stage, reason: reason.to_string() }
    }
}

/// The reason why a pass ends early.
enum Ended {
    Stopped(Stopped),
    /// The log has no space at the moment.
    NoRoom(String),
}

impl From<Stopped> for Ended {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

/// The state of each stage; `None` for stages without state.
type States = Vec<Option<TaskState>>;

/// Steps that are queued and not yet answered, oldest first.
struct InFlight<R>(VecDeque<(u64, R)>);

impl<R> Default for InFlight<R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<R: Future<Output = Result<(), LogError>> + Unpin> InFlight<R> {
    fn push(&mut self, number: u64, receipt: R) {
        self.0.push_back((number, receipt));
    }

    /// Returns the receipt of the oldest step. A receipt that has resolved is not polled again, because `done` removes
    /// it.
    fn oldest(&mut self) -> Option<&mut R> {
        self.0.front_mut().map(|(_, receipt)| receipt)
    }

    fn done(&mut self, answer: Result<(), LogError>, states: &mut States) -> Result<(), LogError> {
        if let Some((number, _)) = self.0.pop_front() {
            answer?;
            states.iter_mut().flatten().for_each(|state| state.committed_up_to(number));
        }
        Ok(())
    }

    async fn wait_for_slot(&mut self, states: &mut States) -> Result<(), LogError> {
        while self.0.len() >= IN_FLIGHT_MAX {
            let Some(oldest) = self.oldest() else { break };
            let answer = oldest.await;
            self.done(answer, states)?;
        }
        Ok(())
    }

    async fn wait_for_all(&mut self, states: &mut States) -> Result<(), LogError> {
        while let Some(oldest) = self.oldest() {
            let answer = oldest.await;
            self.done(answer, states)?;
        }
        Ok(())
    }
}

/// The result of running the stages on a batch.
#[derive(Debug)]
struct Ran {
    next: Offset,
    outputs: Vec<(TopicPartition, Vec<RecordBatch>)>,
    state: Vec<millstream_broker::store::StateChange>,
    /// Set if the stages cannot continue after `next`.
    stopped: Option<Stopped>,
}

/// Decodes the records of the batches that are in `range`, but not more batches than one step takes. Returns the
/// records and the offset after them.
fn decode(runs: &[Bytes], range: Range<Offset>, limits: &Limits) -> Result<(Columns, Offset), BatchError> {
    let mut columns = Columns::default();
    let mut next = range.end;
    for batch in runs.iter().flat_map(|run| split_batches(run.clone())) {
        let batch = batch?;
        columns.append_batch(&batch, range.start.get(), limits)?;
        if columns.bytes() >= DECODED_BYTES_MAX {
            next = next.min(Offset::new(batch.next_offset()).unwrap_or(next));
            break;
        }
    }
    let end = columns.offsets.partition_point(|offset| *offset < next.get());
    Ok((if end < columns.len() { columns.slice(0..end) } else { columns }, next))
}

/// One step on a worker thread.
struct Run<'a> {
    subtopology: &'a Arc<LoadedSubtopology>,
    source: &'a TopicPartition,
    number: u64,
    guests: &'a mut Guests,
    states: &'a mut States,
}

impl Run<'_> {
    /// Decodes the batches, runs the stages and encodes their output. If the pipeline must stop at a record, the step
    /// ends before it, and the records before it are processed and committed.
    fn batches(mut self, from: Offset, batches: ReadBatches, limits: &Limits) -> Result<Ran, String> {
        let mut next = batches.next;
        let mut stopped = None;
        loop {
            let decoded = decode(&batches.runs, from..next, limits);
            let (input, decoded_to) = decoded.map_err(|error| format!("the log is damaged: {error}"))?;
            next = decoded_to;
            let mut ran = Ran { next, outputs: Vec::new(), state: Vec::new(), stopped: stopped.take() };
            match self.stages(input, &mut ran) {
                Ok(()) => return Ok(ran),
                Err(stop) => {
                    self.states.iter_mut().flatten().for_each(|state| state.take_back(self.number));
                    if stop.offset <= from {
                        return Ok(Ran { next: from, outputs: Vec::new(), state: Vec::new(), stopped: Some(stop) });
                    }
                    next = stop.offset;
                    stopped = Some(stop);
                }
            }
        }
    }

    fn stages(&mut self, input: Columns, ran: &mut Ran) -> Result<(), Stopped> {
        let first = input.offsets.first().copied();
        let mut columns = input;
        let subtopology = self.subtopology.clone();
        for (index, stage) in subtopology.stages.iter().enumerate() {
            let outcome = self
                .stage(index, stage, columns, ran)
                .map_err(|error| self.stopped(Some(stage), first.unwrap_or_default(), error.to_string()))?;
            self.failures(stage, &outcome, ran)?;
            columns = outcome.output;
            if let Some(topic) = &stage.settings().to {
                self.write(&columns, topic, ran)?;
            }
        }
        subtopology.sinks.iter().try_for_each(|topic| self.write(&columns, topic, ran))
    }

    fn stage(
        &mut self,
        index: usize,
        stage: &Arc<Stage>,
        input: Columns,
        ran: &mut Ran,
    ) -> Result<Outcome, StageError> {
        if input.is_empty() {
            return Ok(Outcome::default());
        }
        let (metrics, records_in, begun) = (stage.metrics(), input.len() as u64, Instant::now());
        let guest = self.guests.of(stage);
        guest.set_partition(&self.source.to_string());
        let outcome = match (stage.kind(), &mut self.states[index]) {
            (StageKind::Filter, _) => filter::run(guest, input)?,
            (StageKind::Map, _) => map::run(guest, input)?,
            (StageKind::Aggregate, Some(state)) => {
                let hasher = state.hasher().clone();
                let made = aggregate::run(guest, &input, state, &hasher)?;
                ran.state.push(state.change(self.number, made.groups, &made.before, made.accumulators));
                made.outcome
            }
            (StageKind::Aggregate, None) => unreachable!("every aggregate has a state"),
        };
        metrics.calls.inc();
        metrics.records_in.inc_by(records_in);
        metrics.records_out.inc_by(outcome.output.len() as u64);
        metrics.failures.inc_by(outcome.failures.len() as u64);
        metrics.seconds.observe(begun.elapsed().as_secs_f64());
        metrics.guest_memory.set(i64::try_from(guest.memory_bytes()).unwrap_or(i64::MAX));
        Ok(outcome)
    }

    /// Handles failed records according to the pipeline file.
    fn failures(&mut self, stage: &Stage, outcome: &Outcome, ran: &mut Ran) -> Result<(), Stopped> {
        let Some(failure) = outcome.failures.first() else { return Ok(()) };
        match stage.settings().on_failure {
            FailurePolicy::Skip => Ok(()),
            FailurePolicy::Stop => {
                let offset = outcome.failed.offsets.first().copied().unwrap_or_default();
                Err(self.stopped(Some(stage), offset, failure.reason.clone()))
            }
            FailurePolicy::DeadLetter => {
                let Some(topic) = &self.subtopology.dead_letters else {
                    unreachable!("a pipeline with dead letters has a topic for them")
                };
                let origin = DeadLetterOrigin {
                    pipeline: &self.subtopology.pipeline,
                    stage: stage.name(),
                    module: &stage.settings().module.hash(),
                    topic: self.source.topic.as_str(),
                    partition: self.source.partition,
                };
                let letters = dead_letters(&outcome.failed, &outcome.failures, &origin);
                self.write(&letters, topic, ran)
            }
        }
    }

    fn write(&self, columns: &Columns, topic: &OutputTopic, ran: &mut Ran) -> Result<(), Stopped> {
        let encoded = encode(columns, topic, self.source.partition);
        ran.outputs.extend(encoded.map_err(|error| self.stopped(None, error.offset(), error.to_string()))?);
        Ok(())
    }

    fn stopped(&self, stage: Option<&Stage>, offset: i64, reason: String) -> Stopped {
        Stopped {
            source: self.source.clone(),
            offset: Offset::new(offset).unwrap_or_default(),
            stage: stage.map(|stage| stage.name().clone()),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::poll;
    use tokio::sync::oneshot;

    use super::*;

    type Answer = oneshot::Sender<Result<(), LogError>>;
    type Receipt = Pin<Box<dyn Future<Output = Result<(), LogError>>>>;

    /// A step in flight, and the sender that answers it.
    fn step() -> (Answer, Receipt) {
        let (answer, answered) = oneshot::channel();
        (answer, Box::pin(async { answered.await.expect("the test answers") }))
    }

    #[tokio::test]
    async fn a_step_waits_only_while_as_many_as_may_be_are_on_their_way() {
        let mut in_flight = InFlight::default();
        let mut states = States::new();
        let mut answers = VecDeque::new();
        for number in 0..IN_FLIGHT_MAX as u64 {
            assert!(poll!(std::pin::pin!(in_flight.wait_for_slot(&mut states))).is_ready(), "step {number}");
            let (answer, receipt) = step();
            answers.push_back(answer);
            in_flight.push(number, receipt);
        }
        {
            let mut waiting = std::pin::pin!(in_flight.wait_for_slot(&mut states));
            assert!(poll!(&mut waiting).is_pending());
            answers.pop_front().unwrap().send(Ok(())).unwrap();
            assert!(matches!(poll!(&mut waiting), std::task::Poll::Ready(Ok(()))));
        }
        let mut all = std::pin::pin!(in_flight.wait_for_all(&mut states));
        assert!(poll!(&mut all).is_pending());
        answers.pop_front().unwrap().send(Err(LogError::ShuttingDown)).unwrap();
        assert!(matches!(poll!(&mut all), std::task::Poll::Ready(Err(LogError::ShuttingDown))));
    }
}
