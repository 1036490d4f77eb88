//! The journal's layout: what one commit writes, and how it is cut into values.
//!
//! A commit's blob consists of a header and consecutive entries. It is cut into values of at most [`CHUNK_BYTES`] under
//! consecutive sequence numbers, so every value but the last fills its page exactly, and no batch is too large for a
//! page.
//!
//! ```text
//! blob   = magic u32, blob_bytes u32, entry*
//! entry  = kind u8, 0 u8 x3, body_bytes u32, crc u32, body
//! body of batches    = topic u32, partition u32, base i64, end i64, first timestamp i64, max timestamp i64,
//!                      crc u32 of these, whole record batches back to back
//! body of an offset  = kind of the group u8, topic u32, partition u32, offset i64, leader epoch i32,
//!                      commit time i64, group_bytes u16, group, metadata
//! body of state      = partition u32, namespace u8, added i64, store_bytes u32, store,
//!                      column of range begins, column of range ends, column of keys, column of values
//! body of drop state = store
//! body of drop group = group
//! column             = count u32, bytes u32, length i32 x count, bytes
//! ```
//! All integers are little-endian. `crc` is the CRC-32C of the kind and the body. An offset of -1 removes the group's
//! committed offset. A leader epoch or a commit time of -1 is unknown. A range without an end removes all keys from its
//! start on.
//!
//! Data format 4 wrote offsets and state in older forms, as kinds 2 and 3. They are still read, because a restore
//! copies the journal of a backup unchanged.

use millstream_record::checksum;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use millstream_record::Column;
use zerocopy::little_endian::{I64, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::StoreError;
use crate::store::place::{Offset, TopicId};

/// The size of the largest journal value: 64 KiB minus the 16 bytes of overhead of a redb leaf, so that a value fills
/// its page. With smaller pages commits cost more per byte; larger pages were slower in measurements.
pub(crate) const CHUNK_BYTES: usize = 65_520;

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"MSJ1");
pub(super) const BLOB_HEADER_BYTES: usize = 8;
pub(super) const ENTRY_HEADER_BYTES: usize = 12;
/// What stands before the batches in their entry.
pub(super) const RUN_HEADER_BYTES: usize = size_of::<RunHead>();

pub(super) const BATCHES: u8 = 1;
/// A committed offset as data format 4 wrote it.
pub(super) const OFFSET_FORMAT_4: u8 = 2;
/// A change of state as data format 4 wrote it.
pub(super) const STATE_FORMAT_4: u8 = 3;
pub(super) const DROP_STATE: u8 = 4;
pub(super) const DROP_GROUP: u8 = 5;
pub(super) const OFFSET: u8 = 6;
pub(super) const STATE: u8 = 7;

/// The value on disk for unknown or none.
const NONE: i64 = -1;

/// What stands before the batches in their entry.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RunHead {
    fields: RunFields,
    /// Of the fields.
    crc: U32,
}

/// A [`RunHeader`] as the journal holds it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RunFields {
    topic: U32,
    partition: U32,
    base: I64,
    end: I64,
    first_timestamp_ms: I64,
    max_timestamp_ms: I64,
}

impl From<&RunHeader> for RunHead {
    fn from(run: &RunHeader) -> Self {
        let fields = RunFields {
            topic: run.topic.0.into(),
            partition: run.partition.into(),
            base: run.base.get().into(),
            end: run.end.get().into(),
            first_timestamp_ms: run.first_timestamp_ms.into(),
            max_timestamp_ms: run.max_timestamp_ms.into(),
        };
        Self { crc: checksum::crc32c(fields.as_bytes()).into(), fields }
    }
}

impl RunHeader {
    /// Returns the index entry of the run whose batches are at this location.
    pub(crate) fn run(&self, at: Location) -> Run {
        let Self { base, end, first_timestamp_ms, max_timestamp_ms, .. } = *self;
        Run { base, end, first_timestamp_ms, max_timestamp_ms, at }
    }
}

