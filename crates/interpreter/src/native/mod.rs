//! Vector and x87 instructions, run as themselves on the host.
//!
//! x87, MMX, SSE, AVX, AVX-512, AES, SHA, BMI and their like have no written-out semantics: the instruction is compiled,
//! once, into a small host function that loads the guest's registers, executes it with a bounce buffer for its memory
//! operand, and stores the registers back (`compile.rs`). The memory operand is fetched before and stored after by the
//! owner's [`NativeContext`]; if either faults, nothing has been committed. What the host can't do in the guest's place
//! is written out: gathers and scatters, implicit operands, state images, x87 environments (`special.rs`, `x87.rs`,
//! `xstate.rs`).
//!
//! Called by the interpreter for each such instruction after it has asked [`requirements`]. A [`Native`] belongs to
//! one vCPU and is used by one thread at a time; no locks.
//!
//! SIMD exceptions: the guest's masks are in force while the instruction runs. If it raises one, nothing is stored but the
//! flags, and the guest gets #XM.

mod compile;
mod host;
mod needs;
mod operand;
mod plan;
mod raw;
mod simd;
mod special;
#[cfg(test)]
mod tests;
mod x87;
pub mod xstate;

pub use compile::Unsupported;
pub use needs::{FeatureNeeds, NeedFault, requirements};
pub use plan::{Elements, MemPlan};

use compile::{ARITHMETIC, Fpu, Rewritten, Traits};
use iced_x86::{Instruction, Register};
use raw::{Arena, Entry, Frame};
use special::Special;
use std::collections::HashMap;
use x86::state::VectorState;

/// Mode bits that the formats of some operands depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// 64-bit mode.
    pub long: bool,
    /// Neither real nor virtual-8086 mode.
    pub protected: bool,
}

/// The vCPU as a vector instruction sees it.
///
/// Offsets are effective addresses; the context truncates them to the instruction's address size, applies the segment, and
/// checks limits and alignment traps.
pub trait NativeContext {
    /// A fault in accessing memory.
    type Fault;
    /// General registers and vector state.
    fn registers(&mut self) -> (&mut [u64; 16], &mut VectorState);
    /// The arithmetic flags, in RFLAGS's positions (other bits don't matter).
    fn flags(&mut self) -> u64;
    /// Sets the arithmetic flags; other bits are to be ignored.
    fn set_flags(&mut self, flags: u64);
    /// The mode.
    fn mode(&self) -> Mode;
    /// RIP of the instruction, for the x87 instruction pointer.
    fn instruction_pointer(&self) -> u64;
    /// IA32_XSS, for XSAVES and XRSTORS.
    fn xss(&self) -> u64 {
        0
    }
    /// Effective address of the memory operand; with a vector index, of base and displacement alone.
    fn operand_address(&mut self) -> u64;
    /// Linear address, for alignment checks.
    fn linear_address(&mut self, segment: Register, offset: u64) -> u64;
    /// Whether an address is one at all: canonical, in the segment.
    ///
    /// # Errors
    /// The fault.
    fn reachable(&mut self, segment: Register, offset: u64) -> Result<(), Self::Fault>;
    /// Does what an access of `size` bytes does before it happens.
    ///
    /// # Errors
    /// The fault.
    fn touch(
        &mut self,
        segment: Register,
        offset: u64,
        size: u64,
        write: bool,
        alignment: u64,
    ) -> Result<(), Self::Fault>;
    /// #AC where it is enabled and the address isn't a multiple of `alignment`, a power of two.
    ///
    /// # Errors
    /// The fault.
    fn check_alignment(&mut self, segment: Register, offset: u64, alignment: u64) -> Result<(), Self::Fault>;
    /// Reads memory. `alignment`: what #AC asks for, 1 for nothing.
    ///
    /// # Errors
    /// The fault.
    fn load(
        &mut self,
        segment: Register,
        offset: u64,
        into: &mut [u8],
        alignment: u64,
    ) -> Result<(), Self::Fault>;
    /// Writes memory: all bytes or, with a fault, none. `alignment` as in [`NativeContext::load`].
    ///
    /// # Errors
    /// The fault.
    fn store(
        &mut self,
        segment: Register,
        offset: u64,
        from: &[u8],
        alignment: u64,
    ) -> Result<(), Self::Fault>;
}

