//! The house's rules that a test can see: who may know what, and which way crates depend.

use std::path::{Path, PathBuf};

use millstream_tests::root;

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Files under `folders` that name `word`, outside `allowed`.
fn who_names(word: &str, folders: &[&str], allowed: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    folders.iter().for_each(|folder| rust_files(&root().join(folder), &mut files));
    assert!(files.len() > 3, "the folders moved");
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    let code = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word))
    };
    let named = files.iter().filter(|path| code(path)).map(relative);
    named.filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed))).collect()
}

const CRATES: [&str; 7] =
    ["broker/src", "runtime/src", "cli/src", "sdk/record/src", "sdk/api/src", "sdk/client/src", "xtask/src"];
const NOBODY: [String; 0] = [];

#[test]
fn redb_is_known_to_the_store_alone() {
    assert_eq!(who_names("redb::", &CRATES, &["broker/src/store/"]), NOBODY);
}

#[test]
fn wasmtime_is_known_to_the_host_alone() {
    assert_eq!(who_names("wasmtime", &CRATES, &["runtime/src/host/"]), NOBODY);
    assert_eq!(who_names("wit_component", &CRATES, &["runtime/src/host/"]), NOBODY);
}

#[test]
fn protobuf_types_stay_at_the_edges() {
    let edges = ["broker/src/grpc/", "runtime/src/grpc/"];
    assert_eq!(who_names("millstream_api", &["broker/src", "runtime/src"], &edges), NOBODY);
    assert_eq!(who_names("tonic::", &["broker/src", "runtime/src"], &edges), NOBODY);
}

#[test]
fn the_domain_does_not_print() {
    for word in ["println!", "eprintln!", "dbg!"] {
        assert_eq!(who_names(word, &["broker/src", "runtime/src", "sdk/client/src", "sdk/record/src"], &[]), NOBODY);
    }
}

/// The workspace's crates that a manifest depends on, tests aside.
fn depends_on(manifest: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(manifest)).unwrap();
    let dependencies = text.split("[dependencies]").nth(1).unwrap_or_default().split("\n[").next().unwrap_or_default();
    let names = dependencies.lines().filter_map(|line| line.strip_prefix("millstream-"));
    names.filter_map(|line| line.split(['.', ' ', '=']).next()).map(str::to_owned).collect()
}

#[test]
fn crates_depend_in_one_direction() {
    assert_eq!(depends_on("sdk/record/Cargo.toml"), NOBODY);
    assert_eq!(depends_on("sdk/api/Cargo.toml"), NOBODY);
    for name in depends_on("sdk/client/Cargo.toml").iter().chain(&depends_on("broker/Cargo.toml")) {
        assert!(["api", "record"].contains(&name.as_str()), "{name}");
    }
    for name in depends_on("runtime/Cargo.toml") {
        assert!(["broker", "api", "record"].contains(&name.as_str()), "{name}");
    }
}
