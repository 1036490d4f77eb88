//! The table of clients in docs/compat.md. Results are kept in target/interop, so that clients can be run one by one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::{CLIENTS, SCENARIOS};

/// The lines around the table.
const BEGIN: &str = "<!-- The table is written by `cargo xtask interop --write`. -->\n";
const END: &str = "<!-- The end of the table. -->";

/// Results by client and scenario.
type Results = BTreeMap<String, BTreeMap<String, String>>;

/// Keeps the result of a scenario.
pub(super) fn keep(root: &Path, client: &str, scenario: &str, result: &str) -> Result<()> {
    let mut results = read(root)?;
    results.entry(client.to_owned()).or_default().insert(scenario.to_owned(), result.to_owned());
    std::fs::write(path(root), serde_json::to_vec_pretty(&results)?).context("cannot write to target/interop")
}

/// Writes what is kept into the page.
pub(super) fn write(root: &Path) -> Result<()> {
    let results = read(root)?;
    let page = root.join("docs/compat.md");
    let text = std::fs::read_to_string(&page).context("cannot read docs/compat.md")?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.context("docs/compat.md has no place for the table of clients")?;
    std::fs::write(&page, format!("{before}{BEGIN}{}{END}{after}", table(&results)))
        .context("cannot write docs/compat.md")
}

fn table(results: &Results) -> String {
    let of =
        |client: &str, scenario: &str| match results.get(client).and_then(|of| of.get(scenario)).map(String::as_str) {
            Some("ok") => "yes",
            Some("FAILED") => "**no**",
            _ => "–",
        };
    let clients = CLIENTS.iter().filter(|client| results.contains_key(client.name));
    let header: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    let mut lines =
        vec![format!("| client | {} |", header.join(" | ")), format!("|---|{}", "---|".repeat(header.len()))];
    lines.extend(clients.map(|client| {
        let row: Vec<&str> = SCENARIOS.iter().map(|scenario| of(client.name, scenario.name)).collect();
        format!("| {} | {} |", client.name, row.join(" | "))
    }));
    lines.join("\n") + "\n"
}

fn path(root: &Path) -> std::path::PathBuf {
    root.join("target/interop/results.json")
}

fn read(root: &Path) -> Result<Results> {
    match std::fs::read(path(root)) {
        Ok(bytes) => serde_json::from_slice(&bytes).context("target/interop/results.json is no JSON of results"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Results::new()),
        Err(error) => Err(error).context("cannot read target/interop/results.json"),
    }
}
