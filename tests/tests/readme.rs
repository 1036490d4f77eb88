//! The README's tour, word for word, against a real server.

use std::process::Command;

use millstream_tests::root;
use millstream_tests::server::{Server, millstream, run};

/// The tour's command blocks.
fn blocks() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let tour =
        readme.split("## A tour of five minutes").nth(1).expect("the tour is there").split("\n## ").next().unwrap();
    let blocks = tour.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

fn caught_up(server: &Server) {
    let list = || server.run(&["pipeline", "list", "--output", "json"]).ok();
    let lag = |pipelines: &str| -> u64 {
        let pipelines: serde_json::Value = serde_json::from_str(pipelines).unwrap();
        pipelines.as_array().unwrap().iter().map(|pipeline| pipeline["lag"].as_u64().unwrap()).sum()
    };
    while lag(&list()) > 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn the_tours_commands_work_as_written() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let (mut ran, mut output) = (0, String::new());
    for block in blocks() {
        // Building is what the test's own build did; the server is the harness's.
        if block.contains("cargo ") || block.starts_with("millstream serve") {
            continue;
        }
        for line in block.lines() {
            let path = format!("{}:{}", millstream().parent().unwrap().display(), std::env::var("PATH").unwrap());
            let mut shell = Command::new("bash");
            shell.args(["-euo", "pipefail", "-c", line]).current_dir(root());
            shell.env("PATH", path).env("MILLSTREAM_SERVER", &server.grpc);
            let result = run(&mut shell, "");
            assert_eq!(result.code, Some(0), "{line}\nout: {}\nerr: {}", result.out, result.err);
            output.push_str(&result.out);
            ran += 1;
            if line.starts_with("millstream apply") {
                // A reader takes a moment to type the next line.
                caught_up(&server);
            }
        }
    }
    assert!(ran > 15, "the tour has {ran} commands");
    for shown in
        ["is 3 h 39 min late", "millstream.reason", "\"flights\":777", "delays-by-airport.mean-delay.repartition"]
    {
        assert!(output.contains(shown), "the tour never showed {shown:?}:\n{output}");
    }
}
