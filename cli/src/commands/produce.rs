//! `millstream produce`: writes the lines of a file or of stdin to a topic, as records.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::FutureExt;
use millstream_client::{Client, ClientError, Delivery, Producer, ProducerSettings, RecordRef, TopicProducer};
use millstream_record::Compression;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::exit::{self, Interrupted};
use crate::input::{Block, FieldArgs, Input, InputError, Line};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::trouble::Trouble;
use crate::{amount, text};

const EXAMPLES: &str = "\
Examples:
  millstream produce flights --file flights.ndjson --key-field origin --timestamp-field date
  millstream produce flights --file flights.ndjson.gz --compression zstd
  tail -f access.log | millstream produce log-lines --header host=web1
  echo hello | millstream produce greetings --key me --partition 0";

/// Number of blocks of lines to read ahead: while one is sent, the next is read.
const BLOCKS_AHEAD: usize = 2;

/// Maximum number of skipped lines to print individually. All are counted.
const SKIPPED_SHOWN_MAX: u64 = 10;

/// How often to look for failures while waiting for answers.
const SETTLE_INTERVAL: Duration = Duration::from_millis(200);

/// How long to wait for the answers to other records once a record has failed.
const PATIENCE_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Shortest pause for which a timer is used.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Write lines to a topic, one record per line
///
/// If this exits with 0, every record was acknowledged and is on disk exactly once. The command waits for lost
/// connections and restarting servers to come back. The end of a line (LF or CR LF) is not part of the record.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic
    topic: String,
    /// The file to read; a file whose name ends in .gz is decompressed [default: stdin]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    fields: FieldArgs,
    /// The key of all records
    #[arg(long, conflicts_with = "key_field")]
    key: Option<String>,
    /// A header for all records; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// The partition of all records [default: chosen by the key; without a key, all partitions in turn]
    #[arg(long, value_name = "P", value_parser = amount::whole)]
    partition: Option<u32>,
    /// Compression of record batches: none, gzip, snappy, lz4 or zstd
    #[arg(long, value_name = "CODEC", default_value = "none")]
    compression: Compression,
    /// Maximum number of records per second [default: as fast as the server accepts them]
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroU32>)]
    rate: Option<NonZeroU32>,
    /// Count and report lines that are not JSON or lack a field, instead of stopping at the first one
    #[arg(long)]
    skip_invalid: bool,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let header = text.split_once('=').filter(|(name, _)| !name.is_empty());
    header.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "use NAME=VALUE".into())
}

/// Runs `produce`.
pub(crate) async fn run(args: Args, client: &Client) -> anyhow::Result<ExitCode> {
    let input = Input::open(args.file.as_deref(), args.fields.clone())?;
    let producer = client.producer(ProducerSettings { compression: args.compression, ..ProducerSettings::default() });
    let topic = producer.topic(&args.topic).await?;
    let mut interrupt = Interrupt::new()?;
    let mut sending = Sending::new(&args, &input, &producer, topic);
    let blocks = read_ahead(input)?;
    let sent = tokio::select! {
        sent = sending.send(blocks) => sent,
        () = interrupt.wait() => Err(Interrupted("not all lines were sent".into()).into()),
    };
    sending.wait_for_answers(producer.clone(), &mut interrupt).await;
    let sent = sending.finish(sent);
    if sent.is_ok() || sending.stored > 0 {
        sending.summary();
    }
    sent.map(|()| ExitCode::SUCCESS)
}

type Read = Result<Block, InputError>;

/// Reads the input on a thread of its own, because a read of stdin can block forever.
fn read_ahead(mut input: Input) -> anyhow::Result<mpsc::Receiver<Read>> {
    let (blocks, receiver) = mpsc::channel(BLOCKS_AHEAD);
    let read = move || {
        while let Some(block) = input.next_block().transpose() {
            let last = block.is_err();
            if blocks.blocking_send(block).is_err() || last {
                return;
            }
        }
    };
    thread::Builder::new().name("input".into()).spawn(read).context("cannot start a thread")?;
    Ok(receiver)
}

/// A record that was sent and is not answered yet.
struct Waiting {
    line: u64,
    bytes: u64,
    delivery: Delivery,
}

struct Sending<'a> {
    args: &'a Args,
    name: Arc<str>,
    producer: &'a Producer,
    topic: TopicProducer,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
    progress: Progress,
    read_bytes: Arc<std::sync::atomic::AtomicU64>,
    began: Instant,
    taken: u64,
    /// Records that the producer has taken and that are not answered yet.
    waiting: VecDeque<Waiting>,
    stored: u64,
    stored_bytes: u64,
    skipped: u64,
    failed: u64,
    /// Number of failed records that are certainly not stored.
    refused: u64,
    first_failure: Option<(u64, ClientError)>,
    trouble: Trouble,
}

impl<'a> Sending<'a> {
    fn new(args: &'a Args, input: &Input, producer: &'a Producer, topic: TopicProducer) -> Self {
        let progress = match input.size_bytes() {
            Some(size) => Progress::of_bytes(size),
            // On a terminal the user sees the typed lines, so no progress is shown.
            None if std::io::stdin().is_terminal() => Progress::hidden(),
            None => Progress::endless(),
        };
        Self {
            args,
            name: input.name(),
            producer,
            topic,
            headers: args.headers.iter().map(|(name, value)| (name.as_str(), Some(value.as_bytes()))).collect(),
            progress,
            read_bytes: input.read_bytes(),
            began: Instant::now(),
            taken: 0,
            waiting: VecDeque::new(),
            stored: 0,
            stored_bytes: 0,
            skipped: 0,
            failed: 0,
            refused: 0,
            first_failure: None,
            trouble: Trouble::default(),
        }
    }

