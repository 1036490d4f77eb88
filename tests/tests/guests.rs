//! Runs every module under `guests/` in the real engine.

use millstream_record::Record;
use millstream_runtime::runtime::RunState;
use millstream_tests::instance::{Instance, wait_until};
use millstream_tests::{flights, root};

/// Runs `records` (key and value) through `stages`, and returns the instance and the output records.
async fn through(stages: &str, records: &[(Option<&str>, &str)]) -> (Instance, tempfile::TempDir, Vec<Record>) {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    instance.topic("in", 1).await;
    for line in stages.lines() {
        let words: Vec<&str> = line.trim_start_matches(['-', ' ']).splitn(2, ": ").collect();
        if let ["filter" | "map" | "aggregate", module] = words[..] {
            instance.push(module.trim()).await;
        }
    }
    instance.produce("in", 0, records).await;
    instance.apply(&format!("pipeline: p\nfrom: in\nstages:\n{stages}\nto: out\n")).await;
    instance.caught_up().await;
    let out = instance.all_records("out").await;
    (instance, data, out)
}

fn values(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| std::str::from_utf8(record.value.as_deref().unwrap_or_default()).unwrap()).collect()
}

fn keys(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| std::str::from_utf8(record.key.as_deref().unwrap_or_default()).unwrap()).collect()
}

