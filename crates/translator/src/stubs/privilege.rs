//! SYSCALL, SYSRET and IRETQ between 64-bit supervisor code and 64-bit user code, without leaving translated code.
//!
//! A block jumps here with the context's `argument` set to a host address behind the instruction. All checks come first: where one
//! fails, nothing has happened and the reference executes the instruction. What may be done at all Rust has written into the
//! context (`can_syscall` and so on, see [`crate::crossing`]). Then flags, selectors and the view change, the stack of return
//! addresses becomes that of the other level, and the target is looked up in the table of that level.
//!
//! Like every indirect branch these look at the kicker's word. A set IF only gets in where no event can be waiting (`calm`). The new
//! flags have to be plain: arithmetic flags, DF, IF. IRETQ is a serializing instruction, so it looks whether code has been written.

use super::{ExitReason, store_reason};
use crate::asm::*;
use crate::context::{Context, field, gpr, gs, returns, target_hosts, target_tags};
use crate::emit::host;
use std::mem::offset_of;
use x86::Rflags;
use x86::state::seg;

/// Host addresses of the stubs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Table {
    /// R11 is the address of the next instruction.
    pub(crate) syscall: u64,
    pub(crate) sysret: u64,
    /// IRETQ that drops RF, which means nothing without breakpoints, and IRETQ that leaves it to the reference.
    pub(crate) iret: [u64; 2],
}

