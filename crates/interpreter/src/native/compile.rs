//! Turns one guest instruction into a host function that runs it on the guest's registers.
//!
//! Called when an instruction is first executed. The function has this form, in System V ABI, its argument a
//! [`Frame`]:
//!
//! ```text
//!   push  callee-saved registers that the instruction uses
//!   mov   F, rdi                    ; F and T: registers the instruction doesn't use
//!   fxrstor64 [F+fx]                ; x87 and MMX only
//!   mov   T, [F+vector]             ; registers it reads or partly writes
//!   vmovups zmm1, [T+..]
//!   mov   T, [F+gpr]
//!   mov   rcx, [T+8]
//!   ldmxcsr [F+mxcsr_in]            ; floating point only: the guest's
//!   push  [F+flags]; popfq          ; if it has to do with flags
//!   THE INSTRUCTION                 ; memory operand: [F]
//!   pushfq; pop [F+flags]
//!   stmxcsr [F+mxcsr_out]; ldmxcsr [F+mxcsr_host]
//!   registers it writes, back
//!   fxsave64 [F+fx]; fninit
//!   vzeroupper
//!   return 0
//! trap:                             ; floating point only: where an unmasked exception leads
//!   ldmxcsr [F+mxcsr_host]
//!   fninit; vzeroupper
//!   return 1
//! ```
//!
//! A guest RSP operand is replaced by another host register: signals arrive on the host's stack at any time.

use super::host::Host;
use super::plan::MemPlan;
use super::raw::Frame;
use iced_x86::{
    Code, Encoder, EncodingKind, FlowControl, IcedError, Instruction, InstructionInfoFactory, MemoryOperand,
    Mnemonic as M, OpAccess, OpKind, Register,
};
use std::mem::offset_of;
use x86::state::VectorState;

/// Machine code that keeps to the contract of [`super::raw::Arena::run`]. Only this file makes it.
pub(super) struct StubCode {
    bytes: Vec<u8>,
    trap: usize,
}

impl StubCode {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Offset of the exit for SIMD exceptions; 0 if the stub raises none.
    pub(super) fn trap(&self) -> usize {
        self.trap
    }
}

/// How an instruction uses the x87 registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fpu {
    /// Not at all.
    None,
    /// It is an x87 instruction.
    X87,
    /// It uses MMX registers.
    Mmx,
}

/// What executing a stub needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) memory: Option<MemPlan>,
    pub(super) fpu: Fpu,
    /// Checks for pending x87 exceptions first.
    pub(super) waits: bool,
    /// Has to do with MXCSR.
    pub(super) mxcsr: bool,
    /// Writes arithmetic flags, or reads them.
    pub(super) flags: bool,
}

/// The instruction can't be run by a stub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsupported;

impl From<IcedError> for Unsupported {
    fn from(_: IcedError) -> Self {
        Self
    }
}

/// The instruction, changed to run in a stub: what identifies the stub, too.
pub(super) struct Rewritten {
    instruction: Instruction,
    frame: Register,
    scratch: Register,
    /// Host register and number of the guest register it holds.
    gprs: Vec<(Register, usize)>,
    vectors: Vec<(Register, OpAccess)>,
    masks: Vec<(Register, OpAccess)>,
    vex: bool,
    pub(super) traits: Traits,
    /// Its bytes, plus which register stands for RSP.
    pub(super) key: [u8; 17],
}

/// Registers that a function may overwrite, those that need no REX prefix last.
const VOLATILE: [Register; 9] = [
    Register::R11,
    Register::R10,
    Register::R9,
    Register::R8,
    Register::RSI,
    Register::RDI,
    Register::RDX,
    Register::RCX,
    Register::RAX,
];
const CALLEE_SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// The arithmetic flags in RFLAGS.
pub(super) const ARITHMETIC: u64 = 0x8d5;

