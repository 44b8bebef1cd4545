//! What in code depends on where it runs, on which block's it is, and on the guest address that it was made for. So that a
//! translation can be had at another guest address without being made anew.

use super::{Asm, Mem, Reg, Size};

/// What a number in code depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Depends {
    /// 32 bits: the distance to something outside of the code.
    Host,
    /// 32 bits: the number of the block.
    Block,
    /// 32 bits: the number of the block, and behind it the 12 bits of an offset.
    Return,
    /// 32 bits: the number of one of the block's links.
    Link,
    /// 64 bits: a guest address that moves with the code.
    Address,
    /// 64 bits: the same negated.
    Negated,
    /// 64 bits: the number of a page, as views have it, that moves with the code.
    Page,
}

/// A number in code that depends on something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Relocation {
    at: u16,
    on: Depends,
}

impl Relocation {
    /// Whether code has to be changed here when only its guest address changes.
    pub(crate) fn depends_on_guest(&self) -> bool {
        matches!(self.on, Depends::Address | Depends::Negated | Depends::Page)
    }
}

/// How far code moves. All differences wrap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Moved {
    /// Of host addresses.
    pub(crate) host: u64,
    /// Of guest addresses: a multiple of a page.
    pub(crate) guest: u64,
    /// Of the blocks' numbers.
    pub(crate) block: u32,
    /// Links of a block.
    pub(crate) links: u32,
}

/// Page numbers that the views have entries for.
pub(crate) const PAGE_NUMBERS: u64 = (1 << 36) - 1;

/// Makes code what it has to be at another place.
pub(crate) fn relocate<'a>(
    code: &mut [u8],
    relocations: impl IntoIterator<Item = &'a Relocation>,
    moved: Moved,
) {
    for &Relocation { at, on } in relocations {
        let half = |add: u32| move |old: u32| old.wrapping_add(add);
        let at = usize::from(at);
        match on {
            Depends::Host => change(code, at, half((moved.host as u32).wrapping_neg())),
            Depends::Block => change(code, at, half(moved.block)),
            Depends::Return => change(code, at, half(moved.block << 12)),
            Depends::Link => change(code, at, half(moved.block.wrapping_mul(moved.links))),
            Depends::Address => change_long(code, at, |old| old.wrapping_add(moved.guest)),
            Depends::Negated => change_long(code, at, |old| old.wrapping_sub(moved.guest)),
            Depends::Page => {
                change_long(code, at, |old| old.wrapping_add(moved.guest >> 12) & PAGE_NUMBERS);
            }
        }
    }
}

fn change(code: &mut [u8], at: usize, to: impl Fn(u32) -> u32) {
    let bytes = code[at..].first_chunk_mut::<4>().expect("relocations lie in their code");
    *bytes = to(u32::from_le_bytes(*bytes)).to_le_bytes();
}

fn change_long(code: &mut [u8], at: usize, to: impl Fn(u64) -> u64) {
    let bytes = code[at..].first_chunk_mut::<8>().expect("relocations lie in their code");
    *bytes = to(u64::from_le_bytes(*bytes)).to_le_bytes();
}

impl Asm {
    /// The number that will be written next depends on something.
    pub(super) fn depends(&mut self, on: Depends) {
        match u16::try_from(self.len()) {
            Ok(at) => self.relocations.push(Relocation { at, on }),
            Err(_) => self.pinned = true,
        }
    }

    /// The code depends on its guest address in another way than relocations can say.
    pub(crate) fn pin(&mut self) {
        self.pinned = true;
    }

    /// What depends on something; `None` where the code can't be moved.
    pub(crate) fn relocations(&self) -> Option<Box<[Relocation]>> {
        (!self.pinned).then(|| self.relocations.as_slice().into())
    }

    /// A number that depends on a guest address.
    pub(crate) fn mov_guest(&mut self, reg: Reg, value: u64, on: Depends) {
        self.mov_immediate(reg, value);
        if u32::try_from(value).is_ok() || i32::try_from(value as i64).is_ok() {
            // Elsewhere it may need another form.
            self.pinned = true;
        } else {
            match u16::try_from(self.len() - 8) {
                Ok(at) => self.relocations.push(Relocation { at, on }),
                Err(_) => self.pinned = true,
            }
        }
    }

    /// Stores a number, sign-extended to 8 bytes, that depends on the block's.
    pub(crate) fn store_number(&mut self, mem: Mem, value: i32, on: Depends) {
        self.store_immediate(Size::B8, mem, value);
        match u16::try_from(self.len() - 4) {
            Ok(at) => self.relocations.push(Relocation { at, on }),
            Err(_) => self.pinned = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    /// Code that depends on everything, made for a place, a block with links of its own, and a guest address.
    fn code(base: u64, block: u32, guest: u64) -> Asm {
        let mut asm = Asm::new(base);
        asm.jump(0x7000_0000);
        asm.jump(asm.here());
        asm.store_number(Mem::Gs(8), block as i32, Depends::Block);
        asm.store_number(Mem::Gs(8), (block << 12 | 0x123) as i32, Depends::Return);
        asm.store_number(Mem::Gs(8), (block * 16 + 3) as i32, Depends::Link);
        asm.mov_guest(RCX, guest + 0x456, Depends::Address);
        asm.mov_guest(R11, (guest + 0x456).wrapping_neg(), Depends::Negated);
        asm.mov_guest(RCX, guest >> 12 & PAGE_NUMBERS, Depends::Page);
        asm.call(0x7000_1000);
        asm.jump_back(0);
        asm
    }

    #[test]
    fn moved_code_is_what_it_would_be_if_it_were_made_there() {
        let places = [
            (0x7001_0000, 7, 0x7f12_3456_7000),
            (0x6fff_1230, 5000, 0x5555_5555_4000),
            (0x7001_0000, 7, 0xffff_8880_a000_0000),
        ];
        for (base, block, guest) in places {
            let old = code(base, block, guest);
            for (new_base, new_block, new_guest) in places {
                let mut bytes = old.bytes().to_vec();
                let moved = Moved {
                    host: u64::wrapping_sub(new_base, base),
                    guest: new_guest.wrapping_sub(guest),
                    block: new_block.wrapping_sub(block),
                    links: 16,
                };
                relocate(&mut bytes, old.relocations().expect("it can be moved").iter(), moved);
                assert_eq!(bytes, code(new_base, new_block, new_guest).bytes());
            }
        }
    }

    #[test]
    fn what_needs_another_form_elsewhere_is_pinned() {
        let mut asm = Asm::new(0x7000_0000);
        asm.mov_guest(RCX, 0x40_1000, Depends::Address);
        assert_eq!(asm.relocations(), None);
    }
}
