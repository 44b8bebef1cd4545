//! libFuzzer's entry for [`fuzz::devices`]. Run by `cargo xtask fuzz devices`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::devices::run(bytes));
