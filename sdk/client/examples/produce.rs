//! Sends records to a topic and waits until they are on disk.
//!
//! `MILLSTREAM_SERVER=127.0.0.1:7070 cargo run -p millstream-client --example produce -- TOPIC COUNT`

use anyhow::Result;
use millstream_client::{Client, ClientError, ProducerRecord, ProducerSettings, v1};

#[tokio::main]
async fn main() -> Result<()> {
    let server = std::env::var("MILLSTREAM_SERVER").unwrap_or_else(|_| "127.0.0.1:7070".to_owned());
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "greetings".to_owned());
    let count: u32 = arguments.next().map_or(Ok(10), |count| count.parse())?;

    let client = Client::new(&server)?;
    match client.admin().create_topic(&topic, Some(2), v1::TopicSettings::default()).await {
        Ok(_) => println!("created topic {topic}"),
        Err(error) if error.code() == Some(v1::ErrorCode::AlreadyExists) => {}
        Err(error) => return Err(error.into()),
    }

    let producer = client.producer(ProducerSettings::default());
    let mut deliveries = Vec::new();
    for number in 0..count {
        let record = ProducerRecord::keyed(topic.as_str(), format!("key-{}", number % 5), format!("hello {number}"));
        deliveries.push(producer.send(record).await?);
    }
    for delivery in deliveries {
        match delivery.await {
            Ok(stored) => println!("partition {}, offset {}", stored.partition, stored.offset),
            Err(error @ ClientError::UnknownOutcome { .. }) => println!("check before sending again: {error}"),
            Err(error) => return Err(error.into()),
        }
    }
    producer.close().await?;
    Ok(())
}
