//! Runs the commands of the README's tour as written against a real server.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millstream_tests::root;
use millstream_tests::server::{Server, millstream, run};
use tempfile::TempDir;

/// Returns the command blocks of the tour.
fn blocks() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let tour = readme
        .split("## A tour of five minutes")
        .nth(1)
        .expect("the README has the tour")
        .split("\n## ")
        .next()
        .unwrap();
    let blocks = tour.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

fn caught_up(server: &Server) {
    let list = || server.run(&["pipeline", "list", "--output", "json"]).ok();
    let lag = |pipelines: &str| -> u64 {
        let pipelines: serde_json::Value = serde_json::from_str(pipelines).unwrap();
        pipelines.as_array().unwrap().iter().map(|pipeline| pipeline["lag"].as_u64().unwrap()).sum()
    };
    // The limit is meant for tests that hang, and is no statement about speed.
    let limit = Instant::now() + Duration::from_secs(120);
    loop {
        let text = server.run(&["pipeline", "list", "--output", "json"]).ok();
        let pipelines: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut pipelines = pipelines.as_array().unwrap().iter();
        if pipelines.all(|pipeline| pipeline["state"] != "running" || pipeline["lag"].as_u64() == Some(0)) {
            return;
        }
        assert!(Instant::now() < limit, "the pipelines have not caught up within two minutes: {pipelines}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server on which the tour was run: there the pages under docs/ go on.
fn after_the_tour() -> (TempDir, Server) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    run_page("README.md", &server);
    (data, server)
}

#[test]
fn the_tours_commands_work_as_written() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let (mut ran, mut left_out, mut output) = (0, 0, String::new());
    for block in blocks() {
        for line in block.lines() {
            // The test's own build has built the programs, and the harness sets the path and starts the server.
            if ["cargo ", "export PATH=", "millstream serve"].iter().any(|begin| line.starts_with(begin)) {
                left_out += 1;
                continue;
            }
            let path = format!("{}:{}", millstream().parent().unwrap().display(), std::env::var("PATH").unwrap());
            let mut shell = Command::new("bash");
            shell.args(["-euo", "pipefail", "-c", line]).current_dir(root());
            shell.env("PATH", path).env("MILLSTREAM_SERVER", &server.grpc);
            let result = run(&mut shell, "");
            assert_eq!(result.code, Some(0), "{line}\nout: {}\nerr: {}", result.out, result.err);
            output.push_str(&result.out);
            ran += 1;
            if line.starts_with("millstream apply") {
                // A reader pauses before typing the next line, so the pipelines catch up.
                caught_up(&server);
            }
        }
    }
    assert!(ran > 25, "only {ran} commands of the tour were run");
    assert_eq!(left_out, 4, "only two builds, the path and the server may be left out");
    for shown in
        ["is 3 h 39 min late", "millstream.reason", "\"flights\":777", "delays-by-airport.mean-delay.repartition"]
    {
        assert!(output.contains(shown), "the output of the tour does not contain {shown:?}:\n{output}");
    }
}
