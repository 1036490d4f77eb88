//! Checks that columns as a module may return them are either rejected, or can be read, sliced, joined and encoded.

use millstream_record::{
    BatchBuilder, Column, Columns, ColumnsReader, Compression, HeaderColumns, Limits, RecordBatch,
};

/// Exclusive upper bound of the number of records; a few are enough to find errors.
const ENTRIES_MAX: u8 = 8;

/// Builds columns from the bytes as a module might return them, valid or not.
pub fn columns(data: &[u8]) {
    let mut bytes = Source(data);
    let records = bytes.next() % ENTRIES_MAX;
    let counts = if bytes.next() % 2 == 0 { 0 } else { bytes.count(records) };
    let counts: Vec<u32> = (0..counts).map(|_| u32::from(bytes.next() % 4)).collect();
    // Usually the sum of the counts, sometimes one more or less.
    let headers: u32 = counts.iter().sum();
    let headers = bytes.count(u8::try_from(headers).unwrap_or(u8::MAX));
    let columns = Columns {
        offsets: (0..bytes.count(records)).map(|at| i64::from(bytes.next()) + i64::from(at) * 256).collect(),
        timestamps_ms: (0..bytes.count(records)).map(|_| bytes.number()).collect(),
        keys: bytes.column(records),
        values: bytes.column(records),
        headers: HeaderColumns { counts, names: bytes.column(headers), values: bytes.column(headers) },
    };
    match columns.check() {
        Ok(()) => sound(&columns),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Checks every operation on columns that passed the check.
fn sound(columns: &Columns) {
    let HeaderColumns { names, values, .. } = &columns.headers;
    for column in [&columns.keys, &columns.values, names, values] {
        assert!(column.lengths.iter().all(|length| *length >= -1), "{:?}", column.lengths);
    }
    let reader = ColumnsReader::new(columns);
    let mut rows = Columns::default();
    let mut builder = BatchBuilder::new(Compression::None);
    for index in 0..columns.len() {
        let row = reader.row(index);
        rows.push(row.offset, row.timestamp_ms, row.key, row.value, reader.headers(index));
        reader.push_to(&mut builder, index);
    }
    same(&rows, columns);
    let all: Vec<u32> = (0..columns.len() as u32).collect();
    same(&columns.gather(&all), columns);
    same(&columns.select(&vec![1; columns.len()]), columns);
    for cut in 0..=columns.len() {
        let mut joined = columns.slice(0..cut);
        joined.extend(&columns.slice(cut..columns.len()));
        same(&joined, columns);
    }
    let odd: Vec<u8> = (0..columns.len()).map(|index| (index % 2) as u8).collect();
    let odd_ones: Vec<u32> = all.iter().copied().filter(|index| index % 2 == 1).collect();
    same(&columns.select(&odd), &columns.gather(&odd_ones));

    let Some(batch) = builder.finish() else { return assert!(columns.is_empty()) };
    let limits = Limits::default();
    let batch = RecordBatch::check(batch.into_bytes(), &limits).expect("a built batch is valid");
    let mut read = Columns::default();
    read.append_batch(&batch, 0, &limits).expect("a built batch can be read");
    // A batch assigns its own offsets.
    read.offsets.clone_from(&columns.offsets);
    same(&read, columns);
}

/// Compares the records. Columns without headers have two equivalent representations.
fn same(left: &Columns, right: &Columns) {
    left.check().expect("columns made from valid columns are valid");
    assert_eq!(left.len(), right.len());
    let (left_rows, right_rows) = (ColumnsReader::new(left), ColumnsReader::new(right));
    for index in 0..left.len() {
        assert_eq!(left_rows.row(index), right_rows.row(index));
        assert!(left_rows.headers(index).eq(right_rows.headers(index)));
    }
}

/// An endless source of bytes: zeros follow the input.
struct Source<'d>(&'d [u8]);

impl Source<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> i64 {
        // Covers a wide range of magnitudes, with many small numbers. A batch stores the differences between
        // timestamps.
        i64::from(self.next()) << (self.next() % 40)
    }

    /// Returns the correct number most of the time, and otherwise one more or one less.
    fn count(&mut self, right: u8) -> u8 {
        match self.next() {
            254 => right.saturating_sub(1),
            255 => right.saturating_add(1),
            _ => right,
        }
    }

    fn column(&mut self, entries: u8) -> Column {
        let entries = self.count(entries);
        let lengths: Vec<i32> = (0..entries)
            .map(|_| match self.next() {
                200 => i32::MAX,
                201 => i32::MIN,
                202 => -2,
                byte if byte > 202 => -1,
                byte => i32::from(byte % 16),
            })
            .collect();
        let right = lengths.iter().map(|length| i64::from(*length).max(0)).sum::<i64>();
        let right = u8::try_from(right).unwrap_or(u8::MAX);
        Column { bytes: (0..self.count(right)).map(|_| self.next()).collect(), lengths }
    }
}
