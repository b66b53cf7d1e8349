#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_zone::fuzz::fuzz_response(input));
