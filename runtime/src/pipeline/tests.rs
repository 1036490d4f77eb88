//! Tests of each mistake that a pipeline file can have, with its place and message, and of the meaning of valid files.

use std::collections::BTreeMap;

use millstream_broker::name::TopicName;

use super::*;
use crate::failure::FailurePolicy;
use crate::host::{CallLimits, ModuleHash, StageKind};

const FULL: &str = r#"pipeline: delayed-flights
from: [flights, more-flights]
start: latest
stages:
  - filter: delayed
    name: late-only
    with: { minutes: "15", strict: true, ratio: 0.50, zero: 007 }
    on-failure: dead-letter
    to: late-flights
    limits: { call-deadline-ms: 500, memory-bytes-max: 33554432, output-bytes-max: 1048576 }
  - map: ./modules/by_origin.wasm
    keeps-key: true
  - aggregate: mean-delay:v2
    on-failure: skip
to: delays-by-airport
dead-letters: my-dead-letters
"#;

fn told(mistakes: &Mistakes) -> Vec<String> {
    mistakes.as_slice().iter().map(|m| format!("{}:{} {}", m.line, m.column, m.message)).collect()
}

fn mistakes_in(text: &str) -> Vec<String> {
    told(&parse(text).expect_err("the file has a mistake"))
}

/// Puts `stages` between three header lines and a `to`, so that the first stage is on line 4.
fn with_stages(stages: &str) -> String {
    format!("pipeline: p\nfrom: a\nstages:\n{stages}\nto: z\n")
}

// The meaning of valid files.

#[test]
fn a_full_file_is_read_with_its_places() {
    let spec = parse(FULL).expect("a good file");
    let at = |line, column| Place { line, column };
    assert_eq!(spec.name, Placed::new("delayed-flights".into(), at(1, 11)));
    assert_eq!(spec.from[0], Placed::new("flights".into(), at(2, 8)));
    assert_eq!(spec.from[1], Placed::new("more-flights".into(), at(2, 17)));
    assert_eq!(spec.start, Start::Latest);
    assert_eq!(spec.to, Some(Placed::new("delays-by-airport".into(), at(15, 5))));
    assert_eq!(spec.dead_letters, Some(Placed::new("my-dead-letters".into(), at(16, 15))));
    assert_eq!(spec.stages.len(), 3);

    let filter = &spec.stages[0];
    assert_eq!(filter.kind, Placed::new(StageKind::Filter, at(5, 5)));
    assert_eq!((filter.module.value.as_str(), filter.module.place), ("delayed", at(5, 13)));
    assert_eq!(filter.name, Placed::new("late-only".into(), at(6, 11)));
    let with: Vec<_> = filter.with.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(with, ["minutes=15", "ratio=0.50", "strict=true", "zero=007"]);
    assert_eq!(filter.on_failure, FailurePolicy::DeadLetter);
    assert_eq!(filter.to, Some(Placed::new("late-flights".into(), at(9, 9))));
    assert_eq!(filter.limits.call_deadline_ms, 500);
    assert_eq!(filter.limits.memory_bytes_max, 33_554_432);
    assert_eq!(filter.limits.output_bytes_max, 1_048_576);
    assert!(!filter.keeps_key);

    let map = &spec.stages[1];
    assert_eq!(map.module.value.path(), Some("./modules/by_origin.wasm"));
    assert_eq!(map.name, Placed::new("by_origin".into(), at(11, 10)));
    assert!(map.keeps_key);
    assert_eq!((map.on_failure, map.limits), (FailurePolicy::Stop, CallLimits::default()));

    let aggregate = &spec.stages[2];
    assert_eq!((aggregate.module.value.name(), aggregate.module.value.tag()), ("mean-delay", "v2"));
    assert_eq!(aggregate.name.value, "mean-delay");
    assert_eq!(aggregate.on_failure, FailurePolicy::Skip);
}

#[test]
fn the_least_file_has_defaults() {
    let spec = parse("pipeline: p\nfrom: a\nstages:\n- filter: f\nto: b\n").expect("a good file");
    assert_eq!(spec.start, Start::Earliest);
    assert_eq!(spec.from.len(), 1);
    assert_eq!(spec.stages[0].name.value, "f");
    assert_eq!(spec.stages[0].on_failure, FailurePolicy::Stop);
    assert_eq!(spec.stages[0].module.value.tag(), "latest");
    assert!(spec.stages[0].with.is_empty());
    assert_eq!(spec.dead_letter_topic(), None);
}

#[test]
fn the_design_s_example_is_good() {
    let text = "# comment\npipeline: delayed-flights\nfrom: flights\nstages:\n  - filter: delayed               # a module\n    \
                with: { minutes: \"15\" }\n    on-failure: dead-letter\n  - map: by-origin\n  - aggregate: mean-delay\n\
                to: delays-by-airport\n";
    let spec = parse(text).expect("a good file");
    assert_eq!(spec.dead_letter_topic().as_deref(), Some("delayed-flights.dead-letters"));
    assert_eq!(spec.outputs(), ["delays-by-airport"]);
}

