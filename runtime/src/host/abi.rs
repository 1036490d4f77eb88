//! Conversions between the types of `stage.wit` and columns, and checks of what a guest returned.

use millstream_record::{Column, ColumnError, Columns, HeaderColumns};

use super::bindings::types::{Batch, ColumnParam, ColumnResult, Failure, HeadersParam, HeadersResult};
use super::bindings::{aggregate, filter, map};

impl<'a> From<&'a Column> for ColumnParam<'a> {
    fn from(column: &'a Column) -> Self {
        Self { lengths: &column.lengths, bytes: &column.bytes }
    }
}

impl<'a> From<&'a HeaderColumns> for HeadersParam<'a> {
    fn from(headers: &'a HeaderColumns) -> Self {
        let HeaderColumns { counts, names, values } = headers;
        Self { counts, names: names.into(), values: values.into() }
    }
}

impl<'a> From<&'a Columns> for Batch<'a> {
    fn from(columns: &'a Columns) -> Self {
        Self {
            offsets: &columns.offsets,
            timestamps: &columns.timestamps_ms,
            keys: (&columns.keys).into(),
            values: (&columns.values).into(),
            headers: (&columns.headers).into(),
        }
    }
}

impl From<ColumnResult> for Column {
    fn from(column: ColumnResult) -> Self {
        Self { lengths: column.lengths, bytes: column.bytes }
    }
}

impl From<HeadersResult> for HeaderColumns {
    fn from(headers: HeadersResult) -> Self {
        Self { counts: headers.counts, names: headers.names.into(), values: headers.values.into() }
    }
}

/// The checked result of a filter.
#[derive(Debug)]
pub struct Filtered {
    /// For each record 1 to keep it or 0 to drop it. Failed records have 0.
    pub verdicts: Vec<u8>,
    /// Index and reason of each failed record, in ascending order.
    pub failures: Vec<(u32, String)>,
}

/// The checked result of a map: all columns have the same length, the sources are in range and in ascending order, and
/// failed records have no output. For a column that is `None`, outputs take the values of their source records.
#[derive(Debug)]
pub struct Mapped {
    /// For each output, the index of its source record.
    pub sources: Vec<u32>,
    /// Timestamps, in milliseconds since the epoch.
    pub timestamps_ms: Option<Vec<i64>>,
    /// Keys.
    pub keys: Option<Column>,
    /// Values.
    pub values: Option<Column>,
    /// Headers.
    pub headers: Option<HeaderColumns>,
    /// Index and reason of each failed record, in ascending order.
    pub failures: Vec<(u32, String)>,
}

/// The checked result of an aggregate's `add`.
#[derive(Debug)]
pub struct Added {
    /// The accumulator of each group; null removes it.
    pub accumulators: Column,
    /// Index and reason of each failed record, in ascending order.
    pub failures: Vec<(u32, String)>,
}

/// The checked result of an aggregate's `finish`.
#[derive(Debug)]
pub struct Finished {
    /// The value of each group.
    pub values: Column,
    /// Index and reason of each failed group, in ascending order.
    pub failures: Vec<(u32, String)>,
}

/// Maximum length of a failure's reason, in bytes. Longer reasons are truncated, because they go into headers and logs.
const REASON_BYTES_MAX: usize = 1_000;

const DROP: u8 = 0;
const KEEP: u8 = 1;
const FAILED: u8 = 2;

impl filter::Filtered {
    pub(super) fn check(self, records: usize) -> Result<Filtered, String> {
        let Self { mut verdicts, failures } = self;
        if verdicts.len() != records {
            return Err(format!("{} verdicts for {records} records", verdicts.len()));
        }
        let failures = check_failures(failures, records, "record")?;
        let mut said = failures.iter().map(|(index, _)| *index as usize);
        let mut reserved = said.next();
        // A single pass without branches detects any verdict other than drop and keep.
        if verdicts.iter().fold(0, |all, verdict| all | verdict) > KEEP || reserved.is_some() {
            for (index, verdict) in verdicts.iter_mut().enumerate() {
                match *verdict {
                    DROP | KEEP if reserved != Some(index) => {}
                    FAILED if reserved == Some(index) => {
                        *verdict = DROP;
                        reserved = said.next();
                    }
                    FAILED => return Err(format!("verdict \"failed\" for record {index} without a failure")),
                    DROP | KEEP => return Err(format!("a failure for record {index}, but its verdict is {verdict}")),
                    _ => return Err(format!("verdict {verdict} for record {index}, which must be 0, 1 or 2")),
                }
            }
        }
        Ok(Filtered { verdicts, failures })
    }
}

