//! libFuzzer's entry for [`fuzz::boot_image`]. Run by `cargo xtask fuzz boot_image`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::boot_image::run(bytes));
