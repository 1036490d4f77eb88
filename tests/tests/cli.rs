//! Every command of `millstream` against a real server: text for people, output for programs, exit codes, and the HTTP
//! pages.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use millstream_tests::server::{Ran, Server, millstream, page, run};
use millstream_tests::{flights, guest_path, root};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Starts a server, and creates a folder for files.
fn start() -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Server::start(&folder.path().join("data")), folder)
}

fn file(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Returns the JSON output of a command.
#[track_caller]
fn json_of(server: &Server, arguments: &[&str]) -> Value {
    let out = server.run(&[arguments, &["--output", "json"]].concat()).ok();
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
}

#[track_caller]
fn lines_of_json(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Asserts that a command ends with `code`, with nothing on stdout and with these words on stderr.
#[track_caller]
fn fails(ran: Ran, code: i32, words: &[&str]) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{}", ran.err);
    for word in words {
        assert!(ran.err.contains(word), "{:?} does not contain {word:?}", ran.err);
    }
}

/// Waits for a condition. The limit is meant for tests that hang.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < limit, "condition not met within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn caught_up(server: &Server) {
    wait_until("the pipelines have caught up", || {
        let pipelines = json_of(server, &["pipeline", "list"]);
        pipelines.as_array().unwrap().iter().all(|pipeline| pipeline["lag"] == 0 || pipeline["state"] != "running")
    });
}

pub(crate) fn guest_file(name: &str) -> String {
    guest_path(name).to_str().unwrap().to_owned()
}

/// A command that keeps running. It is killed when dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(server: &Server, arguments: &[&str]) -> Self {
        let mut command = Command::new(millstream());
        command.env("MILLSTREAM_SERVER", &server.grpc).args(arguments);
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn interrupt(&self) {
        let sent = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn end(mut self) -> Ran {
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(mut stdout) = self.0.stdout.take() {
            stdout.read_to_string(&mut out).unwrap();
        }
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut err).unwrap();
        }
        Ran { out, err, code: self.0.wait().unwrap().code() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- topics

#[test]
fn topics_are_created_listed_described_and_deleted() {
    let (server, _folder) = start();
    assert_eq!(server.run(&["topic", "list"]).ok().lines().count(), 1, "the output must consist of the header only");
    assert_eq!(json_of(&server, &["topic", "list"]), json!([]));
    assert_eq!(
        server.run(&["topic", "create", "flights", "--partitions", "3"]).ok(),
        "created topic flights with 3 partitions\n"
    );
    fails(server.run(&["topic", "create", "flights"]), 1, &["error: topic flights exists already"]);
    assert_eq!(
        server.run(&["topic", "create", "flights", "--if-not-exists"]).ok(),
        "found existing topic flights with 3 partitions\n"
    );
    let limits = ["--retention", "7d", "--retention-bytes", "1GiB", "--batch-bytes-max", "2KiB"];
    let created = json_of(&server, &[&["topic", "create", "clicks"][..], &limits].concat());
    let settings = settings_of(Some(604_800_000), Some(1 << 30), Some(2048));
    assert_eq!(
        (&created["name"], &created["partitions"], &created["settings"]),
        (&json!("clicks"), &json!(1), &settings)
    );

    let list = server.run(&["topic", "list"]).ok();
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(rows, [["TOPIC", "PARTITIONS", "RECORDS"], ["clicks", "1", "0"], ["flights", "3", "0"]]);
    assert!(list.contains("7 d, 1.0 GiB"), "{list}");
    let listed = json_of(&server, &["topic", "list"]);
    assert_eq!(listed[1]["name"], "flights");
    assert_eq!(listed[0]["internal"], false);

    server.run_with_input(&["produce", "flights", "--partition", "1"], "a\nb\n").ok();
    let described = json_of(&server, &["topic", "describe", "flights"]);
    assert_eq!((&described["records"], described["partition_list"].as_array().unwrap().len()), (&json!(2), 3));
    assert_eq!(described["partition_list"][1]["log_end_offset"], 2);
    assert_eq!(described["partition_list"][0]["max_timestamp_ms"], Value::Null);
    let text = server.run(&["topic", "describe", "flights"]).ok();
    for words in ["topic", "flights", "LOG END", "everything", "up to 1 h ahead of the server"] {
        assert!(text.contains(words), "{words}: {text}");
    }

    assert_eq!(server.run(&["topic", "delete", "flights"]).ok(), "deleted topic flights\n");
    fails(server.run(&["topic", "delete", "flights"]), 1, &["error: there is no topic \"flights\""]);
    assert_eq!(server.run(&["topic", "delete", "flights", "--if-exists"]).ok(), "there was no topic flights\n");
    // A new topic of the same name is a different topic.
    server.run(&["topic", "create", "flights"]).ok();
    assert_eq!(server.run(&["consume", "flights", "--from", "earliest", "--until-end"]).ok(), "");
}

/// Returns the settings of a topic whose cleanup is retention.
fn settings_of(retention_ms: Option<u64>, retention_bytes: Option<u64>, batch_bytes_max: Option<u64>) -> Value {
    json!({
        "cleanup": "delete", "retention_ms": retention_ms, "retention_bytes": retention_bytes,
        "delete_retention_ms": null, "batch_bytes_max": batch_bytes_max, "timestamp_before_max_ms": null,
        "timestamp_after_max_ms": null,
    })
}

#[test]
fn a_topic_is_altered_and_shown_as_it_is_then() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t", "--retention", "36h", "--retention-bytes", "1GiB"]).ok();
    let altered = json_of(&server, &["topic", "alter", "t", "--partitions", "3", "--no-retention"]);
    assert_eq!((&altered["partitions"], &altered["settings"]), (&json!(3), &settings_of(None, Some(1 << 30), None)));
    let compacting = ["--cleanup", "compact", "--delete-retention", "1h", "--no-retention-bytes"];
    let text = server.run(&[&["topic", "alter", "t"][..], &compacting].concat()).ok();
    assert!(text.starts_with("altered topic t\n"), "{text}");
    let described = server.run(&["topic", "describe", "t"]).ok();
    for words in ["compact", "tombstones  1 h", "everything", "SEGMENTS", "EARLIEST RECORD"] {
        assert!(described.contains(words), "{words}: {described}");
    }
    let described = json_of(&server, &["topic", "describe", "t"]);
    assert_eq!(described["settings"]["cleanup"], "compact");
    assert_eq!(described["settings"]["delete_retention_ms"], 3_600_000);
    assert_eq!(described["partition_list"].as_array().unwrap().len(), 3);
    // A topic that is created again under the same name has another id.
    let made = || json_of(&server, &["topic", "create", "other"])["id"].as_str().unwrap().to_owned();
    let first = made();
    assert!(server.run(&["topic", "describe", "other"]).ok().contains(&first));
    server.run(&["topic", "delete", "other"]).ok();
    assert_ne!(first, made());

    fails(server.run(&["topic", "alter", "t"]), 2, &["nothing to alter"]);
    fails(server.run(&["topic", "alter", "t", "--retention", "7"]), 2, &["--retention", "such as 7d"]);
    fails(server.run(&["topic", "alter", "t", "--retention", "7d", "--no-retention"]), 2, &["cannot be used with"]);
    fails(server.run(&["topic", "alter", "t", "--retention", "7d"]), 1, &["retention_ms: 604800000 is not allowed"]);
    fails(server.run(&["topic", "alter", "t", "--partitions", "2"]), 1, &["partitions: 2 is not allowed"]);
    fails(server.run(&["topic", "alter", "none", "--partitions", "2"]), 1, &["there is no topic \"none\""]);
}

