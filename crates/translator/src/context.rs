//! The block of memory that translated code and Rust share: registers, constants, and small tables.
//!
//! It is the [`shadow::Shared`] block, which ends where the host's GS base points while translated code runs, so each
//! field has a fixed displacement from GS: [`gs`] of its offset in the block. One vCPU's thread uses it; no locks.

use shadow::{OWN_BYTES, SHARED_BYTES};
use std::mem::offset_of;

/// What translated code needs at fixed places. All fields are plain data.
#[repr(C)]
pub(crate) struct Context {
    /// Guest general registers, in encoding order. While translated code runs, only those without a host register of their own
    /// are current.
    pub(crate) gpr: [u64; 16],
    /// Arithmetic flags and DF, as PUSHF of the host stores them, while Rust runs.
    pub(crate) flags: u64,
    /// All flags but the arithmetic ones, DF, IF and AC, with bit 1 set.
    pub(crate) system_flags: u64,
    /// RFLAGS.AC in its place, or 0.
    pub(crate) alignment_flag: u64,
    /// RFLAGS.IF in its place, or 0.
    pub(crate) interrupt_flag: u64,
    /// Not zero: no event can be waiting for IF to be set.
    pub(crate) calm: u64,
    /// The kicker's word: zero asks translated code to stop.
    pub(crate) proceed: u64,
    /// Rust's stack pointer, while translated code runs.
    pub(crate) host_rsp: u64,
    /// Where the stacks of host return addresses start, the supervisor's and the user's: slots with the address of a stub for returns
    /// that find nothing.
    pub(crate) stack_starts: [u64; 2],
    /// The one to start on; and where the user's was left when its code was.
    pub(crate) stack_start: u64,
    pub(crate) user_stack: u64,
    /// Where to enter translated code.
    pub(crate) target: u64,
    /// Why translated code stopped: an [`ExitReason`](crate::stubs::ExitReason).
    pub(crate) reason: u64,
    /// What goes with the reason: the number of a link or a block, or a host address.
    pub(crate) argument: u64,
    /// The translator's scratch register R11 when it stopped.
    pub(crate) r11: u64,
    /// What an instruction's code keeps for itself while its scratch registers are busy.
    pub(crate) held: u64,
    /// The same for what a PUSH or POP moves.
    pub(crate) pushed: u64,
    /// The guest instruction of the last RET, as a block's number and an offset in it.
    pub(crate) last_return: u64,
    /// Host address of `fill`, and what it is called with: for a store, how many bytes; where translations are invalidated, the
    /// number of the running code's cell.
    pub(crate) fill: u64,
    pub(crate) fill_bytes: u64,
    pub(crate) vcpu: u64,
    /// What `fill` returned.
    pub(crate) filled: u64,
    /// Bytes of the access that may cross a page.
    pub(crate) cross_size: u64,
    /// Guest R10, while a stub needs its register.
    pub(crate) saved: u64,
    /// The bytes of a load that crosses into a page that doesn't follow in RAM, as misaligned as they are in the guest.
    pub(crate) bounce: [u64; 24],
    /// Where two pages meet in such a load: the guest's address, the address of the place in `bounce`, and the entries of both.
    pub(crate) cross_at: u64,
    pub(crate) cross_bounce: u64,
    pub(crate) cross_entries: [u64; 2],
    /// Bits 63 to 47, which are equal in an address that is canonical, and a mask for what is then zero of their number plus one.
    pub(crate) sign_bits: u64,
    pub(crate) mixed_signs: u64,
    /// Mask that makes a page number of a linear address.
    pub(crate) page_mask: u64,
    /// Masks that make zero of the last byte's offset in its page where an access of 2 << n bytes may cross pages.
    pub(crate) cross_masks: [u64; 8],
    /// 0xfff.
    pub(crate) offset_mask: u64,
    /// All other bits.
    pub(crate) outside_mask: u64,
    /// Masks that make a slot of the view's watched pages, and a granule's number in its page; and 1.
    pub(crate) watched_mask: u64,
    pub(crate) granule_mask: u64,
    pub(crate) one: u64,
    /// Bit 63.
    pub(crate) sign_mask: u64,
    /// What is left of the instruction budget.
    pub(crate) left: u64,
    /// Mask that makes a slot of the tables of indirect targets.
    pub(crate) target_mask: u64,
    /// Segment bases in force.
    pub(crate) segment_base: [u64; 6],
    /// Guest TSC minus host TSC.
    pub(crate) tsc_offset: u64,
    /// IA32_KERNEL_GS_BASE.
    pub(crate) kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub(crate) tsc_aux: u64,
    /// Selectors of the segment registers.
    pub(crate) selectors: [u64; 6],
    /// CR0, (unused), CR2, CR3, CR4.
    pub(crate) control: [u64; 5],
    /// The instruction after the last STI that translated code executed; an address that no instruction has at first.
    pub(crate) after_sti: u64,
    /// What of RFLAGS POPF leaves to the reference where it changes: all but the arithmetic flags, DF and IF.
    pub(crate) popf_mask: u64,
    /// RFLAGS.IF.
    pub(crate) interrupt_mask: u64,
    /// 31 and 63: bit numbers in an operand.
    pub(crate) bit_masks: [u64; 2],
    /// 1: user code; 0: supervisor code.
    pub(crate) user: u64,
    /// Which CS and SS translated code has loaded, a number that `crossing` knows; 0: those that it was entered with.
    pub(crate) loaded: u64,
    /// Whether (not zero) translated code may execute: SYSCALL, SYSRET, IRETQ, IRETQ to user code.
    pub(crate) can_syscall: u64,
    pub(crate) can_sysret: u64,
    pub(crate) can_return: u64,
    pub(crate) can_return_out: u64,
    /// Whether (not zero) RDFSBASE and its kin are allowed.
    pub(crate) can_base: u64,
    /// SYSCALL's target, the flags that it keeps, and the selectors that it loads and that SYSRET loads: CS and SS.
    pub(crate) syscall_target: u64,
    pub(crate) syscall_keeps: u64,
    pub(crate) syscall_selectors: [u64; 2],
    pub(crate) sysret_selectors: [u64; 2],
    /// The pairs of CS and SS that IRETQ may load: words as [`returns`] names them.
    pub(crate) returns: [[u64; returns::WORDS]; returns::COUNT],
    /// Flags that only the reference loads.
    pub(crate) careful_flags: u64,
    /// Host address of the memory's epoch, and the epoch up to which blocks have been checked.
    pub(crate) epoch: u64,
    pub(crate) writes_seen: u64,
    /// GS bases of the views (0: there is none yet): user, supervisor, supervisor with SMAP lifted.
    pub(crate) views: [u64; 3],
    /// Not zero: the vector registers are the guest's.
    pub(crate) vector_ready: u64,
    /// Not zero: `xsave` holds the guest's vector registers (when they aren't in the CPU).
    pub(crate) vector_saved: u64,
    /// XSAVE components that are switched.
    pub(crate) xsave_mask: u64,
    /// MXCSR of Rust code.
    pub(crate) host_mxcsr: u64,
}

