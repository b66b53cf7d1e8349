#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_store::fuzz::fuzz_state(input));
