//! libFuzzer's way to the ova reader.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvmbake_fuzz::read(kvmbake_fuzz::Reader::Ova, data));