#[test]
fn a_file_may_be_json_or_have_a_byte_order_mark_or_crlf() {
    parse(r#"{"pipeline": "p", "from": ["a"], "stages": [{"map": "m"}], "to": "b"}"#).expect("JSON is YAML");
    parse("\u{feff}pipeline: p\r\nfrom: a\r\nstages:\r\n  - map: m\r\nto: b\r\n").expect("as Windows writes it");
    parse("---\npipeline: p\nfrom: a\nstages:\n  - map: m\nto: b\n...\n").expect("one document with its marks");
}

#[test]
fn parameters_may_be_blocks_of_text() {
    let text = with_stages("  - map: m\n    with:\n      query: |\n        one\n        two\n      'quoted name': ~x");
    let spec = parse(&text).expect("a good file");
    assert_eq!(spec.stages[0].with["query"], "one\ntwo\n");
    assert_eq!(spec.stages[0].with["quoted name"], "~x");
}

#[test]
fn empty_with_and_limits_are_as_if_left_out() {
    let spec = parse(&with_stages("  - map: m\n    with:\n    limits:")).expect("a good file");
    assert!(spec.stages[0].with.is_empty());
    assert_eq!(spec.stages[0].limits, CallLimits::default());
}

#[test]
fn the_last_stage_s_own_topic_will_do() {
    let spec = parse("pipeline: p\nfrom: a\nstages:\n  - map: m\n    to: b\n").expect("a good file");
    assert_eq!((spec.to.is_none(), spec.outputs()), (true, vec!["b"]));
}

#[test]
fn module_paths_are_told_once() {
    let stages =
        "  - map: ./m.wasm\n    name: one\n  - map: /x/n.wasm\n  - map: ./m.wasm\n    name: two\n  - filter: f";
    assert_eq!(parse(&with_stages(stages)).expect("good").module_paths(), ["./m.wasm", "/x/n.wasm"]);
}

#[test]
fn module_references_have_three_forms() {
    let parts = |text: &str| {
        ModuleRef::new(text).map(|m| (m.path().is_some(), m.name().to_owned(), m.tag().to_owned())).map_err(|_| ())
    };
    let is = |path, name: &str, tag: &str| Ok((path, name.to_owned(), tag.to_owned()));
    assert_eq!(parts("a"), is(false, "a", "latest"));
    assert_eq!(parts("a:v1.2"), is(false, "a", "v1.2"));
    assert_eq!(parts("../x/y.z.wasm"), is(true, "y.z", "latest"));
    assert_eq!(parts("/m"), is(true, "m", "latest"));
    for wrong in ["", "a:", ":a", "a:b:c", "a b", "x/y", "m.wasm", "./", "..", ".", "./a\nb"] {
        assert_eq!(parts(wrong), Err(()), "{wrong:?}");
    }
}

#[test]
fn a_spec_survives_json() {
    let spec = parse(FULL).expect("a good file");
    let json = serde_json::to_string(&spec).expect("to JSON");
    assert_eq!(serde_json::from_str::<PipelineSpec>(&json).expect("from JSON"), spec);
    assert!(serde_json::from_str::<ModuleRef>("\"a b\"").is_err());
}

// Mistakes in the text itself.

#[test]
fn no_yaml() {
    let told = mistakes_in("pipeline: p\nfrom: [a\n");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("not YAML: "), "{told:?}");
    let told = mistakes_in("pipeline: p\nfrom: a: b\n");
    assert!(told[0].starts_with("2:8 not YAML: mapping values are not allowed"), "{told:?}");
    let told = mistakes_in("pipeline: p\nfrom: a\nstages:\n\t- map: m\n");
    assert!(told[0].starts_with("4:") && told[0].contains("not YAML: "), "{told:?}");
}

#[test]
fn empty_files() {
    for text in ["", "\n\n", "# nothing\n", "---\n", "~"] {
        assert_eq!(
            mistakes_in(text),
            ["1:1 the file has no pipeline; it must begin with `pipeline: <name>`"],
            "{text:?}"
        );
    }
}

#[test]
fn not_a_mapping() {
    let all = "the file must be a mapping of `pipeline`, `from`, `start`, `stages`, `to`, `dead-letters`";
    assert_eq!(mistakes_in("hello"), [format!("1:1 {all}")]);
    assert_eq!(mistakes_in("# x\n- a\n"), [format!("2:1 {all}")]);
}

#[test]
fn too_long() {
    let text = format!("pipeline: p\n#{}", "x".repeat(PIPELINE_FILE_BYTES_MAX));
    assert_eq!(mistakes_in(&text), ["1:1 the file has 262157 bytes; the maximum is 262144"]);
}

#[test]
fn too_deep() {
    let told = mistakes_in(&format!("pipeline: {}", "[".repeat(200)));
    assert_eq!(told, ["1:26 nested more than 16 levels deep"]);
    let told = mistakes_in(&"- ".repeat(100_000));
    assert_eq!(told, ["1:33 nested more than 16 levels deep"]);
}

