//! Tests of the benchmark's instruments.

use std::process::Command;
use std::time::{Duration, Instant};

use millstream_client::{ProducerSettings, v1};
use millstream_tests::measure::comparison::Comparison;
use millstream_tests::measure::kafka::{Consumed, Jars, Produced};
use millstream_tests::measure::open_loop::{OpenLoop, Schedule};
use millstream_tests::measure::page_cache::ColdFiles;
use millstream_tests::measure::process::disk_read_bytes_of_this_thread;
use millstream_tests::measure::report::{Figure, Report, Run, Unit};
use millstream_tests::measure::samples::{Latency, median, percentile};
use millstream_tests::measure::turns;
use millstream_tests::root;
use millstream_tests::server::{Server, run};

#[test]
fn medians_and_percentiles_are_of_the_nearest_rank() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    let thousand: Vec<f64> = (1..=1000).map(f64::from).collect();
    let of = |part| percentile(&thousand, part);
    assert_eq!((of(0.5), of(0.99), of(0.999), of(1.0)), (500.0, 990.0, 999.0, 1000.0));
    assert_eq!((percentile(&[7.0], 0.0), percentile(&[7.0], 0.999)), (7.0, 7.0));
}

#[test]
fn the_worst_round_counts_for_tails_and_the_middle_one_for_the_median() {
    let round = |slowest: f64| Latency::of((1..=1000).map(|n| if n > 985 { slowest } else { f64::from(n) }).collect());
    let all = Latency::of_rounds(&[round(5_000.0), round(9_000.0), round(2_000.0)]);
    assert_eq!(all.samples, 3_000);
    assert_eq!((all.p50_ms, all.p99_ms, all.p999_ms, all.max_ms), (500.0, 9_000.0, 9_000.0, 9_000.0));
}

#[test]
fn a_tail_of_too_few_samples_is_left_out() {
    let latency = |samples| Latency::of((1..=samples).map(f64::from).collect());
    let figures = |samples| {
        let mut report = report([]);
        report.add_latency_beside("l", &[latency(20_000), latency(samples)], &[("y", &[latency(100)])]);
        report.figures.into_iter().map(|figure| (figure.name, figure.yardsticks[0].value)).collect::<Vec<_>>()
    };
    let [p50, p99, p999, max] = ["p50", "p99, worst round", "p99.9, worst round", "max, worst round"];
    let tails =
        |of: &[(&str, f64)]| -> Vec<_> { of.iter().map(|(tail, beside)| (format!("l {tail}"), *beside)).collect() };
    assert_eq!(figures(10_000), tails(&[(p50, 50.0), (p99, 99.0), (p999, 100.0), (max, 100.0)]));
    assert_eq!(figures(9_999), tails(&[(p50, 50.0), (p99, 99.0), (max, 100.0)]));
    assert_eq!(figures(999), tails(&[(p50, 50.0), (max, 100.0)]));
}

#[test]
fn contenders_take_turns() {
    assert_eq!(turns::order(0, &["ours", "kafka"]), ["ours", "kafka"]);
    assert_eq!(turns::order(1, &["ours", "kafka"]), ["kafka", "ours"]);
    assert_eq!(turns::order(2, &["ours", "kafka"]), ["ours", "kafka"]);
}

#[test]
fn records_are_due_at_a_steady_rate_however_many_there_are() {
    let begun = Instant::now();
    let schedule = Schedule { begun, per_second: 3_000_000 };
    assert_eq!(schedule.due(0), begun);
    assert_eq!(schedule.due(1_500_000), begun + Duration::from_millis(500));
    assert_eq!(schedule.due(3_000_000 * 86_400), begun + Duration::from_secs(86_400));
}

/// The server is suspended for half a second, and the producer's buffer has room for only a few records, so that most
/// of the records that are due meanwhile cannot even be sent. Measured from their sends, they would take no time.
#[tokio::test(flavor = "multi_thread")]
async fn latency_counts_from_when_a_record_was_due() {
    const PER_SECOND: u64 = 1_000;
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let client = server.client();
    client.admin().create_topic("t", Some(1), v1::TopicSettings::default()).await.unwrap();
    let settings = ProducerSettings {
        batch_bytes: 1_024,
        buffer_bytes_max: 8 * 1_024,
        linger_ms: 0,
        ..ProducerSettings::default()
    };
    let producer = client.producer(settings);
    let to = producer.topic("t").await.unwrap();
    let load = OpenLoop { per_second: PER_SECOND, records: 2 * PER_SECOND, warm_up: 0, sampled: 1 };
    let pid = server.pid().to_string();
    let stand_still = move || {
        let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
        signal("-STOP");
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        let stood_still = begun.elapsed();
        signal("-CONT");
        stood_still
    };
    let mut standing_still = None;
    let answered = load
        .run(&to, |number, _, record| {
            record.value = vec![b'x'; 100];
            if number == PER_SECOND / 2 {
                standing_still = Some(std::thread::spawn(stand_still.clone()));
            }
        })
        .await
        .unwrap();
    let stood_still = standing_still.unwrap().join().unwrap();
    producer.close().await.unwrap();
    let late = |ms: u64| answered.acknowledged_ms.iter().filter(|&&took| took >= ms as f64).count() as u64;
    // A record that was due while the server was suspended, at least 100 ms before the end, had to wait at least that
    // long.
    let least = (stood_still.as_millis() as u64 - 100) * PER_SECOND / 1_000;
    assert!(late(100) >= least, "{} records waited at least 100 ms, but at least {least} must have", late(100));
    assert_eq!(answered.acknowledged_ms.len() as u64, 2 * PER_SECOND);
}

