//! What a run did, in order, as one number: two runs that did the same have the same number.

use std::fmt::Write as _;

/// FNV-1a's parameters for 64 bits.
const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// A hash of all lines so far, and the lines themselves where they are kept.
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
        // Writing to a string can't fail.
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
