//! Every failure policy with every kind of failure in every kind of stage: the outputs, the failed records, the state
//! of an aggregate, the position of the pipeline, and where it continues.
//!
//! A model that knows nothing of batches and of splitting them computes the expected results.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_broker::Offset;
use millstream_record::{BatchBuilder, Compression, Record};
use millstream_runtime::host::ModuleHash;
use millstream_runtime::runtime::{Pipeline, RunState};
use millstream_tests::guest;
use millstream_tests::instance::{Instance, wait_until};

/// Low limits. A flood exceeds this one including its slack, but remains far below the memory limit.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
const MEMORY_BYTES_MAX: usize = 16 << 20;

/// Long enough for a call that returns on a busy machine, but short, because a search waits for it often.
const SPIN_DEADLINE_MS: u64 = 250;

/// The deadline for calls that do not spin, which is far longer than any call takes.
const DEADLINE_MS: u64 = 60_000;

const NO_KEY: &str =
    "an aggregate needs a key, and the record has none: add one with an earlier map, or produce it with a key";

/// The function of a module that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Filter,
    Map,
    Add,
    Finish,
}

impl Place {
    fn kind(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Map => "map",
            Self::Add | Self::Finish => "aggregate",
        }
    }

    fn module(self) -> String {
        format!("misdeeds-{}", self.kind())
    }

    /// Returns the name of the function in a record's value.
    fn function(self) -> &'static str {
        match self {
            Self::Filter | Self::Map => "run",
            Self::Add => "add",
            Self::Finish => "finish",
        }
    }

    /// Returns the reason for a stage that receives one result too few or too many.
    fn miscount(self) -> &'static str {
        match self {
            Self::Filter => "the module returned 2 verdicts for 1 records",
            Self::Map | Self::Finish => "the module returned 2 values, expected 1",
            Self::Add => "the module returned 2 accumulators, expected 1",
        }
    }
}

/// The kinds of failures of the modules.
const KINDS: [&str; 6] = ["fails", "traps", "spins", "eats", "floods", "miscounts"];

fn reason(place: Place, kind: &str) -> String {
    match kind {
        "fails" if place == Place::Finish => "finish: this record is refused".to_owned(),
        "fails" => "this record is refused".to_owned(),
        "traps" => "the module trapped: this record is a trap".to_owned(),
        "spins" => format!("the module did not return within {SPIN_DEADLINE_MS} ms (call-deadline-ms)"),
        "eats" => format!("the module needs more than {MEMORY_BYTES_MAX} bytes of memory (memory-bytes-max)"),
        "floods" => format!("the module returned more than {OUTPUT_BYTES_MAX} bytes at once (output-bytes-max)"),
        "miscounts" => place.miscount().to_owned(),
        _ => panic!("{kind} is not a kind of failure"),
    }
}

/// A record of the source or of an output, without its offset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    key: Option<String>,
    value: Option<String>,
    timestamp_ms: i64,
    headers: Vec<(String, Option<String>)>,
}

impl From<&Record> for Row {
    fn from(record: &Record) -> Self {
        let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            key: record.key.as_ref().map(text),
            value: record.value.as_ref().map(text),
            timestamp_ms: record.timestamp_ms,
            headers: record.headers.iter().map(|h| (h.name.clone(), h.value.as_ref().map(text))).collect(),
        }
    }
}

/// Builds a source record with its own headers.
fn row(key: Option<&str>, value: &str, timestamp_ms: i64) -> Row {
    let headers = vec![("of".to_owned(), Some(value.to_owned())), ("null".to_owned(), None)];
    Row { key: key.map(str::to_owned), value: Some(value.to_owned()), timestamp_ms, headers }
}

/// The values of each key, for keys that have any.
type State = BTreeMap<String, String>;

/// Returns the output of a stage for records on which it does not fail. The records form one step.
fn stage(place: Place, records: &[Row], state: &mut State) -> Vec<Row> {
    let value = |row: &Row| row.value.clone().unwrap();
    match place {
        Place::Filter => records.iter().filter(|row| !value(row).starts_with("drop")).cloned().collect(),
        Place::Map => {
            let copies = |row: &Row| match value(row) {
                value if value.starts_with("drop") => 0,
                value if value.starts_with("double") => 2,
                _ => 1,
            };
            let put = |row: &Row| Row { value: Some(format!("{}!", value(row))), ..row.clone() };
            records.iter().flat_map(|row| std::iter::repeat_n(put(row), copies(row))).collect()
        }
        Place::Add | Place::Finish => {
            let mut updates: Vec<Row> = Vec::new();
            for row in records {
                let key = row.key.clone().expect("keyless records are never folded");
                let folded = match (state.remove(&key), value(row).as_str()) {
                    (_, "forget") => None,
                    (None, value) => Some(value.to_owned()),
                    (Some(before), value) => Some(format!("{before},{value}")),
                };
                if let Some(folded) = &folded {
                    state.insert(key.clone(), folded.clone());
                }
                let update = Row {
                    key: Some(key),
                    value: folded.map(|folded| format!("[{folded}]")),
                    timestamp_ms: row.timestamp_ms,
                    headers: Vec::new(),
                };
                match updates.iter_mut().find(|of| of.key == update.key) {
                    Some(of) => *of = Row { timestamp_ms: of.timestamp_ms.max(update.timestamp_ms), ..update },
                    None => updates.push(update),
                }
            }
            updates
        }
    }
}

