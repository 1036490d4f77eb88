//! Checks the invariants that must hold whatever happened to the server. It knows what the clients know, but not how
//! the server was ended or restarted.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use millstream_client::v1::ErrorCode;
use millstream_client::{Client, ConsumerSettings, Position, RecordView};
use millstream_record::partition_for_key;
use serde::Deserialize;

use super::model::{
    CLICKS, FLIGHTS, Id, Known, LATE_MINUTES, PRODUCERS, PROFILES, Place, RECENT, RETENTION_BYTES_MIN,
    RETENTION_MS_MIN, Stored, TOPICS,
};
use super::workload::{PIPELINES, READERS, REPARTITION, check_content};

/// Time within which pipelines and members must have read everything, in seconds. The limit is meant for a server that
/// hangs, and is no statement about speed.
const CAUGHT_UP_SECONDS_MAX: u64 = 300;

/// What was acknowledged when the server ended.
pub(super) struct Before {
    /// The offset after the last acknowledged record, by partition.
    ends: HashMap<Place, u64>,
    committed: HashMap<u32, u64>,
    deleted: Vec<String>,
}

impl Before {
    /// Takes the state before anything is requested from the next server.
    pub(super) fn of(known: &Known) -> Self {
        Self { ends: known.ends(), committed: known.committed.lock().clone(), deleted: known.deleted.lock().clone() }
    }
}

/// Checks what a server reports right after its restart: no log ends before the last acknowledged record, no deleted
/// topic exists, and no group is past its log's end, behind an acknowledged commit, or past a record that no member
/// received.
pub(super) async fn check_after_restart(client: &Client, known: &Known, before: &Before) -> Result<()> {
    let admin = client.admin();
    for (topic, partitions) in TOPICS {
        let ends = admin.list_offsets(topic, &[], Position::Latest).await?;
        ensure!(ends.len() == partitions as usize, "{topic} has {} partitions, expected {partitions}", ends.len());
        for end in ends {
            let acked = before.ends.get(&(topic, end.partition)).copied().unwrap_or_default();
            let (partition, end) = (end.partition, end.offset);
            ensure!(end >= acked, "{topic}-{partition} ends at offset {end}, but {acked} records were acknowledged");
        }
    }
    let topics = admin.list_topics().await?;
    if let Some(topic) = topics.iter().find(|topic| before.deleted.contains(&topic.name)) {
        bail!("topic {} exists, but its deletion was acknowledged", topic.name);
    }
    for group in admin.list_groups().await? {
        let described = match admin.describe_group(&group.name).await {
            // The last member of a group without offsets has left meanwhile.
            Err(error) if error.code() == Some(ErrorCode::UnknownGroup) => continue,
            described => described?,
        };
        for offset in described.offsets {
            let place = format!("group {} in {}-{}", group.name, offset.topic, offset.partition);
            let at = offset.committed_offset.unwrap_or_default();
            ensure!(at <= offset.log_end_offset, "{place} is at {at}, past the log's end {}", offset.log_end_offset);
            if group.name == READERS {
                let acked = before.committed.get(&offset.partition).copied().unwrap_or_default();
                ensure!(at >= acked, "{place} is at {at}, but the commit of {acked} was acknowledged");
                let seen = known.seen.lock();
                let seen = seen.get(&offset.partition).map(Vec::as_slice).unwrap_or_default();
                let skipped = (0..at as usize).find(|&offset| seen.get(offset) != Some(&true));
                ensure!(
                    skipped.is_none(),
                    "{place} is at {at}, but no member received the record at offset {skipped:?}"
                );
            }
        }
    }
    Ok(())
}

