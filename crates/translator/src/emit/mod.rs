//! From guest instructions to host code: one block at a time.
//!
//! What an instruction becomes depends on its kind:
//!
//! | module | instructions |
//! |---|---|
//! | `check` | blocks that look at their own source |
//! | `plain` | everything that is run as itself, with rewritten registers and memory operand |
//! | `same` | what needs no change at all |
//! | `kinds` | which instructions are which |
//! | `slots` | registers in the context as memory operands |
//! | `memory` | the memory operand: linear address, page-crossing check, look-up in the view |
//! | `window` | one look-up for several accesses |
//! | `island` | what is rarely run |
//! | `stack` | PUSH, POP, LEAVE and their like |
//! | `string` | MOVS, STOS, LODS, SCAS, CMPS |
//! | `system` | flags and registers of the system that need no Rust |
//! | `bases` | RDFSBASE and its kin |
//! | `privilege` | SYSCALL, SYSRET, IRETQ |
//! | `flow` | jumps, calls, returns; links between blocks |
//!
//! An instruction without an emitter ends its block with a call of the `interpret` stub: the reference engine executes it.
//!
//! Registers: most guest registers live in a host register of their own ([`host`]); R11, R13 and R15 live in the context. RCX and
//! R11 of the host are scratch; between guest instructions nothing is in them, but that R11 may hold a window (`window`). Flags are the guest's at every instruction
//! boundary *and at every point where a guest instruction may fault or leave*, so nothing that is inserted changes them.
//! Nothing architectural changes before the last point of an instruction that may fault or leave: it can always be
//! executed anew by the reference.

mod bases;
mod check;
mod flow;
#[cfg(test)]
mod golden;
mod island;
mod kinds;
mod memory;
mod plain;
mod privilege;
mod same;
mod slots;
mod stack;
mod string;
mod system;
mod window;

pub(crate) use check::{Source, soften};

use crate::asm::*;
use crate::context::{cell, field, gpr};
use crate::stubs::{ExitReason, Stubs};
use iced_x86::{
    Decoder, DecoderOptions, Encoder, FlowControl, Instruction, InstructionInfoFactory, Register,
};
use island::{ACCESS_ROOM, Access, Holes, Island, PLAIN_ROOM, Rare};
use memory::Address;
use smallvec::{SmallVec, smallvec};

/// An instruction's bytes.
type Encoded = SmallVec<[u8; 16]>;

/// The host register of guest register `index`, if it has one.
pub(crate) const fn host(index: usize) -> Option<Reg> {
    match index {
        1 => Some(R9),
        4 => Some(R15),
        9 => Some(R13),
        11 | 13 | 15 => None,
        _ => Some(Reg(index as u8)),
    }
}

/// What a translation depends on besides the code bytes. Blocks of different modes are different blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Mode {
    /// 64-bit code; else 32-bit code with a 32-bit stack.
    pub(crate) long: bool,
    /// CPL 3; else CPL 0.
    pub(crate) user: bool,
    /// Bit n: segment register n needs no checks and has base 0 (FS, GS: any base).
    pub(crate) flat: u8,
    /// Which instructions on vector registers are enabled: nothing, x87 and SSE, AVX, AVX-512.
    pub(crate) vector: VectorLevel,
    /// Instructions are counted and the budget is looked at.
    pub(crate) counted: bool,
    /// Every access is looked up by itself: see [`memory`]'s windows. Entered only where a window can't be had.
    pub(crate) single: bool,
}

/// See [`Mode::vector`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum VectorLevel {
    None,
    Sse,
    Avx,
    Avx512,
}

/// A block to translate.
pub(crate) struct Request<'a> {
    /// Code from the block's first byte, at most to the end of its page.
    pub(crate) bytes: &'a [u8],
    /// RIP of the first byte.
    pub(crate) rip: u64,
    pub(crate) mode: Mode,
    pub(crate) stubs: &'a Stubs,
    /// Where the code will run.
    pub(crate) base: u64,
    /// Number of the page's cell.
    pub(crate) cell: u32,
    /// The cell of the page on which the block's one instruction goes on. `bytes` go on there, too.
    pub(crate) second_cell: Option<u32>,
    /// Number of the block.
    pub(crate) block: u32,
    /// Number of its first link.
    pub(crate) first_link: u32,
    pub(crate) features: Features,
    /// The block looks at its source each time it is entered.
    pub(crate) source: Option<Source<'a>>,
}

