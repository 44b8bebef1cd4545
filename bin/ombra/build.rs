//! Builds guests/init into a static program that bin/ombra embeds.
//!
//! rustc is called directly: the program has no dependencies, and a cargo inside of cargo would wait for locks. It needs the
//! C library as an archive (Debian's libc6-dev).

use std::env;
use std::path::Path;
use std::process::{Command, exit};

const SOURCE: &str = "../../guests/init/src/main.rs";

fn main() {
    println!("cargo::rerun-if-changed=../../guests/init/src");
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let folder = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let output = Path::new(&folder).join("init");
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "init", "--target", "x86_64-unknown-linux-gnu"])
        // One file that runs without a dynamic linker, wherever the kernel puts it.
        .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static"])
        .args(["-C", "opt-level=s", "-C", "lto=fat", "-C", "codegen-units=1", "-C", "panic=abort"])
        .args(["-C", "strip=symbols", "-D", "warnings"])
        .arg("-o")
        .arg(&output)
        .arg(SOURCE)
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => {
            println!(
                "cargo::error=guests/init doesn't build ({other:?}); it needs gcc and a static C library \
                 (Debian: apt install gcc libc6-dev)"
            );
            exit(1);
        }
    }
}