// ---- produce

#[test]
fn lines_of_a_file_of_a_gz_and_of_stdin_become_records() {
    let (server, folder) = start();
    server.run(&["topic", "create", "t", "--partitions", "4"]).ok();
    let flights: Vec<_> = flights().into_iter().take(300).collect();
    let text: String = flights.iter().map(|flight| format!("{}\n", flight.line)).collect();
    let plain = file(&folder, "flights.ndjson", &text);
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    let gz = file(&folder, "flights.ndjson.gz", gz.finish().unwrap());
    let fields = ["--key-field", "origin", "--timestamp-field", "date"];
    let from_file = [&["produce", "t", "--file", &plain][..], &fields].concat();
    let from_gz = [&["produce", "t", "-f", &gz, "--compression", "zstd"][..], &fields].concat();
    let from_stdin = [&["produce", "t", "--compression", "lz4"][..], &fields].concat();
    let from_dash = [&["produce", "t", "--file", "-"][..], &fields].concat();
    for (arguments, input) in [(from_file, ""), (from_gz, ""), (from_stdin, &*text), (from_dash, &*text)] {
        let ran = server.run_with_input(&arguments, input);
        assert!(ran.err.starts_with("stored 300 records, "), "{arguments:?}: {}", ran.err);
        assert_eq!(ran.ok(), "");
    }
    let out = server.run(&["consume", "t", "--from", "earliest", "--until-end", "--output", "json"]).ok();
    let records = lines_of_json(&out);
    assert_eq!(records.len(), 1_200);
    let mut expected: Vec<(String, String)> = Vec::new();
    for _ in 0..4 {
        expected.extend(flights.iter().map(|flight| (flight.origin.clone(), flight.line.clone())));
    }
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut found: Vec<_> = records.iter().map(|record| (text(&record["key"]), text(&record["value"]))).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    // The date of the first line, 2001/01/01 00:47 UTC, is the record's timestamp.
    let first = records.iter().find(|record| text(&record["value"]) == flights[0].line).unwrap();
    let printed = server.run(&["consume", "t", "--from", "earliest", "--until-end", "--print", "timestamp,value"]).ok();
    let stamp = flights[0].date.replace('/', "-").replace(' ', "T");
    assert!(printed.contains(&format!("{stamp}:00.000Z\t{}\n", flights[0].line)), "{first} {stamp}");
    // All records with the same key are in the same partition.
    let of = |key: &str| {
        records.iter().filter(|r| r["key"] == key).map(|r| r["partition"].as_u64()).collect::<BTreeSet<_>>()
    };
    assert!(flights.iter().all(|flight| of(&flight.origin).len() == 1));
    assert!(records.iter().map(|record| record["partition"].as_u64()).collect::<BTreeSet<_>>().len() > 1);
}

#[test]
fn a_record_is_the_line_without_its_end() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t"]).ok();
    let arguments = ["produce", "t", "--key", "k", "--header", "a=1", "--header", "b=x=y", "--partition", "0"];
    server.run_with_input(&arguments, "unix\nwindows\r\n\n  spaces \t\nlast without an end").ok();
    assert!(server.run_with_input(&["produce", "t"], "").err.starts_with("stored 0 records"));
    let out = server.run(&["consume", "t", "--from", "earliest", "--until-end", "--output", "json"]).ok();
    let records = lines_of_json(&out);
    let values: Vec<_> = records.iter().map(|record| record["value"].as_str().unwrap()).collect();
    assert_eq!(values, ["unix", "windows", "", "  spaces \t", "last without an end"]);
    let headers = json!([{ "name": "a", "value": "1" }, { "name": "b", "value": "x=y" }]);
    assert!(records.iter().all(|record| record["headers"] == headers && record["key"] == "k"));
    let offsets: Vec<_> = records.iter().map(|record| record["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
}

#[test]
fn a_line_that_is_no_record_is_named_with_its_file_and_number() {
    let (server, folder) = start();
    server.run(&["topic", "create", "t"]).ok();
    let lines = "{\"k\":\"a\"}\n{\"k\":\"b\"}\nno json\n{\"other\":1}\n{\"k\":\"c\"}\n";
    let path = file(&folder, "lines", lines);
    let keyed = ["produce", "t", "--file", &path, "--key-field", "k"];
    fails(server.run(&keyed), 1, &[&format!("error: {path}:3: not JSON"), "--skip-invalid", "stored 2 records"]);
    let skipping = server.run(&[&keyed[..], &["--skip-invalid"]].concat());
    assert_eq!(skipping.code, Some(0), "{}", skipping.err);
    for words in [&format!("skipped {path}:3"), &format!("skipped {path}:4"), "stored 3 records", "2 lines skipped"] {
        assert!(skipping.err.contains(words), "{words}: {}", skipping.err);
    }
    let keys = server.run(&["consume", "t", "--from", "earliest", "--until-end", "--print", "key"]).ok();
    assert_eq!(keys, "a\nb\na\nb\nc\n");
    fails(
        server.run(&["produce", "t", "--file", "/nowhere/lines"]),
        1,
        &["cannot open /nowhere/lines", "No such file"],
    );
    let cut = file(&folder, "cut.gz", [0x1f, 0x8b, 8, 0, 0]);
    fails(server.run(&["produce", "t", "--file", &cut]), 1, &["cannot read", "cut.gz"]);
    let timed = ["produce", "t", "--timestamp-field", "at"];
    fails(server.run_with_input(&timed, "{\"at\":\"soon\"}\n"), 1, &["stdin:1", "is not a valid time"]);
}

#[test]
fn an_interrupted_producer_says_so_and_what_it_took_is_stored() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t"]).ok();
    let mut producer = Running::start(&server, &["produce", "t"]);
    producer.0.stdin.as_mut().unwrap().write_all(b"one\ntwo\n").unwrap();
    wait_until("the lines are stored", || json_of(&server, &["topic", "describe", "t"])["records"] == 2);
    producer.interrupt();
    fails(producer.end(), 4, &["error: interrupted", "stored 2 records"]);
}

#[test]
fn a_producer_whose_records_wait_says_what_for() {
    let data = tempfile::tempdir().unwrap();
    Server::start(data.path()).run(&["topic", "create", "t"]).ok();
    let server = Server::start_with(data.path(), &["--disk-reserve-bytes", "1000TiB"]);
    let mut producer = Running::start(&server, &["produce", "t"]);
    producer.0.stdin.take().unwrap().write_all(b"one\n").unwrap();
    let mut told = String::new();
    BufReader::new(producer.0.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.starts_with("not stored yet, retrying: the disk of"), "{told}");
    assert!(told.contains("make room"), "{told}");
    producer.interrupt();
    assert_eq!(producer.end().code, Some(4));
}

// ---- consume

