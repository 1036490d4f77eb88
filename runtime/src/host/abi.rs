//! The shapes of `stage.wit`: borrowed on their way in, owned and checked on their way out.

use millstream_record::{Column, ColumnError, Columns, HeaderColumns};
use wasmtime::component::{ComponentType, Lift, Lower};

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(super) struct ColumnIn<'a> {
    lengths: &'a [i32],
    bytes: &'a [u8],
}

impl<'a> From<&'a Column> for ColumnIn<'a> {
    fn from(column: &'a Column) -> Self {
        Self { lengths: &column.lengths, bytes: &column.bytes }
    }
}

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(super) struct HeadersIn<'a> {
    counts: &'a [u32],
    names: ColumnIn<'a>,
    values: ColumnIn<'a>,
}

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(super) struct BatchIn<'a> {
    offsets: &'a [i64],
    timestamps: &'a [i64],
    keys: ColumnIn<'a>,
    values: ColumnIn<'a>,
    headers: HeadersIn<'a>,
}

impl<'a> From<&'a Columns> for BatchIn<'a> {
    fn from(columns: &'a Columns) -> Self {
        Self {
            offsets: &columns.offsets,
            timestamps: &columns.timestamps_ms,
            keys: (&columns.keys).into(),
            values: (&columns.values).into(),
            headers: HeadersIn {
                counts: &columns.headers.counts,
                names: (&columns.headers.names).into(),
                values: (&columns.headers.values).into(),
            },
        }
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct FailureOut {
    index: u32,
    reason: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct ColumnOut {
    lengths: Vec<i32>,
    bytes: Vec<u8>,
}

impl From<ColumnOut> for Column {
    fn from(column: ColumnOut) -> Self {
        Self { lengths: column.lengths, bytes: column.bytes }
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct HeadersOut {
    counts: Vec<u32>,
    names: ColumnOut,
    values: ColumnOut,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct FilteredOut {
    verdicts: Vec<u8>,
    failures: Vec<FailureOut>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct MappedOut {
    sources: Vec<u32>,
    timestamps: Option<Vec<i64>>,
    keys: Option<ColumnOut>,
    values: Option<ColumnOut>,
    headers: Option<HeadersOut>,
    failures: Vec<FailureOut>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct AddedOut {
    accumulators: ColumnOut,
    failures: Vec<FailureOut>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct FinishedOut {
    values: ColumnOut,
    failures: Vec<FailureOut>,
}

/// What a filter said, checked: `verdicts` has one entry a record, 1 to keep it.
#[derive(Debug)]
pub struct Filtered {
    /// 0 or 1, one a record. Failed records have 0.
    pub verdicts: Vec<u8>,
    /// Index of the record and why, ascending.
    pub failures: Vec<(u32, String)>,
}

/// What a map put out, checked: columns of equal length, sources in range and ascending, no output
/// of a failed record. A column that is `None` is the sources'.
#[derive(Debug)]
pub struct Mapped {
    /// For each output the index of its record.
    pub sources: Vec<u32>,
    /// In ms since the epoch.
    pub timestamps_ms: Option<Vec<i64>>,
    /// Keys.
    pub keys: Option<Column>,
    /// Values.
    pub values: Option<Column>,
    /// Headers.
    pub headers: Option<HeaderColumns>,
    /// Index of the record and why, ascending.
    pub failures: Vec<(u32, String)>,
}

/// What an aggregate's `add` made, checked: an accumulator a group.
#[derive(Debug)]
pub struct Added {
    /// One a group; null removes it.
    pub accumulators: Column,
    /// Index of the record and why, ascending.
    pub failures: Vec<(u32, String)>,
}

/// What an aggregate's `finish` made, checked: a value a group.
#[derive(Debug)]
pub struct Finished {
    /// One a group.
    pub values: Column,
    /// Index of the group and why, ascending.
    pub failures: Vec<(u32, String)>,
}

/// The longest reason of a failure that is kept, in bytes: it goes into headers and logs.
const REASON_BYTES_MAX: usize = 1_000;

const DROP: u8 = 0;
const KEEP: u8 = 1;
const FAILED: u8 = 2;

impl FilteredOut {
    pub(super) fn check(self, records: usize) -> Result<Filtered, String> {
        let Self { mut verdicts, failures } = self;
        if verdicts.len() != records {
            return Err(format!("{} verdicts for {records} records", verdicts.len()));
        }
        let failures = check_failures(failures, records, "record")?;
        let mut said = failures.iter().map(|(index, _)| *index as usize);
        let mut reserved = said.next();
        // One pass without branches finds whether there is anything but drop and keep.
        if verdicts.iter().fold(0, |all, verdict| all | verdict) > KEEP || reserved.is_some() {
            for (index, verdict) in verdicts.iter_mut().enumerate() {
                match *verdict {
                    DROP | KEEP if reserved != Some(index) => {}
                    FAILED if reserved == Some(index) => {
                        *verdict = DROP;
                        reserved = said.next();
                    }
                    FAILED => return Err(format!("verdict \"failed\" for record {index}, which is not in failures")),
                    DROP | KEEP => return Err(format!("a failure for record {index}, whose verdict is {verdict}")),
                    _ => return Err(format!("verdict {verdict} for record {index}: 0, 1 and 2 are known")),
                }
            }
        }
        Ok(Filtered { verdicts, failures })
    }
}

impl MappedOut {
    pub(super) fn check(self, records: usize) -> Result<Mapped, String> {
        let outputs = self.sources.len();
        if !self.sources.is_sorted() {
            return Err("the sources of its outputs do not ascend".into());
        }
        if let Some(&last) = self.sources.last()
            && last as usize >= records
        {
            return Err(format!("an output of record {last}, where there are {records} records"));
        }
        let failures = check_failures(self.failures, records, "record")?;
        if let Some((index, _)) = failures.iter().find(|(index, _)| self.sources.binary_search(index).is_ok()) {
            return Err(format!("an output and a failure of the same record, {index}"));
        }
        if let Some(timestamps) = &self.timestamps
            && timestamps.len() != outputs
        {
            return Err(format!("{} timestamps for {outputs} outputs", timestamps.len()));
        }
        let headers = self.headers.map(|headers| HeaderColumns {
            counts: headers.counts,
            names: headers.names.into(),
            values: headers.values.into(),
        });
        if let Some(headers) = &headers {
            headers.check(outputs).map_err(|error| error.to_string())?;
        }
        Ok(Mapped {
            sources: self.sources,
            timestamps_ms: self.timestamps,
            keys: self.keys.map(|column| check_column(column, outputs, "keys")).transpose()?,
            values: self.values.map(|column| check_column(column, outputs, "values")).transpose()?,
            headers,
            failures,
        })
    }
}

impl AddedOut {
    pub(super) fn check(self, records: usize, groups: usize) -> Result<Added, String> {
        let accumulators = check_column(self.accumulators, groups, "accumulators")?;
        Ok(Added { accumulators, failures: check_failures(self.failures, records, "record")? })
    }
}

impl FinishedOut {
    pub(super) fn check(self, groups: usize) -> Result<Finished, String> {
        let values = check_column(self.values, groups, "values")?;
        Ok(Finished { values, failures: check_failures(self.failures, groups, "group")? })
    }
}

fn check_column(column: ColumnOut, entries: usize, what: &str) -> Result<Column, String> {
    if column.lengths.len() != entries {
        return Err(format!("{} {what} where {entries} belong", column.lengths.len()));
    }
    let column = Column::from(column);
    column.check().map_err(|error: ColumnError| format!("its {what}: {error}"))?;
    Ok(column)
}

fn check_failures(failures: Vec<FailureOut>, entries: usize, what: &str) -> Result<Vec<(u32, String)>, String> {
    let mut checked: Vec<(u32, String)> = Vec::with_capacity(failures.len());
    for FailureOut { index, mut reason } in failures {
        if index as usize >= entries {
            return Err(format!("a failure of {what} {index}, where there are {entries}"));
        }
        if reason.len() > REASON_BYTES_MAX {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        }
        checked.push((index, reason));
    }
    checked.sort_by_key(|(index, _)| *index);
    if let Some(pair) = checked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("two failures of the same {what}, {}", pair[0].0));
    }
    Ok(checked)
}
