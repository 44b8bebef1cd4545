//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, with REP, REPE and REPNE.
//!
//! Each iteration is complete in itself: a fault leaves the registers after the last completed one, and between iterations an
//! event may be taken ([`Stop::Pause`]). Runs of MOVS and STOS with DF clear are done page by page with the host's own string
//! instructions where both sides are RAM and the TLB knows them.

use crate::cpu::{Cpu, Step, Stop, special};
use crate::integer::compare;
use crate::op::{Handler, Op};
use crate::width::Width;
use engine::{Access, Platform};
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::Rflags;
use x86::address::PAGE_SIZE;
use x86::control::dr6;
use x86::state::{gpr, seg};

const ES: u8 = seg::ES as u8;

/// Iterations after which a long string instruction looks up.
const STRETCH: u64 = 4096;

/// What one iteration does; gives how many elements it handled (bulk paths: more than one) or a stop.
trait Body {
    /// REPE and REPNE end on a comparison's outcome.
    const COMPARES: bool = false;
    /// With a repeat prefix and 32-bit addresses, these are zero-extended even if the first iteration faults.
    const EXTENDS: &[usize] = &[];
    fn step<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        run: &Run,
        most: u64,
        io: &mut dyn Platform,
    ) -> Result<u64, Stop>;
}

/// What is the same for all iterations.
struct Run {
    /// All ones as wide as the address size.
    mask: u64,
    /// Bytes to move on per element, negative with DF set.
    stride: u64,
}

impl Run {
    fn new<W: Width>(cpu: &Cpu, op: &Op) -> Self {
        let down = cpu.state.rflags.contains(Rflags::DF);
        let stride = if down { W::BYTES.wrapping_neg() } else { W::BYTES };
        Self { mask: index_mask(op.instruction()), stride }
    }

    fn offset(&self, cpu: &Cpu, register: usize) -> u64 {
        cpu.regs[register] & self.mask
    }

    fn extended(&self, register: u64) -> u64 {
        if self.mask == 0xffff_ffff { register & self.mask } else { register }
    }

    fn advance(&self, cpu: &mut Cpu, register: usize, elements: u64) {
        let moved = cpu.regs[register].wrapping_add(self.stride.wrapping_mul(elements));
        set_masked(cpu, register, moved, self.mask);
    }

    /// How many elements lie between the offset and the end of its page, going up; 0 going down.
    fn elements_in_page<W: Width>(&self, address: u64) -> u64 {
        if self.stride == W::BYTES { (PAGE_SIZE - address % PAGE_SIZE) / W::BYTES } else { 0 }
    }
}

/// Writes a register at address-size width: 32-bit results zero-extend, 16-bit ones leave the rest.
fn set_masked(cpu: &mut Cpu, register: usize, value: u64, mask: u64) {
    cpu.regs[register] = match mask {
        0xffff => cpu.regs[register] & !mask | value & mask,
        _ => value & mask,
    };
}

fn index_mask(instruction: &Instruction) -> u64 {
    for number in 0..instruction.op_count() {
        match instruction.op_kind(number) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 0xffff,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 0xffff_ffff,
            _ => {}
        }
    }
    u64::MAX
}

/// Runs a string instruction, with or without a repeat prefix.
fn string<B: Body, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let instruction = op.instruction();
    let run = Run::new::<W>(cpu, op);
    let (repe, repne) = (instruction.has_rep_prefix(), instruction.has_repne_prefix());
    if !repe && !repne {
        return B::step::<W>(cpu, op, &run, 1, io).map(|_| ());
    }
    // A count of 32 bits is zero-extended even if nothing happens or the first iteration faults.
    cpu.regs[gpr::RCX] = run.extended(cpu.regs[gpr::RCX]);
    // Breakpoints and traps are between iterations, too. RF, which a handler's IRET sets where an iteration has faulted, and shadows
    // last to the instruction's end.
    let careful = cpu.special & !(special::RESUME | special::SHADOW) != 0;
    let flags = cpu.flags;
    let mut stretch = 0;
    loop {
        let left = cpu.regs[gpr::RCX] & run.mask;
        if left == 0 {
            return Ok(());
        }
        let most = if careful { 1 } else { left.min(STRETCH) };
        let done = match B::step::<W>(cpu, op, &run, most, io) {
            Ok(done) => done,
            Err(stop) => {
                // A fault leaves the flags as they were before the first iteration (SDM 2B REP).
                cpu.flags = flags;
                for &register in B::EXTENDS {
                    cpu.regs[register] = run.extended(cpu.regs[register]);
                }
                return Err(stop);
            }
        };
        set_masked(cpu, gpr::RCX, left - done, run.mask);
        if B::COMPARES && cpu.flags.zf() != repe {
            return Ok(());
        }
        if left == done {
            return Ok(());
        }
        if careful && cpu.special & special::TRAP != 0 {
            cpu.state.dr6 |= dr6::BS;
            cpu.special |= special::DEBUG_PENDING;
            // Between iterations RF is set in what the handler sees (SDM 3B 17.3.1.1).
            cpu.state.rflags.insert(Rflags::RF);
        }
        stretch += done;
        // The instruction may have overwritten itself, or something may be waiting.
        if careful || cpu.stop_at == 0 || stretch >= STRETCH && cpu.kicker.is_requested() {
            // Comparisons show in the flags only when the instruction ends.
            cpu.flags = flags;
            return Err(Stop::Pause);
        }
        if stretch >= STRETCH {
            stretch = 0;
        }
    }
}

