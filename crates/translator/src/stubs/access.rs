//! The stubs behind an access whose quick look-up didn't do: it may cross pages, or its page has no entry.
//!
//! Called from the islands of blocks with the address in R11. RCX is free, R11 and all other registers are kept, and the flags.

use super::Stubs;
use crate::asm::*;
use crate::context::{BOUNCE, Context, field, gpr, gs, own};
use shadow::{WATCHED_DELTAS, WATCHED_GRANULES, WATCHED_TAGS};
use std::mem::offset_of;

/// A stub for accesses that may cross pages or whose page has no entry: see [`Stubs::read`]. Goes on at `missing`, or at `crossing`,
/// which for an error is where all that cross pages go.
pub(super) fn write_access(asm: &mut Asm, write: bool, crossing: Result<u64, u64>, missing: u64) -> u64 {
    let at = asm.here();
    let table = if write { -(shadow::SHARED_BYTES as i32) } else { 0 };
    asm.store_gs(field!(saved), R10);
    asm.load_gs(R10, field!(cross_size));
    asm.lea(R10, Mem::At { base: Some(R11), index: Some((R10, 1)), disp: -1 });
    asm.pext(R10, R10, field!(page_mask));
    asm.pext(RCX, R11, field!(page_mask));
    asm.not(RCX);
    asm.lea(RCX, Mem::At { base: Some(RCX), index: Some((R10, 1)), disp: 1 });
    let over = asm.jrcxz();
    let other = asm.jump_short();
    assert!(asm.fill(over));
    let same = asm.jump_near();
    assert!(asm.fill(other));
    match crossing {
        Ok(crossing) => cross(asm, write, crossing),
        Err(all) => {
            asm.load_gs(R10, field!(saved));
            asm.jump(all);
        }
    }
    asm.set_relative(same, asm.len());
    asm.load_gs(R10, field!(saved));
    asm.pext(RCX, R11, field!(page_mask));
    if write {
        asm.not(RCX);
    }
    asm.load(Size::B8, RCX, Mem::GsTable(RCX, table));
    let none = asm.jrcxz();
    asm.ret();
    assert!(asm.fill(none));
    asm.jump(missing);
    at
}

/// Part of a stub: an access of two pages, the number of the second in R10.
fn cross(asm: &mut Asm, write: bool, crossing: u64) {
    let table = if write { -(shadow::SHARED_BYTES as i32) } else { 0 };
    asm.pext(RCX, R11, field!(page_mask));
    if write {
        asm.not(R10);
        asm.not(RCX);
    }
    let entries = gs(offset_of!(Context, cross_entries));
    asm.load(Size::B8, RCX, Mem::GsTable(RCX, table));
    let first_missing = asm.jrcxz();
    asm.store_gs(entries, RCX);
    asm.load(Size::B8, RCX, Mem::GsTable(R10, table));
    let second_missing = asm.jrcxz();
    asm.store_gs(entries + 8, RCX);
    // Both pages may lie in RAM as they lie in the address space: then their entries are equal.
    asm.not(RCX);
    asm.load_gs(R10, entries);
    asm.lea(RCX, Mem::At { base: Some(RCX), index: Some((R10, 1)), disp: 1 });
    let equal = asm.jrcxz();
    let unequal = asm.jump_short();
    assert!(asm.fill(first_missing));
    assert!(asm.fill(second_missing));
    asm.load_gs(R10, field!(saved));
    asm.jump(crossing);
    assert!(asm.fill(equal));
    asm.load_gs(R10, field!(saved));
    asm.ret();
    assert!(asm.fill(unequal));
    if !write {
        copy_crossing(asm, crossing);
    }
    asm.load_gs(R10, field!(saved));
    asm.jump(crossing);
}