#[test]
fn a_reader_begins_where_it_is_told() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t", "--partitions", "2"]).ok();
    let lines: String = (0..10).map(|n| format!("{{\"n\":{n},\"at\":\"2024-05-01 12:0{n}\"}}\n")).collect();
    server.run_with_input(&["produce", "t", "--partition", "0", "--timestamp-field", "at"], &lines).ok();
    server.run_with_input(&["produce", "t", "--partition", "1", "--timestamp-field", "at"], &lines).ok();
    let read = |arguments: &[&str]| {
        let out =
            server.run(&[&["consume", "t", "--until-end", "--print", "partition,offset"], arguments].concat()).ok();
        let mut read: Vec<_> = out.lines().map(|line| line.replace('\t', ":")).collect();
        read.sort();
        read
    };
    let from = |first: u64| -> Vec<String> {
        [0, 1].iter().flat_map(|partition| (first..10).map(move |offset| format!("{partition}:{offset}"))).collect()
    };
    assert_eq!(read(&["--from", "earliest"]), from(0));
    assert_eq!(read(&["--from", "latest"]), from(10));
    assert_eq!(read(&[]), from(10));
    assert_eq!(read(&["--from", "7"]), from(7));
    assert_eq!(read(&["--from", "2024-05-01T12:04:00Z"]), from(4));
    assert_eq!(read(&["--from", "2024-05-01 12:04:01"]), from(5));
    assert_eq!(read(&["--from", "@1714565100"]), from(5));
    assert_eq!(read(&["--from", "earliest", "--partition", "1"]), from(0)[10..]);
    assert_eq!(read(&["--from", "earliest", "--max", "3"]).len(), 3);
    assert_eq!(read(&["--from", "9", "--max", "30"]), from(9));
}

#[test]
fn records_are_printed_for_people_and_for_programs() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t"]).ok();
    let produce = ["produce", "t", "--key", "k", "--header", "h=1", "--timestamp-field", "at"];
    server.run_with_input(&produce, "{\"at\":0}\n").ok();
    let mut raw = Command::new("sh");
    raw.args(["-c", "printf 'a\\377b\\n' | \"$0\" produce t"]).arg(millstream());
    run(raw.env("MILLSTREAM_SERVER", &server.grpc), "").ok();
    let text = ["consume", "t", "--from", "earliest", "--until-end"];
    assert_eq!(server.run(&text).ok(), "{\"at\":0}\na\\xffb\n");
    let all = [&text[..], &["--max", "1", "--print", "topic,partition,offset,timestamp,key,headers,value"]].concat();
    assert_eq!(server.run(&all).ok(), "t\t0\t0\t1970-01-01T00:00:00.000Z\tk\th=1\t{\"at\":0}\n");
    let records = lines_of_json(&server.run(&[&text[..], &["--output", "json"]].concat()).ok());
    assert_eq!(
        records[0],
        json!({
            "topic": "t", "partition": 0, "offset": 0, "timestamp": 0, "key": "k", "value": "{\"at\":0}",
            "headers": [{ "name": "h", "value": "1" }],
        })
    );
    assert_eq!((&records[1]["key"], &records[1]["value"]), (&Value::Null, &json!({ "base64": "Yf9i" })));
}

#[test]
fn a_reader_of_the_latest_sees_what_comes_and_nothing_before() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t"]).ok();
    server.run_with_input(&["produce", "t"], "before\n").ok();
    let reader = Running::start(&server, &["consume", "t", "--max", "2"]);
    let mut reader = Some(reader);
    // There is no sign that the reader has started, so records are produced until it has read two.
    wait_until("the reader ends", || {
        server.run_with_input(&["produce", "t"], "after\n").ok();
        reader.as_mut().unwrap().0.try_wait().unwrap().is_some()
    });
    assert_eq!(reader.take().unwrap().end().ok(), "after\nafter\n");
}

#[test]
fn a_group_reads_each_record_once_and_commits_what_was_printed() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t"]).ok();
    server.run_with_input(&["produce", "t"], "1\n2\n3\n4\n5\n").ok();
    let grouped = ["consume", "t", "--group", "g", "--from", "earliest"];
    assert_eq!(server.run(&[&grouped[..], &["--max", "2"]].concat()).ok(), "1\n2\n");
    let offsets = json_of(&server, &["group", "describe", "g"])["offsets"].clone();
    assert_eq!((&offsets[0]["committed_offset"], &offsets[0]["lag"]), (&json!(2), &json!(3)), "{offsets}");
    assert_eq!(server.run(&[&grouped[..], &["--until-end"]].concat()).ok(), "3\n4\n5\n");
    assert_eq!(server.run(&[&grouped[..], &["--until-end"]].concat()).ok(), "");
    // A consumer of explicit partitions, which does not join the group, commits too.
    let alone = ["consume", "t", "--group", "h", "--partition", "0", "--from", "earliest", "--max", "4"];
    assert_eq!(server.run(&alone).ok(), "1\n2\n3\n4\n");
    assert_eq!(json_of(&server, &["group", "describe", "h"])["lag"], 1);
    // An interrupt is a regular end: the printed records are committed.
    let mut reader = Running::start(&server, &["consume", "t", "--group", "i", "--from", "earliest"]);
    let mut lines = BufReader::new(reader.0.stdout.take().unwrap()).lines();
    for number in 1..=5 {
        assert_eq!(lines.next().unwrap().unwrap(), number.to_string());
    }
    reader.interrupt();
    let ran = reader.end();
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(json_of(&server, &["group", "describe", "i"])["lag"], 0);
    fails(
        server.run(&["consume", "t", "--group", "g", "--from", "3"]),
        2,
        &["millstream group reset g --topic t --to 3"],
    );
}

#[test]
fn a_reader_that_goes_away_is_a_good_end() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t"]).ok();
    let lines: String = (0..20_000).map(|number| format!("{number} {}\n", "x".repeat(80))).collect();
    server.run_with_input(&["produce", "t"], &lines).ok();
    let pipe = |command: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("\"$0\" {command} | head -1; exit ${{PIPESTATUS[0]}}")]).arg(millstream());
        run(shell.env("MILLSTREAM_SERVER", &server.grpc), "")
    };
    for more in ["--until-end", "", "--output json", "--group g"] {
        let ran = pipe(&format!("consume t --from earliest {more}"));
        assert_eq!((ran.code, ran.err.as_str(), ran.out.lines().count()), (Some(0), "", 1), "{more}: {}", ran.out);
    }
    // This also works if nothing more is printed that could fail.
    server.run(&["topic", "create", "one"]).ok();
    server.run_with_input(&["produce", "one"], "only\n").ok();
    let ran = pipe("consume one --from earliest");
    assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(0), "", "only\n"));
}

// ---- modules

