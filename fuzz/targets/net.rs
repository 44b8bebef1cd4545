//! libFuzzer's entry for [`fuzz::net`]. Run by `cargo xtask fuzz net`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::net::run(bytes));
