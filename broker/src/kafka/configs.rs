//! Topic settings by Kafka's names, and the broker's.
//!
//! Some of Kafka's settings have no effect here, because they tune how Kafka stores records. They are kept and shown as they
//! were set. Those that would change what a client sees, and that the broker cannot honour, are refused.

use kafka_protocol::ResponseError;

use super::Call;
use crate::groups::settings;
use crate::log::topic::{
    BATCH_BYTES_MAX_DEFAULT, Change, Cleanup, DELETE_RETENTION_MS_DEFAULT, TIMESTAMP_AFTER_MAX_MS_DEFAULT, Timestamp,
    TopicAlteration, TopicCompression, TopicSettings,
};

/// A kind of resource that has settings.
pub(super) const TOPIC: i8 = 2;
pub(super) const BROKER: i8 = 4;
pub(super) const BROKER_LOGGER: i8 = 8;
pub(super) const CLIENT_METRICS: i8 = 16;
pub(super) const GROUP: i8 = 32;

/// Where a value comes from.
pub(super) const FROM_TOPIC: i8 = 1;
pub(super) const FROM_BROKER: i8 = 4;
pub(super) const FROM_DEFAULT: i8 = 5;
pub(super) const FROM_GROUP: i8 = 8;

/// The type of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub(super) enum Kind {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// What the broker makes of one of Kafka's topic settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It maps to a setting of the topic.
    Mapped,
    /// It has the default value and no other.
    Fixed,
    /// It tunes how Kafka stores records, and has no effect.
    None,
}

/// One of Kafka's topic settings.
#[derive(Clone, Copy, Debug)]
struct Setting {
    name: &'static str,
    kind: Kind,
    default: &'static str,
    effect: Effect,
}

const fn setting(name: &'static str, kind: Kind, default: &'static str, effect: Effect) -> Setting {
    Setting { name, kind, default, effect }
}

const CLEANUP_POLICY: &str = "cleanup.policy";
const RETENTION_MS: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const DELETE_RETENTION_MS: &str = "delete.retention.ms";
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const COMPRESSION_TYPE: &str = "compression.type";
/// The codec of a topic whose batches stay as they came.
const PRODUCER: &str = "producer";
const TIMESTAMP_TYPE: &str = "message.timestamp.type";
const TIMESTAMP_BEFORE_MAX_MS: &str = "message.timestamp.before.max.ms";
const TIMESTAMP_AFTER_MAX_MS: &str = "message.timestamp.after.max.ms";

/// The value of a time or size without a limit.
const UNLIMITED: &str = "-1";
const LONG_MAX: &str = "9223372036854775807";

