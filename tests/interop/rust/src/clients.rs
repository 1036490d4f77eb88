//! Clients with the settings that all programs here need.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::util::Timeout;

use crate::Outcome;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Returns a client's settings.
pub(crate) fn config(address: &str, settings: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address);
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config
}

/// A producer that keeps the first error of a record.
#[derive(Default)]
pub(crate) struct Failures(std::sync::Mutex<Option<KafkaError>>);

impl rdkafka::ClientContext for Failures {}

impl rdkafka::producer::ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &rdkafka::producer::DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = delivered {
            self.0.lock().unwrap().get_or_insert_with(|| error.clone());
        }
    }
}

pub(crate) type Sender = ThreadedProducer<Failures>;

pub(crate) fn producer(address: &str, settings: &[(&str, &str)]) -> Outcome<Sender> {
    Ok(config(address, settings).create_with_context(Failures::default())?)
}

/// Sends a record, once the queue has room for it.
pub(crate) fn queue(to: &Sender, mut record: BaseRecord<'_, [u8], [u8]>) -> Outcome {
    loop {
        match to.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(rdkafka::types::RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

/// Waits until all records are acknowledged.
pub(crate) fn flush(to: &Sender) -> Outcome {
    to.flush(Timeout::After(2 * PATIENCE))?;
    match to.context().0.lock().unwrap().take() {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Sends records with these values and no key.
pub(crate) fn send<V: AsRef<[u8]>>(to: &Sender, topic: &str, values: impl IntoIterator<Item = V>) -> Outcome {
    for value in values {
        queue(to, BaseRecord::to(topic).payload(value.as_ref()))?;
    }
    flush(to)
}

/// A member of a group that reads from the begin and commits nothing by itself.
pub(crate) fn consumer(address: &str, group: &str, settings: &[(&str, &str)]) -> Outcome<BaseConsumer> {
    let usual = [("group.id", group), ("auto.offset.reset", "earliest"), ("enable.auto.commit", "false")];
    Ok(config(address, &[&usual, settings].concat()).create()?)
}

/// Reads as many records.
pub(crate) fn read<T>(of: &BaseConsumer, count: usize, each: impl Fn(&BorrowedMessage<'_>) -> T) -> Outcome<Vec<T>> {
    let (until, mut records) = (Instant::now() + 2 * PATIENCE, Vec::new());
    while records.len() < count {
        if Instant::now() > until {
            return Err(format!("only {} of {count} records came", records.len()).into());
        }
        match of.poll(Duration::from_millis(200)) {
            Some(Ok(record)) => records.push(each(&record)),
            // Servers that are killed meanwhile are expected, and librdkafka connects again.
            Some(Err(KafkaError::MessageConsumption(code))) if is_transport(code) => {}
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    Ok(records)
}

fn is_transport(code: rdkafka::types::RDKafkaErrorCode) -> bool {
    use rdkafka::types::RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, UnknownTopicOrPartition};
    matches!(code, BrokerTransportFailure | AllBrokersDown | UnknownTopicOrPartition)
}

pub(crate) fn value(record: &BorrowedMessage<'_>) -> String {
    String::from_utf8_lossy(record.payload().unwrap_or_default()).into_owned()
}

pub(crate) fn admin(address: &str) -> Outcome<AdminClient<DefaultClientContext>> {
    Ok(config(address, &[]).create()?)
}

/// Creates topics.
pub(crate) fn create(address: &str, names: &[String], partitions: i32) -> Outcome {
    let topics: Vec<_> = names.iter().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1))).collect();
    for created in futures_executor::block_on(admin(address)?.create_topics(&topics, &AdminOptions::new()))? {
        created.map_err(|(name, code)| format!("{name}: {code}"))?;
    }
    Ok(())
}
