//! Native execution against the host's own results, and against the manual where the host can't be asked.

use super::*;
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Mnemonic};

const BASE: u64 = 0x1000;

/// Flat memory of two pages; what lies beyond faults.
struct Flat {
    gpr: [u64; 16],
    vector: VectorState,
    flags: u64,
    memory: Vec<u8>,
    address: u64,
    mode: Mode,
}

impl Flat {
    fn new() -> Self {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut vector = VectorState { xcr0: 0xe7, ..VectorState::default() };
        for register in &mut vector.zmm {
            register.fill_with(|| next() as u8);
        }
        vector.k.fill_with(&mut next);
        let gpr = std::array::from_fn(|_| next());
        let memory = (0..8192).map(|_| next() as u8).collect();
        Self { gpr, vector, flags: 0, memory, address: BASE, mode: Mode { long: true, protected: true } }
    }

    fn run(&mut self, code: &[u8]) -> Result<(), NativeFault<u64>> {
        let instruction = decode(code);
        Native::new().unwrap().execute(&instruction, &mut StubCell::default(), self)
    }

    fn range(&self, offset: u64, len: usize) -> Result<std::ops::Range<usize>, u64> {
        let start = offset.checked_sub(BASE).ok_or(offset)? as usize;
        if start + len > self.memory.len() { Err(offset) } else { Ok(start..start + len) }
    }
}

impl NativeContext for Flat {
    type Fault = u64;
    fn registers(&mut self) -> (&mut [u64; 16], &mut VectorState) {
        (&mut self.gpr, &mut self.vector)
    }
    fn flags(&mut self) -> u64 {
        self.flags
    }
    fn set_flags(&mut self, flags: u64) {
        self.flags = flags;
    }
    fn mode(&self) -> Mode {
        self.mode
    }
    fn instruction_pointer(&self) -> u64 {
        0x40_0000
    }
    fn operand_address(&mut self) -> u64 {
        self.address
    }
    fn linear_address(&mut self, _: Register, offset: u64) -> u64 {
        offset
    }
    fn reachable(&mut self, _: Register, _: u64) -> Result<(), u64> {
        Ok(())
    }
    fn touch(&mut self, _: Register, offset: u64, size: u64, _: bool, _: u64) -> Result<(), u64> {
        self.range(offset, size as usize).map(|_| ())
    }
    fn check_alignment(&mut self, _: Register, _: u64, _: u64) -> Result<(), u64> {
        Ok(())
    }
    fn load(&mut self, _: Register, offset: u64, into: &mut [u8], _: u64) -> Result<(), u64> {
        let range = self.range(offset, into.len())?;
        into.copy_from_slice(&self.memory[range]);
        Ok(())
    }
    fn store(&mut self, _: Register, offset: u64, from: &[u8], _: u64) -> Result<(), u64> {
        let range = self.range(offset, from.len())?;
        self.memory[range].copy_from_slice(from);
        Ok(())
    }
}

fn decode(code: &[u8]) -> Instruction {
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{code:02x?}");
    instruction
}

fn float(state: &VectorState, register: usize) -> f32 {
    f32::from_le_bytes(state.zmm[register][..4].try_into().unwrap())
}

