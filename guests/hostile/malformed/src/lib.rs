//! A map that uses the interface without the SDK and returns inconsistent columns. The parameter `lie` selects the
//! inconsistency.
#![cfg(target_arch = "wasm32")]

use std::sync::OnceLock;

wit_bindgen::generate!({ path: "../../../sdk/wit", world: "map-stage" });

use exports::millstream::stage::map::{Batch, Column, Failure, Mapped};

static LIE: OnceLock<String> = OnceLock::new();

struct Stage;

impl exports::millstream::stage::configuration::Guest for Stage {
    fn configure(parameters: Vec<(String, String)>) -> Result<(), String> {
        let lie = parameters.into_iter().find(|(name, _)| name == "lie").map(|(_, value)| value);
        LIE.set(lie.ok_or("the parameter \"lie\" is missing")?).map_err(|_| "configured twice".to_owned())
    }
}

impl exports::millstream::stage::map::Guest for Stage {
    fn run(input: Batch) -> Mapped {
        let records = input.offsets.len();
        let mut sources: Vec<u32> = (0..records as u32).collect();
        let mut values = Column { lengths: vec![1; records], bytes: vec![b'x'; records] };
        let mut failures = Vec::new();
        match LIE.get().map(String::as_str).unwrap_or_default() {
            "too-long" => values.lengths[0] = 1_000_000,
            "too-short" => values.bytes.push(b'y'),
            "negative" => values.lengths[0] = -2,
            "overflow" => values.lengths = vec![i32::MAX; records],
            "entries" => values.lengths.push(-1),
            "source" => sources[records - 1] = u32::MAX,
            "order" => sources.reverse(),
            "failure" => failures.push(Failure { index: records as u32, reason: "none such".into() }),
            "twice" => failures.extend([0, 0].map(|index| Failure { index, reason: "twice".into() })),
            "failed-output" => failures.push(Failure { index: 0, reason: "and yet it has an output".into() }),
            _ => {}
        }
        Mapped { sources, timestamps: None, keys: None, values: Some(values), headers: None, failures }
    }
}

export!(Stage);
