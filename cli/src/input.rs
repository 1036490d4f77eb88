//! Converts lines to records. The input is a file, a `.gz` file or stdin, with one record per line; the key and the
//! timestamp are optionally taken from fields of the line. Every line becomes a record, or an error that names the
//! line; no line is dropped.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use clap::Args;
use flate2::read::MultiGzDecoder;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{text, timestamp};

/// Maximum length of a line, in bytes: the size of the largest record that any topic may allow.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Number of bytes to read at a time.
const READ_BYTES: usize = 256 << 10;

/// Maximum number of characters of a line shown in an error.
const SHOWN_CHARS: usize = 80;

/// The fields of a JSON line to use as the record's key and timestamp.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct FieldArgs {
    /// The JSON field to use as the record's key: a string or another scalar; `a.b` is field b in object a
    #[arg(long, value_name = "FIELD")]
    pub(crate) key_field: Option<String>,
    /// The JSON field to use as the record's timestamp: RFC 3339, `YYYY-MM-DD HH:MM[:SS[.fff]]`, `YYYY/MM/DD HH:MM`
    /// (UTC if no zone is given), or seconds or milliseconds since 1970
    #[arg(long, value_name = "FIELD")]
    pub(crate) timestamp_field: Option<String>,
    /// The unit of a timestamp that is a number [default: seconds or milliseconds, depending on its size]
    #[arg(long, value_name = "UNIT", value_enum, requires = "timestamp_field")]
    pub(crate) timestamp_unit: Option<timestamp::Unit>,
}

/// A line of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Line number, starting at 1.
    pub(crate) number: u64,
    /// The value of the `--key-field`.
    pub(crate) key: Option<Bytes>,
    /// The value of the `--timestamp-field`, in milliseconds since the epoch.
    pub(crate) timestamp_ms: Option<i64>,
    /// The line without its line ending.
    pub(crate) value: Bytes,
}

/// A line that cannot be converted to a record.
#[derive(Debug, thiserror::Error)]
#[error("{name}:{number}: {reason}")]
pub(crate) struct LineError {
    /// The file's name.
    pub(crate) name: Arc<str>,
    /// Line number, starting at 1.
    pub(crate) number: u64,
    reason: String,
}

/// An error that ends the reading of the input.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// The file does not exist, or may not be read.
    #[error("cannot open {}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// Reading failed, or the gzip data is damaged.
    #[error("cannot read {name} after line {lines}: {error}")]
    Read {
        /// The file's name.
        name: Arc<str>,
        /// Number of lines read before the error.
        lines: u64,
        /// The cause.
        error: io::Error,
    },
    /// The line is longer than any record may be.
    #[error("{name}:{number}: the line is longer than {}, the maximum size of a record", text::size(LINE_BYTES_MAX as u64))]
    LineTooLong {
        /// The file's name.
        name: Arc<str>,
        /// Line number, starting at 1.
        number: u64,
    },
}

/// Consecutive lines, with an error in place of each line that cannot be converted.
pub(crate) type Block = Vec<Result<Line, LineError>>;

/// Reads lines from a file or from stdin.
pub(crate) struct Input {
    name: Arc<str>,
    from: Box<dyn Read + Send>,
    fields: FieldArgs,
    size_bytes: Option<u64>,
    read_bytes: Arc<AtomicU64>,
    buffer: BytesMut,
    lines: u64,
    at_end: bool,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({}, {} lines read)", self.name, self.lines)
    }
}