#[test]
fn a_warm_up_is_sent_and_not_measured() {
    let load = OpenLoop::new(10_000, 3, 2_000);
    assert_eq!((load.records, load.warm_up, load.sampled), (40_000, 10_000, 5));
    assert!(!load.is_sampled(9_995) && load.is_sampled(10_000) && !load.is_sampled(10_001));
    assert_eq!(OpenLoop::new(10, 3, 2_000).sampled, 1);
}

#[test]
fn cold_files_are_read_from_the_disk() {
    const BYTES: usize = 8 << 20;
    // The folder is next to the build, which is on a disk. The system's folder for temporary files is often in memory.
    let folder = tempfile::tempdir_in(root().join("target")).unwrap();
    let path = folder.path().join("deep").join("file");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    std::fs::write(&path, vec![7; BYTES]).unwrap();
    let read = || {
        let before = disk_read_bytes_of_this_thread();
        assert_eq!(std::fs::read(&path).unwrap().len(), BYTES);
        disk_read_bytes_of_this_thread() - before
    };
    let cold = ColdFiles::of(folder.path()).unwrap();
    assert_eq!(cold.bytes(), BYTES as u64);
    let (first, warm) = (read(), read());
    cold.evict().unwrap();
    let again = read();
    // The kernel may also evict pages on its own, so the warm read is not checked.
    println!("{first} bytes, then {warm}, then {again}");
    assert!(first >= BYTES as u64 && again >= BYTES as u64, "only {first} and {again} bytes were read from the disk");
}

fn report(figures: impl IntoIterator<Item = Figure>) -> Report {
    let mut report = Report::new(Run { divided_by: 1, cores: 2, ..Run::default() });
    figures.into_iter().for_each(|figure| report.add(figure));
    report
}

fn figure(name: &str, value: f64, unit: Unit) -> Figure {
    Figure::new(name, value, unit)
}

#[test]
fn a_comparison_has_every_figure_of_both_reports_once() {
    let old = report([
        figure("produce", 100.0, Unit::RecordsPerSecond).beside("Kafka", 50.0).beside_another_run("last year", 1.0),
        figure("produce", 10.0, Unit::MegabytesPerSecond),
        figure("gone", 1.0, Unit::Seconds),
    ]);
    let new = report([
        figure("produce", 10.0, Unit::MegabytesPerSecond),
        figure("produce", 150.0, Unit::RecordsPerSecond).beside_another_run("last year", 1.0).beside("Kafka", 100.0),
        figure("consume", 7.0, Unit::RecordsPerSecond),
    ]);
    let comparison = Comparison::of(&old, &new);
    let pairs = comparison.pairs();
    let ratios: Vec<_> = pairs.iter().map(|pair| (pair.ratio(), pair.yardstick_ratio())).collect();
    assert_eq!(ratios, [(Some(1.0), None), (Some(1.5), Some(2.0)), (None, None), (None, None)]);
    let table = comparison.to_string();
    for row in [
        ["produce", "records/s", "100", "150", "1.50", "2.00"].as_slice(),
        &["consume", "records/s", "-", "7"],
        &["gone", "s", "1", "-"],
    ] {
        let is = |line: &str| line.split_whitespace().eq(row.iter().copied());
        assert!(table.lines().any(is), "there is no row {row:?} in\n{table}");
    }
    assert!(!table.contains("not alike"), "{table}");
}

#[test]
fn a_comparison_of_some_benchmarks_leaves_the_others_alone() {
    let old = report([figure("produce", 1.0, Unit::Seconds), figure("consume", 1.0, Unit::Seconds)]);
    let mut new = report([figure("consume", 2.0, Unit::Seconds)]);
    new.run = Run { only: Some("cons".into()), divided_by: 10, ..new.run };
    let table = Comparison::of(&old, &new).to_string();
    assert!(table.contains("consume") && !table.contains("produce"), "{table}");
    assert!(table.contains("not alike"), "the comparison must say that the runs differ:\n{table}");
}

