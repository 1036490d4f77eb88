//! One file for each command. In each, `Command` or `Args` defines the arguments, and `run` executes the command.

pub(crate) mod apply;
pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod consume;
pub(crate) mod group;
pub(crate) mod module;
pub(crate) mod pipeline;
pub(crate) mod produce;
pub(crate) mod restore;
pub(crate) mod serve;
pub(crate) mod state;
pub(crate) mod test;
pub(crate) mod topic;

use std::process::ExitCode;

use millstream_client::{Client, ClientSettings};

use crate::args::{Args, Command};

/// Executes the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = ClientSettings { client_id: args.client_id, call_timeout_ms: args.call_timeout_ms };
    let client = || Client::with_settings(&args.server, settings);
    match args.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Topic(command) => topic::run(command, &client()?).await,
        Command::Produce(args) => produce::run(args, &client()?).await,
        Command::Consume(args) => consume::run(args, &client()?).await,
        Command::Module(command) => module::run(command, &client()?).await,
        Command::Apply(args) => apply::run(args, &client()?).await,
        Command::Pipeline(command) => pipeline::run(command, &client()?).await,
        Command::Group(command) => group::run(command, &client()?).await,
        Command::State(command) => state::run(command, &client()?).await,
        Command::Backup(args) => backup::run(args, &client()?).await,
        Command::Restore(args) => restore::run(args).await,
        Command::Test(args) => test::run(args).await,
        Command::Check(args) => check::run(args).await,
    }
}