#[test]
fn modules_are_pushed_listed_described_and_removed() {
    let (server, folder) = start();
    let delayed = guest_file("delayed");
    let pushed = server.run(&["module", "push", "delayed", &delayed]).ok();
    assert!(pushed.starts_with("pushed delayed:latest (filter, "), "{pushed}");
    let again = server.run(&["module", "push", "delayed:latest", &delayed]).ok();
    assert!(again.starts_with("unchanged: delayed:latest"), "{again}");
    let other = json_of(&server, &["module", "push", "delayed:v2", &guest_file("level")]);
    assert_eq!(
        (&other["reference"], &other["kind"], &other["changed"]),
        (&json!("delayed:v2"), &json!("filter"), &json!(true))
    );
    assert_eq!(other["bytes"], fs::metadata(guest_file("level")).unwrap().len());
    server.run(&["module", "push", "count", &guest_file("count")]).ok();

    let list = server.run(&["module", "list"]).ok();
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
    assert_eq!(
        rows,
        [["MODULE", "KIND"], ["count:latest", "aggregate"], ["delayed:latest", "filter"], ["delayed:v2", "filter"]]
    );
    assert_eq!(json_of(&server, &["module", "list"]).as_array().unwrap().len(), 3);

    let described = json_of(&server, &["module", "describe", "delayed"]);
    let hash = described["hash"].as_str().unwrap();
    assert_eq!((hash.len(), &described["used_by"]), (64, &json!([])));
    let by_hash = json_of(&server, &["module", "describe", hash]);
    assert_eq!(by_hash["hash"], hash, "the help says that a hash is accepted");
    let text = server.run(&["module", "describe", "delayed:v2"]).ok();
    assert!(text.contains("no pipeline") && text.contains("delayed:v2"), "{text}");

    server.run(&["topic", "create", "in"]).ok();
    let yaml = "pipeline: p\nfrom: in\nstages:\n  - filter: delayed\nto: out\n";
    server.run(&["apply", "-f", &file(&folder, "p.yaml", yaml)]).ok();
    let uses = json_of(&server, &["module", "describe", "delayed"])["used_by"].clone();
    assert_eq!(uses, json!([{ "pipeline": "p", "stage": "delayed" }]));
    fails(server.run(&["module", "remove", "delayed"]), 1, &["module delayed", "is used by pipeline p"]);
    assert_eq!(server.run(&["module", "remove", "delayed:v2"]).ok(), "removed module delayed:v2\n");
    fails(server.run(&["module", "describe", "delayed:v2"]), 1, &["there is no module \"delayed:v2\""]);
}

// ---- pipelines

/// Starts a server with topic `lines` and modules `words` and `count`, and creates a file that counts words.
fn start_with_words() -> (Server, TempDir, String) {
    let (server, folder) = start();
    server.run(&["topic", "create", "lines", "--partitions", "2"]).ok();
    server.run(&["module", "push", "words", &guest_file("words")]).ok();
    server.run(&["module", "push", "count", &guest_file("count")]).ok();
    let yaml = "pipeline: word-counts\nfrom: lines\nstages:\n  - map: words\n  - aggregate: count\nto: counts\n";
    let path = file(&folder, "words.yaml", yaml);
    (server, folder, path)
}

#[test]
fn applying_a_file_says_what_changed() {
    let (server, folder, path) = start_with_words();
    let dry = server.run(&["apply", "-f", &path, "--dry-run"]).ok();
    assert!(
        dry.contains("counts") && dry.contains("dry run: these changes would be made, nothing was changed"),
        "{dry}"
    );
    assert_eq!(json_of(&server, &["pipeline", "list"]), json!([]));
    let applied = server.run(&["apply", "-f", &path]).ok();
    assert!(applied.contains("topic counts"), "{applied}");
    assert!(applied.ends_with("pipeline word-counts is running, version 1\n"), "{applied}");
    assert_eq!(server.run(&["apply", "-f", &path]).ok(), "pipeline word-counts is unchanged and running\n");
    let dry = server.run(&["apply", "-f", &path, "--dry-run"]).ok();
    assert_eq!(dry, "dry run: nothing would change\n");

    // A module path in a file is relative to the file, and the module is pushed with it. In stdin, paths are relative
    // to the current folder.
    fs::copy(guest_path("level"), folder.path().join("only-bad.wasm")).unwrap();
    let stages = "  - filter: ./only-bad.wasm\n    with: { level: warn }\n    on-failure: skip\n";
    let yaml = format!("pipeline: bad-lines\nfrom: lines\nstages:\n{stages}to: bad\n");
    let bad = file(&folder, "bad.yaml", &yaml);
    let applied = json_of(&server, &["apply", "-f", &bad]);
    assert_eq!((&applied[0]["applied"], &applied[0]["mistakes"]), (&json!(true), &json!([])), "{applied}");
    let reference = applied[0]["modules"]["./only-bad.wasm"]["reference"].as_str().unwrap();
    assert!(reference.starts_with("only-bad:"), "{reference}");
    assert_eq!(json_of(&server, &["module", "describe", reference])["used_by"][0]["pipeline"], "bad-lines");
    assert_eq!(json_of(&server, &["apply", "-f", &bad])[0]["changes"], json!([]));
    let by_stdin = yaml.replace("./only-bad.wasm", &guest_file("level"));
    let ran = server.run_with_input(&["apply", "-f", "-"], &by_stdin);
    assert!(ran.ok().contains("bad-lines is running"));

    // A change is reported, and creates another version.
    let changed = file(&folder, "words.yaml", fs::read_to_string(&path).unwrap().replace("to: counts", "to: totals"));
    let applied = server.run(&["apply", "-f", &changed]).ok();
    assert!(applied.contains("totals") && applied.contains("version 2"), "{applied}");
}

#[test]
fn mistakes_are_shown_at_their_places_and_nothing_is_applied() {
    let (server, folder, good) = start_with_words();
    let by_text = file(&folder, "a.yaml", "pipeline: a\nfrom: lines\nstagess:\n  - map: words\nto: out\n");
    let ran = server.run(&["apply", "-f", &by_text]);
    assert!(ran.err.contains(&format!("{by_text}:3:1: ")), "{}", ran.err);
    assert!(ran.err.contains("\n    stagess:\n    ^\n"), "the line with a caret: {}", ran.err);
    fails(ran, 1, &["error: 1 mistake in", "the file was not applied"]);
    let by_server = "pipeline: b\nfrom: linse\nstages:\n  - filter: words\n  - aggregate: nope\nto: out\n";
    let by_server = file(&folder, "b.yaml", by_server);
    let places = [
        format!("{by_server}:2:7: there is no topic `linse`; did you mean `lines`?"),
        format!("{by_server}:4:5: module `words` is for a map stage"),
        format!("{by_server}:5:16: module `nope`"),
        "error: 3 mistakes in".into(),
    ];
    fails(server.run(&["apply", "-f", &by_server]), 1, &places.each_ref().map(String::as_str));
    let missing = "pipeline: c\nfrom: lines\nstages:\n  - map: ./nowhere.wasm\nto: out\n";
    let missing = file(&folder, "c.yaml", missing);
    fails(server.run(&["apply", "-f", &missing]), 1, &[&format!("{missing}:4:10: cannot read module"), "nowhere.wasm"]);
    let ran = server.run(&["apply", "-f", &by_server, "--output", "json"]);
    assert_eq!(ran.code, Some(1));
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&said[0]["applied"], said[0]["mistakes"].as_array().unwrap().len()), (&json!(false), 3));
    assert_eq!((&said[0]["mistakes"][0]["line"], &said[0]["mistakes"][0]["column"]), (&json!(2), &json!(7)));
    // If one of several files has a mistake, none of them is applied.
    fails(server.run(&["apply", "-f", &good, "-f", &by_text]), 1, &["1 mistake"]);
    assert_eq!(json_of(&server, &["pipeline", "list"]), json!([]));
    assert_eq!(json_of(&server, &["topic", "list"]).as_array().unwrap().len(), 1);
    fails(server.run(&["apply", "-f", "/nowhere.yaml"]), 1, &["cannot read /nowhere.yaml"]);
}

