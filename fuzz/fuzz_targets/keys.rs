#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_keys::fuzz::fuzz_keys(input));
