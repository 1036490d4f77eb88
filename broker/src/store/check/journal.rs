//! Reads a damaged journal: what is intact in each commit, and what a repair keeps of it.

use millstream_record::checksum;
use std::ops::Range;

use bytes::Bytes;
use millstream_record::BatchHeader;

use super::super::journal::{
    BATCHES, BLOB_HEADER_BYTES, CHUNK_BYTES, DROP_GROUP, DROP_STATE, ENTRY_HEADER_BYTES, MAGIC, OFFSET,
    OFFSET_FORMAT_4, RUN_HEADER_BYTES, RunHeader, STATE, STATE_FORMAT_4, entry_crc, read_run_header,
};
use super::super::segment::{BlockFault, Scanned, scan};

/// Maximum size of an entry in which a flipped bit is corrected, in bytes. Other damage may look like one flipped bit.
/// This is the more likely the more bits an entry has; at this size the probability is 1 in 100,000.
const PUT_RIGHT_BYTES_MAX: usize = 4096;

/// A commit in the journal.
pub(super) struct Blob {
    /// The sequence numbers of its values.
    pub(super) seqs: Range<u64>,
    pub(super) bytes: Bytes,
    /// What is wrong with the header, if anything.
    pub(super) fault: Option<String>,
}

/// Joins values to commits. Uses the length in the commit's header if the values agree with it.
pub(super) fn blobs(values: &[(u64, Bytes)]) -> Vec<Blob> {
    let mut found = Vec::new();
    let mut rest = values;
    while let Some((first, value)) = rest.first() {
        let all = header_of(value);
        let count = all.and_then(|all| told_by_header(rest, all)).unwrap_or_else(|| told_by_values(rest));
        let (values, after) = rest.split_at(count);
        rest = after;
        let bytes: Bytes = values.iter().map(|(_, value)| value.as_ref()).collect::<Vec<_>>().concat().into();
        let fault = match all {
            Some(all) if all == bytes.len() => None,
            Some(all) => Some(format!("its commit has {} bytes, but its header says {all}", bytes.len())),
            None => Some("it does not start with the magic number of a commit".to_owned()),
        };
        found.push(Blob { seqs: *first..first + count as u64, bytes, fault });
    }
    found
}

/// Returns the number of values of a commit of `bytes` bytes that starts here; all but the last value are full. Returns
/// `None` if the values do not match this.
fn told_by_header(values: &[(u64, Bytes)], bytes: usize) -> Option<usize> {
    let count = bytes.div_ceil(CHUNK_BYTES);
    let (_, last) = values.get(count.checked_sub(1)?)?;
    let is_whole = (1..count).all(|at| continues(values, at)) && (count - 1) * CHUNK_BYTES + last.len() == bytes;
    is_whole.then_some(count)
}

/// Returns the number of values without using the length in the header: full values continue the commit until one
/// starts with a commit's header.
fn told_by_values(values: &[(u64, Bytes)]) -> usize {
    let ends = |at: &usize| !continues(values, *at) || header_of(&values[*at].1).is_some();
    (1..values.len()).find(ends).unwrap_or(values.len())
}

/// Returns whether this value may continue the one before, which must be full.
fn continues(values: &[(u64, Bytes)], at: usize) -> bool {
    let (before, bytes) = &values[at - 1];
    bytes.len() == CHUNK_BYTES && values[at].0 == before + 1
}

fn header_of(value: &[u8]) -> Option<usize> {
    let (magic, rest) = value.split_first_chunk::<4>()?;
    let bytes = rest.first_chunk::<4>()?;
    (*magic == MAGIC.to_le_bytes()).then_some(u32::from_le_bytes(*bytes) as usize)
}

/// An entry, and its damage, if any.
pub(super) struct Found {
    pub(super) kind: u8,
    pub(super) content: Content,
    pub(super) fault: Option<String>,
}

/// The usable content of an entry.
pub(super) enum Content {
    /// Batches of one partition: the intact ones, and the ranges that are lost. `known` says whether topic and
    /// partition can be trusted.
    Run { run: RunHeader, known: bool, batches: Vec<Bytes>, lost: Vec<BlockFault> },
    /// The body of any other entry, either intact or corrected.
    Body(Bytes),
    /// Nothing is usable.
    Lost,
}

