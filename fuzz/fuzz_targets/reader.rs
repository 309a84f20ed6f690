//! One reader, named as the binary is, and whatever libFuzzer gives it.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    signstep_fuzz::read(env!("CARGO_BIN_NAME"), bytes);
});
