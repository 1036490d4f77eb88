//! Runs the shell commands of README.md and of the pages under docs/ as written, against real servers, and checks the
//! links of all documents.
//!
//! Every command is in a block that is fenced as `sh`. The commands of a page are run one after the other in bash, in
//! the workspace's folder, on a separate server for each page. The pages under docs/ state that they continue where the
//! tour in README.md ends, so README.md is run on their servers first. Commands that start with one of [`LEFT_OUT`] are
//! counted but not run.
//!
//! Tests run concurrently, so a file under target/ that a command writes must be used on only one page.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millstream_tests::root;
use millstream_tests::server::{Server, millstream, run};
use tempfile::TempDir;

/// Prefixes of commands that are not run: the build of this test builds everything, measuring takes long, and the test
/// sets the path and starts the server itself.
const LEFT_OUT: [&str; 5] = ["cargo ", "cd .. && cargo ", "rustup ", "export PATH=", "millstream serve"];

/// The pages with commands that are run. Each has its own test.
const RUN: [&str; 5] = ["README.md", "docs/clients.md", "docs/guests.md", "docs/operations.md", "docs/pipelines.md"];

/// Subcommands of `millstream`, to find commands that are not fenced as `sh`.
const SUBCOMMANDS: [&str; 13] = [
    "serve", "topic", "produce", "consume", "module", "apply", "pipeline", "group", "state", "backup", "restore",
    "test", "check",
];

/// A parsed document.
struct Page {
    /// The lines outside of fenced blocks.
    prose: Vec<String>,
    blocks: Vec<Block>,
}

/// A fenced block.
struct Block {
    /// The info string of the fence, such as `sh`, `rust` or `text`.
    language: String,
    lines: Vec<String>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut page = Self { prose: Vec::new(), blocks: Vec::new() };
        let mut block: Option<Block> = None;
        for line in text.lines() {
            let fence = line.strip_prefix("```");
            block = match block {
                None => match fence {
                    Some(language) => Some(Block { language: language.to_owned(), lines: Vec::new() }),
                    None => {
                        page.prose.push(line.to_owned());
                        None
                    }
                },
                Some(ended) if fence.is_some() => {
                    page.blocks.push(ended);
                    None
                }
                Some(mut open) => {
                    open.lines.push(line.to_owned());
                    Some(open)
                }
            };
        }
        assert!(block.is_none(), "{}: a block is not closed", path.display());
        page
    }

    /// Returns the commands of its shell blocks. A line that ends with a backslash continues in the next line.
    fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        for block in self.blocks.iter().filter(|block| block.language == "sh") {
            let joined = block.lines.join("\n").replace("\\\n", " ");
            commands.extend(joined.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        commands
    }

    /// Returns the targets of its links.
    fn links(&self) -> Vec<String> {
        let prose = self.prose.join("\n");
        let ends = prose.split("](").skip(1);
        ends.map(|rest| rest.split(')').next().unwrap_or_default().to_owned()).collect()
    }

    /// Returns the anchors of its headings, as GitHub generates them.
    fn headings(&self) -> Vec<String> {
        let heading = |line: &String| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            kept.collect::<String>().replace(' ', "-")
        };
        self.prose.iter().filter(|line| line.starts_with('#')).map(heading).collect()
    }
}

/// Returns the paths of README.md and of the pages under docs/, relative to the workspace.
fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort();
    pages
}

fn is_left_out(command: &str) -> bool {
    LEFT_OUT.iter().any(|begin| command.starts_with(begin))
}

/// The result of running the commands of a page.
#[derive(Default)]
struct Done {
    /// Number of commands that were run.
    ran: usize,
    /// Number of commands that were left out.
    left_out: usize,
    /// The combined standard output of the commands.
    output: String,
}

impl Done {
    fn check(&self, ran_min: usize, left_out: usize, shown: &[&str]) {
        assert!(self.ran >= ran_min, "{} commands were run", self.ran);
        assert_eq!(self.left_out, left_out, "only commands that build, set the path or start the server are left out");
        for shown in shown {
            assert!(self.output.contains(shown), "the page never showed {shown:?}:\n{}", self.output);
        }
    }
}

