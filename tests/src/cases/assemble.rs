//! From a case's text to bytes at addresses, by GNU `as` and `ld`.
//!
//! Both come with the linker that every Rust toolchain on Linux needs. Where they are missing the cases can't run: see
//! [`is_available`].

use super::environment::{CODE, CONSTANTS, Mode};
use object::{Object, ObjectSection, ObjectSymbol};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a case's text becomes.
#[derive(Default)]
pub(super) struct Program {
    /// Bytes and where they go.
    pub(super) parts: Vec<(u64, Vec<u8>)>,
    /// Labels.
    pub(super) symbols: BTreeMap<String, u64>,
}

/// Whether there are an assembler and a linker for this format.
#[must_use]
pub fn is_available() -> bool {
    ["as", "ld"].iter().all(|tool| {
        let run = Command::new(tool).arg("--version").stdin(Stdio::null()).output();
        run.is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"GNU"))
    })
}

/// Assembles `text`, which begins on line `first_line` of its file.
pub(super) fn assemble(text: &str, mode: Mode, first_line: usize) -> Result<Program, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let object = folder.path().join("case.o");
    let linked = folder.path().join("case.elf");
    let mut assembler = Command::new("as");
    assembler.args(["--64", "--noexecstack", "-o"]).arg(&object);
    for (name, value) in CONSTANTS {
        assembler.arg("--defsym").arg(format!("{name}={value:#x}"));
    }
    // A line marker, as a preprocessor leaves it: complaints then name the case's own lines.
    let source =
        format!(".intel_syntax noprefix\n.code{}\n# {first_line} \"case\"\n{text}\n", mode.code_size());
    run(&mut assembler, Some(&source))?;
    let mut linker = Command::new("ld");
    linker.args(["-m", "elf_x86_64", "-n", "-static", "--build-id=none", "-e", "0"]);
    linker.arg(format!("-Ttext={CODE:#x}")).arg("-o").arg(&linked).arg(&object);
    run(&mut linker, None)?;
    read(&linked)
}

fn run(command: &mut Command, input: Option<&str>) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let broke = |error: std::io::Error| format!("{name}: {error}");
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child =
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(broke)?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        pipe.write_all(input.as_bytes()).map_err(broke)?;
    }
    let output = child.wait_with_output().map_err(broke)?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn read(linked: &Path) -> Result<Program, String> {
    let data = fs::read(linked).map_err(|error| format!("{}: {error}", linked.display()))?;
    let broke = |error: object::Error| format!("the linked case: {error}");
    let file = object::File::parse(&*data).map_err(broke)?;
    let mut program = Program::default();
    for section in file.sections() {
        let bytes = section.data().map_err(broke)?;
        // What isn't loaded has no address.
        if section.address() != 0 && !bytes.is_empty() {
            program.parts.push((section.address(), bytes.to_vec()));
        }
    }
    for symbol in file.symbols() {
        if let Ok(name) = symbol.name()
            && !name.is_empty()
        {
            program.symbols.insert(name.to_owned(), symbol.address());
        }
    }
    Ok(program)
}