/// A range of bytes in the journal, within the blob that starts at value `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    /// The sequence number of the blob's first value.
    pub(crate) seq: u64,
    /// Position in the blob, in bytes.
    pub(crate) pos: u32,
    pub(crate) len: u32,
}

/// Batches that one commit appended to one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) base: Offset,
    /// The offset after the run's last record.
    pub(crate) end: Offset,
    pub(crate) first_timestamp_ms: i64,
    pub(crate) max_timestamp_ms: i64,
    pub(crate) at: Location,
}

/// Reads the bytes at a location, using `value` to read single values.
pub(super) fn read_location(
    at: Location,
    value: impl Fn(u64) -> Result<Option<Bytes>, StoreError>,
) -> Result<Bytes, StoreError> {
    let (begin, end) = (at.pos as usize, at.pos as usize + at.len as usize);
    let first = begin / CHUNK_BYTES;
    let mut out = BytesMut::with_capacity(at.len as usize);
    for chunk in first..=(end - 1) / CHUNK_BYTES {
        let seq = at.seq + chunk as u64;
        let missing = |reason: String| StoreError::Corrupt { what: format!("journal value {seq}"), reason };
        let bytes = value(seq)?.ok_or_else(|| missing("it is missing".into()))?;
        let chunk_begin = chunk * CHUNK_BYTES;
        let from = begin.saturating_sub(chunk_begin);
        let to = (end - chunk_begin).min(CHUNK_BYTES);
        if to > bytes.len() {
            return Err(missing(format!("it has {} bytes where {to} are needed", bytes.len())));
        }
        if first == (end - 1) / CHUNK_BYTES {
            return Ok(bytes.slice(from..to));
        }
        out.extend_from_slice(&bytes[from..to]);
    }
    Ok(out.freeze())
}

/// A committed offset of a group in a partition, or its removal, as the journal holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffsetEntry<'a> {
    pub(crate) group: &'a str,
    /// 1 for consumers, 2 for a pipeline.
    pub(crate) kind: u8,
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
    /// `None` removes what the group committed in the partition.
    pub(crate) committed: Option<CommittedRow<'a>>,
}

/// A committed offset as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommittedRow<'a> {
    pub(crate) offset: Offset,
    /// The leader epoch of the last record that was read, if the client knew it (KIP-320).
    pub(crate) leader_epoch: Option<i32>,
    /// Commit time in milliseconds since the epoch. `None` if data format 4 wrote the entry.
    pub(crate) committed_at_ms: Option<i64>,
    /// Text chosen by the client.
    pub(crate) metadata: &'a str,
}

/// Size of a [`CommittedRow`] before the metadata, in bytes.
pub(super) const COMMITTED_HEAD_BYTES: usize = 20;

impl<'a> CommittedRow<'a> {
    /// Encodes offset i64, leader epoch i32 and commit time i64.
    pub(super) fn head(of: Option<&Self>) -> [u8; COMMITTED_HEAD_BYTES] {
        let mut head = [0xff; COMMITTED_HEAD_BYTES];
        if let Some(row) = of {
            head[..8].copy_from_slice(&row.offset.get().to_le_bytes());
            head[8..12].copy_from_slice(&row.leader_epoch.unwrap_or(NONE as i32).to_le_bytes());
            head[12..].copy_from_slice(&row.committed_at_ms.unwrap_or(NONE).to_le_bytes());
        }
        head
    }

