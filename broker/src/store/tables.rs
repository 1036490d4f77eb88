//! Tables: the sealed part of the journal that is not record batches. They hold the last accumulator of each key, the
//! last committed offset of each group and partition, and what is remembered about each producer.
//!
//! The tables are a separate database that only the sealer writes, in short transactions that no commit of the journal
//! waits for. A value here may be newer than the sealed part of the journal, because replaying the rest over it ends at
//! the same value. Commits save the allocator's state, so that opening the database after a crash does not walk the
//! whole file.

use bytes::Bytes;
use redb::{Builder, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};

use super::database::OpenDatabase;
use super::error::StoreError;
use super::files::Files;
use super::journal::{CommittedRow, KeyRange, Namespace, OffsetEntry};
use super::open_table;
use super::place::TopicId;

pub(super) const FILE: &str = "tables.redb";

/// Size of redb's page cache for the tables, in bytes. It holds the upper levels of the state of about ten million keys
/// and the frequently used leaves.
const CACHE_BYTES: usize = 128 << 20;

/// Number of rows that one transaction writes. This takes some tens of milliseconds, while commits continue.
pub(crate) const SLICE_ROWS: usize = 8_192;

/// Committed offsets. Key: group_bytes u16, group, topic u32, partition u32 (big-endian). Value: kind of the group u8,
/// offset i64, leader epoch i32, commit time i64, metadata; -1 where the leader epoch or the time is unknown.
pub(super) const OFFSETS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("offsets");

/// What partitions remember about producers. Key: topic u32, partition u32, producer id i64 (big-endian).
pub(super) const PRODUCERS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("producers");

/// Number of keys in each partition of a store. Key: store, 0, partition u32 (big-endian). Value: count i64, and the
/// sequence number in the journal up to which it counts.
pub(super) const COUNTS: TableDefinition<&[u8], (i64, u64)> = TableDefinition::new("counts");

/// Prefix of the state tables, one for each store. Key: partition u32 (big-endian), namespace u8, key. Value: the
/// accumulator, or other data that the namespace holds.
pub(super) const STATE_PREFIX: &str = "state/";

/// Size of the partition and namespace in front of a row's key, in bytes.
const STATE_HEAD_BYTES: usize = 5;

/// A key, and the value to set, or `None` to remove the row.
pub(crate) type Row = (Vec<u8>, Option<Vec<u8>>);

/// Number of keys in a partition of a store, counted up to a sequence number in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) keys: i64,
    pub(crate) counted_to: u64,
}

/// A namespace of a partition of a state store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatePlace<'a> {
    pub(crate) store: &'a str,
    pub(crate) partition: u32,
    pub(crate) namespace: Namespace,
}

#[derive(Debug)]
pub(crate) struct Tables {
    db: OpenDatabase,
}

fn state_table(store: &str) -> String {
    format!("{STATE_PREFIX}{store}")
}

pub(super) fn state_key(at: StatePlace<'_>, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(STATE_HEAD_BYTES + key.len());
    row.extend_from_slice(&at.partition.to_be_bytes());
    row.push(at.namespace.0);
    row.extend_from_slice(key);
    row
}

fn group_key(group: &str) -> Vec<u8> {
    let bytes = u16::try_from(group.len()).expect("the id of a group is at most 32,767 bytes long");
    [&bytes.to_be_bytes(), group.as_bytes()].concat()
}

fn named_key(name: &str, rest: &[u8]) -> Vec<u8> {
    [name.as_bytes(), &[0], rest].concat()
}

impl Tables {
    pub(super) fn open(files: &Files) -> Result<Self, StoreError> {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        let path = files.path(FILE);
        let db =
            builder.create_with_backend(files.database(FILE)?).map_err(|source| StoreError::open(&path, source))?;
        Ok(Self { db: OpenDatabase::new(db) })
    }