impl Rewritten {
    /// Decides how to run `instruction`.
    pub(super) fn new(instruction: &Instruction) -> Result<Self, Unsupported> {
        if !Host::get().offers(instruction.cpuid_features())
            || instruction.flow_control() != FlowControl::Next
            || instruction.is_privileged()
            || instruction.is_stack_instruction()
            || instruction.is_save_restore_instruction()
            || instruction.is_vsib()
            // XCR0 is the guest's own, not in the host's register.
            || instruction.mnemonic() == M::Xgetbv
        {
            return Err(Unsupported);
        }
        let plain = |kind| {
            !matches!(
                kind,
                OpKind::MemorySegSI
                    | OpKind::MemorySegESI
                    | OpKind::MemorySegRSI
                    | OpKind::MemorySegDI
                    | OpKind::MemorySegEDI
                    | OpKind::MemorySegRDI
                    | OpKind::MemoryESDI
                    | OpKind::MemoryESEDI
                    | OpKind::MemoryESRDI
            )
        };
        if !instruction.op_kinds().all(plain) {
            return Err(Unsupported);
        }
        let mut changed = *instruction;
        // The address goes first, so that its registers don't count as used.
        let has_memory = changed.op_kinds().any(|kind| kind == OpKind::Memory);
        if has_memory {
            changed.set_segment_prefix(Register::None);
            changed.set_memory_base(Register::None);
            changed.set_memory_index(Register::None);
            changed.set_memory_index_scale(1);
            changed.set_memory_displacement64(0);
            changed.set_memory_displ_size(8);
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&changed).clone();
        let memory = MemPlan::of(&changed, &info);
        if has_memory && memory.is_none() && changed.memory_size().size() != 0 {
            return Err(Unsupported);
        }

        let mut gprs: Vec<(Register, usize)> = Vec::new();
        let (mut vectors, mut masks) = (Vec::new(), Vec::new());
        let mut fpu = Fpu::None;
        for used in info.used_registers() {
            let (register, access) = (used.register(), used.access());
            if register.is_gpr() {
                let full = register.full_register();
                if !gprs.iter().any(|(known, _)| *known == full) {
                    gprs.push((full, full.number()));
                }
            } else if register.is_vector_register() {
                merge(&mut vectors, register.full_register(), access);
            } else if register.is_k() {
                merge(&mut masks, register, access);
            } else if register.is_mm() {
                fpu = Fpu::Mmx;
            } else if register.is_st() {
                fpu = Fpu::X87;
            } else if !register.is_segment_register() {
                return Err(Unsupported);
            }
        }
        if matches!(instruction.mnemonic(), M::Emms) {
            fpu = Fpu::Mmx;
        } else if is_x87(instruction) {
            fpu = Fpu::X87;
        }

        let stand_in = replace_rsp(&mut changed, &mut gprs)?;
        let mut free =
            VOLATILE.iter().copied().filter(|register| !gprs.iter().any(|(used, _)| used == register));
        let (frame, scratch) = (free.next().ok_or(Unsupported)?, free.next().ok_or(Unsupported)?);
        if has_memory {
            changed.set_memory_base(frame);
            changed.set_memory_displ_size(0);
        }
        let mut encoder = Encoder::new(64);
        let len = encoder.encode(&changed, 0)?;
        let mut key = [0; 17];
        key[..len].copy_from_slice(&encoder.take_buffer());
        key[15] = len as u8;
        key[16] = stand_in.map_or(0xff, |register| register.number() as u8);

        let vex = matches!(instruction.encoding(), EncodingKind::VEX | EncodingKind::EVEX);
        let flags = instruction.rflags_read() | instruction.rflags_modified() != 0;
        let traits = Traits {
            memory,
            fpu,
            waits: fpu != Fpu::None && !instruction.op_code().is_fpu_no_wait(),
            mxcsr: uses_mxcsr(instruction, fpu, !vectors.is_empty()),
            flags,
        };
        Ok(Self { instruction: changed, frame, scratch, gprs, vectors, masks, vex, traits, key })
    }

