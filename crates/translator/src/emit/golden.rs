//! Golden translations: what each kind of instruction becomes, compared with the files in `tests/golden`.
//!
//! `BLESS=1 cargo test -p translator golden` writes the files anew; the diff then says what a change of an emitter does to the code.
//! A case is one or more guest instructions as bytes. Its text is the block's without the entry and the links' stubs, which the
//! group `whole` shows.

use super::{Desk, Features, Mode, Request, Source, VectorLevel, translate};
use crate::listing::{Listed, listing};
use crate::raw::code::CodeMemory;
use crate::stubs;
use std::fmt::Write;
use std::path::PathBuf;

const LONG: Mode =
    Mode { long: true, user: true, flat: 0, vector: VectorLevel::Avx512, counted: false, single: false };
const KERNEL: Mode = Mode { user: false, ..LONG };
const COUNTED: Mode = Mode { counted: true, ..LONG };
const BITS32: Mode = Mode { long: false, flat: 0x3f, ..LONG };
const RIP: u64 = 0x1000;

/// The text of one case: the whole block's, or that of its instructions alone.
fn text(mode: Mode, bytes: &[u8], whole: bool, source: Option<Source<'_>>) -> String {
    let mut code = CodeMemory::new(1 << 20).expect("memory");
    let stubs = stubs::write(&mut code, true, true);
    let request = Request {
        bytes,
        rip: RIP,
        mode,
        stubs: &stubs,
        base: code.next(),
        cell: 0,
        second_cell: None,
        block: 7,
        first_link: 0,
        features: Features { rdtscp: true, view_switch: true, crossing: true },
        source,
    };
    let Some(made) = translate(&request, &mut Desk::new()) else {
        return format!("{bytes:02x?}\n  left to the reference\n");
    };
    let all = listing(&Listed {
        bytes,
        rip: RIP,
        long: mode.long,
        code: &made.code,
        base: request.base,
        marks: &made.marks,
        links: made.links.iter().map(|link| link.stub).min(),
        stubs: &stubs,
    });
    if whole {
        return all;
    }
    let first = format!("{RIP:016x}");
    all.lines()
        .skip_while(|line| !line.starts_with(&first))
        .take_while(|line| *line != "links")
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn can_be_made() -> bool {
    let can = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("bmi2");
    if !can {
        eprintln!("skipped: translations for a host with AVX2 and BMI2 can't be made here");
    }
    can
}

/// Compares the cases of a group with its file, or writes the file.
fn check(group: &str, mode: Mode, whole: bool, cases: &[&[u8]]) {
    if !can_be_made() {
        return;
    }
    let mut now = String::new();
    for bytes in cases {
        let _ = writeln!(now, "{}", text(mode, bytes, whole, None));
    }
    compare(group, now);
}

fn compare(group: &str, now: String) {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &format!("{group}.txt")].iter().collect();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, now).expect("the golden file can be written");
        return;
    }
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let differ = before.lines().zip(now.lines()).position(|(before, now)| before != now);
    let at = differ.unwrap_or_else(|| before.lines().count().min(now.lines().count()));
    assert!(
        before == now,
        "{} differs from line {} on:\n- {}\n+ {}\nBLESS=1 cargo test -p translator writes it anew",
        path.display(),
        at + 1,
        before.lines().nth(at).unwrap_or("(its end)"),
        now.lines().nth(at).unwrap_or("(its end)"),
    );
}

#[test]
fn golden_entry_and_links() {
    check("whole", LONG, true, &[&[0x90, 0x74, 0x10], &[0x0f, 0x28, 0xc1, 0x0f, 0xa2]]);
    check("counted", COUNTED, true, &[&[0x48, 0x01, 0xd8, 0xeb, 0x10], &[0x0f, 0x28, 0xc1, 0x0f, 0xa2]]);
}

#[test]
fn golden_blocks_that_look_at_their_source() {
    if !can_be_made() {
        return;
    }
    let source = |soft| Some(Source { host: 0x7f00_0000_1000, second: None, soft });
    let add = &[0x48, 0x05, 0x44, 0x33, 0x22, 0x11, 0x83, 0xe3, 0x0f, 0xc3]; // add rax, 0x11223344; and ebx, 15; ret
    let mov = &[0x48, 0xbf, 8, 7, 6, 5, 4, 3, 2, 1, 0x89, 0x3e, 0x90]; // mov rdi, 0x102030405060708; mov [rsi], edi; nop
    let mut now = String::new();
    for (bytes, soft) in [(&add[..], &[][..]), (add, &[0, 6]), (mov, &[0])] {
        let _ = writeln!(now, "{}", text(LONG, bytes, true, source(soft)));
    }
    compare("source", now);
}

