#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_sandbox::fuzz::fuzz_worker_message(input));
