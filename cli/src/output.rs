//! Output to stdout: text, JSON and tables, through one locked buffer. If the reader closes the pipe (`| head`), the
//! result is [`OutputError::Closed`], which ends the command without an error message.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::os::fd::AsFd;

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, ContentArrangement, presets};
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

/// Size of the output buffer, large enough that records are written with few system calls.
const BUFFER_BYTES: usize = 256 << 10;

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// The `--output` option of commands that list or describe.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Output format: text for people, or JSON for programs
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) output: Format,
}

impl OutputArgs {
    /// Returns whether JSON was requested.
    pub(crate) fn json(&self) -> bool {
        self.output == Format::Json
    }
}

/// An error that occurred while writing to stdout.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The reader closed the pipe, which is not reported as an error.
    #[error("the reader of this command's output closed it")]
    Closed,
    /// Another error, for example a full disk.
    #[error("cannot write to stdout: {0}")]
    Io(io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Io(error) }
    }
}

impl From<serde_json::Error> for OutputError {
    fn from(error: serde_json::Error) -> Self {
        Self::from(io::Error::from(error))
    }
}

/// Locked and buffered stdout. Call [`Out::finish`] at the end.
#[derive(Debug)]
pub(crate) struct Out {
    to: BufWriter<StdoutLock<'static>>,
}

impl Out {
    /// Locks stdout.
    pub(crate) fn new() -> Self {
        Self { to: BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock()) }
    }

    /// Writes one line of text.
    pub(crate) fn line(&mut self, line: impl Display) -> Result<(), OutputError> {
        Ok(writeln!(self.to, "{line}")?)
    }

    /// Writes one indented JSON document, for commands that list or describe.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), OutputError> {
        serde_json::to_writer_pretty(&mut self.to, value)?;
        Ok(self.to.write_all(b"\n")?)
    }

    /// Writes one JSON document on one line, for commands that stream.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> Result<(), OutputError> {
        serde_json::to_writer(&mut self.to, value)?;
        Ok(self.to.write_all(b"\n")?)
    }

    /// Writes a table.
    pub(crate) fn table(&mut self, table: &Table) -> Result<(), OutputError> {
        self.line(table.table.trim_fmt())
    }

    /// Returns the writer, for raw bytes.
    pub(crate) fn writer(&mut self) -> &mut impl Write {
        &mut self.to
    }

    /// Passes the buffered output on to the reader.
    pub(crate) fn flush(&mut self) -> Result<(), OutputError> {
        Ok(self.to.flush()?)
    }

    /// Flushes the remaining output.
    pub(crate) fn finish(mut self) -> Result<(), OutputError> {
        self.flush()
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Left-aligned.
    Text(&'static str),
    /// Right-aligned.
    Number(&'static str),
}

/// A table without borders, so that it can be copied easily and suits `grep` and `awk`.
#[derive(Debug)]
pub(crate) struct Table {
    table: comfy_table::Table,
}

impl Table {
    /// Creates a table with a header.
    pub(crate) fn new(columns: &[Column]) -> Self {
        let mut table = Self::plain();
        let titles = columns.iter().map(|column| match column {
            Column::Text(title) | Column::Number(title) => title.to_uppercase(),
        });
        table.table.set_header(titles.collect::<Vec<_>>());
        for (index, column) in columns.iter().enumerate() {
            if let (Column::Number(_), Some(of)) = (column, table.table.column_mut(index)) {
                of.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.pad();
        table
    }

    /// Creates a table of names and values, one per line, for commands that describe.
    pub(crate) fn fields<'f>(fields: impl IntoIterator<Item = (&'f str, String)>) -> Self {
        let mut table = Self::plain();
        for (name, value) in fields {
            table.row([name.to_owned(), value]);
        }
        table.pad();
        table
    }

    /// Adds a row with one cell per column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.table.add_row(cells);
    }

    fn plain() -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        Self { table }
    }

    fn pad(&mut self) {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
    }
}

/// Returns whether stdout is a terminal.
pub(crate) fn to_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Returns whether stdout is a file, in which case the terminal is free to show progress.
pub(crate) fn to_file() -> bool {
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from);
    stdout.and_then(|stdout| stdout.metadata()).is_ok_and(|metadata| metadata.is_file())
}

/// Completes when the reader of a pipe on stdout closes it, so that a command that waits for records notices this
/// without another record. Never completes if stdout is a file.
pub(crate) async fn closed() {
    // The unchecked constructor leaves the pipe in blocking mode, which other processes that share it rely on.
    let stdout = io::stdout().as_fd().try_clone_to_owned().and_then(Sender::from_owned_fd_unchecked);
    if let Ok(stdout) = stdout {
        while let Ok(ready) = stdout.ready(Interest::ERROR).await {
            if ready.is_error() || ready.is_write_closed() {
                return;
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::new(&[Column::Text("topic"), Column::Number("records"), Column::Text("note")]);
        table.row(["flights".into(), "5".into(), String::new()]);
        table.row(["a".into(), "20,000".into(), "x".into()]);
        let shown = table.table.trim_fmt();
        assert_eq!(shown, "TOPIC    RECORDS  NOTE\nflights        5\na         20,000  x");
    }
}
