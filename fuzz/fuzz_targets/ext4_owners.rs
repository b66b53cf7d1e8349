#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_ext4::fuzz::fuzz_owners(input));
