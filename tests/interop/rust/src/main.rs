//! The rdkafka crate, which is librdkafka. Called with an address and the name of a scenario, or of a load.

mod clients;
mod load;
mod scenarios;

use std::process::ExitCode;

/// The exit code of a scenario that this program does not know.
const SKIPPED: u8 = 77;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, name, settings @ ..] = &arguments[..] else {
        eprintln!("usage: ADDRESS SCENARIO, or ADDRESS produce|consume|end-to-end NAME=VALUE...");
        return ExitCode::FAILURE;
    };
    let outcome = match name.as_str() {
        "produce" => load::produce(address, settings),
        "consume" => load::consume(address, settings),
        "end-to-end" => load::end_to_end(address, settings),
        name => match scenarios::named(name) {
            Some(scenario) => scenario(address),
            None => return ExitCode::from(SKIPPED),
        },
    };
    if let Err(error) = outcome {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
