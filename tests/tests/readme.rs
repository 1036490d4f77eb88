//! The shell commands of README.md and of the pages under docs/, word for word, against real servers; and the links of all
//! documents.
//!
//! Every command stands in a block that is fenced as `sh`. The commands of a page are run one after the other in bash, in the
//! workspace's folder, on a server of its own. The pages under docs/ say that they go on where the tour in README.md ends, so
//! README.md is run on their servers first. Commands that begin with one of [`LEFT_OUT`] are counted and not run.
//!
//! Tests run at the same time: a file that a command writes, under target/, is named on one page only.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millstream_tests::root;
use millstream_tests::server::{Server, millstream, run};
use tempfile::TempDir;

/// How commands begin that are not run. Building is done by the build of this test, and measuring takes long; the server and
/// the path are those of this test.
const LEFT_OUT: [&str; 4] = ["cargo ", "rustup ", "export PATH=", "millstream serve"];

/// The pages that have other commands. A test runs each of them.
const RUN: [&str; 5] = ["README.md", "docs/clients.md", "docs/guests.md", "docs/operations.md", "docs/pipelines.md"];

/// What `millstream` does, for finding commands that are not fenced as `sh`.
const SUBCOMMANDS: [&str; 13] = [
    "serve", "topic", "produce", "consume", "module", "apply", "pipeline", "group", "state", "backup", "restore",
    "test", "check",
];

/// A document, taken apart.
struct Page {
    /// The lines outside of blocks.
    prose: Vec<String>,
    blocks: Vec<Block>,
}

/// A fenced block.
struct Block {
    /// `sh`, `rust`, `text`, and so on.
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

    /// The commands of its shell blocks. A line that ends with a backslash goes on in the next line.
    fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        for block in self.blocks.iter().filter(|block| block.language == "sh") {
            let joined = block.lines.join("\n").replace("\\\n", " ");
            commands.extend(joined.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        commands
    }

    /// The targets of its links.
    fn links(&self) -> Vec<String> {
        let prose = self.prose.join("\n");
        let ends = prose.split("](").skip(1);
        ends.map(|rest| rest.split(')').next().unwrap_or_default().to_owned()).collect()
    }

    /// The names by which links lead to its headings, as GitHub makes them.
    fn headings(&self) -> Vec<String> {
        let heading = |line: &String| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            kept.collect::<String>().replace(' ', "-")
        };
        self.prose.iter().filter(|line| line.starts_with('#')).map(heading).collect()
    }
}

/// README.md and the pages under docs/, by their paths in the workspace.
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

/// What the commands of a page did.
#[derive(Default)]
struct Done {
    /// How many were run.
    ran: usize,
    /// How many were not.
    left_out: usize,
    /// What they printed.
    output: String,
}

impl Done {
    fn check(&self, ran_min: usize, left_out: usize, shown: &[&str]) {
        assert!(self.ran >= ran_min, "{} commands were run", self.ran);
        assert_eq!(
            self.left_out, left_out,
            "what is built, and the path and the server, are left out, and nothing else"
        );
        for shown in shown {
            assert!(self.output.contains(shown), "the page never showed {shown:?}:\n{}", self.output);
        }
    }
}

/// Runs the commands of a page in their order. Each must succeed.
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
            // A reader takes a moment to type the next line.
            wait_for_pipelines(server);
        }
    }
    done
}

/// Waits until each pipeline has read all that there is, or has stopped.
fn wait_for_pipelines(server: &Server) {
    // The limit is for a test that hangs; it says nothing of speed.
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
    let done = run_page("README.md", &server);
    let shown = [
        "is 3 h 39 min late",
        "millstream.reason",
        "\"flights\":777",
        "delays-by-airport.mean-delay.repartition",
        "the value is not the JSON expected",
    ];
    // Two builds, the path and the server.
    done.check(14, 4, &shown);
}

#[test]
fn the_commands_of_pipelines_work_as_written() {
    let (_data, server) = after_the_tour();
    let done = run_page("docs/pipelines.md", &server);
    let shown = [
        "nothing would change",
        "is 3 h 39 min late",
        "the value is not the JSON expected",
        "delays-by-airport.mean-delay.repartition",
        "pipeline delays-by-airport is running",
        "\"flights\":777",
    ];
    done.check(12, 0, &shown);
    // The file that the page explains could be applied, too.
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
    // The library that the page writes is not made: it needs the SDK from where a reader cloned it.
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
    // The server.
    done.check(14, 1, &shown);
}

#[test]
fn every_command_is_run_or_left_out_for_a_reason() {
    for name in pages() {
        let page = Page::read(&root().join(&name));
        let run: Vec<String> = page.commands().into_iter().filter(|command| !is_left_out(command)).collect();
        let is_run = RUN.contains(&name.as_str());
        assert_eq!(is_run, !run.is_empty(), "{name} has commands that no test runs, or has none any more: {run:?}");
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