#[test]
fn pipelines_are_listed_described_paused_resumed_and_deleted() {
    let (server, _folder, path) = start_with_words();
    server.run(&["apply", "-f", &path]).ok();
    server.run_with_input(&["produce", "lines"], "to be or not to be\n").ok();
    caught_up(&server);
    let list = server.run(&["pipeline", "list"]).ok();
    let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    // Two tasks read the lines, and two read the words by key.
    assert_eq!(row, ["word-counts", "running", "lines", "counts", "1", "4", "0"], "{list}");
    let described = json_of(&server, &["pipeline", "describe", "word-counts"]);
    assert_eq!((&described["state"], &described["reason"]), (&json!("running"), &Value::Null));
    let stages = described["stages"].as_array().unwrap();
    let counts =
        |stage: &Value| ["records_in", "records_out", "failures", "keys"].map(|field| stage[field].as_u64().unwrap());
    assert_eq!(counts(&stages[0]), [1, 6, 0, 0]);
    assert_eq!((counts(&stages[1])[0], counts(&stages[1])[3]), (6, 4));
    assert!(
        described["offsets"].as_array().unwrap().iter().any(|of| of["topic"] == "lines" && of["committed_offset"] == 1)
    );
    let text = server.run(&["pipeline", "describe", "word-counts"]).ok();
    for words in ["word-counts", "running", "aggregate", "stop", "COMMITTED"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let yaml = server.run(&["pipeline", "describe", "word-counts", "--yaml"]).ok();
    assert_eq!(yaml, fs::read_to_string(&path).unwrap());
    // The pipeline's topics are in use.
    fails(server.run(&["topic", "delete", "lines"]), 1, &["topic lines is used by pipeline word-counts"]);

    assert_eq!(server.run(&["pipeline", "pause", "word-counts"]).ok(), "pipeline word-counts is paused\n");
    server.run_with_input(&["produce", "lines"], "that is the question\n").ok();
    let paused = json_of(&server, &["pipeline", "list"]);
    assert_eq!((&paused[0]["state"], &paused[0]["lag"]), (&json!("paused"), &json!(1)));
    assert_eq!(json_of(&server, &["pipeline", "resume", "word-counts"])["state"], "running");
    caught_up(&server);
    let out = server.run(&["consume", "counts", "--from", "earliest", "--until-end", "--print", "key,value"]).ok();
    assert!(out.contains("question\t1\n") && out.contains("be\t2\n"), "{out}");

    assert_eq!(server.run(&["pipeline", "delete", "word-counts"]).ok(), "deleted pipeline word-counts\n");
    fails(server.run(&["pipeline", "describe", "word-counts"]), 1, &["there is no pipeline \"word-counts\""]);
    // Output topics remain, and the runtime's internal topics are deleted.
    let topics = json_of(&server, &["topic", "list"]);
    let topics: Vec<_> = topics.as_array().unwrap().iter().map(|topic| topic["name"].as_str().unwrap()).collect();
    assert_eq!(topics, ["counts", "lines"]);
    assert_eq!(json_of(&server, &["group", "list"]), json!([]));
}

#[test]
fn a_pipeline_whose_records_are_gone_says_so_and_how_to_go_on() {
    let (server, _folder, file) = start_with_words();
    server.run(&["apply", "-f", &file]).ok();
    let produce_old = |text: &str| {
        let line = json!({ "at": 0, "text": text }).to_string();
        server.run_with_input(&["produce", "lines", "--partition", "0", "--timestamp-field", "at"], &line).ok();
    };
    produce_old("read");
    caught_up(&server);
    server.run(&["pipeline", "pause", "word-counts"]).ok();
    produce_old("never");
    server.run(&["topic", "alter", "lines", "--retention", "1h"]).ok();
    let log_start =
        || json_of(&server, &["topic", "describe", "lines"])["partition_list"][0]["log_start_offset"].clone();
    wait_until("retention deletes the old records", || log_start() == 2);
    server.run_with_input(&["produce", "lines", "--partition", "0"], "or not to be\n").ok();

    server.run(&["pipeline", "resume", "word-counts"]).ok();
    let reason = || json_of(&server, &["pipeline", "describe", "word-counts"])["reason"].to_string();
    wait_until("the pipeline stops", || reason().contains("offset 1 is out of range, 2 to 3 are there"));
    assert!(reason().contains("reset the offsets of group word-counts in topic lines to the earliest"), "{}", reason());
    let described = server.run(&["pipeline", "describe", "word-counts"]).ok();
    let reset = "group reset word-counts --topic lines --partition 0 --to earliest";
    let resume = "pipeline resume word-counts";
    for command in [reset, resume] {
        assert!(described.contains(&format!("`millstream {command}`")), "{described}");
        server.run(&command.split(' ').collect::<Vec<_>>()).ok();
    }
    caught_up(&server);
    let out = server.run(&["consume", "counts", "--from", "earliest", "--until-end", "--print", "key,value"]).ok();
    assert!(out.contains("or\t1\n") && !out.contains("never"), "{out}");
}

#[test]
fn a_stopped_pipeline_says_why_where_and_at_which_offset() {
    let (server, folder) = start();
    server.run(&["topic", "create", "in"]).ok();
    server.run(&["module", "push", "delayed", &guest_file("delayed")]).ok();
    let yaml = "pipeline: p\nfrom: in\nstages:\n  - filter: delayed\nto: out\n";
    server.run(&["apply", "-f", &file(&folder, "p.yaml", yaml)]).ok();
    server.run_with_input(&["produce", "in"], "{\"delay\":20}\nno flight\n{\"delay\":30}\n").ok();
    wait_until("the pipeline stops", || json_of(&server, &["pipeline", "list"])[0]["state"] == "stopped");
    let text = server.run(&["pipeline", "describe", "p"]).ok();
    assert!(text.contains("stage delayed, topic in, partition 0, offset 1: "), "{text}");
    assert!(
        text.contains("to leave it out, first run `millstream group reset p --topic in --partition 0 --to 2`"),
        "{text}"
    );
    assert_eq!(server.run(&["consume", "out", "--from", "earliest", "--until-end"]).ok(), "{\"delay\":20}\n");
    // Continues after the failed record.
    let reset = ["group", "reset", "p", "--topic", "in", "--partition", "0", "--to", "2"];
    server.run(&reset).ok();
    server.run(&["pipeline", "resume", "p"]).ok();
    caught_up(&server);
    let out = server.run(&["consume", "out", "--from", "earliest", "--until-end"]).ok();
    assert_eq!(out, "{\"delay\":20}\n{\"delay\":30}\n");
}

// ---- groups and state

#[test]
fn groups_are_listed_described_reset_and_deleted() {
    let (server, _folder) = start();
    server.run(&["topic", "create", "t", "--partitions", "2"]).ok();
    let lines: String = (0..6).map(|n| format!("{{\"at\":\"2024-05-01 12:0{n}\"}}\n")).collect();
    server.run_with_input(&["produce", "t", "--partition", "0", "--timestamp-field", "at"], &lines).ok();
    server.run(&["consume", "t", "--group", "billing", "--from", "earliest", "--until-end"]).ok();
    let list = server.run(&["group", "list"]).ok();
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["GROUP", "KIND", "STATE", "MEMBERS", "LAG"], ["billing", "consumer", "empty", "0", "0"]]);
    assert_eq!(json_of(&server, &["group", "list"])[0]["kind"], "consumer");
    let described = json_of(&server, &["group", "describe", "billing"]);
    assert_eq!((&described["state"], &described["member_list"]), (&json!("empty"), &json!([])));
    let text = server.run(&["group", "describe", "billing"]).ok();
    assert!(text.contains("billing") && text.contains("COMMITTED"), "{text}");

    let reset = ["group", "reset", "billing", "--topic", "t", "--to"];
    let lag = || json_of(&server, &["group", "describe", "billing"])["lag"].clone();
    let dry = server.run(&[&reset[..], &["earliest", "--dry-run"]].concat()).ok();
    assert!(dry.starts_with("group billing would be reset to earliest:\n"), "{dry}");
    assert_eq!(lag(), 0);
    let done = server.run(&[&reset[..], &["earliest"]].concat()).ok();
    assert!(done.starts_with("group billing was reset to earliest:\n"), "{done}");
    assert_eq!(lag(), 6);
    let done = json_of(&server, &[&reset[..], &["2024-05-01 12:04", "--partition", "0"]].concat());
    assert_eq!(done["offsets"], json!([{ "topic": "t", "partition": 0, "offset": 4 }]));
    assert_eq!(lag(), 2);
    server.run(&[&reset[..], &["latest"]].concat()).ok();
    assert_eq!(lag(), 0);
    fails(
        server.run(&[&reset[..], &["9", "--partition", "0"]].concat()),
        1,
        &["offset 9 is out of range, 0 to 6 are there"],
    );

    // A group in use is left alone, and is described with its member.
    let member = Running::start(&server, &["consume", "t", "--group", "billing"]);
    wait_until("the member joins", || json_of(&server, &["group", "list"])[0]["state"] == "stable");
    let described = json_of(&server, &["group", "describe", "billing"]);
    assert_eq!(described["member_list"][0]["client_id"], "millstream-consume");
    assert_eq!(described["offsets"][0]["member_id"], described["member_list"][0]["member_id"]);
    fails(server.run(&[&reset[..], &["earliest"]].concat()), 1, &["group billing is in use"]);
    fails(server.run(&["group", "delete", "billing"]), 1, &["group billing is in use"]);
    member.interrupt();
    assert_eq!(member.end().code, Some(0));
    assert_eq!(server.run(&["group", "delete", "billing"]).ok(), "deleted group billing\n");
    assert_eq!(json_of(&server, &["group", "list"]), json!([]));
}