/// Returns the entries of a commit, as far as they can be told apart.
pub(super) fn entries(blob: &Blob) -> Vec<Found> {
    let mut found = Vec::new();
    let mut at = BLOB_HEADER_BYTES.min(blob.bytes.len());
    while at < blob.bytes.len() {
        let Some((header, body, mut fault)) = entry(&blob.bytes, at) else {
            found.push(Found {
                kind: 0,
                content: Content::Lost,
                fault: Some(format!("it cannot be read from byte {at} on: the rest of its commit is lost")),
            });
            break;
        };
        at = body.end;
        let body = blob.bytes.slice(body);
        let sound = entry_crc(header.kind, &body) == header.crc;
        let content = if header.kind == BATCHES {
            run(&body, sound, &mut fault)
        } else if sound {
            Content::Body(body)
        } else if fault.is_some() {
            Content::Lost
        } else {
            other(&header, &body, &mut fault)
        };
        found.push(Found { kind: header.kind, content, fault });
    }
    found
}

struct Header {
    kind: u8,
    bytes: usize,
    crc: u32,
}

fn header(bytes: &[u8; ENTRY_HEADER_BYTES]) -> Header {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Header { kind: bytes[0], bytes: number(4) as usize, crc: number(8) }
}

/// Returns the entry at a position: its header, the range of its body, and what is wrong with the header. A header is
/// trusted if the body matches its checksum, possibly after flipping one bit of the header, or if another entry follows
/// at the end of the body. Otherwise the entry ends before the next intact one.
fn entry(blob: &[u8], at: usize) -> Option<(Header, Range<usize>, Option<String>)> {
    let bytes: [u8; ENTRY_HEADER_BYTES] = *blob[at..].first_chunk()?;
    let as_is = header(&bytes);
    if let Some(body) = sound_body(blob, at, &as_is).filter(|_| is_padded(&bytes)) {
        return Some((as_is, body, None));
    }
    for bit in 0..ENTRY_HEADER_BYTES * 8 {
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        let header = header(&flipped);
        if let Some(body) = sound_body(blob, at, &header) {
            let fault = format!("the header of an entry at byte {at} had a flipped bit; nothing is lost");
            return Some((header, body, Some(fault)));
        }
    }
    let as_is_place = place(blob, at, &as_is);
    let begin = at + ENTRY_HEADER_BYTES;
    let batches_end = batches_end(blob, begin);
    let ends_entry = |end: &usize| *end == blob.len() || begins_entry(blob, *end);
    if let Some(body) = &as_is_place
        && (batches_end.is_none() || as_is.kind == BATCHES)
        && ends_entry(&body.end)
    {
        return Some((as_is, body.clone(), None));
    }
    if let Some(end) = batches_end.flatten().filter(ends_entry) {
        let fault = Some(format!("the header of an entry at byte {at} is damaged"));
        return Some((Header { kind: BATCHES, ..as_is }, begin..end, fault));
    }
    // The search comes last because the content of a record may look like an entry.
    let next = (begin..blob.len()).find(|at| begins_entry(blob, *at)).unwrap_or(blob.len());
    let kind = if batches_end.is_some() { BATCHES } else { as_is.kind };
    let own_end = as_is_place.map(|body| body.end).filter(|end| as_is.kind == BATCHES && *end <= next);
    let end = batches_end.flatten().filter(|end| *end <= next).or(own_end).unwrap_or(next);
    let fault = match kind {
        BATCHES if own_end == Some(end) => None,
        BATCHES => Some(format!("the header of an entry at byte {at} is damaged")),
        _ => Some(format!("it cannot be read from byte {at} to byte {end}: the entries there are lost")),
    };
    Some((Header { kind, ..as_is }, begin..end, fault))
}

/// Returns whether an entry starts here: one that matches its checksum, or batches whose own header does.
fn begins_entry(blob: &[u8], at: usize) -> bool {
    is_sound(blob, at) || batches_end(blob, at + ENTRY_HEADER_BYTES).is_some()
}

fn is_sound(blob: &[u8], at: usize) -> bool {
    let Some(bytes) = blob[at..].first_chunk() else { return false };
    is_padded(bytes) && sound_body(blob, at, &header(bytes)).is_some()
}

/// Returns whether the three bytes after the kind are zero, as they are written.
fn is_padded(bytes: &[u8; ENTRY_HEADER_BYTES]) -> bool {
    bytes[1..4] == [0; 3]
}

/// Returns the range of an entry's body according to this header.
fn place(blob: &[u8], at: usize, header: &Header) -> Option<Range<usize>> {
    let begin = at + ENTRY_HEADER_BYTES;
    let end = begin.checked_add(header.bytes).filter(|end| *end <= blob.len())?;
    (BATCHES..=STATE).contains(&header.kind).then_some(begin..end)
}