/// What the context says of a pair of CS and SS that IRETQ may load.
pub(crate) mod returns {
    /// The selectors, SS's above CS's; none that is popped where the pair isn't there.
    pub(crate) const SELECTORS: usize = 0;
    /// Linear address of CS's descriptor, and what it has to be.
    pub(crate) const CODE_AT: usize = 1;
    pub(crate) const CODE: usize = 2;
    /// The same of SS's.
    pub(crate) const STACK_AT: usize = 3;
    pub(crate) const STACK: usize = 4;
    /// 1: of user code.
    pub(crate) const USER: usize = 5;
    /// Its number for [`super::Context::loaded`].
    pub(crate) const LOADED: usize = 6;
    /// Words of a pair, and how many pairs there are.
    pub(crate) const WORDS: usize = 8;
    pub(crate) const COUNT: usize = 3;
    /// No selectors.
    pub(crate) const NOTHING: u64 = u64::MAX;
}

/// Offset of the 128 bytes of `bounce` that are used, aligned to 64.
pub(crate) const BOUNCE: usize = offset_of!(Context, bounce).next_multiple_of(64);

/// No instruction's address.
pub(crate) const NOWHERE: u64 = 1 << 63;

/// Offset in the shared block of the vector registers' XSAVE image (standard format), 64-byte aligned.
pub(crate) const XSAVE: usize = 4096;
/// Room for it.
pub(crate) const XSAVE_BYTES: usize = 4096;
/// Cells, one of 4 bytes for each translated page: not zero while the page is mapped where it was translated.
pub(crate) const CELLS: usize = 16 << 10;
/// How many.
pub(crate) const CELL_COUNT: usize = 8192;
/// Two tables of indirect targets, for user and supervisor code: negated linear addresses, and host addresses.
pub(crate) const TARGETS: usize = 64 << 10;
/// Slots of such a table.
pub(crate) const TARGET_SLOTS: usize = 32768;
const TABLE_BYTES: usize = TARGET_SLOTS * 8;
/// Lowest bit of an address that decides on its slot: functions begin at multiples of 16. With bit 0, a compiler that runs
/// missed twice as often.
const TARGET_SHIFT: u32 = 4;

/// The slot of an address.
pub(crate) const fn target_slot(address: u64) -> usize {
    (address >> TARGET_SHIFT) as usize & (TARGET_SLOTS - 1)
}

/// An address that belongs into a slot.
pub(crate) const fn target_in_slot(slot: usize) -> u64 {
    (slot as u64) << TARGET_SHIFT
}

/// Offset of the negated addresses of one table.
pub(crate) const fn target_tags(user: bool) -> usize {
    TARGETS + if user { 2 * TABLE_BYTES } else { 0 }
}

/// Offset of the host addresses of one table.
pub(crate) const fn target_hosts(user: bool) -> usize {
    target_tags(user) + TABLE_BYTES
}