const SETTINGS: [Setting; 33] = [
    setting(CLEANUP_POLICY, Kind::List, "delete", Effect::Mapped),
    setting(RETENTION_MS, Kind::Long, UNLIMITED, Effect::Mapped),
    setting(RETENTION_BYTES, Kind::Long, UNLIMITED, Effect::Mapped),
    setting(DELETE_RETENTION_MS, Kind::Long, "86400000", Effect::Mapped),
    setting(MAX_MESSAGE_BYTES, Kind::Int, "1048588", Effect::Mapped),
    setting(TIMESTAMP_TYPE, Kind::String, "CreateTime", Effect::Mapped),
    setting(TIMESTAMP_BEFORE_MAX_MS, Kind::Long, LONG_MAX, Effect::Mapped),
    setting(TIMESTAMP_AFTER_MAX_MS, Kind::Long, "3600000", Effect::Mapped),
    setting(COMPRESSION_TYPE, Kind::String, PRODUCER, Effect::Mapped),
    setting("min.insync.replicas", Kind::Int, "1", Effect::Fixed),
    setting("min.compaction.lag.ms", Kind::Long, "0", Effect::Fixed),
    setting("remote.storage.enable", Kind::Boolean, "false", Effect::Fixed),
    setting("compression.gzip.level", Kind::Int, "-1", Effect::None),
    setting("compression.lz4.level", Kind::Int, "9", Effect::None),
    setting("compression.zstd.level", Kind::Int, "3", Effect::None),
    setting("file.delete.delay.ms", Kind::Long, "60000", Effect::None),
    setting("flush.messages", Kind::Long, LONG_MAX, Effect::None),
    setting("flush.ms", Kind::Long, LONG_MAX, Effect::None),
    setting("follower.replication.throttled.replicas", Kind::List, "", Effect::None),
    setting("index.interval.bytes", Kind::Int, "4096", Effect::None),
    setting("leader.replication.throttled.replicas", Kind::List, "", Effect::None),
    setting("local.retention.bytes", Kind::Long, "-2", Effect::None),
    setting("local.retention.ms", Kind::Long, "-2", Effect::None),
    setting("max.compaction.lag.ms", Kind::Long, LONG_MAX, Effect::None),
    setting("min.cleanable.dirty.ratio", Kind::Double, "0.5", Effect::None),
    setting("preallocate", Kind::Boolean, "false", Effect::None),
    setting("remote.log.copy.disable", Kind::Boolean, "false", Effect::None),
    setting("remote.log.delete.on.disable", Kind::Boolean, "false", Effect::None),
    setting("segment.bytes", Kind::Int, "1073741824", Effect::None),
    setting("segment.index.bytes", Kind::Int, "10485760", Effect::None),
    setting("segment.jitter.ms", Kind::Long, "0", Effect::None),
    setting("segment.ms", Kind::Long, "604800000", Effect::None),
    setting("unclean.leader.election.enable", Kind::Boolean, "false", Effect::None),
];

/// A setting and its value.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) kind: Kind,
    pub(super) source: i8,
    pub(super) default: &'static str,
}

/// The reason for which a setting is refused: Kafka's error code, and a message.
pub(super) type Refused = (i16, String);

/// What a request does with a setting (KIP-339).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Set,
    Delete,
    Append,
    Subtract,
}

impl Operation {
    pub(super) fn from_wire(operation: i8) -> Result<Self, Refused> {
        match operation {
            0 => Ok(Self::Set),
            1 => Ok(Self::Delete),
            2 => Ok(Self::Append),
            3 => Ok(Self::Subtract),
            other => Err((
                ResponseError::InvalidRequest.code(),
                format!(
                    "operation {other} on a setting is unknown: use 0 (set), 1 (delete), 2 (append) or 3 (subtract)"
                ),
            )),
        }
    }
}

fn invalid(reason: String) -> Refused {
    (ResponseError::InvalidConfig.code(), reason)
}

/// Returns all topic settings with their values.
pub(super) fn of_topic(settings: &TopicSettings) -> Vec<Config> {
    let config = |setting: &Setting| {
        let value = value_of(settings, setting.name);
        let source = if value.is_some() { FROM_TOPIC } else { FROM_DEFAULT };
        let value = value.unwrap_or_else(|| setting.default.to_owned());
        Config { name: setting.name, value, kind: setting.kind, source, default: setting.default }
    };
    SETTINGS.iter().map(config).collect()
}

/// Returns the value of a setting by Kafka's name, if it is set.
fn value_of(settings: &TopicSettings, name: &str) -> Option<String> {
    fn number<N: ToString>(number: Option<N>) -> Option<String> {
        number.map(|number| number.to_string())
    }
    match name {
        CLEANUP_POLICY => Some(settings.cleanup.name()).filter(|name| *name != "delete").map(str::to_owned),
        COMPRESSION_TYPE => settings.compression.and_then(|compression| {
            let known = TopicCompression::ALL.into_iter().find(|(known, _)| *known == compression);
            known.map(|(_, name)| name.to_owned())
        }),
        RETENTION_MS => number(settings.retention_ms),
        RETENTION_BYTES => number(settings.retention_bytes),
        DELETE_RETENTION_MS => number(settings.delete_retention_ms),
        MAX_MESSAGE_BYTES => number(settings.batch_bytes_max),
        TIMESTAMP_TYPE => (settings.timestamp == Timestamp::Append).then(|| "LogAppendTime".to_owned()),
        TIMESTAMP_BEFORE_MAX_MS => number(settings.timestamp_before_max_ms),
        TIMESTAMP_AFTER_MAX_MS => number(settings.timestamp_after_max_ms),
        other => settings.without_effect.get(other).cloned(),
    }
}

