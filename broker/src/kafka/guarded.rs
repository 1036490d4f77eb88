//! A guard for decoding. The decoder of `kafka-protocol` allocates as many entries as a request claims to have, before it
//! reads them, so a request of some bytes could make the process allocate hundreds of gigabytes.
//!
//! A request is therefore decoded twice. The first time, it is read through [`Guarded`], which makes sure that no length
//! and no count exceeds the number of bytes that follow. If that succeeds, the real decoding allocates at most in
//! proportion to the size of the request.

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::Decodable;
use kafka_protocol::protocol::buf::{ByteBuf, NotEnoughBytesError};

/// Largest number of bytes of a variable-length integer of 32 bits.
const VARINT_BYTES_MAX: u32 = 5;

/// The bytes of a request, with checks of the numbers that are read from them.
struct Guarded<'a> {
    bytes: &'a [u8],
    /// The variable-length integer that is being read.
    varint: Varint,
}

/// The part of a variable-length integer that was read.
#[derive(Clone, Copy, Default)]
struct Varint {
    value: u64,
    bytes: u32,
}

impl<'a> Guarded<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, varint: Varint::default() }
    }

    fn refused(&self) -> TryGetError {
        TryGetError { requested: usize::MAX, available: self.bytes.len() }
    }
}

impl Buf for Guarded<'_> {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.varint = Varint::default();
    }

    /// Lengths, counts and tags are read byte by byte, and so are booleans. A value that only a boolean of a hostile client
    /// can have (0x80 and above) counts as the first byte of the number after it, which then seems to be larger than it is.
    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let Some((&byte, rest)) = self.bytes.split_first() else { return Err(self.refused()) };
        self.bytes = rest;
        let Varint { value, bytes } = self.varint;
        let value = value | u64::from(byte & 0x7f) << (7 * bytes);
        if byte >= 0x80 {
            self.varint = Varint { value, bytes: bytes + 1 };
            return if bytes + 1 < VARINT_BYTES_MAX { Ok(byte) } else { Err(self.refused()) };
        }
        self.varint = Varint::default();
        // Lengths and counts are stored plus one. Tags that Kafka knows are small, and so are booleans.
        if bytes > 0 && value > self.bytes.len() as u64 + 1 { Err(self.refused()) } else { Ok(byte) }
    }

    /// The only numbers of 32 bits that decide how a request is read are lengths and counts. One that exceeds the bytes that
    /// follow is replaced by the least number that does: each entry takes at least one byte, so the decoding then fails. A
    /// number with another meaning may be replaced too, because the result of this decoding is not used.
    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        let Some((number, rest)) = self.bytes.split_first_chunk::<4>() else { return Err(self.refused()) };
        self.bytes = rest;
        self.varint = Varint::default();
        Ok(i32::from_be_bytes(*number).min(i32::try_from(rest.len() + 1).unwrap_or(i32::MAX)))
    }
}

impl ByteBuf for Guarded<'_> {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        Bytes::copy_from_slice(&self.bytes[range])
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        // What a string or a byte string contains does not decide how the request is read, except that strings must be
        // valid UTF-8, which is checked when the request is decoded.
        self.advance(size);
        Bytes::new()
    }

    fn try_get_bytes(&mut self, size: usize) -> Result<Bytes, NotEnoughBytesError> {
        if size > self.bytes.len() { Err(NotEnoughBytesError) } else { Ok(self.get_bytes(size)) }
    }
}

/// Decodes a message, whose counts are checked before anything is allocated for them.
pub(super) fn decode<M: Decodable>(mut body: Bytes, version: i16) -> Result<M, String> {
    M::decode(&mut Guarded::new(&body), version).map_err(|error| error.to_string())?;
    M::decode(&mut body, version).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{FetchRequest, MetadataRequest};
    use kafka_protocol::protocol::Decodable;

    use super::*;

    #[test]
    fn a_count_beyond_the_request_is_refused_before_it_is_allocated() {
        // Version 4 has counts of 32 bits, version 12 variable-length ones.
        for count in [[0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 9], [0, 0, 0, 1]] {
            for rest in [&[0, 1, b't', 1][..], &[0, 0], &[0], &[]] {
                let request = [&count[..], rest].concat();
                let decoded = MetadataRequest::decode(&mut Guarded::new(&request), 4);
                assert_eq!(decoded.is_ok(), count[3] == 1 && rest.len() == 4, "{count:?} {rest:?}");
            }
        }
        for count in [&[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0xff, 0xff, 0x7f], &[0xff, 0xff, 0xff, 0xff, 0xff]] {
            let request = [count, &[0; 16], &[2, b't', 0, 1, 0, 0, 0]].concat();
            assert!(MetadataRequest::decode(&mut Guarded::new(&request), 12).is_err(), "{count:?}");
        }
    }

    #[test]
    fn sound_requests_pass() {
        let request = [&[0, 0, 0, 1][..], &[0, 1, b't'], &[1]].concat();
        MetadataRequest::decode(&mut Guarded::new(&request), 4).unwrap();
        let request = [&[2][..], &[0; 16], &[2, b't', 0], &[1, 0, 0]].concat();
        MetadataRequest::decode(&mut Guarded::new(&request), 12).unwrap();
        // The largest waits and sizes.
        let mut request = vec![0xff, 0xff, 0xff, 0xff];
        request.extend([0x7f, 0xff, 0xff, 0xff].repeat(3));
        request.extend([0, 0, 0, 0, 0]);
        FetchRequest::decode(&mut Guarded::new(&request), 4).unwrap();
    }

    #[test]
    fn a_boolean_cannot_hide_the_first_byte_of_a_count() {
        for first in [0x80, 0xff] {
            for count in [[0xff, 0xff, 0xff, 0x7f], [0x80, 0x80, 0x80, 0x0f], [0xff, 0xff, 0x7f, 0]] {
                let bytes = [&[first], &count[..], &[0; 8]].concat();
                let mut guarded = Guarded::new(&bytes);
                let read: Result<Vec<u8>, _> = (0..5).map(|_| guarded.try_get_u8()).collect();
                assert!(read.is_err(), "{first} {count:?}");
            }
        }
    }
}
