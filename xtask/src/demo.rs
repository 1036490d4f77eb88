//! The example job: starts a server on a temporary folder, runs two pipelines on 20,000 real flights, and prints the
//! results as tables. Everything goes through the `millstream` program, as a user's own work would.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use crate::process;
use crate::wasm;

/// Number of airports in the table of results, which has those with the most flights.
const AIRPORTS_SHOWN: usize = 12;

/// Number of alerts to print.
const ALERTS_SHOWN: usize = 5;

/// How long the pipelines may take to catch up before the demo fails.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

const MODULES: [&str; 4] = ["by-origin", "mean-delay", "delayed", "alert"];
const PIPELINES: [&str; 2] = ["delays-by-airport", "delay-alerts"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let guests = wasm::build_guests(root)?;
    println!("Server: building `millstream`");
    process::run(process::cargo(root).args(["build", "--bin", "millstream"]))?;
    let data = std::env::temp_dir().join(format!("millstream-demo-{}", std::process::id()));
    let server = Server::start(&root.join("target/debug/millstream"), data)?;
    println!("Server: {} on {}\n", server.grpc, server.data.display());

    server.step(&["topic", "create", "flights", "--partitions", "4"])?;
    for module in MODULES {
        server.step(&["module", "push", module, &relative(root, &guests.join(format!("{module}.wasm")))])?;
    }
    for pipeline in PIPELINES {
        server.step(&["apply", "-f", &format!("examples/{pipeline}.yaml")])?;
    }
    let flights = ["--file", "data/flights-20k.ndjson.gz", "--timestamp-field", "date"];
    let begun = Instant::now();
    server.step(&[&["produce", "flights"][..], &flights].concat())?;
    let lag = server.catch_up()?;
    let took = begun.elapsed();

    results(&server, took, lag)?;
    println!(
        "\nNext steps: the tour in README.md does the same by hand; `millstream --help` lists all commands;\n\
         guests/ has the modules and examples/ the pipelines of this demo; docs/guests.md explains how to write one."
    );
    server.stop()
}

fn results(server: &Server, took: Duration, lag: u64) -> Result<()> {
    println!("\nMean delay of departures by airport, the {AIRPORTS_SHOWN} busiest (topic delays-by-airport):\n");
    let mut airports: BTreeMap<String, Value> = BTreeMap::new();
    for record in server.records("delays-by-airport")? {
        let key = record["key"].as_str().unwrap_or_default().to_owned();
        // Updates of an airport are in order, so the last one is current.
        airports.insert(key, serde_json::from_str(record["value"].as_str().unwrap_or_default())?);
    }
    let mut busiest: Vec<_> =
        airports.iter().map(|(key, value)| (value["flights"].as_u64().unwrap_or(0), key, value)).collect();
    busiest.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let mut table = table(&["AIRPORT", "FLIGHTS", "MEAN DELAY, MIN"]);
    for (flights, airport, value) in busiest.iter().take(AIRPORTS_SHOWN) {
        table.add_row([
            airport.to_string(),
            grouped(*flights),
            format!("{:.1}", value["mean_delay"].as_f64().unwrap_or(0.0)),
        ]);
    }
    println!("{}", table.trim_fmt());
    let all: u64 = busiest.iter().map(|(flights, ..)| flights).sum();
    println!("{} airports, {} flights", airports.len(), grouped(all));

    let alerts = server.records("delay-alerts")?;
    println!(
        "\nFlights at least three hours late, {} of {} (topic delay-alerts):\n",
        ALERTS_SHOWN.min(alerts.len()),
        alerts.len()
    );
    for alert in alerts.iter().take(ALERTS_SHOWN) {
        println!("  {}", alert["value"].as_str().unwrap_or_default());
    }

    let topics = server.json(&["topic", "list", "--output", "json"])?;
    println!("\nThe server's topics (each record was on disk before it was acknowledged):\n");
    let mut held = table_of_topics();
    let (mut records_in, mut bytes_in, mut records_out, mut bytes_out) = (0, 0, 0, 0);
    for topic in topics.as_array().into_iter().flatten() {
        let (records, bytes) = (topic["records"].as_u64().unwrap_or(0), topic["bytes"].as_u64().unwrap_or(0));
        let name = topic["name"].as_str().unwrap_or_default();
        held.add_row([name.to_owned(), grouped(records), grouped(bytes)]);
        if name == "flights" {
            (records_in, bytes_in) = (records, bytes);
        } else if topic["internal"] != Value::Bool(true) {
            records_out += records;
            bytes_out += bytes;
        }
    }
    println!("{}", held.trim_fmt());
    let per_second = (records_in as f64 / took.as_secs_f64()) as u64;
    println!(
        "\nIn {} records, {} bytes; out {} records, {} bytes; {} records/s from the first line read to the last \
         pipeline's commit ({:.2} s, debug build); lag {lag}",
        grouped(records_in),
        grouped(bytes_in),
        grouped(records_out),
        grouped(bytes_out),
        grouped(per_second),
        took.as_secs_f64(),
    );
    if all != records_in {
        bail!("{records_in} flights were produced, but the aggregate counted {all}");
    }
    Ok(())
}

fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 1 }, 2));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn table_of_topics() -> Table {
    table(&["TOPIC", "RECORDS", "BYTES"])
}

/// Formats 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// A running server. Dropping it kills the process, if it still runs, and removes its data folder.
struct Server {
    child: Child,
    program: PathBuf,
    data: PathBuf,
    grpc: String,
}

impl Server {
    fn start(program: &Path, data: PathBuf) -> Result<Self> {
        let mut child = Command::new(program)
            .args([
                "serve",
                "--grpc",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--kafka-address",
                "none",
                "--log",
                "warn",
                "--data",
            ])
            .arg(&data)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let grpc = line.split("gRPC ").nth(1).and_then(|rest| rest.split(',').next());
        let grpc = grpc.with_context(|| format!("the server did not start, its first line is {line:?}"))?.to_owned();
        Ok(Self { child, program: program.to_owned(), data, grpc })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("MILLSTREAM_SERVER", &self.grpc);
        command
    }

    /// Prints a command and runs it.
    fn step(&self, arguments: &[&str]) -> Result<()> {
        println!("$ millstream {}", arguments.join(" "));
        process::run(&mut self.command(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&process::output(&mut self.command(arguments))?)?)
    }

    fn records(&self, topic: &str) -> Result<Vec<Value>> {
        let arguments = ["consume", topic, "--from", "earliest", "--until-end", "--output", "json"];
        let lines = process::output(&mut self.command(&arguments))?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Waits until the pipelines have no lag, and returns the lag.
    fn catch_up(&self) -> Result<u64> {
        let begun = Instant::now();
        loop {
            let pipelines = self.json(&["pipeline", "list", "--output", "json"])?;
            let pipelines = pipelines.as_array().context("a list of pipelines")?;
            if let Some(stopped) = pipelines.iter().find(|pipeline| pipeline["state"] != "running") {
                bail!("a pipeline is not running: {stopped}");
            }
            let lag: u64 = pipelines.iter().map(|pipeline| pipeline["lag"].as_u64().unwrap_or(u64::MAX)).sum();
            if lag == 0 && pipelines.len() == PIPELINES.len() {
                return Ok(lag);
            }
            if begun.elapsed() > CATCH_UP_MAX {
                bail!("the pipelines still have a lag of {lag} after {} s", CATCH_UP_MAX.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(mut self) -> Result<()> {
        process::run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}