/// Returns the alteration that these changes by Kafka's names mean. A value of `None` stands for the default.
pub(super) fn alteration<'a>(
    changes: impl Iterator<Item = (&'a str, Operation, Option<&'a str>)>,
    before: &TopicSettings,
) -> Result<TopicAlteration, Refused> {
    let mut alteration = TopicAlteration::default();
    for (name, operation, value) in changes {
        let setting = SETTINGS.iter().find(|setting| setting.name == name);
        let setting = setting.ok_or_else(|| invalid(format!("there is no topic setting {name:?}")))?;
        let value = match (operation, value) {
            (Operation::Delete, _) | (Operation::Set, None) => None,
            (Operation::Set, Some(value)) => Some(value.trim().to_owned()),
            (Operation::Append | Operation::Subtract, value) => {
                if setting.kind != Kind::List {
                    return Err((
                        ResponseError::InvalidConfig.code(),
                        format!("{name} is not a list, so nothing can be appended to it or subtracted from it"),
                    ));
                }
                let current = value_of(before, name).unwrap_or_else(|| setting.default.to_owned());
                Some(changed_list(&current, value.unwrap_or_default(), operation))
            }
        };
        change(&mut alteration, setting, value)?;
    }
    Ok(alteration)
}

/// Returns the alteration that gives all settings that are not in `configs` their defaults.
pub(super) fn replacement<'a>(
    configs: impl Iterator<Item = (&'a str, Option<&'a str>)> + Clone,
    before: &TopicSettings,
) -> Result<TopicAlteration, Refused> {
    let set = configs.clone().map(|(name, value)| (name, Operation::Set, value));
    let unset = SETTINGS.iter().filter(|setting| configs.clone().all(|(name, _)| name != setting.name));
    let unset: Vec<_> = unset.map(|setting| (setting.name, Operation::Delete, None)).collect();
    alteration(unset.into_iter().chain(set), before)
}

fn changed_list(current: &str, items: &str, operation: Operation) -> String {
    let split = |list: &str| {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect::<Vec<String>>()
    };
    let (mut list, items) = (split(current), split(items));
    match operation {
        Operation::Append => {
            for item in items {
                if !list.contains(&item) {
                    list.push(item);
                }
            }
        }
        _ => list.retain(|item| !items.contains(item)),
    }
    list.join(",")
}