/// Why an instruction did not complete. Nothing has been committed, except completed elements of gathers and scatters and the
/// flags of [`NativeFault::Simd`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NativeFault<F> {
    /// The context's fault.
    Memory(F),
    /// A pending x87 exception: #MF, or with CR0.NE clear the external interrupt.
    X87,
    /// An unmasked SIMD exception: #XM, or #UD without CR4.OSXMMEXCPT.
    Simd,
    /// #GP(0).
    GeneralProtection,
    /// #UD: not an instruction for here, or one that the host lacks.
    InvalidOpcode,
}

/// What is kept beside a decoded instruction: where its stub is. Opaque, small, starts empty.
#[derive(Clone, Copy, Default, Debug)]
pub struct StubCell(Handle);

#[derive(Clone, Copy, Default, Debug)]
enum Handle {
    #[default]
    Empty,
    Special(Special),
    Compiled {
        generation: u32,
        index: u32,
    },
}

#[derive(Clone, Copy)]
struct Stub {
    entry: Entry,
    traits: Traits,
}

struct Inner {
    arena: Arena,
    frame: Box<Frame>,
    stubs: Vec<Stub>,
    known: HashMap<[u8; 17], u32>,
}

/// The stubs of one vCPU. Empty by default, so that the owner can take it out of itself while it executes; an empty one
/// executes nothing.
#[derive(Default)]
pub struct Native(Option<Box<Inner>>);

const ARENA_LEN: usize = 2 << 20;
/// Values that no guest has there, to see what the host's FPU wrote.
const NO_FIP: u64 = 0x5a5a_a5a5_5a5a;
const NO_FOP: u16 = 0x7ff;

impl Native {
    /// An empty set of stubs.
    ///
    /// # Errors
    /// The host refuses executable memory.
    pub fn new() -> Result<Self, engine::EngineError> {
        Self::with_arena(ARENA_LEN)
    }

    fn with_arena(len: usize) -> Result<Self, engine::EngineError> {
        let arena = Arena::new(len)
            .map_err(|source| engine::EngineError::Host { what: "executable memory", source })?;
        let inner = Inner { arena, frame: Frame::new(), stubs: Vec::new(), known: HashMap::new() };
        Ok(Self(Some(Box::new(inner))))
    }

    /// Whether [`Native::execute`] can run `instruction` on this host.
    #[must_use]
    pub fn supports(instruction: &Instruction) -> bool {
        Special::of(instruction).is_some() || Rewritten::new(instruction).is_ok()
    }

    /// Executes `instruction`. RIP is the caller's. `cell` belongs to the instruction.
    ///
    /// # Errors
    /// See [`NativeFault`].
    pub fn execute<C: NativeContext>(
        &mut self,
        instruction: &Instruction,
        cell: &mut StubCell,
        context: &mut C,
    ) -> Result<(), NativeFault<C::Fault>> {
        let inner = self.0.as_mut().ok_or(NativeFault::InvalidOpcode)?;
        let stub = match cell.0 {
            Handle::Compiled { generation, index } if generation == inner.arena.generation() => {
                inner.stubs[index as usize]
            }
            Handle::Special(special) => return special.execute(instruction, context),
            _ => {
                if let Some(special) = Special::of(instruction) {
                    cell.0 = Handle::Special(special);
                    return special.execute(instruction, context);
                }
                let index = inner.compile(instruction).map_err(|Unsupported| NativeFault::InvalidOpcode)?;
                cell.0 = Handle::Compiled { generation: inner.arena.generation(), index };
                inner.stubs[index as usize]
            }
        };
        inner.run(&stub, instruction, context)
    }

    /// Makes every stub stale, as a full arena does.
    #[cfg(test)]
    fn reset(&mut self) {
        if let Some(inner) = &mut self.0 {
            inner.reset();
        }
    }
}

impl Inner {
    fn reset(&mut self) {
        self.arena.reset();
        self.stubs.clear();
        self.known.clear();
    }

