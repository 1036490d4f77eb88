//! Code shared by the modules `misdeeds-*`. A record tells these modules how to misbehave, and in which function: the
//! value `add traps` makes `add` trap and has no effect on `finish`. The modules use the interface without the SDK,
//! which would not let them return inconsistent columns.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Size of a flood's output, in bytes. It exceeds the limit that the tests set plus its slack.
pub const FLOOD_BYTES: usize = 4 << 20;

/// The reason of a failure that is returned correctly.
pub const REASON: &str = "this record is refused";

/// The last log line before a trap.
pub const LAST_WORDS: &str = "this record is a trap";

/// What a record asks the module to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// Report correctly that the record failed.
    Fail,
    /// Report that the record failed, and change the accumulator, which is not allowed.
    Smudge,
    /// Write a line to the log, and trap.
    Trap,
    /// Never return.
    Spin,
    /// Allocate memory without limit.
    Eat,
    /// Return far too much data.
    Flood,
    /// Return more entries than there are records.
    Miscount,
}

static HARMLESS: OnceLock<bool> = OnceLock::new();

/// Whether the instance has miscounted. It then always does, so that calling it again gives no result.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Reads the parameter `harmless`. If it is set, no record causes a misdeed.
pub fn configure(parameters: Vec<(String, String)>) -> Result<(), String> {
    if let Some((name, _)) = parameters.iter().find(|(name, _)| name != "harmless") {
        return Err(format!("there is no parameter {name:?}"));
    }
    HARMLESS.set(!parameters.is_empty()).map_err(|_| "configured twice".to_owned())
}

/// Returns what `value` asks the function `place` to do.
pub fn asked(place: &str, value: &[u8]) -> Option<Misdeed> {
    if HARMLESS.get() == Some(&true) {
        return None;
    }
    if BROKEN.load(Ordering::Relaxed) {
        return Some(Misdeed::Miscount);
    }
    let asked = misdeed(place, value);
    BROKEN.store(asked == Some(Misdeed::Miscount), Ordering::Relaxed);
    asked
}

fn misdeed(place: &str, value: &[u8]) -> Option<Misdeed> {
    match value.strip_prefix(place.as_bytes())?.strip_prefix(b" ")? {
        b"fails" => Some(Misdeed::Fail),
        b"smudges" => Some(Misdeed::Smudge),
        b"traps" => Some(Misdeed::Trap),
        b"spins" => Some(Misdeed::Spin),
        b"eats" => Some(Misdeed::Eat),
        b"floods" => Some(Misdeed::Flood),
        b"miscounts" => Some(Misdeed::Miscount),
        _ => None,
    }
}

/// Traps after writing a line to the log with `say`.
pub fn trap(say: impl FnOnce(&str)) -> ! {
    say(LAST_WORDS);
    #[cfg(target_arch = "wasm32")]
    std::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    panic!("{LAST_WORDS}")
}

/// Never returns.
pub fn spin() -> ! {
    loop {
        black_box(());
    }
}

/// Allocates memory until there is none left.
pub fn eat() -> ! {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(black_box(vec![1; 1 << 20]));
    }
}

/// Returns the entries of a column.
pub fn entries<'c>(lengths: &'c [i32], bytes: &'c [u8]) -> impl Iterator<Item = Option<&'c [u8]>> {
    let mut rest = bytes;
    lengths.iter().map(move |&length| {
        let (entry, after) = rest.split_at(usize::try_from(length).ok()?);
        rest = after;
        Some(entry)
    })
}

/// Appends an entry to a column.
pub fn push(lengths: &mut Vec<i32>, bytes: &mut Vec<u8>, entry: Option<&[u8]>) {
    lengths.push(entry.map_or(-1, |entry| entry.len() as i32));
    bytes.extend_from_slice(entry.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_asks_one_function_for_one_misdeed() {
        assert_eq!(asked("add", b"add traps"), Some(Misdeed::Trap));
        assert_eq!(asked("finish", b"add traps"), None);
        assert_eq!(asked("add", b"add"), None);
        assert_eq!(asked("add", b"a1"), None);
    }

    #[test]
    fn a_column_has_the_entries_that_were_pushed() {
        let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
        let pushed = [Some(&b"ab"[..]), None, Some(b""), Some(b"c")];
        pushed.iter().for_each(|entry| push(&mut lengths, &mut bytes, *entry));
        assert!(entries(&lengths, &bytes).eq(pushed));
    }
}