#[test]
fn golden_registers() {
    check(
        "registers",
        LONG,
        false,
        &[
            &[0x48, 0x01, 0xd8],                         // add rax, rbx
            &[0x83, 0xc0, 0x05],                         // add eax, 5
            &[0x48, 0xff, 0xc1],                         // inc rcx
            &[0x48, 0x29, 0xcc],                         // sub rsp, rcx
            &[0x49, 0x89, 0xc1],                         // mov r9, rax
            &[0x41, 0x89, 0xc7],                         // mov r15d, eax
            &[0x4d, 0x01, 0xda],                         // add r10, r11
            &[0x4d, 0x01, 0xeb],                         // add r11, r13
            &[0x66, 0x41, 0x83, 0xc1, 0x01],             // add r9w, 1
            &[0x00, 0xdc],                               // add ah, bl
            &[0x88, 0xc5],                               // mov ch, al
            &[0xd3, 0xe0],                               // shl eax, cl
            &[0x49, 0xd3, 0xea],                         // shr r10, cl
            &[0x45, 0x01, 0xeb],                         // add r11d, r13d
            &[0x4c, 0x89, 0xe8],                         // mov rax, r13
            &[0x4c, 0x39, 0xe8],                         // cmp rax, r13
            &[0x49, 0xff, 0xc5],                         // inc r13
            &[0x49, 0xd3, 0xe5],                         // shl r13, cl
            &[0x48, 0xd3, 0xe1],                         // shl rcx, cl
            &[0x48, 0x0f, 0xa5, 0xd8],                   // shld rax, rbx, cl
            &[0x48, 0xf7, 0xe1],                         // mul rcx
            &[0x48, 0x0f, 0x44, 0xc1],                   // cmove rax, rcx
            &[0x4c, 0x0f, 0x44, 0xc9],                   // cmove r9, rcx
            &[0x0f, 0x94, 0xc1],                         // sete cl
            &[0x49, 0x0f, 0xca],                         // bswap r10
            &[0xf3, 0x48, 0x0f, 0xb8, 0xc1],             // popcnt rax, rcx
            &[0xc4, 0xe2, 0xfb, 0xf6, 0xc3],             // mulx rax, rax, rbx
            &[0x48, 0x8d, 0x44, 0x8b, 0x08],             // lea rax, [rbx+rcx*4+8]
            &[0x4f, 0x8d, 0x0c, 0x53],                   // lea r9, [r11+r10*2]
            &[0x4f, 0x8d, 0x5c, 0x7d, 0x00],             // lea r11, [r13+r15*2]
            &[0x4c, 0x8d, 0x0d, 0x10, 0x00, 0x00, 0x00], // lea r9, [rip+0x10]
            &[0x90],                                     // nop
            &[0x0f, 0xae, 0xe8],                         // lfence
        ],
    );
}

