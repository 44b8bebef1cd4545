//! The fixed pieces of code at the start of code memory: the way in, the ways out, and what translated code calls.
//!
//! While translated code runs, guest registers are where [`crate::emit::host`] says, RCX and R11 are scratch, RSP points into
//! the stack of host return addresses, flags are the guest's, and GS points at the view in force. Every stub keeps to that.

mod access;
mod compare;
pub(crate) mod privilege;
pub(crate) mod string;

use crate::asm::*;
use crate::context::{Context, XSAVE, field, gpr, gs};
use crate::emit::host;
use crate::raw::code::CodeMemory;
use std::mem::offset_of;

/// Why translated code left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum ExitReason {
    /// A direct jump that leads nowhere yet. Argument: its link.
    Link = 1,
    /// An indirect jump's target is in R11 and not in the table.
    Indirect,
    /// The same after a RET, which has already popped it.
    Return,
    /// The instruction at a host address (argument) is for the reference engine. Nothing of it has happened.
    Interpret,
    /// The same; the host faulted in it.
    Fault,
    /// Somebody wants attention. Argument: the link that was about to be taken.
    Poll,
    /// The page of a block (argument) may not be mapped where it was.
    Stale,
    /// A block (argument) needs the vector registers.
    Vector,
    /// The instruction budget ends inside a block (argument).
    Budget,
    /// A block (argument) has found that the guest's code isn't what it was.
    Changed,
}

impl ExitReason {
    /// One more than the highest.
    pub(crate) const COUNT: usize = Self::NAMES.len() + 1;
    /// All of them, in order, with their names for people.
    pub(crate) const NAMES: [(Self, &'static str); 10] = [
        (Self::Link, "link"),
        (Self::Indirect, "indirect"),
        (Self::Return, "return"),
        (Self::Interpret, "interpret"),
        (Self::Fault, "fault"),
        (Self::Poll, "poll"),
        (Self::Stale, "stale"),
        (Self::Vector, "vector"),
        (Self::Budget, "budget"),
        (Self::Changed, "changed"),
    ];
}

/// Host addresses of the stubs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stubs {
    /// Called by Rust.
    pub(crate) enter: u64,
    /// Jumped to with the reason and argument stored.
    pub(crate) exit: u64,
    /// Jumped to with the argument stored: R11 is a target that the table doesn't have.
    pub(crate) indirect: u64,
    /// Jumped to: R11 is a target to be found in the user's or the supervisor's table, after a RET.
    pub(crate) look_up_return: [u64; 2],
    /// Called with an address in R11: fills the view's entry and returns, or leaves.
    pub(crate) fill_read: u64,
    pub(crate) fill_write: u64,
    /// Called with an address in R11 where a read, or a write of at most 1 << n bytes, of `cross_size` bytes may cross a page or
    /// has no entry. Returns in RCX what has to be added to the address, or zero if the page is to be looked up again and the
    /// access made as if it didn't cross; or leaves. Second: in 32-bit code, whose addresses wrap, crossing accesses are the
    /// reference's.
    pub(crate) read: [u64; 2],
    pub(crate) write: [[u64; 7]; 2],
    /// Called with the address in R11 of a store of at most 1 << n bytes in one page, where the view has no entry for it: returns
    /// in RCX what is to be added to the address, for this store only, or leaves.
    pub(crate) store: [u64; 7],
    /// Called with a value for CR3, or the operand of an INVLPG, in R11, and the number of the running code's cell in the context.
    /// Return with RCX zero, or leave.
    pub(crate) load_root: u64,
    pub(crate) drop_address: u64,
    /// Called where an instruction is for the reference engine. Doesn't return.
    pub(crate) interpret: u64,
    /// The signal handler's.
    pub(crate) fault: u64,
    /// Called at a block's start: puts the vector registers in place and returns, or leaves. The argument is stored.
    pub(crate) vector: u64,
    /// Called where a block compares its source: see [`compare`].
    pub(crate) compare: u64,
    /// Where returns that find nothing on the stack go, by table: the stack's first slot.
    pub(crate) bottom: [u64; 2],
    /// Jumped to by SYSCALL, SYSRET and IRETQ: see [`privilege`].
    pub(crate) privilege: privilege::Table,
    /// Called where a repeated string instruction is.
    pub(crate) strings: string::Table,
}

