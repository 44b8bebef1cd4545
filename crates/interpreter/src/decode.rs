//! From bytes to blocks: fetches, decodes with iced, and picks a handler for each instruction.
//!
//! Called by the main loop when it meets code that it has no block for. What an instruction *is* iced says; what it *does* is in
//! `integer`, `string`, `system` and `native`, each of which offers a `handler` function that is asked in turn.

use crate::blocks::{Block, Key, MAX_OPS};
use crate::cpu::{CodeSize, Cpu, Step, Stop};
use crate::length::{is_sse4a, undefined_length};
use crate::native::StubCell;
use crate::op::{Detail, Handler, Op, describe};
use crate::run::CodePlace;
use crate::system::Output;
use crate::{integer, string, system, vector};
use engine::{Access as Bus, Platform};
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use memory::RamOffset;
use std::cell::RefCell;
use x86::Exception;
use x86::address::PAGE_SIZE;
use x86::state::seg;

/// An instruction has at most this many bytes (SDM 2A 2.3.11); longer ones get #GP(0).
const MAX_BYTES: usize = 15;

/// A stand-in for the RAM offset of code that isn't in RAM.
const NOWHERE: RamOffset = RamOffset(u64::MAX);

impl Block {
    /// Whether the block's bytes are all in RAM.
    pub(crate) fn is_cacheable(&self) -> bool {
        self.key.at != NOWHERE
    }
}

impl Op {
    /// The instruction loads RFLAGS.RF itself.
    pub(crate) fn loads_rf(&self) -> bool {
        self.is_one_of(&[Mnemonic::Iret, Mnemonic::Iretd, Mnemonic::Iretq])
    }

    /// No single-step trap follows the instruction although TF was set: software interrupts clear TF on the way, and loading
    /// SS holds traps back (SDM 3B 17.3.1.4).
    pub(crate) fn suppresses_trap(&self) -> bool {
        let loads_ss = self.detail.as_ref().is_some_and(|detail| loads_ss(&detail.instruction));
        loads_ss || self.is_one_of(&[Mnemonic::Int, Mnemonic::Int1, Mnemonic::Int3, Mnemonic::Into])
    }

    /// SYSCALL, which masks the flags that its handler runs with.
    pub(crate) fn is_syscall(&self) -> bool {
        self.is_one_of(&[Mnemonic::Syscall])
    }

    /// The instruction looks at vector or x87 registers, or is done by the same means as those that do.
    pub(crate) fn touches_vector(&self) -> bool {
        self.detail.as_ref().is_some_and(|detail| {
            vector::handler(&detail.instruction).is_some()
                || detail.instruction.mnemonic() == Mnemonic::Xgetbv
        })
    }

    fn is_one_of(&self, mnemonics: &[Mnemonic]) -> bool {
        self.detail.as_ref().is_some_and(|detail| mnemonics.contains(&detail.instruction.mnemonic()))
    }
}

fn loads_ss(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == Register::SS
}