/// Like [`place`], but returns `None` if the body does not match its checksum.
fn sound_body(blob: &[u8], at: usize, header: &Header) -> Option<Range<usize>> {
    place(blob, at, header).filter(|body| entry_crc(header.kind, &blob[body.clone()]) == header.crc)
}

/// Returns where the batches end whose header starts here. That header has its own checksum. Returns `None` if there is
/// no such header, and `Some(None)` if the end of the batches cannot be determined.
fn batches_end(blob: &[u8], begin: usize) -> Option<Option<usize>> {
    let run = read_run_header(blob.get(begin..begin + RUN_HEADER_BYTES)?).ok()?;
    let mut at = begin + RUN_HEADER_BYTES;
    while let Ok(header) = BatchHeader::parse(&blob[at..]) {
        at += header.batch_bytes;
        if header.next_offset() >= run.end.get() {
            return Some((header.next_offset() == run.end.get()).then_some(at));
        }
    }
    Some(None)
}

fn run(body: &Bytes, sound: bool, fault: &mut Option<String>) -> Content {
    let Some(head) = body.get(..RUN_HEADER_BYTES) else {
        *fault = Some("batches without a header: they are lost".to_owned());
        return Content::Lost;
    };
    let batches = body.slice(RUN_HEADER_BYTES..);
    let mut known = true;
    let run = match read_run_header(head) {
        Ok(run) => run,
        Err(reason) => match put_right(head).and_then(|right| read_run_header(&right).ok()) {
            Some(run) => {
                *fault = Some(format!("{reason}: a bit was flipped; nothing is lost"));
                run
            }
            None => {
                known = false;
                *fault = Some(reason);
                let Some(run) = guess(&batches) else { return Content::Lost };
                run
            }
        },
    };
    let (mut kept, mut lost) = (Vec::new(), Vec::new());
    for scanned in scan(&batches, run.base..run.end) {
        match scanned {
            Scanned::Batch { at, header } => kept.push(batches.slice(at..at + header.batch_bytes)),
            Scanned::Damaged { fault, .. } => lost.push(fault),
        }
    }
    if !sound && lost.is_empty() && fault.is_none() {
        *fault = Some("the checksum of batches had a flipped bit; nothing is lost".to_owned());
    }
    Content::Run { run, known, batches: kept, lost }
}

/// Derives the header of a run from its batches. They do not contain the topic and partition.
fn guess(batches: &Bytes) -> Option<RunHeader> {
    use crate::store::place::{Offset, TopicId};

    let first = BatchHeader::parse(batches).ok()?;
    let mut run = RunHeader {
        topic: TopicId(0),
        partition: 0,
        base: Offset::new(first.base_offset)?,
        end: Offset::new(first.next_offset())?,
        first_timestamp_ms: first.base_timestamp_ms,
        max_timestamp_ms: first.max_timestamp_ms,
    };
    let mut at = 0;
    while let Ok(header) = BatchHeader::parse(&batches[at..]) {
        run.end = Offset::new(header.next_offset())?;
        run.max_timestamp_ms = run.max_timestamp_ms.max(header.max_timestamp_ms);
        at += header.batch_bytes;
        if at == batches.len() {
            return Some(run);
        }
    }
    None
}

/// Corrects a single flipped bit in the header of a run, which ends with its own checksum.
fn put_right(head: &[u8]) -> Option<Vec<u8>> {
    let (fields, crc) = head.split_last_chunk::<4>()?;
    let crc = u32::from_le_bytes(*crc);
    let mut right = head.to_vec();
    let difference = checksum::crc32c(fields) ^ crc;
    match flipped_bit(fields.len(), difference) {
        Some(bit) => right[bit / 8] ^= 1 << (bit % 8),
        None if difference.count_ones() == 1 => {
            let at = right.len() - 4;
            right[at..].copy_from_slice(&checksum::crc32c(fields).to_le_bytes());
        }
        None => return None,
    }
    Some(right)
}

