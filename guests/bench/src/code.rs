//! Code that changes: what compilers at run time, loaders and kernels do to their own instructions.

use crate::raw::{Mapping, PAGE, Protection};
use crate::workload::{Group, Needs, Random, Run, Workload, fold, try_timed};
use std::io;

const fn workload(name: &'static str, iterations: u64, run: fn(u64) -> io::Result<Run>) -> Workload {
    Workload { name, group: Group::Code, needs: Needs::Nothing, iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("code-patch", 300_000, patch),
    workload("code-regenerate", 6000, regenerate),
    workload("code-new", 4000, new),
    workload("code-data", 50_000, data),
];

/// A function whose constant is rewritten before each call.
fn patch(times: u64) -> io::Result<Run> {
    let mut page = Mapping::new(PAGE, Protection::All)?;
    let code = [
        0x48, 0x89, 0xf8, // mov rax, rdi
        0x48, 0x05, 0, 0, 0, 0, // add rax, CONSTANT
        0x48, 0xd1, 0xc0, // rol rax, 1
        0xc3, // ret
    ];
    page.bytes()[..code.len()].copy_from_slice(&code);
    try_timed(|| {
        let mut value = 1;
        for time in 0..times {
            page.bytes()[5..9].copy_from_slice(&(time as u32 & 0x7fff_ffff).to_le_bytes());
            value = page.call(0, value);
        }
        Ok(value)
    })
}

/// Fills `code` with a function of additions and exclusive ORs without an end in sight.
fn generate(code: &mut [u8], seed: u64) {
    let mut random = Random(seed);
    code[..3].copy_from_slice(&[0x48, 0x89, 0xf8]); // mov rax, rdi
    let end = code.len() - 1;
    for instruction in code[3..end].chunks_mut(6) {
        if instruction.len() < 6 {
            instruction.fill(0x90); // nop
            continue;
        }
        let number = random.next();
        // add rax, NUMBER; xor rax, NUMBER
        instruction[..2].copy_from_slice(if number & 1 == 0 { &[0x48, 0x05] } else { &[0x48, 0x35] });
        instruction[2..].copy_from_slice(&((number >> 32) as u32).to_le_bytes());
    }
    code[end] = 0xc3; // ret
}

/// A page filled with new code each time, in place, and run.
fn regenerate(times: u64) -> io::Result<Run> {
    let mut page = Mapping::new(PAGE, Protection::All)?;
    try_timed(|| {
        let mut value = 1;
        for time in 0..times {
            generate(page.bytes(), time);
            value = page.call(0, value);
        }
        Ok(value)
    })
}

/// A page mapped, filled with code, made executable, run, unmapped: never writable and executable at once.
fn new(times: u64) -> io::Result<Run> {
    try_timed(|| {
        let mut value = 1;
        for time in 0..times {
            let mut page = Mapping::new(PAGE, Protection::ReadWrite)?;
            generate(&mut page.bytes()[..512], time);
            page.protect(0, PAGE, Protection::ReadExecute)?;
            value = page.call(0, value);
        }
        Ok(value)
    })
}

/// A loop of a thousand additions to a word that lies on the loop's own page, 2 KiB on.
fn data(times: u64) -> io::Result<Run> {
    const WORD: usize = 2048;
    let mut page = Mapping::new(PAGE, Protection::All)?;
    let code = [
        0xb9, 0xe8, 0x03, 0, 0, // mov ecx, 1000
        0x48, 0x8d, 0x05, 0xf4, 0x07, 0, 0, // lea rax, [rip + WORD - 12]
        0x48, 0x01, 0x38, // turn: add [rax], rdi
        0xff, 0xc9, // dec ecx
        0x75, 0xf9, // jnz turn
        0x48, 0x8b, 0x00, // mov rax, [rax]
        0xc3, // ret
    ];
    page.bytes()[..code.len()].copy_from_slice(&code);
    try_timed(|| {
        let mut checksum = 0;
        for time in 0..times {
            checksum = fold(checksum, page.call(0, time));
        }
        let word = page.bytes()[WORD..WORD + 8].try_into().expect("eight bytes");
        Ok(fold(checksum, u64::from_le_bytes(word)))
    })
}
