#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_service::fuzz::fuzz_service_input(input));