#[test]
fn a_report_is_read_as_it_was_written_with_every_unit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut written = report([
        figure("a", 1.5, Unit::MicrosecondsPerRecord).beside("b", 3.0).at_most(1.0),
        figure("c", f64::NAN, Unit::Seconds),
    ]);
    written.leave_out("Apache Kafka", "Java is not there");
    written.leave_out("Apache Kafka", "Java is not there");
    written.write(&path).unwrap();
    assert_eq!(Report::read(&path).unwrap(), written);
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(json["figures"].as_array().unwrap().len(), 1, "NaN must not be a figure");
    let figure = &json["figures"][0];
    assert_eq!((figure["unit"].as_str(), figure["met"].as_bool()), (Some("us/record"), Some(false)));
    assert_eq!(figure["yardsticks"][0]["unit"], "us/record");
    assert_eq!(json["left_out"].as_array().unwrap().len(), 2, "{json}");
    assert!(written.to_string().contains("Apache Kafka was left out: Java is not there"), "{written}");
}

#[test]
fn reports_of_before_there_were_several_yardsticks_can_be_compared() {
    let json = r#"{"figures": [{"name": "append", "value": 12.5, "unit": "MB/s",
        "yardstick": {"name": "bare redb", "value": 20.0}, "target": {"at_least": 12.0}, "met": true}]}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.json");
    std::fs::write(&path, json).unwrap();
    let old = Report::read(&path).unwrap();
    let new = report([figure("append", 25.0, Unit::MegabytesPerSecond)]);
    assert_eq!(Comparison::of(&old, &new).pairs()[0].ratio(), Some(2.0));
}

const PRODUCER_SAID: &str = "\
Warmup first 200000 records. Steady state results will print after the complete test summary.
418681 records sent, 83702.7 records/sec (7.98 MB/sec), 2339.6 ms avg latency, 3395.0 ms max latency.
1000000 records sent, 148389.968838 records/sec (14.15 MB/sec), 1280.42 ms avg latency, 1847.00 ms max latency, \
1367 ms 50th, 1785 ms 95th, 1831 ms 99th, 1838 ms 99.9th.
800000 steady state records sent, 167855.644146 records/sec (16.01 MB/sec), 1426.21 ms avg latency, 1846.00 ms max \
latency, 1478 ms 50th, 1793 ms 95th, 1832 ms 99th, 1839 ms 99.9th.
";

#[test]
fn of_kafkas_producer_the_steady_state_counts() {
    let produced = Produced::read(PRODUCER_SAID).unwrap();
    assert_eq!(produced.records_per_s, 167_855.644_146);
    let expected = Latency { samples: 800_000, p50_ms: 1_478.0, p99_ms: 1_832.0, p999_ms: 1_839.0, max_ms: 1_846.0 };
    assert_eq!(produced.latency, expected);
    assert_eq!(Produced::read("1000000 records sent, 148389.97 records/sec."), None);
}

#[test]
fn of_kafkas_consumer_the_fetching_counts() {
    let said = "WARNING: some option is deprecated\n\
                2026-11-30 02:02:32:883, 2026-11-30 02:02:35:343, 190.7349, 77.5345, 2000000, 813008.1301, 537, 1923, \
                99.1861, 1040041.6017\n";
    let consumed = Consumed::read(said).unwrap();
    assert_eq!((consumed.records, consumed.records_per_s), (2_000_000.0, 1_040_041.601_7));
    assert_eq!(Consumed::read("no records"), None);
}

#[test]
fn javas_versions_are_read_in_all_their_forms() {
    assert_eq!(Jars::java_version("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime"), Some(17));
    assert_eq!(Jars::java_version("openjdk version \"25\" 2025-09-16"), Some(25));
    assert_eq!(Jars::java_version("openjdk version \"26-ea\" 2026-03-17"), Some(26));
    assert_eq!(Jars::java_version("java version \"1.8.0_292\""), Some(8));
    assert_eq!(Jars::java_version("no such thing"), None);
}

/// Runs a quick benchmark that needs no server, and compares it with an older report, like `cargo xtask bench --quick
/// --compare OLD.json NAME`.
#[test]
fn the_benchmark_writes_its_figures_and_compares_them() {
    let folder = tempfile::tempdir().unwrap();
    let (json, older) = (folder.path().join("new.json"), folder.path().join("old.json"));
    let bench = |arguments: &[&str]| {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_millstream-bench"));
        run(bench.args(["--quick", "--json"]).arg(&json).args(arguments), "")
    };
    let name = "append, durable, 1 partition";
    report([figure(name, 1.0, Unit::MegabytesPerSecond)]).write(&older).unwrap();
    let out = bench(&["--compare", older.to_str().unwrap(), name]).ok();
    let written = Report::read(&json).unwrap();
    let measured = written.figure(name, Unit::MegabytesPerSecond).unwrap();
    assert_eq!(measured.yardsticks.len(), 2, "there must be two yardsticks, redb and a plain file: {measured:?}");
    assert_eq!((written.run.divided_by, written.run.only.as_deref()), (10, Some(name)));
    assert!(out.contains("yardstick's ratio"), "{out}");
    for (arguments, reason) in [
        (["no such benchmark"].as_slice(), "no benchmark"),
        (&["--no-such-option"], "there is no option --no-such-option"),
        (&["--compare", "/no/such/file", name], "/no/such/file"),
    ] {
        let ran = bench(arguments);
        assert!(ran.code == Some(1) && ran.err.contains(reason), "{arguments:?}: {ran:?}");
    }
}
