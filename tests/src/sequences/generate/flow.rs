//! Branches, loops, calls and returns, and what is done to the stack.

use super::{Builder, INNER, OUTER, RAX, RCX, RDX};
use crate::sequences::layout::{CODE_LEN, data};
use crate::sequences::program::{Label, Target};
use x86::Rflags;

impl Builder<'_> {
    pub(super) fn flow_item(&mut self, depth: u32) {
        match self.random.below(24) {
            0..=5 => self.skip_forward(depth),
            6 | 7 if !self.in_loop && depth == 0 => self.inner_loop(),
            8 if self.kept & 1 << RCX == 0 => self.counted_by_rcx(),
            9..=12 => self.call_function(),
            13 => self.call_overlay(),
            14 => self.call_and_pop(),
            15 => self.return_to_pushed(),
            16 => self.skip_by_return(),
            17 => self.indirect(),
            18 | 19 => self.alternating(),
            20 | 21 => self.middle_of_an_instruction(),
            22 => self.far_jump_forward(),
            _ => self.skip_forward(depth),
        }
    }

    /// A conditional or unconditional branch over a few items.
    fn skip_forward(&mut self, depth: u32) {
        let allowed = self.some_flags();
        let over = self.asm.label(allowed);
        if self.random.percent(88) {
            let condition = self.random.below(16) as u8;
            self.asm.branch(&[0x0f, 0x80 | condition], over);
        } else {
            self.asm.branch(&[0xe9], over);
        }
        let count = 1 + self.random.below(3);
        for _ in 0..count {
            if depth < 2 && self.asm.has_room(0x140) && self.random.percent(30) {
                self.item(depth + 1);
            } else {
                self.plain();
            }
        }
        self.asm.bind(over);
    }

    /// A loop within the body: its counter has a register of its own.
    fn inner_loop(&mut self) {
        let turns =
            if self.random.percent(70) { 2 + self.random.below(6) } else { 20 + self.random.below(60) };
        self.set_counter(INNER, turns);
        let top = self.asm.label(Rflags::empty());
        self.asm.need_defined();
        self.asm.bind(top);
        self.in_loop = true;
        let count = 1 + self.random.below(5);
        self.items(count, 1);
        self.in_loop = false;
        self.asm.need_defined();
        self.count_down(INNER, top);
    }

    /// LOOP, LOOPE, LOOPNE with an instruction or two in it, and JRCXZ.
    fn counted_by_rcx(&mut self) {
        let turns = self.random.below(12);
        self.set(RCX, turns);
        let over = self.asm.label(Rflags::ARITHMETIC);
        if self.random.percent(50) {
            self.asm.short_branch(&[0xe3], over, 0);
        }
        self.kept |= 1 << RCX;
        let allowed = if self.random.percent(50) { Rflags::AF } else { Rflags::empty() };
        let top = self.asm.label(allowed);
        self.asm.bind(top);
        let begin = self.asm.at();
        for _ in 0..1 + self.random.below(3) {
            self.plain();
        }
        let opcode = self.random.pick(&[0xe0, 0xe1, 0xe2, 0xe2]);
        // A JRCXZ that spans it has to reach, too.
        if self.asm.at() - begin < 90 && self.asm.is_near(top) {
            self.asm.short_branch(&[opcode], top, 0);
        }
        self.kept &= !(1 << RCX);
        self.asm.bind(over);
    }

    pub(super) fn call_function(&mut self) {
        if self.functions.len() <= self.callable {
            return self.plain();
        }
        let count = (self.functions.len() - self.callable) as u64;
        let label = self.functions[self.callable + self.random.below(count) as usize];
        self.call(label);
    }

    /// A call in one of its forms.
    fn call(&mut self, label: Label) {
        match self.random.below(5) {
            0..=2 => {
                self.asm.need_defined();
                self.asm.branch(&[0xe8], label);
            }
            3 => {
                let register = self.scratch();
                self.address_of(register, label);
                self.asm.raw(&[0xff, 0xd0 | register]);
            }
            // Through memory.
            _ => {
                let register = self.scratch();
                self.address_of(register, label);
                let slot = Target::Offset(data(1) + 0x700);
                let store: &[u8] = if self.wide() { &[0x48, 0x89] } else { &[0x89] };
                self.asm.with_memory(&[store, &[5 | register << 3]].concat(), slot, &[]);
                self.asm.with_memory(&[0xff, 0x15], slot, &[]);
            }
        }
    }

    fn call_overlay(&mut self) {
        let label = self.overlaid[self.random.below(2) as usize];
        self.call(label);
    }

    /// How a function ends: mostly RET, sometimes with a return address of its own making.
    pub(super) fn function_end(&mut self) {
        match self.random.below(12) {
            // RET with an immediate: the caller's stack moves.
            0 | 1 => {
                let count = self.random.pick(&[0, 4, 8, 16]);
                self.asm.need_defined();
                self.asm.raw(&[0xc2, count, 0]);
            }
            // Through a register.
            2 => {
                let register = self.scratch();
                self.asm.raw(&[0x58 | register]);
                self.asm.raw(&[0xff, 0xe0 | register]);
            }
            // The return address is taken off and put back.
            3 => {
                let register = self.scratch();
                self.asm.raw(&[0x58 | register]);
                self.asm.raw(&[0x50 | register]);
                self.asm.raw(&[0xc3]);
            }
            // Tail call of the last function, which calls none.
            4 if self.callable < self.functions.len() => {
                let last = self.functions[self.functions.len() - 1];
                self.asm.need_defined();
                self.asm.branch(&[0xe9], last);
            }
            _ => {
                self.asm.raw(&[0xc3]);
            }
        }
    }

    /// `call` to the next instruction, and what it pushed is taken off: how 32-bit code finds itself.
    fn call_and_pop(&mut self) {
        let next = self.asm.label(Rflags::empty());
        self.asm.need_defined();
        self.asm.branch(&[0xe8], next);
        self.asm.bind(next);
        let register = self.scratch();
        self.asm.raw(&[0x58 | register]);
    }

    /// A pushed address is returned to.
    fn return_to_pushed(&mut self) {
        let there = self.asm.label(Rflags::empty());
        let register = self.scratch();
        self.address_of(register, there);
        self.asm.raw(&[0x50 | register]);
        if self.random.percent(30) {
            self.plain();
        }
        self.asm.raw(&[0xc3]);
        self.plain();
        self.asm.need_defined();
        self.asm.bind(there);
    }

    /// A call whose callee, right behind, moves its return address.
    fn skip_by_return(&mut self) {
        let none = Rflags::empty();
        let (callee, over) = (self.asm.label(none), self.asm.label(none));
        self.asm.need_defined();
        self.asm.branch(&[0xe8], callee);
        let begin = self.asm.at();
        self.plain();
        self.asm.need_defined();
        let skipped = (self.asm.at() - begin) as u8;
        self.asm.branch(&[0xe9], over);
        self.asm.bind(callee);
        if skipped < 0x70 {
            let rex: &[u8] = if self.wide() { &[0x48] } else { &[] };
            self.asm.raw(&[rex, &[0x83, 0x04, 0x24, skipped]].concat()); // add [rsp], ..
        }
        self.asm.need_defined();
        self.asm.raw(&[0xc3]);
        self.asm.bind(over);
    }

    /// A jump through a register, or through the stack.
    fn indirect(&mut self) {
        let there = self.asm.label(Rflags::empty());
        let register = self.scratch();
        self.address_of(register, there);
        if self.random.percent(50) {
            self.asm.raw(&[0xff, 0xe0 | register]);
        } else {
            self.asm.raw(&[0x50 | register]);
            self.asm.raw(&[0xff, 0x24, 0x24]); // jmp [rsp]
        }
        self.plain();
        self.asm.need_defined();
        self.asm.bind(there);
    }

    /// An indirect jump or call that goes elsewhere every other turn.
    fn alternating(&mut self) {
        let none = Rflags::empty();
        let (one, other, out) = (self.asm.label(none), self.asm.label(none), self.asm.label(none));
        self.address_of(RAX, one);
        self.address_of(RDX, other);
        let bit = self.random.pick(&[1, 2, 4]);
        let rex: &[u8] = if self.wide() { &[0x48] } else { &[] };
        if self.wide() {
            self.asm.raw(&[0x41, 0xf6, 0xc0 | OUTER & 7, bit]); // test r15b, ..
        } else {
            self.asm.with_memory(&[0xf6, 0x05], Self::counter(OUTER), &[bit]);
        }
        self.asm.raw(&[rex, &[0x0f, 0x44, 0xc2]].concat()); // cmovz rax, rdx
        self.asm.raw(&[0xff, 0xe0]);
        self.asm.bind(one);
        self.plain();
        self.asm.need_defined();
        self.asm.branch(&[0xe9], out);
        self.asm.bind(other);
        self.plain();
        self.asm.need_defined();
        self.asm.bind(out);
    }

    /// An instruction whose immediate is code, too: run as both, by turns.
    fn middle_of_an_instruction(&mut self) {
        let inner: [u8; 4] = match self.random.below(5) {
            0 => [0x04, 0x05, 0x90, 0x90],               // add al, 5; nop; nop
            1 => [0x29, 0xd0, 0xf9, 0x90],               // sub eax, edx; stc; nop
            2 => [0x01, 0xd1, 0x11, 0xca],               // add ecx, edx; adc edx, ecx
            3 => [0xeb, 0x01, 0xcc, 0x90],               // jmp over; int3; nop
            _ => [0x83, 0xd2, self.random.byte(), 0xf5], // adc edx, ..; cmc
        };
        let whole = self.asm.label(Rflags::empty());
        self.asm.need_defined();
        // Which of the two the carry, a turn, or nothing decides.
        match self.random.below(3) {
            0 => self.asm.short_branch(&[0x72], whole, 1),
            1 => self.asm.short_branch(&[0xeb], whole, 1),
            _ if self.wide() => {
                self.asm.raw(&[0x41, 0xf6, 0xc0 | OUTER & 7, 1]); // test r15b, 1
                self.asm.need_defined();
                self.asm.short_branch(&[0x75], whole, 1);
            }
            _ => self.asm.short_branch(&[0x78], whole, 1),
        }
        self.asm.bind(whole);
        self.asm.raw(&[&[0xb8][..], &inner].concat());
        // Both ways leave all flags but AF defined.
        self.asm.raw(&[0x39, 0xd0]);
    }

    /// To the start of another page and back.
    fn far_jump_forward(&mut self) {
        let here = self.asm.at();
        if here > 0xfe0 || !self.asm.has_room(0x400) || here + 0x40 > CODE_LEN {
            return self.plain();
        }
        let there = self.asm.label(Rflags::empty());
        self.asm.need_defined();
        self.asm.branch(&[0xe9], there);
        // The last bytes of a page or the first of the next.
        let to = 0x1000 - 8 + self.random.below(12) as usize;
        if to > self.asm.at() {
            self.asm.move_to(to);
        }
        self.asm.bind(there);
    }

    /// Pushes, pops, frames, flags.
    pub(super) fn stack_item(&mut self) {
        match self.random.below(12) {
            0..=3 => {
                let (from, to) = (self.random.below(8) as u8, self.scratch());
                self.asm.raw(&[0x50 | from]);
                if self.random.percent(50) {
                    self.plain();
                }
                self.asm.raw(&[0x58 | to]);
            }
            4 => {
                let value = self.random.bits();
                self.asm.raw32(&[0x68], value);
                let to = self.scratch();
                self.asm.raw(&[0x58 | to]);
            }
            // Memory to memory through the stack.
            5 => {
                let (from, to) = (self.own_page(), self.own_page());
                self.asm.with_memory(&[0xff, 0x35], from, &[]);
                self.asm.with_memory(&[0x8f, 0x05], to, &[]);
            }
            6 | 7 => {
                self.asm.raw(&[0x9c]);
                if self.random.percent(60) {
                    self.plain();
                }
                self.asm.raw(&[0x9d]);
            }
            8 => {
                self.asm.raw(&[0x9c]);
                let to = self.scratch();
                self.asm.raw(&[0x58 | to]);
            }
            // 16 bits wide.
            9 => {
                let (from, to) = (self.random.below(8) as u8, self.scratch());
                self.asm.raw(&[0x66, 0x50 | from]);
                self.asm.raw(&[0x66, 0x58 | to]);
            }
            // A frame; RBP comes back as it was.
            10 => {
                let size = self.random.byte() & 0x7c;
                self.asm.raw(&[0xc8, size, 0, 0]);
                let kept: &[u8] = &[0x89, 0x44, 0x24, 4];
                self.asm.raw(kept); // mov [rsp + 4], eax
                self.asm.raw(&[0xc9]);
            }
            _ => {
                let one = self.random.pick(&[0x56, 0x57, 0x50]);
                self.asm.raw(&[one]);
                self.call_function();
                let to = self.scratch();
                self.asm.raw(&[0x58 | to]);
            }
        }
    }

    fn own_page(&mut self) -> Target {
        Target::Offset(
            data(self.random.below(3)) + self.random.below(0x200) * 8 + self.random.pick(&[0, 0, 4, 7]),
        )
    }
}
