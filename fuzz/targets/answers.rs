//! libFuzzer's entry for [`fuzz::answers`]. Run by `cargo xtask fuzz answers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::answers::run(bytes));
