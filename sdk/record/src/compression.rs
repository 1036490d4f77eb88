//! The compression codecs of record batches, and decompression within a limit.

use std::borrow::Cow;
use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use crate::error::BatchError;

/// The compression codec of a batch. The discriminants are those of the batch attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Compression {
    /// No compression.
    #[default]
    None = 0,
    /// gzip, RFC 1952.
    Gzip = 1,
    /// Snappy in the xerial framing, which Kafka's clients write.
    Snappy = 2,
    /// The LZ4 frame format.
    Lz4 = 3,
    /// Zstandard, RFC 8878.
    Zstd = 4,
}

const ALL: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

impl Compression {
    pub(crate) fn from_attributes(attributes: u16) -> Result<Self, BatchError> {
        let codec = Self::number(attributes);
        ALL.into_iter().find(|known| *known as u8 == codec).ok_or(BatchError::UnknownCompression(codec))
    }

    /// Returns the codec number from the attributes of a batch, whether or not the codec is known.
    pub(crate) fn number(attributes: u16) -> u8 {
        (attributes & 7) as u8
    }

    /// Returns the codec's name as in Kafka's `compression.type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = ALL.into_iter().find(|codec| codec.name() == name);
        known.ok_or_else(|| format!("compression {name:?} is unknown: use none, gzip, snappy, lz4 or zstd"))
    }
}

/// The magic bytes of the xerial framing. In the header, two version numbers follow them.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Uncompressed size of one Snappy block, in bytes, as in the Java client's stream.
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;

/// Maximum window size of a zstd frame, as a power of two: 8 MiB, which every decoder should support (RFC 8878).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Number of bytes to decompress before the limit is checked again. It is also the size of the first allocation.
const INFLATE_STEP_BYTES: usize = 64 * 1024;

pub(crate) fn compress(codec: Compression, body: &[u8]) -> Vec<u8> {
    // Writing into memory cannot fail.
    const INFALLIBLE: &str = "compressing into memory";
    match codec {
        Compression::None => body.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(body).expect(INFALLIBLE);
            encoder.finish().expect(INFALLIBLE)
        }
        Compression::Snappy => {
            let mut out = XERIAL_HEADER.to_vec();
            for block in body.chunks(XERIAL_BLOCK_BYTES) {
                let block = snap::raw::Encoder::new().compress_vec(block).expect(INFALLIBLE);
                out.extend_from_slice(&(block.len() as u32).to_be_bytes());
                out.extend_from_slice(&block);
            }
            out
        }
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(body).expect(INFALLIBLE);
            encoder.finish().expect(INFALLIBLE)
        }
        Compression::Zstd => zstd::bulk::compress(body, 0).expect(INFALLIBLE),
    }
}

/// Decompresses a body to at most `bytes_max` bytes. Allocates at most twice that amount for any body.
pub(crate) fn inflate(codec: Compression, body: &[u8], bytes_max: usize) -> Result<Cow<'_, [u8]>, BatchError> {
    let inflated = match codec {
        Compression::None => return Ok(Cow::Borrowed(body)),
        Compression::Gzip => read_bounded(codec, flate2::read::MultiGzDecoder::new(body), bytes_max)?,
        Compression::Snappy => snappy(body, bytes_max)?,
        Compression::Lz4 => read_bounded(codec, lz4_flex::frame::FrameDecoder::new(body), bytes_max)?,
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(|e| failed(codec, &e))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|e| failed(codec, &e))?;
            read_bounded(codec, decoder, bytes_max)?
        }
    };
    Ok(Cow::Owned(inflated))
}

fn failed(codec: Compression, error: &dyn fmt::Display) -> BatchError {
    BatchError::Inflate { codec: codec.name(), reason: error.to_string() }
}

fn read_bounded(codec: Compression, mut reader: impl Read, bytes_max: usize) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    loop {
        let step = INFLATE_STEP_BYTES.max(out.len()).min(bytes_max + 1 - out.len());
        let before = out.len();
        out.reserve_exact(step);
        reader.by_ref().take(step as u64).read_to_end(&mut out).map_err(|e| failed(codec, &e))?;
        if out.len() > bytes_max {
            return Err(BatchError::InflatesTooFar { bytes_max });
        }
        if out.len() < before + step {
            return Ok(out);
        }
    }
}

fn snappy(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    if !body.starts_with(XERIAL_MAGIC) {
        snappy_block(body, &mut out, bytes_max)?;
        return Ok(out);
    }
    let cut = || failed(Compression::Snappy, &"a block is truncated");
    let mut rest = body.get(XERIAL_HEADER.len()..).ok_or_else(cut)?;
    while !rest.is_empty() {
        let (len, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (block, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or_else(cut)?;
        snappy_block(block, &mut out, bytes_max)?;
        rest = after;
    }
    Ok(out)
}

fn snappy_block(block: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), BatchError> {
    let codec = Compression::Snappy;
    let len = snap::raw::decompress_len(block).map_err(|e| failed(codec, &e))?;
    // The length that a block claims is allocated only within the limit, and only if the block is long enough for it: a
    // copy element of two bytes yields at most 64 bytes.
    if len > bytes_max - out.len() {
        return Err(BatchError::InflatesTooFar { bytes_max });
    }
    if len > block.len().saturating_mul(64) {
        return Err(failed(codec, &"a block claims a length that its bytes cannot produce"));
    }
    let begin = out.len();
    out.resize(begin + len, 0);
    snap::raw::Decoder::new().decompress(block, &mut out[begin..]).map_err(|e| failed(codec, &e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_round_trips_and_is_bounded() {
        let body: Vec<u8> = (0..300_000u32).map(|i| (i / 100) as u8).collect();
        for codec in ALL {
            let packed = compress(codec, &body);
            assert_eq!(inflate(codec, &packed, body.len()).unwrap().as_ref(), body, "{codec}");
            if codec != Compression::None {
                let bytes_max = body.len() - 1;
                assert_eq!(
                    inflate(codec, &packed, bytes_max),
                    Err(BatchError::InflatesTooFar { bytes_max }),
                    "{codec}"
                );
                let cut = inflate(codec, &packed[..packed.len() / 2], body.len());
                assert!(cut.is_err(), "{codec}: half a body was decompressed");
            }
        }
    }

    #[test]
    fn raw_snappy_is_read() {
        let packed = snap::raw::Encoder::new().compress_vec(b"raw raw raw").unwrap();
        assert_eq!(inflate(Compression::Snappy, &packed, 100).unwrap().as_ref(), b"raw raw raw");
    }
}
