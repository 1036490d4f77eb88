//! The architecture's rules that a test can check: which code may know what, and in which direction crates depend on
//! each other.
//!
//! Each rule is also checked in the other direction: the code that may know something actually does. Otherwise a rule
//! would silently stop working when a folder is moved or a name is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use millstream_tests::root;

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns whether a line of code names a crate in a path, in a `use`, or to rename it.
fn names_crate(line: &str, name: &str) -> bool {
    let is_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(name).any(|(at, _)| {
        let (before, after) = (&line[..at], line[at + name.len()..].trim_start());
        !before.ends_with(is_of_word) && ["::", ";", "as "].iter().any(|next| after.starts_with(next))
    })
}

/// Returns whether a line of code calls this macro.
fn calls_macro(line: &str, name: &str) -> bool {
    let is_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(name)
        .any(|(at, _)| !line[..at].ends_with(is_of_word) && line[at + name.len()..].starts_with('!'))
}

/// Returns the files under `folders` that have a line of code for which `is` returns true.
fn files_with(is: impl Fn(&str) -> bool, folders: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    for folder in folders {
        let before = files.len();
        rust_files(&root().join(folder), &mut files);
        assert!(files.len() > before, "{folder} has no Rust files");
    }
    let holds = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().any(|line| !line.trim_start().starts_with("//") && is(line))
    };
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    files.iter().filter(|path| holds(path)).map(relative).collect()
}

/// Asserts that within `folders`, a crate is named under `allowed` and nowhere else.
fn is_named_only_in(name: &str, folders: &[&str], allowed: &[&str]) {
    let files = files_with(|line| names_crate(line, name), folders);
    let elsewhere: Vec<_> =
        files.iter().filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed))).collect();
    assert!(elsewhere.is_empty(), "{name} is used outside of {allowed:?}: {elsewhere:?}");
    for allowed in allowed {
        assert!(files.iter().any(|path| path.starts_with(allowed)), "no file in {allowed} uses {name}");
    }
}

const CRATES: [&str; 7] =
    ["broker/src", "runtime/src", "cli/src", "sdk/record/src", "sdk/api/src", "sdk/client/src", "xtask/src"];

#[test]
fn what_names_a_crate_is_seen() {
    for line in
        ["use redb::Database;", "    redb::Builder::new()", "use redb as db;", "extern crate redb;", "(redb::Key)"]
    {
        assert!(names_crate(line, "redb"), "{line}");
    }
    for line in ["use redbx::Database;", "let my_redb::X", "\"redb's own pages\"", "redb_error(x)"] {
        assert!(!names_crate(line, "redb"), "{line}");
    }
    assert!(calls_macro("    print!(\"x\")", "print") && !calls_macro("eprint!(\"x\")", "print"));
}

#[test]
fn redb_is_known_to_the_store_alone() {
    is_named_only_in("redb", &CRATES, &["broker/src/store/"]);
}

#[test]
fn kafkas_messages_are_known_to_its_edge_alone() {
    is_named_only_in("kafka_protocol", &CRATES, &["broker/src/kafka/"]);
}

#[test]
fn wasmtime_is_known_to_the_host_alone() {
    is_named_only_in("wasmtime", &CRATES, &["runtime/src/host/"]);
    is_named_only_in("wit_component", &CRATES, &["runtime/src/host/"]);
}

#[test]
fn protobuf_types_stay_at_the_edges() {
    let edges = ["broker/src/grpc/", "runtime/src/grpc/"];
    is_named_only_in("millstream_api", &["broker/src", "runtime/src"], &edges);
    is_named_only_in("tonic", &["broker/src", "runtime/src"], &edges);
}

#[test]
fn the_domain_does_not_print() {
    let domain = ["broker/src", "runtime/src", "sdk/api/src", "sdk/client/src", "sdk/record/src"];
    for name in ["print", "println", "eprint", "eprintln", "dbg"] {
        let printing = files_with(|line| calls_macro(line, name), &domain);
        assert!(printing.is_empty(), "{name}! is called in {printing:?}");
    }
    assert!(
        !files_with(|line| calls_macro(line, "println"), &["cli/src", "xtask/src"]).is_empty(),
        "the search for printing macros finds none where there are some"
    );
}

/// Asserts that within `folders`, a word occurs in the code of exactly the files `allowed`. Unit tests are not counted.
fn is_said_only_in(word: &str, folders: &[&str], allowed: &[&str]) {
    let is_said = |path: &String| {
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word))
    };
    let mut files: Vec<_> = files_with(|line| line.contains(word), folders).into_iter().filter(is_said).collect();
    files.sort();
    assert_eq!(files, allowed, "the files that contain {word:?} must be {allowed:?}");
}