/// Waits until members and pipelines have read all records.
pub(super) async fn caught_up(client: &Client, known: &Known) -> Result<()> {
    /// A record that has left one source may be on its way to the next, so the lags are read once more than there are
    /// sources.
    const LOOKS: usize = 3;
    let limit = tokio::time::Instant::now() + Duration::from_secs(CAUGHT_UP_SECONDS_MAX);
    let ends = known.ends();
    let mut looks = 0;
    while looks < LOOKS {
        looks += 1;
        let mut lags = Vec::new();
        for (pipeline, _) in PIPELINES {
            let described = client.admin().describe_pipeline(pipeline).await?;
            let state =
                described.pipeline.with_context(|| format!("the description of pipeline {pipeline} is empty"))?;
            ensure!(state.state == "running", "pipeline {pipeline} is {}: {}", state.state, state.reason);
            let behind = described.offsets.iter().filter(|offset| offset.lag > 0);
            lags.extend(behind.map(|at| format!("{pipeline} in {}-{}: {}", at.topic, at.partition, at.lag)));
        }
        for ((_, partition), end) in ends.iter().filter(|((topic, _), _)| *topic == FLIGHTS) {
            let seen = known.seen.lock();
            let seen = seen.get(partition).map_or(0, |seen| seen.iter().filter(|&&seen| seen).count() as u64);
            if seen < *end {
                lags.push(format!("{READERS} in {FLIGHTS}-{partition}: {}", end - seen));
            }
        }
        if !lags.is_empty() {
            looks = 0;
            ensure!(
                tokio::time::Instant::now() < limit,
                "not caught up within {CAUGHT_UP_SECONDS_MAX} s; records behind: {lags:?}"
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Checks everything, while no client writes and all sent records are acknowledged. Returns the number of records read.
pub(super) async fn check_all(client: &Client, known: &Known, seed: u64) -> Result<u64> {
    let acked = known.acked.lock().clone();
    let mut read = 0;
    for (topic, partitions) in TOPICS {
        read += check_topic(client, topic, partitions, &acked, seed).await?;
    }
    check_each_is_once(known, &acked)?;
    let late = Late::of(&acked, seed);
    read += late.check(client, "late", false).await?;
    read += late.check(client, "late-by-origin", true).await?;
    read += check_means(client, &late).await?;
    Ok(read)
}

/// The acknowledged records, by partition and offset.
type Acked = HashMap<Place, Vec<Option<Stored>>>;

/// Calls `check` with every record of a topic and its partition. Returns the number of records read.
async fn each(client: &Client, topic: &str, mut check: impl FnMut(u32, &RecordView<'_>) -> Result<()>) -> Result<u64> {
    let settings = ConsumerSettings::topic(topic).from(Position::Earliest).until_end();
    let mut consumer = client.consumer(settings)?;
    let mut read = 0;
    while let Some(set) = consumer.next_batch().await {
        let set = set.with_context(|| format!("reading {topic}"))?;
        let partition = set.partition();
        for view in &set {
            let view = view.with_context(|| format!("{topic}-{partition} from offset {}", set.first_offset()))?;
            check(partition, &view).with_context(|| format!("{topic}-{partition} at offset {}", view.offset))?;
            read += 1;
        }
    }
    Ok(read)
}

/// Checks that a topic's log consists of exactly the acknowledged records, except for those that cleanup removed.
async fn check_topic(client: &Client, topic: &'static str, partitions: u32, acked: &Acked, seed: u64) -> Result<u64> {
    // Retention continues meanwhile, and may delete records that are about to be read: retention by time at any moment,
    // retention by size once after the restart.
    const TRIES: usize = 20;
    let mut tries = 0;
    loop {
        tries += 1;
        let mut found: Vec<Vec<u64>> = vec![Vec::new(); partitions as usize];
        let read = each(client, topic, |partition, view| {
            let offset = view.offset as u64;
            let offsets = &mut found[partition as usize];
            ensure!(offsets.last() < Some(&offset), "the record was read after offset {:?}", offsets.last());
            offsets.push(offset);
            let id = check_content(seed, view)?;
            let slots = acked.get(&(topic, partition)).map(Vec::as_slice).unwrap_or_default();
            let stored = slots.get(offset as usize).copied().flatten();
            let stored =
                stored.with_context(|| format!("found record {id}, which was not acknowledged at this place"))?;
            ensure!(stored.id == id, "found record {id}, but {} was acknowledged at this place", stored.id);
            ensure!(
                stored.timestamp_ms == view.timestamp_ms,
                "record {id} has the timestamp {}, but was sent with {}",
                view.timestamp_ms,
                stored.timestamp_ms
            );
            Ok(())
        });
        let read = match read.await {
            Err(error) if [RECENT, CLICKS].contains(&topic) && tries < TRIES && is_out_of_range(&error) => continue,
            read => read?,
        };
        let described = client.admin().describe_topic(topic).await?;
        for partition in described.partition_list {
            let slots = acked.get(&(topic, partition.partition)).map(Vec::as_slice).unwrap_or_default();
            let place = || format!("{topic}-{}", partition.partition);
            check_partition(topic, &partition, slots, &found[partition.partition as usize], seed)
                .with_context(place)?;
        }
        return Ok(read);
    }
}

fn is_out_of_range(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<millstream_client::ClientError>().and_then(|error| error.code());
    refused == Some(ErrorCode::OffsetOutOfRange)
}

/// Checks one partition. `slots` are the acknowledged records, and `found` the offsets that were read, in the order of
/// reading.
fn check_partition(
    topic: &str,
    partition: &millstream_client::v1::Partition,
    slots: &[Option<Stored>],
    found: &[u64],
    seed: u64,
) -> Result<()> {
    let (start, end) = (partition.log_start_offset, partition.log_end_offset);
    ensure!(end == slots.len() as u64, "the log ends at {end}, but {} records were acknowledged", slots.len());
    let hole = slots.iter().position(Option::is_none);
    ensure!(hole.is_none(), "the record at offset {hole:?} was not acknowledged, but later ones were");
    match topic {
        PROFILES => return check_compacted(slots, found, seed),
        FLIGHTS => ensure!(start == 0, "the log starts at {start}, but nothing is to be deleted"),
        CLICKS => ensure!(
            start == 0 || partition.bytes >= RETENTION_BYTES_MIN,
            "{} bytes are left in the log, which starts at {start}, but at least {RETENTION_BYTES_MIN} must be kept",
            partition.bytes
        ),
        _ => {
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
            let youngest = slots[..start as usize].iter().flatten().map(|stored| stored.timestamp_ms).max();
            let kept_ms = youngest.map_or(i64::MAX, |youngest| now_ms - youngest);
            let min_ms = RETENTION_MS_MIN as i64;
            ensure!(
                kept_ms >= min_ms,
                "the log starts at {start}, but the deleted records were kept for only {kept_ms} ms"
            );
        }
    }
    // The records that were read begin at or before the log's start, and have no gaps.
    let first = found.first().copied().unwrap_or(end);
    ensure!(first <= start, "the first record is at {first}, but the log starts at {start}");
    let jump = found.iter().zip(first..).find(|(at, expected)| **at != *expected);
    ensure!(jump.is_none(), "offsets have a hole: (found, expected) is {jump:?}");
    ensure!(
        first + found.len() as u64 == end,
        "{} records from {first} on were read, but the log ends at {end}",
        found.len()
    );
    Ok(())
}

/// Checks that the last record of each key exists, unless it is a tombstone.
fn check_compacted(slots: &[Option<Stored>], found: &[u64], seed: u64) -> Result<()> {
    let mut last: HashMap<String, (u64, Id, bool)> = HashMap::new();
    for (offset, stored) in slots.iter().enumerate() {
        let Some(stored) = stored else { continue };
        let (Some(key), value) = stored.id.content(seed) else { bail!("record {} has no key", stored.id) };
        last.insert(key, (offset as u64, stored.id, value.is_none()));
    }
    for (key, (offset, id, is_tombstone)) in last {
        let is_there = found.binary_search(&offset).is_ok();
        ensure!(is_there || is_tombstone, "the last record of key {key}, {id} at offset {offset}, is gone");
        if !is_there {
            // A deleted key must not reappear: any remaining record of it would be an older one.
            let older = found.iter().filter_map(|&at| Some((at, slots[at as usize]?.id)));
            let back = older.into_iter().find(|(_, id)| id.content(seed).0.as_deref() == Some(key.as_str()));
            ensure!(back.is_none(), "key {key} was deleted at offset {offset}, but is back with {back:?}");
        }
    }
    Ok(())
}

/// Checks that every record was acknowledged exactly once, and that the records of each producer are in order.
fn check_each_is_once(known: &Known, acked: &Acked) -> Result<()> {
    let numbers = *known.numbers.lock();
    let mut times: Vec<Vec<u8>> = numbers.iter().map(|&number| vec![0; number as usize]).collect();
    for ((topic, partition), slots) in acked {
        let mut last = [None; PRODUCERS.len()];
        for (offset, stored) in slots.iter().enumerate() {
            let Some(Stored { id, .. }) = stored else { continue };
            let place = || format!("{topic}-{partition} at offset {offset}: record {id}");
            let producer = usize::from(id.producer);
            let before = last[producer].replace(id.number);
            ensure!(before < Some(id.number), "{} comes after number {before:?}", place());
            let times = times[producer].get_mut(id.number as usize);
            *times.with_context(|| format!("{} was not sent", place()))? += 1;
        }
    }
    for (producer, times) in times.iter().enumerate() {
        let odd = times.iter().position(|&times| times != 1);
        ensure!(odd.is_none(), "record {producer}-{odd:?} was acknowledged {:?} times", odd.map(|odd| times[odd]));
    }
    Ok(())
}

/// A flight in the output of a pipeline.
#[derive(Deserialize)]
struct Flight {
    id: String,
}

/// The flights that must pass the filter.
struct Late {
    /// Partition and offset from which each record came.
    from: HashMap<Id, (u32, u64)>,
    seed: u64,
}

impl Late {
    fn of(acked: &Acked, seed: u64) -> Self {
        let mut from = HashMap::new();
        for ((_, partition), slots) in acked.iter().filter(|((topic, _), _)| *topic == FLIGHTS) {
            let stored =
                slots.iter().enumerate().filter_map(|(offset, stored)| Some((offset as u64, stored.as_ref()?.id)));
            let late = stored.filter(|(_, id)| id.flight(seed).0 >= LATE_MINUTES);
            from.extend(late.map(|(offset, id)| (id, (*partition, offset))));
        }
        Self { from, seed }
    }

    /// Checks that a topic contains each of these flights once and nothing else, with the flights of one source
    /// partition in order. `is_keyed` says whether the records are keyed by airport.
    async fn check(&self, client: &Client, topic: &str, is_keyed: bool) -> Result<u64> {
        let described = client.admin().describe_topic(topic).await?;
        let partitions =
            described.topic.with_context(|| format!("the description of topic {topic} is empty"))?.partitions;
        let mut left = self.from.clone();
        let mut last: HashMap<(u32, u32), u64> = HashMap::new();
        let read = each(client, topic, |partition, view| {
            let flight: Flight = serde_json::from_slice(view.value.context("the record has no value")?)?;
            let id = Id::parse(&flight.id)?;
            let (key, value) = id.content(self.seed);
            let airport = id.flight(self.seed).1;
            let key = if is_keyed { Some(airport.to_owned()) } else { key };
            ensure!(value.as_deref().map(str::as_bytes) == view.value, "record {id} has another value");
            ensure!(key.as_deref().map(str::as_bytes) == view.key, "record {id} has the key {:?}", view.key);
            if is_keyed {
                let expected = partition_for_key(airport.as_bytes(), partitions);
                ensure!(expected == partition, "record {id} with key {airport} belongs to partition {expected}");
            }
            let from =
                left.remove(&id).with_context(|| format!("record {id} exists twice, or must not pass the filter"))?;
            let before = last.insert((partition, from.0), from.1);
            ensure!(
                before < Some(from.1),
                "record {id} from source offset {} comes after the one from {before:?}",
                from.1
            );
            Ok(())
        });
        let read = read.await?;
        let missing = left.iter().next();
        ensure!(missing.is_none(), "{topic}: {} of {} records are missing, {missing:?}", left.len(), self.from.len());
        Ok(read)
    }
}

/// The aggregate's result for an airport.
#[derive(Deserialize)]
struct Mean {
    flights: usize,
    mean_delay: f64,
}

/// Checks that each update is the mean over all records of its key up to some record, that updates of a key advance,
/// and that the last one counts all records. The repartition topic gives the order of the records.
async fn check_means(client: &Client, late: &Late) -> Result<u64> {
    let mut read = late.check(client, REPARTITION, true).await?;
    let mut sums: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    read += each(client, REPARTITION, |_, view| {
        let flight: Flight = serde_json::from_slice(view.value.context("the record has no value")?)?;
        let (delay, airport) = Id::parse(&flight.id)?.flight(late.seed);
        let sums = sums.entry(airport).or_default();
        sums.push(sums.last().unwrap_or(&0) + delay);
        Ok(())
    })
    .await?;
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    read += each(client, "mean-delays", |_, view| {
        let key = std::str::from_utf8(view.key.context("the record has no key")?)?;
        let mean: Mean = serde_json::from_slice(view.value.context("the record has no value")?)?;
        let flights = mean.flights;
        let sum = sums.get(key).and_then(|sums| sums.get(flights.wrapping_sub(1)));
        let sum = *sum.with_context(|| format!("{key} counts {flights} flights, but fewer exist"))?;
        let expected = (sum as f64 / flights as f64 * 10.0).round() / 10.0;
        ensure!(
            mean.mean_delay == expected,
            "the mean of {key} after {flights} flights is {}, expected {expected}",
            mean.mean_delay
        );
        let before = counted.insert(key.to_owned(), flights).unwrap_or_default();
        ensure!(before < flights, "{key}: the count {flights} follows {before}");
        Ok(())
    })
    .await?;
    for (airport, sums) in &sums {
        let found = counted.get(*airport).copied().unwrap_or_default();
        ensure!(found == sums.len(), "mean-delays: {airport} counts {found} of {} flights", sums.len());
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use millstream_client::v1::Partition;

    use super::*;

    const SEED: u64 = 1;

    fn slots(producer: u8, count: u32) -> Vec<Option<Stored>> {
        (0..count).map(|number| Some(Stored { id: Id { producer, number }, timestamp_ms: 0 })).collect()
    }

    /// Returns the error about a log from `start` to `end` from which `found` was read, where 10 records were
    /// acknowledged.
    fn said(topic: &str, start: u64, end: u64, found: &[u64]) -> String {
        let partition = Partition { log_start_offset: start, log_end_offset: end, ..Default::default() };
        check_partition(topic, &partition, &slots(0, 10), found, SEED)
            .map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_log_is_what_was_acknowledged() {
        let all: Vec<u64> = (0..10).collect();
        assert_eq!(said(FLIGHTS, 0, 10, &all), "");
        assert_eq!(said(RECENT, 4, 10, &all[4..]), "", "the oldest records may be deleted by retention");
        assert_eq!(said(RECENT, 4, 10, &all[2..]), "", "retention may delete records after they were read");
        for (words, found) in [
            ("ends at 9,", said(FLIGHTS, 0, 9, &all[..9])),
            ("ends at 11,", said(FLIGHTS, 0, 11, &all)),
            ("hole", said(FLIGHTS, 0, 10, &[0, 1, 2, 4, 5, 6, 7, 8, 9])),
            ("9 records from 0", said(FLIGHTS, 0, 10, &all[..9])),
            ("nothing is to be deleted", said(FLIGHTS, 1, 10, &all[1..])),
            ("the first record is at 5", said(RECENT, 4, 10, &all[5..])),
            ("0 bytes are left", said(CLICKS, 4, 10, &all[4..])),
        ] {
            assert!(found.contains(words), "{words}: {found}");
        }
    }

    #[test]
    fn a_compacted_log_has_the_last_record_of_each_key() {
        let slots = slots(6, 3_000);
        let mut last: HashMap<Option<String>, u64> = HashMap::new();
        let key = |offset: u64| slots[offset as usize].unwrap().id.content(SEED).0;
        let is_tombstone = |offset: u64| slots[offset as usize].unwrap().id.content(SEED).1.is_none();
        last.extend((0..3_000).map(|offset| (key(offset), offset)));
        let mut found: Vec<u64> = last.values().copied().filter(|&offset| !is_tombstone(offset)).collect();
        found.sort_unstable();
        assert!(check_compacted(&slots, &found, SEED).is_ok());
        let without = &found[1..];
        assert!(check_compacted(&slots, without, SEED).unwrap_err().to_string().contains("is gone"));
        let deleted = last.iter().find(|(_, offset)| is_tombstone(**offset)).unwrap().0.clone();
        found.insert(0, (0..3_000).find(|&offset| key(offset) == deleted).unwrap());
        found.sort_unstable();
        assert!(check_compacted(&slots, &found, SEED).unwrap_err().to_string().contains("is back"));
    }

    #[test]
    fn a_record_is_acknowledged_once_and_in_order() {
        let known = Known::default();
        known.numbers.lock()[0] = 3;
        let place = |slots| HashMap::from([((FLIGHTS, 0), slots)]);
        let mut slots = slots(0, 3);
        assert!(check_each_is_once(&known, &place(slots.clone())).is_ok());
        let twice = HashMap::from([((FLIGHTS, 0), slots.clone()), ((FLIGHTS, 1), slots[..1].to_vec())]);
        assert!(check_each_is_once(&known, &twice).unwrap_err().to_string().contains("Some(2) times"));
        assert!(
            check_each_is_once(&known, &place(slots[1..].to_vec())).unwrap_err().to_string().contains("Some(0) times")
        );
        slots.swap(1, 2);
        assert!(check_each_is_once(&known, &place(slots)).unwrap_err().to_string().contains("comes after"));
    }
}
