#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_chunk::fuzz::fuzz_manifest(input));