fn header<'r>(record: &'r Record, name: &str) -> &'r str {
    let header = record
        .headers
        .iter()
        .find(|header| &*header.name == name)
        .unwrap_or_else(|| panic!("there is no header {name}"));
    std::str::from_utf8(header.value.as_deref().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_keeps_late_flights() {
    let flights: Vec<_> = flights().into_iter().take(500).collect();
    let input: Vec<_> = flights.iter().map(|flight| (None, flight.line.as_str())).collect();
    let (instance, _data, out) = through("- filter: delayed\n  with: { minutes: 60 }", &input).await;
    let expected: Vec<_> = flights.iter().filter(|f| f.delay >= 60).map(|f| f.line.as_str()).collect();
    assert!(!expected.is_empty());
    assert_eq!(values(&out), expected);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flights_pipeline_equals_a_native_computation() {
    let flights: Vec<_> = flights().into_iter().take(2_000).collect();
    let input: Vec<_> = flights.iter().map(|flight| (None, flight.line.as_str())).collect();
    let (instance, _data, out) = through("- map: by-origin\n- aggregate: mean-delay", &input).await;
    let mut expected = std::collections::BTreeMap::<&str, (u64, i64)>::new();
    for flight in &flights {
        let sums = expected.entry(&flight.origin).or_default();
        *sums = (sums.0 + 1, sums.1 + flight.delay);
    }
    let mut last = std::collections::BTreeMap::new();
    for (key, value) in keys(&out).into_iter().zip(values(&out)) {
        last.insert(key, serde_json::from_str::<serde_json::Value>(value).unwrap());
    }
    assert_eq!(last.len(), expected.len());
    for (origin, (flights, minutes)) in expected {
        let mean = (minutes as f64 / flights as f64 * 10.0).round() / 10.0;
        assert_eq!(last[origin], serde_json::json!({"flights": flights, "mean_delay": mean}), "{origin}");
    }
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alert_makes_a_line_a_person_can_read() {
    let flight = r#"{"date":"2001/01/01 00:47","delay":66,"distance":1750,"origin":"DTW","destination":"LAS"}"#;
    let (instance, _data, out) = through("- map: alert", &[(None, flight)]).await;
    assert_eq!(keys(&out), ["DTW"]);
    assert_eq!(values(&out), ["2001/01/01 00:47  DTW to LAS is 1 h 06 min late"]);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parse_log_names_the_lines_that_break() {
    let good = r#"127.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.0" 200 23"#;
    let stages = "- map: parse-log\n  on-failure: dead-letter";
    let (instance, _data, out) = through(stages, &[(None, good), (Some("k"), "not a line"), (None, good)]).await;
    assert_eq!(out.len(), 2);
    assert!(values(&out)[0].contains(r#""path":"/a""#));
    let letters = instance.all_records("p.dead-letters").await;
    assert_eq!((keys(&letters), values(&letters)), (vec!["k"], vec!["not a line"]));
    assert_eq!(header(&letters[0], "millstream.stage"), "parse-log");
    assert_eq!(header(&letters[0], "millstream.topic"), "in");
    assert_eq!(header(&letters[0], "millstream.offset"), "1");
    assert!(header(&letters[0], "millstream.reason").contains("not Combined Log Format"));
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redact_masks_what_is_private() {
    let (instance, _data, out) =
        through("- map: redact\n  keeps-key: true", &[(None, "ann@example.org paid 4111 1111 1111 1111")]).await;
    assert_eq!(values(&out), ["***@*** paid ****"]);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn level_keeps_lines_at_or_above() {
    let input = [(None, r#"{"level":"warn"}"#), (None, "INFO hello"), (None, "ERROR no")];
    let (instance, _data, out) = through("- filter: level\n  with: { level: warn }", &input).await;
    assert_eq!(values(&out), [r#"{"level":"warn"}"#, "ERROR no"]);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_counted() {
    let (instance, _data, out) =
        through("- map: words\n- aggregate: count", &[(None, "To be, or not to be"), (None, "be!")]).await;
    let mut last = std::collections::BTreeMap::new();
    last.extend(keys(&out).into_iter().zip(values(&out)));
    assert_eq!(last.into_iter().collect::<Vec<_>>(), [("be", "3"), ("not", "1"), ("or", "1"), ("to", "2")]);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_benchmark_modules_do_what_they_say() {
    let (instance, _data, out) = through("- filter: bench-filter", &[(None, "b1"), (None, "a2")]).await;
    assert_eq!(values(&out), ["b1"]);
    instance.stop().await;
    let (instance, _data, out) = through("- map: bench-map", &[(None, "abd")]).await;
    assert_eq!(values(&out), ["abe"]);
    instance.stop().await;
    let (instance, _data, out) =
        through("- aggregate: bench-aggregate", &[(Some("k"), "12"), (Some("k"), "345"), (Some("l"), "")]).await;
    assert_eq!(keys(&out), ["k", "l"]);
    let field = |at: usize| i64::from_le_bytes(out[0].value.as_ref().unwrap()[at * 8..][..8].try_into().unwrap());
    assert_eq!((field(0), field(1), field(2)), (2, 5, 1));
    instance.stop().await;
}

const INPUT: [(Option<&str>, &str); 5] =
    [(None, "one"), (None, "two"), (None, "three evil"), (None, "four"), (None, "five")];
const UNHARMED: [&str; 4] = ["one", "two", "four", "five"];

/// Checks that a hostile stage affects only one record, which is isolated and kept with the reason.
async fn costs_only_its_record(stage: &str, reason: &str) {
    let stages = format!("{stage}\n  on-failure: dead-letter");
    let (instance, _data, out) = through(&stages, &INPUT).await;
    assert_eq!(values(&out), UNHARMED);
    let letters = instance.all_records("p.dead-letters").await;
    assert_eq!(values(&letters), ["three evil"]);
    let said = header(&letters[0], "millstream.reason");
    assert!(said.contains(reason), "{said}");
    assert_eq!(header(&letters[0], "millstream.offset"), "2");
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_costs_only_its_record() {
    costs_only_its_record("- filter: trap-on\n  with: { needle: evil }", "found \"evil\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_spins_costs_only_its_record() {
    let stage = "- filter: spin-on\n  with: { needle: evil }\n  limits: { call-deadline-ms: 100 }";
    costs_only_its_record(stage, "did not return within 100 ms").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_eats_memory_costs_only_its_record() {
    let stage = "- map: eat-memory\n  with: { needle: evil }\n  limits: { call-deadline-ms: 10000 }";
    costs_only_its_record(stage, "more than 67108864 bytes of memory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_floods_costs_only_its_record() {
    let stage = "- map: flood\n  with: { needle: evil, megabytes: 8 }\n  limits: { call-deadline-ms: 10000, output-bytes-max: 4194304 }";
    costs_only_its_record(stage, "returned more than 4194304 bytes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_lie_are_refused() {
    let lies = [
        ("too-long", "lengths"),
        ("too-short", "lengths"),
        ("negative", "-2"),
        ("overflow", "lengths"),
        ("entries", "values"),
        ("source", "an output for record 4294967295"),
        ("failure", "a failure for record"),
        ("twice", "two failures"),
        ("failed-output", "both an output and a failure for record"),
    ];
    for (lie, reason) in lies {
        let stages = format!("- map: malformed\n  with: {{ lie: {lie} }}\n  on-failure: dead-letter");
        let (instance, _data, out) = through(&stages, &[(None, "one")]).await;
        assert!(out.is_empty(), "{lie}");
        let letters = instance.all_records("p.dead-letters").await;
        let said = header(&letters[0], "millstream.reason");
        assert!(said.contains("the module returned") && said.contains(reason), "{lie}: {said}");
        instance.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_stops_at_the_record_and_goes_on_there() {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    instance.topic("in", 1).await;
    instance.push("trap-on").await;
    instance.produce("in", 0, &INPUT).await;
    let file = |needle: &str| {
        format!("pipeline: p\nfrom: in\nstages:\n- filter: trap-on\n  with: {{ needle: {needle} }}\nto: out\n")
    };
    instance.apply(&file("evil")).await;
    let pipeline = instance.runtime.pipeline("p").unwrap();
    wait_until("the pipeline stops", || matches!(pipeline.state(), RunState::Stopped(_))).await;
    let RunState::Stopped(reason) = pipeline.state() else { panic!() };
    assert!(reason.starts_with("stage trap-on, topic in, partition 0, offset 2: "), "{reason}");
    // The records before the failed one are in the output, and nothing else.
    assert_eq!(values(&instance.all_records("out").await), ["one", "two"]);
    // The reason survives a restart, and a repaired version continues at the failed record.
    instance.stop().await;
    let instance = Instance::open(data.path());
    assert_eq!(instance.runtime.pipeline("p").unwrap().state(), RunState::Stopped(reason));
    instance.apply(&file("nothing")).await;
    instance.caught_up().await;
    assert_eq!(values(&instance.all_records("out").await), ["one", "two", "three evil", "four", "five"]);
    instance.stop().await;
}

type KeyAndValue = (&'static str, &'static str);

/// Returns a stage of this guest, a record, and the keys and values of the stage's output.
fn an_example(guest: &str) -> (&'static str, (Option<&'static str>, &'static str), Vec<KeyAndValue>) {
    const FLIGHT: &str = r#"{"date":"2001/01/01 00:47","delay":66,"distance":1750,"origin":"DTW","destination":"LAS"}"#;
    let plain = (Some("k"), "good");
    match guest {
        "alert" => {
            let line = "2001/01/01 00:47  DTW to LAS is 1 h 06 min late";
            ("- map: alert", (None, FLIGHT), vec![("DTW", line)])
        }
        "bench-aggregate" => {
            // The number of records, the total size of their values, and the last timestamp, 8 bytes each.
            let sums = "\u{1}\0\0\0\0\0\0\0\u{4}\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
            ("- aggregate: bench-aggregate", plain, vec![("k", sums)])
        }
        "bench-filter" => ("- filter: bench-filter", (Some("k"), "b1"), vec![("k", "b1")]),
        "bench-map" => ("- map: bench-map", (Some("k"), "abd"), vec![("k", "abe")]),
        "by-origin" => ("- map: by-origin", (None, FLIGHT), vec![("DTW", FLIGHT)]),
        "count" => ("- aggregate: count", plain, vec![("k", "1")]),
        "delayed" => ("- filter: delayed\n  with: { minutes: 66 }", (Some("k"), FLIGHT), vec![("k", FLIGHT)]),
        "eat-memory" => ("- map: eat-memory\n  with: { needle: evil }", plain, vec![("k", "good")]),
        "flood" => ("- map: flood\n  with: { needle: evil, megabytes: 1 }", plain, vec![("k", "good")]),
        "level" => ("- filter: level\n  with: { level: warn }", (Some("k"), "ERROR x"), vec![("k", "ERROR x")]),
        "malformed" => ("- map: malformed\n  with: { lie: none }", plain, vec![("k", "x")]),
        "mean-delay" => {
            ("- aggregate: mean-delay", (Some("k"), FLIGHT), vec![("k", r#"{"flights":1,"mean_delay":66.0}"#)])
        }
        "misdeeds-aggregate" => ("- aggregate: misdeeds-aggregate", plain, vec![("k", "[good]")]),
        "misdeeds-filter" => ("- filter: misdeeds-filter", plain, vec![("k", "good")]),
        "misdeeds-map" => ("- map: misdeeds-map", plain, vec![("k", "good!")]),
        "parse-log" => {
            let line = r#"127.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.0" 200 23"#;
            let parsed = r#"{"client":"127.0.0.1","user":null,"time":"10/Oct/2000:13:55:36 -0700","method":"GET","path":"/a","protocol":"HTTP/1.0","status":200,"bytes":23,"referer":null,"agent":null}"#;
            ("- map: parse-log", (Some("k"), line), vec![("k", parsed)])
        }
        "redact" => ("- map: redact", (Some("k"), "ann@example.org"), vec![("k", "***@***")]),
        "spin-on" => ("- filter: spin-on\n  with: { needle: evil }", plain, vec![("k", "good")]),
        "trap-on" => ("- filter: trap-on\n  with: { needle: evil }", plain, vec![("k", "good")]),
        "words" => ("- map: words", (Some("k"), "To be"), vec![("to", "to"), ("be", "be")]),
        other => panic!("guest {other} has no example here"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_guest_that_is_built_does_what_its_example_says() {
    let mut guests = 0;
    for entry in
        std::fs::read_dir(root().join("target/guests")).expect("the guests are built (run `cargo xtask guests`)")
    {
        let guest = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        let (stage, record, expected) = an_example(&guest);
        let (instance, _data, out) = through(stage, &[record]).await;
        let found: Vec<_> = keys(&out).into_iter().zip(values(&out)).collect();
        assert_eq!(found, expected, "{guest}");
        instance.stop().await;
        guests += 1;
    }
    assert!(guests >= 20, "only {guests} guests are built");
}
