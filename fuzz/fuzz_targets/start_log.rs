#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_device::fuzz::fuzz_start_log(input));