struct Movs;
impl Body for Movs {
    const EXTENDS: &[usize] = &[gpr::RSI, gpr::RDI];
    fn step<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        run: &Run,
        most: u64,
        io: &mut dyn Platform,
    ) -> Result<u64, Stop> {
        let (from, to) = (run.offset(cpu, gpr::RSI), run.offset(cpu, gpr::RDI));
        let mut done = 1;
        if most > 1
            && let Some(bulk) = copy_in_page::<W>(cpu, op, run, from, to, most)
        {
            done = bulk;
        } else {
            let value: W = cpu.read(op.segment, from, io)?;
            cpu.write(ES, to, value, io)?;
        }
        run.advance(cpu, gpr::RSI, done);
        run.advance(cpu, gpr::RDI, done);
        Ok(done)
    }
}

/// Copies as many elements as both pages hold. `None` where the plain way must be gone.
fn copy_in_page<W: Width>(cpu: &mut Cpu, op: &Op, run: &Run, from: u64, to: u64, most: u64) -> Option<u64> {
    let source = cpu.linear(op.segment, from, W::BYTES, false).ok()?;
    let target = cpu.linear(ES, to, W::BYTES, true).ok()?;
    let count = most.min(run.elements_in_page::<W>(source)).min(run.elements_in_page::<W>(target));
    let bytes = count * W::BYTES;
    // The offsets must not wrap, and the whole run must be inside both segments.
    if count < 2 || run.mask - from < bytes || run.mask - to < bytes {
        return None;
    }
    cpu.linear(op.segment, from, bytes, false).ok()?;
    cpu.linear(ES, to, bytes, true).ok()?;
    let source = cpu.tlb.read(source, W::BYTES)?;
    let target = cpu.tlb.write(target, W::BYTES)?;
    // An overlap closer than an element repeats bytes, which only the element-wise way gets right.
    let distance = target.0.wrapping_sub(source.0);
    if distance != 0 && distance < W::BYTES {
        return None;
    }
    let written = cpu.memory.copy_ascending(source, target, bytes);
    cpu.note_written(written);
    Some(count)
}

struct Stos;
impl Body for Stos {
    const EXTENDS: &[usize] = &[gpr::RDI];
    fn step<W: Width>(
        cpu: &mut Cpu,
        _: &Op,
        run: &Run,
        most: u64,
        io: &mut dyn Platform,
    ) -> Result<u64, Stop> {
        let to = run.offset(cpu, gpr::RDI);
        let value: W = cpu.reg(gpr::RAX as u8, 0);
        let mut done = 1;
        if most > 1
            && let Some(bulk) = fill_in_page(cpu, run, to, value, most)
        {
            done = bulk;
        } else {
            cpu.write(ES, to, value, io)?;
        }
        run.advance(cpu, gpr::RDI, done);
        Ok(done)
    }
}

fn fill_in_page<W: Width>(cpu: &mut Cpu, run: &Run, to: u64, value: W, most: u64) -> Option<u64> {
    let target = cpu.linear(ES, to, W::BYTES, true).ok()?;
    let count = most.min(run.elements_in_page::<W>(target));
    let bytes = count * W::BYTES;
    if count < 2 || run.mask - to < bytes {
        return None;
    }
    cpu.linear(ES, to, bytes, true).ok()?;
    let target = cpu.tlb.write(target, W::BYTES)?;
    let written = cpu.memory.fill(target, value, count);
    cpu.note_written(written);
    Some(count)
}

struct Lods;
impl Body for Lods {
    fn step<W: Width>(cpu: &mut Cpu, op: &Op, run: &Run, _: u64, io: &mut dyn Platform) -> Result<u64, Stop> {
        let value: W = cpu.read(op.segment, run.offset(cpu, gpr::RSI), io)?;
        cpu.set_reg(gpr::RAX as u8, 0, value);
        run.advance(cpu, gpr::RSI, 1);
        Ok(1)
    }
}

