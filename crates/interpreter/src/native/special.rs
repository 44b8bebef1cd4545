//! Instructions whose operands a stub can't imitate, written out.
//!
//! Gathers and scatters (element by element, with the progress that a fault leaves behind), stores through rDI, 64-byte
//! direct stores, MXCSR loads, x87 environments, FXSAVE and XSAVE families. Called by [`super::Native::execute`].

use super::host::Host;
use super::operand::Place;
use super::{NativeContext, NativeFault, x87, xstate};
use iced_x86::{EncodingKind, Instruction, Mnemonic as M, Register};
use x86::state::gpr;

/// Which of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Special {
    Wait,
    Environment { save: bool, registers: bool },
    LoadMxcsr,
    StoreMxcsr,
    Zero { all: bool },
    Gather,
    Scatter,
    MaskedMove,
    Move64,
    Fxsave,
    Fxrstor,
    Xsave(xstate::Kind, bool),
    Xrstor { supervisor: bool },
}

type Done<C> = Result<(), NativeFault<<C as NativeContext>::Fault>>;

impl Special {
    /// Which one `instruction` is, if the host has it.
    pub(super) fn of(instruction: &Instruction) -> Option<Self> {
        use xstate::Kind;
        // WAIT counts as an 8086 instruction.
        if instruction.mnemonic() != M::Wait && !Host::get().offers(instruction.cpuid_features()) {
            return None;
        }
        Some(match instruction.mnemonic() {
            M::Wait => Self::Wait,
            M::Fnstenv => Self::Environment { save: true, registers: false },
            M::Fnsave => Self::Environment { save: true, registers: true },
            M::Fldenv => Self::Environment { save: false, registers: false },
            M::Frstor => Self::Environment { save: false, registers: true },
            M::Ldmxcsr | M::Vldmxcsr => Self::LoadMxcsr,
            M::Stmxcsr | M::Vstmxcsr => Self::StoreMxcsr,
            M::Vzeroall => Self::Zero { all: true },
            M::Vzeroupper => Self::Zero { all: false },
            M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => Self::MaskedMove,
            M::Movdir64b => Self::Move64,
            M::Fxsave | M::Fxsave64 => Self::Fxsave,
            M::Fxrstor | M::Fxrstor64 => Self::Fxrstor,
            M::Xsave | M::Xsave64 => Self::Xsave(Kind::Plain, false),
            M::Xsaveopt | M::Xsaveopt64 => Self::Xsave(Kind::Optimized, false),
            M::Xsavec | M::Xsavec64 => Self::Xsave(Kind::Compacted, false),
            M::Xsaves | M::Xsaves64 => Self::Xsave(Kind::Compacted, true),
            M::Xrstor | M::Xrstor64 => Self::Xrstor { supervisor: false },
            M::Xrstors | M::Xrstors64 => Self::Xrstor { supervisor: true },
            _ if instruction.is_vsib() && instruction.op1_register() == Register::None => Self::Gather,
            _ if instruction.is_vsib() && instruction.op0_register() == Register::None => Self::Scatter,
            _ => return None,
        })
    }

    /// Executes it.
    pub(super) fn execute<C: NativeContext>(self, instruction: &Instruction, context: &mut C) -> Done<C> {
        let memory = NativeFault::Memory;
        let segment = instruction.memory_segment();
        match self {
            Self::Wait => {
                if x87::pending(context.registers().1) {
                    return Err(NativeFault::X87);
                }
                Ok(())
            }
            Self::Environment { save, registers } => environment(instruction, context, save, registers),
            Self::LoadMxcsr => {
                let address = context.operand_address();
                let mut bytes = [0; 4];
                context.load(segment, address, &mut bytes, 4).map_err(memory)?;
                let value = u32::from_le_bytes(bytes);
                if value & !xstate::mxcsr_mask() != 0 {
                    return Err(NativeFault::GeneralProtection);
                }
                context.registers().1.mxcsr = value;
                Ok(())
            }
            Self::StoreMxcsr => {
                let address = context.operand_address();
                let value = context.registers().1.mxcsr;
                context.store(segment, address, &value.to_le_bytes(), 4).map_err(memory)
            }
            Self::Zero { all } => {
                let registers = if context.mode().long { 16 } else { 8 };
                for register in &mut context.registers().1.zmm[..registers] {
                    register[if all { 0 } else { 16 }..].fill(0);
                }
                Ok(())
            }
            Self::Gather => gather(instruction, context),
            Self::Scatter => scatter(instruction, context),
            Self::MaskedMove => masked_move(instruction, context),
            Self::Move64 => {
                let address = context.operand_address();
                let target = general(context, instruction.op0_register());
                let mut bytes = [0; 64];
                context.load(segment, address, &mut bytes, 1).map_err(memory)?;
                if !context.linear_address(Register::ES, target).is_multiple_of(64) {
                    return Err(NativeFault::GeneralProtection);
                }
                context.store(Register::ES, target, &bytes, 1).map_err(memory)
            }
            Self::Fxsave => {
                let address = aligned(instruction, context, 16)?;
                let wide = instruction.mnemonic() == M::Fxsave64;
                let long = context.mode().long;
                let (image, len) = xstate::fxsave(context.registers().1, wide, long);
                // All of it has to be there, written or not. Hosts look at the last byte first.
                context.touch(segment, address.wrapping_add(511), 1, true, 1).map_err(memory)?;
                context.store(segment, address, &image[..len], 1).map_err(memory)
            }
            Self::Fxrstor => {
                let address = aligned(instruction, context, 16)?;
                let mut image = [0; 512];
                // Hosts look at the last byte first.
                context.touch(segment, address.wrapping_add(511), 1, false, 1).map_err(memory)?;
                context.load(segment, address, &mut image, 1).map_err(memory)?;
                let (wide, long) = (instruction.mnemonic() == M::Fxrstor64, context.mode().long);
                xstate::fxrstor(context.registers().1, &image, wide, long)
                    .map_err(|_| NativeFault::GeneralProtection)
            }
            Self::Xsave(kind, supervisor) => xsave(instruction, context, kind, supervisor),
            Self::Xrstor { supervisor } => xrstor(instruction, context, supervisor),
        }
    }
}