    /// Begins a read of all tables in their current state.
    pub(super) fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        Ok(self.db.begin_read()?)
    }

    fn write(&self, work: impl FnOnce(&redb::WriteTransaction) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_quick_repair(true);
        work(&transaction)?;
        Ok(transaction.commit()?)
    }

    // ---- state

    /// Calls `found` with the accumulator of each key, in the order of `keys`.
    pub(crate) fn state_look_up<'k>(
        &self,
        at: StatePlace<'_>,
        keys: impl Iterator<Item = &'k [u8]>,
        mut found: impl FnMut(Option<&[u8]>),
    ) -> Result<(), StoreError> {
        let read = self.db.begin_read()?;
        let name = state_table(at.store);
        let Some(table) = open_table(&read, TableDefinition::<&[u8], &[u8]>::new(&name))? else {
            keys.for_each(|_| found(None));
            return Ok(());
        };
        let mut row = state_key(at, &[]);
        for key in keys {
            row.truncate(STATE_HEAD_BYTES);
            row.extend_from_slice(key);
            let value = table.get(row.as_slice())?;
            found(value.as_ref().map(|value| value.value()));
        }
        Ok(())
    }

    /// Calls `found` with each key that starts with `prefix` and its accumulator, until `found` returns false.
    pub(crate) fn state_scan(
        &self,
        at: StatePlace<'_>,
        prefix: &[u8],
        mut found: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let read = self.db.begin_read()?;
        let name = state_table(at.store);
        let Some(table) = open_table(&read, TableDefinition::<&[u8], &[u8]>::new(&name))? else { return Ok(()) };
        let from = state_key(at, prefix);
        for entry in table.range(from.as_slice()..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(&from) || !found(&key.value()[STATE_HEAD_BYTES..], value.value()) {
                break;
            }
        }
        Ok(())
    }

    /// Removes at most [`SLICE_ROWS`] keys of a range. Returns whether the range may contain more keys.
    pub(crate) fn remove_state(&self, at: StatePlace<'_>, range: &KeyRange) -> Result<bool, StoreError> {
        let mut removed = 0;
        self.write(|transaction| {
            let name = state_table(at.store);
            let mut table = transaction.open_table(TableDefinition::<&[u8], &[u8]>::new(&name))?;
            let begin = state_key(at, &range.from);
            let end = range.to.as_ref().map(|to| state_key(at, to));
            let head = &begin[..STATE_HEAD_BYTES];
            let mut keys = Vec::new();
            for entry in table.range(begin.as_slice()..)? {
                let (key, _) = entry?;
                let is_past = end.as_ref().is_some_and(|end| key.value() >= end.as_slice());
                if is_past || !key.value().starts_with(head) || keys.len() == SLICE_ROWS {
                    break;
                }
                keys.push(Bytes::copy_from_slice(key.value()));
            }
            removed = keys.len();
            keys.iter().try_for_each(|key| table.remove(key.as_ref()).map(drop))?;
            Ok(())
        })?;
        Ok(removed == SLICE_ROWS)
    }

    /// Writes one slice of a store's partition: keys in ascending order and their accumulators. `None` removes the key.
    pub(crate) fn write_state<'r>(
        &self,
        at: StatePlace<'_>,
        rows: impl Iterator<Item = (&'r [u8], Option<&'r [u8]>)>,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            let name = state_table(at.store);
            let mut table = transaction.open_table(TableDefinition::<&[u8], &[u8]>::new(&name))?;
            let mut row = state_key(at, &[]);
            for (key, accumulator) in rows {
                row.truncate(STATE_HEAD_BYTES);
                row.extend_from_slice(key);
                match accumulator {
                    Some(accumulator) => table.insert(row.as_slice(), accumulator)?,
                    None => table.remove(row.as_slice())?,
                };
            }
            Ok(())
        })
    }

    /// Sets the number of keys in each of the given partitions.
    pub(crate) fn write_counts(&self, counts: &[(&str, u32, Count)]) -> Result<(), StoreError> {
        if counts.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(COUNTS)?;
            for (store, partition, count) in counts {
                let key = named_key(store, &partition.to_be_bytes());
                table.insert(key.as_slice(), (count.keys, count.counted_to))?;
            }
            Ok(())
        })
    }

    /// Removes a store with all of its keys.
    pub(crate) fn drop_state(&self, store: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            let name = state_table(store);
            transaction.delete_table(TableDefinition::<&[u8], &[u8]>::new(&name))?;
            let mut counts = transaction.open_table(COUNTS)?;
            remove_prefix(&mut counts, &named_key(store, &[]))
        })
    }

    /// Returns the number of keys in each partition of every store.
    pub(crate) fn counts(&self) -> Result<Vec<(String, u32, Count)>, StoreError> {
        let read = self.db.begin_read()?;
        let Some(table) = open_table(&read, COUNTS)? else { return Ok(Vec::new()) };
        let mut counts = Vec::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            let (keys, counted_to) = value.value();
            let (store, partition) = split_named(key.value(), "counts")?;
            let partition = u32_be(partition, "counts")?;
            counts.push((store.to_owned(), partition, Count { keys, counted_to }));
        }
        Ok(counts)
    }

    // ---- offsets and producers

    /// Removes everything that these groups have committed.
    pub(crate) fn drop_groups(&self, groups: &[String]) -> Result<(), StoreError> {
        if groups.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(OFFSETS)?;
            groups.iter().try_for_each(|group| remove_prefix(&mut table, &group_key(group)))
        })
    }

    /// Returns the key of a committed offset's row.
    pub(crate) fn offset_key(group: &str, topic: u32, partition: u32) -> Vec<u8> {
        [group_key(group).as_slice(), &topic.to_be_bytes(), &partition.to_be_bytes()].concat()
    }

    /// Writes one slice of committed offsets.
    pub(crate) fn write_offsets(&self, rows: &[Row]) -> Result<(), StoreError> {
        self.write_rows(OFFSETS, rows)
    }

    /// Calls `visit` with every committed offset.
    pub(crate) fn offsets(
        &self,
        mut visit: impl FnMut(OffsetEntry<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.rows(OFFSETS, |key, value| {
            let entry = split_offset_key(key).zip(split_offset_row(value));
            let Some(((group, topic, partition), (kind, committed))) = entry else { return Err(malformed("offsets")) };
            visit(OffsetEntry { group, kind, topic: TopicId(topic), partition, committed: Some(committed) })
        })
    }

    /// Encodes the row of a committed offset.
    pub(crate) fn offset_row(kind: u8, committed: &CommittedRow<'_>) -> Vec<u8> {
        [&[kind][..], &CommittedRow::head(Some(committed)), committed.metadata.as_bytes()].concat()
    }

    /// Returns the key of a producer's row.
    pub(crate) fn producer_key(topic: u32, partition: u32, producer: i64) -> Vec<u8> {
        [&topic.to_be_bytes()[..], &partition.to_be_bytes(), &producer.to_be_bytes()].concat()
    }

    /// Calls `found` with the row of each of these producers. `of` gives their IDs and keys.
    pub(crate) fn producers_of(
        &self,
        of: impl Iterator<Item = (i64, Vec<u8>)>,
        mut found: impl FnMut(i64, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let read = self.db.begin_read()?;
        let Some(table) = open_table(&read, PRODUCERS)? else { return Ok(()) };
        for (id, key) in of {
            if let Some(row) = table.get(key.as_slice())? {
                found(id, row.value())?;
            }
        }
        Ok(())
    }

    /// Writes one slice of producers.
    pub(crate) fn write_producers(&self, rows: &[Row]) -> Result<(), StoreError> {
        self.write_rows(PRODUCERS, rows)
    }

    /// Calls `visit` with every producer: topic, partition, producer ID, and its row.
    pub(crate) fn producers(
        &self,
        mut visit: impl FnMut(u32, u32, i64, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.rows(PRODUCERS, |key, value| {
            let (topic, partition, id) = split_producer(key)?;
            visit(topic, partition, id, value)
        })
    }

    /// Calls `visit` with up to `count` producers, starting at the key `from`: topic, partition, producer ID. Returns
    /// the key to continue from. At the end of the table this is the empty key, which starts over.
    pub(crate) fn producers_from(
        &self,
        from: &[u8],
        count: usize,
        mut visit: impl FnMut(u32, u32, i64),
    ) -> Result<Vec<u8>, StoreError> {
        let read = self.db.begin_read()?;
        let Some(table) = open_table(&read, PRODUCERS)? else { return Ok(Vec::new()) };
        for (visited, entry) in table.range(from..)?.enumerate() {
            let (key, _) = entry?;
            if visited == count {
                return Ok(key.value().to_vec());
            }
            let (topic, partition, id) = split_producer(key.value())?;
            visit(topic, partition, id);
        }
        Ok(Vec::new())
    }

    fn write_rows(&self, definition: TableDefinition<&[u8], &[u8]>, rows: &[Row]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(definition)?;
            for (key, value) in rows {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                    None => table.remove(key.as_slice())?,
                };
            }
            Ok(())
        })
    }

    fn rows(
        &self,
        definition: TableDefinition<&[u8], &[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let read = self.db.begin_read()?;
        let Some(table) = open_table(&read, definition)? else { return Ok(()) };
        for entry in table.iter()? {
            let (key, value) = entry?;
            visit(key.value(), value.value())?;
        }
        Ok(())
    }
}

