//! Checks that any bytes are either rejected or read as a batch, without a panic and without allocating more than the
//! limits allow, and that every record of a batch accepted by `check` can be read.

use bytes::Bytes;
use millstream_record::checksum;
use millstream_record::{
    BATCH_HEADER_BYTES, BatchBuilder, Columns, ColumnsReader, Compression, Limits, RecordBatch, TimestampType,
    split_batches,
};

const LIMITS: Limits = Limits { batch_bytes_max: 1 << 20, inflated_bytes_max: 4 << 20, record_bytes_max: 1 << 20 };

/// Reads the bytes as a batch, once unchanged and once with a correct checksum.
pub fn batch(data: &[u8]) {
    exercise(data.to_vec());
    if let Some(sealed) = sealed(data) {
        exercise(sealed);
    }
}

/// Returns the same bytes with a correct length, magic and checksum, because a fuzzer does not find a matching CRC.
fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    if data.len() < BATCH_HEADER_BYTES {
        return None;
    }
    let mut bytes = data.to_vec();
    let length = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[16] = 2;
    let crc = checksum::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    Some(bytes)
}

fn exercise(data: Vec<u8>) {
    let bytes = Bytes::from(data);
    match RecordBatch::check(bytes.clone(), &LIMITS) {
        Ok(batch) => sound(&batch),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    // Records from a log are not checked before they are read. Errors are allowed here, panics are not.
    for batch in split_batches(bytes) {
        let Ok(batch) = batch else { break };
        let _ = (batch.next_offset(), batch.verify_crc());
        if let Ok(records) = batch.records(&LIMITS) {
            for record in &records {
                let Ok(record) = record else { break };
                let _ = records.to_record(&record);
            }
        }
        let mut columns = Columns::default();
        let _ = columns.append_batch(&batch, i64::MIN, &LIMITS);
        columns.check().expect("columns of a batch from a log are valid");
    }
}

/// Checks that an accepted batch is read without errors, yields the same records as rows and as columns, and is
/// unchanged when it is rebuilt.
fn sound(batch: &RecordBatch) {
    let records = batch.records(&LIMITS).expect("a checked batch can be decompressed");
    let rows: Vec<_> =
        records.iter().map(|record| records.to_record(&record.expect("a checked record can be read"))).collect();
    assert_eq!(rows.len(), batch.record_count() as usize);
    let mut columns = Columns::default();
    let appended = columns.append_batch(batch, i64::MIN, &LIMITS).expect("a checked batch can be converted to columns");
    assert_eq!(appended as usize, rows.len());
    columns.check().expect("columns of a checked batch are valid");
    let reader = ColumnsReader::new(&columns);
    let mut builder = BatchBuilder::new(Compression::None);
    for (index, (row, view)) in rows.iter().zip(&records).enumerate() {
        let view = view.expect("the record was read before");
        assert_eq!(row.headers.len(), view.header_count() as usize);
        assert_eq!(Some(row.offset), batch.base_offset().checked_add(index as i64));
        let column = reader.row(index);
        assert_eq!((column.offset, column.timestamp_ms), (row.offset, row.timestamp_ms));
        assert_eq!((column.key, column.value), (row.key.as_deref(), row.value.as_deref()));
        let headers = row.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()));
        assert!(reader.headers(index).eq(headers));
        reader.push_to(&mut builder, index);
    }
    let rebuilt = builder.finish().expect("a checked batch has a record");
    let rebuilt = RecordBatch::check(rebuilt.into_bytes(), &Limits::default()).expect("a rebuilt batch is valid");
    assert_eq!(rebuilt.timestamp_type(), TimestampType::CreateTime);
    let again = rebuilt.records(&Limits::default()).expect("a rebuilt batch can be decompressed");
    for (row, view) in rows.iter().zip(&again) {
        let again = again.to_record(&view.expect("a rebuilt record can be read"));
        assert_eq!((again.timestamp_ms, &again.key, &again.value), (row.timestamp_ms, &row.key, &row.value));
        assert_eq!(again.headers, row.headers);
    }
}
