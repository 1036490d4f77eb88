//! The listeners for clients of Kafka, and settings by Kafka's names.

use std::net::SocketAddr;
use std::str::FromStr;

use millstream_broker::BrokerSettings;
use millstream_broker::grpc::ServeSettings;
use millstream_broker::kafka::KafkaSettings;

use crate::amount;
use crate::exit::Usage;

/// Maximum size of a request in Kafka's protocol, in bytes: four of the largest record batches.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// How long a connection may be unused, in ms: Kafka's default.
const IDLE_MAX_MS: u64 = 600_000;

/// What stands for no listener.
const NONE: &str = "none";

/// The settings for clients of Kafka, as given on the command line.
#[derive(Debug, clap::Args)]
pub(crate) struct KafkaArgs {
    /// The address for clients of Kafka; port 0 selects a free port, and `none` serves no clients of Kafka. May be given more
    /// than once. Clients connect to the address that they reach first, or to HOST:PORT if it is given:
    /// `0.0.0.0:9092=broker.example.com:9092`
    #[arg(long = "kafka-address", value_name = "ADDRESS[=HOST:PORT]", default_value = "127.0.0.1:9092", value_parser = listener)]
    addresses: Vec<Listener>,
    /// A setting by the name that it has in Kafka, such as `num.partitions=3` or `auto.create.topics.enable=false`; may be
    /// given more than once
    #[arg(long = "kafka-config", value_name = "NAME=VALUE", value_parser = config)]
    configs: Vec<Config>,
}

/// The host and port that clients are told, if they are not to use the address that they reach.
type Advertised = Option<(String, u16)>;

/// An address to listen on, and the one that clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    None,
    At { address: SocketAddr, advertised: Advertised },
}

fn listener(text: &str) -> Result<Listener, String> {
    if text == NONE {
        return Ok(Listener::None);
    }
    let (address, advertised) = match text.split_once('=') {
        Some((address, advertised)) => (address, Some(advertised)),
        None => (text, None),
    };
    let advertised = advertised.map(|text| {
        let (host, port) = text.rsplit_once(':').ok_or("write a host and a port after '=', such as localhost:9092")?;
        let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() { Err("the host after '=' is empty".to_owned()) } else { Ok((host.to_owned(), port)) }
    });
    Ok(Listener::At { address: amount::address(address)?, advertised: advertised.transpose()? })
}

/// A setting by Kafka's name.
#[derive(Clone, Debug)]
struct Config {
    name: String,
    value: String,
}

fn config(text: &str) -> Result<Config, String> {
    let (name, value) = text.split_once('=').ok_or("write a name and a value, such as num.partitions=3")?;
    Ok(Config { name: name.trim().to_owned(), value: value.trim().to_owned() })
}

/// The names of the settings that are known.
const NAMES: [&str; 14] = [
    "auto.create.topics.enable",
    "connections.max.idle.ms",
    "group.consumer.heartbeat.interval.ms",
    "group.consumer.session.timeout.ms",
    "group.initial.rebalance.delay.ms",
    "group.max.session.timeout.ms",
    "group.max.size",
    "group.min.session.timeout.ms",
    "num.partitions",
    "producer.id.expiration.ms",
    "socket.request.max.bytes",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms",
    "transaction.max.timeout.ms",
    "transactional.id.expiration.ms",
];

impl KafkaArgs {
    /// Returns the listeners.
    ///
    /// # Errors
    /// If `none` is given together with an address.
    pub(super) fn listeners(&self) -> Result<Vec<(SocketAddr, Advertised)>, Usage> {
        let at = |listener: &Listener| match listener {
            Listener::None => None,
            Listener::At { address, advertised } => Some((*address, advertised.clone())),
        };
        let listeners: Vec<_> = self.addresses.iter().filter_map(at).collect();
        if !listeners.is_empty() && listeners.len() < self.addresses.len() {
            return Err(Usage(format!(
                "--kafka-address: {NONE} is given together with an address: remove one of them"
            )));
        }
        Ok(listeners)
    }

