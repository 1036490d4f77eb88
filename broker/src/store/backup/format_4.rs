//! Rows of data format 4, converted to today's while a backup is restored. Journal and segments stay as they are: both have
//! marks by which their older forms are told apart.

use redb::TableHandle as _;

use super::super::journal::{CommittedRow, Namespace};
use super::super::recovery::segment_row;
use super::super::segment::{SegmentId, SegmentMeta};
use super::super::tables::{self, StatePlace, Tables, malformed, split_named, state_key};
use super::super::{SEGMENTS, StoreError};
use crate::store::place::Offset;

/// A key and its value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// A row of a table of format 5 that says what a row of format 4 said. `None` where the row stays as it is.
///
/// # Errors
/// [`StoreError::Corrupt`] for a row that format 4 did not write.
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

/// An extent has fields more now.
fn segment(key: &[u8], row: &[u8]) -> Result<Row, StoreError> {
    let number: [u8; 8] = key.try_into().map_err(|_| malformed(SEGMENTS.name()))?;
    let id = SegmentId(u64::from_le_bytes(number));
    let meta = SegmentMeta::decode_format_4(id, super::super::recovery::checked_row(id, row)?)?;
    Ok((key.to_vec(), segment_row(&meta)))
}

/// Key: group, 0, topic u32, partition u32 (big-endian). Value: kind of the group u8, offset i64.
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

/// Key: partition u32 (big-endian), key. All of it were accumulators.
fn state(table: &str, key: &[u8]) -> Result<Vec<u8>, StoreError> {
    let (partition, key) = key.split_first_chunk::<4>().ok_or_else(|| malformed(table))?;
    let store = &table[tables::STATE_PREFIX.len()..];
    let place = StatePlace { store, partition: u32::from_be_bytes(*partition), namespace: Namespace::VALUES };
    Ok(state_key(place, key))
}
