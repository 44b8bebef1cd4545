//! libFuzzer's entry for [`fuzz::virtio`]. Run by `cargo xtask fuzz virtio`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::virtio::run(bytes));
