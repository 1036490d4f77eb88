//! Converts rows of data format 4 to the current format while a backup is restored. The journal and the segments stay
//! as they are, because both carry marks that tell their older forms apart.

use redb::TableHandle as _;

use super::super::journal::{CommittedRow, Namespace};
use super::super::recovery::segment_row;
use super::super::segment::{SegmentId, SegmentMeta};
use super::super::tables::{self, StatePlace, Tables, malformed, split_named, state_key};
use super::super::{SEGMENTS, StoreError};
use crate::store::place::Offset;

/// A key and its value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// Returns the row of format 5 that is equivalent to a row of format 4, or `None` if the row stays as it is.
///
/// # Errors
/// [`StoreError::Corrupt`] if the row is not one that format 4 wrote.
pub(super) fn convert(table: &str, key: &[u8], value: &[u8]) -> Result<Option<Row>, StoreError> {
    if table == SEGMENTS.name() {
        return segment(key, value).map(Some);
    }
    if table == tables::OFFSETS.name() {
        return offset(key, value).map(Some);
    }
    if table.starts_with(tables::STATE_PREFIX) {
        return state(table, key).map(|key| Some((key, value.to_vec())));
    }
    Ok(None)
}

/// Format 5 added fields to an extent.
fn segment(key: &[u8], row: &[u8]) -> Result<Row, StoreError> {
    let number: [u8; 8] = key.try_into().map_err(|_| malformed(SEGMENTS.name()))?;
    let id = SegmentId(u64::from_le_bytes(number));
    let meta = SegmentMeta::decode_format_4(id, super::super::recovery::checked_row(id, row)?)?;
    Ok((key.to_vec(), segment_row(&meta)))
}

/// Format 4 has the key: group, 0, topic u32, partition u32 (big-endian); and the value: kind of the group u8, offset
/// i64.
fn offset(key: &[u8], row: &[u8]) -> Result<Row, StoreError> {
    let malformed = || malformed(tables::OFFSETS.name());
    let (group, place) = split_named(key, tables::OFFSETS.name())?;
    let (topic, partition) = place.split_first_chunk::<4>().ok_or_else(malformed)?;
    let partition: [u8; 4] = partition.try_into().map_err(|_| malformed())?;
    let (kind, offset) = row.split_first().ok_or_else(malformed)?;
    let offset: [u8; 8] = offset.try_into().map_err(|_| malformed())?;
    let offset = Offset::new(i64::from_le_bytes(offset)).ok_or_else(malformed)?;
    let committed = CommittedRow { offset, leader_epoch: None, committed_at_ms: None, metadata: "" };
    let key = Tables::offset_key(group, u32::from_be_bytes(*topic), u32::from_be_bytes(partition));
    Ok((key, Tables::offset_row(*kind, &committed)))
}

/// Format 4 has the key: partition u32 (big-endian), key. All of its rows are accumulators.
fn state(table: &str, key: &[u8]) -> Result<Vec<u8>, StoreError> {
    let (partition, key) = key.split_first_chunk::<4>().ok_or_else(|| malformed(table))?;
    let store = &table[tables::STATE_PREFIX.len()..];
    let place = StatePlace { store, partition: u32::from_be_bytes(*partition), namespace: Namespace::VALUES };
    Ok(state_key(place, key))
}