/// A pipeline of one stage, and its expected results.
struct Cell<'i> {
    instance: &'i Instance,
    place: Place,
    name: String,
    policy: &'static str,
    deadline_ms: u64,
    /// The records that were produced so far.
    source: Vec<Row>,
    /// The expected outputs.
    out: Vec<Row>,
    /// The expected dead letters.
    letters: Vec<Row>,
    state: State,
}

impl<'i> Cell<'i> {
    async fn new(instance: &'i Instance, place: Place, name: &str, policy: &'static str, deadline_ms: u64) -> Self {
        let cell = Self {
            instance,
            place,
            name: name.to_owned(),
            policy,
            deadline_ms,
            source: Vec::new(),
            out: Vec::new(),
            letters: Vec::new(),
            state: State::new(),
        };
        instance.topic(&cell.topic("in"), 1).await;
        cell
    }

    fn topic(&self, which: &str) -> String {
        format!("{}-{which}", self.name)
    }

    /// Creates the pipeline, or another version of it.
    async fn apply(&self, harmless: bool) {
        let Self { name, policy, place, deadline_ms, .. } = self;
        let (kind, module) = (place.kind(), place.module());
        let with = if harmless { "  with: { harmless: true }\n" } else { "" };
        let limits = format!(
            "call-deadline-ms: {deadline_ms}, memory-bytes-max: {MEMORY_BYTES_MAX}, output-bytes-max: {OUTPUT_BYTES_MAX}"
        );
        self.instance
            .apply(&format!(
                "pipeline: {name}\nfrom: {name}-in\nstages:\n- {kind}: {module}\n  name: stage\n{with}  on-failure: \
                 {policy}\n  limits: {{ {limits} }}\nto: {name}-out\n"
            ))
            .await;
    }