fn remove_prefix<V: redb::Value>(table: &mut redb::Table<'_, &[u8], V>, prefix: &[u8]) -> Result<(), StoreError> {
    let mut keys = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, _) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        keys.push(Bytes::copy_from_slice(key.value()));
    }
    for key in keys {
        table.remove(key.as_ref())?;
    }
    Ok(())
}

pub(super) fn malformed(table: &str) -> StoreError {
    StoreError::Corrupt { what: format!("table {table}"), reason: "a row is malformed".to_owned() }
}

fn u32_be(bytes: &[u8], table: &str) -> Result<u32, StoreError> {
    bytes.try_into().map(u32::from_be_bytes).map_err(|_| malformed(table))
}

/// Splits a key into group, topic and partition.
fn split_offset_key(key: &[u8]) -> Option<(&str, u32, u32)> {
    let (group_bytes, rest) = key.split_first_chunk::<2>()?;
    let (group, rest) = rest.split_at_checked(u16::from_be_bytes(*group_bytes).into())?;
    let (topic, rest) = rest.split_first_chunk::<4>()?;
    let partition: [u8; 4] = rest.try_into().ok()?;
    Some((std::str::from_utf8(group).ok()?, u32::from_be_bytes(*topic), u32::from_be_bytes(partition)))
}