    /// Decodes a committed offset. Returns `Ok(None)` for a removal.
    pub(super) fn read(head: &[u8; COMMITTED_HEAD_BYTES], metadata: &'a str) -> Result<Option<Self>, String> {
        let mut reader = Reader(head);
        let (offset, epoch, time) = (reader.u64()? as i64, reader.u32()? as i32, reader.u64()? as i64);
        if offset == NONE {
            return Ok(None);
        }
        let offset = Offset::new(offset).ok_or_else(|| format!("the committed offset {offset} is negative"))?;
        let leader_epoch = Some(epoch).filter(|epoch| *epoch >= 0);
        let committed_at_ms = Some(time).filter(|time| *time != NONE);
        Ok(Some(Self { offset, leader_epoch, committed_at_ms, metadata }))
    }
}

/// A part of a state store's partition with its own keys, so that keys of accumulators, timers and others do not
/// collide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(pub u8);

impl Namespace {
    /// The accumulators, by record key.
    pub const VALUES: Self = Self(0);
}

/// A range of keys, in byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key of the range.
    pub from: Vec<u8>,
    /// The end of the range, exclusive. `None` if it has no end.
    pub to: Option<Vec<u8>>,
}

/// The header of the batches in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunHeader {
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
    /// Offset of the first record.
    pub(crate) base: Offset,
    /// The offset after the last record.
    pub(crate) end: Offset,
    /// Timestamp of the first record.
    pub(crate) first_timestamp_ms: i64,
    pub(crate) max_timestamp_ms: i64,
}

/// The changes that one step makes to a namespace in a partition of a state store.
#[derive(Clone, Debug, Default)]
pub struct StateChange {
    /// Name of the store: `pipeline/stage`.
    pub store: Arc<str>,
    /// The task's partition.
    pub partition: u32,
    /// The namespace that changes.
    pub namespace: Namespace,
    /// Ranges of keys to remove before `keys` are set.
    pub removed: Vec<KeyRange>,
    /// The keys that change. None is null, and none occurs twice.
    pub keys: Column,
    /// The new accumulators, one for each key. Null removes the key.
    pub accumulators: Column,
    /// Number of keys that had no accumulator before, minus the number of keys that have none afterwards.
    pub added: i64,
}

/// An entry as read from the journal.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    /// Batches of one partition, at this position in the blob. `sound` says whether the checksum over all of them
    /// matches; if not, at least one of them is damaged.
    Batches {
        run: RunHeader,
        pos: u32,
        batches: &'a [u8],
        sound: bool,
    },
    Offset(OffsetEntry<'a>),
    State(StateChange),
    DropState {
        store: &'a str,
    },
    DropGroup {
        group: &'a str,
    },
}

/// Encodes one blob.
pub(crate) struct BlobWriter {
    blob: BytesMut,
}