impl Stubs {
    /// Their addresses with names for people.
    pub(crate) fn names(&self) -> Vec<(u64, &'static str)> {
        let Self {
            enter,
            exit,
            indirect,
            look_up_return,
            fill_read,
            fill_write,
            store,
            read,
            write,
            load_root,
            drop_address,
            interpret,
            fault,
            vector,
            compare,
            bottom,
            privilege,
            strings,
        } = *self;
        let store_names = ["store.1", "store.2", "store.4", "store.8", "store.16", "store.32", "store.64"];
        let mut names = vec![
            (enter, "enter"),
            (exit, "exit"),
            (indirect, "indirect"),
            (look_up_return[0], "look_up_return.supervisor"),
            (look_up_return[1], "look_up_return.user"),
            (fill_read, "fill_read"),
            (fill_write, "fill_write"),
            (read[0], "read"),
            (read[1], "read_narrow"),
            (load_root, "load_root"),
            (drop_address, "drop_address"),
            (interpret, "interpret"),
            (fault, "fault"),
            (vector, "vector"),
            (compare, "compare"),
            (bottom[0], "bottom.supervisor"),
            (bottom[1], "bottom.user"),
        ];
        names.extend(privilege.names());
        names.extend(string::names(&strings));
        names.extend(store.into_iter().zip(store_names));
        let write_names = ["write.1", "write.2", "write.4", "write.8", "write.16", "write.32", "write.64"];
        names.extend(write[0].into_iter().zip(write_names));
        names.extend(write[1].into_iter().zip(write_names));
        names
    }
}

fn store_reason(asm: &mut Asm, reason: ExitReason) {
    asm.store_immediate(Size::B8, Mem::Gs(field!(reason)), reason as i32);
}

fn spill(asm: &mut Asm) {
    for index in 0..16 {
        if let Some(reg) = host(index) {
            asm.store_gs(gpr(index), reg);
        }
    }
    asm.store_gs(field!(r11), R11);
    asm.raw(&[0x9c]); // pushfq
    asm.pop_mem(Mem::Gs(field!(flags)));
    asm.raw(&[0xfc]); // cld
}

fn unspill(asm: &mut Asm) {
    asm.push_mem(Mem::Gs(field!(flags)));
    asm.raw(&[0x9d]); // popfq
    for index in 0..16 {
        if let Some(reg) = host(index) {
            asm.load_gs(reg, gpr(index));
        }
    }
    asm.load_gs(R11, field!(r11));
}

fn load_xsave_mask(asm: &mut Asm) {
    asm.load_gs32(RAX, field!(xsave_mask));
    asm.load_gs32(RDX, field!(xsave_mask) + 4);
}

/// If the vector registers are the guest's: saves them and makes them Rust's. Registers have been spilled.
fn put_vector_away(asm: &mut Asm, optimized: bool) -> Hole8 {
    asm.load_gs(RCX, field!(vector_ready));
    let none = asm.jrcxz();
    load_xsave_mask(asm);
    if optimized {
        asm.xsaveopt(gs(XSAVE));
    } else {
        asm.xsave(gs(XSAVE));
    }
    asm.store_immediate(Size::B8, Mem::Gs(field!(vector_ready)), 0);
    asm.store_immediate(Size::B8, Mem::Gs(field!(vector_saved)), 1);
    asm.ldmxcsr(field!(host_mxcsr));
    none
}

/// What translated code asks Rust for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Want {
    /// An entry for reads of the page at the address.
    Read,
    /// One for writes.
    Write,
    /// What has to be added to the address for one store of `fill_bytes`.
    Store,
    /// A way to read bytes that cross into the next page.
    CrossingRead,
    /// A way to write them.
    CrossingWrite,
    /// The address as CR3's value.
    LoadRoot,
    /// INVLPG of the address.
    DropAddress,
}

