//! The `millstream` binary: it turns the command line into calls of the client, or runs the server in this process.
//! Start reading at `args.rs`; `commands/` has a file for each command. The rules of the platform are not implemented
//! here.

mod amount;
mod args;
mod commands;
mod exit;
mod input;
mod interrupt;
mod output;
mod position;
mod progress;
mod record;
mod text;
mod timestamp;
mod trouble;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::runtime::{Builder, Runtime};

use args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match runtime(&args.command) {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&error),
    };
    let code = runtime.block_on(commands::run(args)).unwrap_or_else(|error| exit::report(&error));
    // A thread that waits for the next line of stdin is not waited for.
    runtime.shutdown_background();
    code
}

fn runtime(command: &Command) -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Command::Serve(serve) = command
        && let Some(threads) = serve.worker_threads
    {
        builder.worker_threads(threads.get());
    }
    builder.enable_all().build().context("cannot start threads")
}
