//! An aggregate that misbehaves if a record asks for it with `add` or `finish` and a misdeed. Otherwise it collects all
//! values of a key in order: `a1,a2`. The value `forget` removes the accumulator of a key. The output is the
//! accumulator in brackets, or a tombstone if there is none; for the key `strict`, a missing accumulator is a failure.
#![cfg(target_arch = "wasm32")]

use misdeeds::{FLOOD_BYTES, Misdeed, REASON};

wit_bindgen::generate!({ path: "../../../sdk/wit", world: "aggregate-stage" });

use exports::millstream::stage::aggregate::{Added, Batch, Column, Failure, Finished};
use millstream::stage::host::{Level, log};

struct Stage;

impl exports::millstream::stage::configuration::Guest for Stage {
    fn configure(parameters: Vec<(String, String)>) -> Result<(), String> {
        misdeeds::configure(parameters)
    }
}

fn empty() -> Column {
    Column { lengths: Vec::new(), bytes: Vec::new() }
}

impl exports::millstream::stage::aggregate::Guest for Stage {
    fn add(input: Batch, groups: Vec<u32>, accumulators: Column) -> Added {
        let kept = misdeeds::entries(&accumulators.lengths, &accumulators.bytes);
        let mut kept: Vec<Option<Vec<u8>>> = kept.map(|entry| entry.map(<[u8]>::to_vec)).collect();
        let (mut failures, mut miscounts) = (Vec::new(), false);
        let values = misdeeds::entries(&input.values.lengths, &input.values.bytes);
        for (index, (value, group)) in values.zip(groups).enumerate() {
            let (value, kept) = (value.unwrap_or_default(), &mut kept[group as usize]);
            match misdeeds::asked("add", value) {
                None if value == b"forget" => *kept = None,
                None => match kept {
                    Some(kept) => {
                        kept.push(b',');
                        kept.extend_from_slice(value);
                    }
                    None => *kept = Some(value.to_vec()),
                },
                Some(Misdeed::Fail) => failures.push(Failure { index: index as u32, reason: REASON.to_owned() }),
                Some(Misdeed::Smudge) => {
                    failures.push(Failure { index: index as u32, reason: REASON.to_owned() });
                    *kept = Some(b"a smudge".to_vec());
                }
                Some(Misdeed::Flood) => *kept = Some(vec![b'x'; FLOOD_BYTES]),
                Some(Misdeed::Miscount) => miscounts = true,
                Some(Misdeed::Trap) => misdeeds::trap(|line| log(Level::Error, line)),
                Some(Misdeed::Spin) => misdeeds::spin(),
                Some(Misdeed::Eat) => misdeeds::eat(),
            }
        }
        let mut accumulators = empty();
        kept.extend(miscounts.then(|| Some(b"too many".to_vec())));
        for kept in &kept {
            misdeeds::push(&mut accumulators.lengths, &mut accumulators.bytes, kept.as_deref());
        }
        Added { accumulators, failures }
    }

    fn merge(left: Column, _right: Column) -> Column {
        left
    }

    fn finish(keys: Column, accumulators: Column) -> Finished {
        let (mut values, mut failures) = (empty(), Vec::new());
        let mut put = |value: Option<&[u8]>| misdeeds::push(&mut values.lengths, &mut values.bytes, value);
        let kept = misdeeds::entries(&accumulators.lengths, &accumulators.bytes);
        for (index, (key, kept)) in misdeeds::entries(&keys.lengths, &keys.bytes).zip(kept).enumerate() {
            let Some(kept) = kept else {
                put(None);
                if key == Some(&b"strict"[..]) {
                    failures.push(Failure { index: index as u32, reason: "there is nothing of this key".to_owned() });
                }
                continue;
            };
            match kept.split(|byte| *byte == b',').find_map(|value| misdeeds::asked("finish", value)) {
                None => put(Some(&[b"[", kept, b"]"].concat())),
                Some(Misdeed::Fail | Misdeed::Smudge) => {
                    put(None);
                    failures.push(Failure { index: index as u32, reason: REASON.to_owned() });
                }
                Some(Misdeed::Flood) => put(Some(&vec![b'x'; FLOOD_BYTES])),
                Some(Misdeed::Miscount) => {
                    put(Some(b"one"));
                    put(Some(b"too many"));
                }
                Some(Misdeed::Trap) => misdeeds::trap(|line| log(Level::Error, line)),
                Some(Misdeed::Spin) => misdeeds::spin(),
                Some(Misdeed::Eat) => misdeeds::eat(),
            }
        }
        Finished { values, failures }
    }
}

export!(Stage);
