//! Formats values for people: counts, sizes, durations, and bytes that may not be text.

use std::fmt::Write as _;
use std::time::Duration;

/// Formats a count: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats a count with its noun: `1 record`, `1,234 records`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Formats a size: `512 B`, `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // A value that would be printed as 1024.0 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Formats a setting in milliseconds, in the largest unit that shows it exactly: `7 d`, `36 h`, `90 s`.
pub(crate) fn milliseconds(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    match UNITS.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", count(ms / unit)),
        None => format!("{} ms", count(ms)),
    }
}

/// Formats an elapsed time: `0.213 s`, `75.1 s`.
pub(crate) fn elapsed(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.3} s") } else { format!("{seconds:.1} s") }
}

/// Returns text with control characters escaped, and bytes that are not UTF-8 as `\xNN`. For one line in a table.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|character| push_escaped(&mut shown, character));
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// Returns a line with all control characters except tabs escaped.
pub(crate) fn escaped_but_tabs(line: &str) -> String {
    let parts: Vec<_> = line.split('\t').map(|part| escaped(part.as_bytes())).collect();
    parts.join("\t")
}

fn push_escaped(shown: &mut String, character: char) {
    match character {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        control if control.is_control() => {
            // Control characters end at U+009F, so their code points fit `\xNN`.
            let _ = write!(shown, "\\x{:02x}", u32::from(control));
        }
        other => shown.push(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        let shown: Vec<_> = [0, 12, 999, 1_000, 1_234_567, u64::MAX].map(count).into();
        assert_eq!(shown, ["0", "12", "999", "1,000", "1,234,567", "18,446,744,073,709,551,615"]);
        assert_eq!(plural(1, "record"), "1 record");
        assert_eq!(plural(0, "record"), "0 records");
    }

    #[test]
    fn sizes_and_durations_are_short() {
        let shown: Vec<_> = [0, 1_023, 1_024, 1_536, (1 << 20) - 1, 3 << 30, u64::MAX].map(size).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "3.0 GiB", "16.0 EiB"]);
        let shown: Vec<_> = [0, 999, 1_000, 90_000, 129_600_000, 604_800_000].map(milliseconds).into();
        assert_eq!(shown, ["0 ms", "999 ms", "1 s", "90 s", "36 h", "7 d"]);
    }

    #[test]
    fn bytes_stay_on_one_line() {
        assert_eq!(escaped("größe\n\u{1b}[0m".as_bytes()), "größe\\n\\x1b[0m");
        assert_eq!(escaped(b"a\xff\xfeb"), "a\\xff\\xfeb");
    }
}