/// A stub that calls Rust's `fill` with the address in R11 and returns what it returned in RCX, or leaves if that was zero. R11 is
/// kept.
fn call_rust(asm: &mut Asm, want: Want, vzeroupper: &[u8], xsaveopt: bool) -> u64 {
    let at = asm.here();
    spill(asm);
    let none = put_vector_away(asm, xsaveopt);
    // Remember that they have to be brought back.
    asm.raw(vzeroupper);
    asm.mov_immediate(RBX, 1);
    let over = asm.jump_short();
    assert!(asm.fill(none));
    asm.mov_immediate(RBX, 0);
    assert!(asm.fill(over));
    asm.mov(RBP, RSP);
    asm.load_gs(RSP, field!(host_rsp));
    // Rust wants 16-byte alignment at the call: the entry's six pushes and return address leave it so but for 8.
    asm.raw(&[0x48, 0x83, 0xe4, 0xf0]); // and rsp, -16
    asm.load_gs(RDI, field!(vcpu));
    asm.mov(RSI, R11);
    asm.mov_immediate(RDX, want as u64);
    asm.call_gs(field!(fill));
    asm.mov(RSP, RBP);
    asm.store_gs(field!(filled), RAX);
    asm.raw(&[0x48, 0x85, 0xc0]); // test rax, rax: the flags are spilled
    asm.jump_if(5, asm.here());
    let filled = asm.len() - 4;
    asm.pop_mem(Mem::Gs(field!(argument)));
    store_reason(asm, ExitReason::Interpret);
    // Everything is spilled already, vector registers too.
    asm.load_gs(RSP, field!(host_rsp));
    for reg in [R15, R14, R13, R12, RBP, RBX] {
        asm.pop(reg);
    }
    asm.ret();
    asm.set_relative(filled, asm.len());
    asm.mov(RCX, RBX);
    let plain = asm.jrcxz();
    load_xsave_mask(asm);
    asm.xrstor(gs(XSAVE));
    asm.store_immediate(Size::B8, Mem::Gs(field!(vector_ready)), 1);
    assert!(asm.fill(plain));
    unspill(asm);
    asm.load_gs(RCX, field!(filled));
    // One means no more than yes.
    asm.lea(RCX, Mem::near(RCX, -1));
    let yes = asm.jrcxz();
    asm.lea(RCX, Mem::near(RCX, 1));
    assert!(asm.fill(yes));
    asm.ret();
    at
}

