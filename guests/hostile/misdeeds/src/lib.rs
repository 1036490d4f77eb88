//! What the modules `misdeeds-*` have in common: a record tells them what to do wrong, and in which
//! function. The value `add traps` makes `add` trap, and means nothing to `finish`. They are made on
//! the bare contract, without the SDK, which would not let them return inconsistent columns.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much a flood returns, in bytes: over the limit that the tests set, and its slack.
pub const FLOOD_BYTES: usize = 4 << 20;

/// The reason of a failure that is returned as the contract says.
pub const REASON: &str = "this record is refused";

/// The last line in the log before a trap.
pub const LAST_WORDS: &str = "this record is a trap";

/// What a record asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// Say that the record failed, as the contract has it.
    Fail,
    /// The same, and leave a trace where there must be none.
    Smudge,
    /// Write a line to the log, and trap.
    Trap,
    /// Never return.
    Spin,
    /// Take memory without end.
    Eat,
    /// Return far too much.
    Flood,
    /// Return more entries than there are records.
    Miscount,
}

static HARMLESS: OnceLock<bool> = OnceLock::new();

/// An instance that miscounted once always does: whoever calls it again gets nothing from it.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Takes the parameter `harmless`: with it, no record has an effect beyond the others'.
pub fn configure(parameters: Vec<(String, String)>) -> Result<(), String> {
    if let Some((name, _)) = parameters.iter().find(|(name, _)| name != "harmless") {
        return Err(format!("there is no parameter {name:?}"));
    }
    HARMLESS.set(!parameters.is_empty()).map_err(|_| "configured twice".to_owned())
}

/// What `value` asks the function `place` to do.
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

/// Traps; `say` writes a line to the log.
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

/// Takes memory until there is none.
pub fn eat() -> ! {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(black_box(vec![1; 1 << 20]));
    }
}

/// The entries of a column.
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