#[test]
fn every_duplicate_key() {
    let text = "pipeline: p\nfrom: a\nfrom: b\nstages:\n  - map: m\n    with: { x: 1, x: 2 }\nto: z\nfrom: c\n";
    assert_eq!(
        mistakes_in(text),
        [
            "3:1 `from` is a duplicate key; it first appears on line 2",
            "6:19 `x` is a duplicate key; it first appears on line 6",
            "8:1 `from` is a duplicate key; it first appears on line 2",
        ]
    );
}

#[test]
fn a_second_document() {
    let text = "pipeline: p\nfrom: a\nstages: [{map: m}]\nto: z\n---\npipeline: q\n";
    assert_eq!(mistakes_in(text), ["5:1 a second YAML document begins here; a file must have only one pipeline"]);
}

#[test]
fn anchors_aliases_tags_and_mappings_as_keys() {
    let text =
        "pipeline: p\nfrom: &a flights\nstages:\n  - map: m\n    with: { ? [k] : v }\nto: !!str z\ndead-letters: *a\n";
    let told = mistakes_in(text);
    assert_eq!(
        told,
        [
            "2:7 anchors (&name) are not supported in pipeline files; write the value where it is used",
            "5:15 a key must be text, not a list or a mapping",
            "6:5 tags (!name) are not supported in pipeline files; remove it",
            "7:15 aliases (*name) are not supported in pipeline files; write the value out",
        ]
    );
}

// Mistakes in the keys of the file.

#[test]
fn everything_missing() {
    assert_eq!(
        mistakes_in("start: latest\n"),
        [
            "1:1 `from` is missing: the topic to read, or a list of them",
            "1:1 `pipeline` is missing: the pipeline's name",
            "1:1 `stages` is missing: a list of filter, map and aggregate stages",
        ]
    );
}

#[test]
fn unknown_keys() {
    let text = "pipelin: p\nform: a\nwindow: 5\nstages:\n  - map: m\nto: z\n";
    assert_eq!(
        mistakes_in(text),
        [
            "1:1 unknown key `pipelin`; did you mean `pipeline`?",
            "2:1 unknown key `form`; did you mean `from`?",
            "3:1 unknown key `window`; the file takes `pipeline`, `from`, `start`, `stages`, `to`, `dead-letters`",
        ]
    );
    assert_eq!(
        mistakes_in(&with_stages("  - map: m\n    on_failure: skip\n    keep-key: true\n    retries: 3")),
        [
            "5:5 unknown key `on_failure`; did you mean `on-failure`?",
            "6:5 unknown key `keep-key`; did you mean `keeps-key`?",
            "7:5 unknown key `retries`; a stage takes `filter`, `map`, `aggregate`, `name`, `with`, `on-failure`, `to`, \
             `limits`, `keeps-key`",
        ]
    );
}

#[test]
fn a_misspelt_kind_is_told_once() {
    assert_eq!(mistakes_in(&with_stages("  - fliter: f")), ["4:5 unknown key `fliter`; did you mean `filter`?"]);
}

#[test]
fn wrong_names() {
    let long = "x".repeat(250);
    let rule = "a name has 1 to 249 characters of a-z A-Z 0-9 . _ - and is neither . nor ..";
    let text = format!("pipeline: a b\nfrom: [.., {long}]\nstages: [{{map: m, name: 'a/b', to: ü}}]\nto: ''\n");
    assert_eq!(
        mistakes_in(&text),
        [
            format!("1:11 `pipeline` is \"a b\"; {rule}"),
            format!("2:8 `from` is \"..\"; {rule}"),
            format!("2:12 `from` is \"{}…\"; {rule}", "x".repeat(100)),
            format!("3:25 `name` is \"a/b\"; {rule}"),
            format!("3:36 `to` is \"ü\"; {rule}"),
            format!("4:5 `to` is \"\"; {rule}"),
        ]
    );
}

#[test]
fn a_stage_s_name_has_no_dots() {
    assert_eq!(
        mistakes_in(&with_stages("  - map: m\n    name: a.b\n  - map: ./x.y.wasm\n  - map: 1.0")),
        [
            "5:11 a stage's name must not contain dots: \"a.b\"",
            "6:10 the module's name \"x.y\" cannot name a stage; give the stage a `name`",
            "7:10 the module's name \"1.0\" cannot name a stage; give the stage a `name`",
        ]
    );
}

#[test]
fn values_that_are_not_there_or_of_another_shape() {
    let text = "pipeline:\nfrom: { a: b }\nstart: [latest]\nstages:\n  - map:\n    with: [x]\n    limits: 5\nto: ~\n";
    assert_eq!(
        mistakes_in(text),
        [
            "1:1 `pipeline` has no value",
            "2:7 `from` must be a single value, not a mapping",
            "3:8 `start` must be a single value, not a list",
            "5:5 `map` has no value",
            "6:11 `with` must be a mapping: one `name: value` for each parameter",
            "7:13 `limits` must be a mapping of `call-deadline-ms`, `memory-bytes-max`, `output-bytes-max`",
            "8:1 `to` has no value",
        ]
    );
}

