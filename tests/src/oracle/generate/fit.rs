//! Fits the initial registers to an instruction, so that most of its memory operands lie in the data window.

use super::{Builder, LONGEST, pointer};
use crate::oracle::case::{DATA, DATA_LEN, FS_BASE, GS_BASE};
use crate::oracle::images::{self, Image};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

impl Builder {
    /// Sets what isn't pinned yet. `displacement` is the offset and size of the displacement in `bytes`.
    pub(super) fn fit(
        &mut self,
        instruction: &Instruction,
        bytes: &mut [u8; LONGEST],
        displacement: (usize, usize),
    ) {
        self.fit_values(instruction);
        for i in 0..instruction.op_count() {
            match instruction.op_kind(i) {
                OpKind::Memory => self.fit_memory(instruction, bytes, displacement),
                OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => {
                    self.point(6, instruction);
                }
                OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI => self.point(7, instruction),
                _ => {}
            }
        }
    }

    fn pin(&mut self, register: usize, value: u64) -> bool {
        if self.pinned & (1 << register) != 0 {
            return false;
        }
        self.pinned |= 1 << register;
        self.initial.gpr[register] = value;
        true
    }

    fn point(&mut self, register: usize, instruction: &Instruction) {
        let target = pointer(&mut self.random, instruction.memory_size().size() as u64);
        self.pin(register, target);
    }

    /// Registers that say how much or how far.
    fn fit_values(&mut self, instruction: &Instruction) {
        if let Some(image @ (Image::Save | Image::Restore)) = images::kind(instruction) {
            let components = images::components(&mut self.random);
            self.pin(0, components);
            self.pin(2, 0);
            if image == Image::Save {
                images::put_in_use(&mut self.initial);
            }
        }
        if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
            let count = if self.random.percent(80) { self.random.below(40) } else { self.random.below(9000) };
            self.pin(1, count);
            // Upper halves that 32-bit addresses ignore.
            let narrow = instruction.op_kinds().any(|kind| {
                matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI)
            });
            if narrow && self.random.percent(30) {
                for register in [1, 6, 7] {
                    self.initial.gpr[register] |= self.random.bits() << 32;
                }
            }
        }
        match instruction.mnemonic() {
            Mnemonic::Leave => {
                let target = pointer(&mut self.random, 8);
                self.pin(5, target);
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register =>
            {
                if let Some(register) = number(instruction.op1_register()) {
                    let distance = self.random.below(0x8000).wrapping_sub(0x4000);
                    self.pin(register, distance);
                }
            }
            // Quotients that fit, mostly.
            Mnemonic::Div | Mnemonic::Idiv if self.random.percent(60) => {
                let high = if instruction.mnemonic() == Mnemonic::Div { self.random.below(3) } else { 0 };
                self.pin(2, high);
            }
            _ => {}
        }
    }

    fn fit_memory(
        &mut self,
        instruction: &Instruction,
        bytes: &mut [u8; LONGEST],
        (at, size): (usize, usize),
    ) {
        let mut target = match images::kind(instruction) {
            Some(Image::Save | Image::Restore) => images::place(&mut self.random, DATA, DATA_LEN as u64),
            _ => pointer(&mut self.random, instruction.memory_size().size() as u64),
        };
        if images::kind(instruction) == Some(Image::Restore) {
            let at = target.wrapping_sub(DATA) as usize;
            images::write_header(&mut self.random, &mut self.initial.data, at);
        }
        match instruction.memory_segment() {
            Register::FS => target = target.wrapping_sub(FS_BASE),
            Register::GS => target = target.wrapping_sub(GS_BASE),
            _ => {}
        }
        let base = instruction.memory_base();
        let index = instruction.memory_index();
        let scale = u64::from(instruction.memory_index_scale());
        if base == Register::None && index == Register::None || base == Register::RIP || base == Register::EIP
        {
            let next = if base == Register::None { 0 } else { instruction.next_ip() };
            patch(bytes, at, size, target.wrapping_sub(next));
            return;
        }
        let mut offset = instruction.memory_displacement64();
        if let Some(wide) = instruction.vsib() {
            if !(DATA..=DATA + 0x4000).contains(&target) {
                target = DATA + 0x800;
            }
            self.small_lanes(index, wide);
        } else if let Some(register) = number(index) {
            if Some(register) == number(base) {
                // One equation for base + index * scale: only exact where the division is.
                let sum = target.wrapping_sub(offset);
                let value = sum / (scale + 1);
                self.pin(register, value);
                return;
            }
            let value =
                if index == Register::AL { self.initial.gpr[0] & 0xff } else { self.initial.gpr[register] };
            if number(base).is_none() {
                self.pin(register, target.wrapping_sub(offset) / scale);
                return;
            }
            self.pinned |= 1 << register;
            offset = offset.wrapping_add(value.wrapping_mul(scale));
        }
        let Some(register) = number(base) else {
            patch(bytes, at, size, target);
            return;
        };
        let value = target.wrapping_sub(offset);
        // With 32-bit addresses the upper half doesn't count.
        let noise = if base.is_gpr32() { self.random.bits() << 32 } else { 0 };
        let value = if base.is_gpr32() { value & 0xffff_ffff | noise } else { value };
        if !self.pin(register, value) && size == 4 {
            let current = self.initial.gpr[register];
            let old = instruction.memory_displacement64();
            patch(bytes, at, size, target.wrapping_sub(current).wrapping_sub(offset.wrapping_sub(old)));
        }
    }

    /// Small distances in the lanes of a gather's or scatter's index.
    fn small_lanes(&mut self, index: Register, wide: bool) {
        let zmm = &mut self.initial.vector.zmm[index.number() & 31];
        if wide {
            for lane in zmm.chunks_exact_mut(8) {
                let distance = self.random.below(256) as i64 - 64;
                lane.copy_from_slice(&distance.to_le_bytes());
            }
        } else {
            for lane in zmm.chunks_exact_mut(4) {
                let distance = self.random.below(256) as i32 - 64;
                lane.copy_from_slice(&distance.to_le_bytes());
            }
        }
    }

    /// Makes each branch end at an instruction behind it, or at the end.
    pub(super) fn patch_branches(&mut self) {
        for (at, size, from) in std::mem::take(&mut self.branches) {
            let first = self.initial.rip + from as u64;
            let behind: Vec<u64> =
                self.instructions.iter().map(|&(ip, ..)| ip).filter(|&ip| ip >= first).collect();
            let end = self.initial.rip + self.initial.code_len;
            let chosen = self.random.below(behind.len() as u64 + 1) as usize;
            let target = behind.get(chosen).copied().unwrap_or(end);
            let distance = target.wrapping_sub(first).to_le_bytes();
            self.initial.code[at..at + size.min(4)].copy_from_slice(&distance[..size.min(4)]);
        }
    }
}

/// The number of a general register of any width.
fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}

fn patch(bytes: &mut [u8; LONGEST], at: usize, size: usize, value: u64) {
    if size > 0 && at + size <= LONGEST {
        bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}