    /// Generates the stub.
    pub(super) fn generate(&self) -> Result<StubCode, Unsupported> {
        let host = Host::get();
        let mut out = Emitter { encoder: Encoder::new(64), bytes: Vec::with_capacity(192) };
        let at = |offset: usize| MemoryOperand::with_base_displ(self.frame, offset as i64);
        let behind = |offset: usize| MemoryOperand::with_base_displ(self.scratch, offset as i64);
        let saved: Vec<Register> = CALLEE_SAVED
            .into_iter()
            .filter(|saved| self.gprs.iter().any(|(used, _)| used == saved))
            .collect();
        let fpu = self.traits.fpu != Fpu::None;

        for register in &saved {
            out.put(Instruction::with1(Code::Push_r64, *register)?)?;
        }
        out.put(Instruction::with2(Code::Mov_r64_rm64, self.frame, Register::RDI)?)?;
        if fpu {
            out.put(Instruction::with1(Code::Fxrstor64_m512byte, at(offset_of!(Frame, fx)))?)?;
        }
        let scratch_from = |offset: i64| {
            Instruction::with2(
                Code::Mov_r64_rm64,
                self.scratch,
                MemoryOperand::with_base_displ(self.frame, offset),
            )
        };
        let wide_vectors = self.vex || self.vectors.iter().any(|(register, _)| register.number() > 15);
        let (load, store, name) = match (wide_vectors, host.avx512, host.avx) {
            (true, true, _) => {
                (Code::EVEX_Vmovups_zmm_k1z_zmmm512, Code::EVEX_Vmovups_zmmm512_k1z_zmm, Register::ZMM0)
            }
            (true, false, true) => {
                (Code::VEX_Vmovups_ymm_ymmm256, Code::VEX_Vmovups_ymmm256_ymm, Register::YMM0)
            }
            _ => (Code::Movups_xmm_xmmm128, Code::Movups_xmmm128_xmm, Register::XMM0),
        };
        let (load_k, store_k) = if host.wide_masks {
            (Code::VEX_Kmovq_kr_km64, Code::VEX_Kmovq_m64_kr)
        } else {
            (Code::VEX_Kmovw_kr_km16, Code::VEX_Kmovw_m16_kr)
        };
        let vector_at = |register: Register| behind(offset_of!(VectorState, zmm) + 64 * register.number());
        let mask_at = |register: Register| behind(offset_of!(VectorState, k) + 8 * register.number());
        // A legacy instruction leaves the rest of a register alone, whatever iced says of the part it names.
        let loads = |access: OpAccess| !(self.vex && access == OpAccess::Write);
        let writes = |access: OpAccess| !matches!(access, OpAccess::Read | OpAccess::CondRead);

        if !self.vectors.is_empty() || !self.masks.is_empty() {
            out.put(scratch_from(Frame::VECTOR)?)?;
        }
        for (register, _) in self.vectors.iter().filter(|(_, access)| loads(*access)) {
            out.put(Instruction::with2(load, name + register.number() as u32, vector_at(*register))?)?;
        }
        for (register, _) in self.masks.iter().filter(|(_, access)| loads(*access)) {
            out.put(Instruction::with2(load_k, *register, mask_at(*register))?)?;
        }
        if !self.gprs.is_empty() {
            out.put(scratch_from(Frame::GPR)?)?;
        }
        for (register, guest) in &self.gprs {
            out.put(Instruction::with2(Code::Mov_r64_rm64, *register, behind(8 * guest))?)?;
        }
        if self.traits.mxcsr {
            out.put(Instruction::with1(Code::Ldmxcsr_m32, at(offset_of!(Frame, mxcsr_in)))?)?;
        }
        if self.traits.flags {
            out.put(Instruction::with1(Code::Push_rm64, at(offset_of!(Frame, flags)))?)?;
            out.put(Instruction::with(Code::Popfq))?;
        }
        out.put(self.instruction)?;
        if self.traits.flags {
            out.put(Instruction::with(Code::Pushfq))?;
            out.put(Instruction::with1(Code::Pop_rm64, at(offset_of!(Frame, flags)))?)?;
        }
        if self.traits.mxcsr {
            out.put(Instruction::with1(Code::Stmxcsr_m32, at(offset_of!(Frame, mxcsr_out)))?)?;
            out.put(Instruction::with1(Code::Ldmxcsr_m32, at(offset_of!(Frame, mxcsr_host)))?)?;
        }
        if self.vectors.iter().chain(&self.masks).any(|(_, access)| writes(*access)) {
            out.put(scratch_from(Frame::VECTOR)?)?;
        }
        for (register, _) in self.vectors.iter().filter(|(_, access)| writes(*access)) {
            out.put(Instruction::with2(store, vector_at(*register), name + register.number() as u32)?)?;
        }
        for (register, _) in self.masks.iter().filter(|(_, access)| writes(*access)) {
            out.put(Instruction::with2(store_k, mask_at(*register), *register)?)?;
        }
        if !self.gprs.is_empty() {
            out.put(scratch_from(Frame::GPR)?)?;
        }
        for (register, guest) in &self.gprs {
            out.put(Instruction::with2(Code::Mov_rm64_r64, behind(8 * guest), *register)?)?;
        }
        if fpu {
            out.put(Instruction::with1(Code::Fxsave64_m512byte, at(offset_of!(Frame, fx)))?)?;
        }
        self.finish(&mut out, &saved, 0)?;
        let mut trap = 0;
        if self.traits.mxcsr {
            trap = out.bytes.len();
            out.put(Instruction::with1(Code::Ldmxcsr_m32, at(offset_of!(Frame, mxcsr_host)))?)?;
            self.finish(&mut out, &saved, 1)?;
        }
        Ok(StubCode { bytes: out.bytes, trap })
    }

