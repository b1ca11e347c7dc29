//! libFuzzer's way to the HTTP server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvmbake_fuzz::read(kvmbake_fuzz::Reader::Http, data));
