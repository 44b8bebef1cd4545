//! Vector and x87 instructions: what joins `native` to the CPU.
//!
//! Checks the enable bits, lends the registers to the stub, and turns its faults into the CPU's. With CR0.NE clear a
//! pending x87 exception should raise IRQ 13 through the FERR# pin (SDM 1 8.7.2); there is no such wire: it is #MF too.

use crate::cpu::{CodeSize, Cpu, Step, Stop};
use crate::flags::Flags;
use crate::native::{Mode, Native, NativeContext, NativeFault, NeedFault, requirements};
use crate::op::{Handler, Op, segment_slot};
use crate::walk::{Actor, Intent};
use engine::Platform;
use iced_x86::{Instruction, Mnemonic, Register};
use x86::control::cr4;
use x86::state::VectorState;
use x86::{Exception, Rflags, Vector};

/// The handler of a vector, x87 or MMX instruction.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Xsaves | Mnemonic::Xsaves64 | Mnemonic::Xrstors | Mnemonic::Xrstors64 => {
            Some(execute_privileged)
        }
        _ => Native::supports(instruction).then_some(execute as Handler),
    }
}

/// Supervisor state: CPL 0 only.
fn execute_privileged(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if cpu.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    execute(cpu, op, io)
}

fn execute(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let instruction = op.instruction();
    let (cr0, cr4, protected) = (cpu.state.cr0, cpu.state.cr4, cpu.protected);
    requirements(instruction).check(cr0, cr4, &cpu.state.vector, protected).map_err(|fault| match fault {
        NeedFault::InvalidOpcode => Exception::UD,
        NeedFault::DeviceNotAvailable => Exception::NM,
    })?;
    let Some(detail) = &op.detail else { return Err(Exception::UD.into()) };
    let mut stub = detail.stub.borrow_mut();
    // Taken out, since the stub borrows the registers while it runs.
    let mut native = std::mem::take(&mut cpu.native);
    let pkru = cpu.state.vector.pkru;
    let outcome = native.execute(instruction, &mut stub, &mut Context { cpu, op, io });
    cpu.native = native;
    if cpu.state.vector.pkru != pkru {
        // XRSTOR has loaded it; cached translations have the keys' rights in them.
        cpu.tlb.flush();
    }
    outcome.map_err(|fault| match fault {
        NativeFault::Memory(stop) => stop,
        NativeFault::X87 => Exception::new(Vector::X87).into(),
        NativeFault::Simd if cpu.state.cr4 & cr4::OSXMMEXCPT == 0 => Exception::UD.into(),
        NativeFault::Simd => Exception::new(Vector::Simd).into(),
        NativeFault::GeneralProtection => Exception::GP0.into(),
        NativeFault::InvalidOpcode => Exception::UD.into(),
    })
}

/// The vCPU as one vector instruction sees it.
struct Context<'a> {
    cpu: &'a mut Cpu,
    op: &'a Op,
    io: &'a mut dyn Platform,
}

impl Context<'_> {
    /// The offset of one of an operand's elements. In 64-bit code only where the operand begins is cut to the address size (SDM 1
    /// 3.3.7); what follows goes on behind 4 GiB.
    fn wrapped(&self, offset: u64) -> u64 {
        if self.cpu.code_size == CodeSize::Bits64 { offset } else { offset & self.op.address_mask }
    }

    /// The segment of an access. For the instruction's own operand the op knows better: 64-bit code ignores most overrides.
    fn slot(&self, segment: Register) -> u8 {
        if segment == self.op.instruction().memory_segment() {
            self.op.segment
        } else {
            segment_slot(segment)
        }
    }
}

impl NativeContext for Context<'_> {
    type Fault = Stop;

    fn registers(&mut self) -> (&mut [u64; 16], &mut VectorState) {
        let general = self.cpu.regs.first_chunk_mut().expect("there are more than 16 registers");
        (general, &mut self.cpu.state.vector)
    }

    fn flags(&mut self) -> u64 {
        self.cpu.flags.to_rflags().bits()
    }

    fn set_flags(&mut self, flags: u64) {
        self.cpu.flags = Flags::from_rflags(Rflags::from_bits_truncate(flags));
    }

    fn mode(&self) -> Mode {
        Mode { long: self.cpu.code_size == CodeSize::Bits64, protected: self.cpu.protected }
    }

    fn instruction_pointer(&self) -> u64 {
        self.cpu.current_rip(self.op)
    }

    fn xss(&self) -> u64 {
        self.cpu.state.xss
    }

    fn operand_address(&mut self) -> u64 {
        self.cpu.effective_address(self.op)
    }

    fn linear_address(&mut self, segment: Register, offset: u64) -> u64 {
        let slot = usize::from(self.slot(segment));
        self.cpu.segment_base[slot].wrapping_add(self.wrapped(offset))
    }

    fn reachable(&mut self, segment: Register, offset: u64) -> Result<(), Stop> {
        let slot = self.slot(segment);
        let address = self.cpu.linear(slot, self.wrapped(offset), 1, false)?;
        self.cpu.check_canonical(slot, address)
    }

    fn check_alignment(&mut self, segment: Register, offset: u64, alignment: u64) -> Result<(), Stop> {
        let address = self.linear_address(segment, offset);
        if address & (alignment - 1) == 0 { Ok(()) } else { self.cpu.check_alignment() }
    }

    fn touch(
        &mut self,
        segment: Register,
        offset: u64,
        size: u64,
        write: bool,
        alignment: u64,
    ) -> Result<(), Stop> {
        let slot = self.slot(segment);
        let address = self.cpu.linear(slot, self.wrapped(offset), size, write)?;
        let intent = if write { Intent::Write } else { Intent::Read };
        self.cpu.place_aligned(slot, address, size, alignment, intent, Actor::Explicit, self.io).map(|_| ())
    }

    fn load(&mut self, segment: Register, offset: u64, into: &mut [u8], alignment: u64) -> Result<(), Stop> {
        let (slot, size) = (self.slot(segment), into.len() as u64);
        let address = self.cpu.linear(slot, self.wrapped(offset), size, false)?;
        if address & (alignment - 1) == 0
            && let Some(ram) = self.cpu.tlb.read(address, size)
        {
            self.cpu.memory.load_bytes(ram, into);
            return Ok(());
        }
        let place =
            self.cpu.place_aligned(slot, address, size, alignment, Intent::Read, Actor::Explicit, self.io)?;
        self.cpu.load_bytes(&place, into, self.io);
        Ok(())
    }

    fn store(&mut self, segment: Register, offset: u64, from: &[u8], alignment: u64) -> Result<(), Stop> {
        let (slot, size) = (self.slot(segment), from.len() as u64);
        let address = self.cpu.linear(slot, self.wrapped(offset), size, true)?;
        if address & (alignment - 1) == 0
            && let Some(ram) = self.cpu.tlb.write(address, size)
        {
            let written = self.cpu.memory.store_bytes(ram, from);
            self.cpu.note_written(written);
            return Ok(());
        }
        let place = self.cpu.place_aligned(
            slot,
            address,
            size,
            alignment,
            Intent::Write,
            Actor::Explicit,
            self.io,
        )?;
        self.cpu.store_bytes(&place, from, self.io);
        Ok(())
    }
}
