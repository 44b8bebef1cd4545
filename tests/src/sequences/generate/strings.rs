//! String instructions: once and repeated, up and down, overlapping, over the ends of pages, into pages that aren't there.

use super::{Builder, RCX, RDI, RDX, RSI};
use crate::sequences::layout::PAGE;

impl Builder<'_> {
    pub(super) fn string_item(&mut self) {
        if self.kept & 1 << RCX != 0 {
            return self.plain();
        }
        let size = self.random.pick(if self.wide() { &[1u64, 1, 2, 4, 8, 8] } else { &[1, 1, 2, 4] });
        let kind = self.random.below(100);
        let ports = kind >= 94;
        let count = match self.random.below(100) {
            0..=4 => 0,
            5..=69 => self.random.below(24),
            70..=91 => self.random.below(200),
            _ => self.random.below(0x1100 / size),
        };
        let count = if ports { count % 5 } else { count };
        let down = self.random.percent(30);
        let mut to = self.target(size);
        let mut from = self.target(size);
        if self.random.percent(25) {
            // Close to each other: they overlap.
            from = to.wrapping_add(self.random.below(64)).wrapping_sub(32);
        }
        if self.random.percent(30) {
            // The end of a page lies within.
            let begin = if down { PAGE - 1 } else { 0 };
            let before = self.random.below(PAGE.min(count * size + 1));
            to = to & !(PAGE - 1) | ((begin + PAGE - before) % PAGE);
        }
        self.set(RDI, to);
        self.set(RSI, from);
        self.set(RCX, count);
        if ports {
            self.set(RDX, 0x1000);
        }
        self.asm.raw(&[if down { 0xfd } else { 0xfc }]);
        let repeat = match self.random.below(10) {
            0..=2 => None,
            3..=7 => Some(0xf3),
            _ => Some(0xf2),
        };
        let opcode = match kind {
            0..=34 => 0xa4,  // movs
            35..=59 => 0xaa, // stos
            60..=69 => 0xac, // lods
            70..=81 => 0xa6, // cmps
            82..=93 => 0xae, // scas
            94..=96 => 0x6c, // ins
            _ => 0x6e,       // outs
        };
        let size = if ports { size.min(4) } else { size };
        let mut bytes = Vec::new();
        if self.random.percent(8) {
            bytes.push(0x67);
        }
        if self.wide() && matches!(opcode, 0xa4 | 0xac | 0xa6 | 0x6e) && self.random.percent(5) {
            bytes.push(self.random.pick(&[0x64, 0x65]));
        }
        if size == 2 {
            bytes.push(0x66);
        }
        bytes.extend(repeat);
        if size == 8 {
            bytes.push(0x48);
        }
        bytes.push(opcode | u8::from(size > 1));
        self.asm.raw(&bytes);
        if self.random.percent(70) {
            self.asm.raw(&[0xfc]);
        }
    }
}