/// What of guest and host emitters have to know.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Features {
    /// The guest has RDTSCP.
    pub(crate) rdtscp: bool,
    /// The guest has STAC and CLAC, and the host can set GS without a system call.
    pub(crate) view_switch: bool,
    /// The host can set GS without a system call.
    pub(crate) crossing: bool,
}

/// Where a guest instruction starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    /// Offset in the host code.
    pub(crate) host: u32,
    /// Offset in the guest code.
    pub(crate) guest: u16,
}

/// A direct jump out of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LinkSite {
    /// Offset in the host code of the 32-bit displacement.
    pub(crate) jump: u32,
    /// Offset of the stub that it goes to while it isn't linked.
    pub(crate) stub: u32,
    /// Guest address that it leads to.
    pub(crate) target: u64,
    /// It leads to a translation without windows.
    pub(crate) single: bool,
}

/// A translated block.
pub(crate) struct Translation {
    pub(crate) code: Vec<u8>,
    /// What in it depends on its place and on the guest address. `None`: it can't be moved.
    pub(crate) relocations: Option<Box<[Relocation]>>,
    /// Offset of the entry for those who know that the page is mapped.
    pub(crate) body: u32,
    pub(crate) marks: Vec<Mark>,
    pub(crate) links: Vec<LinkSite>,
    /// Guest bytes.
    pub(crate) len: u16,
    /// Guest instructions.
    pub(crate) instructions: u16,
    /// The last of them is for the reference engine.
    pub(crate) ends_interpreted: bool,
}

/// Most instructions in a block.
const MAX_INSTRUCTIONS: u16 = 64;
/// Most conditional branches that a block goes on after, if they aren't taken.
const INNER_BRANCHES: u32 = 5;

/// How an instruction was emitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flow {
    /// The next one follows.
    Next,
    /// The block ends here.
    End,
}

/// There is no emitter for the instruction, or not for this form of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct NotEmitted;

type Emitted = Result<Flow, NotEmitted>;

/// What emitting needs, kept from block to block.
pub(crate) struct Desk {
    encoder: Encoder,
    info: InstructionInfoFactory,
    code: Vec<u8>,
    list: Vec<Instruction>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            code: Vec::new(),
            list: Vec::new(),
        }
    }

    /// Takes memory back that a translation's code was in.
    pub(crate) fn recycle(&mut self, code: Vec<u8>) {
        self.code = code;
    }
}

struct Emitter<'a> {
    request: &'a Request<'a>,
    asm: Asm,
    /// Islands without a step.
    islands: Vec<Island>,
    /// Islands with a step, and the offset of its displacement; to be written at the end.
    far: Vec<(usize, Island)>,
    /// Offsets of steps that lead nowhere yet.
    steps: Vec<usize>,
    /// Steps are written as soon as possible.
    cautious: bool,
    marks: Vec<Mark>,
    links: Vec<LinkSite>,
    /// Offset of the running guest instruction.
    guest: u16,
    /// All of the block's instructions, and the number of the running one.
    list: Vec<Instruction>,
    at: usize,
    /// What R11 holds between instructions, if anything.
    window: Option<window::Window>,
    /// Links' jumps whose stubs are written at the end: offset of the displacement, link.
    late: Vec<(usize, usize)>,
    /// The soft instructions, in order.
    soft: Vec<check::Soft>,
    /// What windows know of the instructions so far.
    facts: Vec<Option<window::Facts>>,
    desk: &'a mut Desk,
    /// A short jump turned out too far: the block can't be emitted like this.
    broken: bool,
}