fn bitness(size: CodeSize) -> u32 {
    match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

impl Cpu {
    /// Decodes the block at `key`, whose linear address is `address`.
    pub(crate) fn decode_block(
        &mut self,
        key: Key,
        address: u64,
        io: &mut dyn Platform,
    ) -> Result<Block, Stop> {
        let left = PAGE_SIZE - key.at.offset_in_page();
        let mut page = [0; PAGE_SIZE as usize];
        // More than a block can hold is not looked at, and not marked.
        let want = left.min((MAX_OPS * MAX_BYTES) as u64);
        let bytes = &mut page[..want as usize];
        // Order matters: mark, then read the bytes. Mark little at first: blocks are short.
        let mut marked = want.min(64);
        let mut generation = self.memory.mark_derived(key.at, marked);
        self.memory.load_bytes(key.at, bytes);
        let mut ops = decode_run(bytes, key.size);
        let mut len = ops.last().map_or(0, |op| usize::from(op.next));
        if len as u64 > marked {
            marked = len as u64;
            generation = self.memory.mark_derived(key.at, marked);
            self.memory.load_bytes(key.at, bytes);
            ops = decode_run(bytes, key.size);
            // The bytes may have changed in between; what lies beyond the mark is cut off.
            ops.retain(|op| u64::from(op.next) <= marked);
            len = ops.last().map_or(0, |op| usize::from(op.next));
        }
        if ops.is_empty() {
            return self.decode_straddling(key, address, &bytes[..], io);
        }
        Ok(Block::new(key, ops, bytes[..len].to_vec(), generation, None))
    }

    /// Decodes one instruction of which `head`, all the bytes up to the end of the page, is only the start.
    fn decode_straddling(
        &mut self,
        key: Key,
        address: u64,
        head: &[u8],
        io: &mut dyn Platform,
    ) -> Result<Block, Stop> {
        let generation = self.memory.mark_derived(key.at, head.len() as u64);
        let mut bytes = [0; MAX_BYTES];
        let first = head.len().min(MAX_BYTES);
        self.memory.load_bytes(key.at, &mut bytes[..first]);
        if first == MAX_BYTES {
            return Ok(single(key, &bytes, generation, None));
        }
        if is_sse4a(&bytes[..first], key.size) && !self.offers_sse4a() {
            // #UD, whatever the next page is.
            return Ok(single(key, &bytes[..first], generation, None));
        }
        let next_rip = self.rip.wrapping_add(first as u64);
        if key.size != CodeSize::Bits64 && next_rip > u64::from(self.state.segments[seg::CS].limit) {
            // The rest lies beyond the segment, whatever is there.
            return Err(Exception::GP0.into());
        }
        let next = (address | (PAGE_SIZE - 1)).wrapping_add(1);
        let next = if key.size == CodeSize::Bits64 { next } else { next & 0xffff_ffff };
        let Some(second) = self.fetch_target(next, io)? else {
            return self.decode_uncached(address, io);
        };
        let second_generation = self.memory.mark_derived(second, MAX_BYTES as u64);
        self.memory.load_bytes(second, &mut bytes[first..]);
        Ok(single(key, &bytes, generation, Some((second, second_generation))))
    }

    fn offers_sse4a(&self) -> bool {
        self.offers(0x8000_0001, 0, Output::Ecx, 6)
    }

    /// Decodes one instruction that isn't, or not wholly, in RAM.
    pub(crate) fn decode_uncached(&mut self, address: u64, io: &mut dyn Platform) -> Result<Block, Stop> {
        let key = Key { at: NOWHERE, size: self.code_size };
        let mut bytes = [0; MAX_BYTES];
        for count in 0..MAX_BYTES {
            let at = address.wrapping_add(count as u64);
            let at = if key.size == CodeSize::Bits64 { at } else { at & 0xffff_ffff };
            bytes[count] = match self.locate_code(at, io)? {
                CodePlace::Ram(ram) => self.memory.load(ram),
                CodePlace::Device(gpa) => {
                    let mut byte = [0];
                    io.mmio(gpa, Bus::Read(&mut byte));
                    byte[0]
                }
            };
            let mut decoder = Decoder::with_ip(bitness(key.size), &bytes[..=count], 0, DecoderOptions::NONE);
            let instruction = decoder.decode();
            let cut_off =
                instruction.is_invalid() && undefined_length(&bytes[..=count], key.size) > count + 1;
            if decoder.last_error() != DecoderError::NoMoreBytes && !cut_off {
                break;
            }
            if is_sse4a(&bytes[..=count], key.size) && !self.offers_sse4a() {
                return Ok(single(key, &bytes[..=count], 0, None));
            }
        }
        Ok(single(key, &bytes, 0, None))
    }
}

/// Decodes until the block ends, the bytes do, or an instruction isn't complete.
fn decode_run(bytes: &[u8], size: CodeSize) -> Vec<Op> {
    let mut decoder = Decoder::with_ip(bitness(size), bytes, 0, DecoderOptions::NONE);
    let mut ops = Vec::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() && ops.len() < MAX_OPS {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        let too_long = bytes.len() - start >= MAX_BYTES;
        if decoder.last_error() == DecoderError::NoMoreBytes && !too_long {
            break;
        }
        let cut_off =
            instruction.is_invalid() && undefined_length(&bytes[start..], size) > bytes.len() - start;
        if cut_off && !too_long {
            break;
        }
        if instruction.is_invalid() && !ops.is_empty() {
            // Gets a block of its own.
            break;
        }
        let op = lower(&instruction, start as u16, why_invalid(&instruction, &bytes[start..], size));
        let ends = ends_block(&instruction);
        ops.push(op);
        if ends {
            break;
        }
    }
    ops
}

/// A block of the one instruction at the start of `bytes`.
fn single(key: Key, bytes: &[u8], generation: u32, second: Option<(RamOffset, u32)>) -> Block {
    let mut decoder = Decoder::with_ip(bitness(key.size), bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let op = lower(&instruction, 0, why_invalid(&instruction, bytes, key.size));
    let len = instruction.len().clamp(1, bytes.len());
    Block::new(key, vec![op], bytes[..len].to_vec(), generation, second)
}

/// Whether nothing may follow the instruction in its block.
fn ends_block(instruction: &Instruction) -> bool {
    if instruction.flow_control() != FlowControl::Next || instruction.is_invalid() {
        return true;
    }
    match instruction.mnemonic() {
        // May open the event window, switch TF on, or change what code means or where it lies.
        Mnemonic::Sti
        | Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq
        | Mnemonic::Hlt
        | Mnemonic::Mwait
        | Mnemonic::Lmsw
        | Mnemonic::Wrmsr
        | Mnemonic::Wrmsrns
        | Mnemonic::Invlpg
        | Mnemonic::Invpcid
        | Mnemonic::Xsetbv
        | Mnemonic::Wbinvd
        | Mnemonic::Invd
        | Mnemonic::Serialize => true,
        Mnemonic::Mov => {
            let register = instruction.op0_register();
            register.is_cr() || register.is_dr() || register == Register::SS
        }
        Mnemonic::Pop => instruction.op0_register() == Register::SS,
        // Devices answer with interrupts; take them soon.
        Mnemonic::Out | Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => true,
        _ => false,
    }
}

/// What an invalid instruction at the start of `bytes` raises: `#GP(0)` if it goes on beyond 15 bytes (SDM 2A 2.3.11), else `#UD`.
fn why_invalid(instruction: &Instruction, bytes: &[u8], size: CodeSize) -> Handler {
    if !instruction.is_invalid() || bytes.len() < MAX_BYTES {
        return undefined;
    }
    if undefined_length(bytes, size) > MAX_BYTES {
        return too_long;
    }
    // Iced calls both undefined. Only redundant prefixes make an instruction that long, so it is the same without its
    // first byte, and then the end of the bytes tells.
    let mut decoder = Decoder::with_ip(bitness(size), &bytes[1..MAX_BYTES], 0, DecoderOptions::NONE);
    let _ = decoder.decode();
    if decoder.last_error() == DecoderError::NoMoreBytes { too_long } else { undefined }
}

/// Picks the handler.
fn lower(instruction: &Instruction, start: u16, invalid: Handler) -> Op {
    if instruction.is_invalid() {
        let mut op = describe(&Instruction::default(), start, invalid);
        op.next = start + instruction.len().max(1) as u16;
        return op;
    }
    if instruction.has_lock_prefix() && !may_lock(instruction) {
        return describe(instruction, start, undefined);
    }
    if let Some(run) = integer::hot_handler(instruction) {
        return describe(instruction, start, run);
    }
    let run = integer::handler(instruction)
        .or_else(|| string::handler(instruction))
        .or_else(|| system::handler(instruction))
        .or_else(|| vector::handler(instruction))
        .unwrap_or(undefined);
    let mut op = describe(instruction, start, run);
    op.detail = Some(Box::new(Detail { instruction: *instruction, stub: RefCell::new(StubCell::default()) }));
    op
}

/// LOCK is legal only on read-modify-writes of memory from a fixed list (SDM 2A LOCK). Iced refuses the others itself when it
/// decodes; this is the second look for forms that it lets pass.
fn may_lock(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
}

/// `#UD`: an undefined encoding, or an instruction that this CPU doesn't offer.
pub(crate) fn undefined(_: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    Err(Exception::UD.into())
}

/// `#GP(0)`: more than 15 bytes.
fn too_long(_: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    Err(Exception::GP0.into())
}