#[test]
fn state_is_read_by_key_and_by_prefix() {
    let (server, folder, path) = start_with_words();
    server.run(&["apply", "-f", &path]).ok();
    server.run_with_input(&["produce", "lines"], "to be or not to be\nthat is the question\n").ok();
    caught_up(&server);
    assert_eq!(server.run(&["state", "get", "word-counts", "be"]).ok(), "2\n");
    let entry = json_of(&server, &["state", "get", "word-counts", "be", "--stage", "count"]);
    assert_eq!((&entry["key"], &entry["value"]), (&json!("be"), &json!("2")));
    fails(server.run(&["state", "get", "word-counts", "nothing"]), 1, &["holds nothing for key nothing", "state list"]);
    let list = server.run(&["state", "list", "word-counts"]).ok();
    let keys: Vec<&str> = list.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(keys, ["KEY", "be", "is", "not", "or", "question", "that", "the", "to"]);
    let listed = json_of(&server, &["state", "list", "word-counts", "--prefix", "th"]);
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap()).collect();
    assert_eq!(listed, ["that", "the"]);
    assert_eq!(json_of(&server, &["state", "list", "word-counts", "--max", "3"]).as_array().unwrap().len(), 3);
    fails(server.run(&["state", "get", "word-counts", "be", "--stage", "words"]), 1, &["word-counts", "words"]);
    // With two aggregates, one has to be named.
    let yaml = "pipeline: two\nfrom: lines\nstages:\n  - map: words\n  - aggregate: count\n  - aggregate: count\n    name: again\nto: x\n";
    server.run(&["apply", "-f", &file(&folder, "two.yaml", yaml)]).ok();
    fails(server.run(&["state", "list", "two"]), 1, &["count", "again"]);
}

// ---- millstream test

#[test]
fn a_pipeline_file_is_tried_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(guest_path("words"), folder.path().join("words.wasm")).unwrap();
    let yaml = "pipeline: p\nfrom: lines\nstages:\n  - map: ./words.wasm\n  - aggregate: count\nto: counts\n";
    let path = file(&folder, "p.yaml", yaml);
    let count = format!("count={}", guest_file("count"));
    let input = file(&folder, "lines.txt", "to be or not to be\n");
    let program = |arguments: &[&str], input: &str| {
        // There is no server at this address.
        run(Command::new(millstream()).env("MILLSTREAM_SERVER", "127.0.0.1:1").args(arguments), input)
    };
    let tried = program(&["test", "-f", &path, "--module", &count, "--input", &input], "").ok();
    for words in ["topic counts", "be\t2", "STAGE", "words", "state: stage count, 4 keys"] {
        assert!(tried.contains(words), "{words}: {tried}");
    }
    let out =
        program(&["test", "-f", &path, "--module", &count, "--output", "json", "--partitions", "3"], "be be\n").ok();
    let tried: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(tried["state"]["count"], json!([{ "key": "be", "value": "2" }]));
    assert_eq!(tried["outputs"]["counts"].as_array().unwrap().last().unwrap()["value"], "2");
    assert_eq!((&tried["stages"][0]["records_in"], &tried["stages"][0]["records_out"]), (&json!(1), &json!(2)));
    assert_eq!(tried["stopped"], Value::Null);

    // Errors that the engine would report on a server are reported here.
    let unknown = program(&["test", "-f", &path, "--input", &input], "");
    fails(unknown, 1, &[&format!("{path}:5:16: module `count`"), "--module"]);
    let yaml = "pipeline: p\nfrom: in\nstages:\n  - filter: delayed\nto: out\n";
    let strict = file(&folder, "strict.yaml", yaml);
    let delayed = format!("delayed={}", guest_file("delayed"));
    let stopped = program(&["test", "-f", &strict, "--module", &delayed], "{\"delay\":20}\nno flight\n");
    assert_eq!(stopped.code, Some(1), "{}", stopped.out);
    assert!(
        stopped.err.contains("error: the pipeline stopped: stage delayed, topic in, partition 0, offset 1"),
        "{}",
        stopped.err
    );
    let lenient = file(&folder, "lenient.yaml", yaml.replace("delayed\n", "delayed\n    on-failure: dead-letter\n"));
    let out = program(&["test", "-f", &lenient, "--module", &delayed, "--output", "json"], "no flight\n").ok();
    let tried: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(tried["dead_letters"]["p.dead-letters"][0]["value"], "no flight");
    fails(program(&["test", "-f", &lenient, "--module", &delayed, "--topic", "x"], ""), 1, &["--topic x", "in"]);
    fails(program(&["test", "-f", &lenient, "--module", "nonsense"], ""), 2, &["NAME=FILE"]);
}

// ---- the CLI as a whole

