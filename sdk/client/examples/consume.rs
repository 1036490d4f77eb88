//! Reads a topic from its first record to its last, or, as a member of a group, from the group's committed offsets.
//!
//! `MILLSTREAM_SERVER=127.0.0.1:7070 cargo run -p millstream-client --example consume -- TOPIC [GROUP]`

use anyhow::Result;
use millstream_client::{Client, ConsumerSettings, Position};

#[tokio::main]
async fn main() -> Result<()> {
    let server = std::env::var("MILLSTREAM_SERVER").unwrap_or_else(|_| "127.0.0.1:7070".to_owned());
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "greetings".to_owned());

    let mut settings = ConsumerSettings::topic(topic).from(Position::Earliest).until_end();
    settings.group = arguments.next();

    let client = Client::new(&server)?;
    let mut consumer = client.consumer(settings)?;
    let mut count = 0;
    while let Some(records) = consumer.next_batch().await {
        let records = records?;
        for record in &records {
            let record = record?;
            let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            println!(
                "partition {}, offset {}: {} = {}",
                records.partition(),
                record.offset,
                text(record.key).unwrap_or_default(),
                text(record.value).unwrap_or_default(),
            );
            count += 1;
        }
    }
    println!("{count} records");
    consumer.close().await?;
    Ok(())
}