/// Translates a block. `None` where there is nothing to run: the first instruction is for the reference engine, or isn't whole.
pub(crate) fn translate(request: &Request<'_>, desk: &mut Desk) -> Option<Translation> {
    let mut emit = |cautious| {
        let emitter = Emitter {
            request,
            asm: Asm::with(request.base, std::mem::take(&mut desk.code)),
            islands: Vec::new(),
            far: Vec::new(),
            steps: Vec::new(),
            cautious,
            marks: Vec::with_capacity(16),
            links: Vec::new(),
            late: Vec::new(),
            guest: 0,
            list: std::mem::take(&mut desk.list),
            at: 0,
            window: None,
            soft: Vec::new(),
            facts: Vec::new(),
            desk,
            broken: false,
        };
        emitter.block()
    };
    match emit(false) {
        Ok(translation) => translation,
        Err(TooFar) => emit(true).unwrap_or_else(|TooFar| {
            tracing::debug!(request.rip, "a short jump of the translation is too long");
            None
        }),
    }
}

/// A short jump doesn't reach its target.
struct TooFar;

impl Emitter<'_> {
    /// ```text
    /// entry
    ///   +0000  mov ecx,gs:[cell.0]               is the page mapped where it was?
    ///   +0008  jrcxz +001c
    ///   +000a  mov ecx,gs:[vector_ready]         with vector instructions: are the registers in place?
    ///   +0012  jrcxz +0021
    /// movaps xmm0,xmm1
    ///   +0014  movaps xmm0,xmm1
    /// cpuid                                      has no emitter
    ///   +0017  call interpret
    ///   +001c  jmp +0026                         steps
    ///   +0021  jmp +0045
    ///   +0026  mov qword ptr gs:[argument],7     block 7 is stale
    ///   +0033  mov qword ptr gs:[reason],7
    ///   +0040  jmp exit
    ///   +0045  mov qword ptr gs:[argument],7
    ///   +0052  call vector
    ///   +0057  jmp +0014
    /// ```
    fn block(mut self) -> Result<Option<Translation>, TooFar> {
        let Request { bytes, rip, mode, .. } = *self.request;
        let bitness = if mode.long { 64 } else { 32 };
        let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
        self.list.clear();
        let mut uses_vector = false;
        let mut branches = 0;
        let most = if self.request.second_cell.is_some() { 1 } else { MAX_INSTRUCTIONS };
        while decoder.can_decode() && self.list.len() < usize::from(most) {
            let at = decoder.position();
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            let vector = kinds::is_vector(&instruction);
            if vector && !uses_vector && branches > 0 {
                // It may rarely come so far, and the registers would always be wanted.
                break;
            }
            uses_vector |= vector;
            let mut ends = match instruction.flow_control() {
                FlowControl::Next => false,
                FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() && !mode.counted => {
                    branches += 1;
                    branches > INNER_BRANCHES
                }
                _ => true,
            };
            if self.request.source.is_some() {
                self.note_soft(&decoder, &instruction, at);
                ends |= self.writes_memory(&instruction);
            }
            self.list.push(instruction);
            if ends {
                break;
            }
        }

        // Entered by those who don't know that the page is still mapped here.
        self.asm.load_gs32(RCX, cell(self.request.cell));
        let mut stale: Holes = smallvec![self.asm.jrcxz()];
        let body = self.asm.len();
        if let Some(second) = self.request.second_cell {
            self.asm.load_gs32(RCX, cell(second));
            stale.push(self.asm.jrcxz());
        }
        self.island(stale, Rare::Exit(ExitReason::Stale));
        if uses_vector && mode.vector != VectorLevel::None {
            self.asm.load_gs32(RCX, field!(vector_ready));
            let missing = self.asm.jrcxz();
            let back = self.asm.len();
            self.island(smallvec![missing], Rare::Vector(back));
        }
        let check = self.request.source.map(|_| self.begin_check());
        let count_at = self.asm.len() + 9;
        if mode.counted {
            // left - n: negative?
            self.asm.load_gs(RCX, field!(left));
            self.asm.lea(RCX, Mem::near(RCX, -0x1000));
            self.asm.mov(R11, RCX);
            self.asm.pext(RCX, RCX, field!(sign_mask));
            self.asm.lea(RCX, Mem::near(RCX, -1));
            let negative = self.asm.jrcxz();
            self.island(smallvec![negative], Rare::Exit(ExitReason::Budget));
            self.asm.store_gs(field!(left), R11);
        }

        let mut len = 0;
        let mut count = 0;
        let mut ended = false;
        let mut ends_interpreted = false;
        for at in 0..self.list.len() {
            self.at = at;
            let instruction = &self.list[at].clone();
            self.make_room(PLAIN_ROOM);
            self.guest = len;
            self.marks.push(Mark { host: self.asm.len() as u32, guest: len });
            let before = (self.asm.len(), self.late.len(), self.links.len());
            let emitted = match self.soft(instruction) {
                Some(flow) => Ok(flow),
                None => self.instruction(instruction),
            };
            match emitted {
                Ok(flow) => {
                    self.track();
                    len += instruction.len() as u16;
                    count += 1;
                    if flow == Flow::End {
                        ended = true;
                        break;
                    }
                }
                Err(NotEmitted) => {
                    // Emitters decide before they write.
                    debug_assert_eq!(before, (self.asm.len(), self.late.len(), self.links.len()));
                    if count == 0 {
                        tracing::trace!(rip, code = ?instruction.code(), "left to the reference");
                        return Ok(None);
                    }
                    tracing::trace!(rip, code = ?instruction.code(), "ends in the reference");
                    self.asm.call(self.request.stubs.interpret);
                    // Its bytes count: they decide what it is.
                    len += instruction.len() as u16;
                    count += 1;
                    (ended, ends_interpreted) = (true, true);
                    break;
                }
            }
        }
        if count == 0 {
            return Ok(None);
        }
        if !ended {
            let next = self.wrap(rip.wrapping_add(u64::from(len)));
            self.link_jump(next);
        }
        self.write_steps();
        self.write_islands();
        self.finish_links();
        if let Some(back) = check {
            self.finish_check(back, usize::from(len));
        }
        if self.broken {
            return Err(TooFar);
        }
        if mode.counted {
            self.asm.set_displacement(count_at, -i32::from(if ends_interpreted { count - 1 } else { count }));
        }
        self.desk.list = self.list;
        Ok(Some(Translation {
            relocations: if mode.long { self.asm.relocations() } else { None },
            code: self.asm.into_bytes(),
            body: body as u32,
            marks: self.marks,
            links: self.links,
            len,
            instructions: count,
            ends_interpreted,
        }))
    }

    fn instruction(&mut self, instruction: &Instruction) -> Emitted {
        if instruction.flow_control() != FlowControl::Next {
            return self.flow(instruction);
        }
        if instruction.is_stack_instruction() {
            return self.stack(instruction);
        }
        if instruction.is_string_instruction() {
            return self.string(instruction);
        }
        self.plain(instruction)
    }

    /// A guest address as wide as the mode's.
    fn wrap(&self, address: u64) -> u64 {
        if self.request.mode.long { address } else { address & 0xffff_ffff }
    }

    fn must_reach(&mut self, hole: Hole8) {
        if !self.asm.fill(hole) {
            tracing::debug!(
                distance = self.asm.distance(hole),
                guest = self.guest,
                cautious = self.cautious,
                "too far"
            );
            self.broken = true;
        }
    }

    /// The value of guest register `index` in a host register: its own, or `scratch` after loading it.
    fn read_guest(&mut self, index: usize, scratch: Reg) -> Reg {
        host(index).unwrap_or_else(|| {
            self.asm.load_gs(scratch, gpr(index));
            scratch
        })
    }

    /// Sets guest register `index` from a host register: all 64 bits, or 32 zero-extended.
    fn write_guest(&mut self, index: usize, from: Reg, wide: bool) {
        match host(index) {
            Some(own) if wide => self.asm.mov(own, from),
            Some(own) => self.asm.mov32(own, from),
            None => {
                if !wide {
                    self.asm.mov32(from, from);
                }
                self.asm.store_gs(gpr(index), from);
            }
        }
    }
}

/// The number of a general register of any width.
fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

/// AH, CH, DH or BH.
fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