/// A simulation replays only what goes through the C library, `Clock` and `FileSystem`.
#[test]
fn time_randomness_and_storage_are_handed_in() {
    let server = ["broker/src", "runtime/src"];
    // The wall clock, which may jump.
    is_said_only_in("SystemTime::now", &server, &["broker/src/clock.rs"]);
    // Hashers whose seeds come from addresses and clocks.
    is_said_only_in("foldhash::", &server, &["broker/src/hash.rs"]);
    is_said_only_in("hashbrown::HashMap", &server, &["broker/src/hash.rs"]);
    is_said_only_in("hashbrown::HashSet", &server, &["broker/src/hash.rs"]);
    for word in ["hashbrown::{HashMap", "hashbrown::{HashSet", "DefaultHashBuilder"] {
        is_said_only_in(word, &server, &[]);
    }
    // Time and randomness that bypass the C library.
    for word in ["rustix::time", "rustix::rand", "_rdtsc", "core::arch", "std::arch", "/dev/urandom", "fastrand"] {
        is_said_only_in(word, &server, &[]);
    }
    // Files, and the system's folder for temporary files, into which a damaged database is copied.
    let (system, copied) = ("broker/src/store/file_system.rs", "broker/src/store/check/rebuild.rs");
    is_said_only_in("std::fs", &["broker/src"], &[copied, system]);
    is_said_only_in("rustix::fs", &server, &[system]);
    is_said_only_in("tempfile::tempdir", &server, &[copied]);
}

/// The broker's modules from the lowest to the highest. Each may use those before it.
const FOLDERS: [&str; 13] =
    ["hash", "clock", "store", "name", "error", "metrics", "groups", "log", "broker", "net", "grpc", "kafka", "lib"];

#[test]
fn the_brokers_folders_know_only_what_is_below_them() {
    let mut files = Vec::new();
    rust_files(&root().join("broker/src"), &mut files);
    let mut upwards = Vec::new();
    let mut known = BTreeSet::new();
    for path in files {
        let file = path.strip_prefix(root().join("broker/src")).unwrap().to_string_lossy().into_owned();
        let folder = file.split(['/', '.']).next().unwrap();
        let height = |folder: &str| FOLDERS.iter().position(|known| *known == folder);
        let here = height(folder).unwrap_or_else(|| panic!("the module of {file} is missing in FOLDERS"));
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (at, _) in line.match_indices("crate::") {
                let word = line[at + "crate::".len()..].split(|c: char| !c.is_alphanumeric() && c != '_').next();
                let Some(there) = word.and_then(height) else { continue };
                known.insert((here, there));
                if there > here {
                    upwards.push(format!("{file}: {}", line.trim()));
                }
            }
        }
    }
    assert!(upwards.is_empty(), "{upwards:#?}");
    // Imports are actually found.
    for (above, below) in
        [("grpc", "broker"), ("broker", "log"), ("log", "groups"), ("log", "store"), ("groups", "store")]
    {
        let height = |folder| FOLDERS.iter().position(|known| *known == folder).unwrap();
        assert!(known.contains(&(height(above), height(below))), "no import of {below} was found in {above}");
    }
}

/// Returns the build dependencies of each crate of the workspace, without dev-dependencies.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(root());
    let output = metadata.output().expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |of: &serde_json::Value| of["name"].as_str().unwrap().to_owned();
    let of_package = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| dependency["kind"] != "dev").map(name).collect()
    };
    metadata["packages"].as_array().unwrap().iter().map(|package| (name(package), of_package(package))).collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let all = dependencies();
    // Each of our crates, with those of our crates that it depends on.
    let allowed: [(&str, &[&str]); 6] = [
        ("record", &[]),
        ("api", &[]),
        ("client", &["api", "record"]),
        ("broker", &["api", "record"]),
        ("runtime", &["api", "broker", "record"]),
        ("cli", &["api", "broker", "client", "record", "runtime"]),
    ];
    for (of, on) in allowed {
        let found = all.get(&format!("millstream-{of}")).unwrap_or_else(|| panic!("there is no crate millstream-{of}"));
        let found: Vec<_> = found.iter().filter_map(|name| name.strip_prefix("millstream-")).collect();
        assert_eq!(found, on, "dependencies of {of}");
    }
}

#[test]
fn what_one_folder_alone_knows_one_crate_alone_depends_on() {
    let all = dependencies();
    for (dependency, only) in [("redb", "broker"), ("wasmtime", "runtime"), ("wit-component", "runtime")] {
        let on_it =
            all.iter().filter(|(_, dependencies)| dependencies.contains(dependency)).map(|(name, _)| name.as_str());
        // The tests depend on redb too, because they break the storage below the broker.
        let on_it: Vec<_> = on_it.filter(|name| *name != "millstream-tests").collect();
        assert_eq!(on_it, [format!("millstream-{only}")], "crates that depend on {dependency}");
    }
}
