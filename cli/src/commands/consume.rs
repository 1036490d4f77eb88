//! `millstream consume`: prints records of a topic to stdout.

use std::num::NonZeroU64;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use millstream_client::{Client, Consumer, ConsumerSettings, Position};
use tokio::time::sleep;

use crate::exit;
use crate::exit::Usage;
use crate::interrupt::Interrupt;
use crate::output::{self, Out, OutputArgs, OutputError};
use crate::progress::Progress;
use crate::record::{self, Part, Printer};
use crate::trouble::Trouble;
use crate::{amount, position, text};

const EXAMPLES: &str = "\
Examples:
  millstream consume flights --from earliest --max 10
  millstream consume flights --from '2024-05-01 12:00' --until-end --output json > flights.ndjson
  millstream consume flights --group billing --from earliest
  millstream consume flights --print partition,offset,key,value";

/// While no records arrive, the command checks this often for a reason to report.
const LOOK_AT_TROUBLE: Duration = Duration::from_secs(1);

/// Read records of a topic, and print one per line
///
/// Without --until-end or --max this continues until Ctrl-C. In text output, a value is printed unchanged if it is
/// UTF-8; other bytes are printed as \xNN. JSON output has all parts of a record, and {"base64": …} for values that are
/// not UTF-8.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic
    topic: String,
    /// Where to start: earliest, latest, an offset, or a time (the first record at or after it). With --group it
    /// applies to partitions without a committed offset, and is earliest or latest
    #[arg(long, value_name = "POSITION", default_value = "latest", value_parser = position::parse)]
    from: Position,
    /// Stop after this many records
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroU64>)]
    max: Option<NonZeroU64>,
    /// Stop at the log end offsets that the partitions have when this command starts
    #[arg(long)]
    until_end: bool,
    /// Read only this partition; may be given more than once
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u32>,
    /// Join this consumer group, and commit the offsets of printed records; with --partition, read and commit for the
    /// group without joining it
    #[arg(long, value_name = "G")]
    group: Option<String>,
    /// The parts of a record to print as text, in this order, separated by tabs
    #[arg(long, value_enum, value_name = "PART,…", value_delimiter = ',', default_value = "value")]
    print: Vec<Part>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `consume`.
pub(crate) async fn run(args: Args, client: &Client) -> anyhow::Result<ExitCode> {
    let mut consumer = client.consumer(settings(&args)?)?;
    let printed = Printing::new(&args).until_end(&mut consumer).await;
    let fits = printed.as_ref().err().is_none_or(|error| !error.is::<OutputError>());
    // Closing commits the offsets of the records that were handed out, so it is skipped if they could not be printed.
    let closed = if fits { consumer.close().await } else { Ok(()) };
    // The first error is reported, because the error of closing may be a consequence of it.
    printed?;
    closed?;
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &Args) -> Result<ConsumerSettings, Usage> {
    if let (Some(group), Position::Offset(_) | Position::TimestampMs(_)) = (&args.group, args.from) {
        let (topic, to) = (&args.topic, position::shown(args.from));
        return Err(Usage(format!(
            "with --group, --from can only be earliest or latest, for partitions without a committed offset\n  \
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

struct Printing<'a> {
    args: &'a Args,
    out: Out,
    printer: Printer,
    progress: Progress,
    /// Number of records that may still be printed.
    left: u64,
    printed: u64,
    /// Number of records deleted by retention before they were read, as far as it was reported.
    missed: u64,
    /// Number of times that the topic was deleted and created again, as far as it was reported.
    recreated: u64,
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
            missed: 0,
            recreated: 0,
        }
    }

    /// Prints records until the end, until Ctrl-C, or until the reader of the output closes it.
    async fn until_end(&mut self, consumer: &mut Consumer) -> anyhow::Result<()> {
        let mut interrupt = Interrupt::new()?;
        let mut interrupted = pin!(interrupt.wait());
        let mut reader_gone = pin!(output::closed());
        let mut trouble = Trouble::default();
        while self.left > 0 {
            // Asking for more lets the consumer commit what it handed out, so that must be printed first.
            if self.args.group.is_some() {
                self.out.flush()?;
            }
            let going_on = tokio::select! {
                biased;
                () = &mut interrupted => false,
                going_on = self.print_next(consumer) => going_on?,
                // No record is ready: pass the buffered output on to its reader before waiting.
                () = std::future::ready(()) => {
                    self.out.flush()?;
                    tokio::select! {
                        () = &mut interrupted => false,
                        () = &mut reader_gone => false,
                        () = sleep(LOOK_AT_TROUBLE) => true,
                        going_on = self.print_next(consumer) => going_on?,
                    }
                }
            };
            if !going_on {
                break;
            }
            trouble.tell("no records arrive", consumer.trouble(), &self.progress);
            self.tell_missed(consumer.missed_records());
            self.tell_recreated(consumer.recreated_topics());
            self.progress.say(text::plural(self.printed, "record"));
        }
        Ok(self.out.flush()?)
    }

    /// Prints the next records. Returns false at the end. Cancel-safe, because it waits only before it takes records.
    async fn print_next(&mut self, consumer: &mut Consumer) -> anyhow::Result<bool> {
        if self.args.group.is_some() && self.args.max.is_some() {
            // Records that are handed out get committed, so take no more than are printed.
            let Some(record) = consumer.next().await.transpose()? else { return Ok(false) };
            self.printer.print(&mut self.out, &record::owned(&record))?;
            self.count();
            return Ok(true);
        }
        let Some(set) = consumer.next_batch().await.transpose()? else { return Ok(false) };
        for view in &set {
            if self.left == 0 {
                break;
            }
            self.printer.print(&mut self.out, &record::in_place(set.topic(), set.partition(), &view?))?;
            self.count();
        }
        Ok(true)
    }

    /// Reports newly missed records; `records` is the total number missed so far.
    fn tell_missed(&mut self, records: u64) {
        let more = records - std::mem::replace(&mut self.missed, records);
        if more > 0 {
            let more = text::plural(more, "record");
            self.progress.aside(|| exit::say(format_args!("retention deleted {more} before this group read them")));
        }
    }

    fn tell_recreated(&mut self, times: u64) {
        if std::mem::replace(&mut self.recreated, times) < times {
            let topic = &self.args.topic;
            let told = format_args!("topic {topic} was deleted and created again: reading it from its first record");
            self.progress.aside(|| exit::say(told));
        }
    }

    fn count(&mut self) {
        self.left -= 1;
        self.printed += 1;
    }
}
