//! libFuzzer's entry for [`fuzz::execute`]. Run by `cargo xtask fuzz execute`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::execute::run(bytes));