#[test]
fn golden_memory() {
    check(
        "memory",
        LONG,
        false,
        &[
            // A window: mov rax, [rdi+8]; mov rdx, [rdi+0x10]; add rdi, 8; inc dword [rdi]
            &[0x48, 0x8b, 0x47, 0x08, 0x48, 0x8b, 0x57, 0x10, 0x48, 0x83, 0xc7, 0x08, 0xff, 0x07],
            // One of the stack: push rbx; push r9; mov [rsp+8], rax; pop rcx
            &[0x53, 0x41, 0x51, 0x48, 0x89, 0x44, 0x24, 0x08, 0x59],
            &[0x8a, 0x07],                                     // mov al, [rdi]
            &[0x8b, 0x07],                                     // mov eax, [rdi]
            &[0x8b, 0x47, 0x08],                               // mov eax, [rdi+8]
            &[0x8b, 0x44, 0xf7, 0xfc],                         // mov eax, [rdi+rsi*8-4]
            &[0x48, 0x8b, 0x05, 0x00, 0x01, 0x00, 0x00],       // mov rax, [rip+0x100]
            &[0x8b, 0x04, 0x25, 0x34, 0x12, 0x00, 0x00],       // mov eax, [0x1234]
            &[0x8b, 0x04, 0x25, 0xfe, 0x1f, 0x00, 0x00],       // mov eax, [0x1ffe]
            &[0x64, 0x8b, 0x04, 0x25, 0x28, 0x00, 0x00, 0x00], // mov eax, fs:[0x28]
            &[0x65, 0x8b, 0x07],                               // mov eax, gs:[rdi]
            &[0x67, 0x8b, 0x04, 0x37],                         // mov eax, [edi+esi]
            &[0x8b, 0x01],                                     // mov eax, [rcx]
            &[0x8b, 0x44, 0x24, 0x08],                         // mov eax, [rsp+8]
            &[0x43, 0x8b, 0x04, 0x51],                         // mov eax, [r9+r10*2]
            &[0x43, 0x8b, 0x44, 0x7d, 0x00],                   // mov eax, [r13+r15*2]
            &[0x4c, 0x8b, 0x2f],                               // mov r13, [rdi]
            &[0xc4, 0x62, 0x83, 0xf6, 0x2f],                   // mulx r13, r15, [rdi]
            // In a window: mov r13, [rdi+8]; mov rax, [rdi]; mov [rdi], r13
            &[0x4c, 0x8b, 0x6f, 0x08, 0x48, 0x8b, 0x07, 0x4c, 0x89, 0x2f],
            &[0x4d, 0x8b, 0x1f],                                     // mov r11, [r15]
            &[0x8a, 0x37],                                           // mov dh, [rdi]
            &[0x48, 0x89, 0x44, 0x24, 0x08],                         // mov [rsp+8], rax
            &[0x4c, 0x89, 0x0f],                                     // mov [rdi], r9
            &[0x4c, 0x89, 0x2f],                                     // mov [rdi], r13
            &[0x4d, 0x89, 0x5d, 0x00],                               // mov [r13], r11
            &[0x48, 0xc7, 0x07, 0x05, 0x00, 0x00, 0x00],             // mov qword [rdi], 5
            &[0x64, 0x48, 0x89, 0x0c, 0x25, 0x10, 0x00, 0x00, 0x00], // mov fs:[0x10], rcx
            &[0x48, 0x01, 0x07],                                     // add [rdi], rax
            &[0x00, 0x27],                                           // add [rdi], ah
            &[0xd3, 0x27],                                           // shl dword [rdi], cl
            &[0x48, 0x39, 0x07],                                     // cmp [rdi], rax
            &[0x48, 0x87, 0x07],                                     // xchg [rdi], rax
            &[0xf0, 0xff, 0x07],                                     // lock inc dword [rdi]
            &[0xf0, 0x0f, 0xc1, 0x0f],                               // lock xadd [rdi], ecx
            &[0xf0, 0x4c, 0x0f, 0xb1, 0x17],                         // lock cmpxchg [rdi], r10
            &[0xf0, 0x4c, 0x0f, 0xb1, 0x2f],                         // lock cmpxchg [rdi], r13
            &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],                         // lock cmpxchg16b [rdi]
            &[0x48, 0xf7, 0x37],                                     // div qword [rdi]
            &[0x0f, 0xa3, 0x07],                                     // bt [rdi], eax
        ],
    );
}

#[test]
fn golden_stack() {
    check(
        "stack",
        LONG,
        false,
        &[
            &[0x55],                   // push rbp
            &[0x54],                   // push rsp
            &[0x41, 0x51],             // push r9
            &[0x41, 0x55],             // push r13
            &[0x6a, 0x05],             // push 5
            &[0xff, 0x37],             // push qword [rdi]
            &[0x5b],                   // pop rbx
            &[0x41, 0x5a],             // pop r10
            &[0x41, 0x5d],             // pop r13
            &[0x5c],                   // pop rsp
            &[0x8f, 0x44, 0x24, 0x08], // pop qword [rsp+8]
            &[0xc9],                   // leave
            &[0x9c],                   // pushfq
            &[0x9d],                   // popfq
        ],
    );
}

#[test]
fn golden_flow() {
    check(
        "flow",
        LONG,
        false,
        &[
            &[0xeb, 0x10],                         // jmp, forwards
            &[0x90, 0xeb, 0xfd],                   // jmp, backwards
            &[0x74, 0x10],                         // je, forwards
            &[0x90, 0x75, 0xfd],                   // jne, backwards
            &[0x90, 0xe2, 0xfd],                   // loop, backwards
            &[0xe3, 0x10],                         // jrcxz
            &[0xe8, 0x00, 0x01, 0x00, 0x00],       // call, forwards
            &[0xe8, 0x00, 0xff, 0xff, 0xff],       // call, backwards
            &[0xc3],                               // ret
            &[0xc2, 0x08, 0x00],                   // ret 8
            &[0xff, 0xe0],                         // jmp rax
            &[0xff, 0x27],                         // jmp [rdi]
            &[0x41, 0xff, 0xd3],                   // call r11
            &[0xff, 0x15, 0x08, 0x00, 0x00, 0x00], // call [rip+8]
            &[0x90, 0x0f, 0xa2],                   // nop; cpuid, which the reference executes
            &[0x0f, 0xa2],                         // cpuid
        ],
    );
}

