//! Single instructions of all encodings that the host has, with memory operands that mostly lead somewhere.

use super::{Builder, INDEX};
use crate::oracle::generate::Encoding;
use crate::oracle::generate::encode::draw;
use crate::oracle::{exclude, images};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction,
    InstructionInfoFactory, MandatoryPrefix, Mnemonic as M, OpAccess, OpCodeOperandKind, OpKind, Register,
};
use x86::state::gpr;

/// What compilers emit most.
const COMMON: &[M] = &[
    M::Mov,
    M::Add,
    M::Sub,
    M::Adc,
    M::Sbb,
    M::And,
    M::Or,
    M::Xor,
    M::Cmp,
    M::Test,
    M::Inc,
    M::Dec,
    M::Neg,
    M::Not,
    M::Lea,
    M::Movzx,
    M::Movsx,
    M::Movsxd,
    M::Shl,
    M::Shr,
    M::Sar,
    M::Rol,
    M::Ror,
    M::Rcl,
    M::Rcr,
    M::Shld,
    M::Imul,
    M::Mul,
    M::Div,
    M::Idiv,
    M::Xchg,
    M::Xadd,
    M::Cmpxchg,
    M::Bt,
    M::Bts,
    M::Bsf,
    M::Bswap,
    M::Sete,
    M::Setb,
    M::Setg,
    M::Setp,
    M::Cmove,
    M::Cmovae,
    M::Cmovl,
    M::Cmovo,
    M::Cdq,
    M::Cqo,
    M::Cwde,
    M::Clc,
    M::Stc,
    M::Cmc,
    M::Lahf,
    M::Sahf,
    M::Movaps,
    M::Movups,
    M::Movdqu,
    M::Movd,
    M::Movq,
    M::Pxor,
    M::Addsd,
    M::Mulsd,
    M::Paddd,
    M::Vmovdqu,
    M::Vpaddd,
    M::Ucomisd,
    M::Cvtsi2sd,
];

/// How far any register leads: the address of code, which a register may hold, ends up where nothing is.
const WILD: u64 = 0x7000_0000;

/// Encodings by kind, for code of one size.
pub(super) struct Pools {
    bits: u32,
    common: Vec<Encoding>,
    integer: Vec<Encoding>,
    vector: Vec<Encoding>,
    x87: Vec<Encoding>,
    absent: Vec<Encoding>,
}

impl Pools {
    pub(super) fn new(bits: u32) -> Self {
        let mut this = Self {
            bits,
            common: Vec::new(),
            integer: Vec::new(),
            vector: Vec::new(),
            x87: Vec::new(),
            absent: Vec::new(),
        };
        for code in Code::values() {
            let info = code.op_code();
            let fits = if bits == 64 { info.mode64() } else { info.mode32() };
            if !info.is_instruction()
                || !fits
                || info.fwait()
                || info.must_be_cpl0()
                || !matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX | EncodingKind::EVEX)
                || exclude::is_excluded_code(code)
                || code == Code::INVALID
            {
                continue;
            }
            let features = code.cpuid_features();
            if features.contains(&CpuidFeature::SSE4A) {
                // Isn't offered, which decides what a page's end does to it; whole it would run.
                continue;
            }
            if !features.iter().all(|&feature| exclude::host_has(feature)) {
                this.absent.push(Encoding::new(code));
                continue;
            }
            if COMMON.contains(&code.mnemonic()) {
                this.common.push(Encoding::new(code));
            }
            let is = |wanted: &[CpuidFeature]| features.iter().any(|feature| wanted.contains(feature));
            let pool = if is(&[CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387]) {
                &mut this.x87
            } else if info.encoding() != EncodingKind::Legacy
                || info.mandatory_prefix() != MandatoryPrefix::None
                || is(&[CpuidFeature::MMX])
            {
                &mut this.vector
            } else {
                &mut this.integer
            };
            pool.push(Encoding::new(code));
        }
        this
    }
}