impl map::Mapped {
    pub(super) fn check(self, records: usize) -> Result<Mapped, String> {
        let outputs = self.sources.len();
        if !self.sources.is_sorted() {
            return Err("output sources that are not in ascending order".into());
        }
        if let Some(&last) = self.sources.last()
            && last as usize >= records
        {
            return Err(format!("an output for record {last}, but there are only {records} records"));
        }
        let failures = check_failures(self.failures, records, "record")?;
        if let Some((index, _)) = failures.iter().find(|(index, _)| self.sources.binary_search(index).is_ok()) {
            return Err(format!("both an output and a failure for record {index}"));
        }
        if let Some(timestamps) = &self.timestamps
            && timestamps.len() != outputs
        {
            return Err(format!("{} timestamps for {outputs} outputs", timestamps.len()));
        }
        let headers = self.headers.map(HeaderColumns::from);
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

impl aggregate::Added {
    pub(super) fn check(self, records: usize, groups: usize) -> Result<Added, String> {
        let accumulators = check_column(self.accumulators, groups, "accumulators")?;
        Ok(Added { accumulators, failures: check_failures(self.failures, records, "record")? })
    }
}

impl aggregate::Finished {
    pub(super) fn check(self, groups: usize) -> Result<Finished, String> {
        let values = check_column(self.values, groups, "values")?;
        Ok(Finished { values, failures: check_failures(self.failures, groups, "group")? })
    }
}

fn check_column(column: ColumnResult, entries: usize, what: &str) -> Result<Column, String> {
    if column.lengths.len() != entries {
        return Err(format!("{} {what}, expected {entries}", column.lengths.len()));
    }
    let column = Column::from(column);
    column.check().map_err(|error: ColumnError| format!("invalid {what}: {error}"))?;
    Ok(column)
}

fn check_failures(failures: Vec<Failure>, entries: usize, what: &str) -> Result<Vec<(u32, String)>, String> {
    let mut checked: Vec<(u32, String)> = Vec::with_capacity(failures.len());
    for Failure { index, mut reason } in failures {
        if index as usize >= entries {
            return Err(format!("a failure for {what} {index}, but there are only {entries} {what}s"));
        }
        if reason.len() > REASON_BYTES_MAX {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        }
        checked.push((index, reason));
    }
    checked.sort_by_key(|(index, _)| *index);
    if let Some(pair) = checked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("two failures for {what} {}", pair[0].0));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use millstream_record::ColumnsReader;
    use proptest::prelude::*;

    use super::*;
    use crate::seeded::seeded;
    use crate::stage::map::assemble;

    fn failure(index: u32) -> Failure {
        Failure { index, reason: "refused".into() }
    }

    fn column(entries: usize) -> ColumnResult {
        ColumnResult { lengths: vec![1; entries], bytes: vec![b'x'; entries] }
    }

    fn headers(counts: &[u32]) -> HeadersResult {
        let all = counts.iter().sum::<u32>() as usize;
        HeadersResult { counts: counts.to_vec(), names: column(all), values: column(all) }
    }

    fn mapped(sources: &[u32]) -> map::Mapped {
        let sources = sources.to_vec();
        map::Mapped { sources, timestamps: None, keys: None, values: None, headers: None, failures: Vec::new() }
    }

    #[test]
    fn what_a_filter_says_is_consistent() {
        let say = |verdicts: &[u8], failures: &[u32]| {
            let failures = failures.iter().map(|index| failure(*index)).collect();
            filter::Filtered { verdicts: verdicts.to_vec(), failures }.check(3)
        };
        let good = say(&[1, 2, 0], &[1]).unwrap();
        assert_eq!((good.verdicts, good.failures), (vec![1, 0, 0], vec![(1, "refused".to_owned())]));
        // Failures may be given in any order.
        assert_eq!(say(&[2, 1, 2], &[2, 0]).unwrap().verdicts, [0, 1, 0]);
        let refusals = [
            (say(&[1, 1], &[]), "2 verdicts for 3 records"),
            (say(&[1, 1, 1, 1], &[]), "4 verdicts for 3 records"),
            (say(&[1, 3, 1], &[]), "verdict 3 for record 1, which must be 0, 1 or 2"),
            (say(&[1, 2, 1], &[]), "verdict \"failed\" for record 1 without a failure"),
            (say(&[1, 2, 2], &[1]), "verdict \"failed\" for record 2 without a failure"),
            (say(&[2, 2, 1], &[1]), "verdict \"failed\" for record 0 without a failure"),
            (say(&[1, 1, 1], &[1]), "a failure for record 1, but its verdict is 1"),
            (say(&[1, 0, 1], &[1]), "a failure for record 1, but its verdict is 0"),
            (say(&[1, 2, 1], &[1, 1]), "two failures for record 1"),
            (say(&[1, 1, 2], &[3]), "a failure for record 3, but there are only 3 records"),
        ];
        for (said, words) in refusals {
            assert_eq!(said.unwrap_err(), words);
        }
    }

    #[test]
    fn what_a_map_puts_out_is_consistent() {
        let good = map::Mapped { failures: vec![failure(1)], ..mapped(&[0, 0, 2]) }.check(3).unwrap();
        assert_eq!((good.sources, good.failures.len()), (vec![0, 0, 2], 1));
        let refusals = [
            (mapped(&[1, 0]), "output sources that are not in ascending order"),
            (mapped(&[0, 3]), "an output for record 3, but there are only 3 records"),
            (
                map::Mapped { failures: vec![failure(2)], ..mapped(&[0, 2]) },
                "both an output and a failure for record 2",
            ),
            (
                map::Mapped { failures: vec![failure(3)], ..mapped(&[0]) },
                "a failure for record 3, but there are only 3 records",
            ),
            (map::Mapped { failures: vec![failure(1), failure(1)], ..mapped(&[0]) }, "two failures for record 1"),
            (map::Mapped { timestamps: Some(vec![0]), ..mapped(&[0, 1]) }, "1 timestamps for 2 outputs"),
            (map::Mapped { keys: Some(column(3)), ..mapped(&[0, 1]) }, "3 keys, expected 2"),
            (map::Mapped { values: Some(column(1)), ..mapped(&[0, 1]) }, "1 values, expected 2"),
        ];
        for (out, words) in refusals {
            assert_eq!(out.check(3).unwrap_err(), words);
        }
        for (counts, names) in [(&[1][..], 1), (&[1, 1, 1], 3), (&[1, 1], 3)] {
            let headers = HeadersResult { names: column(names), ..headers(counts) };
            let refused = map::Mapped { headers: Some(headers), ..mapped(&[0, 1]) }.check(3).unwrap_err();
            assert!(refused.contains("header"), "{refused}");
        }
    }

    #[test]
    fn what_an_aggregate_returns_is_one_entry_a_group() {
        let added = |entries, failures| aggregate::Added { accumulators: column(entries), failures }.check(5, 2);
        assert_eq!(added(2, vec![failure(4), failure(0)]).unwrap().failures[0].0, 0);
        assert_eq!(added(3, vec![]).unwrap_err(), "3 accumulators, expected 2");
        assert_eq!(added(1, vec![]).unwrap_err(), "1 accumulators, expected 2");
        assert_eq!(added(2, vec![failure(5)]).unwrap_err(), "a failure for record 5, but there are only 5 records");
        let finished = |entries, failures| aggregate::Finished { values: column(entries), failures }.check(2);
        assert_eq!(finished(2, vec![failure(1)]).unwrap().failures[0].0, 1);
        assert_eq!(finished(3, vec![]).unwrap_err(), "3 values, expected 2");
        assert_eq!(finished(2, vec![failure(2)]).unwrap_err(), "a failure for group 2, but there are only 2 groups");
    }

    #[test]
    fn a_reason_is_kept_up_to_its_limit_and_whole_letters_of_it() {
        let reason = format!("x{}", "\u{fc}".repeat(REASON_BYTES_MAX));
        let out =
            aggregate::Added { accumulators: column(1), failures: vec![Failure { index: 0, reason: reason.clone() }] };
        let kept = out.check(1, 1).unwrap().failures.remove(0).1;
        assert_eq!(kept.len(), REASON_BYTES_MAX - 1);
        assert!(reason.starts_with(&kept));
    }

    /// A column that is valid most of the time.
    fn any_column(entries: usize) -> impl Strategy<Value = ColumnResult> {
        let length = prop_oneof![8 => -1i32..4, 1 => Just(-2), 1 => any::<i32>()];
        let off = prop_oneof![6 => Just(0isize), 1 => -1isize..=1];
        (prop::collection::vec(length, entries), off.clone(), off).prop_map(|(mut lengths, entries_off, bytes_off)| {
            lengths.resize(lengths.len().saturating_add_signed(entries_off), 0);
            let bytes: usize = lengths.iter().map(|length| (*length).clamp(0, 3) as usize).sum();
            ColumnResult { lengths, bytes: vec![b'x'; bytes.saturating_add_signed(bytes_off)] }
        })
    }

    const RECORDS: u32 = 4;

    fn any_mapped() -> impl Strategy<Value = map::Mapped> {
        let sources = prop::collection::vec(0..RECORDS + 1, 0..6).prop_map(|mut sources| {
            sources.sort_unstable();
            sources
        });
        sources.prop_flat_map(|sources| {
            let outputs = sources.len();
            let headers = prop::collection::vec(0u32..3, outputs).prop_flat_map(|counts| {
                let all = counts.iter().sum::<u32>() as usize;
                (Just(counts), any_column(all), any_column(all))
            });
            let headers = headers.prop_map(|(counts, names, values)| HeadersResult { counts, names, values });
            let timestamps = prop::collection::vec(any::<i64>(), outputs);
            let columns = (prop::option::of(any_column(outputs)), prop::option::of(any_column(outputs)));
            let failures = prop::collection::vec((0..RECORDS + 1).prop_map(failure), 0..2);
            (Just(sources), prop::option::of(timestamps), columns, prop::option::of(headers), failures).prop_map(
                |(sources, timestamps, (keys, values), headers, failures)| map::Mapped {
                    sources,
                    timestamps,
                    keys,
                    values,
                    headers,
                    failures,
                },
            )
        })
    }

    proptest! {
        #![proptest_config(seeded())]

        /// The columns that a map returns are either refused, or make readable outputs that come from their sources.
        #[test]
        fn any_columns_of_a_map_are_refused_or_of_use(out in any_mapped()) {
            let mut input = Columns::default();
            for index in 0..RECORDS {
                let name = format!("h{index}");
                let header = (name.as_str(), Some(&b"v"[..]));
                let headers = std::iter::repeat_n(header, index as usize % 3);
                input.push(i64::from(index) + 10, i64::from(index) + 20, None, Some(&[index as u8]), headers);
            }
            let Ok(mapped) = out.check(RECORDS as usize) else { return Ok(()) };
            let (sources, own_times, own_values) = (mapped.sources.clone(), mapped.timestamps_ms.clone(), mapped.values.is_some());
            let own_headers = mapped.headers.is_some();
            let outputs = assemble(input.clone(), mapped);
            outputs.check().unwrap();
            prop_assert_eq!(outputs.len(), sources.len());
            let (from, to) = (ColumnsReader::new(&input), ColumnsReader::new(&outputs));
            for (index, source) in sources.iter().enumerate() {
                let (row, source_row) = (to.row(index), from.row(*source as usize));
                prop_assert_eq!(row.offset, source_row.offset);
                prop_assert_eq!(row.timestamp_ms, own_times.as_ref().map_or(source_row.timestamp_ms, |times| times[index]));
                prop_assert!(own_values || row.value == source_row.value);
                prop_assert!(own_headers || to.headers(index).eq(from.headers(*source as usize)));
            }
        }
    }
}