/// Part of a stub: copies 64 bytes on each side of where the pages of a load meet, which have different entries, and returns what leads
/// to the copy. Goes on at `crossing` if the load's address isn't canonical, or behind what it writes if its end isn't.
fn copy_crossing(asm: &mut Asm, crossing: u64) {
    let entries = gs(offset_of!(Context, cross_entries));
    let canonical = |asm: &mut Asm, address: Reg| {
        asm.pext(RCX, address, field!(sign_bits));
        asm.lea(RCX, Mem::near(RCX, 1));
        asm.pext(RCX, RCX, field!(mixed_signs));
        asm.jrcxz()
    };
    let start = canonical(asm, R11);
    asm.load_gs(R10, field!(saved));
    asm.jump(crossing);
    assert!(asm.fill(start));
    // The start of the last byte's page.
    asm.load_gs(R10, field!(cross_size));
    asm.lea(R10, Mem::At { base: Some(R11), index: Some((R10, 1)), disp: -1 });
    asm.pext(RCX, R10, field!(offset_mask));
    asm.not(RCX);
    asm.lea(R10, Mem::At { base: Some(R10), index: Some((RCX, 1)), disp: 1 });
    asm.store_gs(field!(cross_at), R10);
    let end = canonical(asm, R10);
    let beyond = asm.jump_near();
    assert!(asm.fill(end));
    for (half, disp) in [(0, -64), (1, 0)] {
        asm.load_gs(RCX, entries + 8 * half);
        if half > 0 {
            asm.load_gs(R10, field!(cross_at));
        }
        asm.lea(RCX, Mem::sum(RCX, R10));
        for word in 0..8 {
            asm.load(Size::B8, R10, Mem::near(RCX, disp + 8 * word));
            asm.store_gs(gs(BOUNCE) + 64 * half + 8 * word, R10);
        }
    }
    asm.load_gs(RCX, field!(cross_bounce));
    asm.load_gs(R10, field!(cross_at));
    asm.not(R10);
    asm.lea(RCX, Mem::At { base: Some(RCX), index: Some((R10, 1)), disp: 1 });
    asm.load_gs(R10, field!(saved));
    asm.ret();
    asm.set_relative(beyond, asm.len());
}

/// The stubs for stores to pages without an entry: see [`Stubs::store`]. RCX is free, R11 is kept. Where the page is watched
/// and none of the granules is marked, they say what to add; else they ask Rust at `slow`.
pub(super) fn write_stores(asm: &mut Asm, stubs: &mut Stubs, slow: u64) {
    for exponent in 0..stubs.store.len() {
        let bytes = 1 << exponent;
        stubs.store[exponent] = asm.here();
        asm.store_gs(gpr(10), R10);
        asm.store_gs(gpr(0), RAX);
        asm.pext(RAX, R11, field!(watched_mask));
        // R10: the address's offset in the page that is watched.
        asm.load(Size::B8, RCX, Mem::GsTable(RAX, own(WATCHED_TAGS)));
        asm.lea(R10, Mem::sum(RCX, R11));
        asm.pext(RCX, R10, field!(outside_mask));
        let found = asm.jrcxz();
        let miss = asm.here();
        asm.load_gs(R10, gpr(10));
        asm.load_gs(RAX, gpr(0));
        asm.store_immediate(Size::B8, Mem::Gs(field!(fill_bytes)), bytes);
        asm.jump(slow);
        assert!(asm.fill(found));
        asm.load(Size::B8, RCX, Mem::GsTable(RAX, own(WATCHED_GRANULES)));
        asm.load(Size::B8, RCX, Mem::near(RCX, 0));
        // The bits of the first byte's granule and of the last one's.
        asm.pext(RAX, R10, field!(granule_mask));
        asm.shrx(RAX, RCX, RAX);
        asm.pext(RAX, RAX, field!(one));
        asm.lea(R10, Mem::near(R10, bytes - 1));
        asm.pext(R10, R10, field!(granule_mask));
        asm.shrx(RCX, RCX, R10);
        asm.pext(RCX, RCX, field!(one));
        asm.lea(RCX, Mem::sum(RCX, RAX));
        let clear = asm.jrcxz();
        asm.jump(miss);
        assert!(asm.fill(clear));
        asm.pext(RAX, R11, field!(watched_mask));
        asm.load(Size::B8, RCX, Mem::GsTable(RAX, own(WATCHED_DELTAS)));
        asm.load_gs(RAX, gpr(0));
        asm.load_gs(R10, gpr(10));
        asm.ret();
    }
}