    /// Sends lines until the end of the input or until the first failure.
    async fn send(&mut self, mut blocks: mpsc::Receiver<Read>) -> anyhow::Result<()> {
        while let Some(block) = blocks.recv().await {
            for line in block? {
                if self.first_failure.is_some() {
                    break;
                }
                match line {
                    Ok(line) => self.send_line(&line).await?,
                    Err(error) if self.args.skip_invalid => self.skip(&error),
                    Err(error) => return Err(anyhow!("{error}\n  use --skip-invalid to skip such lines")),
                }
            }
            self.settle();
            if self.first_failure.is_some() {
                break;
            }
            let records = text::plural(self.stored, "record");
            self.progress.set(self.read_bytes.load(Ordering::Relaxed), records);
        }
        Ok(())
    }

    async fn send_line(&mut self, line: &Line) -> anyhow::Result<()> {
        self.pause().await;
        // Usually the producer has room, and no timer is needed.
        let mut delivery = self.topic.send(self.record(line)).now_or_never();
        while delivery.is_none() && self.first_failure.is_none() {
            delivery = timeout(SETTLE_INTERVAL, self.topic.send(self.record(line))).await.ok();
            self.settle();
        }
        let Some(delivery) = delivery else { return Ok(()) };
        let delivery = delivery.with_context(|| format!("{}:{}", self.name, line.number))?;
        self.taken += 1;
        self.waiting.push_back(Waiting { line: line.number, bytes: line.value.len() as u64, delivery });
        Ok(())
    }

    fn record<'r>(&'r self, line: &'r Line) -> RecordRef<'r> {
        RecordRef {
            partition: self.args.partition,
            key: self.args.key.as_ref().map(String::as_bytes).or(line.key.as_deref()),
            value: Some(&line.value),
            headers: &self.headers,
            timestamp_ms: line.timestamp_ms,
        }
    }

    /// Waits as long as `--rate` requires.
    async fn pause(&self) {
        let Some(rate) = self.args.rate else { return };
        let due = self.began + Duration::from_secs_f64(self.taken as f64 / f64::from(rate.get()));
        if due > Instant::now() + PAUSE_MIN {
            sleep_until(due).await;
        }
    }

    fn skip(&mut self, error: &crate::input::LineError) {
        self.skipped += 1;
        if self.skipped <= SKIPPED_SHOWN_MAX {
            self.progress.aside(|| exit::say(format_args!("skipped {error}")));
        }
    }

    /// Waits for the answers to all sent records, also after a failure. A second Ctrl-C ends the wait.
    async fn wait_for_answers(&mut self, producer: Producer, interrupt: &mut Interrupt) {
        // The error of `close` is ignored: the deliveries report failures, together with their lines.
        let mut closing = pin!(producer.close());
        let mut failed_at = None;
        while failed_at.is_none_or(|at: Instant| at.elapsed() < PATIENCE_AFTER_FAILURE) {
            tokio::select! {
                _ = &mut closing => return,
                () = interrupt.wait() => return,
                () = sleep(SETTLE_INTERVAL) => self.settle(),
            }
            if self.first_failure.is_some() {
                failed_at.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Counts answered records in order, up to the first one that is not answered yet.
    fn settle(&mut self) {
        while let Some(first) = self.waiting.front()
            && let Some(outcome) = first.delivery.outcome()
        {
            let (line, bytes) = (first.line, first.bytes);
            self.count(line, bytes, outcome.err());
            self.waiting.pop_front();
        }
        self.trouble.tell("not stored yet", self.producer.trouble(), &self.progress);
    }

    fn count(&mut self, line: u64, bytes: u64, failure: Option<ClientError>) {
        match failure {
            None => {
                self.stored += 1;
                self.stored_bytes += bytes;
            }
            Some(error) => {
                self.failed += 1;
                self.refused += u64::from(matches!(error, ClientError::Refused { .. } | ClientError::Timeout { .. }));
                self.first_failure.get_or_insert((line, error));
            }
        }
    }

    /// Counts the remaining records, and reports the result.
    fn finish(&mut self, sent: anyhow::Result<()>) -> anyhow::Result<()> {
        let mut unanswered = 0;
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting.delivery.outcome() {
                Some(outcome) => self.count(waiting.line, waiting.bytes, outcome.err()),
                None => unanswered += 1,
            }
        }
        let lacking = text::plural(self.failed + unanswered, "record");
        if let Some((line, error)) = self.first_failure.take() {
            let refused = unanswered == 0 && self.failed == self.refused;
            let fate = if refused { "not stored" } else { "sent without an acknowledgement" };
            exit::say(format_args!("{lacking} {fate}, the first at {}:{line}", self.name));
            return Err(error.into());
        }
        if unanswered > 0 {
            return Err(Interrupted(format!("{lacking} sent without an answer, which may or may not be stored")).into());
        }
        sent
    }

    fn summary(&self) {
        self.progress.end();
        let took = self.began.elapsed();
        let (records, bytes) = (text::plural(self.stored, "record"), text::size(self.stored_bytes));
        let per_second = text::count((self.stored as f64 / took.as_secs_f64().max(1e-9)) as u64);
        let skipped = match self.skipped {
            0 => String::new(),
            lines => format!(", {} skipped", text::plural(lines, "line")),
        };
        let took = text::elapsed(took);
        exit::say(format_args!("stored {records}, {bytes} in {took} ({per_second} records/s){skipped}"));
    }
}
