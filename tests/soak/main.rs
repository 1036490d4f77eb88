//! The program of `cargo xtask soak`. See `millstream_tests::soak`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use millstream_tests::soak::{Plan, run};

fn main() -> Result<ExitCode> {
    let mut minutes = 1.0;
    let mut seed = rand::random();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
        let wrong = || format!("{argument} {value:?} is no number");
        match argument.as_str() {
            "--minutes" => minutes = value.parse().with_context(wrong)?,
            "--seed" => seed = value.parse().with_context(wrong)?,
            _ => bail!("there is no {argument}: use --minutes N and --seed S"),
        }
    }
    let duration = Duration::try_from_secs_f64(minutes * 60.0).with_context(|| format!("--minutes {minutes}"))?;
    let data = tempfile::Builder::new().prefix("millstream-soak-").tempdir()?;
    println!("soak: {minutes} minutes, seed {seed}, data in {}", data.path().display());
    let plan = Plan { duration, seed, data: data.path().to_owned() };
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // A panic is a finding too.
    let outcome = tokio.block_on(async { tokio::spawn(async move { run(&plan).await }).await });
    match outcome.context("the soak panicked").and_then(|outcome| outcome) {
        Ok(summary) => {
            println!("nothing is wrong. {summary}");
            Ok(ExitCode::SUCCESS)
        }
        Err(violation) => {
            println!("VIOLATION: {violation:#}\nseed {seed}, data kept in {}", data.keep().display());
            Ok(ExitCode::FAILURE)
        }
    }
}
