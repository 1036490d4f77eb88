//! `millstream consume`: records of a topic to stdout.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::pin::pin;
use std::process::ExitCode;

use millstream_api::v1;
use millstream_client::{Client, Consumer, ConsumerSettings, Position, RecordSet};

use crate::exit::Usage;
use crate::interrupt::Interrupt;
use crate::output::{self, Out, OutputArgs, OutputError};
use crate::progress::Progress;
use crate::record::{Part, Printer};
use crate::{position, text};

const EXAMPLES: &str = "\
Examples:
  millstream consume flights --from earliest --max 10
  millstream consume flights --from '2024-05-01 12:00' --until-end --output json > flights.ndjson
  millstream consume flights --group billing --from earliest
  millstream consume flights --print partition,offset,key,value";

/// Read records of a topic, and print one a line
///
/// Without --until-end or --max this goes on until Ctrl-C. As text, a value is printed as it is, and
/// bytes that are no text as \xNN; JSON has everything, and {"base64": …} for such bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic
    topic: String,
    /// Where to begin: earliest, latest, an offset, or a time (the first record at or after it). With
    /// --group: where no offset is committed, earliest or latest
    #[arg(long, value_name = "POSITION", default_value = "latest", value_parser = position::parse)]
    from: Position,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max: Option<NonZeroU64>,
    /// End where the partitions end at the start of this command
    #[arg(long)]
    until_end: bool,
    /// Only this partition; may be given more than once
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u32>,
    /// Join this consumer group, and commit what was printed; with --partition, read and commit for it
    /// without joining
    #[arg(long, value_name = "G")]
    group: Option<String>,
    /// What is printed of a record as text, in this order, with tabs between
    #[arg(long, value_enum, value_name = "PART,…", value_delimiter = ',', default_value = "value")]
    print: Vec<Part>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Does it.
pub(crate) async fn run(args: Args, client: &Client) -> anyhow::Result<ExitCode> {
    let mut consumer = client.consumer(settings(&args)?)?;
    let mut printing = Printing::new(&args);
    match printing.until_end(&mut consumer).await {
        // What was printed of the last set is less than what was handed out.
        Ok(End::Cut) if args.group.is_some() => consumer.commit_offsets(printing.offsets(&consumer)).await?,
        Ok(End::Cut) => {}
        Ok(End::Whole) => consumer.close().await?,
        Err(error) => {
            if !error.is::<OutputError>() {
                // The first error says more than what may follow from it.
                let _ = consumer.close().await;
            }
            return Err(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &Args) -> Result<ConsumerSettings, Usage> {
    if let (Some(group), Position::Offset(_) | Position::TimestampMs(_)) = (&args.group, args.from) {
        let (topic, to) = (&args.topic, position::shown(args.from));
        return Err(Usage(format!(
            "with --group, --from is earliest or latest, for partitions without a committed offset\n  \
             `millstream group reset {group} --topic {topic} --to {to}` sets the group's offsets"
        )));
    }
    Ok(ConsumerSettings {
        partitions: args.partitions.clone(),
        group: args.group.clone(),
        from: args.from,
        until_end: args.until_end,
        client_id: "millstream-consume".into(),
        ..ConsumerSettings::topic(&args.topic)
    })
}

/// How the printing ended.
enum End {
    /// With all printed that the consumer handed out.
    Whole,
    /// At `--max`, within a set.
    Cut,
}

struct Printing<'a> {
    args: &'a Args,
    out: Out,
    printer: Printer,
    progress: Progress,
    /// Records that may still be printed.
    left: u64,
    printed: u64,
    printed_bytes: u64,
    /// The offset after the last printed record, by topic and partition.
    next_offsets: BTreeMap<(String, u32), u64>,
}

impl<'a> Printing<'a> {
    fn new(args: &'a Args) -> Self {
        let progress = if output::to_file() { Progress::endless() } else { Progress::hidden() };
        Self {
            args,
            out: Out::new(),
            printer: Printer::new(args.output.output, args.print.clone()),
            progress,
            left: args.max.map_or(u64::MAX, NonZeroU64::get),
            printed: 0,
            printed_bytes: 0,
            next_offsets: BTreeMap::new(),
        }
    }

    /// Prints until the end, Ctrl-C, or the reader of the output goes away.
    async fn until_end(&mut self, consumer: &mut Consumer) -> anyhow::Result<End> {
        let mut interrupt = Interrupt::new()?;
        let mut interrupted = pin!(interrupt.wait());
        let mut reader_gone = pin!(output::closed());
        loop {
            // Asking for more lets the consumer commit what it handed out: it has to be printed.
            if self.args.group.is_some() {
                self.out.flush()?;
            }
            let ready = tokio::select! {
                biased;
                () = &mut interrupted => None,
                set = consumer.next_batch() => Some(set),
                () = std::future::ready(()) => {
                    self.out.flush()?;
                    tokio::select! {
                        () = &mut interrupted => None,
                        () = &mut reader_gone => None,
                        set = consumer.next_batch() => Some(set),
                    }
                }
            };
            let Some(set) = ready.flatten().transpose()? else { break };
            let whole = self.print(&set)?;
            if self.left == 0 {
                self.out.flush()?;
                return Ok(if whole { End::Whole } else { End::Cut });
            }
        }
        self.out.flush()?;
        Ok(End::Whole)
    }

    /// Whether all of it could be printed.
    fn print(&mut self, set: &RecordSet) -> anyhow::Result<bool> {
        let (topic, partition) = (set.topic(), set.partition());
        let mut next_offset = set.next_offset();
        let mut whole = true;
        for record in set {
            let record = record?;
            if self.left == 0 {
                next_offset = record.offset.unsigned_abs();
                whole = false;
                break;
            }
            self.printer.print(&mut self.out, topic, partition, &record)?;
            self.left -= 1;
            self.printed += 1;
        }
        self.next_offsets.insert((topic.to_owned(), partition), next_offset);
        self.printed_bytes += set.bytes() as u64;
        let (records, bytes) = (text::plural(self.printed, "record"), text::size(self.printed_bytes));
        self.progress.say(format!("{records}, {bytes}"));
        Ok(whole)
    }

    /// What was printed of the partitions that the consumer still has.
    fn offsets(&self, consumer: &Consumer) -> Vec<v1::TopicPartitionOffset> {
        let assigned = consumer.assignment().partitions;
        let offsets = assigned.into_iter().filter_map(|of| {
            let key = (of.topic, of.partition);
            let offset = *self.next_offsets.get(&key)?;
            Some(v1::TopicPartitionOffset { topic: key.0, partition: key.1, offset })
        });
        offsets.collect()
    }
}
