//! A map that misbehaves if a record asks for it with `run` and a misdeed. Otherwise it outputs each value followed by
//! `!`, zero times if the value starts with `drop` and twice if it starts with `double`. Keys, timestamps and headers
//! are left out, so they are those of the source records.
#![cfg(target_arch = "wasm32")]

use misdeeds::{FLOOD_BYTES, Misdeed, REASON};

wit_bindgen::generate!({ path: "../../../sdk/wit", world: "map-stage" });

use exports::millstream::stage::map::{Batch, Column, Failure, Mapped};
use millstream::stage::host::{Level, log};

struct Stage;

impl exports::millstream::stage::configuration::Guest for Stage {
    fn configure(parameters: Vec<(String, String)>) -> Result<(), String> {
        misdeeds::configure(parameters)
    }
}

impl exports::millstream::stage::map::Guest for Stage {
    fn run(input: Batch) -> Mapped {
        let (mut sources, mut failures) = (Vec::new(), Vec::new());
        let mut values = Column { lengths: Vec::new(), bytes: Vec::new() };
        let mut put = |value: &[u8]| misdeeds::push(&mut values.lengths, &mut values.bytes, Some(value));
        for (index, value) in misdeeds::entries(&input.values.lengths, &input.values.bytes).enumerate() {
            let (index, value) = (index as u32, value.unwrap_or_default());
            match misdeeds::asked("run", value) {
                None => {
                    let copies = [(&b"drop"[..], 0), (b"double", 2)];
                    let copies =
                        copies.iter().find(|(prefix, _)| value.starts_with(prefix)).map_or(1, |(_, copies)| *copies);
                    for _ in 0..copies {
                        sources.push(index);
                        put(&[value, b"!"].concat());
                    }
                }
                Some(Misdeed::Fail | Misdeed::Smudge) => failures.push(Failure { index, reason: REASON.to_owned() }),
                Some(Misdeed::Flood) => {
                    sources.push(index);
                    put(&vec![b'x'; FLOOD_BYTES]);
                }
                Some(Misdeed::Miscount) => {
                    sources.push(index);
                    put(b"one");
                    put(b"too many");
                }
                Some(Misdeed::Trap) => misdeeds::trap(|line| log(Level::Error, line)),
                Some(Misdeed::Spin) => misdeeds::spin(),
                Some(Misdeed::Eat) => misdeeds::eat(),
            }
        }
        Mapped { sources, timestamps: None, keys: None, values: Some(values), headers: None, failures }
    }
}

export!(Stage);