fn other(header: &Header, body: &Bytes, fault: &mut Option<String>) -> Content {
    let what = match header.kind {
        OFFSET | OFFSET_FORMAT_4 => "a committed offset",
        STATE | STATE_FORMAT_4 => "a change of an aggregate's state",
        DROP_STATE => "the removal of an aggregate's state",
        DROP_GROUP => "the removal of a group",
        _ => "an entry",
    };
    if body.len() <= PUT_RIGHT_BYTES_MAX
        && let Some(bit) = flipped_bit(body.len(), entry_crc(header.kind, body) ^ header.crc)
    {
        let mut right = body.to_vec();
        right[bit / 8] ^= 1 << (bit % 8);
        *fault = Some(format!("{what} had a flipped bit; nothing is lost"));
        return Content::Body(right.into());
    }
    *fault = Some(format!("{what} does not match its checksum: it is lost, and the previous value applies again"));
    Content::Lost
}

/// The polynomial of CRC-32C, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Returns which bit of `bytes` bytes was flipped, if one flipped bit explains the `difference` between the original
/// checksum and the actual one. A CRC is linear, so a flipped bit changes it by a value that depends only on the bit's
/// distance from the end.
fn flipped_bit(bytes: usize, difference: u32) -> Option<usize> {
    let mut of_bit = POLYNOMIAL;
    for bit in (0..bytes * 8).rev() {
        if of_bit == difference {
            return Some(bit);
        }
        of_bit = of_bit >> 1 ^ if of_bit & 1 == 1 { POLYNOMIAL } else { 0 };
    }
    None
}

#[cfg(test)]
mod tests {
    use millstream_record::{BatchBuilder, Compression, patch_batch};
    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;
    use crate::store::LEADER_EPOCH;
    use crate::store::journal::{BlobWriter, OffsetEntry};
    use crate::store::place::{Offset, TopicId};

    /// Returns the length of each commit that these values are joined to, and whether its header is intact.
    fn lengths(values: &[Vec<u8>]) -> Vec<(usize, bool)> {
        let values: Vec<_> =
            values.iter().cloned().map(Bytes::from).zip(7..).map(|(value, seq)| (seq, value)).collect();
        blobs(&values).iter().map(|blob| (blob.bytes.len(), blob.fault.is_none())).collect()
    }

