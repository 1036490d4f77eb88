//! A filter that misbehaves if a record asks for it with `run` and a misdeed. Otherwise it drops values that start with
//! `drop`.
#![cfg(target_arch = "wasm32")]

use misdeeds::{FLOOD_BYTES, Misdeed, REASON};

wit_bindgen::generate!({ path: "../../../sdk/wit", world: "filter-stage" });

use exports::millstream::stage::filter::{Batch, Failure, Filtered};
use millstream::stage::host::{Level, log};

struct Stage;

impl exports::millstream::stage::configuration::Guest for Stage {
    fn configure(parameters: Vec<(String, String)>) -> Result<(), String> {
        misdeeds::configure(parameters)
    }
}

impl exports::millstream::stage::filter::Guest for Stage {
    fn run(input: Batch) -> Filtered {
        let (mut verdicts, mut failures) = (Vec::new(), Vec::new());
        let mut fail = |index: usize, reason: String| failures.push(Failure { index: index as u32, reason });
        for (index, value) in misdeeds::entries(&input.values.lengths, &input.values.bytes).enumerate() {
            let value = value.unwrap_or_default();
            let verdict = match misdeeds::asked("run", value) {
                None => u8::from(!value.starts_with(b"drop")),
                Some(Misdeed::Fail | Misdeed::Smudge) => {
                    fail(index, REASON.to_owned());
                    2
                }
                // A filter returns no columns, but the reason of a failure can have any length.
                Some(Misdeed::Flood) => {
                    fail(index, "x".repeat(FLOOD_BYTES));
                    2
                }
                Some(Misdeed::Miscount) => {
                    verdicts.push(1);
                    1
                }
                Some(Misdeed::Trap) => misdeeds::trap(|line| log(Level::Error, line)),
                Some(Misdeed::Spin) => misdeeds::spin(),
                Some(Misdeed::Eat) => misdeeds::eat(),
            };
            verdicts.push(verdict);
        }
        Filtered { verdicts, failures }
    }
}

export!(Stage);
