//! Stubs for string instructions with a repeat prefix: the host's own instruction over as many elements as lie in one page of
//! each side, page after page.
//!
//! Called where the guest instruction is, behind one byte that belongs to it (see [`SITE_CALL`]); returns when the instruction is
//! complete. What doesn't go this way is left to the reference, with the guest's registers as after the last completed
//! element and the flags as before the instruction: elements that cross a page, addresses that aren't canonical, pages
//! without an entry. Between pages the kicker's word is looked at.
//!
//! The flags are in EDX meanwhile (OF in bit 0, the others as LAHF gives them), RAX, RDX and R10 of the guest in their places in
//! the context. SDM 2B REP.

use super::Stubs;
use crate::asm::*;
use crate::context::{field, gpr};
use crate::emit::host;
use shadow::SHARED_BYTES;

/// Bytes of the call at a site. A stub that wants to be called anew after a look-up has been filled returns so many bytes before
/// its return address.
pub(crate) const SITE_CALL: u8 = 5;

/// What is done with an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

impl Operation {
    /// The element at RSI is read.
    pub(crate) fn reads_source(self) -> bool {
        matches!(self, Self::Movs | Self::Lods | Self::Cmps)
    }

    /// There is an element at RDI.
    pub(crate) fn has_target(self) -> bool {
        self != Self::Lods
    }

    /// The element at RDI is written; else it is read.
    pub(crate) fn writes_target(self) -> bool {
        matches!(self, Self::Movs | Self::Stos)
    }

    /// The flags are set by a comparison, which may end a repetition.
    pub(crate) fn compares(self) -> bool {
        matches!(self, Self::Scas | Self::Cmps)
    }
}

/// A repeated string instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Repeated {
    pub(crate) operation: Operation,
    pub(crate) size: Size,
    /// REPNE. Without comparisons that is the same as REP.
    pub(crate) unequal: bool,
    /// 32-bit addresses and count. The site has zero-extended the count.
    pub(crate) narrow: bool,
}

/// Host addresses of the stubs, by operation and [`Repeated::column`].
pub(crate) type Table = [[u64; 16]; 5];

impl Repeated {
    fn column(self) -> usize {
        self.size as usize
            | usize::from(self.unequal && self.operation.compares()) << 2
            | usize::from(self.narrow) << 3
    }

    /// Its stub.
    pub(crate) fn stub(self, stubs: &Stubs) -> u64 {
        stubs.strings[self.operation as usize][self.column()]
    }
}

/// The stubs' addresses with names for people.
pub(super) fn names(table: &Table) -> impl Iterator<Item = (u64, &'static str)> {
    const NAMES: [&str; 5] = ["rep movs", "rep stos", "rep lods", "rep scas", "rep cmps"];
    table.iter().zip(NAMES).flat_map(|(row, name)| {
        row.iter().filter(|&&address| address != 0).map(move |&address| (address, name))
    })
}

/// The host's own instruction, without prefixes for repetition.
pub(crate) fn native(asm: &mut Asm, operation: Operation, size: Size) {
    match size {
        Size::B2 => asm.raw(&[0x66]),
        Size::B8 => asm.raw(&[0x48]),
        Size::B1 | Size::B4 => {}
    }
    let opcode = match operation {
        Operation::Movs => 0xa4,
        Operation::Cmps => 0xa6,
        Operation::Stos => 0xaa,
        Operation::Lods => 0xac,
        Operation::Scas => 0xae,
    };
    asm.raw(&[opcode | u8::from(size != Size::B1)]);
}

/// Writes all stubs. `stubs` has the addresses of those that they use.
pub(super) fn write(asm: &mut Asm, stubs: &Stubs) -> Table {
    let mut table = Table::default();
    for operation in [Operation::Movs, Operation::Stos, Operation::Lods, Operation::Scas, Operation::Cmps] {
        for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
            for unequal in [false, true] {
                for narrow in [false, true] {
                    if unequal && !operation.compares() {
                        continue;
                    }
                    let repeated = Repeated { operation, size, unequal, narrow };
                    table[operation as usize][repeated.column()] = Writer { asm, stubs, repeated }.write();
                }
            }
        }
    }
    table
}