#[test]
fn sources_empty_or_twice() {
    assert_eq!(
        mistakes_in("pipeline: p\nfrom: []\nstages: [{map: m}]\nto: z\n"),
        ["2:7 `from` is empty; name at least one topic"]
    );
    assert_eq!(
        mistakes_in("pipeline: p\nfrom:\n  - a\n  - b\n  - a\n  - [c]\n  -\nstages: [{map: m}]\nto: z\n")[..2],
        ["5:5 `a` is already listed, on line 3, column 5", "6:5 `from` must be a single value, not a list"]
    );
}

#[test]
fn start_is_one_of_two() {
    let text = "pipeline: p\nfrom: a\nstart: lastest\nstages: [{map: m}]\nto: z\n";
    assert_eq!(mistakes_in(text), ["3:8 `start` must be earliest or latest, not \"lastest\"; did you mean `latest`?"]);
}

#[test]
fn stages_are_a_list() {
    let file = |stages: &str| format!("pipeline: p\nfrom: a\nstages:{stages}\nto: z\n");
    assert_eq!(mistakes_in(&file(" []")), ["3:9 `stages` is empty; a pipeline has at least one stage"]);
    assert_eq!(mistakes_in(&file("")), ["3:1 `stages` has no value; a pipeline has at least one stage"]);
    assert_eq!(mistakes_in(&file("\n  map: m")), ["4:3 `stages` must be a list; begin each stage with a dash"]);
    let told = mistakes_in(&file("\n  - m"));
    assert!(told[0].starts_with("4:5 a stage must be a mapping of `filter`, `map`"), "{told:?}");
}

#[test]
fn too_many_stages() {
    let stages = |count: usize| (0..count).map(|n| format!("  - map: m{n}\n")).collect::<String>();
    parse(&with_stages(&stages(STAGES_MAX))).expect("the maximum number of stages");
    assert_eq!(mistakes_in(&with_stages(&stages(STAGES_MAX + 2))), ["68:5 more than 64 stages; split the pipeline"]);
}

#[test]
fn a_stage_has_one_module() {
    assert_eq!(
        mistakes_in(&with_stages("  - name: x\n  - filter: f\n    map: m\n    aggregate: a")),
        [
            "4:5 the stage has no module; add `filter`, `map` or `aggregate`",
            "6:5 the stage is already a filter; add another stage for `map`",
            "7:5 the stage is already a filter; add another stage for `aggregate`",
        ]
    );
}

#[test]
fn wrong_module_references() {
    assert_eq!(
        mistakes_in(&with_stages("  - map: dir/m\n  - map: m.wasm\n  - map: 'a b'\n  - map: ./dir/")),
        [
            "4:10 \"dir/m\" is not a module name; a path begins with ./, ../ or /",
            "5:10 \"m.wasm\" is not a module name; a path begins with ./, ../ or /",
            "6:10 \"a b\" is not a module: write name, name:tag, or a path that begins with ./, ../ or /",
            "7:10 \"./dir/\" is not the path of a module",
        ]
    );
}

#[test]
fn wrong_parameters() {
    assert_eq!(
        mistakes_in(&with_stages("  - map: m\n    with:\n      a: [1]\n      b: { c: d }\n      e:")),
        [
            "6:10 `a` must be a single value, not a list",
            "7:10 `b` must be a single value, not a mapping",
            "8:7 `e` has no value"
        ]
    );
}

#[test]
fn on_failure_is_one_of_three() {
    assert_eq!(
        mistakes_in(&with_stages("  - map: m\n    on-failure: dead-letters\n  - map: n\n    on-failure: explode")),
        [
            "5:17 `on-failure` must be stop, skip or dead-letter, not \"dead-letters\"; did you mean `dead-letter`?",
            "7:17 `on-failure` must be stop, skip or dead-letter, not \"explode\"",
        ]
    );
}

#[test]
fn keeps_key_is_true_or_false_and_for_maps() {
    assert_eq!(
        mistakes_in(&with_stages(
            "  - map: m\n    keeps-key: yes\n  - filter: f\n    keeps-key: true\n  - map: n\n    keeps-key: 'true'\n  \
             - aggregate: a\n    keeps-key: false"
        )),
        [
            "5:16 `keeps-key` must be true or false, not \"yes\"",
            "7:5 `keeps-key` is only for map stages; this stage is a filter",
            "9:16 `keeps-key` must be true or false, not \"true\"",
            "11:5 `keeps-key` is only for map stages; this stage is an aggregate",
        ]
    );
}