impl Input {
    /// Opens a file, or stdin if `path` is `None` or `-`. A file whose name ends in `.gz` is decompressed.
    ///
    /// # Errors
    /// [`InputError::Open`].
    pub(crate) fn open(path: Option<&Path>, fields: FieldArgs) -> Result<Self, InputError> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return Ok(Self::new("stdin", Box::new(io::stdin()), fields));
        };
        let failed = |error| InputError::Open { path: path.to_owned(), error };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let read_bytes = Arc::new(AtomicU64::new(0));
        let file = Counted { file, read_bytes: read_bytes.clone() };
        let from: Box<dyn Read + Send> = if path.extension().is_some_and(|extension| extension == "gz") {
            Box::new(MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, file)))
        } else {
            Box::new(file)
        };
        let mut input = Self::new(&path.display().to_string(), from, fields);
        input.read_bytes = read_bytes;
        input.size_bytes = metadata.is_file().then_some(metadata.len());
        Ok(input)
    }

    fn new(name: &str, from: Box<dyn Read + Send>, fields: FieldArgs) -> Self {
        Self {
            name: name.into(),
            from,
            fields,
            size_bytes: None,
            read_bytes: Arc::default(),
            buffer: BytesMut::new(),
            lines: 0,
            at_end: false,
        }
    }

    /// Returns the file's name, or `stdin`.
    pub(crate) fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Returns the size of the file on disk, before decompression, or `None` if the input is not a regular file.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// Returns the counter of bytes read from the file, out of [`Self::size_bytes`].
    pub(crate) fn read_bytes(&self) -> Arc<AtomicU64> {
        self.read_bytes.clone()
    }

    /// Returns the next complete lines as soon as there is at least one, or `None` at the end. Blocks.
    ///
    /// # Errors
    /// [`InputError::Read`] and [`InputError::LineTooLong`]. All lines before the error were returned.
    pub(crate) fn next_block(&mut self) -> Result<Option<Block>, InputError> {
        let mut searched = 0;
        loop {
            if let Some(last) = memchr::memrchr(b'\n', &self.buffer[searched..]) {
                let lines = self.buffer.split_to(searched + last + 1).freeze();
                return Ok(Some(self.split(lines)));
            }
            searched = self.buffer.len();
            if self.at_end {
                let rest = self.buffer.split().freeze();
                return Ok((!rest.is_empty()).then(|| self.split(rest)));
            }
            if searched > LINE_BYTES_MAX {
                return Err(InputError::LineTooLong { name: self.name.clone(), number: self.lines + 1 });
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<(), InputError> {
        let before = self.buffer.len();
        self.buffer.resize(before + READ_BYTES, 0);
        let read = loop {
            match self.from.read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.at_end = true,
            Ok(_) => {}
            Err(error) => return Err(InputError::Read { name: self.name.clone(), lines: self.lines, error }),
        }
        Ok(())
    }

    fn split(&mut self, lines: Bytes) -> Block {
        let mut block = Vec::with_capacity(lines.len() / 64);
        let mut start = 0;
        while start < lines.len() {
            let end = memchr::memchr(b'\n', &lines[start..]).map_or(lines.len(), |length| start + length);
            let line = lines.slice(start..end);
            let line = line.strip_suffix(b"\r").map_or(line.clone(), |text| line.slice_ref(text));
            self.lines += 1;
            let number = self.lines;
            block.push(to_line(line, number, &self.fields).map_err(|reason| LineError {
                name: self.name.clone(),
                number,
                reason,
            }));
            start = end + 1;
        }
        block
    }
}

struct Counted {
    file: File,
    read_bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

fn to_line(value: Bytes, number: u64, fields: &FieldArgs) -> Result<Line, String> {
    let mut line = Line { number, key: None, timestamp_ms: None, value };
    let wanted = [fields.key_field.as_deref(), fields.timestamp_field.as_deref()];
    if wanted == [None, None] {
        return Ok(line);
    }
    let [key, time] = pick(&line.value, wanted)?;
    if let Some(name) = wanted[0] {
        line.key = Some(to_key(&line.value, name, key)?);
    }
    if let Some(name) = wanted[1] {
        line.timestamp_ms = Some(to_timestamp(&line.value, name, fields.timestamp_unit, time)?);
    }
    Ok(line)
}

fn to_key(line: &Bytes, name: &str, found: Option<&RawValue>) -> Result<Bytes, String> {
    let found = found.ok_or_else(|| lacks(line, name))?.get();
    match found.as_bytes().first() {
        Some(b'"') => match plain_string(found) {
            Some(text) => Ok(line.slice_ref(text.as_bytes())),
            None => Ok(Bytes::from(unescaped(found)?)),
        },
        Some(b'{' | b'[' | b'n') => Err(format!(
            "field {name:?} holds {}, which cannot be a key: use a string, a number or a bool",
            shortened(found)
        )),
        _ => Ok(line.slice_ref(found.as_bytes())),
    }
}

fn to_timestamp(
    line: &Bytes,
    name: &str,
    unit: Option<timestamp::Unit>,
    found: Option<&RawValue>,
) -> Result<i64, String> {
    let found = found.ok_or_else(|| lacks(line, name))?.get();
    let text = match found.as_bytes().first() {
        Some(b'"') => {
            plain_string(found).map_or_else(|| unescaped(found).map(Cow::Owned), |text| Ok(Cow::Borrowed(text)))?
        }
        _ => Cow::Borrowed(found),
    };
    let time = timestamp::parse_in(unit, &text);
    time.ok_or_else(|| {
        let shown = shortened(found);
        if unit.is_none() && timestamp::is_finer_than_ms(&text) {
            return format!(
                "field {name:?} holds {shown}, which is too large for milliseconds: if it counts micro- or nanoseconds, \
                 set --timestamp-unit us or ns"
            );
        }
        format!("field {name:?} holds {shown}, which is not a valid time: use {}", timestamp::FORMS)
    })
}

/// Returns the content of a JSON string that has no escapes.
fn plain_string(found: &str) -> Option<&str> {
    found.strip_prefix('"')?.strip_suffix('"').filter(|text| !text.contains('\\'))
}

fn unescaped(found: &str) -> Result<String, String> {
    serde_json::from_str(found).map_err(|error| format!("{} is not a valid string: {error}", shortened(found)))
}

fn lacks(line: &[u8], name: &str) -> String {
    format!("there is no field {name:?} in {}", shortened(&String::from_utf8_lossy(line)))
}

fn shortened(found: &str) -> String {
    let shown = text::escaped(found.as_bytes());
    match shown.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// Returns the fields at the given paths, as they are written in the line.
fn pick<'l>(line: &'l [u8], wanted: [Option<&str>; 2]) -> Result<[Option<&'l RawValue>; 2], String> {
    let mut found = [None, None];
    let mut parser = serde_json::Deserializer::from_slice(line);
    let picked = Pick { wanted, found: &mut found }.deserialize(&mut parser).and_then(|()| parser.end());
    match picked {
        Ok(()) => Ok(found),
        // The line, or the value at an inner name of a path, is not an object.
        Err(error) if error.is_data() => Err(lacks(line, wanted.into_iter().flatten().next().unwrap_or_default())),
        Err(_) if line.is_empty() => Err("not JSON: the line is empty".into()),
        Err(error) => {
            let reason = error.to_string().replace(" at line 1 column ", " at column ");
            Err(format!("not JSON: {reason}; found: {}", shortened(&String::from_utf8_lossy(line))))
        }
    }
}

/// Visitor that finds the wanted fields without building the other values.
struct Pick<'p, 'l> {
    /// The rest of each path, relative to this object.
    wanted: [Option<&'p str>; 2],
    found: &'p mut [Option<&'l RawValue>; 2],
}

impl<'l> DeserializeSeed<'l> for Pick<'_, 'l> {
    type Value = ();

    fn deserialize<D: Deserializer<'l>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'l> Visitor<'l> for Pick<'_, 'l> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'l>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(steps) = map.next_key_seed(Name { wanted: self.wanted })? {
            let inside = steps.map(|step| if let Step::Inside(rest) = step { Some(rest) } else { None });
            let any_inside = inside != [None, None];
            if steps.contains(&Step::Here) {
                let value: &RawValue = map.next_value()?;
                for (found, step) in self.found.iter_mut().zip(steps) {
                    if step == Step::Here {
                        *found = Some(value);
                    }
                }
                if any_inside {
                    let mut parser = serde_json::Deserializer::from_str(value.get());
                    let pick = Pick { wanted: inside, found: self.found };
                    pick.deserialize(&mut parser).map_err(M::Error::custom)?;
                }
            } else if any_inside {
                map.next_value_seed(Pick { wanted: inside, found: self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Relation of a field to a wanted path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step<'p> {
    Beside,
    Here,
    Inside(&'p str),
}

/// Compares a field's name with the wanted paths.
struct Name<'p> {
    wanted: [Option<&'p str>; 2],
}

impl<'l, 'p> DeserializeSeed<'l> for Name<'p> {
    type Value = [Step<'p>; 2];

    fn deserialize<D: Deserializer<'l>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Name<'p> {
    type Value = [Step<'p>; 2];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.wanted.map(|path| match path.and_then(|path| path.strip_prefix(name)) {
            Some("") => Step::Here,
            Some(rest) => rest.strip_prefix('.').map_or(Step::Beside, Step::Inside),
            None => Step::Beside,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8], key: Option<&str>, time: Option<&str>) -> Vec<Result<Line, String>> {
        let fields = FieldArgs {
            key_field: key.map(str::to_owned),
            timestamp_field: time.map(str::to_owned),
            timestamp_unit: None,
        };
        // Reads one byte at a time, because the lines must not depend on where reads end.
        let reads = OneByOne(bytes.to_vec().into());
        let mut input = Input::new("f.ndjson", Box::new(reads), fields);
        let mut lines = Vec::new();
        while let Some(block) = input.next_block().unwrap() {
            lines.extend(block.into_iter().map(|line| line.map_err(|error| error.to_string())));
        }
        lines
    }

    struct OneByOne(std::collections::VecDeque<u8>);

    impl Read for OneByOne {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(self.0.pop_front().map_or(0, |byte| {
                buffer[0] = byte;
                1
            }))
        }
    }

    fn values(bytes: &[u8]) -> Vec<Bytes> {
        read(bytes, None, None).into_iter().map(|line| line.unwrap().value).collect()
    }

    #[test]
    fn a_line_is_a_record() {
        assert_eq!(values(b"a\nb\n"), ["a", "b"]);
        assert_eq!(values(b"a\r\n\nb"), ["a", "", "b"]);
        assert_eq!(values(b"\n"), [""]);
        assert_eq!(values(b""), [""; 0]);
        assert_eq!(values(b"\xff\x00\n"), [&b"\xff\x00"[..]]);
    }

    #[test]
    fn keys_and_times_come_from_fields() {
        let line = br#"{"n":{"skip":[1,{"k":"no"}]},"a":{"k":"x\u00e9","t":"2001/01/01 00:47"},"id":1.0,"ok":true}"#;
        let one = |key, time| read(line, key, time).remove(0).unwrap();
        let both = one(Some("a.k"), Some("a.t"));
        assert_eq!(both.key.as_deref(), Some("xé".as_bytes()));
        assert_eq!(both.timestamp_ms, Some(978_310_020_000));
        assert_eq!(both.value, &line[..]);
        assert_eq!(one(Some("id"), None).key.as_deref(), Some(&b"1.0"[..]));
        assert_eq!(one(Some("ok"), None).key.as_deref(), Some(&b"true"[..]));
        assert_eq!(
            read(br#"{"a.b":7,"t":1714564800}"#, Some("a.b"), Some("t"))[0].as_ref().unwrap().timestamp_ms,
            Some(1_714_564_800_000)
        );
        assert_eq!(
            read(br#"{"k":"a","k":"b"}"#, Some("k"), Some("k"))[0].as_ref().unwrap_err(),
            "f.ndjson:1: field \"k\" holds \"b\", which is not a valid time: use RFC 3339 (2024-05-01T12:00:00Z), YYYY-MM-DD HH:MM[:SS[.fff]] or YYYY/MM/DD HH:MM (UTC if no zone is given), or seconds or milliseconds since 1970"
        );
    }

    #[test]
    fn a_line_that_is_no_record_is_named_with_what_was_found() {
        let lines = read(b"{\"k\":1}\nhello\n\n{\"k\":null}\n{\"j\":1}\n[1]\n{\"k\":1} x\n", Some("k"), None);
        let errors: Vec<_> = lines.into_iter().map(|line| line.err().unwrap_or_default()).collect();
        assert_eq!(
            errors,
            [
                "",
                "f.ndjson:2: not JSON: expected value at column 1; found: hello",
                "f.ndjson:3: not JSON: the line is empty",
                "f.ndjson:4: field \"k\" holds null, which cannot be a key: use a string, a number or a bool",
                "f.ndjson:5: there is no field \"k\" in {\"j\":1}",
                "f.ndjson:6: there is no field \"k\" in [1]",
                "f.ndjson:7: not JSON: trailing characters at column 9; found: {\"k\":1} x",
            ]
        );
    }

    #[test]
    fn gzip_files_are_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.ndjson.gz");
        let mut gzip = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        gzip.write_all(b"a\nb\n").unwrap();
        gzip.finish().unwrap();
        let mut input = Input::open(Some(&path), FieldArgs::default()).unwrap();
        assert_eq!(input.next_block().unwrap().unwrap().len(), 2);
        assert!(input.next_block().unwrap().is_none());
        assert_eq!(input.read_bytes().load(Ordering::Relaxed), input.size_bytes().unwrap());
    }
}
