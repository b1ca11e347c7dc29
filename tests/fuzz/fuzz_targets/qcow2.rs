//! libFuzzer's way to the qcow2 reader.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvmbake_fuzz::read(kvmbake_fuzz::Reader::Qcow2, data));
