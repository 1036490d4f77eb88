//! A hash of the actions of a run, in order. Two runs with the same actions have the same hash.

use std::fmt::Write as _;

/// The 64-bit parameters of FNV-1a.
const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// The hash of all lines so far, and the lines themselves if they are kept.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(keep_lines: bool) -> Self {
        Self { hash: OFFSET_BASIS, lines: keep_lines.then(Vec::new) }
    }

    pub(crate) fn add(&mut self, thread: &str, now_ns: u64, what: std::fmt::Arguments<'_>) {
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = write!(line, "{now_ns} {thread} {what}");
        for byte in line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }

    pub(crate) fn finish(self) -> (u64, Vec<String>) {
        (self.hash, self.lines.unwrap_or_default())
    }
}
