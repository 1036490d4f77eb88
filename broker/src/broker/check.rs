//! Checking and repairing a stopped data directory: the store does it, and is told here how topics are written down.

use std::path::Path;
use std::sync::Arc;

use crate::log::catalog::TOPIC_PREFIX;
use crate::log::topic::TopicMeta;
use crate::store::place::TopicId;
use crate::store::{self, FileSystem, KnownTopic, Report, StoreError, system_files};

/// Reads all of a stopped data directory, and with `repair` keeps all that is sound of it: damaged batches are cut out
/// and leave a hole in the offsets, damaged indexes are written anew. Without `repair` nothing is changed. Blocks.
///
/// # Errors
/// [`StoreError::Locked`] where a server has the directory, [`StoreError::Format`] for one of another version,
/// [`StoreError::Io`] where there is none or a file can't be read. Damage is no error.
pub fn check(data: &Path, repair: bool) -> Result<Report, StoreError> {
    check_on(&system_files(), data, repair)
}

/// As [`check`], of a data directory on this file system.
///
/// # Errors
/// As [`check`].
pub fn check_on(system: &Arc<dyn FileSystem>, data: &Path, repair: bool) -> Result<Report, StoreError> {
    store::check(system, data, repair, read_topic)
}

fn read_topic(key: &str, value: &[u8]) -> Option<Result<KnownTopic, String>> {
    let name = key.strip_prefix(TOPIC_PREFIX)?.to_owned();
    let meta = serde_json::from_slice::<TopicMeta>(value).map_err(|error| error.to_string());
    Some(meta.map(|TopicMeta { id, partitions, .. }| KnownTopic { id: TopicId(id), name, partitions }))
}