impl BlobWriter {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self::in_memory(BytesMut::new(), bytes)
    }

    /// Writes into `memory`, which is empty.
    pub(crate) fn in_memory(mut memory: BytesMut, bytes: usize) -> Self {
        memory.reserve(bytes + BLOB_HEADER_BYTES);
        let mut blob = memory;
        blob.put_u32_le(MAGIC);
        blob.put_u32_le(0);
        Self { blob }
    }

    /// Adds an entry of batches. `write` appends the batches and returns their header. Returns the position and length
    /// of the batches, and the header.
    pub(crate) fn batches(&mut self, write: impl FnOnce(&mut BytesMut) -> RunHeader) -> (u32, u32, RunHeader) {
        let header = self.begin(BATCHES);
        let begin = self.blob.len() + RUN_HEADER_BYTES;
        self.blob.put_bytes(0, RUN_HEADER_BYTES);
        let run = write(&mut self.blob);
        self.blob[begin - RUN_HEADER_BYTES..begin].copy_from_slice(RunHead::from(&run).as_bytes());
        self.end(header);
        (begin as u32, (self.blob.len() - begin) as u32, run)
    }

    pub(crate) fn offset(&mut self, entry: &OffsetEntry<'_>) {
        let header = self.begin(OFFSET);
        self.blob.put_u8(entry.kind);
        self.blob.put_u32_le(entry.topic.0);
        self.blob.put_u32_le(entry.partition);
        self.blob.put_slice(&CommittedRow::head(entry.committed.as_ref()));
        self.blob.put_u16_le(entry.group.len() as u16);
        self.blob.put_slice(entry.group.as_bytes());
        self.blob.put_slice(entry.committed.map_or("", |row| row.metadata).as_bytes());
        self.end(header);
    }

    pub(crate) fn state(&mut self, change: &StateChange) {
        let header = self.begin(STATE);
        self.blob.put_u32_le(change.partition);
        self.blob.put_u8(change.namespace.0);
        self.blob.put_i64_le(change.added);
        self.blob.put_u32_le(change.store.len() as u32);
        self.blob.put_slice(change.store.as_bytes());
        let (mut begins, mut ends) = (Column::default(), Column::default());
        for KeyRange { from, to } in &change.removed {
            begins.push(Some(from));
            ends.push(to.as_deref());
        }
        self.column(&begins);
        self.column(&ends);
        self.column(&change.keys);
        self.column(&change.accumulators);
        self.end(header);
    }

    pub(crate) fn drop_state(&mut self, store: &str) {
        let header = self.begin(DROP_STATE);
        self.blob.put_slice(store.as_bytes());
        self.end(header);
    }

    pub(crate) fn drop_group(&mut self, group: &str) {
        let header = self.begin(DROP_GROUP);
        self.blob.put_slice(group.as_bytes());
        self.end(header);
    }

    /// Adds an entry with an encoded body.
    pub(super) fn raw(&mut self, kind: u8, body: &[u8]) {
        let header = self.begin(kind);
        self.blob.put_slice(body);
        self.end(header);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blob.len() == BLOB_HEADER_BYTES
    }

    pub(crate) fn finish(mut self) -> Bytes {
        let bytes = u32::try_from(self.blob.len()).expect("a commit is far below 4 GiB");
        self.blob[4..8].copy_from_slice(&bytes.to_le_bytes());
        self.blob.freeze()
    }

    fn begin(&mut self, kind: u8) -> usize {
        let header = self.blob.len();
        self.blob.put_slice(&[kind, 0, 0, 0]);
        self.blob.put_u64_le(0);
        header
    }

    fn end(&mut self, header: usize) {
        let body = header + ENTRY_HEADER_BYTES;
        let bytes = (self.blob.len() - body) as u32;
        let crc = entry_crc(self.blob[header], &self.blob[body..]);
        self.blob[header + 4..header + 8].copy_from_slice(&bytes.to_le_bytes());
        self.blob[header + 8..header + 12].copy_from_slice(&crc.to_le_bytes());
    }

    fn column(&mut self, column: &Column) {
        self.blob.put_u32_le(column.lengths.len() as u32);
        self.blob.put_u32_le(column.bytes.len() as u32);
        for length in &column.lengths {
            self.blob.put_i32_le(*length);
        }
        self.blob.put_slice(&column.bytes);
    }
}

/// Returns an entry's checksum. It includes the kind, so that one kind is not mistaken for another.
pub(super) fn entry_crc(kind: u8, body: &[u8]) -> u32 {
    checksum::crc32c_append(checksum::crc32c(&[kind]), body)
}

/// Returns the size in bytes of the blob that starts with this value.
pub(crate) fn blob_bytes(first_value: &[u8]) -> Result<usize, String> {
    let mut reader = Reader(first_value);
    if reader.u32()? != MAGIC {
        return Err("it does not start with the magic number of a blob".into());
    }
    Ok(reader.u32()? as usize)
}