const _: () = assert!(size_of::<Context>() <= XSAVE);
const _: () = assert!(
    CELLS + 4 * CELL_COUNT <= TARGETS && target_hosts(true) + TABLE_BYTES <= SHARED_BYTES - OWN_BYTES
);

/// The displacement from GS of an offset in the shared block.
pub(crate) const fn gs(offset: usize) -> i32 {
    offset as i32 - SHARED_BYTES as i32
}

/// The displacement of an offset in the view's own bytes.
pub(crate) const fn own(offset: usize) -> i32 {
    offset as i32 - OWN_BYTES as i32
}

/// The displacement of guest register `index`.
pub(crate) const fn gpr(index: usize) -> i32 {
    gs(offset_of!(Context, gpr) + 8 * index)
}

/// The displacement of a page's cell.
pub(crate) const fn cell(index: u32) -> i32 {
    gs(CELLS + 4 * index as usize)
}

/// The displacement of the mask for crossing accesses of `bytes`, a power of two from 2 to 256.
pub(crate) const fn cross_mask(bytes: u32) -> i32 {
    gs(offset_of!(Context, cross_masks) + 8 * (bytes.trailing_zeros() as usize - 1))
}

/// The displacement of a segment's base.
pub(crate) const fn segment_base(index: usize) -> i32 {
    gs(offset_of!(Context, segment_base) + 8 * index)
}

/// What is at a displacement from GS, for people; `None` where that has no name.
pub(crate) fn name(displacement: i32) -> Option<String> {
    const GPR: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    let offset = usize::try_from(displacement + SHARED_BYTES as i32).ok()?;
    match offset {
        0 => return Some("write_table".to_owned()),
        SHARED_BYTES => return Some("read_table".to_owned()),
        _ => {}
    }
    if let Some(register) = GPR.get(offset / 8)
        && offset.is_multiple_of(8)
    {
        return Some(format!("guest.{register}"));
    }
    for user in [false, true] {
        let whose = if user { "user" } else { "supervisor" };
        if offset == target_tags(user) {
            return Some(format!("tags.{whose}"));
        }
        if offset == target_hosts(user) {
            return Some(format!("hosts.{whose}"));
        }
    }
    if (CELLS..CELLS + 4 * CELL_COUNT).contains(&offset) {
        return Some(format!("cell.{}", (offset - CELLS) / 4));
    }
    if offset == XSAVE {
        return Some("xsave".to_owned());
    }
    let &(start, len, name) =
        FIELDS.iter().find(|(start, len, _)| (*start..start + len).contains(&offset))?;
    Some(match offset - start {
        0 if len == 8 => name.to_owned(),
        inside if inside.is_multiple_of(8) => format!("{name}.{}", inside / 8),
        inside => format!("{name}+{inside}"),
    })
}

macro_rules! fields {
    ($($name:ident)*) => {
        [$((offset_of!(Context, $name), size_of_field(|context: &Context| &context.$name), stringify!($name)),)*]
    };
}

const fn size_of_field<T>(_: fn(&Context) -> &T) -> usize {
    size_of::<T>()
}

/// Offset, size and name of each field.
static FIELDS: [(usize, usize, &str); 70] = fields! {
    gpr flags system_flags alignment_flag interrupt_flag calm proceed host_rsp stack_starts stack_start user_stack target reason argument r11 held pushed last_return fill fill_bytes vcpu filled cross_size saved bounce cross_at cross_bounce cross_entries sign_bits mixed_signs page_mask cross_masks offset_mask outside_mask watched_mask granule_mask one sign_mask left target_mask segment_base tsc_offset kernel_gs_base tsc_aux selectors control after_sti popf_mask interrupt_mask bit_masks user loaded can_syscall can_sysret can_return can_return_out can_base syscall_target syscall_keeps syscall_selectors sysret_selectors returns careful_flags epoch writes_seen views vector_ready vector_saved xsave_mask host_mxcsr
};

macro_rules! field {
    ($name:ident) => {
        $crate::context::gs(std::mem::offset_of!($crate::context::Context, $name))
    };
}
pub(crate) use field;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_context_has_a_name_of_its_own() {
        let names: Vec<_> = (0..size_of::<Context>() / 8)
            .map(|word| name(gs(8 * word)).unwrap_or_else(|| panic!("word {word} has no name")))
            .collect();
        // The first word is also where the tables of writes begin, from which nothing is loaded without an index.
        assert_eq!((&*names[0], &*names[1]), ("write_table", "guest.rcx"));
        for (index, name) in names.iter().enumerate() {
            assert!(!names[index + 1..].contains(name), "{name}");
        }
        assert_eq!(name(field!(segment_base) + 8).as_deref(), Some("segment_base.1"));
        assert_eq!(name(cell(3)).as_deref(), Some("cell.3"));
        assert_eq!(name(0).as_deref(), Some("read_table"));
        assert_eq!(name(-(SHARED_BYTES as i32) - 8), None);
    }
}