    /// Returns the settings of the listeners, but for their addresses. Changes those of the broker.
    ///
    /// # Errors
    /// For a setting that is unknown or has a value that is not allowed.
    pub(super) fn settings(&self, net: &ServeSettings, broker: &mut BrokerSettings) -> Result<KafkaSettings, Usage> {
        let mut kafka = KafkaSettings {
            advertised: None,
            connections_max: net.connections_max,
            connection_bytes_in_flight_max: net.connection_bytes_in_flight_max,
            request_bytes_max: REQUEST_BYTES_MAX,
            stall_max_ms: net.keepalive_interval_ms.saturating_add(net.keepalive_timeout_ms),
            idle_max_ms: IDLE_MAX_MS,
            auto_create_topics: true,
            partitions_default: 1,
        };
        for Config { name, value } in &self.configs {
            let (groups, transactions) = (&mut broker.groups, &mut broker.transactions);
            match &**name {
                "auto.create.topics.enable" => set(name, value, &mut kafka.auto_create_topics)?,
                "connections.max.idle.ms" => set(name, value, &mut kafka.idle_max_ms)?,
                "group.consumer.heartbeat.interval.ms" => {
                    set(name, value, &mut groups.consumer_heartbeat_interval_ms)?;
                }
                "group.consumer.session.timeout.ms" => set(name, value, &mut groups.consumer_session_timeout_ms)?,
                "group.initial.rebalance.delay.ms" => set(name, value, &mut groups.initial_rebalance_delay_ms)?,
                "group.max.session.timeout.ms" => set(name, value, &mut groups.session_timeout_max_ms)?,
                "group.max.size" => set(name, value, &mut groups.members_max)?,
                "group.min.session.timeout.ms" => set(name, value, &mut groups.session_timeout_min_ms)?,
                "num.partitions" => set(name, value, &mut kafka.partitions_default)?,
                "producer.id.expiration.ms" => set(name, value, &mut broker.producer_expiry_ms)?,
                "socket.request.max.bytes" => set(name, value, &mut kafka.request_bytes_max)?,
                "transaction.abort.timed.out.transaction.cleanup.interval.ms" => {
                    set(name, value, &mut transactions.check_interval_ms)?;
                }
                "transaction.max.timeout.ms" => set(name, value, &mut transactions.timeout_max_ms)?,
                "transactional.id.expiration.ms" => set(name, value, &mut transactions.id_expiry_ms)?,
                _ => {
                    let known = NAMES.join(", ");
                    return Err(Usage(format!("--kafka-config: {name:?} is not known here; known are {known}")));
                }
            }
        }
        if kafka.partitions_default == 0 {
            return Err(Usage("--kafka-config: num.partitions must be 1 or more".to_owned()));
        }
        Ok(kafka)
    }
}

fn set<T: FromStr>(name: &str, value: &str, setting: &mut T) -> Result<(), Usage> {
    *setting = value.parse().map_err(|_| Usage(format!("--kafka-config: {name}={value}: the value is not allowed")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Said {
        #[command(flatten)]
        kafka: KafkaArgs,
    }

    fn said(arguments: &[&str]) -> KafkaArgs {
        Said::parse_from([&["serve"], arguments].concat()).kafka
    }

    #[test]
    fn listeners_have_names_for_clients() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(said(&[]).listeners().ok().unwrap(), [(address("127.0.0.1:9092"), None)]);
        let two = said(&["--kafka-address", "0.0.0.0:1=example.com:2", "--kafka-address", "[::1]:3=[::1]:4"]);
        let names = [("example.com".to_owned(), 2), ("::1".to_owned(), 4)].map(Some);
        assert_eq!(
            two.listeners().ok().unwrap(),
            [address("0.0.0.0:1"), address("[::1]:3")].into_iter().zip(names).collect::<Vec<_>>()
        );
        assert!(said(&["--kafka-address", "none"]).listeners().ok().unwrap().is_empty());
        let both = said(&["--kafka-address", "none", "--kafka-address", "127.0.0.1:0"]);
        assert!(both.listeners().unwrap_err().to_string().contains("together with an address"));
        for wrong in ["9092", "127.0.0.1:1=host", "127.0.0.1:1=host:port", "127.0.0.1:1=:5"] {
            assert!(listener(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_setting_that_is_named_is_known() {
        for name in NAMES {
            let value = if name == "auto.create.topics.enable" { "false" } else { "7" };
            let text = format!("{name}={value}");
            let set =
                said(&["--kafka-config", &text]).settings(&ServeSettings::default(), &mut BrokerSettings::default());
            assert!(set.is_ok(), "{name}");
            let wrong = format!("{name}=x");
            let set =
                said(&["--kafka-config", &wrong]).settings(&ServeSettings::default(), &mut BrokerSettings::default());
            assert!(set.unwrap_err().to_string().contains(&wrong), "{name}");
        }
        let unknown = said(&["--kafka-config", "log.dirs=/"]);
        let error = unknown.settings(&ServeSettings::default(), &mut BrokerSettings::default()).unwrap_err();
        assert!(error.to_string().contains("num.partitions"), "{error}");
    }
}