    fn compile(&mut self, instruction: &Instruction) -> Result<u32, Unsupported> {
        let rewritten = Rewritten::new(instruction)?;
        if let Some(index) = self.known.get(&rewritten.key) {
            return Ok(*index);
        }
        let code = rewritten.generate()?;
        let entry = match self.arena.publish(&code) {
            Some(entry) => entry,
            None => {
                self.reset();
                self.arena.publish(&code).ok_or(Unsupported)?
            }
        };
        let index = self.stubs.len() as u32;
        self.stubs.push(Stub { entry, traits: rewritten.traits });
        self.known.insert(rewritten.key, index);
        Ok(index)
    }

    fn run<C: NativeContext>(
        &mut self,
        stub: &Stub,
        instruction: &Instruction,
        context: &mut C,
    ) -> Result<(), NativeFault<C::Fault>> {
        let traits = &stub.traits;
        if traits.waits && x87::pending(context.registers().1) {
            return Err(NativeFault::X87);
        }
        let mut place =
            operand::Place { segment: instruction.memory_segment(), offset: 0, alignment: 1, element: 1 };
        let mut touched = u64::MAX;
        if let Some(plan) = &traits.memory {
            place.offset = context.operand_address();
            place.alignment = u64::from(plan.check);
            place.element = usize::from(plan.element).max(1);
            if plan.elements != Elements::All {
                touched = plan.active_bytes(context.registers().1);
            }
            if plan.alignment > 1
                && touched != 0
                && !context
                    .linear_address(place.segment, place.offset)
                    .is_multiple_of(u64::from(plan.alignment))
            {
                return Err(NativeFault::GeneralProtection);
            }
            if plan.read {
                let into = &mut self.frame.bounce[..usize::from(plan.size)];
                let loaded = if plan.elements == Elements::All {
                    context.load(place.segment, place.offset, into, place.alignment)
                } else {
                    into.fill(0);
                    place.load_some(context, into, touched)
                };
                loaded.map_err(NativeFault::Memory)?;
            }
        }
        if traits.flags {
            self.frame.flags = (context.flags() & ARITHMETIC) | 0x202;
        }
        if traits.fpu != Fpu::None {
            self.load_x87(context.registers().1);
        }
        let mxcsr = context.registers().1.mxcsr;
        let completed = if traits.mxcsr {
            self.run_with_mxcsr(stub, context)
        } else {
            let (gpr, vector) = context.registers();
            self.arena.run(stub.entry, &mut self.frame, gpr, vector)
        };
        match completed {
            Ok(true) => {}
            Ok(false) => {
                if traits.fpu == Fpu::Mmx {
                    // Hosts are in MMX mode by then.
                    x87::enter_mmx(context.registers().1);
                }
                // VCVTPS2PH: AMD's processors look at the place first.
                if let Some(plan) = traits.memory.filter(|plan| plan.write && touched != 0)
                    && host::Host::get().amd
                {
                    let noted = std::mem::replace(&mut context.registers().1.mxcsr, mxcsr);
                    let size = u64::from(plan.size);
                    let checked = if plan.elements == Elements::All {
                        context.touch(place.segment, place.offset, size, true, place.alignment)
                    } else {
                        place.check_some(context, touched)
                    };
                    checked.map_err(NativeFault::Memory)?;
                    context.registers().1.mxcsr = noted;
                }
                return Err(NativeFault::Simd);
            }
            Err(raw::Stale) => return Err(NativeFault::InvalidOpcode),
        }
        if let Some(plan) = &traits.memory
            && plan.write
            && traits.fpu == Fpu::X87
            && self.x87_store_is_withheld(instruction)
        {
            // AMD's processors look at the operand's pages nevertheless.
            if host::Host::get().amd {
                let size = u64::from(plan.size);
                context
                    .touch(place.segment, place.offset, size, true, place.alignment)
                    .map_err(NativeFault::Memory)?;
            }
        } else if let Some(plan) = &traits.memory
            && plan.write
        {
            let from = &self.frame.bounce[..usize::from(plan.size)];
            let stored = match plan.elements {
                Elements::All if plan.size == 10 && !host::Host::get().amd => {
                    place.store_extended(context, from)
                }
                Elements::All => context.store(place.segment, place.offset, from, place.alignment),
                _ if plan.element == plan.size && touched != 0 => {
                    context.store(place.segment, place.offset, from, place.alignment)
                }
                _ if plan.whole => place.store_within(context, from, touched),
                _ => place.store_some(context, from, touched),
            };
            // MXCSR stays changed: Intel's VCVTPS2PH notes its flags even if it can't store.
            if let Err(fault) = stored {
                if host::Host::get().amd {
                    context.registers().1.mxcsr = mxcsr;
                }
                if traits.fpu == Fpu::Mmx {
                    operand::leave_top_cleared(context);
                }
                return Err(NativeFault::Memory(fault));
            }
        }
        if traits.fpu != Fpu::None {
            let pointer = context.instruction_pointer();
            self.store_x87(instruction, pointer, place.offset, context.registers().1);
        }
        if traits.flags {
            context.set_flags(self.frame.flags & ARITHMETIC);
        }
        Ok(())
    }

