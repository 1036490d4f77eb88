//! The command-line arguments. The arguments of each command are in that command's file.

use clap::{Parser, Subcommand};

use crate::commands::{
    apply, backup, check, consume, group, module, pipeline, produce, restore, serve, state, test, topic,
};

const HELP: &str = "\
Examples:
  millstream serve --data ./millstream-data
  millstream topic create flights --partitions 4
  millstream produce flights --file flights.ndjson --key-field origin --timestamp-field date
  millstream consume flights --from earliest --max 10
  millstream apply -f pipeline.yaml

Exit codes:
  0  success; also when the reader of the output closed the pipe (| head), or Ctrl-C ended `consume`
  1  the server refused the request, mistakes or damage were found, or a file cannot be read
  2  the command line is invalid
  3  no server answers, or the server accepted nothing within the time allowed
  4  interrupted: records that were acknowledged before are stored
  5  the connection was lost, or the call timed out, before the answer: the operation may or may not have been done";

/// A streaming platform in one binary: partitioned topics, WebAssembly pipelines, gRPC
#[derive(Debug, Parser)]
#[command(name = "millstream", version, after_help = HELP, max_term_width = 110)]
pub(crate) struct Args {
    /// The server's address, for the commands that connect to one
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_SERVER",
        hide_env_values = true,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7070",
        // Shown after the options of the command itself.
        display_order = 900
    )]
    pub(crate) server: String,
    /// The client id that is sent to the server, which applies quotas by it
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_CLIENT_ID",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "millstream-cli",
        display_order = 901
    )]
    pub(crate) client_id: String,
    /// How long to wait for a call before giving up
    #[arg(long, global = true, value_name = "MS", default_value_t = 30_000, display_order = 902)]
    pub(crate) call_timeout_ms: u64,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(serve::Args),
    /// Create, list, describe, alter and delete topics
    #[command(subcommand)]
    Topic(topic::Command),
    Produce(produce::Args),
    Consume(consume::Args),
    /// Upload, list, describe and remove WebAssembly modules
    #[command(subcommand)]
    Module(module::Command),
    Apply(apply::Args),
    /// List, describe, pause, resume and delete pipelines
    #[command(subcommand)]
    Pipeline(pipeline::Command),
    /// List, describe, reset and delete consumer groups; pipelines are groups too
    #[command(subcommand)]
    Group(group::Command),
    /// Read the keyed state of aggregate stages
    #[command(subcommand)]
    State(state::Command),
    Backup(backup::Args),
    Restore(restore::Args),
    Test(test::Args),
    Check(check::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_with_an_example() {
        fn check(command: &clap::Command) {
            let help = command.clone().render_long_help().to_string();
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            if command.get_subcommands().next().is_none() {
                assert!(help.contains("Example"), "{} has no example:\n{help}", command.get_name());
            }
            for subcommand in command.get_subcommands() {
                check(subcommand);
            }
        }
        check(&Args::command());
    }
}