impl Table {
    pub(super) fn names(&self) -> [(u64, &'static str); 4] {
        [
            (self.syscall, "syscall"),
            (self.sysret, "sysret"),
            (self.iret[0], "iret"),
            (self.iret[1], "iret.exact"),
        ]
    }
}

/// Flags that live in the host's own.
const OWN: u32 = (Rflags::ARITHMETIC.bits() | Rflags::DF.bits()) as u32;
const IF: u32 = Rflags::IF.bits() as u32;

const SUPERVISOR: bool = false;
const USER: bool = true;

/// Writes them. `exit`: the way out, with reason and argument stored.
pub(super) fn write(asm: &mut Asm, exit: u64) -> Table {
    let fail = asm.here();
    asm.load_gs(R10, gpr(10));
    store_reason(asm, ExitReason::Interpret);
    asm.jump(exit);
    Table {
        syscall: syscall(asm, fail),
        sysret: sysret(asm, fail),
        iret: [iret(asm, exit, false), iret(asm, exit, true)],
    }
}

/// Fails where the context's word is zero. Leaves the flags alone, as all up to the commitment does.
fn require(asm: &mut Asm, word: i32, fail: u64) {
    asm.load_gs(RCX, word);
    require_value(asm, fail);
}

/// Fails where RCX is zero.
fn require_value(asm: &mut Asm, fail: u64) {
    let zero = asm.jrcxz();
    let over = asm.jump_short();
    assert!(asm.fill(zero));
    asm.jump(fail);
    assert!(asm.fill(over));
}

/// Fails where RCX isn't zero.
fn require_zero(asm: &mut Asm, fail: u64) {
    let zero = asm.jrcxz();
    asm.jump(fail);
    assert!(asm.fill(zero));
}

/// Fails where the kicker wants attention.
fn require_no_kick(asm: &mut Asm, fail: u64) {
    asm.load_gs(RCX, field!(proceed));
    asm.load(Size::B4, RCX, Mem::near(RCX, 0));
    require_value(asm, fail);
}

/// The slot of the guest address in R11 in a table of targets, in R10; RCX becomes zero if the address is there.
fn look_up_tags(asm: &mut Asm, user: bool) {
    asm.pext(R10, R11, field!(target_mask));
    asm.load(Size::B8, RCX, Mem::GsTable(R10, gs(target_tags(user))));
    asm.lea(RCX, Mem::sum(RCX, R11));
}

/// Puts the translation of the guest address in R11 into the context's `target`. Uses RCX, R10 and R11.
fn find_target(asm: &mut Asm, user: bool, fail: u64) {
    look_up_tags(asm, user);
    require_zero(asm, fail);
    asm.load(Size::B8, R11, Mem::GsTable(R10, gs(target_hosts(user))));
    asm.store_gs(field!(target), R11);
}

/// IF and the rest from the image in a register, without AC. Uses RCX.
fn load_interrupt_flag(asm: &mut Asm, image: Reg) {
    asm.mov32(RCX, image);
    asm.and_immediate(RCX, IF);
    asm.store_gs(field!(interrupt_flag), RCX);
}

/// Selectors of CS and SS from the context. Uses RCX.
fn load_selectors(asm: &mut Asm, from: i32) {
    for (index, slot) in [seg::CS, seg::SS].into_iter().enumerate() {
        asm.load_gs(RCX, from + 8 * index as i32);
        asm.store_gs(selector(slot), RCX);
    }
}

const fn selector(slot: usize) -> i32 {
    gs(offset_of!(Context, selectors) + 8 * slot)
}

const fn view(index: usize) -> i32 {
    gs(offset_of!(Context, views) + 8 * index)
}

/// To the other level's stack of return addresses and view. Uses RCX.
fn switch(asm: &mut Asm, user: bool) {
    asm.store_immediate(Size::B8, Mem::Gs(field!(user)), i32::from(user));
    if user {
        asm.load_gs(RSP, field!(user_stack));
        asm.load_gs(RCX, view(0));
    } else {
        asm.store_gs(field!(user_stack), RSP);
        asm.load_gs(RSP, field!(stack_starts));
        asm.load_gs(RCX, view(1));
    }
    asm.wrgsbase(RCX);
}

/// The flags in a register and those that are spilled, and on to the target.
fn go(asm: &mut Asm, image: Reg, spilled: &[(usize, Reg)]) {
    asm.and_immediate(image, OWN);
    asm.push(image);
    for &(index, reg) in spilled {
        asm.load_gs(reg, gpr(index));
    }
    asm.raw(&[0x9d]); // popfq
    asm.jump_mem(Mem::Gs(field!(target)));
}

/// ```text
///   mov gs:[guest.r10],r10
///   mov gs:[saved],r11
///   ...                                        may it be, is nobody waiting, is AC clear?
///   mov r11,gs:[syscall_target]
///   ...                                        look-up among the supervisor's targets
///   pushfq
///   pop r10
///   mov rcx,gs:[system_flags]
///   lea r10,[r10+rcx-0x202]                    without the host's IF and bit 1
///   mov rcx,gs:[interrupt_flag]
///   lea r10,[r10+rcx]
///   mov gs:[guest.r11],r10
///   mov r9,gs:[saved]
///   and r10,gs:[syscall_keeps]
///   ...                                        IF, the other flags, selectors, stack, view
///   and r10d,0xcd5
///   push r10
///   mov r10,gs:[guest.r10]
///   popfq
///   jmp gs:[target]
/// ```
fn syscall(asm: &mut Asm, fail: u64) -> u64 {
    let at = asm.here();
    asm.store_gs(gpr(10), R10);
    asm.store_gs(field!(saved), R11);
    require(asm, field!(can_syscall), fail);
    require_no_kick(asm, fail);
    asm.load_gs(RCX, field!(alignment_flag));
    require_zero(asm, fail);
    asm.load_gs(R11, field!(syscall_target));
    find_target(asm, SUPERVISOR, fail);

    asm.raw(&[0x9c]); // pushfq
    asm.pop(R10);
    asm.load_gs(RCX, field!(system_flags));
    asm.lea(R10, Mem::At { base: Some(R10), index: Some((RCX, 1)), disp: -(IF as i32 + 2) });
    asm.load_gs(RCX, field!(interrupt_flag));
    asm.lea(R10, Mem::sum(R10, RCX));
    asm.store_gs(gpr(11), R10);
    asm.load_gs(host(1).expect("RCX has a host register"), field!(saved));
    asm.and(R10, Mem::Gs(field!(syscall_keeps)));
    load_interrupt_flag(asm, R10);
    asm.mov32(RCX, R10);
    asm.and_immediate(RCX, !(OWN | IF | Rflags::AC.bits() as u32));
    asm.store_gs(field!(system_flags), RCX);
    load_selectors(asm, field!(syscall_selectors));
    asm.store_immediate(Size::B8, Mem::Gs(field!(loaded)), crate::crossing::SYSCALL as i32);
    switch(asm, SUPERVISOR);
    go(asm, R10, &[(10, R10)]);
    at
}

/// ```text
///   mov gs:[guest.r10],r10
///   ...                                        may it be, is nobody waiting?
///   pext rcx,[guest.r11],gs:[careful_flags]    must be zero
///   ...                                        if IF is set: calm?
///   ...                                        look-up of r9 among the user's targets
///   ...                                        IF, the other flags, selectors, stack, view
///   and r10d,0xcd5
///   push r10
///   mov r10,gs:[guest.r10]
///   popfq
///   jmp gs:[target]
/// ```
fn sysret(asm: &mut Asm, fail: u64) -> u64 {
    let at = asm.here();
    asm.store_gs(gpr(10), R10);
    require(asm, field!(can_sysret), fail);
    require_no_kick(asm, fail);
    asm.load_gs(R11, gpr(11));
    asm.pext(RCX, R11, field!(careful_flags));
    require_zero(asm, fail);
    asm.pext(RCX, R11, field!(interrupt_mask));
    let closed = asm.jrcxz();
    require(asm, field!(calm), fail);
    assert!(asm.fill(closed));
    asm.mov(R11, host(1).expect("RCX has a host register"));
    find_target(asm, USER, fail);

    asm.load_gs(R10, gpr(11));
    load_interrupt_flag(asm, R10);
    asm.store_immediate(Size::B8, Mem::Gs(field!(alignment_flag)), 0);
    asm.store_immediate(Size::B8, Mem::Gs(field!(system_flags)), Rflags::ONE.bits() as i32);
    load_selectors(asm, field!(sysret_selectors));
    asm.store_immediate(Size::B8, Mem::Gs(field!(loaded)), crate::crossing::SYSRET as i32);
    switch(asm, USER);
    go(asm, R10, &[(10, R10)]);
    at
}

/// The displacement of a word of the pair whose words R10 counts from the first one's.
const fn pair(word: usize) -> i32 {
    gs(offset_of!(Context, returns) + 8 * word)
}

/// Registers that the IRETQ stub uses besides the scratch ones.
const SPILLED: [(usize, Reg); 4] = [(0, RAX), (2, RDX), (3, RBX), (10, R10)];

/// ```text
///   ...                                        spills RAX, RDX, RBX, R10 and the flags
///   ...                                        may it be, is nobody waiting, is no code written, are NT and its like clear?
///   ...                                        look-up of the frame at R15, in RBX; its flags, in EDX
///   ...                                        which pair of selectors? R10
///   ...                                        are the descriptors what they were?
///   ...                                        look-up of the target, by level
///   ...                                        IF, the other flags, selectors, RSP; outwards: stack and view
/// ```
fn iret(asm: &mut Asm, exit: u64, exact: bool) -> u64 {
    let at = asm.here();
    let mut fails = Vec::new();
    let rsp = host(4).expect("RSP has a host register");
    for (index, reg) in SPILLED {
        asm.store_gs(gpr(index), reg);
    }
    asm.raw(&[0x9c]); // pushfq
    asm.pop_mem(Mem::Gs(field!(flags)));
    let mut require = |asm: &mut Asm, holds: u8| fails.push(asm.jump_if_far(holds ^ 1));

    asm.compare_immediate(Size::B4, Mem::Gs(field!(can_return)), 0);
    require(asm, condition::NOT_EQUAL);
    asm.load_gs(RCX, field!(proceed));
    asm.compare_immediate(Size::B4, Mem::near(RCX, 0), 0);
    require(asm, condition::NOT_EQUAL);
    asm.load_gs(RCX, field!(epoch));
    asm.load(Size::B8, RCX, Mem::near(RCX, 0));
    asm.compare(RCX, Mem::Gs(field!(writes_seen)));
    require(asm, condition::EQUAL);
    asm.compare_immediate(Size::B8, Mem::Gs(field!(system_flags)), Rflags::ONE.bits() as i8);
    require(asm, condition::EQUAL);

    // The frame: canonical, in one page, readable.
    asm.mov(RAX, rsp);
    asm.shift_left(RAX, 16);
    asm.shift_right_signed(RAX, 16);
    asm.compare_registers(RAX, rsp);
    require(asm, condition::EQUAL);
    asm.mov32(RAX, rsp);
    asm.and_immediate(RAX, 0xfff);
    asm.compare_low(RAX, 0x1000 - FRAME);
    require(asm, condition::ABOVE ^ 1);
    asm.pext(RCX, rsp, field!(page_mask));
    asm.load(Size::B8, RCX, Mem::GsTable(RCX, 0));
    asm.test_zero(RCX);
    require(asm, condition::NOT_EQUAL);
    asm.lea(RBX, Mem::sum(rsp, RCX));

    // Its flags.
    asm.load(Size::B8, RDX, Mem::near(RBX, 16));
    asm.test(RDX, Mem::Gs(field!(careful_flags)));
    require(asm, condition::EQUAL);
    if exact {
        asm.mov32(RCX, RDX);
        asm.and_immediate(RCX, Rflags::RF.bits() as u32);
        require(asm, condition::EQUAL);
    }
    test_interrupt_flag(asm, RDX);
    let closed = asm.jump_if_short(condition::EQUAL);
    asm.compare_immediate(Size::B4, Mem::Gs(field!(calm)), 0);
    require(asm, condition::NOT_EQUAL);
    assert!(asm.fill(closed));

    // Its selectors.
    asm.load_zero_extended(Size::B2, RCX, Mem::near(RBX, 32));
    asm.shift_left(RCX, 16);
    asm.load_zero_extended(Size::B2, RAX, Mem::near(RBX, 8));
    asm.add(RCX, RAX);
    let mut found = Vec::new();
    for index in 0..returns::COUNT {
        asm.mov_immediate(R10, (index * returns::WORDS) as u64);
        asm.compare(RCX, Mem::GsTable(R10, pair(returns::SELECTORS)));
        if index + 1 == returns::COUNT {
            require(asm, condition::EQUAL);
        } else {
            found.push(asm.jump_if_short(condition::EQUAL));
        }
    }
    for hole in found {
        assert!(asm.fill(hole));
    }
    for (at, raw) in [(returns::CODE_AT, returns::CODE), (returns::STACK_AT, returns::STACK)] {
        asm.load(Size::B8, R11, Mem::GsTable(R10, pair(at)));
        asm.pext(RCX, R11, field!(page_mask));
        asm.load(Size::B8, RCX, Mem::GsTable(RCX, 0));
        asm.test_zero(RCX);
        require(asm, condition::NOT_EQUAL);
        asm.load(Size::B8, RCX, Mem::sum(R11, RCX));
        asm.compare(RCX, Mem::GsTable(R10, pair(raw)));
        require(asm, condition::EQUAL);
    }

    asm.load(Size::B8, RCX, Mem::GsTable(R10, pair(returns::USER)));
    asm.test_zero(RCX);
    let inwards = asm.jump_if_far(condition::EQUAL);
    for user in [USER, SUPERVISOR] {
        if user {
            asm.compare_immediate(Size::B4, Mem::Gs(field!(can_return_out)), 0);
            require(asm, condition::NOT_EQUAL);
        } else {
            asm.set_relative(inwards, asm.len());
            // With AC set, the view would have to change.
            asm.compare_immediate(Size::B8, Mem::Gs(field!(alignment_flag)), 0);
            require(asm, condition::EQUAL);
        }
        asm.load(Size::B8, R11, Mem::near(RBX, 0));
        asm.load(Size::B8, RAX, Mem::GsTable(R10, pair(returns::LOADED)));
        look_up_tags(asm, user);
        asm.test_zero(RCX);
        require(asm, condition::EQUAL);
        asm.load(Size::B8, R11, Mem::GsTable(R10, gs(target_hosts(user))));

        // From here on nothing fails.
        asm.store_gs(field!(target), R11);
        asm.store_gs(field!(loaded), RAX);
        load_interrupt_flag(asm, RDX);
        asm.store_immediate(Size::B8, Mem::Gs(field!(alignment_flag)), 0);
        for (place, slot) in [(8, seg::CS), (32, seg::SS)] {
            asm.load_zero_extended(Size::B2, RCX, Mem::near(RBX, place));
            asm.store_gs(selector(slot), RCX);
        }
        asm.load(Size::B8, rsp, Mem::near(RBX, 24));
        if user {
            switch(asm, USER);
        }
        go(asm, RDX, &SPILLED);
    }

    for place in fails {
        asm.set_relative(place, asm.len());
    }
    for (index, reg) in SPILLED {
        asm.load_gs(reg, gpr(index));
    }
    asm.push_mem(Mem::Gs(field!(flags)));
    asm.raw(&[0x9d]); // popfq
    store_reason(asm, ExitReason::Interpret);
    asm.jump(exit);
    at
}

/// Bytes of an IRETQ frame.
const FRAME: u32 = 40;

/// ZF: whether IF is clear in the image. Uses RCX.
fn test_interrupt_flag(asm: &mut Asm, image: Reg) {
    asm.mov32(RCX, image);
    asm.and_immediate(RCX, IF);
}