fn change(alteration: &mut TopicAlteration, setting: &Setting, value: Option<String>) -> Result<(), Refused> {
    let name = setting.name;
    if let Some(value) = &value {
        check_kind(setting, value)?;
    }
    match setting.effect {
        Effect::Fixed => {
            return match value {
                Some(value) if value != setting.default => {
                    Err(invalid(format!("{name}: {value} is not supported; the only value is {}", setting.default)))
                }
                _ => Ok(()),
            };
        }
        Effect::None => {
            alteration.without_effect.insert(name.to_owned(), value.map_or(Change::Unset, Change::Set));
            return Ok(());
        }
        Effect::Mapped => {}
    }
    let Some(value) = value else {
        match name {
            CLEANUP_POLICY => alteration.cleanup = Change::Unset,
            RETENTION_MS => alteration.retention_ms = Change::Unset,
            RETENTION_BYTES => alteration.retention_bytes = Change::Unset,
            DELETE_RETENTION_MS => alteration.delete_retention_ms = Change::Unset,
            MAX_MESSAGE_BYTES => alteration.batch_bytes_max = Change::Unset,
            TIMESTAMP_TYPE => alteration.timestamp = Change::Unset,
            COMPRESSION_TYPE => alteration.compression = Change::Unset,
            TIMESTAMP_BEFORE_MAX_MS => alteration.timestamp_before_max_ms = Change::Unset,
            _ => alteration.timestamp_after_max_ms = Change::Unset,
        }
        return Ok(());
    };
    match name {
        CLEANUP_POLICY => alteration.cleanup = Change::Set(cleanup(&value)?),
        TIMESTAMP_TYPE => {
            alteration.timestamp = Change::Set(match &*value {
                "CreateTime" => Timestamp::Create,
                "LogAppendTime" => Timestamp::Append,
                _ => return Err(invalid(format!("{name}: {value:?} is unknown; use CreateTime or LogAppendTime"))),
            });
        }
        COMPRESSION_TYPE if value == PRODUCER => alteration.compression = Change::Unset,
        COMPRESSION_TYPE => {
            let known = TopicCompression::ALL.into_iter().find(|(_, known)| *known == value);
            let (codec, _) = known.ok_or_else(|| {
                let names = TopicCompression::ALL.map(|(_, name)| name).join(", ");
                invalid(format!("{name}: {value:?} is unknown; use {PRODUCER}, {names}"))
            })?;
            alteration.compression = Change::Set(codec);
        }
        RETENTION_MS => alteration.retention_ms = limit(name, &value)?,
        RETENTION_BYTES => alteration.retention_bytes = limit(name, &value)?,
        DELETE_RETENTION_MS => alteration.delete_retention_ms = Change::Set(amount(name, &value)?),
        MAX_MESSAGE_BYTES => {
            let bytes = amount(name, &value)?;
            alteration.batch_bytes_max = Change::Set(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        TIMESTAMP_BEFORE_MAX_MS if value == LONG_MAX => alteration.timestamp_before_max_ms = Change::Unset,
        TIMESTAMP_BEFORE_MAX_MS => alteration.timestamp_before_max_ms = Change::Set(amount(name, &value)?),
        _ => alteration.timestamp_after_max_ms = Change::Set(amount(name, &value)?),
    }
    Ok(())
}

fn cleanup(value: &str) -> Result<Cleanup, Refused> {
    let mut policies: Vec<&str> = value.split(',').map(str::trim).collect();
    policies.sort_unstable();
    match policies[..] {
        ["delete"] => Ok(Cleanup::Delete),
        ["compact"] => Ok(Cleanup::Compact),
        ["compact", "delete"] => Ok(Cleanup::CompactAndDelete),
        _ => Err(invalid(format!("{CLEANUP_POLICY}: {value:?} is unknown; use delete, compact or compact,delete"))),
    }
}

/// Reads an amount of which -1 stands for no limit.
fn limit(name: &str, value: &str) -> Result<Change<u64>, Refused> {
    if value == UNLIMITED { Ok(Change::Unset) } else { amount(name, value).map(Change::Set) }
}

fn amount(name: &str, value: &str) -> Result<u64, Refused> {
    value.parse().map_err(|_| invalid(format!("{name}: {value:?} is not allowed; use a number of 0 or more")))
}

fn check_kind(setting: &Setting, value: &str) -> Result<(), Refused> {
    let is_valid = match setting.kind {
        Kind::Boolean => matches!(value, "true" | "false"),
        Kind::Int => value.parse::<i32>().is_ok(),
        Kind::Long => value.parse::<i64>().is_ok(),
        Kind::Double => value.parse::<f64>().is_ok_and(f64::is_finite),
        Kind::String | Kind::List => true,
    };
    if is_valid {
        return Ok(());
    }
    let kind = match setting.kind {
        Kind::Boolean => "true or false",
        Kind::Int => "a number of 32 bits",
        Kind::Long => "a number of 64 bits",
        _ => "a number",
    };
    Err(invalid(format!("{}: {value:?} is not allowed; use {kind}", setting.name)))
}

/// Returns the settings of a group.
pub(super) fn of_group(call: &Call, group: &str) -> Vec<Config> {
    let made = call.broker().groups().settings(group);
    let bounds = &call.broker().settings().groups;
    let config = |(name, default): (&'static str, &'static str)| {
        let value = made.get(name).cloned();
        let source = if value.is_some() { FROM_GROUP } else { FROM_DEFAULT };
        let value = value.unwrap_or_else(|| match name {
            settings::SESSION_TIMEOUT_MS => bounds.consumer_session_timeout_ms.to_string(),
            settings::HEARTBEAT_INTERVAL_MS => bounds.consumer_heartbeat_interval_ms.to_string(),
            _ => default.to_owned(),
        });
        let kind = if value.parse::<i32>().is_ok() { Kind::Int } else { Kind::String };
        Config { name, value, kind, source, default }
    };
    settings::KNOWN.into_iter().map(config).collect()
}

/// Returns the broker's settings, which cannot be changed over Kafka's protocol.
pub(super) fn of_broker(call: &Call) -> Vec<Config> {
    let edge = &call.edge;
    let settings = edge.broker.settings();
    let config = |name, value: String, kind| Config { name, value, kind, source: FROM_BROKER, default: "" };
    let (host, port) = call.advertised();
    let listener = format!("PLAINTEXT://{host}:{port}");
    let (int, long) = (Kind::Int, Kind::Long);
    let retention_minutes = settings.offsets_retention_ms / 60_000;
    let mut configs = vec![
        config("advertised.listeners", listener.clone(), Kind::List),
        config("auto.create.topics.enable", edge.settings.auto_create_topics.to_string(), Kind::Boolean),
        config("broker.id", super::NODE_ID.to_string(), int),
        config("compression.type", "producer".to_owned(), Kind::String),
        config("default.replication.factor", "1".to_owned(), int),
        config("delete.topic.enable", true.to_string(), Kind::Boolean),
        config("group.initial.rebalance.delay.ms", settings.groups.initial_rebalance_delay_ms.to_string(), int),
        config("group.max.session.timeout.ms", settings.groups.session_timeout_max_ms.to_string(), int),
        config("group.max.size", settings.groups.members_max.to_string(), int),
        config("group.min.session.timeout.ms", settings.groups.session_timeout_min_ms.to_string(), int),
        config("listeners", listener, Kind::List),
        config("log.cleaner.delete.retention.ms", DELETE_RETENTION_MS_DEFAULT.to_string(), long),
        config("log.cleanup.policy", "delete".to_owned(), Kind::List),
        config("log.dirs", edge.broker.store().path().display().to_string(), Kind::String),
        config("log.message.timestamp.after.max.ms", TIMESTAMP_AFTER_MAX_MS_DEFAULT.to_string(), long),
        config("log.message.timestamp.type", "CreateTime".to_owned(), Kind::String),
        config("log.retention.bytes", UNLIMITED.to_owned(), long),
        config("log.retention.ms", UNLIMITED.to_owned(), long),
        config("connections.max.idle.ms", edge.settings.idle_max_ms.to_string(), long),
        config("group.consumer.heartbeat.interval.ms", settings.groups.consumer_heartbeat_interval_ms.to_string(), int),
        config("group.consumer.session.timeout.ms", settings.groups.consumer_session_timeout_ms.to_string(), int),
        config("transaction.max.timeout.ms", settings.transactions.timeout_max_ms.to_string(), int),
        config("transactional.id.expiration.ms", settings.transactions.id_expiry_ms.to_string(), int),
        config("max.connections", edge.settings.connections_max.to_string(), int),
        config("message.max.bytes", BATCH_BYTES_MAX_DEFAULT.to_string(), int),
        config("min.insync.replicas", "1".to_owned(), int),
        config("node.id", super::NODE_ID.to_string(), int),
        config("num.partitions", edge.settings.partitions_default.to_string(), int),
        config("offsets.retention.minutes", retention_minutes.to_string(), int),
        config("producer.id.expiration.ms", settings.producer_expiry_ms.to_string(), int),
        config("socket.request.max.bytes", edge.settings.request_bytes_max.to_string(), int),
    ];
    configs.sort_by_key(|config| config.name);
    configs
}