/// Calls `visit` with each entry of a complete blob.
pub(crate) fn read_blob<'a>(
    blob: &'a [u8],
    mut visit: impl FnMut(Entry<'a>) -> Result<(), String>,
) -> Result<(), String> {
    let mut reader = Reader(blob);
    reader.take(BLOB_HEADER_BYTES)?;
    while !reader.0.is_empty() {
        let kind = reader.take(4)?[0];
        let (bytes, crc) = (reader.u32()? as usize, reader.u32()?);
        let pos = blob.len() - reader.0.len();
        let body = reader.take(bytes)?;
        let sound = entry_crc(kind, body) == crc;
        // Damage to one batch must not affect the others. All other entries must be intact.
        if !sound && kind != BATCHES {
            return Err(format!("an entry at byte {pos} does not match its checksum"));
        }
        visit(read_entry(kind, body, pos, sound)?)?;
    }
    Ok(())
}

/// Decodes the header before the batches in an entry. `head` is [`RUN_HEADER_BYTES`] long.
pub(super) fn read_run_header(head: &[u8]) -> Result<RunHeader, String> {
    let Ok(RunHead { fields, crc }) = RunHead::ref_from_bytes(head) else {
        return Err("batches without a head".to_owned());
    };
    if checksum::crc32c(fields.as_bytes()) != crc.get() {
        return Err("the head of batches does not match its checksum".to_owned());
    }
    let (Some(base), Some(end)) = (Offset::new(fields.base.get()), Offset::new(fields.end.get())) else {
        return Err("a negative offset".to_owned());
    };
    Ok(RunHeader {
        topic: TopicId(fields.topic.get()),
        partition: fields.partition.get(),
        base,
        end,
        first_timestamp_ms: fields.first_timestamp_ms.get(),
        max_timestamp_ms: fields.max_timestamp_ms.get(),
    })
}