fn set_float(state: &mut VectorState, register: usize, value: f32) {
    state.zmm[register][..4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn sse_load_moves_memory_and_leaves_the_upper_part() {
    let mut cpu = Flat::new();
    let upper = cpu.vector.zmm[1][16..].to_vec();
    cpu.run(&[0x0f, 0x10, 0x08]).unwrap(); // movups xmm1, [rax]
    assert_eq!(cpu.vector.zmm[1][..16], cpu.memory[..16]);
    assert_eq!(cpu.vector.zmm[1][16..], upper[..]);
}

#[test]
fn vex_load_clears_the_upper_part() {
    if !Host::get().avx {
        println!("skipped: the host has no AVX");
        return;
    }
    let mut cpu = Flat::new();
    cpu.run(&[0xc5, 0xfe, 0x6f, 0x00]).unwrap(); // vmovdqu ymm0, [rax]
    assert_eq!(cpu.vector.zmm[0][..32], cpu.memory[..32]);
    if Host::get().avx512 {
        assert_eq!(cpu.vector.zmm[0][32..], [0; 32]);
    }
}

#[test]
fn misaligned_sse_operand_is_a_general_protection_fault() {
    let mut cpu = Flat::new();
    cpu.address = BASE + 8;
    assert_eq!(cpu.run(&[0x0f, 0x28, 0x00]), Err(NativeFault::GeneralProtection)); // movaps xmm0, [rax]
}

#[test]
fn guest_rsp_is_an_operand_like_any_other() {
    let mut cpu = Flat::new();
    let expected =
        cpu.vector.zmm[3][..16].iter().rev().fold(0, |mask, byte| mask << 1 | u64::from(byte >> 7));
    let others = cpu.gpr;
    cpu.run(&[0x66, 0x0f, 0xd7, 0xe3]).unwrap(); // pmovmskb esp, xmm3
    assert_eq!(cpu.gpr[4], expected);
    for i in (0..16).filter(|i| *i != 4) {
        assert_eq!(cpu.gpr[i], others[i]);
    }
}

#[test]
fn comiss_sets_the_flags() {
    let mut cpu = Flat::new();
    set_float(&mut cpu.vector, 0, 1.0);
    set_float(&mut cpu.vector, 1, 2.0);
    cpu.run(&[0x0f, 0x2f, 0xc1]).unwrap();
    assert_eq!(cpu.flags & ARITHMETIC, 1);
}

#[test]
fn unmasked_division_by_zero_faults_and_commits_nothing() {
    let mut cpu = Flat::new();
    set_float(&mut cpu.vector, 0, 1.0);
    set_float(&mut cpu.vector, 1, 0.0);
    cpu.vector.mxcsr = 0x1f80 & !(1 << 9);
    let before = cpu.vector.zmm;
    assert_eq!(cpu.run(&[0xf3, 0x0f, 0x5e, 0xc1]), Err(NativeFault::Simd)); // divss xmm0, xmm1
    assert_eq!(cpu.vector.zmm, before);
    assert_eq!(cpu.vector.mxcsr & 0x3f, 4);
}

#[test]
fn unmasked_underflow_faults_on_an_exact_tiny_result_and_reports_no_lost_precision() {
    let mut cpu = Flat::new();
    set_float(&mut cpu.vector, 0, f32::MIN_POSITIVE);
    set_float(&mut cpu.vector, 1, 0.5);
    cpu.vector.mxcsr = 0x1f80 & !(1 << 11);
    assert_eq!(cpu.run(&[0xf3, 0x0f, 0x59, 0xc1]), Err(NativeFault::Simd)); // mulss xmm0, xmm1
    assert_eq!(cpu.vector.mxcsr & 0x3f, 0x10);
    cpu.vector.mxcsr = 0x1f80;
    cpu.run(&[0xf3, 0x0f, 0x59, 0xc1]).unwrap();
    assert_eq!(float(&cpu.vector, 0), f32::MIN_POSITIVE * 0.5);
}

#[test]
fn unmasked_overflow_says_whether_a_wider_exponent_would_have_been_exact() {
    for (factor, flags) in [(2.0, 0x08), (1.5, 0x28)] {
        let mut cpu = Flat::new();
        set_float(&mut cpu.vector, 0, f32::MAX);
        set_float(&mut cpu.vector, 1, factor);
        cpu.vector.mxcsr = 0x1f80 & !(1 << 10);
        assert_eq!(cpu.run(&[0xf3, 0x0f, 0x59, 0xc1]), Err(NativeFault::Simd)); // mulss xmm0, xmm1
        assert_eq!(cpu.vector.mxcsr & 0x3f, flags, "MAX * {factor}");
    }
}

#[test]
fn exceptions_on_two_threads_at_once_find_their_own_stubs() {
    let thread = |divisor: f32, masks: u32, flags: u32| {
        std::thread::spawn(move || {
            for _ in 0..2000 {
                let mut cpu = Flat::new();
                set_float(&mut cpu.vector, 0, divisor);
                set_float(&mut cpu.vector, 1, 0.0);
                cpu.vector.mxcsr = 0x1f80 & !masks;
                assert_eq!(cpu.run(&[0xf3, 0x0f, 0x5e, 0xc1]), Err(NativeFault::Simd)); // divss xmm0, xmm1
                assert_eq!(cpu.vector.mxcsr & 0x3f, flags);
            }
        })
    };
    let threads = [thread(1.0, 1 << 9, 4), thread(0.0, 1 << 7, 1)];
    for thread in threads {
        thread.join().expect("no assertion failed");
    }
}

#[test]
fn x87_adds_and_keeps_the_guests_pointers() {
    let mut cpu = Flat::new();
    cpu.memory[..4].copy_from_slice(&1.5_f32.to_le_bytes());
    cpu.run(&[0xd9, 0x00]).unwrap(); // fld dword [rax]
    cpu.run(&[0xd8, 0x00]).unwrap(); // fadd dword [rax]
    // AMD's CPUs save pointers with an exception only, zero otherwise, and say so (APM 2 11.4.4.3).
    let always = raw::cpuid(0, 0)[1] != u32::from_le_bytes(*b"Auth");
    let pointer: u64 = if always { 0x40_0000 } else { 0 };
    assert_eq!(cpu.vector.x87[8..16], pointer.to_le_bytes());
    cpu.run(&[0xd9, 0x18]).unwrap(); // fstp dword [rax]
    assert_eq!(cpu.memory[..4], 3.0_f32.to_le_bytes());
    assert_eq!(cpu.vector.x87[4], 0);
}

#[test]
fn unmasked_x87_stack_underflow_waits_for_the_next_instruction() {
    let mut cpu = Flat::new();
    cpu.vector.x87[0] = 0x7e;
    let memory = cpu.memory.clone();
    cpu.run(&[0xd9, 0x18]).unwrap(); // fstp dword [rax], nothing there
    assert_eq!(cpu.memory, memory);
    assert_eq!(x87::fsw(&cpu.vector) & 0xc1, 0xc1);
    assert_eq!(cpu.run(&[0xd9, 0xe8]), Err(NativeFault::X87)); // fld1
    assert_eq!(cpu.run(&[0x9b]), Err(NativeFault::X87));
    cpu.run(&[0xdb, 0xe2]).unwrap(); // fnclex
    cpu.run(&[0x9b]).unwrap();
}

#[test]
fn masked_load_touches_active_elements_only() {
    if !Host::get().avx512 {
        println!("skipped: the host has no AVX-512");
        return;
    }
    let mut cpu = Flat::new();
    cpu.address = BASE + 8192 - 8;
    cpu.vector.k[1] = 3;
    cpu.run(&[0x62, 0xf1, 0x7c, 0xc9, 0x10, 0x00]).unwrap(); // vmovups zmm0{k1}{z}, [rax]
    assert_eq!(cpu.vector.zmm[0][..8], cpu.memory[8184..]);
    cpu.vector.k[1] = 7;
    assert_eq!(cpu.run(&[0x62, 0xf1, 0x7c, 0xc9, 0x10, 0x00]), Err(NativeFault::Memory(BASE + 8184)));
}

#[test]
fn faulting_gather_keeps_the_mask_of_what_is_left() {
    if !Host::get().avx512 {
        println!("skipped: the host has no AVX-512");
        return;
    }
    let mut cpu = Flat::new();
    cpu.vector.zmm[1].fill(0);
    cpu.vector.zmm[1][8..12].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    cpu.vector.k[1] = 0xffff;
    // vpgatherdd zmm0{k1}, [rax+zmm1]
    assert_eq!(
        cpu.run(&[0x62, 0xf2, 0x7d, 0x49, 0x90, 0x04, 0x08]),
        Err(NativeFault::Memory(BASE + 0x10_0000))
    );
    assert_eq!(cpu.vector.k[1], 0xfffc);
    assert_eq!(cpu.vector.zmm[0][4..8], cpu.memory[..4]);
}

#[test]
fn stale_stub_is_compiled_again() {
    let mut cpu = Flat::new();
    let mut native = Native::new().unwrap();
    let instruction = decode(&[0x0f, 0x10, 0x00]);
    let mut cell = StubCell::default();
    native.execute(&instruction, &mut cell, &mut cpu).unwrap();
    native.reset();
    cpu.memory[0] ^= 0xff;
    native.execute(&instruction, &mut cell, &mut cpu).unwrap();
    assert_eq!(cpu.vector.zmm[0][..16], cpu.memory[..16]);
}

#[test]
fn xsave_images_are_the_hosts_own() {
    #[repr(align(64))]
    struct Area([u8; 8192]);
    if !Host::get().avx512 {
        println!("skipped: the host has no AVX-512");
        return;
    }
    let cpu = Flat::new();
    let rfbm = 0xe7;
    for (kind, compact) in [(xstate::Kind::Plain, false), (xstate::Kind::Compacted, true)] {
        let mut source = Box::new(Area([0; 8192]));
        let (image, _) = xstate::xsave(&cpu.vector, xstate::Kind::Plain, rfbm, 0, true, true);
        source.0[..image.len()].copy_from_slice(&image);
        let mut out = Box::new(Area([0; 8192]));
        raw::oracle::round_trip(&source.0, &mut out.0, rfbm as u32, compact);
        let (mine, ranges) = xstate::xsave(&cpu.vector, kind, rfbm, 0, true, true);
        // The host may call the x87 component used where we know that it is initial.
        for range in ranges.into_iter().filter(|range| range.start != 512) {
            assert_eq!(mine[range.clone()], out.0[range.clone()], "{kind:?} {range:?}");
        }
        let mut back = VectorState { xcr0: 0xe7, ..VectorState::default() };
        xstate::xrstor(&mut back, &out.0, rfbm, 0xe7, false, true, true).unwrap();
        assert!(back == cpu.vector, "{kind:?}");
    }
}

/// Vector features whose every instruction has to be executable.
fn is_vector(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    let features = instruction.cpuid_features();
    !features.iter().all(|feature| matches!(feature, F::CMOV | F::POPCNT | F::LZCNT))
        && Host::get().offers(features)
        && instruction.op_code().is_available_in_mode(64)
}

#[test]
fn every_instruction_of_every_feature_is_executable() {
    let mut missing = Vec::new();
    let mut seen = 0;
    for code in Code::values() {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        if !is_vector(&instruction) || code.op_code().fwait() {
            continue;
        }
        for memory in [false, true] {
            if let Some(instruction) = example(code, memory) {
                seen += 1;
                if !Native::supports(&instruction) && crate::system::handler(&instruction).is_none() {
                    missing.push(code);
                }
            }
        }
    }
    println!("{seen} forms");
    assert!(seen > 500, "{seen}");
    assert!(missing.is_empty(), "{} of {seen}: {missing:?}", missing.len());
}

/// Some instruction with this code; `memory` chooses between the forms of an operand that may be either.
fn example(code: Code, memory: bool) -> Option<Instruction> {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    instruction.set_code_size(iced_x86::CodeSize::Code64);
    let mut has_memory = false;
    for (number, kind) in code.op_code().op_kinds().iter().enumerate() {
        let number = number as u32;
        let name = format!("{kind:?}");
        let register = |first: Register| first + (number + 1);
        let (kind, chosen) = if name.starts_with("imm") {
            (
                if name == "imm8" && number > 0 && instruction.op_kind(number - 1) == OpKind::Immediate8 {
                    OpKind::Immediate8_2nd
                } else if name.contains("imm2") || name.contains("imm8") || name.contains("imm4") {
                    OpKind::Immediate8
                } else {
                    return None;
                },
                None,
            )
        } else if name.starts_with("mem") || (memory && name.contains("_or_mem")) {
            has_memory = true;
            (OpKind::Memory, None)
        } else if name == "seg_rDI" {
            (OpKind::MemorySegRDI, None)
        } else {
            let first = match () {
                () if name.starts_with("xmm0") => Register::XMM0,
                () if name.starts_with("xmm") => register(Register::XMM0),
                () if name.starts_with("ymm") => register(Register::YMM0),
                () if name.starts_with("zmm") => register(Register::ZMM0),
                () if name.starts_with("mm") => register(Register::MM0),
                () if name.starts_with("k") => register(Register::K0),
                () if name.starts_with("st0") => Register::ST0,
                () if name.starts_with("st") => Register::ST1,
                () if name == "ax" => Register::AX,
                () if name.starts_with("r8") => register(Register::AL),
                () if name.starts_with("r16") => register(Register::AX),
                () if name.starts_with("r32") => register(Register::EAX),
                () if name.starts_with("r64") => register(Register::RAX),
                () => return None,
            };
            (OpKind::Register, Some(first))
        };
        instruction.set_op_kind(number, kind);
        if let Some(register) = chosen {
            instruction.set_op_register(number, register);
        }
    }
    if has_memory {
        instruction.set_memory_base(Register::RSP);
        instruction.set_memory_displ_size(0);
        if format!("{:?}", code.op_code().op_kinds()).contains("vsib") {
            let kinds = format!("{:?}", code.op_code().op_kinds());
            let index = if kinds.contains("z") {
                Register::ZMM9
            } else if kinds.contains("y") {
                Register::YMM9
            } else {
                Register::XMM9
            };
            instruction.set_memory_index(index);
        }
    }
    if code.op_code().require_op_mask_register() {
        instruction.set_op_mask(Register::K1);
    }
    (memory == has_memory).then_some(instruction).filter(|i| i.mnemonic() != Mnemonic::INVALID)
}

use host::Host;
use iced_x86::OpKind;

#[test]
fn an_exception_that_waits_is_seen_without_its_summary_bit() {
    let mut flat = Flat::new();
    // Invalid operation, unmasked; ES is clear. The host would end the process with SIGFPE.
    flat.vector.x87[..4].copy_from_slice(&[0x7e, 3, 1, 0]);
    assert_eq!(flat.run(&[0xd8, 0xd8]), Err(NativeFault::X87)); // fcomp st0, st0
}