    /// Produces records in one batch, so that they form one step.
    async fn produce(&mut self, rows: &[Row]) {
        let mut builder = BatchBuilder::new(Compression::None);
        for row in rows {
            let bytes = |text: &'_ Option<String>| text.clone().map(String::into_bytes);
            let (key, value) = (bytes(&row.key), bytes(&row.value));
            let headers = row.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref().map(str::as_bytes)));
            builder.push(row.timestamp_ms, key.as_deref(), value.as_deref(), headers);
        }
        let topic = self.instance.broker.topic(&self.topic("in")).unwrap();
        let batch = builder.finish().unwrap();
        let receipt = self.instance.broker.produce(&topic, topic.partition(0).unwrap(), vec![batch]).await.unwrap();
        receipt.await.unwrap();
        self.source.extend_from_slice(rows);
    }

    /// Adds the expected results of records that the stage handled without failing.
    fn handled(&mut self, rows: &[Row]) {
        self.out.extend(stage(self.place, rows, &mut self.state));
    }

    /// Adds the record at `offset` to the expected dead letters.
    fn is_dead_letter(&mut self, offset: usize, reason: &str) {
        let mut letter = self.source[offset].clone();
        let said = [
            ("millstream.pipeline", self.name.clone()),
            ("millstream.stage", "stage".to_owned()),
            ("millstream.module", ModuleHash::of(&guest(&self.place.module())).to_string()),
            ("millstream.topic", self.topic("in")),
            ("millstream.partition", "0".to_owned()),
            ("millstream.offset", offset.to_string()),
            ("millstream.reason", reason.to_owned()),
        ];
        letter.headers.extend(said.map(|(name, value)| (name.to_owned(), Some(value))));
        self.letters.push(letter);
    }

    fn pipeline(&self) -> Arc<Pipeline> {
        self.instance.runtime.pipeline(&self.name).unwrap()
    }

    fn committed(&self) -> Option<Offset> {
        let topic = self.instance.broker.topic(&self.topic("in")).unwrap();
        self.pipeline().group().committed(topic.id(), 0)
    }

    async fn rows(&self, topic: &str) -> Vec<Row> {
        self.instance.all_records(topic).await.iter().map(Row::from).collect()
    }

    /// Asserts that the outputs, the dead letters, the state and the committed offset are as expected.
    async fn holds(&self, committed: usize) {
        assert_eq!(self.committed(), Offset::new(committed as i64), "{}: committed", self.name);
        assert_eq!(self.rows(&self.topic("out")).await, self.out, "{}: outputs", self.name);
        let dead_letters = format!("{}.dead-letters", self.name);
        if self.policy == "dead-letter" {
            assert_eq!(self.rows(&dead_letters).await, self.letters, "{}: dead letters", self.name);
        } else {
            assert!(
                self.instance.broker.topic(&dead_letters).is_err(),
                "{}: this policy must not create a topic of dead letters",
                self.name
            );
        }
        let state = self.instance.broker.state().partition(&format!("{}/stage", self.name), 0);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let found = state.scan(b"", usize::MAX).unwrap().into_iter().map(|(key, kept)| (text(key), text(kept)));
        let (found, expected) = (found.collect::<State>(), &self.state);
        match self.place {
            Place::Filter | Place::Map => assert!(found.is_empty(), "{}: {found:?}", self.name),
            Place::Add | Place::Finish => {
                assert_eq!(&found, expected, "{}: state", self.name);
                assert_eq!(state.len(), expected.len(), "{}: the number of keys", self.name);
            }
        }
    }

    async fn goes_on(&self, committed: usize) {
        self.instance.caught_up().await;
        assert_eq!(self.pipeline().state(), RunState::Running, "{}", self.name);
        self.holds(committed).await;
    }

    async fn stopped(&self, offset: usize, reason: &str) {
        let pipeline = self.pipeline();
        let done =
            || pipeline.state() != RunState::Running || self.committed() == Offset::new(self.source.len() as i64);
        wait_until("the pipeline stops", done).await;
        let topic = self.topic("in");
        let words = format!("stage stage, topic {topic}, partition 0, offset {offset}: {reason}");
        assert_eq!(pipeline.state(), RunState::Stopped(words));
        self.holds(offset).await;
    }
}

/// Returns the records that are produced before any failure.
fn before() -> Vec<Row> {
    vec![row(Some("a"), "a1", 10), row(Some("b"), "b1", 20), row(Some("c"), "c1", 15)]
}

/// Returns records of which two fail: one between others of the same key, and one that is the only one of its key. Both
/// have the largest timestamps. Also returns the positions of these two.
fn batch_with(bad: &str) -> (Vec<Row>, [usize; 2]) {
    let rows = vec![
        row(Some("a"), "double a2", 50),
        row(Some("b"), "b2", 40),
        row(Some("c"), "forget", 45),
        row(Some("a"), bad, 900),
        row(Some("a"), "a3", 30),
        row(Some("c"), "c2", 35),
        row(Some("b"), "drop b3", 60),
        row(Some("d"), "d1", 25),
        row(Some("e"), bad, 901),
        row(Some("d"), "double d2", 20),
        row(Some("b"), "forget", 10),
    ];
    let bad = [3, 8];
    (rows, bad)
}

fn after() -> Vec<Row> {
    vec![row(Some("a"), "a4", 70), row(Some("e"), "e1", 75), row(Some("d"), "double d3", 5), row(Some("b"), "b4", 6)]
}

fn deadline(kind: &str) -> u64 {
    if kind == "spins" { SPIN_DEADLINE_MS } else { DEADLINE_MS }
}

async fn open(place: Place) -> (Instance, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    instance.push(&place.module()).await;
    (instance, data)
}

/// Checks that with the policies `skip` and `dead-letter`, only the failed records are missing.
async fn costs_only_its_records(place: Place, policy: &'static str) {
    let (instance, _data) = open(place).await;
    for kind in KINDS {
        let mut cell = Cell::new(&instance, place, kind, policy, deadline(kind)).await;
        cell.produce(&before()).await;
        cell.apply(false).await;
        cell.handled(&before());
        cell.goes_on(before().len()).await;

        let (rows, bad) = batch_with(&format!("{} {kind}", place.function()));
        cell.produce(&rows).await;
        let good = rows.iter().enumerate().filter(|(index, _)| !bad.contains(index)).map(|(_, row)| row.clone());
        cell.handled(&good.collect::<Vec<_>>());
        bad.iter().for_each(|index| cell.is_dead_letter(before().len() + index, &reason(place, kind)));
        cell.goes_on(before().len() + rows.len()).await;

        cell.produce(&after()).await;
        cell.handled(&after());
        cell.goes_on(before().len() + rows.len() + after().len()).await;
    }
    instance.stop().await;
}

