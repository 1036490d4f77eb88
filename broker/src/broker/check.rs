//! Checking and repairing a stopped data directory. The store does the work; this module passes it the function that
//! parses topic entries of the catalog.

use std::path::Path;
use std::sync::Arc;

use crate::log::catalog_entries::TOPIC_PREFIX;
use crate::log::topic::TopicMeta;
use crate::store::place::TopicId;
use crate::store::{self, FileSystem, KnownTopic, Report, StoreError, system_files};

/// Reads a whole data directory of a stopped server and reports all damage. With `repair`, everything intact is kept:
/// damaged batches are cut out, which leaves holes in the offsets, and damaged indexes are rewritten. Without `repair`
/// nothing is changed. Blocks.
///
/// # Errors
/// [`StoreError::Locked`] if a server uses the directory, [`StoreError::Format`] if it has the format of another
/// version, [`StoreError::NoDataDirectory`] if there is none, [`StoreError::Io`] if a file cannot be read. Damage is
/// not an error.
pub fn check(data: &Path, repair: bool) -> Result<Report, StoreError> {
    check_on(&system_files(), data, repair)
}

/// As [`check`], but for a data directory on the file system `system`.
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