#[test]
fn limits_have_known_names_and_ranges() {
    let limits = |limits: &str| mistakes_in(&with_stages(&format!("  - map: m\n    limits: {{ {limits} }}")));
    assert_eq!(
        limits("call-deadline: 5, fuel: 9"),
        [
            "5:15 unknown key `call-deadline`; did you mean `call-deadline-ms`?",
            "5:33 unknown key `fuel`; `limits` takes `call-deadline-ms`, `memory-bytes-max`, `output-bytes-max`",
        ]
    );
    assert_eq!(
        limits("call-deadline-ms: 0, memory-bytes-max: 64MiB, output-bytes-max: 1073741825"),
        [
            "5:33 `call-deadline-ms` must be a whole number from 1 to 60000, not 0",
            "5:54 `memory-bytes-max` must be a whole number from 65536 to 4294967296, not 64MiB",
            "5:79 `output-bytes-max` must be a whole number from 1 to 1073741824, not 1073741825",
        ]
    );
    assert_eq!(limits("call-deadline-ms: 60001, memory-bytes-max: 65535, output-bytes-max: -1").len(), 3);
    assert_eq!(
        limits("call-deadline-ms: '5', memory-bytes-max: 99999999999999999999999, output-bytes-max: 1e3"),
        [
            "5:33 `call-deadline-ms` must be a whole number from 1 to 60000, not \"5\"",
            "5:56 `memory-bytes-max` must be a whole number from 65536 to 4294967296, not 99999999999999999999999",
            "5:99 `output-bytes-max` must be a whole number from 1 to 1073741824, not 1e3",
        ]
    );
    for good in ["call-deadline-ms: 60000", "memory-bytes-max: 65536", "memory-bytes-max: 4294967296"] {
        parse(&with_stages(&format!("  - map: m\n    limits: {{ {good} }}"))).expect("in range");
    }
}

#[test]
fn output_goes_nowhere() {
    assert_eq!(
        mistakes_in("pipeline: p\nfrom: a\nstages:\n  - map: m\n    to: b\n  - map: n\n"),
        ["6:5 the last stage's output has no topic; add a `to` to this stage or to the pipeline"]
    );
    // Also reported if the stage has other mistakes, but not if the `to` is only misspelt.
    let told = mistakes_in("pipeline: p\nfrom: a\nstages:\n  - map: m\n    limits: 5\n");
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        mistakes_in("pipeline: p\nfrom: a\nstages:\n  - map: m\n    too: b\n"),
        ["5:5 unknown key `too`; did you mean `to`?"]
    );
}

#[test]
fn duplicate_stage_names() {
    assert_eq!(
        mistakes_in(&with_stages("  - map: m\n  - map: ./x/m.wasm\n  - filter: f\n    name: m")),
        [
            "5:10 another stage is already called `m`, on line 4; give this stage another `name`",
            "7:11 another stage is already called `m`, on line 4; give this stage another `name`",
        ]
    );
}

#[test]
fn an_output_that_is_a_source() {
    let text = "pipeline: p\nfrom: [a, b]\nstages:\n  - map: m\n    to: b\n  - map: n\nto: a\n";
    assert_eq!(
        mistakes_in(text),
        [
            "5:9 `b` is also a source, on line 2: the pipeline would read its own output",
            "7:5 `a` is also a source, on line 2: the pipeline would read its own output",
        ]
    );
}

#[test]
fn the_last_output_twice() {
    assert_eq!(
        mistakes_in("pipeline: p\nfrom: a\nstages:\n  - map: m\n    to: z\nto: z\n"),
        ["6:5 the last stage's own `to` names `z` as well, so each record would be written twice"]
    );
}

#[test]
fn the_runtime_s_topics() {
    assert_eq!(
        mistakes_in(
            "pipeline: p\nfrom: q.s.repartition\nstages:\n  - map: m\n    to: q.dead-letters\nto: x.repartition\n\
             dead-letters: y.repartition\n"
        ),
        [
            "2:7 topics named *.repartition are reserved for the runtime; choose another name",
            "5:9 topics named *.dead-letters are reserved for dead letters; choose another name",
            "6:5 topics named *.repartition are reserved for the runtime; choose another name",
            "7:15 topics named *.repartition are reserved for the runtime; choose another name",
        ]
    );
    parse("pipeline: p\nfrom: q.dead-letters\nstages: [{map: m}]\nto: z\n").expect("dead letters may be read");
}

#[test]
fn dead_letters_among_sources_and_outputs() {
    let file = |from: &str, rest: &str| {
        format!("pipeline: p\nfrom: {from}\nstages:\n  - map: m\n    on-failure: dead-letter\nto: z\n{rest}")
    };
    assert_eq!(
        mistakes_in(&file("a", "dead-letters: a\n")),
        ["7:15 `a` is both a source and the dead letter topic: the pipeline would read its own dead letters"]
    );
    assert_eq!(
        mistakes_in(&file("p.dead-letters", "")),
        [
            "2:7 `p.dead-letters` is both a source and the dead letter topic: the pipeline would read its own dead letters"
        ]
    );
    assert_eq!(
        mistakes_in(&file("a", "dead-letters: z\n")),
        ["7:15 `z` is both an output and the dead letter topic; use different topics"]
    );
}