#[test]
fn without_a_server_the_error_says_so() {
    let nobody = |arguments: &[&str]| {
        run(Command::new(millstream()).env("MILLSTREAM_SERVER", "127.0.0.1:1").args(arguments), "line\n")
    };
    let folder = tempfile::tempdir().unwrap();
    let yaml = "pipeline: p\nfrom: in\nstages:\n  - filter: delayed\nto: out\n";
    let path = file(&folder, "p.yaml", yaml);
    for arguments in [
        &["topic", "list"][..],
        &["produce", "t"],
        &["consume", "t"],
        &["consume", "t", "--group", "g"],
        &["module", "list"],
        &["apply", "-f", &path],
        &["group", "describe", "g"],
        &["state", "list", "p"],
    ] {
        let words = ["error: ", "no server answers at 127.0.0.1:1", "millstream serve", "MILLSTREAM_SERVER"];
        fails(nobody(arguments), 3, &words);
    }
    // The flag takes precedence over the environment.
    let (server, _folder) = start();
    assert_eq!(nobody(&["--server", &server.grpc, "topic", "list"]).code, Some(0));
    assert_eq!(nobody(&["topic", "list", "--server", &server.grpc]).code, Some(0));
}

#[test]
fn a_wrong_command_line_is_named() {
    let (server, _folder) = start();
    for (arguments, words) in [
        (&["topicc"][..], "topicc"),
        (&["produce"], "<TOPIC>"),
        (&["consume", "t", "--from", "yesterday"], "use earliest, latest, an offset, a time"),
        (&["consume", "t", "--max", "0"], "write a whole number, 1 or more"),
        (&["consume", "t", "--output", "xml"], "xml"),
        (&["topic", "create", "t", "--partitions", "many"], "write a whole number"),
        (&["serve", "--data", "d", "--grpc", "7070"], "write an IP address and a port"),
        (&["produce", "t", "--compression", "rar"], "use none, gzip, snappy, lz4 or zstd"),
        (&["produce", "t", "--header", "nothing"], "NAME=VALUE"),
        (&["--server", "nonsense", "topic", "list"], "is not a valid address: use host:port"),
        (&["apply"], "--file"),
    ] {
        fails(server.run(arguments), 2, &["error: ", words]);
    }
    let version = server.run(&["--version"]).ok();
    assert!(version.starts_with("millstream 0."), "{version}");
}

/// Returns the leaf commands of the CLI, as listed by its help.
fn commands(path: &[String]) -> Vec<Vec<String>> {
    let help = run(Command::new(millstream()).args(path).arg("--help"), "").ok();
    let Some(list) = help.split("Commands:\n").nth(1) else { return vec![path.to_vec()] };
    let list = list.split("\n\n").next().unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.flat_map(|name| commands(&[path, &[name.to_owned()]].concat())).collect()
}

#[test]
fn every_command_is_run_by_a_test() {
    let tests = [include_str!("cli.rs"), include_str!("backup.rs"), include_str!("check.rs")].concat();
    let commands = commands(&[]);
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands.iter().filter(|command| command[0] != "serve") {
        let run = command.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        assert!(tests.contains(&run), "no test runs {command:?}");
    }
}

// ---- serve

fn get(server: &Server, path: &str) -> (u16, String) {
    page(&server.http, path)
}

#[test]
fn a_server_that_is_told_to_stop_ends_well_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.run(&["topic", "create", "t"]).ok();
    server.run_with_input(&["produce", "t"], "kept\n").ok();
    // A reader, a member and a producer are active.
    let open: Vec<Running> = [
        &["consume", "t", "--from", "earliest"][..],
        &["consume", "t", "--group", "g", "--from", "earliest"],
        &["produce", "t"],
    ]
    .into_iter()
    .map(|arguments| Running::start(&server, arguments))
    .collect();
    wait_until("the member joins", || json_of(&server, &["group", "list"])[0]["state"] == "stable");
    assert_eq!(server.terminate().code(), Some(0));
    drop(open);
    server.restart();
    assert_eq!(server.run(&["consume", "t", "--from", "earliest", "--until-end"]).ok(), "kept\n");
}

#[test]
fn an_address_in_use_is_named() {
    let (server, folder) = start();
    let serve = |flags: [&str; 6]| {
        let mut command = Command::new(millstream());
        run(command.args(["serve", "--log", "error"]).args(flags).arg("--data").arg(folder.path().join("other")), "")
    };
    let ran = serve(["--grpc", &server.grpc, "--http", "127.0.0.1:0", "--kafka-address", "none"]);
    fails(ran, 1, &[&format!("cannot listen on {}", server.grpc), "--grpc", "in use"]);
    let ran = serve(["--grpc", "127.0.0.1:0", "--http", &server.http, "--kafka-address", "none"]);
    fails(ran, 1, &[&format!("cannot listen on {}", server.http), "--http", "in use"]);
    let ran = serve(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--kafka-address", &server.grpc]);
    fails(ran, 1, &[&format!("cannot listen on {}", server.grpc), "--kafka-address", "in use"]);
    let mut command = Command::new(millstream());
    let ran = run(command.args(["serve", "--log", "=,=", "--data"]).arg(folder.path().join("other")), "");
    fails(ran, 1, &["--log \"=,=\" is neither a level"]);
    let mut command = Command::new(millstream());
    let ran = run(command.args(["serve", "--log", "warn,debgu", "--data"]).arg(folder.path().join("other")), "");
    fails(ran, 1, &["--log \"warn,debgu\" is neither a level", "error, warn, info, debug, trace"]);
}

#[test]
fn health_and_readiness_answer() {
    let (server, _folder) = start();
    assert_eq!(get(&server, "/healthz"), (200, "ok\n".into()));
    assert_eq!(get(&server, "/readyz"), (200, "ok\n".into()));
    assert_eq!(get(&server, "/nothing").0, 404);
}

/// Returns the value of the series with these labels.
#[track_caller]
fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let series = |line: &&str| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']));
        rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
    };
    let line = text.lines().find(series).unwrap_or_else(|| panic!("there is no {name} with {labels:?} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_metrics_count_what_was_done() {
    let (server, _folder, path) = start_with_words();
    server.run(&["apply", "-f", &path]).ok();
    server.run_with_input(&["produce", "lines", "--partition", "0"], "to be or not to be\n1\n").ok();
    caught_up(&server);
    server.run(&["consume", "lines", "--from", "earliest", "--until-end"]).ok();
    server.run(&["consume", "lines", "--group", "g", "--from", "earliest", "--max", "1"]).ok();
    let (status, text) = get(&server, "/metrics");
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "an OpenMetrics page must end with # EOF");
    let lines = ["topic=\"lines\""];
    assert_eq!(metric(&text, "millstream_topic_records_in_total", &lines), 2.0);
    assert!(metric(&text, "millstream_topic_bytes_in_total", &lines) > 61.0 + 19.0);
    assert!(metric(&text, "millstream_topic_records_out_total", &lines) >= 3.0);
    assert!(metric(&text, "millstream_topic_bytes_out_total", &lines) > 61.0 + 19.0);
    let commits = metric(&text, "millstream_commits_total", &[]);
    assert!(commits >= 5.0, "{commits}");
    assert_eq!(metric(&text, "millstream_commit_seconds_count", &[]), commits);
    assert!(metric(&text, "millstream_commit_seconds_sum", &[]) > 0.0);
    metric(&text, "millstream_commit_seconds_bucket", &["le=\"+Inf\""]);
    assert!(metric(&text, "millstream_commit_bytes_total", &[]) > 0.0);
    assert_eq!(
        metric(&text, "millstream_group_lag", &["group=\"word-counts\"", "topic=\"lines\"", "partition=\"0\""]),
        0.0
    );
    assert_eq!(metric(&text, "millstream_group_lag", &["group=\"g\"", "topic=\"lines\"", "partition=\"0\""]), 1.0);
    assert_eq!(metric(&text, "millstream_log_end_offset", &["topic=\"lines\"", "partition=\"0\""]), 2.0);
    // A size is a gauge, because it may shrink.
    assert!(metric(&text, "millstream_journal_bytes", &[]) > 0.0);
    let words = ["pipeline=\"word-counts\"", "stage=\"words\""];
    assert!(metric(&text, "millstream_stage_calls_total", &words) >= 1.0);
    assert_eq!(metric(&text, "millstream_stage_records_in_total", &words), 2.0);
    assert_eq!(metric(&text, "millstream_stage_records_out_total", &words), 7.0);
    assert_eq!(metric(&text, "millstream_stage_failures_total", &words), 0.0);
    assert!(metric(&text, "millstream_stage_seconds_sum", &words) > 0.0);
    assert_eq!(
        metric(&text, "millstream_stage_seconds_count", &words),
        metric(&text, "millstream_stage_calls_total", &words)
    );
    let memory = metric(&text, "millstream_stage_guest_memory_bytes", &words);
    assert!(memory >= 65_536.0 && memory % 65_536.0 == 0.0, "{memory}");
    // Every series has a HELP line.
    for line in text.lines().filter(|line| line.starts_with("millstream_")) {
        let name = line.split(['{', ' ']).next().unwrap();
        let known = |line: &str| line.split(' ').nth(2).is_some_and(|family| name.starts_with(family));
        assert!(text.lines().any(|line| line.starts_with("# HELP") && known(line)), "{name} has no HELP");
    }
    // Deleted topics and pipelines have no series.
    server.run(&["pipeline", "delete", "word-counts"]).ok();
    server.run(&["topic", "delete", "lines"]).ok();
    let (_, text) = get(&server, "/metrics");
    assert!(!text.contains("topic=\"lines\"") && !text.contains("pipeline=\"word-counts\""), "{text}");
}