fn edx_eax(gpr: &[u64; 16]) -> u64 {
    (gpr[gpr::RAX] & 0xffff_ffff) | gpr[gpr::RDX] << 32
}

fn general<C: NativeContext>(context: &mut C, register: Register) -> u64 {
    let value = context.registers().0[register.full_register().number()];
    match register.size() {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn aligned<C: NativeContext>(
    instruction: &Instruction,
    context: &mut C,
    to: u64,
) -> Result<u64, NativeFault<C::Fault>> {
    let (address, segment) = (context.operand_address(), instruction.memory_segment());
    // AMD's processors raise #GP of XSAVE's operand also where #AC is enabled, and wherever it lies (SDM 2C XSAVE lets them).
    if to == 64 && Host::get().amd && !context.linear_address(segment, address).is_multiple_of(to) {
        return Err(NativeFault::GeneralProtection);
    }
    context.reachable(segment, address).map_err(NativeFault::Memory)?;
    // #AC, where enabled, comes before #GP, but of what isn't a multiple of four only: as wide as on Intel hosts.
    context.check_alignment(segment, address, 4).map_err(NativeFault::Memory)?;
    if context.linear_address(segment, address).is_multiple_of(to) {
        Ok(address)
    } else {
        Err(NativeFault::GeneralProtection)
    }
}

fn environment<C: NativeContext>(
    instruction: &Instruction,
    context: &mut C,
    save: bool,
    registers: bool,
) -> Done<C> {
    let protected = context.mode().protected;
    let total = instruction.memory_size().size();
    let wide = matches!(total, 28 | 108);
    let head = x87::environment_len(wide);
    let mut image = [0; 108];
    let len = if registers { head + 80 } else { head };
    let segment = instruction.memory_segment();
    if save {
        let address = context.operand_address();
        let state = context.registers().1;
        image[..head].copy_from_slice(&x87::environment(state, wide, protected)[..head]);
        if registers {
            image[head..len].copy_from_slice(&x87::registers(state));
        }
        let alignment = if wide { 4 } else { 2 };
        // Its ends first, as when it is loaded.
        let last = address.wrapping_add(len as u64 - 1);
        context.touch(segment, address, alignment, true, alignment).map_err(NativeFault::Memory)?;
        context.touch(segment, last, 1, true, 1).map_err(NativeFault::Memory)?;
        context.store(segment, address, &image[..len], alignment).map_err(NativeFault::Memory)?;
        let state = context.registers().1;
        if registers {
            x87::initialize(state);
        } else {
            x87::mask_all(state);
        }
        return Ok(());
    }
    if x87::pending(context.registers().1) {
        return Err(NativeFault::X87);
    }
    let address = context.operand_address();
    let place = Place { segment, offset: address, alignment: if wide { 4 } else { 2 }, element: 1 };
    place.load_image(context, &mut image[..len]).map_err(NativeFault::Memory)?;
    let state = context.registers().1;
    x87::load_environment(state, &image[..head], wide, protected);
    if registers {
        x87::load_registers(state, &image[head..len]);
    }
    Ok(())
}

/// Sizes and count of the elements that a vector-indexed operand names.
struct Lanes {
    data: usize,
    index: usize,
    count: usize,
}

impl Lanes {
    fn of(instruction: &Instruction, vector: Register) -> Self {
        let data = instruction.memory_size().element_size().max(1);
        let index = if instruction.is_vsib32() { 4 } else { 8 };
        let count = (vector.size() / data).min(instruction.memory_index().size() / index);
        Self { data, index, count }
    }

    /// Effective address of element `i`.
    fn address<C: NativeContext>(
        &self,
        instruction: &Instruction,
        context: &mut C,
        base: u64,
        i: usize,
    ) -> u64 {
        let indices = &context.registers().1.zmm[instruction.memory_index().number()];
        let bytes = &indices[i * self.index..(i + 1) * self.index];
        let mut index = [if bytes[self.index - 1] & 0x80 != 0 { 0xff } else { 0 }; 8];
        index[..self.index].copy_from_slice(bytes);
        let scaled = u64::from_le_bytes(index).wrapping_mul(u64::from(instruction.memory_index_scale()));
        base.wrapping_add(scaled) & crate::op::address_mask(instruction)
    }
}

/// VPGATHER and VGATHER of AVX2 and AVX-512 (SDM 2C). Elements are fetched from the lowest; one that faults and those after it
/// keep their mask.
fn gather<C: NativeContext>(instruction: &Instruction, context: &mut C) -> Done<C> {
    let target = instruction.op0_register();
    let lanes = Lanes::of(instruction, target);
    let (register, base) = (target.number(), context.operand_address());
    let opmask = (instruction.encoding() == EncodingKind::EVEX).then(|| instruction.op_mask().number());
    let mask = if opmask.is_some() { 0 } else { instruction.op2_register().number() };
    let top = |i: usize| (i + 1) * lanes.data - 1;
    // What the first element that arrives clears; the rest is cleared at the end.
    let vector_length = target.size().max(instruction.memory_index().size());
    // AMD's processors leave the mask as it is but for the elements that are done.
    if opmask.is_none() && !Host::get().amd {
        // The sign bits spread over their elements at once, in all of the vector length: so the mask looks after a fault.
        let (used, rest) = context.registers().1.zmm[mask].split_at_mut(vector_length);
        for element in used.chunks_exact_mut(lanes.data) {
            let fill = if element[lanes.data - 1] & 0x80 != 0 { 0xff } else { 0 };
            element.fill(fill);
        }
        rest.fill(0);
    }
    for i in 0..lanes.count {
        let state = context.registers().1;
        let wanted = match opmask {
            Some(k) => state.k[k] >> i & 1 != 0,
            None => state.zmm[mask][top(i)] & 0x80 != 0,
        };
        let range = i * lanes.data..(i + 1) * lanes.data;
        if wanted {
            let mut bytes = [0; 8];
            let address = lanes.address(instruction, context, base, i);
            context
                .load(instruction.memory_segment(), address, &mut bytes[..lanes.data], 1)
                .map_err(NativeFault::Memory)?;
            let into = &mut context.registers().1.zmm[register];
            into[range.clone()].copy_from_slice(&bytes[..lanes.data]);
            into[vector_length..].fill(0);
        }
        let state = context.registers().1;
        match opmask {
            Some(k) => state.k[k] &= !(1 << i),
            None => state.zmm[mask][range].fill(0),
        }
    }
    let state = context.registers().1;
    state.zmm[register][lanes.count * lanes.data..].fill(0);
    match opmask {
        Some(k) => state.k[k] = 0,
        None => state.zmm[mask].fill(0),
    }
    Ok(())
}

/// VPSCATTER and VSCATTER: from the lowest element up, so that of overlapping ones the highest stays.
fn scatter<C: NativeContext>(instruction: &Instruction, context: &mut C) -> Done<C> {
    let source = instruction.op1_register();
    let lanes = Lanes::of(instruction, source);
    let (k, base) = (instruction.op_mask().number(), context.operand_address());
    for i in 0..lanes.count {
        let state = context.registers().1;
        if state.k[k] >> i & 1 != 0 {
            let mut bytes = [0; 8];
            bytes[..lanes.data]
                .copy_from_slice(&state.zmm[source.number()][i * lanes.data..(i + 1) * lanes.data]);
            let address = lanes.address(instruction, context, base, i);
            context
                .store(instruction.memory_segment(), address, &bytes[..lanes.data], 1)
                .map_err(NativeFault::Memory)?;
        }
        context.registers().1.k[k] &= !(1 << i);
    }
    context.registers().1.k[k] = 0;
    Ok(())
}

/// MASKMOVQ, MASKMOVDQU: the bytes whose mask byte has its top bit set, to DS:rDI.
fn masked_move<C: NativeContext>(instruction: &Instruction, context: &mut C) -> Done<C> {
    let operands = instruction.op_count();
    let (source, mask) = (instruction.op_register(operands - 2), instruction.op_register(operands - 1));
    let segment = instruction.memory_segment();
    let mask_of_address = match instruction.op0_kind() {
        iced_x86::OpKind::MemorySegDI => 0xffff,
        iced_x86::OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    // The operand is implicit: no ModRM byte says where it is.
    let address = context.registers().0[gpr::RDI] & mask_of_address;
    let mmx = instruction.mnemonic() == M::Maskmovq;
    if mmx && x87::pending(context.registers().1) {
        return Err(NativeFault::X87);
    }
    let (mut data, mut select) = ([0; 16], [0; 16]);
    let state = context.registers().1;
    let len = if mmx { 8 } else { 16 };
    for (into, register) in [(&mut data, source), (&mut select, mask)] {
        if mmx {
            // MM registers are named physically, ST registers from the top of the stack.
            let top = usize::from(x87::fsw(state) >> 11 & 7);
            let at = 32 + 16 * ((register.number() + 8 - top) & 7);
            into[..8].copy_from_slice(&state.x87[at..at + 8]);
        } else {
            into.copy_from_slice(&state.zmm[register.number()][..16]);
        }
    }
    let bytes = (0..len).fold(0, |bytes, i| bytes | u64::from(select[i] >> 7) << i);
    let place = Place { segment, offset: address, alignment: 8, element: 1 };
    if mmx {
        x87::enter_mmx(context.registers().1);
    }
    place.store_halves(context, &data[..len], bytes).map_err(NativeFault::Memory)
}

fn is_wide(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Xsave64 | M::Xsavec64 | M::Xsaveopt64 | M::Xsaves64 | M::Xrstor64 | M::Xrstors64
    )
}

fn xsave<C: NativeContext>(
    instruction: &Instruction,
    context: &mut C,
    kind: xstate::Kind,
    supervisor: bool,
) -> Done<C> {
    let address = aligned(instruction, context, 64)?;
    let segment = instruction.memory_segment();
    let (wide, long) = (is_wide(instruction), context.mode().long);
    let xss = if supervisor { context.xss() } else { 0 };
    context.touch(segment, address, 1, true, 1).map_err(NativeFault::Memory)?;
    let mut old_bv = [0; 8];
    if kind != xstate::Kind::Compacted {
        context.load(segment, address.wrapping_add(512), &mut old_bv, 1).map_err(NativeFault::Memory)?;
    }
    let (gpr, vector) = context.registers();
    let rfbm = edx_eax(gpr) & (vector.xcr0 | xss);
    let (image, ranges) = xstate::xsave(vector, kind, rfbm, u64::from_le_bytes(old_bv), wide, long);
    // What can fault does so before anything is stored. Hosts look at the image's last byte early, whether it is written or not.
    let last = address.wrapping_add(image.len() as u64 - 1);
    context.touch(segment, last, 1, true, 1).map_err(NativeFault::Memory)?;
    for range in &ranges {
        let at = address.wrapping_add(range.start as u64);
        context.touch(segment, at, range.len() as u64, true, 1).map_err(NativeFault::Memory)?;
    }
    for range in ranges {
        let at = address.wrapping_add(range.start as u64);
        context.store(segment, at, &image[range], 1).map_err(NativeFault::Memory)?;
    }
    Ok(())
}

fn xrstor<C: NativeContext>(instruction: &Instruction, context: &mut C, supervisor: bool) -> Done<C> {
    let address = aligned(instruction, context, 64)?;
    let segment = instruction.memory_segment();
    let (wide, long) = (is_wide(instruction), context.mode().long);
    let bad = |xstate::BadImage| NativeFault::GeneralProtection;
    let mut header = [0; 64];
    context.touch(segment, address, 1, false, 1).map_err(NativeFault::Memory)?;
    context.load(segment, address.wrapping_add(512), &mut header, 1).map_err(NativeFault::Memory)?;
    let xss = if supervisor { context.xss() } else { 0 };
    let (gpr, vector) = context.registers();
    let enabled = vector.xcr0 | xss;
    let rfbm = edx_eax(gpr) & enabled;
    let size = xstate::check_header(&header, enabled, supervisor).map_err(bad)?;
    let mut image = vec![0; size];
    image[512..576].copy_from_slice(&header);
    for range in xstate::ranges_read(&header, rfbm) {
        let at = address.wrapping_add(range.start as u64);
        context.load(segment, at, &mut image[range], 1).map_err(NativeFault::Memory)?;
    }
    xstate::xrstor(context.registers().1, &image, rfbm, enabled, supervisor, wide, long).map_err(bad)
}
