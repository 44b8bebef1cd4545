//! libFuzzer's entry for [`fuzz::disk_image`]. Run by `cargo xtask fuzz disk_image`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::disk_image::run(bytes));
