//! libFuzzer's entry for [`fuzz::luks`]. Run by `cargo xtask fuzz luks`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::luks::run(bytes));
