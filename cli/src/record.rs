//! How records are printed: as text, the value as it is, or as JSON.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::ValueEnum;
use millstream_record::RecordView;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::output::{self, Format, Out, OutputError};
use crate::{text, timestamp};

/// A part of a record, for text output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The topic
    Topic,
    /// The partition
    Partition,
    /// The offset
    Offset,
    /// The timestamp, in UTC
    Timestamp,
    /// The key
    Key,
    /// The headers, as name=value
    Headers,
    /// The value
    Value,
}

/// Prints records, all in one way.
#[derive(Debug)]
pub(crate) struct Printer {
    format: Format,
    parts: Vec<Part>,
    /// Text that can move a terminal's cursor or worse is shown instead of sent there.
    escape: bool,
}

impl Printer {
    /// Text has these parts, with tabs between them; JSON has all.
    pub(crate) fn new(format: Format, parts: Vec<Part>) -> Self {
        Self { format, parts, escape: output::to_terminal() }
    }

    /// One record, on a line.
    pub(crate) fn print(
        &self,
        out: &mut Out,
        topic: &str,
        partition: u32,
        record: &RecordView<'_>,
    ) -> Result<(), OutputError> {
        match self.format {
            Format::Json => out.json_line(&Json { topic, partition, record }),
            Format::Text => Ok(self.print_text(out.writer(), topic, partition, record)?),
        }
    }

    fn print_text(&self, to: &mut impl Write, topic: &str, partition: u32, record: &RecordView<'_>) -> io::Result<()> {
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                to.write_all(b"\t")?;
            }
            match part {
                Part::Topic => to.write_all(topic.as_bytes())?,
                Part::Partition => write!(to, "{partition}")?,
                Part::Offset => write!(to, "{}", record.offset)?,
                Part::Timestamp => to.write_all(timestamp::format(record.timestamp_ms).as_bytes())?,
                Part::Key => to.write_all(one_line(record.key).as_bytes())?,
                Part::Headers => to.write_all(headers(record).as_bytes())?,
                Part::Value => self.value(to, record.value)?,
            }
        }
        to.write_all(b"\n")
    }

    fn value(&self, to: &mut impl Write, value: Option<&[u8]>) -> io::Result<()> {
        match value {
            None => to.write_all(b"null"),
            Some(value) => match std::str::from_utf8(value) {
                Err(_) => to.write_all(text::escaped(value).as_bytes()),
                Ok(shown) if self.escape && shown.chars().any(moves_cursor) => {
                    let lines: Vec<_> = shown.split('\n').map(|line| text::escaped(line.as_bytes())).collect();
                    to.write_all(lines.join("\n").as_bytes())
                }
                Ok(shown) => to.write_all(shown.as_bytes()),
            },
        }
    }
}

fn moves_cursor(character: char) -> bool {
    character.is_control() && !matches!(character, '\n' | '\t')
}

fn one_line(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "null".into(), text::escaped)
}

fn headers(record: &RecordView<'_>) -> String {
    let headers =
        record.headers().map(|(name, value)| format!("{}={}", text::escaped(name.as_bytes()), one_line(value)));
    headers.collect::<Vec<_>>().join(",")
}

/// Bytes in JSON: a string where they are UTF-8, else `{"base64": "…"}`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonBytes<'b>(pub(crate) &'b [u8]);

impl Serialize for JsonBytes<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => to.serialize_str(text),
            Err(_) => {
                let mut object = to.serialize_map(Some(1))?;
                object.serialize_entry("base64", &BASE64.encode(self.0))?;
                object.end()
            }
        }
    }
}

struct Json<'r> {
    topic: &'r str,
    partition: u32,
    record: &'r RecordView<'r>,
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut object = to.serialize_map(Some(7))?;
        object.serialize_entry("topic", self.topic)?;
        object.serialize_entry("partition", &self.partition)?;
        object.serialize_entry("offset", &self.record.offset)?;
        object.serialize_entry("timestamp", &self.record.timestamp_ms)?;
        object.serialize_entry("key", &self.record.key.map(JsonBytes))?;
        object.serialize_entry("value", &self.record.value.map(JsonBytes))?;
        object.serialize_entry("headers", &JsonHeaders(self.record))?;
        object.end()
    }
}

struct JsonHeaders<'r>(&'r RecordView<'r>);

impl Serialize for JsonHeaders<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Header<'h> {
            name: &'h str,
            value: Option<JsonBytes<'h>>,
        }
        let mut list = to.serialize_seq(Some(self.0.header_count() as usize))?;
        for (name, value) in self.0.headers() {
            list.serialize_element(&Header { name, value: value.map(JsonBytes) })?;
        }
        list.end()
    }
}
