#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snowmelt_image::fuzz::fuzz_oci_json(input));
