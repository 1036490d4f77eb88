//! Tests the SDK natively, as the author of a guest would.

use millstream::__rt::{Batch, Column, parse_parameters, run_add, run_filter, run_map};
use millstream::prelude::*;

fn column(entries: &[&str]) -> Column {
    Column { lengths: entries.iter().map(|e| e.len() as i32).collect(), bytes: entries.concat().into_bytes() }
}

fn batch(values: &[&str]) -> Batch {
    Batch {
        offsets: (0..values.len() as i64).collect(),
        timestamps: vec![7; values.len()],
        keys: column(&vec!["k"; values.len()]),
        values: column(values),
        ..Batch::default()
    }
}

#[derive(Debug, PartialEq, Deserialize)]
struct Settings {
    minutes: i64,
    #[serde(default)]
    mode: Mode,
    note: Option<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Strict,
    Loose,
}

fn parse(parameters: &[(&str, &str)]) -> Result<Settings, String> {
    let owned: Vec<_> = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    parse_parameters(&owned)
}

#[test]
fn parameters_are_parsed_to_the_fields_types() {
    let parsed = parse(&[("minutes", "15"), ("mode", "loose"), ("note", "x")]).unwrap();
    assert_eq!(parsed, Settings { minutes: 15, mode: Mode::Loose, note: Some("x".into()) });
    assert_eq!(parse(&[("minutes", "-1")]).unwrap().mode, Mode::Strict);
}

#[test]
fn wrong_parameters_are_named() {
    assert_eq!(parse(&[]).unwrap_err(), "the parameter \"minutes\" is missing");
    let error = parse(&[("minutes", "soon")]).unwrap_err();
    assert_eq!(error, "parameter \"minutes\": \"soon\": invalid digit found in string");
    let error = parse(&[("minute", "1")]).unwrap_err();
    assert_eq!(error, "there is no parameter \"minute\": this stage takes minutes, mode, note");
    assert!(parse(&[("minutes", "1"), ("mode", "wild")]).unwrap_err().contains("wild"));
}

#[test]
fn a_filter_gives_a_verdict_a_record() {
    let filtered = run_filter(&batch(&["1", "x", "3"]), |record| Ok(record.value_str()?.parse::<u32>()? > 1));
    assert_eq!(filtered.verdicts, [0, 2, 1]);
    assert_eq!(filtered.failures, [(1, "invalid digit found in string".to_owned())]);
}

#[test]
fn a_map_leaves_out_what_it_does_not_change() {
    let input = batch(&["a", "b"]);
    let mapped = run_map(&input, |record, out| {
        out.pass();
        if record.offset() == 1 {
            out.pass_with_key("new");
        }
        Ok(())
    });
    assert_eq!(mapped.sources, [0, 1, 1]);
    assert_eq!(mapped.keys, Some(column(&["k", "k", "new"])));
    assert!(mapped.values.is_none() && mapped.timestamps.is_none() && mapped.headers.is_none());
}

#[test]
fn a_failed_record_leaves_nothing_behind() {
    let input = batch(&["a", "b", "c"]);
    let mapped = run_map(&input, |record, out| {
        if record.offset() == 1 {
            out.emit_record(&NewRecord::new().with_key("x").with_header("h", "1").with_timestamp_ms(1));
            bail!("no");
        }
        out.emit(&record.value_str()?.to_uppercase());
        Ok(())
    });
    assert_eq!(mapped.sources, [0, 2]);
    assert_eq!(mapped.values, Some(column(&["A", "C"])));
    assert!(mapped.keys.is_none() && mapped.headers.is_none());
    assert_eq!(mapped.failures, [(1, "no".to_owned())]);
}

#[test]
fn output_is_seen_by_tests_with_every_field() {
    let record = Record::of("v").with_key("k").with_timestamp_ms(5).with_header("h", "1");
    let out = Output::collect(&record, |out| {
        out.pass();
        out.emit_json(&[1, 2])?;
        Ok(())
    })
    .unwrap();
    assert_eq!(out.len(), 2);
    assert_eq!((out[0].key_str(), out[0].value_str(), out[0].timestamp_ms()), ("k", "v", Some(5)));
    assert_eq!(out[1].value_str(), "[1,2]");
    assert_eq!(out[1].headers(), [("h".to_owned(), Some(b"1".to_vec()))]);
}

struct Sum;

impl Aggregate for Sum {
    type Accumulator = (u64, Vec<u64>);

    fn add(&self, sum: &mut Self::Accumulator, record: &Record<'_>) -> Result<()> {
        // The accumulator is intentionally changed before the record is known to be valid.
        sum.0 += 1000;
        let n = record.value_str()?.parse::<u64>()?;
        sum.0 += n;
        sum.0 -= 1000;
        sum.1.push(n);
        Ok(())
    }

    fn merge(&self, sum: &mut Self::Accumulator, other: Self::Accumulator) -> Result<()> {
        sum.0 += other.0;
        Ok(())
    }

    fn finish(&self, _: &[u8], sum: &Self::Accumulator) -> Result<Value> {
        Ok(sum.0.to_string().into())
    }
}

#[test]
fn a_failed_add_leaves_no_trace_in_the_accumulator() {
    let input = batch(&["1", "x", "2", "y", "3", "z"]);
    let accumulators = Column { lengths: vec![-1, -1], bytes: vec![] };
    let added = run_add(&Sum, &input, &[0, 0, 1, 1, 0, 0], &accumulators);
    assert_eq!(added.failures.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 3, 5]);
    let first = &added.accumulators.bytes[..added.accumulators.lengths[0] as usize];
    assert_eq!(postcard::from_bytes::<(u64, Vec<u64>)>(first).unwrap(), (4, vec![1, 3]));
}
