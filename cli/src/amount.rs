//! Parsers for durations, sizes, counts and addresses given as command-line arguments, such as `7d` or `10GiB`.

use std::net::SocketAddr;
use std::str::FromStr;

/// Units of a duration, in milliseconds.
const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Units of a size, in bytes. A number without a unit is a number of bytes.
const SIZES: [(&str, u64); 6] =
    [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Parses a whole number of ms, s, min, h or d, and returns milliseconds.
pub(crate) fn milliseconds(text: &str) -> Result<u64, String> {
    read(text, &DURATIONS, "write a whole number with its unit, one of ms, s, min, h and d, such as 7d")
}

/// Parses a whole number of bytes, KiB, MiB, GiB or TiB, and returns bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    read(text, &SIZES, "write a whole number of bytes, or one with KiB, MiB, GiB or TiB, such as 10GiB")
}

/// Parses a whole number greater than zero into a `NonZero` type.
pub(crate) fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "write a whole number, 1 or more".to_owned())
}

/// Parses a whole number.
pub(crate) fn whole(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("write a whole number, at most {}", u32::MAX))
}

/// Parses an IP address and a port.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:7070 or 0.0.0.0:7070".to_owned())
}

fn read(text: &str, units: &[(&str, u64)], help: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, factor)| *factor);
    let number = number.parse::<u64>().ok();
    let (Some(number), Some(factor)) = (number, factor) else { return Err(help.to_owned()) };
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("the value is too large: the maximum is {} in the smallest unit", u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        let read: Vec<_> = ["7d", "36 h", "5min", "90s", "250ms", "0ms"].map(milliseconds).into();
        assert_eq!(read, [604_800_000, 129_600_000, 300_000, 90_000, 250, 0].map(Ok));
        for wrong in ["", "7", "d", "7w", "1.5h", "-1s", "7 d ", "7D", "20000000000000000000ms", "999999999999d"] {
            assert!(milliseconds(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_binary_multiples() {
        let read: Vec<_> = ["1048576", "512B", "64KiB", "1 MiB", "10GiB", "2TiB"].map(bytes).into();
        assert_eq!(read, [1 << 20, 512, 1 << 16, 1 << 20, 10 << 30, 2 << 40].map(Ok));
        for wrong in ["", "GiB", "10GB", "10 gib", "1.5GiB", "-1", "99999999999TiB"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
    }
}