/// Splits a row into the kind of the group and the committed offset.
fn split_offset_row(row: &[u8]) -> Option<(u8, CommittedRow<'_>)> {
    let (kind, rest) = row.split_first()?;
    let (head, metadata) = rest.split_first_chunk()?;
    let committed = CommittedRow::read(head, std::str::from_utf8(metadata).ok()?).ok()??;
    Some((*kind, committed))
}

/// Splits a key into topic, partition and producer ID.
fn split_producer(key: &[u8]) -> Result<(u32, u32, i64), StoreError> {
    let key: [u8; 16] = key.try_into().map_err(|_| malformed("producers"))?;
    let (topic, rest) = key.split_at(4);
    let (partition, id) = rest.split_at(4);
    let id: [u8; 8] = id.try_into().map_err(|_| malformed("producers"))?;
    Ok((u32_be(topic, "producers")?, u32_be(partition, "producers")?, i64::from_be_bytes(id)))
}

pub(super) fn split_named<'k>(key: &'k [u8], table: &str) -> Result<(&'k str, &'k [u8]), StoreError> {
    let end = key.iter().position(|byte| *byte == 0).ok_or_else(|| malformed(table))?;
    let name = std::str::from_utf8(&key[..end]).map_err(|_| malformed(table))?;
    Ok((name, &key[end + 1..]))
}
