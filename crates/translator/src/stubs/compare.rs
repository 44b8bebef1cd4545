//! The stub that compares guest code with a copy of it, for blocks that look at their own source (`emit::check`).

use crate::asm::*;
use crate::context::gpr;

/// Called with the guest code's host address in R11, the copy's minus that in R10, and a count of 8-byte words, not zero, in RCX. RCX
/// is zero afterwards where they are equal; then R11 is behind the last word. Flags and other registers are kept.
pub(super) fn write(asm: &mut Asm) -> u64 {
    let at = asm.here();
    asm.store_gs(gpr(0), RAX);
    asm.store_gs(gpr(2), RDX);
    asm.mov(RAX, RCX);
    let next = asm.len();
    asm.load(Size::B8, RCX, Mem::near(R11, 0));
    asm.not(RCX);
    asm.load(Size::B8, RDX, Mem::sum(R11, R10));
    asm.lea(RCX, Mem::At { base: Some(RCX), index: Some((RDX, 1)), disp: 1 });
    let same = asm.jrcxz();
    let leave = asm.len();
    asm.load_gs(RAX, gpr(0));
    asm.load_gs(RDX, gpr(2));
    asm.ret();
    assert!(asm.fill(same));
    asm.lea(R11, Mem::near(R11, 8));
    asm.lea(RAX, Mem::near(RAX, -1));
    asm.mov(RCX, RAX);
    let done = asm.jrcxz();
    asm.jump_back(next);
    assert!(asm.fill(done));
    asm.jump_back(leave);
    at
}