#[test]
fn golden_vector() {
    check(
        "vector",
        LONG,
        false,
        &[
            &[0x0f, 0x28, 0xc1],                   // movaps xmm0, xmm1
            &[0x0f, 0x10, 0x07],                   // movups xmm0, [rdi]
            &[0x66, 0x0f, 0xfe, 0x47, 0x10],       // paddd xmm0, [rdi+16]
            &[0xf2, 0x41, 0x0f, 0x58, 0x01],       // addsd xmm0, [r9]
            &[0xf2, 0x48, 0x0f, 0x2a, 0xc1],       // cvtsi2sd xmm0, rcx
            &[0x66, 0x49, 0x0f, 0x7e, 0xc2],       // movq r10, xmm0
            &[0xc5, 0xf5, 0xfe, 0x07],             // vpaddd ymm0, ymm1, [rdi]
            &[0xc5, 0xfc, 0x11, 0x44, 0x24, 0x20], // vmovups [rsp+32], ymm0
            &[0xdd, 0x07],                         // fld qword [rdi]
            &[0xd8, 0xc1],                         // fadd st0, st1
        ],
    );
}

#[test]
fn golden_bits32() {
    check(
        "bits32",
        BITS32,
        false,
        &[
            &[0x8b, 0x47, 0x08],                         // mov eax, [edi+8]
            &[0xa1, 0x34, 0x12, 0x00, 0x00],             // mov eax, [0x1234]
            &[0x65, 0xa1, 0x14, 0x00, 0x00, 0x00],       // mov eax, gs:[0x14]
            &[0x41],                                     // inc ecx
            &[0x01, 0xcc],                               // add esp, ecx
            &[0x8d, 0x44, 0x8b, 0x08],                   // lea eax, [ebx+ecx*4+8]
            &[0x55],                                     // push ebp
            &[0x5b],                                     // pop ebx
            &[0xc9],                                     // leave
            &[0xe8, 0x00, 0x01, 0x00, 0x00],             // call
            &[0xc3],                                     // ret
            &[0xff, 0x24, 0x85, 0x00, 0x20, 0x00, 0x00], // jmp [eax*4+0x2000]
            &[0x74, 0x10],                               // je
        ],
    );
}

#[test]
fn golden_system() {
    check(
        "system",
        KERNEL,
        false,
        &[
            &[0xfa],                         // cli
            &[0xfb, 0x90],                   // sti; nop
            &[0x9c],                         // pushfq
            &[0x9d],                         // popfq
            &[0x0f, 0x01, 0xcb],             // stac
            &[0x0f, 0x01, 0xca],             // clac
            &[0x0f, 0x01, 0xf8],             // swapgs
            &[0x0f, 0x31],                   // rdtsc
            &[0x0f, 0x01, 0xf9],             // rdtscp
            &[0x0f, 0x20, 0xd8],             // mov rax, cr3
            &[0x66, 0x8c, 0xd8],             // mov ax, ds
            &[0x66, 0x41, 0x8c, 0xd3],       // mov r11w, ss
            &[0xf3, 0x48, 0x0f, 0xae, 0xc0], // rdfsbase rax
            &[0xf3, 0x41, 0x0f, 0xae, 0xcb], // rdgsbase r11d
            &[0xf3, 0x48, 0x0f, 0xae, 0xd0], // wrfsbase rax
            &[0xf3, 0x49, 0x0f, 0xae, 0xdb], // wrgsbase r11
            &[0xf3, 0x0f, 0xae, 0xd0],       // wrfsbase eax
            &[0x0f, 0x05],                   // syscall, which is only user code's
            &[0x48, 0x0f, 0x07],             // sysretq
            &[0x48, 0xcf],                   // iretq
        ],
    );
    check(
        "system_user",
        LONG,
        false,
        &[
            &[0x0f, 0x05],       // syscall
            &[0x48, 0x0f, 0x07], // sysretq, which faults
        ],
    );
}

#[test]
fn golden_invalidation() {
    check(
        "invalidation",
        KERNEL,
        false,
        &[
            &[0x0f, 0x22, 0xd8],             // mov cr3, rax
            &[0x41, 0x0f, 0x22, 0xdb],       // mov cr3, r11
            &[0x0f, 0x01, 0x3f],             // invlpg [rdi]
            &[0x65, 0x0f, 0x01, 0x7f, 0x08], // invlpg gs:[rdi+8]
            &[0x0f, 0x22, 0xe0],             // mov cr4, rax
        ],
    );
}

#[test]
fn golden_strings() {
    check(
        "strings",
        LONG,
        false,
        &[
            &[0xa4],             // movsb
            &[0xf3, 0xa4],       // rep movsb
            &[0xf3, 0x48, 0xab], // rep stosq
            &[0xac],             // lodsb
            &[0xf2, 0xae],       // repne scasb
        ],
    );
}