/// Checks that with the policy `stop`, everything before the failed record is processed and nothing after it, even if
/// the pipeline is resumed, until the module is repaired.
async fn stops_before_its_record(place: Place) {
    let (instance, _data) = open(place).await;
    for kind in KINDS {
        let mut cell = Cell::new(&instance, place, kind, "stop", deadline(kind)).await;
        cell.produce(&before()).await;
        cell.apply(false).await;
        cell.handled(&before());
        cell.goes_on(before().len()).await;

        let (rows, [bad, _]) = batch_with(&format!("{} {kind}", place.function()));
        cell.produce(&rows).await;
        cell.handled(&rows[..bad]);
        cell.stopped(before().len() + bad, &reason(place, kind)).await;
        instance.runtime.resume(kind).await.unwrap();
        cell.stopped(before().len() + bad, &reason(place, kind)).await;

        cell.apply(true).await;
        cell.handled(&rows[bad..]);
        cell.goes_on(before().len() + rows.len()).await;
        cell.produce(&after()).await;
        cell.handled(&after());
        cell.goes_on(before().len() + rows.len() + after().len()).await;
    }
    instance.stop().await;
}

macro_rules! for_each_place {
    ($($module:ident: $place:ident),*) => {$(
        mod $module {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn skip_leaves_out_the_failed_records_alone() {
                costs_only_its_records(Place::$place, "skip").await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn dead_letters_are_the_failed_records_alone() {
                costs_only_its_records(Place::$place, "dead-letter").await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn stop_ends_before_the_failed_record_and_goes_on_there() {
                stops_before_its_record(Place::$place).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn each_record_of_a_batch_fails_for_its_own_reason() {
                fail_for_their_own_reasons(Place::$place).await;
            }
        }
    )*};
}

for_each_place!(a_filter: Filter, a_map: Map, an_aggregates_add: Add, an_aggregates_finish: Finish);

/// Checks that if the module returns a failure for a record that shares a split batch with a record on which the whole
/// call fails, the failure is neither lost nor reported twice.
async fn fail_for_their_own_reasons(place: Place) {
    let (instance, _data) = open(place).await;
    let mut cell = Cell::new(&instance, place, "mixed", "dead-letter", DEADLINE_MS).await;
    let kinds = ["fails", "traps", "fails", "floods", "miscounts", "fails", "eats"];
    let (mut rows, mut good) = (Vec::new(), Vec::new());
    for (number, kind) in kinds.iter().enumerate() {
        let number = number as i64;
        for key in ["a", "b"] {
            good.push(row(Some(key), &format!("{key}{number}"), 100 - number));
            rows.push((good.last().unwrap().clone(), None));
        }
        let bad = format!("{} {kind}", place.function());
        rows.push((row(Some("a"), &bad, 1_000 + number), Some(reason(place, kind))));
        if place == Place::Add {
            rows.push((row(None, "keyless", 1_000), Some(NO_KEY.to_owned())));
        }
    }
    cell.produce(&rows.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>()).await;
    for (offset, (_, reason)) in rows.iter().enumerate() {
        if let Some(reason) = reason {
            cell.is_dead_letter(offset, reason);
        }
    }
    cell.handled(&good);
    cell.apply(false).await;
    cell.goes_on(rows.len()).await;
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyless_record_fails_in_an_aggregate_whatever_the_policy() {
    let (instance, _data) = open(Place::Add).await;
    let rows = [
        row(Some("a"), "a1", 5),
        row(None, "first", 900),
        row(Some("b"), "b1", 7),
        row(None, "second", 901),
        row(Some("a"), "a2", 3),
    ];
    let good = [&rows[..1], &rows[2..3], &rows[4..]].concat();
    for policy in ["skip", "dead-letter"] {
        let mut cell = Cell::new(&instance, Place::Add, policy, policy, DEADLINE_MS).await;
        cell.produce(&rows).await;
        [1, 3].iter().for_each(|offset| cell.is_dead_letter(*offset, NO_KEY));
        cell.handled(&good);
        cell.apply(false).await;
        cell.goes_on(rows.len()).await;
        // A batch that consists only of a keyless record.
        cell.produce(&rows[1..2]).await;
        cell.is_dead_letter(rows.len(), NO_KEY);
        cell.goes_on(rows.len() + 1).await;
    }
    let mut cell = Cell::new(&instance, Place::Add, "stop", "stop", DEADLINE_MS).await;
    cell.produce(&rows).await;
    cell.handled(&rows[..1]);
    cell.apply(false).await;
    cell.stopped(1, NO_KEY).await;
    // No version of the module changes that.
    cell.apply(true).await;
    cell.stopped(1, NO_KEY).await;
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_failed_records_alone_keeps_what_it_had() {
    let (instance, _data) = open(Place::Add).await;
    // Both with the batch as a whole and with a split batch, which a trap causes.
    for (name, trap) in [("whole", None), ("halved", Some("add traps"))] {
        let mut cell = Cell::new(&instance, Place::Add, name, "dead-letter", DEADLINE_MS).await;
        let first = [row(Some("old"), "o1", 1)];
        cell.produce(&first).await;
        cell.apply(false).await;
        cell.handled(&first);
        cell.goes_on(1).await;

        // The module modifies the accumulators of these records' keys, and cannot create a value for a key that has
        // none.
        let mut rows = vec![
            row(Some("old"), "add smudges", 2),
            row(Some("new"), "add smudges", 3),
            row(Some("strict"), "add fails", 4),
            row(Some("a"), "a1", 5),
        ];
        rows.extend(trap.map(|value| row(Some("trapped"), value, 6)));
        cell.produce(&rows).await;
        for (index, row) in rows.iter().enumerate() {
            match row.value.as_deref().unwrap() {
                "a1" => {}
                "add traps" => cell.is_dead_letter(1 + index, &reason(Place::Add, "traps")),
                _ => cell.is_dead_letter(1 + index, &reason(Place::Add, "fails")),
            }
        }
        cell.handled(&rows[3..4]);
        cell.goes_on(1 + rows.len()).await;
    }
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_after_an_aggregate_leaves_no_trace_in_its_state() {
    let (instance, _data) = open(Place::Add).await;
    instance.push("trap-on").await;
    let mut cell = Cell::new(&instance, Place::Add, "p", "stop", DEADLINE_MS).await;
    let file = |needle: &str| {
        format!(
            "pipeline: p\nfrom: p-in\nstages:\n- aggregate: misdeeds-aggregate\n  name: stage\n- filter: trap-on\n  with: {{ \
             needle: {needle} }}\nto: p-out\n"
        )
    };
    let first = [row(Some("a"), "a1", 1), row(Some("b"), "b1", 2)];
    let second = [row(Some("b"), "b2", 3), row(Some("a"), "a2", 4), row(Some("b"), "evil", 5), row(Some("a"), "a3", 6)];
    cell.produce(&first).await;
    instance.apply(&file("evil")).await;
    cell.handled(&first);
    cell.goes_on(2).await;

    // The update of b contains its last record in the batch. Each update of the batch only contains the records before
    // the failed one.
    cell.produce(&second).await;
    let pipeline = cell.pipeline();
    wait_until("the pipeline stops", || pipeline.state() != RunState::Running).await;
    let RunState::Stopped(words) = pipeline.state() else { panic!("{:?}", pipeline.state()) };
    let expected = "stage trap-on, topic p-in, partition 0, offset 4: the module trapped: ";
    assert!(words.starts_with(expected), "{words}");
    cell.handled(&second[..2]);
    cell.holds(4).await;

    // After the repair the pipeline continues with the failed record, and no record is folded twice.
    instance.apply(&file("nothing")).await;
    cell.handled(&second[2..]);
    cell.goes_on(6).await;
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_from_behind_a_repartition_says_where_it_lay_there() {
    let (instance, _data) = open(Place::Add).await;
    instance.push("redact").await;
    let mut cell = Cell::new(&instance, Place::Add, "p", "dead-letter", DEADLINE_MS).await;
    let file = "pipeline: p\nfrom: p-in\nstages:\n- map: redact\n- aggregate: misdeeds-aggregate\n  name: stage\n  \
                on-failure: dead-letter\nto: p-out\n";
    let rows = [row(Some("a"), "a1", 5), row(Some("a"), "add fails", 900), row(Some("a"), "add traps", 901)];
    cell.produce(&rows).await;
    instance.apply(file).await;
    for _ in 0..2 {
        // Once for each topic on a record's way.
        instance.caught_up().await;
    }
    let repartition = "p.stage.repartition";
    for (offset, kind) in [(1, "fails"), (2, "traps")] {
        cell.is_dead_letter(offset, &reason(Place::Add, kind));
        let topic = cell.letters.last_mut().unwrap().headers.iter_mut().find(|(name, _)| name == "millstream.topic");
        topic.unwrap().1 = Some(repartition.to_owned());
    }
    cell.handled(&rows[..1]);
    cell.goes_on(rows.len()).await;
    instance.stop().await;
}