impl Builder<'_> {
    /// One instruction that goes on behind itself.
    pub(super) fn plain(&mut self) {
        for attempt in 0..40 {
            if self.try_plain(attempt > 20) {
                return;
            }
        }
        self.asm.raw(&[0x90]);
    }

    fn try_plain(&mut self, tame: bool) -> bool {
        let pools = self.pools;
        let pool = match self.random.below(1000) {
            0..=619 => &pools.common,
            620..=769 => &pools.integer,
            770..=924 => &pools.vector,
            925..=994 => &pools.x87,
            _ if pools.absent.is_empty() => &pools.common,
            _ => &pools.absent,
        };
        let encoding = &pool[self.random.below(pool.len() as u64) as usize];
        let mut bytes = draw(&mut self.random, encoding, tame);
        bytes.resize(15.max(bytes.len()), 0);
        let mut instruction =
            Decoder::with_ip(pools.bits, &bytes[..15], 0x1000, DecoderOptions::NONE).decode();
        if instruction.code() != encoding.info.code()
            || instruction.flow_control() != FlowControl::Next
            || instruction.is_string_instruction()
            || exclude::is_excluded(&instruction)
            || images::kind(&instruction).is_some()
            || matches!(instruction.mnemonic(), M::Salc | M::Getsec)
        {
            return false;
        }
        if instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
            self.aim(&mut instruction);
        }
        if self.writes_kept(&instruction) {
            return false;
        }
        self.asm.instruction(&instruction)
    }

    fn writes_kept(&self, instruction: &Instruction) -> bool {
        let mut factory = InstructionInfoFactory::new();
        factory.info(instruction).used_registers().iter().any(|used| {
            let register = used.register();
            let writes = matches!(
                used.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            if register.is_segment_register() {
                return writes;
            }
            writes && register.is_gpr() && self.kept & 1 << register.full_register().number() != 0
        })
    }

    /// Makes the memory operand lead to a page of ours, mostly.
    fn aim(&mut self, instruction: &mut Instruction) {
        let size = instruction.memory_size().size() as u64;
        let target = self.target(size);
        self.aim_at(instruction, target);
    }

    pub(super) fn aim_at(&mut self, instruction: &mut Instruction, target: u64) {
        let wide = self.wide();
        let offsets = instruction.code().op_code().op_kinds();
        if offsets.contains(&OpCodeOperandKind::mem_offs) {
            instruction.set_segment_prefix(Register::None);
            instruction.set_memory_displacement64(target);
            return;
        }
        let mut base_of_segment = 0;
        instruction.set_segment_prefix(Register::None);
        if wide && self.random.percent(10) {
            let fs = self.random.percent(50);
            instruction.set_segment_prefix(if fs { Register::FS } else { Register::GS });
            let home = self.world.home();
            base_of_segment = if fs { home + super::data(1) } else { home + super::data(0) + 0x800 };
        }
        let offset = target.wrapping_sub(base_of_segment);
        let (pointer, value) = self.pointers[self.random.below(self.pointers.len() as u64) as usize];
        let full = |register: u8| Register::RAX + u32::from(register);
        let narrow = |register: u8| Register::EAX + u32::from(register);
        if instruction.is_vsib() {
            instruction.set_memory_base(if wide { full(pointer) } else { narrow(pointer) });
            let displacement = offset.wrapping_sub(value);
            let displacement = if wide { displacement } else { displacement & 0xffff_ffff };
            instruction.set_memory_displacement64(displacement);
            instruction.set_memory_displ_size(if wide { 8 } else { 4 });
            return;
        }
        let scale = 1u32 << self.random.below(4);
        let mut set = |base: Register, index: Register, displacement: u64, size: u32| {
            instruction.set_memory_base(base);
            instruction.set_memory_index(index);
            instruction.set_memory_index_scale(if index == Register::None { 1 } else { scale });
            let displacement = if size == 4 { displacement & 0xffff_ffff } else { displacement };
            instruction.set_memory_displacement64(displacement);
            instruction.set_memory_displ_size(size);
        };
        let indexed = self.index.wrapping_mul(u64::from(scale));
        let none = Register::None;
        let form = self.random.below(100);
        if wide {
            match form {
                0..=49 => set(full(pointer), none, offset.wrapping_sub(value), 8),
                50..=67 => {
                    let displacement = offset.wrapping_sub(value).wrapping_sub(indexed);
                    set(full(pointer), full(INDEX), displacement, 8);
                }
                68..=80 if base_of_segment == 0 => set(Register::RIP, none, target, 8),
                81..=86 => set(none, none, offset, 8),
                87..=92 => set(narrow(pointer), none, offset.wrapping_sub(value), 4),
                93 | 94 => {
                    let displacement = offset.wrapping_sub(value).wrapping_sub(indexed);
                    set(narrow(pointer), narrow(INDEX), displacement, 4);
                }
                95..=97 => {
                    set(full(gpr::RSP as u8), none, self.random.below(64).wrapping_sub(32), 8);
                }
                98 => {
                    let register = self.random.below(16) as u8;
                    set(full(register), none, WILD + u64::from(self.random.byte()), 8);
                }
                _ => set(full(pointer), none, offset.wrapping_sub(value), 8),
            }
        } else {
            let (second, more) = self.pointers[self.random.below(self.pointers.len() as u64) as usize];
            match form {
                0..=54 => set(narrow(pointer), none, offset.wrapping_sub(value), 4),
                55..=74 => {
                    let displacement =
                        offset.wrapping_sub(value).wrapping_sub(more.wrapping_mul(u64::from(scale)));
                    set(narrow(pointer), narrow(second), displacement, 4);
                }
                75..=92 => set(none, none, offset, 4),
                93..=96 => set(narrow(gpr::RSP as u8), none, self.random.below(64).wrapping_sub(32), 4),
                97 => {
                    let register = self.random.below(8) as u8;
                    set(narrow(register), none, WILD + u64::from(self.random.byte()), 4);
                }
                _ => set(narrow(pointer), none, offset.wrapping_sub(value), 4),
            }
        }
    }
}
