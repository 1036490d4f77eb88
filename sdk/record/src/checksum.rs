//! CRC-32C (Castagnoli), the checksum of record batches and of everything else that is stored.

use crc_fast::{CrcAlgorithm, Digest};

/// Returns the CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Returns the CRC-32C of bytes whose CRC-32C is `crc`, followed by `bytes`.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    // The state of a checksum is its value before the final inversion.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    // The upper half of the result is zero.
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720_and_can_be_continued_anywhere() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
        let bytes: Vec<u8> = (0..3_000u32).map(|n| (n * 37 % 251) as u8).collect();
        for split in [0, 1, 7, 21, 64, 255, 1_024, 2_999, 3_000] {
            let (begin, end) = bytes.split_at(split);
            assert_eq!(crc32c_append(crc32c(begin), end), crc32c(&bytes), "split at {split}");
        }
    }
}