/// Writes the stubs.
pub(crate) fn write(code: &mut CodeMemory, avx: bool, xsaveopt: bool) -> Stubs {
    let mut asm = Asm::new(code.next());
    let mut stubs = Stubs::default();
    let vzeroupper: &[u8] = if avx { &[0xc5, 0xf8, 0x77] } else { &[] };

    // In.
    stubs.enter = asm.here();
    for reg in [RBX, RBP, R12, R13, R14, R15] {
        asm.push(reg);
    }
    asm.store_gs(field!(host_rsp), RSP);
    asm.load_gs(RSP, field!(stack_start));
    unspill(&mut asm);
    asm.jump_mem(Mem::Gs(field!(target)));

    // Out.
    stubs.exit = asm.here();
    spill(&mut asm);
    let none = put_vector_away(&mut asm, xsaveopt);
    asm.raw(vzeroupper);
    assert!(asm.fill(none));
    asm.load_gs(RSP, field!(host_rsp));
    for reg in [R15, R14, R13, R12, RBP, RBX] {
        asm.pop(reg);
    }
    asm.ret();

    stubs.indirect = asm.here();
    store_reason(&mut asm, ExitReason::Indirect);
    asm.jump(stubs.exit);

    // The site's address is on the stack.
    stubs.interpret = asm.here();
    asm.pop_mem(Mem::Gs(field!(argument)));
    store_reason(&mut asm, ExitReason::Interpret);
    asm.jump(stubs.exit);

    stubs.fault = asm.here();
    store_reason(&mut asm, ExitReason::Fault);
    asm.jump(stubs.exit);

    stubs.fill_read = call_rust(&mut asm, Want::Read, vzeroupper, xsaveopt);
    stubs.fill_write = call_rust(&mut asm, Want::Write, vzeroupper, xsaveopt);
    stubs.load_root = call_rust(&mut asm, Want::LoadRoot, vzeroupper, xsaveopt);
    stubs.drop_address = call_rust(&mut asm, Want::DropAddress, vzeroupper, xsaveopt);
    let slow = call_rust(&mut asm, Want::Store, vzeroupper, xsaveopt);
    access::write_stores(&mut asm, &mut stubs, slow);

    let crossing =
        [Want::CrossingRead, Want::CrossingWrite].map(|want| call_rust(&mut asm, want, vzeroupper, xsaveopt));
    for narrow in [false, true] {
        let way = |write: bool| if narrow { Err(stubs.interpret) } else { Ok(crossing[usize::from(write)]) };
        stubs.read[usize::from(narrow)] = access::write_access(&mut asm, false, way(false), stubs.fill_read);
        for exponent in 0..stubs.store.len() {
            let missing = stubs.store[exponent];
            stubs.write[usize::from(narrow)][exponent] =
                access::write_access(&mut asm, true, way(true), missing);
        }
    }

    stubs.vector = asm.here();
    asm.load_gs(RCX, field!(vector_saved));
    let missing = asm.jrcxz();
    asm.store_gs(gpr(0), RAX);
    asm.store_gs(gpr(2), RDX);
    load_xsave_mask(&mut asm);
    asm.xrstor(gs(XSAVE));
    asm.store_immediate(Size::B8, Mem::Gs(field!(vector_ready)), 1);
    asm.load_gs(RAX, gpr(0));
    asm.load_gs(RDX, gpr(2));
    asm.ret();
    assert!(asm.fill(missing));
    store_reason(&mut asm, ExitReason::Vector);
    asm.jump(stubs.exit);

    // Returns whose host return address was wrong, or that had none.
    let unknown = asm.here();
    store_reason(&mut asm, ExitReason::Return);
    asm.jump(stubs.exit);
    for user in [false, true] {
        stubs.bottom[usize::from(user)] = asm.here();
        asm.load_gs(RSP, field!(stack_starts) + 8 * i32::from(user));
        stubs.look_up_return[usize::from(user)] = asm.here();
        // Loops can be made of returns, too.
        asm.load_gs(RCX, field!(proceed));
        asm.load(Size::B4, RCX, Mem::near(RCX, 0));
        let stop = asm.jrcxz();
        look_up(&mut asm, user, unknown);
        assert!(asm.fill(stop));
        asm.jump(unknown);
    }

    stubs.privilege = privilege::write(&mut asm, stubs.exit);
    stubs.compare = compare::write(&mut asm);
    stubs.strings = string::write(&mut asm, &stubs);

    assert!(code.append(asm.bytes(), 0), "code memory holds at least the stubs");
    stubs
}

/// Jumps to the translation of the guest address in R11 if the table has it, else to `unknown`. Uses RCX.
pub(crate) fn look_up(asm: &mut Asm, user: bool, unknown: u64) {
    use crate::context::{target_hosts, target_tags};
    asm.pext(RCX, R11, field!(target_mask));
    asm.load(Size::B8, RCX, Mem::GsTable(RCX, gs(target_tags(user))));
    asm.lea(RCX, Mem::sum(RCX, R11));
    let hit = asm.jrcxz();
    asm.jump(unknown);
    assert!(asm.fill(hit));
    // Once more: that takes less time than to store it and to load it again.
    asm.pext(RCX, R11, field!(target_mask));
    asm.jump_mem(Mem::GsTable(RCX, gs(target_hosts(user))));
}

const _: () = assert!(offset_of!(Context, gpr) == 0);