    #[test]
    fn a_damaged_length_takes_no_other_commit_along() {
        let commit = |bytes: usize| {
            let mut blob = vec![0; bytes];
            blob[..4].copy_from_slice(&MAGIC.to_le_bytes());
            blob[4..8].copy_from_slice(&(bytes as u32).to_le_bytes());
            // A value within a commit may look like the start of one.
            blob.chunks_mut(CHUNK_BYTES).for_each(|value| value[..4].copy_from_slice(&MAGIC.to_le_bytes()));
            blob.chunks(CHUNK_BYTES).map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        let all = [26, CHUNK_BYTES, 2 * CHUNK_BYTES + 5, 40];
        let sound: Vec<_> = all.into_iter().flat_map(commit).collect();
        assert_eq!(lengths(&sound), all.map(|bytes| (bytes, true)));
        for bit in 0..64 {
            let mut damaged = sound.clone();
            damaged[0][bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                lengths(&damaged),
                [&[(26, false)], &all[1..].iter().map(|bytes| (*bytes, true)).collect::<Vec<_>>()[..]].concat()
            );
        }
    }

    /// Returns the runs of a commit whose partition is known, each with its partition and the base offsets of its
    /// intact batches.
    fn runs(bytes: Bytes) -> Vec<(u32, Vec<i64>)> {
        let blob = Blob { seqs: 0..1, bytes, fault: None };
        let run = |found: Found| match found.content {
            Content::Run { run, known: true, batches, .. } => {
                let bases = batches.iter().map(|batch| BatchHeader::parse(batch).unwrap().base_offset).collect();
                Some((run.partition, bases))
            }
            _ => None,
        };
        entries(&blob).into_iter().filter_map(run).collect()
    }

    #[test]
    fn bytes_that_are_overwritten_cost_no_other_entry() {
        let mut writer = BlobWriter::with_capacity(10_000);
        // Where the header of each entry starts, and where the entry ends.
        let (mut heads, mut ends) = (Vec::new(), Vec::new());
        for partition in 0..4 {
            writer.batches(|out| {
                for number in 0..3 {
                    let mut builder = BatchBuilder::new(Compression::None);
                    builder.push(number, Some(b"key"), Some(&[partition as u8; 50]), []);
                    let mut batch = builder.finish().unwrap().into_bytes().to_vec();
                    patch_batch(&mut batch, 100 + number, LEADER_EPOCH);
                    out.extend_from_slice(&batch);
                }
                RunHeader {
                    topic: TopicId(1),
                    partition,
                    base: Offset::ZERO.plus(100),
                    end: Offset::ZERO.plus(103),
                    first_timestamp_ms: 0,
                    max_timestamp_ms: 2,
                }
            });
            writer.offset(&OffsetEntry { group: "g", kind: 1, topic: TopicId(1), partition, committed: None });
        }
        let sound = writer.finish();
        let mut at = BLOB_HEADER_BYTES;
        while at < sound.len() {
            let (_, body, fault) = entry(&sound, at).unwrap();
            assert_eq!(fault, None);
            heads.push(at);
            ends.push(body.end);
            at = body.end;
        }
        let all = [100, 101, 102].to_vec();
        assert_eq!(runs(sound.clone()), (0..4).map(|partition| (partition, all.clone())).collect::<Vec<_>>());
        for len in [1, 4, 12, 40, 80] {
            for from in BLOB_HEADER_BYTES..sound.len() - len {
                for with in [0, 0x55, 0xff] {
                    let mut damaged = sound.to_vec();
                    damaged[from..from + len].fill(with);
                    let found = runs(damaged.into());
                    for partition in 0..4u32 {
                        let (head, end) = (heads[2 * partition as usize], ends[2 * partition as usize]);
                        let of_it = found.iter().find(|(of, _)| *of == partition);
                        let is_told = of_it.is_some_and(|(_, bases)| *bases == all);
                        // An entry loses nothing if the damage touches neither its batches nor more than one of its two
                        // headers.
                        let is_hit = from < end && head < from + len;
                        let only_own_head = from + len <= head + ENTRY_HEADER_BYTES;
                        assert!(
                            is_told || is_hit && !only_own_head,
                            "{len} bytes of {with:#x} at {from}: partition {partition} at {head}..{end} is {of_it:?}"
                        );
                        // A batch is never attributed to another partition.
                        if let Some((_, bases)) = of_it {
                            assert!(bases.iter().all(|base| all.contains(base)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_told_by_its_checksum() {
        let bytes: Vec<u8> = (0..500u32).map(|n| (n * 37 % 251) as u8).collect();
        let crc = checksum::crc32c(&bytes);
        let told = |bytes: &[u8]| flipped_bit(bytes.len(), checksum::crc32c(bytes) ^ crc);
        assert_eq!(told(&bytes), None);
        for bit in (0..bytes.len() * 8).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(told(&flipped), Some(bit));
        }
        let mut two = bytes.clone();
        two[3] ^= 1;
        two[200] ^= 4;
        assert_eq!(told(&two), None);
    }

    proptest! {
        #![proptest_config(seeded())]

        /// Values with arbitrary bytes are also cut into commits and entries, with each byte in exactly one of them.
        #[test]
        fn values_of_any_bytes_are_walked_to_their_end(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..5),
            marks in prop::collection::vec(any::<bool>(), 5), kinds in prop::collection::vec(0u8..9, 5),
            lengths in prop::collection::vec(0u32..100, 5),
        ) {
            let mut values: Vec<Vec<u8>> = values;
            for (at, value) in values.iter_mut().enumerate() {
                // Without this, hardly any value would start a commit, and hardly any entry would be of a known kind.
                if marks[at] && value.len() >= BLOB_HEADER_BYTES + ENTRY_HEADER_BYTES {
                    value[..4].copy_from_slice(&MAGIC.to_le_bytes());
                    value[4..8].copy_from_slice(&lengths[at].to_le_bytes());
                    value[8..12].copy_from_slice(&[kinds[at], 0, 0, 0]);
                    value[12..16].copy_from_slice(&(lengths[at] / 2).to_le_bytes());
                }
            }
            let all: usize = values.iter().map(Vec::len).sum();
            let values: Vec<_> = values.into_iter().map(Bytes::from).zip(7..).map(|(value, seq)| (seq, value)).collect();
            let found = blobs(&values);
            prop_assert_eq!(found.iter().map(|blob| blob.bytes.len()).sum::<usize>(), all);
            prop_assert!(found.iter().flat_map(|blob| blob.seqs.clone()).eq(values.iter().map(|(seq, _)| *seq)));
            for blob in &found {
                for found in entries(blob) {
                    if let Content::Run { run, batches, .. } = found.content {
                        for batch in batches {
                            let header = BatchHeader::parse(&batch).unwrap();
                            prop_assert!(header.next_offset() <= run.end.get());
                        }
                    }
                }
            }
        }
    }
}