#[test]
fn a_name_too_long_for_its_dead_letters() {
    let name = "x".repeat(240);
    let text = format!("pipeline: {name}\nfrom: a\nstages:\n  - map: m\n    on-failure: dead-letter\nto: z\n");
    let told = mistakes_in(&text);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("1:11 the name is too long for the dead letter topic"), "{told:?}");
    parse(&format!("{text}dead-letters: d\n")).expect("with a topic of another name");
    parse(&text.replace("dead-letter", "skip")).expect("without dead letters");
}

#[test]
fn mistakes_come_in_the_file_s_order_one_a_line() {
    let mistakes = parse("form: a\npipeline: p\nstages: []\nto: ..\n").expect_err("mistakes");
    let lines: Vec<String> = mistakes.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0], "line 1, column 1: unknown key `form`; did you mean `from`?");
    assert!(lines[1].starts_with("line 3, column 9: "), "{lines:?}");
    assert!(lines[2].starts_with("line 4, column 5: "), "{lines:?}");
}

#[test]
fn only_so_many_mistakes_are_told() {
    let unknown: String = (0..2_000).map(|n| format!("unknown-{n}: x\n")).collect();
    let text = format!("{unknown}{}", with_stages("  - map: m"));
    let mistakes = parse(&text).expect_err("mistakes");
    assert_eq!(mistakes.as_slice().len(), Mistakes::SHOWN_MAX);
    assert_eq!(mistakes.left_out(), 1_900);
    assert!(mistakes.to_string().ends_with("\nand 1900 more"));
}

#[test]
fn mangled_files_are_refused_or_read_but_never_panic() {
    let marks =
        ["", "-", ":", "{", "}", "[", "]", "&", "*", "!", "|", ">", "'", "\"", "\t", "\n", "#", "?", "%", "\0", "ü"];
    for (at, letter) in FULL.char_indices() {
        let (before, after) = (&FULL[..at], &FULL[at + letter.len_utf8()..]);
        for mark in marks {
            let _ = parse(&format!("{before}{mark}{after}"));
            let _ = parse(&format!("{before}{mark}{letter}{after}"));
        }
        let _ = parse(before);
        let _ = parse(after);
    }
}

// Checks of a pipeline against a world.

#[derive(Default)]
struct Tables {
    topics: BTreeMap<&'static str, u32>,
    keys_moved: &'static [&'static str],
    modules: BTreeMap<&'static str, StageKind>,
    pipelines: Vec<OtherPipeline>,
}

impl Tables {
    fn new() -> Self {
        use StageKind::{Aggregate, Filter, Map};
        let topics = [("a", 4), ("b", 6), ("flights", 8)].into();
        let modules = [("f", Filter), ("m", Map), ("n", Map), ("g", Aggregate), ("h", Aggregate), ("./m.wasm", Map)];
        Self { topics, keys_moved: &[], modules: modules.into(), pipelines: Vec::new() }
    }

    fn pipeline(mut self, name: &str, from: &[&str], to: &[&str]) -> Self {
        let owned = |topics: &[&str]| topics.iter().map(|topic| (*topic).to_owned()).collect();
        self.pipelines.push(OtherPipeline { name: name.into(), from: owned(from), to: owned(to) });
        self
    }
}

impl World for Tables {
    fn topic_partitions(&self, topic: &str) -> Option<u32> {
        self.topics.get(topic).copied()
    }

    fn keys_moved(&self, topic: &str) -> bool {
        self.keys_moved.contains(&topic)
    }

    fn module(&self, reference: &ModuleRef) -> Result<(ModuleHash, StageKind), String> {
        let kind = self.modules.get(reference.as_str()).ok_or("is not uploaded")?;
        Ok((ModuleHash::of(reference.as_str().as_bytes()), *kind))
    }

    fn other_pipelines(&self) -> Vec<OtherPipeline> {
        self.pipelines.clone()
    }

    fn topic_names(&self) -> Vec<String> {
        self.topics.keys().map(|&topic| topic.to_owned()).collect()
    }

    fn module_names(&self) -> Vec<String> {
        self.modules.keys().map(|&module| module.to_owned()).collect()
    }
}

fn check_text(text: &str, world: &Tables) -> CheckedPipeline {
    check(&parse(text).expect("a good file"), world).expect("a pipeline that fits")
}

fn misfits(text: &str, world: &Tables) -> Vec<String> {
    told(&check(&parse(text).expect("a good file"), world).expect_err("a pipeline that does not fit"))
}

