//! Retention decides which records are no longer kept. It advances the log start offsets of partitions according to the
//! settings of their topics or, for repartition topics, according to what has been read. It also removes segments that
//! are no longer in use, including those of deleted topics.

use std::collections::HashMap;
use std::sync::Arc;

use crate::log::cleaner::Cleaner;
use crate::log::commit::Upkeep;
use crate::log::partition::Partition;
use crate::log::queue::Ended;
use crate::log::topic::Topic;
use crate::store::place::{Offset, Place};

/// State that is kept between rounds.
#[derive(Default)]
pub(super) struct Seen {
    /// The registry's change count when unused segments were last removed.
    changes: Option<u64>,
    /// For each partition of a repartition topic, the offset before which all records had been read.
    read: HashMap<Place, Offset>,
}

/// Runs one round of retention.
pub(super) fn retain(cleaner: &Cleaner, now_ms: i64, seen: &mut Seen) -> Result<(), Ended> {
    move_log_starts(cleaner, now_ms, &mut seen.read)?;
    let now = cleaner.store.registry().changes();
    if seen.changes != Some(now) {
        let is_all = remove_unused(cleaner)?;
        seen.changes = is_all.then_some(now);
    }
    Ok(())
}

/// Advances the log start offsets of the partitions whose topics do not keep all records.
fn move_log_starts(cleaner: &Cleaner, now_ms: i64, read: &mut HashMap<Place, Offset>) -> Result<(), Ended> {
    let mut log_starts = Vec::new();
    let topics = cleaner.topics();
    retain_unread(cleaner, &topics, read, &mut log_starts);
    for topic in topics {
        let settings = &topic.meta().settings;
        if !settings.cleanup.deletes() {
            continue;
        }
        let oldest_ms = settings.retention_ms.map(|ms| now_ms.saturating_sub_unsigned(ms));
        if oldest_ms.is_none() && settings.retention_bytes.is_none() {
            continue;
        }
        for partition in topic.partitions() {
            let start = partition.retained_from(oldest_ms, settings.retention_bytes);
            if start > partition.start() {
                log_starts.push((partition.clone(), start));
            }
        }
    }
    if log_starts.is_empty() {
        return Ok(());
    }
    cleaner.queue.commit_upkeep(Upkeep { log_starts, ..Upkeep::default() })
}

/// Advances the log start offsets of repartition topics. A repartition topic keeps the records that any group reading
/// it, its pipeline or another, has not read yet. Records are dropped only if they had also been read in the previous
/// round, so that a lower offset that was being committed during that round is still respected.
fn retain_unread(
    cleaner: &Cleaner,
    topics: &[Arc<Topic>],
    read: &mut HashMap<Place, Offset>,
    log_starts: &mut Vec<(Arc<Partition>, Offset)>,
) {
    let internal = || topics.iter().filter(|topic| topic.meta().internal);
    let mut read_to: HashMap<Place, Option<Offset>> =
        internal().flat_map(|topic| topic.partitions()).map(|partition| (partition.place(), None)).collect();
    if read_to.is_empty() {
        return;
    }
    for group in cleaner.domain.groups.all() {
        for (topic, partition, offset) in group.all_committed() {
            if let Some(least) = read_to.get_mut(&(topic, partition)) {
                *least = Some(least.map_or(offset, |least| least.min(offset)));
            }
        }
    }
    let before = std::mem::take(read);
    for partition in internal().flat_map(|topic| topic.partitions()) {
        let place = partition.place();
        let Some(read_to) = read_to[&place] else { continue };
        let unread_from = partition.unread_from(read_to);
        read.insert(place, unread_from);
        let start = before.get(&place).map_or(Offset::ZERO, |before| unread_from.min(*before));
        if start > partition.start() {
            log_starts.push((partition.clone(), start));
        }
    }
}

/// Removes segments of which nothing is in use. Returns false if one of them is in work, so that its removal has to
/// wait.
fn remove_unused(cleaner: &Cleaner) -> Result<bool, Ended> {
    let in_work = cleaner.in_work();
    let (left, removed): (Vec<_>, Vec<_>) = cleaner.unused().into_iter().partition(|id| in_work.contains(id));
    if !removed.is_empty() {
        cleaner.queue.commit_upkeep(Upkeep { removed, ..Upkeep::default() })?;
    }
    Ok(left.is_empty())
}
