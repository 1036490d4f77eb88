//! The Rust client of Millstream: [`Producer`], [`Consumer`] and [`Admin`], over gRPC.
//!
//! Start at [`Client`]. Everything runs on tokio.
//!
//! # Producing
//! ```no_run
//! use millstream_client::{Client, ProducerRecord, ProducerSettings};
//!
//! # async fn run() -> Result<(), millstream_client::ClientError> {
//! let client = Client::new("127.0.0.1:7070")?;
//! let producer = client.producer(ProducerSettings::default());
//! // Waits only until the buffer has room; records are sent in batches.
//! let delivery = producer.send(ProducerRecord::keyed("flights", "LIS", "late")).await?;
//! // Waits until the record is on disk. It is stored once, even if connections are lost meanwhile.
//! let stored = delivery.await?;
//! println!("partition {}, offset {}", stored.partition, stored.offset);
//! producer.close().await
//! # }
//! ```
//!
//! # Consuming
//! ```no_run
//! use millstream_client::{Client, ConsumerSettings, Position};
//!
//! # async fn run() -> Result<(), millstream_client::ClientError> {
//! let client = Client::new("127.0.0.1:7070")?;
//! let settings = ConsumerSettings::topic("flights").group("arrivals").from(Position::Earliest);
//! let mut consumer = client.consumer(settings)?;
//! while let Some(record) = consumer.next().await {
//!     let record = record?;
//!     println!("{}: {:?}", record.offset, record.value);
//! }
//! consumer.close().await
//! # }
//! ```
//!
//! [`Consumer::next_batch`] returns many records at once and does not copy them. Use it to read millions of records.

mod admin;
mod backoff;
mod client;
mod consumer;
mod error;
mod position;
mod producer;

pub use admin::Admin;
pub use client::{Client, ClientSettings};
pub use consumer::{Assignment, CommitMode, ConsumedRecord, Consumer, ConsumerSettings, RecordSet, RecordSetIter};
pub use error::ClientError;
pub use millstream_api::v1;
pub use millstream_record::{BatchError, Compression, Header, RecordView};
pub use position::Position;
pub use producer::{Delivery, Producer, ProducerRecord, ProducerSettings, RecordMetadata, RecordRef, TopicProducer};