    fn load_x87(&mut self, state: &VectorState) {
        let fx = &mut self.frame.fx;
        fx[..160].copy_from_slice(&state.x87);
        fx[6..8].copy_from_slice(&NO_FOP.to_le_bytes());
        fx[8..16].copy_from_slice(&NO_FIP.to_le_bytes());
        fx[16..24].copy_from_slice(&NO_FIP.to_le_bytes());
        fx[24..28].copy_from_slice(&self.frame.mxcsr_host.to_le_bytes());
        fx[28..32].fill(0);
    }

    /// A store with an unmasked invalid operation, overflow or underflow leaves memory alone (SDM 1 8.5).
    fn x87_store_is_withheld(&self, instruction: &Instruction) -> bool {
        let fx = &self.frame.fx;
        let (control, status) = (u16::from_le_bytes([fx[0], fx[1]]), u16::from_le_bytes([fx[2], fx[3]]));
        !instruction.op_code().is_fpu_no_wait() && status & !control & 0x19 != 0
    }

    /// Takes the x87 state back. Where the host's FPU noted its own last instruction, the guest's is put.
    fn store_x87(&mut self, instruction: &Instruction, pointer: u64, operand: u64, state: &mut VectorState) {
        let fx = &self.frame.fx;
        let long = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&fx[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        state.x87[..6].copy_from_slice(&fx[..6]);
        let mut pointers = |at: usize, guest: u64| match long(at) {
            NO_FIP => {}
            0 => state.x87[at..at + 8].fill(0),
            _ => state.x87[at..at + 8].copy_from_slice(&guest.to_le_bytes()),
        };
        pointers(8, pointer);
        pointers(16, operand);
        match u16::from_le_bytes([fx[6], fx[7]]) {
            NO_FOP => {}
            0 if long(8) == 0 => state.x87[6..8].fill(0),
            _ => state.x87[6..8].copy_from_slice(&last_opcode(instruction).to_le_bytes()),
        }
        state.x87[32..160].copy_from_slice(&fx[32..160]);
    }
}

/// FOP: three bits of the first opcode byte and the ModRM byte (SDM 1 8.1.9), of the shortest encoding.
fn last_opcode(instruction: &Instruction) -> u16 {
    let bitness = match instruction.code_size() {
        iced_x86::CodeSize::Code16 => 16,
        iced_x86::CodeSize::Code32 => 32,
        _ => 64,
    };
    let mut encoder = iced_x86::Encoder::new(bitness);
    let mut plain = *instruction;
    plain.set_segment_prefix(Register::None);
    if encoder.encode(&plain, instruction.ip()).is_err() {
        return 0;
    }
    let bytes = encoder.take_buffer();
    let opcode = bytes.iter().position(|byte| (0xd8..=0xdf).contains(byte)).unwrap_or(0);
    let byte = |at: usize| u16::from(bytes.get(at).copied().unwrap_or(0));
    (byte(opcode) & 7) << 8 | byte(opcode + 1)
}
