//! libFuzzer's entry for [`fuzz::nvme`]. Run by `cargo xtask fuzz nvme`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::nvme::run(bytes));
