//! Prints records as text or as JSON.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::ValueEnum;
use millstream_client::ConsumedRecord;
use millstream_record::RecordView;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::output::{self, Format, Out, OutputError};
use crate::{text, timestamp};

/// A part of a record that text output can print.
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

/// A record to print, independent of where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Shown<'r, H> {
    topic: &'r str,
    partition: u32,
    offset: u64,
    timestamp_ms: i64,
    key: Option<&'r [u8]>,
    value: Option<&'r [u8]>,
    headers: H,
}

type Header<'r> = (&'r str, Option<&'r [u8]>);

/// Returns a record that is still in its batch.
pub(crate) fn in_place<'r>(
    topic: &'r str,
    partition: u32,
    record: &RecordView<'r>,
) -> Shown<'r, impl Iterator<Item = Header<'r>> + Clone> {
    Shown {
        topic,
        partition,
        offset: record.offset.unsigned_abs(),
        timestamp_ms: record.timestamp_ms,
        key: record.key,
        value: record.value,
        headers: record.headers(),
    }
}

/// Returns a record that owns its data.
pub(crate) fn owned(record: &ConsumedRecord) -> Shown<'_, impl Iterator<Item = Header<'_>> + Clone> {
    Shown {
        topic: &record.topic,
        partition: record.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref())),
    }
}

/// Returns a record that was read directly from the log.
pub(crate) fn stored<'r>(
    topic: &'r str,
    partition: u32,
    record: &'r millstream_record::Record,
) -> Shown<'r, impl Iterator<Item = Header<'r>> + Clone> {
    Shown {
        topic,
        partition,
        offset: record.offset.unsigned_abs(),
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|header| (&*header.name, header.value.as_deref())),
    }
}

/// Prints records in one format.
#[derive(Debug)]
pub(crate) struct Printer {
    format: Format,
    parts: Vec<Part>,
    /// Whether control characters, which can move a terminal's cursor or do worse, are escaped.
    escape: bool,
}

impl Printer {
    /// Creates a printer. Text output has the given parts, separated by tabs; JSON output has all parts.
    pub(crate) fn new(format: Format, parts: Vec<Part>) -> Self {
        Self { format, parts, escape: output::to_terminal() }
    }

    /// Prints one record on a line.
    pub(crate) fn print<'r>(
        &self,
        out: &mut Out,
        record: &Shown<'r, impl Iterator<Item = Header<'r>> + Clone>,
    ) -> Result<(), OutputError> {
        match self.format {
            Format::Json => out.json_line(record),
            Format::Text => Ok(self.print_text(out.writer(), record)?),
        }
    }

    fn print_text<'r>(
        &self,
        to: &mut impl Write,
        record: &Shown<'r, impl Iterator<Item = Header<'r>> + Clone>,
    ) -> io::Result<()> {
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                to.write_all(b"\t")?;
            }
            match part {
                Part::Topic => to.write_all(record.topic.as_bytes())?,
                Part::Partition => write!(to, "{}", record.partition)?,
                Part::Offset => write!(to, "{}", record.offset)?,
                Part::Timestamp => to.write_all(timestamp::format(record.timestamp_ms).as_bytes())?,
                Part::Key => to.write_all(one_line(record.key).as_bytes())?,
                Part::Headers => to.write_all(headers(record.headers.clone()).as_bytes())?,
                Part::Value => self.value(to, record.value)?,
            }
        }
        to.write_all(b"\n")
    }

    fn value(&self, to: &mut impl Write, value: Option<&[u8]>) -> io::Result<()> {
        let Some(value) = value else { return to.write_all(b"null") };
        match std::str::from_utf8(value) {
            Err(_) => to.write_all(text::escaped(value).as_bytes()),
            Ok(shown) if self.escape && shown.chars().any(moves_cursor) => {
                let lines: Vec<_> = shown.split('\n').map(text::escaped_but_tabs).collect();
                to.write_all(lines.join("\n").as_bytes())
            }
            Ok(shown) => to.write_all(shown.as_bytes()),
        }
    }
}

fn moves_cursor(character: char) -> bool {
    character.is_control() && !matches!(character, '\n' | '\t')
}

fn one_line(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "null".into(), text::escaped)
}

fn headers<'r>(headers: impl Iterator<Item = Header<'r>>) -> String {
    let headers = headers.map(|(name, value)| format!("{}={}", text::escaped(name.as_bytes()), one_line(value)));
    headers.collect::<Vec<_>>().join(",")
}

/// Bytes as JSON: a string if they are UTF-8, otherwise `{"base64": "…"}`.
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

impl<'r, H: Iterator<Item = Header<'r>> + Clone> Serialize for Shown<'r, H> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut object = to.serialize_map(Some(7))?;
        object.serialize_entry("topic", self.topic)?;
        object.serialize_entry("partition", &self.partition)?;
        object.serialize_entry("offset", &self.offset)?;
        object.serialize_entry("timestamp", &self.timestamp_ms)?;
        object.serialize_entry("key", &self.key.map(JsonBytes))?;
        object.serialize_entry("value", &self.value.map(JsonBytes))?;
        object.serialize_entry("headers", &JsonHeaders(&self.headers))?;
        object.end()
    }
}

struct JsonHeaders<'h, H>(&'h H);

impl<'r, H: Iterator<Item = Header<'r>> + Clone> Serialize for JsonHeaders<'_, H> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct JsonHeader<'h> {
            name: &'h str,
            value: Option<JsonBytes<'h>>,
        }
        // The number of headers is not known in advance, because a malformed header ends the iteration.
        let mut list = to.serialize_seq(None)?;
        for (name, value) in self.0.clone() {
            list.serialize_element(&JsonHeader { name, value: value.map(JsonBytes) })?;
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [Part; 4] = [Part::Offset, Part::Key, Part::Headers, Part::Value];

    fn record(value: &'static [u8]) -> Shown<'static, impl Iterator<Item = Header<'static>> + Clone> {
        let headers = [("h", Some(&b"1"[..])), ("h", None)];
        Shown {
            topic: "t",
            partition: 2,
            offset: 7,
            timestamp_ms: 0,
            key: Some(b"a\tb"),
            value: Some(value),
            headers: headers.into_iter(),
        }
    }

    fn text(value: &'static [u8], escape: bool) -> String {
        let printer = Printer { format: Format::Text, parts: PARTS.to_vec(), escape };
        let mut line = Vec::new();
        printer.print_text(&mut line, &record(value)).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn text_is_printed_as_it_is_and_bytes_are_escaped() {
        assert_eq!(text("größe\t\u{1b}".as_bytes(), false), "7\ta\\tb\th=1,h=null\tgröße\t\u{1b}\n");
        assert_eq!(text("größe\t\u{1b}".as_bytes(), true), "7\ta\\tb\th=1,h=null\tgröße\t\\x1b\n");
        assert_eq!(text(b"\xffa", false), "7\ta\\tb\th=1,h=null\t\\xffa\n");
    }

    #[test]
    fn json_has_everything() {
        assert_eq!(
            serde_json::to_string(&record(b"\xff")).unwrap(),
            r#"{"topic":"t","partition":2,"offset":7,"timestamp":0,"key":"a\tb","value":{"base64":"/w=="},"headers":[{"name":"h","value":"1"},{"name":"h","value":null}]}"#
        );
    }
}