fn read_entry(kind: u8, body: &[u8], pos: usize, sound: bool) -> Result<Entry<'_>, String> {
    let mut reader = Reader(body);
    Ok(match kind {
        BATCHES => {
            let run =
                read_run_header(reader.take(RUN_HEADER_BYTES)?).map_err(|reason| format!("at byte {pos}, {reason}"))?;
            Entry::Batches { run, pos: (pos + RUN_HEADER_BYTES) as u32, batches: reader.0, sound }
        }
        OFFSET => {
            let (kind, topic, partition) = (reader.take(1)?[0], TopicId(reader.u32()?), reader.u32()?);
            let head = reader.array()?;
            let group_bytes = usize::from(reader.u16()?);
            let group = Reader(reader.take(group_bytes)?).rest()?;
            let committed = CommittedRow::read(&head, reader.rest()?)?;
            Entry::Offset(OffsetEntry { group, kind, topic, partition, committed })
        }
        OFFSET_FORMAT_4 => {
            let (kind, topic, partition) = (reader.take(1)?[0], TopicId(reader.u32()?), reader.u32()?);
            let offset = Offset::new(reader.u64()? as i64).ok_or("a negative offset")?;
            let committed = CommittedRow { offset, leader_epoch: None, committed_at_ms: None, metadata: "" };
            Entry::Offset(OffsetEntry { group: reader.rest()?, kind, topic, partition, committed: Some(committed) })
        }
        STATE => {
            let (partition, namespace) = (reader.u32()?, Namespace(reader.take(1)?[0]));
            let added = reader.u64()? as i64;
            let store = reader.store()?;
            let removed = reader.ranges()?;
            let (keys, accumulators) = (reader.column()?, reader.column()?);
            Entry::State(StateChange { store, partition, namespace, removed, keys, accumulators, added })
        }
        STATE_FORMAT_4 => {
            let (partition, added) = (reader.u32()?, reader.u64()? as i64);
            let store = reader.store()?;
            let (keys, accumulators) = (reader.column()?, reader.column()?);
            Entry::State(StateChange { store, partition, keys, accumulators, added, ..StateChange::default() })
        }
        DROP_STATE => Entry::DropState { store: reader.rest()? },
        DROP_GROUP => Entry::DropGroup { group: reader.rest()? },
        other => return Err(format!("an entry at byte {pos} is of unknown kind {other}")),
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or_else(|| format!("{} bytes are left where {bytes} are needed", self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, String> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn rest(&mut self) -> Result<&'a str, String> {
        std::str::from_utf8(std::mem::take(&mut self.0)).map_err(|e| format!("a name is not UTF-8: {e}"))
    }

    fn store(&mut self) -> Result<Arc<str>, String> {
        let name_bytes = self.u32()? as usize;
        Ok(Reader(self.take(name_bytes)?).rest()?.into())
    }

    fn ranges(&mut self) -> Result<Vec<KeyRange>, String> {
        let (begins, ends) = (self.column()?, self.column()?);
        if begins.lengths.len() != ends.lengths.len() {
            return Err(format!("{} starts of key ranges have {} ends", begins.lengths.len(), ends.lengths.len()));
        }
        let range = |(from, to): (Option<&[u8]>, Option<&[u8]>)| {
            let from = from.ok_or("a range of keys has no start")?.to_vec();
            Ok(KeyRange { from, to: to.map(<[u8]>::to_vec) })
        };
        begins.iter().zip(ends.iter()).map(range).collect()
    }

    fn column(&mut self) -> Result<Column, String> {
        let (count, bytes) = (self.u32()? as usize, self.u32()? as usize);
        let lengths = self.take(count.checked_mul(4).ok_or("a column is too long")?)?;
        let lengths = lengths.as_chunks::<4>().0.iter().map(|length| i32::from_le_bytes(*length));
        let column = Column { lengths: lengths.collect(), bytes: self.take(bytes)?.to_vec() };
        column.check().map_err(|e| e.to_string())?;
        Ok(column)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;

    fn column(values: &[Option<&[u8]>]) -> Column {
        let mut column = Column::default();
        for value in values {
            column.push(*value);
        }
        column
    }

    #[test]
    fn entries_come_back_as_written() {
        let mut writer = BlobWriter::with_capacity(100);
        let run = RunHeader {
            topic: TopicId(7),
            partition: 3,
            base: Offset::ZERO,
            end: Offset::ZERO.plus(5),
            first_timestamp_ms: -2,
            max_timestamp_ms: -1,
        };
        let (pos, len, _) = writer.batches(|out| {
            out.put_slice(b"batches");
            run
        });
        let committed = CommittedRow {
            offset: Offset::ZERO.plus(99),
            leader_epoch: Some(4),
            committed_at_ms: Some(1_700_000_000_000),
            metadata: "read by ü",
        };
        // A group ID may contain any characters.
        let offset =
            OffsetEntry { group: "g\0 /ü", kind: 2, topic: TopicId(7), partition: 3, committed: Some(committed) };
        writer.offset(&offset);
        let removal = OffsetEntry { committed: None, ..offset.clone() };
        writer.offset(&removal);
        let change = StateChange {
            store: "p/s".into(),
            partition: 1,
            namespace: Namespace(3),
            removed: vec![
                KeyRange { from: b"a".to_vec(), to: Some(b"c".to_vec()) },
                KeyRange { from: Vec::new(), to: None },
            ],
            added: -1,
            keys: column(&[Some(b"a"), Some(b"")]),
            accumulators: column(&[None, Some(b"acc")]),
        };
        writer.state(&change);
        writer.drop_state("p/s");
        writer.drop_group("g");
        let blob = writer.finish();

        assert_eq!(blob_bytes(&blob), Ok(blob.len()));
        assert_eq!(&blob[pos as usize..(pos + len) as usize], b"batches");
        let numbers = [0, 5, -2, -1].map(i64::to_le_bytes).concat();
        let fields = [[7u32, 3].map(u32::to_le_bytes).concat(), numbers].concat();
        let head = [&fields[..], &checksum::crc32c(&fields).to_le_bytes()].concat();
        assert_eq!((head.len(), &blob[pos as usize - head.len()..pos as usize]), (RUN_HEADER_BYTES, &head[..]));
        let mut seen = 0;
        read_blob(&blob, |entry| {
            match (seen, entry) {
                (0, Entry::Batches { run: read, pos: at, batches, sound }) => {
                    assert_eq!((read, at, batches, sound), (run, pos, &b"batches"[..], true));
                }
                (1, Entry::Offset(entry)) => assert_eq!(entry, offset),
                (2, Entry::Offset(entry)) => assert_eq!(entry, removal),
                (3, Entry::State(read)) => {
                    assert_eq!((read.keys, read.accumulators), (change.keys.clone(), change.accumulators.clone()));
                    assert_eq!((read.added, read.partition), (change.added, change.partition));
                    assert_eq!((read.namespace, &read.removed), (change.namespace, &change.removed));
                }
                (4, Entry::DropState { store }) => assert_eq!(store, "p/s"),
                (5, Entry::DropGroup { group }) => assert_eq!(group, "g"),
                (n, other) => panic!("entry {n} is {other:?}"),
            }
            seen += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, 6);
    }

    #[test]
    fn entries_of_format_4_are_read() {
        let mut writer = BlobWriter::with_capacity(100);
        let mut offset = vec![1];
        offset.extend_from_slice(&[7, 0, 0, 0, 3, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0]);
        offset.extend_from_slice(b"readers");
        writer.raw(OFFSET_FORMAT_4, &offset);
        let mut state = vec![2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0];
        state.extend_from_slice(b"p/s");
        for value in [b"key", b"acc"] {
            state.extend_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0]);
            state.extend_from_slice(value);
        }
        writer.raw(STATE_FORMAT_4, &state);
        let blob = writer.finish();
        let mut seen = Vec::new();
        read_blob(&blob, |entry| {
            seen.push(format!("{entry:?}"));
            Ok(())
        })
        .unwrap();
        let committed =
            CommittedRow { offset: Offset::ZERO.plus(99), leader_epoch: None, committed_at_ms: None, metadata: "" };
        let offset =
            OffsetEntry { group: "readers", kind: 1, topic: TopicId(7), partition: 3, committed: Some(committed) };
        let state = StateChange {
            store: "p/s".into(),
            partition: 2,
            added: 1,
            keys: column(&[Some(b"key")]),
            accumulators: column(&[Some(b"acc")]),
            ..StateChange::default()
        };
        assert_eq!(seen, [format!("{:?}", Entry::Offset(offset)), format!("{:?}", Entry::State(state))]);
    }

    #[test]
    fn a_flipped_bit_in_an_offset_is_found() {
        let mut writer = BlobWriter::with_capacity(100);
        writer.offset(&OffsetEntry { group: "g", kind: 1, topic: TopicId(1), partition: 0, committed: None });
        let mut blob = writer.finish().to_vec();
        let last = blob.len() - 1;
        blob[last] ^= 1;
        assert!(read_blob(&blob, |_| Ok(())).unwrap_err().contains("checksum"));
    }

    #[test]
    fn a_location_is_read_across_values() {
        let blob: Vec<u8> = (0..CHUNK_BYTES * 2 + 10).map(|i| (i % 251) as u8).collect();
        let values: Vec<Bytes> = blob.chunks(CHUNK_BYTES).map(Bytes::copy_from_slice).collect();
        for (pos, len) in [(0, 10), (CHUNK_BYTES - 5, 10), (5, CHUNK_BYTES * 2), (CHUNK_BYTES, CHUNK_BYTES)] {
            let at = Location { seq: 40, pos: pos as u32, len: len as u32 };
            let read = read_location(at, |seq| Ok(values.get(seq as usize - 40).cloned())).unwrap();
            assert_eq!(&read[..], &blob[pos..pos + len]);
        }
        let beyond = Location { seq: 40, pos: 0, len: blob.len() as u32 + 1 };
        assert!(read_location(beyond, |seq| Ok(values.get(seq as usize - 40).cloned())).is_err());
    }

    /// Returns an encoded body of each kind.
    fn bodies() -> Vec<(u8, Vec<u8>)> {
        let mut writer = BlobWriter::with_capacity(100);
        writer.batches(|out| {
            out.put_slice(b"batches");
            RunHeader {
                topic: TopicId(7),
                partition: 3,
                base: Offset::ZERO,
                end: Offset::ZERO.plus(5),
                first_timestamp_ms: 1,
                max_timestamp_ms: 2,
            }
        });
        let committed =
            CommittedRow { offset: Offset::ZERO, leader_epoch: Some(0), committed_at_ms: Some(0), metadata: "m" };
        writer.offset(&OffsetEntry {
            group: "g",
            kind: 2,
            topic: TopicId(7),
            partition: 3,
            committed: Some(committed),
        });
        let (keys, accumulators) = (column(&[Some(b"a"), Some(b"bc")]), column(&[None, Some(b"acc")]));
        writer.raw(OFFSET_FORMAT_4, &[1, 7, 0, 0, 0, 3, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, b'g']);
        let removed = vec![KeyRange { from: b"a".to_vec(), to: None }];
        let store = "p/s".into();
        writer.state(&StateChange {
            store,
            partition: 1,
            removed,
            added: -1,
            keys,
            accumulators,
            ..Default::default()
        });
        writer.drop_state("p/s");
        writer.drop_group("g");
        let blob = writer.finish();
        let (mut bodies, mut at) = (Vec::new(), BLOB_HEADER_BYTES);
        while at < blob.len() {
            let bytes = u32::from_le_bytes(*blob[at + 4..].first_chunk().unwrap()) as usize;
            let body = at + ENTRY_HEADER_BYTES;
            bodies.push((blob[at], blob[body..body + bytes].to_vec()));
            at = body + bytes;
        }
        bodies
    }

    proptest! {
        #![proptest_config(seeded())]

        /// Random bytes under matching checksums are either refused or decoded to valid entries.
        #[test]
        fn entries_of_any_bytes_are_refused_or_sound(
            entries in prop::collection::vec((0usize..8, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), any::<prop::sample::Index>(), any::<bool>()), 1..6),
            noise in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let bodies = bodies();
            let mut writer = BlobWriter::with_capacity(1_000);
            for (which, changes, cut, head_matches) in entries {
                let (kind, mut body) = bodies.get(which).cloned().unwrap_or((which as u8 + 1, noise.clone()));
                for (at, byte) in changes {
                    if !body.is_empty() {
                        let at = at.index(body.len());
                        body[at] = byte;
                    }
                }
                // Half of the bodies stay whole.
                body.truncate(cut.index(2 * body.len() + 1));
                if kind == BATCHES && head_matches && body.len() >= RUN_HEADER_BYTES {
                    let crc = checksum::crc32c(&body[..RUN_HEADER_BYTES - 4]);
                    body[RUN_HEADER_BYTES - 4..RUN_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
                }
                writer.raw(kind, &body);
            }
            let blob = writer.finish();
            let read = read_blob(&blob, |entry| {
                match entry {
                    Entry::Batches { pos, batches, sound, .. } => {
                        assert!(sound, "the checksum was made of these bytes");
                        assert_eq!(&blob[pos as usize..pos as usize + batches.len()], batches);
                    }
                    Entry::State(change) => {
                        change.keys.check().unwrap();
                        change.accumulators.check().unwrap();
                    }
                    Entry::Offset(_) | Entry::DropState { .. } | Entry::DropGroup { .. } => {}
                }
                Ok(())
            });
            prop_assert!(read.err().is_none_or(|reason| !reason.is_empty()));
            // Decoding must not panic on bytes without matching checksums either.
            let _ = read_blob(&noise, |_| Ok(()));
            let _ = blob_bytes(&noise);
        }
    }
}
