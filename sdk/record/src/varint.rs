//! Zigzag variable-length integers, as in Protocol Buffers and Kafka's record batch v2.

/// Reads from the start of a slice, which it advances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    pub(crate) bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(byte)
    }

    /// Reads a 32-bit varint of at most five bytes.
    #[inline]
    pub(crate) fn varint(&mut self) -> Option<i32> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(unzigzag(u64::from(first)) as i32);
        }
        self.more(u64::from(first & 0x7f), 5).and_then(|raw| i32::try_from(unzigzag(raw)).ok())
    }

    /// Reads a 64-bit varint of at most ten bytes.
    #[inline]
    pub(crate) fn varlong(&mut self) -> Option<i64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(unzigzag(u64::from(first)));
        }
        self.more(u64::from(first & 0x7f), 10).map(unzigzag)
    }

    fn more(&mut self, mut raw: u64, bytes_max: u32) -> Option<u64> {
        for index in 1..bytes_max {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if index == 9 && bits > 1 {
                return None;
            }
            raw |= bits << (7 * index);
            if byte < 0x80 {
                return Some(raw);
            }
        }
        None
    }

    /// Reads a length-prefixed byte string; length -1 is null. Returns `Err` for any other negative length, and for a
    /// length that exceeds the remaining bytes.
    #[inline]
    pub(crate) fn nullable(&mut self) -> Result<Option<&'a [u8]>, ()> {
        match self.varint() {
            Some(-1) => Ok(None),
            Some(len) => usize::try_from(len).ok().and_then(|len| self.take(len)).map(Some).ok_or(()),
            None => Err(()),
        }
    }
}

#[inline]
fn unzigzag(raw: u64) -> i64 {
    ((raw >> 1) as i64) ^ -((raw & 1) as i64)
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[inline]
pub(crate) fn put(out: &mut Vec<u8>, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// Returns the number of bytes that [`put`] writes.
#[inline]
pub(crate) fn size(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;

    proptest! {
        #![proptest_config(seeded())]

        #[test]
        fn what_is_put_is_read(value: i64) {
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), size(value));
            prop_assert_eq!(Cursor { bytes: &out }.varlong(), Some(value));
            prop_assert_eq!(Cursor { bytes: &out }.varint(), i32::try_from(value).ok());
        }
    }

    #[test]
    fn endless_and_cut_varints_are_refused() {
        assert_eq!(Cursor { bytes: &[0xff; 20] }.varlong(), None);
        assert_eq!(Cursor { bytes: &[0xff; 20] }.varint(), None);
        assert_eq!(Cursor { bytes: &[0x80] }.varlong(), None);
        assert_eq!(Cursor { bytes: &[] }.varint(), None);
    }
}