#[test]
fn the_log_is_json_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(millstream());
    command.args([
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--kafka-address",
        "none",
        "--log-format",
        "json",
        "--data",
    ]);
    let mut child = Running(command.arg(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("millstream 0.") && line.contains("gRPC 127.0.0.1:"), "{line}");
    child.interrupt();
    let ran = child.end();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let said: Vec<_> = lines_of_json(&ran.err).iter().map(|line| line["fields"]["message"].clone()).collect();
    assert_eq!(said, ["ready", "stopping", "stopped"]);
}

#[test]
fn the_repositorys_example_files_run() {
    let examples: Vec<PathBuf> =
        fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!examples.is_empty());
    for example in examples.iter().filter(|path| path.extension().is_some_and(|of| of == "yaml")) {
        let ran = tried(example);
        assert_eq!(ran.code, Some(0), "{}: {}", example.display(), ran.err);
        assert!(ran.out.contains("STAGE"), "{}: {}", example.display(), ran.out);
    }
}

fn tried(example: &Path) -> Ran {
    let mut command = Command::new(millstream());
    command.args(["test", "-f"]).arg(example);
    for guest in ["delayed", "alert", "by-origin", "mean-delay"] {
        command.args(["--module", &format!("{guest}={}", guest_file(guest))]);
    }
    run(&mut command, &flights()[0].line)
}

#[test]
fn a_file_with_a_wrong_key_is_told_the_servers_mistakes_too() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let yaml = "pipeline: x\nfrom: nowhere\nstages:\n  - filter: nothing\n    on-failur: skip\nto: y\n";
    let ran = server.run_with_input(&["apply", "-f", "-"], yaml);
    assert_eq!(ran.code, Some(1));
    for place in ["stdin:2:7: there is no topic", "stdin:4:13: module `nothing`", "stdin:5:5: unknown key `on-failur`"]
    {
        assert!(ran.err.contains(place), "{}", ran.err);
    }
}

#[test]
fn a_stopped_data_directory_is_checked_and_repaired_and_one_in_use_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path());
    server.run(&["topic", "create", "t"]).ok();
    server.run_with_input(&["produce", "t"], "one\ntwo\n").ok();
    let check = |more: &[&str]| {
        let mut command = Command::new(millstream());
        command.args(["check", "--data"]).arg(data.path()).args(more);
        run(&mut command, "")
    };
    fails(check(&[]), 1, &["in use by another process"]);
    assert!(server.terminate().success());
    check(&[]).ok();
    let sound: Value = serde_json::from_str(&check(&["--output", "json"]).ok()).unwrap();
    assert_eq!(sound["damages"].as_array().map(Vec::len), Some(0), "{sound}");

    // Flips a bit of the record's value in the journal.
    let file = data.path().join("millstream.redb");
    let mut bytes = fs::read(&file).unwrap();
    let places: Vec<usize> = bytes.windows(3).enumerate().filter(|(_, w)| *w == b"two").map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at] ^= 1);
    fs::write(&file, bytes).unwrap();
    let found = check(&["--output", "json"]);
    assert_eq!(found.code, Some(1), "{} {}", found.out, found.err);
    let found: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(found["damages"][0]["topic"], "t", "{found}");
    assert!(check(&[]).out.contains("--repair` keeps all that is sound"));
    check(&["--repair"]).ok();
    check(&[]).ok();
    server.restart();
    // Only a gap remains, and a consumer that reads to the end gets past it.
    for group in [&[][..], &["--group", "g"]] {
        let read = [&["consume", "t", "--from", "earliest", "--until-end"], group].concat();
        assert_eq!(server.run(&read).ok(), "");
    }
    assert_eq!(json_of(&server, &["group", "list"])[0]["lag"], 0);
    server.run_with_input(&["produce", "t"], "three\n").ok();
    assert_eq!(server.run(&["consume", "t", "--from", "earliest", "--until-end"]).ok(), "three\n");

    // A file that does not begin like a database cannot be repaired, and a start refers to the check.
    assert!(server.terminate().success());
    let mut bytes = fs::read(&file).unwrap();
    bytes[0] ^= 1;
    fs::write(&file, bytes).unwrap();
    let refuses = |words: &[&str]| {
        let mut serve = Command::new(millstream());
        serve
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--kafka-address", "none", "--data"])
            .arg(data.path());
        fails(run(&mut serve, ""), 1, words);
    };
    refuses(&["millstream.redb is corrupt: ", "`millstream check --data DIR` finds all damage"]);
    for arguments in [&[][..], &["--repair"]] {
        let found = check(arguments);
        assert_eq!(found.code, Some(1), "{} {}", found.out, found.err);
        assert!(found.out.contains("1 damage cannot be repaired"), "{}", found.out);
        assert!(!found.out.contains("keeps all that is sound"), "{}", found.out);
    }
    // A missing or truncated database is not replaced with an empty one either.
    let gone = ["millstream.redb is missing or empty, and the directory holds data that needs it: go back to a backup"];
    fs::write(&file, "").unwrap();
    refuses(&gone);
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    fs::remove_file(&file).unwrap();
    refuses(&gone);
    assert!(!file.exists());
}
