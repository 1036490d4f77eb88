#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millstream_record_fuzz::batch(data));