#[test]
fn a_pipeline_that_fits() {
    let text = "pipeline: p\nfrom: a\nstages:\n  - filter: f\n    on-failure: dead-letter\n    to: y\n  - map: ./m.wasm\nto: z\n";
    let checked = check_text(text, &Tables::new());
    assert_eq!(checked.modules, [ModuleHash::of(b"f"), ModuleHash::of(b"./m.wasm")]);
    assert_eq!(checked.outputs().iter().map(TopicName::as_str).collect::<Vec<_>>(), ["y", "z"]);
    assert_eq!(checked.dead_letters().map(TopicName::as_str), Some("p.dead-letters"));
    assert_eq!(checked.spec, parse(text).expect("good"));
    assert_eq!(read(text, &Tables::new()).expect("good").plan, checked.plan);
}

#[test]
fn missing_topics_and_modules() {
    let text = "pipeline: p\nfrom: [a, flight, q]\nstages:\n  - map: mm\n  - map: m:v2\n  - map: ./x.wasm\n  - map: unknown\nto: z\n";
    assert_eq!(
        misfits(text, &Tables::new()),
        [
            "2:11 there is no topic `flight`; did you mean `flights`?",
            "2:19 there is no topic `q`",
            "4:10 module `mm` is not uploaded; did you mean `m`?",
            "5:10 module `m:v2` is not uploaded; did you mean `m`?",
            "6:10 module `./x.wasm` is not uploaded",
            "7:10 module `unknown` is not uploaded",
        ]
    );
}

#[test]
fn a_module_with_another_tag_is_offered_with_it() {
    let mut world = Tables::new();
    world.modules.insert("delayed:v1", StageKind::Filter);
    assert_eq!(
        misfits(&with_stages("  - filter: delayed\n  - filter: dealyed:v1\n    name: other"), &world),
        [
            "4:13 module `delayed` is not uploaded; did you mean `delayed:v1`?",
            "5:13 module `dealyed:v1` is not uploaded; did you mean `delayed`?",
        ]
    );
}

#[test]
fn modules_of_another_kind() {
    assert_eq!(
        misfits(&with_stages("  - filter: m\n  - map: g\n  - aggregate: f"), &Tables::new()),
        [
            "4:5 module `m` is for a map stage, not for a filter stage; write `map: m`",
            "5:5 module `g` is for an aggregate stage, not for a map stage; write `aggregate: g`",
            "6:5 module `f` is for a filter stage, not for an aggregate stage; write `filter: f`",
        ]
    );
}

#[test]
fn cycles_through_other_pipelines() {
    let text = "pipeline: p\nfrom: a\nstages:\n  - map: m\n    to: y\n  - map: n\nto: z\n";
    let world = Tables::new()
        .pipeline("one", &["z"], &["b", "c"])
        .pipeline("two", &["x", "c"], &["a"])
        .pipeline("retry", &["y"], &["a"])
        .pipeline("round", &["b"], &["b"]);
    assert_eq!(
        misfits(text, &world),
        [
            "5:9 this output creates a cycle back to a source of the pipeline: y -> [retry] -> a",
            "7:5 this output creates a cycle back to a source of the pipeline: z -> [one] -> c -> [two] -> a",
        ]
    );
}

#[test]
fn its_own_former_version_makes_no_cycle() {
    let world = Tables::new().pipeline("p", &["z"], &["a"]).pipeline("other", &["b"], &["a"]);
    check_text(&with_stages("  - map: m"), &world);
}

#[test]
fn a_spec_that_reads_what_it_writes_is_refused_by_check_too() {
    let mut spec = parse(&with_stages("  - map: m")).expect("good");
    spec.to = Some(Placed::new("a".into(), Place { line: 5, column: 5 }));
    let told = told(&check(&spec, &Tables::new()).expect_err("a cycle"));
    assert_eq!(told, ["5:5 `a` is also a source, on line 2: the pipeline would read its own output"]);
}

#[test]
fn read_tells_mistakes_of_the_text_and_of_the_world_together() {
    let text = "pipeline: p p\nfrom: [a, flight]\nstages:\n  - map: f\n    limit: {}\n  - map: nn\nto: a\n";
    assert_eq!(
        told(&read(text, &Tables::new()).expect_err("mistakes")),
        [
            "1:11 `pipeline` is \"p p\"; a name has 1 to 249 characters of a-z A-Z 0-9 . _ - and is neither . nor ..",
            "2:11 there is no topic `flight`; did you mean `flights`?",
            "4:5 module `f` is for a filter stage, not for a map stage; write `filter: f`",
            "5:5 unknown key `limit`; did you mean `limits`?",
            "6:10 module `nn` is not uploaded; did you mean `n`?",
            "7:5 `a` is also a source, on line 2: the pipeline would read its own output",
        ]
    );
}

#[test]
fn names_too_long_for_a_repartition_topic() {
    let name = "x".repeat(230);
    let text =
        format!("pipeline: {name}\nfrom: a\nstages:\n  - map: m\n  - aggregate: g\n    name: means-of-it\nto: z\n");
    let told = misfits(&text, &Tables::new());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("6:11 the names of pipeline and stage are too long for the repartition topic"),
        "{told:?}"
    );
}

// The plan.