/// Runs the commands of a page in order. Each must succeed.
fn run_page(page: &str, server: &Server) -> Done {
    let path = format!("{}:{}", millstream().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut done = Done::default();
    for command in Page::read(&root().join(page)).commands() {
        if is_left_out(&command) {
            done.left_out += 1;
            continue;
        }
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", command.as_str()]).current_dir(root());
        shell.env("PATH", &path).env("MILLSTREAM_SERVER", &server.grpc);
        let result = run(&mut shell, "");
        assert_eq!(result.code, Some(0), "{page}: {command}\nout: {}\nerr: {}", result.out, result.err);
        done.output.push_str(&result.out);
        done.ran += 1;
        if command.starts_with("millstream apply") || command.contains("millstream produce") {
            // A reader also takes a moment before typing the next command.
            wait_for_pipelines(server);
        }
    }
    done
}

/// Waits until each pipeline has read all records or has stopped.
fn wait_for_pipelines(server: &Server) {
    // The limit only detects a hanging test, and is not a requirement on speed.
    let limit = Instant::now() + Duration::from_secs(120);
    loop {
        let text = server.run(&["pipeline", "list", "--output", "json"]).ok();
        let pipelines: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut pipelines = pipelines.as_array().unwrap().iter();
        if pipelines.all(|pipeline| pipeline["state"] != "running" || pipeline["lag"].as_u64() == Some(0)) {
            return;
        }
        assert!(Instant::now() < limit, "not caught up within two minutes: {text}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns a server on which the tour was run, which the pages under docs/ require.
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
    let done = run_page("README.md", &server);
    let shown = [
        "is 3 h 39 min late",
        "millstream.reason",
        "\"flights\":777",
        "delays-by-airport.mean-delay.repartition",
        "the value is not the expected JSON",
    ];
    // Left out: two builds, the path and the server.
    done.check(14, 4, &shown);
}

#[test]
fn the_commands_of_pipelines_work_as_written() {
    let (_data, server) = after_the_tour();
    let done = run_page("docs/pipelines.md", &server);
    let shown = [
        "nothing would change",
        "is 3 h 39 min late",
        "the value is not the expected JSON",
        "delays-by-airport.mean-delay.repartition",
        "pipeline delays-by-airport is running",
        "\"flights\":777",
    ];
    done.check(12, 0, &shown);
    // The file that the page explains must be valid, too.
    let page = Page::read(&root().join("docs/pipelines.md"));
    let files: Vec<&Block> = page.blocks.iter().filter(|block| block.language == "yaml").collect();
    assert_eq!(files.len(), 1, "the page has one pipeline file");
    let applied = server.run_with_input(&["apply", "-f", "-", "--dry-run"], &files[0].lines.join("\n")).ok();
    assert!(applied.contains("pipeline delayed-flights: created"), "{applied}");
}

#[test]
fn the_commands_of_guests_work_as_written() {
    let (_data, server) = after_the_tour();
    let done = run_page("docs/guests.md", &server);
    // The library on this page is not built, because its manifest refers to the SDK in the reader's own clone.
    done.check(5, 3, &["count:v1", "no pipeline", "pipeline delay-alerts, stage delayed"]);
}

#[test]
fn the_commands_of_clients_work_as_written() {
    let (_data, server) = after_the_tour();
    let done = run_page("docs/clients.md", &server);
    done.check(10, 0, &["lang=en", "2001-02-01T", "exit code 1", "group auditors was reset to earliest"]);
}

#[test]
fn the_commands_of_operations_work_as_written() {
    let (_data, server) = after_the_tour();
    let done = run_page("docs/operations.md", &server);
    let shown = ["36,500 d", "cleanup     compact", "restored target/tour-backup", "sound: ", "\"damages\": []"];
    // Left out: the server.
    done.check(14, 1, &shown);
}

#[test]
fn every_command_is_run_or_left_out_for_a_reason() {
    for name in pages() {
        let page = Page::read(&root().join(&name));
        let run: Vec<String> = page.commands().into_iter().filter(|command| !is_left_out(command)).collect();
        let is_run = RUN.contains(&name.as_str());
        assert_eq!(is_run, !run.is_empty(), "{name} has commands that no test runs, or no longer has any: {run:?}");
        let others = page.blocks.iter().filter(|block| block.language != "sh").flat_map(|block| &block.lines);
        for line in page.prose.iter().chain(others) {
            let rest = line.trim_start().trim_start_matches("$ ").strip_prefix("millstream ").unwrap_or_default();
            let word = rest.split(' ').next().unwrap_or_default();
            assert!(!SUBCOMMANDS.contains(&word), "{name}: a command is not fenced as sh, so nothing runs it: {line}");
        }
    }
}

#[test]
fn the_two_commands_are_those_of_continuous_integration() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("\n## Two commands\n").nth(1).expect("the section is there");
    let section = section.split("\n## ").next().unwrap();
    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    for command in ["cargo xtask demo", "cargo xtask test"] {
        assert!(section.contains(command), "{command}");
        assert!(ci.lines().any(|line| line == command), "{command}");
    }
    assert!(readme.contains("\n## A tour of five minutes, once it is built\n"));
}

#[test]
fn every_link_leads_somewhere() {
    let others = ["CHANGELOG.md", "data/README.md", "sdk/guest/README.md", "sdk/record/tests/vectors/README.md"];
    let mut checked = 0;
    for name in pages().into_iter().chain(others.map(str::to_owned)) {
        let document = root().join(&name);
        for link in Page::read(&document).links() {
            if link.starts_with("https://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link.as_str(), ""));
            let target = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(target.exists(), "{name}: the link {link:?} leads to no file");
            if !heading.is_empty() {
                let headings = Page::read(&target).headings();
                let is_there = headings.iter().any(|there| there == heading);
                assert!(is_there, "{name}: the link {link:?} leads to no heading of {headings:?}");
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked} links");
}