/// Conditional jumps' conditions, as Jcc encodes them.
const BELOW: u8 = 2;
const ABOVE: u8 = 7;
const EQUAL: u8 = 4;
const UNEQUAL: u8 = 5;

struct Writer<'a> {
    asm: &'a mut Asm,
    stubs: &'a Stubs,
    repeated: Repeated,
}

impl Writer<'_> {
    /// ```text
    ///         if RCX = 0: return
    ///         save RAX, RDX, R10, flags
    /// again:  RCX = elements in the page; leave if 0
    ///         R10, R11 = guest minus host address of source and target; fill if there is no entry
    ///         RCX = min(RCX, guest RCX); guest RCX -= RCX
    ///         rep ..
    ///         if guest RCX != 0 and nobody wants anything: go to again
    ///         leave, or restore and return
    /// ```
    fn write(mut self) -> u64 {
        let Repeated { operation, unequal, .. } = self.repeated;
        let count = host(1).expect("RCX has a host register");
        let nothing = self.asm.len();
        self.asm.ret();
        let entry = self.asm.here();
        self.asm.mov(RCX, count);
        self.jump_if_rcx_zero(nothing);
        self.save();
        let again = self.asm.len();
        let mut leaves = Vec::new();
        let (mut missing_source, mut missing_target) = (None, None);
        if !self.repeated.narrow {
            if operation.reads_source() {
                leaves.push(self.not_canonical(RSI));
            }
            if operation.has_target() {
                leaves.push(self.not_canonical(RDI));
            }
        }
        let down = self.direction();
        leaves.push(self.elements_up());
        let counted = self.asm.len();
        // CMPS reads the element at RDI first, as the address of a page fault shows.
        if operation == Operation::Cmps {
            missing_target = Some(self.look_up(RDI, R11, false));
        }
        if operation.reads_source() {
            missing_source = Some(self.look_up(RSI, R10, false));
        }
        if operation.has_target() && operation != Operation::Cmps {
            missing_target = Some(self.look_up(RDI, R11, operation.writes_target()));
        }

        // cmp rcx, r9; cmova rcx, r9
        self.asm.raw(&[0x4c, 0x39, 0xc9, 0x49, 0x0f, 0x47, 0xc9]);
        // sub r9, rcx
        self.asm.raw(&[0x49, 0x29, 0xc9]);
        if operation.reads_source() {
            self.cut(RSI);
            self.asm.raw(&[0x4c, 0x29, 0xd6]); // sub rsi, r10
        }
        if operation.has_target() {
            self.cut(RDI);
            self.asm.raw(&[0x4c, 0x29, 0xdf]); // sub rdi, r11
        }
        self.asm.load_gs(RAX, gpr(0));
        self.asm.raw(&[if unequal && operation.compares() { 0xf2 } else { 0xf3 }]);
        native(self.asm, operation, self.repeated.size);
        if operation == Operation::Lods {
            self.asm.store_gs(gpr(0), RAX);
        }
        if operation.reads_source() {
            self.back(RSI, R10);
        }
        if operation.has_target() {
            self.back(RDI, R11);
        }
        let more = if operation.compares() {
            // What is left of the page is left; the flags are the instruction's if it ends here.
            self.asm.lea(count, Mem::sum(count, RCX));
            let ended = self.asm.jump_if_short(if unequal { EQUAL } else { UNEQUAL });
            self.asm.mov(RCX, count);
            let exhausted = self.asm.jrcxz();
            let more = self.asm.jump_short();
            self.fill(ended);
            self.fill(exhausted);
            self.asm.load_gs(RDX, gpr(2));
            self.asm.load_gs(R10, gpr(10));
            self.asm.ret();
            more
        } else {
            self.asm.raw(&[0x4d, 0x85, 0xc9]); // test r9, r9
            let more = self.asm.jump_if_short(UNEQUAL);
            self.restore();
            self.asm.ret();
            more
        };

        self.fill(more);
        self.asm.load_gs(RCX, field!(proceed));
        self.asm.load(Size::B4, RCX, Mem::near(RCX, 0));
        self.asm.raw(&[0x85, 0xc9]); // test ecx, ecx
        self.jump_back_if(UNEQUAL, again);
        let over = self.asm.jump_short();
        self.asm.set_relative(down, self.asm.len());
        leaves.push(self.elements_down());
        self.asm.jump_back(counted);
        self.fill(over);
        for hole in leaves {
            self.asm.set_relative(hole, self.asm.len());
        }
        self.restore();
        self.asm.jump(self.stubs.interpret);
        if let Some(hole) = missing_source {
            self.fill_view(hole, RSI, self.stubs.fill_read);
        }
        if let Some(hole) = missing_target {
            let stub = if operation.writes_target() { self.stubs.fill_write } else { self.stubs.fill_read };
            self.fill_view(hole, RDI, stub);
        }
        entry
    }

    /// RAX, RDX, R10 and the flags to where this stub keeps them.
    fn save(&mut self) {
        self.asm.store_gs(gpr(0), RAX);
        self.asm.store_gs(gpr(2), RDX);
        self.asm.store_gs(gpr(10), R10);
        // lahf; seto al; mov edx, eax
        self.asm.raw(&[0x9f, 0x0f, 0x90, 0xc0, 0x89, 0xc2]);
    }

    /// And back.
    fn restore(&mut self) {
        // mov eax, edx; add al, 0x7f (which overflows if there is a 1); sahf
        self.asm.raw(&[0x89, 0xd0, 0x04, 0x7f, 0x9e]);
        self.asm.load_gs(RAX, gpr(0));
        self.asm.load_gs(RDX, gpr(2));
        self.asm.load_gs(R10, gpr(10));
    }

    /// Finds out DF by what it does: it is where only PUSHF shows it, and the stack is for return addresses. Gives a jump's
    /// displacement for where it is set.
    fn direction(&mut self) -> usize {
        self.asm.mov(R10, RSI);
        self.asm.mov(RSI, RSP);
        self.asm.raw(&[0xac]); // lodsb
        self.asm.raw(&[0x48, 0x39, 0xe6]); // cmp rsi, rsp
        self.asm.mov(RSI, R10);
        self.jump_if(BELOW)
    }

    /// Gives a jump's displacement for addresses that aren't canonical: the view's tables don't tell them from others.
    fn not_canonical(&mut self, address: Reg) -> usize {
        self.asm.mov(RAX, address);
        // sar rax, 47; inc rax; cmp rax, 1
        self.asm.raw(&[0x48, 0xc1, 0xf8, 47, 0x48, 0xff, 0xc0, 0x48, 0x83, 0xf8, 1]);
        self.jump_if(ABOVE)
    }

    /// EAX: the offset in the page of one address; ECX: of the other, and the comparison is made. False: there is only one.
    fn page_offsets(&mut self) -> bool {
        let operation = self.repeated.operation;
        let first = if operation.reads_source() { RSI } else { RDI };
        self.asm.mov32(RAX, first);
        self.asm.raw(&[0x25, 0xff, 0x0f, 0, 0]); // and eax, 0xfff
        let two = operation.reads_source() && operation.has_target();
        if two {
            self.asm.mov32(RCX, RDI);
            // and ecx, 0xfff; cmp eax, ecx
            self.asm.raw(&[0x81, 0xe1, 0xff, 0x0f, 0, 0, 0x39, 0xc8]);
        }
        two
    }

    /// RCX: how many elements lie between the addresses and the ends of their pages. Gives a jump's displacement for none.
    fn elements_up(&mut self) -> usize {
        let size = self.repeated.size;
        if self.page_offsets() {
            self.asm.raw(&[0x0f, 0x42, 0xc1]); // cmovb eax, ecx
        }
        self.asm.mov_immediate(RCX, 0x1000);
        self.asm.raw(&[0x29, 0xc1]); // sub ecx, eax
        if size != Size::B1 {
            self.asm.raw(&[0xc1, 0xe9, size as u8]); // shr ecx, ..
        }
        self.jump_if(EQUAL)
    }

    /// RCX: how many elements lie between the addresses, included, and the starts of their pages. Gives a jump's displacement
    /// for where the first isn't in one page.
    fn elements_down(&mut self) -> usize {
        let size = self.repeated.size;
        if self.page_offsets() {
            // jae over; xchg eax, ecx
            self.asm.raw(&[0x73, 1, 0x91]);
        } else {
            self.asm.mov32(RCX, RAX);
        }
        let last = 0x1000 - (1 << size as u32);
        self.asm.raw(&[0x3d]); // cmp eax, ..
        self.asm.raw(&u32::to_le_bytes(last));
        let crosses = self.jump_if(ABOVE);
        // shr ecx, ..; inc ecx
        self.asm.raw(&[0xc1, 0xe9, size as u8, 0xff, 0xc1]);
        crosses
    }

    /// `to`: guest minus host address for the page at `address`. Uses RAX. Gives a jump's displacement for no entry.
    fn look_up(&mut self, address: Reg, to: Reg, write: bool) -> usize {
        let mut page = address;
        if self.repeated.narrow {
            self.asm.mov32(RAX, address);
            page = RAX;
        }
        self.asm.pext(RAX, page, field!(page_mask));
        if write {
            self.asm.not(RAX);
            self.asm.load(Size::B8, to, Mem::GsTable(RAX, -(SHARED_BYTES as i32)));
        } else {
            self.asm.load(Size::B8, to, Mem::GsTable(RAX, 0));
        }
        self.asm.raw(&[0x49, 0xf7, 0xd8 | to.0 & 7]); // neg to
        self.jump_if(EQUAL)
    }

    /// Behind `hole`: fills the view's entry and goes back to the site's call, or leaves.
    fn fill_view(&mut self, hole: usize, address: Reg, stub: u64) {
        self.asm.set_relative(hole, self.asm.len());
        self.asm.raw(&[0x48, 0x83, 0x2c, 0x24, SITE_CALL]); // sub qword ptr [rsp], ..
        self.restore();
        if self.repeated.narrow {
            self.asm.mov32(R11, address);
        } else {
            self.asm.mov(R11, address);
        }
        self.asm.jump(stub);
    }

    /// Cuts an address to the address size.
    fn cut(&mut self, address: Reg) {
        if self.repeated.narrow {
            self.asm.mov32(address, address);
        }
    }

    /// From a host address to the guest's.
    fn back(&mut self, address: Reg, delta: Reg) {
        let sum = Mem::sum(address, delta);
        if self.repeated.narrow { self.asm.lea32(address, sum) } else { self.asm.lea(address, sum) }
    }

    fn fill(&mut self, hole: Hole8) {
        assert!(self.asm.fill(hole), "a stub's short jumps are short");
    }

    /// A conditional jump; gives the offset of its displacement.
    fn jump_if(&mut self, condition: u8) -> usize {
        self.asm.jump_if(condition, self.asm.here());
        self.asm.len() - 4
    }

    fn jump_back_if(&mut self, condition: u8, to: usize) {
        let displacement = self.jump_if(condition);
        self.asm.set_relative(displacement, to);
    }

    /// A short jump back.
    fn jump_if_rcx_zero(&mut self, to: usize) {
        let distance = to as i64 - (self.asm.len() as i64 + 2);
        self.asm.raw(&[0xe3, distance as u8]);
    }
}
