//! The settings of single groups, by Kafka's names (KIP-848). Those of other kinds of groups than are served are kept, so that
//! a client finds what it set.

use std::collections::BTreeMap;

use crate::error::BrokerError;
use crate::name::GroupId;

/// How long a member that sends heartbeats may send nothing, in ms.
pub const SESSION_TIMEOUT_MS: &str = "consumer.session.timeout.ms";
/// How often such a member sends a heartbeat, in ms.
pub const HEARTBEAT_INTERVAL_MS: &str = "consumer.heartbeat.interval.ms";

/// The settings that are known, with their defaults where there are any.
pub const KNOWN: [(&str, &str); 13] = [
    (HEARTBEAT_INTERVAL_MS, ""),
    (SESSION_TIMEOUT_MS, ""),
    ("share.auto.offset.reset", "latest"),
    ("share.delivery.count.limit", "5"),
    ("share.heartbeat.interval.ms", "5000"),
    ("share.isolation.level", "read_uncommitted"),
    ("share.partition.max.record.locks", "2000"),
    ("share.record.lock.duration.ms", "30000"),
    ("share.session.timeout.ms", "45000"),
    ("streams.heartbeat.interval.ms", "5000"),
    ("streams.initial.rebalance.delay.ms", "3000"),
    ("streams.num.standby.replicas", "0"),
    ("streams.session.timeout.ms", "45000"),
];

/// The settings of a group, by name.
pub type GroupSettings = BTreeMap<String, String>;

/// Checks a setting.
///
/// # Errors
/// [`BrokerError::InvalidGroupSetting`].
pub fn check(group: &GroupId, name: &str, value: &str) -> Result<(), BrokerError> {
    let refuse = |reason: &str| {
        Err(BrokerError::InvalidGroupSetting {
            group: group.clone(),
            name: name.to_owned(),
            value: value.to_owned(),
            reason: reason.to_owned(),
        })
    };
    if !KNOWN.iter().any(|(known, _)| *known == name) {
        return refuse("there is no such setting");
    }
    if (name.ends_with(".ms") || name.ends_with("replicas") || name.ends_with("locks") || name.ends_with("limit"))
        && value.parse::<u32>().is_err()
    {
        return refuse("use a number of 0 or more");
    }
    if matches!(name, SESSION_TIMEOUT_MS | HEARTBEAT_INTERVAL_MS) && value.parse() == Ok(0u32) {
        return refuse("use 1 or more");
    }
    Ok(())
}
