#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_cache::fuzz::fuzz_worker(input));