    /// `fninit; vzeroupper; mov eax, result; pop saved; ret`, each where it is due.
    fn finish(&self, out: &mut Emitter, saved: &[Register], result: u32) -> Result<(), Unsupported> {
        if self.traits.fpu != Fpu::None {
            out.put(Instruction::with(Code::Fninit))?;
        }
        if Host::get().avx && !self.vectors.is_empty() && self.vex {
            out.put(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        out.put(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, result)?)?;
        for register in saved.iter().rev() {
            out.put(Instruction::with1(Code::Pop_r64, *register)?)?;
        }
        out.put(Instruction::with(Code::Retnq))
    }
}

struct Emitter {
    encoder: Encoder,
    bytes: Vec<u8>,
}

impl Emitter {
    fn put(&mut self, instruction: Instruction) -> Result<(), Unsupported> {
        self.encoder.encode(&instruction, 0)?;
        self.bytes.extend_from_slice(&self.encoder.take_buffer());
        Ok(())
    }
}

/// Adds a register, or makes its access the union of both.
fn merge(list: &mut Vec<(Register, OpAccess)>, register: Register, access: OpAccess) {
    match list.iter_mut().find(|(known, _)| *known == register) {
        Some((_, known)) if *known != access => *known = OpAccess::ReadWrite,
        Some(_) => {}
        None => list.push((register, access)),
    }
}

/// Lets a register that the instruction doesn't use stand for RSP in its operands.
fn replace_rsp(
    instruction: &mut Instruction,
    gprs: &mut [(Register, usize)],
) -> Result<Option<Register>, Unsupported> {
    let Some(position) = gprs.iter().position(|(register, _)| *register == Register::RSP) else {
        return Ok(None);
    };
    let stand_in = VOLATILE
        .into_iter()
        .rev()
        .find(|candidate| !gprs.iter().any(|(used, _)| used == candidate))
        .ok_or(Unsupported)?;
    let mut replaced = false;
    for operand in 0..instruction.op_count() {
        if instruction.op_kind(operand) != OpKind::Register {
            continue;
        }
        let register = instruction.op_register(operand);
        if register.is_gpr() && register.full_register() == Register::RSP {
            let first = match register {
                Register::RSP => Register::RAX,
                Register::ESP => Register::EAX,
                Register::SP => Register::AX,
                _ => return Err(Unsupported),
            };
            instruction.set_op_register(operand, first + stand_in.number() as u32);
            replaced = true;
        }
    }
    gprs[position].0 = stand_in;
    if replaced { Ok(Some(stand_in)) } else { Err(Unsupported) }
}

/// Whether it is an x87 instruction.
pub(super) fn is_x87(instruction: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    instruction.mnemonic() == M::Fisttp
        || instruction
            .cpuid_features()
            .iter()
            .any(|feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387))
}

/// Whether MXCSR may matter. Integer and move instructions never look at it; for the rest the answer may be a needless yes.
fn uses_mxcsr(instruction: &Instruction, fpu: Fpu, vectors: bool) -> bool {
    if fpu == Fpu::X87 {
        return false;
    }
    let name = format!("{:?}", instruction.mnemonic());
    let name =
        name.strip_prefix('V').or_else(|| name.strip_prefix('v')).unwrap_or(&name).to_ascii_lowercase();
    if !vectors {
        // Conversions from memory to a general or MMX register, and the class of a number in memory (DAZ).
        return name.starts_with("cvt") || name.starts_with("fpclass");
    }
    const NEVER: &[&str] = &[
        "p",
        "mov",
        "and",
        "or",
        "xor",
        "broadcast",
        "insert",
        "extract",
        "aes",
        "sha",
        "lddqu",
        "unpck",
        "shuf",
        "blend",
    ];
    !NEVER.iter().any(|prefix| name.starts_with(prefix))
}