/// Formats each subtopology as `sources | stages | sink`.
fn subtopologies(from: &str, stages: &str, world: &Tables) -> Vec<String> {
    let text = format!("pipeline: p\nfrom: {from}\nstages:\n{stages}\nto: z\n");
    let checked = check_text(&text, world);
    let subtopologies = checked.plan.subtopologies.iter();
    subtopologies
        .map(|subtopology| {
            let sources: Vec<_> = subtopology.sources.iter().map(|source| source.topic().as_str()).collect();
            let stages: Vec<_> =
                checked.spec.stages[subtopology.stages.clone()].iter().map(|s| s.name.value.as_str()).collect();
            let sink = match &subtopology.sink {
                Some(Sink::Repartition(repartition)) => format!("{}/{}", repartition.topic, repartition.partitions),
                Some(Sink::Topic(topic)) => topic.to_string(),
                None => "-".to_owned(),
            };
            format!("{} | {} | {sink}", sources.join(" "), stages.join(" "))
        })
        .collect()
}

#[test]
fn stages_that_change_no_keys_are_one_subtopology() {
    let world = Tables::new();
    assert_eq!(subtopologies("[a, b]", "  - filter: f\n  - map: m", &world), ["a b | f m | z"]);
    assert_eq!(subtopologies("a", "  - aggregate: g", &world), ["a | g | z"]);
    assert_eq!(subtopologies("a", "  - filter: f\n  - aggregate: g\n  - map: m", &world), ["a | f g m | z"]);
    assert_eq!(subtopologies("a", "  - map: m\n    keeps-key: true\n  - aggregate: g", &world), ["a | m g | z"]);
}

#[test]
fn a_map_before_an_aggregate_cuts() {
    let world = Tables::new();
    assert_eq!(
        subtopologies("a", "  - map: m\n  - filter: f\n  - aggregate: g", &world),
        ["a | m f | p.g.repartition/4", "p.g.repartition | g | z"]
    );
    let stages = "  - aggregate: g\n  - map: m\n  - aggregate: h";
    assert_eq!(subtopologies("a", stages, &world), ["a | g m | p.h.repartition/4", "p.h.repartition | h | z"]);
}

#[test]
fn an_aggregate_after_an_aggregate_does_not_cut() {
    let world = Tables::new();
    assert_eq!(subtopologies("a", "  - aggregate: g\n  - aggregate: h", &world), ["a | g h | z"]);
    let stages = "  - map: m\n  - aggregate: g\n  - filter: f\n  - aggregate: h";
    assert_eq!(subtopologies("a", stages, &world), ["a | m | p.g.repartition/4", "p.g.repartition | g f h | z"]);
}

#[test]
fn several_sources_cut_before_an_aggregate() {
    let world = Tables::new();
    assert_eq!(
        subtopologies("[a, b]", "  - aggregate: g\n  - aggregate: h", &world),
        ["a b |  | p.g.repartition/6", "p.g.repartition | g h | z"]
    );
    let stages = "  - filter: f\n  - aggregate: g\n  - map: m\n  - aggregate: h\n    name: last";
    assert_eq!(
        subtopologies("[a, b]", stages, &world),
        [
            "a b | f | p.g.repartition/6",
            "p.g.repartition | g m | p.last.repartition/6",
            "p.last.repartition | last | z"
        ]
    );
}

#[test]
fn a_repartition_topic_keeps_its_partitions() {
    let mut world = Tables::new();
    world.topics.insert("p.g.repartition", 3);
    assert_eq!(
        subtopologies("a", "  - map: m\n  - aggregate: g", &world),
        ["a | m | p.g.repartition/3", "p.g.repartition | g | z"]
    );
}

#[test]
fn a_topic_whose_keys_have_moved_is_repartitioned_before_an_aggregate_and_only_there() {
    let world = Tables { keys_moved: &["a"], ..Tables::new() };
    let stages = "  - filter: f\n  - aggregate: g\n  - aggregate: h";
    assert_eq!(subtopologies("a", stages, &world), ["a | f | p.g.repartition/4", "p.g.repartition | g h | z"]);
    assert_eq!(subtopologies("a", "  - filter: f", &world), ["a | f | z"]);
    assert_eq!(subtopologies("b", "  - aggregate: g", &world), ["b | g | z"]);
}

#[test]
fn the_last_subtopology_may_have_no_sink() {
    let text = "pipeline: p\nfrom: a\nstages:\n  - map: m\n  - aggregate: g\n    to: y\n";
    let plan = check_text(text, &Tables::new()).plan;
    assert_eq!(plan.subtopologies[1].sink, None);
    assert_eq!(plan.subtopologies[1].stages, 1..2);
    assert_eq!(plan.repartitions().map(|r| r.topic.to_string()).collect::<Vec<_>>(), ["p.g.repartition"]);
    assert!(matches!(&plan.subtopologies[0].sources[0], Source::Topic(topic) if topic.as_str() == "a"));
    assert!(matches!(&plan.subtopologies[1].sources[0], Source::Repartition(r) if r.partitions == 4));
}
