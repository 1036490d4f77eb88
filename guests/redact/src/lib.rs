//! Masks e-mail addresses and payment card numbers in a value. A card number has 13 to 19 digits, optionally separated
//! by single spaces or dashes, and a valid Luhn checksum.

use millstream::prelude::*;

const CARD_DIGITS: std::ops::RangeInclusive<usize> = 13..=19;

#[millstream::map]
pub fn redact(record: &Record, out: &mut Output) -> Result<()> {
    if record.value().is_none() {
        out.pass();
        return Ok(());
    }
    let text = record.value_str()?;
    match mask_cards(&mask_addresses(text)) {
        masked if masked == text => out.pass(),
        masked => out.emit(&masked),
    }
    Ok(())
}

fn mask_addresses(text: &str) -> String {
    let local = |c: char| c.is_ascii_alphanumeric() || "._%+-".contains(c);
    let domain = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        let name_begins =
            before.rfind(|c| !local(c)).map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8));
        let host = &after[..after.find(|c| !domain(c)).unwrap_or(after.len())];
        // A period after the address may be the end of a sentence.
        let host = host.trim_end_matches(['.', '-']);
        let is_address =
            name_begins < at && host.split('.').count() > 1 && host.split('.').all(|part| !part.is_empty());
        if is_address {
            out.push_str(&before[..name_begins]);
            out.push_str("***@***");
            rest = &after[host.len()..];
        } else {
            out.push_str(before);
            out.push('@');
            rest = after;
        }
    }
    out + rest
}

fn mask_cards(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let (digits, end) = digits_from(bytes, at);
        if CARD_DIGITS.contains(&digits.len()) && luhn(&digits) {
            out.push_str(&text[copied..at]);
            out.push_str("****");
            copied = end;
        }
        at = end;
    }
    out + &text[copied..]
}

/// Returns the digits that start at `at`, without single separators between them, and the position of their end.
fn digits_from(bytes: &[u8], mut at: usize) -> (Vec<u8>, usize) {
    let mut digits = Vec::new();
    let mut end = at;
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii_digit() {
            digits.push(byte - b'0');
            end = at + 1;
        } else if !(matches!(byte, b' ' | b'-') && at == end) {
            break;
        }
        at += 1;
    }
    (digits, end)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, &digit)| match u32::from(digit) * (1 + i as u32 % 2) {
            doubled if doubled > 9 => doubled - 9,
            digit => digit,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        let record = Record::of(text);
        Output::collect(&record, |out| redact(&record, out)).unwrap()[0].value_str().to_owned()
    }

    #[test]
    fn addresses_are_masked() {
        assert_eq!(masked("mail ann.b+c@example.co.uk."), "mail ***@***.");
        assert_eq!(masked("é@x.org,ü a@b.c"), "é@x.org,ü ***@***");
        assert_eq!(masked("@home a@b me@ x"), "@home a@b me@ x");
    }

    #[test]
    fn card_numbers_are_masked_others_are_not() {
        assert_eq!(masked("pay 4111 1111 1111 1111 now"), "pay **** now");
        assert_eq!(masked("5500-0000-0000-0004"), "****");
        assert_eq!(masked("4111111111111112 12345"), "4111111111111112 12345");
    }

    #[test]
    fn a_tombstone_passes() {
        let record = Record::tombstone().with_key("k");
        let out = Output::collect(&record, |out| redact(&record, out)).unwrap();
        assert_eq!((out[0].key_str(), out[0].value()), ("k", None));
    }
}