struct Cmps;
impl Body for Cmps {
    const COMPARES: bool = true;
    fn step<W: Width>(cpu: &mut Cpu, op: &Op, run: &Run, _: u64, io: &mut dyn Platform) -> Result<u64, Stop> {
        // Hosts read the operand at RDI first, as the address of a page fault shows.
        let b: W = cpu.read(ES, run.offset(cpu, gpr::RDI), io)?;
        let a: W = cpu.read(op.segment, run.offset(cpu, gpr::RSI), io)?;
        cpu.flags = compare(a, b);
        run.advance(cpu, gpr::RSI, 1);
        run.advance(cpu, gpr::RDI, 1);
        Ok(1)
    }
}

struct Scas;
impl Body for Scas {
    const COMPARES: bool = true;
    fn step<W: Width>(cpu: &mut Cpu, _: &Op, run: &Run, _: u64, io: &mut dyn Platform) -> Result<u64, Stop> {
        let b: W = cpu.read(ES, run.offset(cpu, gpr::RDI), io)?;
        cpu.flags = compare(cpu.reg::<W>(gpr::RAX as u8, 0), b);
        run.advance(cpu, gpr::RDI, 1);
        Ok(1)
    }
}

struct Ins;
impl Body for Ins {
    fn step<W: Width>(cpu: &mut Cpu, _: &Op, run: &Run, _: u64, io: &mut dyn Platform) -> Result<u64, Stop> {
        let port = cpu.regs[gpr::RDX] as u16;
        cpu.check_io(port, W::BYTES as u8, io)?;
        // The port is read only when its value can be stored: reading may have side effects.
        let place = cpu.place_for_write(ES, run.offset(cpu, gpr::RDI), W::BYTES, io)?;
        let mut data = [0; 8];
        io.pio(port, Access::Read(&mut data[..W::BYTES as usize]));
        cpu.store(&place, W::BYTES, u64::from_le_bytes(data), io);
        cpu.watch_io(port, W::BYTES);
        cpu.look_up();
        run.advance(cpu, gpr::RDI, 1);
        Ok(1)
    }
}

struct Outs;
impl Body for Outs {
    fn step<W: Width>(cpu: &mut Cpu, op: &Op, run: &Run, _: u64, io: &mut dyn Platform) -> Result<u64, Stop> {
        let port = cpu.regs[gpr::RDX] as u16;
        cpu.check_io(port, W::BYTES as u8, io)?;
        let value: W = cpu.read(op.segment, run.offset(cpu, gpr::RSI), io)?;
        io.pio(port, Access::Write(&value.to_u64().to_le_bytes()[..W::BYTES as usize]));
        cpu.watch_io(port, W::BYTES);
        run.advance(cpu, gpr::RSI, 1);
        Ok(1)
    }
}

/// The handler of a string instruction.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    // MOVSD and CMPSD are also SSE instructions.
    if !instruction.is_string_instruction() {
        return None;
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Movsb => string::<Movs, u8>,
        Mnemonic::Movsw => string::<Movs, u16>,
        Mnemonic::Movsd => string::<Movs, u32>,
        Mnemonic::Movsq => string::<Movs, u64>,
        Mnemonic::Stosb => string::<Stos, u8>,
        Mnemonic::Stosw => string::<Stos, u16>,
        Mnemonic::Stosd => string::<Stos, u32>,
        Mnemonic::Stosq => string::<Stos, u64>,
        Mnemonic::Lodsb => string::<Lods, u8>,
        Mnemonic::Lodsw => string::<Lods, u16>,
        Mnemonic::Lodsd => string::<Lods, u32>,
        Mnemonic::Lodsq => string::<Lods, u64>,
        Mnemonic::Cmpsb => string::<Cmps, u8>,
        Mnemonic::Cmpsw => string::<Cmps, u16>,
        Mnemonic::Cmpsd => string::<Cmps, u32>,
        Mnemonic::Cmpsq => string::<Cmps, u64>,
        Mnemonic::Scasb => string::<Scas, u8>,
        Mnemonic::Scasw => string::<Scas, u16>,
        Mnemonic::Scasd => string::<Scas, u32>,
        Mnemonic::Scasq => string::<Scas, u64>,
        Mnemonic::Insb => string::<Ins, u8>,
        Mnemonic::Insw => string::<Ins, u16>,
        Mnemonic::Insd => string::<Ins, u32>,
        Mnemonic::Outsb => string::<Outs, u8>,
        Mnemonic::Outsw => string::<Outs, u16>,
        Mnemonic::Outsd => string::<Outs, u32>,
        _ => return None,
    })
}
