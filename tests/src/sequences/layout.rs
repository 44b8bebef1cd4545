//! Where things lie in a sequence's machine, and the worlds it can start in.
//!
//! The program's pages are mapped twice, once for supervisor and once for user mode, each time with the same data
//! pages at the same distance, so that one program runs in both rings and code is shared by physical address. There are
//! two address spaces of their own page tables; they differ in one code page, one data page, and the volatile pages, whose
//! entries the program changes.

use crate::cases::environment::{Mode as CaseMode, World as CaseWorld};
use crate::oracle::random::Random;
use x86::paging::pte;

/// Bytes of guest RAM from 0.
pub(super) const LOW_RAM: u64 = 0x6_0000;
/// Page tables lie apart, where no stray store leads: an entry that changes unnoticed makes two engines differ with right.
pub const TABLES: u64 = 0x80_0000;
/// All of RAM, the tables' behind the rest.
pub(super) const RAM: u64 = LOW_RAM + 2 * SPACE;
/// Guest-physical address of a page that is no RAM.
pub(super) const MMIO: u64 = 0x10_0000;
/// One page.
pub(super) const PAGE: u64 = 0x1000;

/// Physical addresses of the system's pages. All but the page tables are mapped at [`SYS`] plus these.
pub(super) mod system {
    pub(crate) const GDT: u64 = 0x1000;
    pub(crate) const IDT: u64 = 0x2000;
    pub(crate) const TSS: u64 = 0x3000;
    /// One stub of 16 bytes for each vector.
    pub(crate) const STUBS: u64 = 0x4000;
    /// What all stubs jump to, and what SYSCALL enters.
    pub(crate) const COMMON: u64 = 0x5000;
    /// A ring of entries, one for each exception or interrupt.
    pub(crate) const LOG: u64 = 0x6000;
    pub(crate) const VARIABLES: u64 = 0x7000;
    /// For each byte of code where to go on after a fault: 16 bits.
    pub(crate) const RECOVERY: u64 = 0x8000;
    /// Tops of stacks: of all gates but NMI's, of NMI's, of the TSS's ring 0.
    pub(crate) const STACK: u64 = 0xf000;
    pub(crate) const NMI_STACK: u64 = 0x1_0000;
    pub(crate) const STACK0: u64 = 0x1_1000;
    /// A supervisor's page that the program may write.
    pub(crate) const SPARE: u64 = 0x1_1000;
    pub(crate) const END: u64 = 0x1_2000;
}

/// Physical addresses of code: two pages of program, the page behind it in either address space, two of functions
/// that volatile pages are mapped to.
pub(super) const CODE: u64 = 0x1_2000;
pub(super) const OVERLAY: [u64; 2] = [0x1_4000, 0x1_5000];
pub(super) const FUNCTIONS: u64 = 0x1_6000;
/// Page tables of one address space.
pub(super) const SPACE: u64 = 0x8000;
/// Frames of volatile pages.
pub(super) const VOLATILE: u64 = 0x5_0000;

/// Linear addresses. All below 2 GiB, so that code of every size reaches them.
pub const KERNEL: u64 = 0x1000_0000;
/// The user's view of what lies at [`KERNEL`].
pub(super) const USER: u64 = 0x1200_0000;
/// Pages whose entries change: [`VOLATILE_PAGES`] of them.
pub(super) const CHANGING: u64 = 0x1400_0000;
/// The system's pages.
pub(super) const SYS: u64 = 0x1600_0000;
/// A large page over the first physical addresses, for supervisor mode.
pub(super) const LARGE: u64 = 0x1800_0000;
/// Where the current address space's entries of volatile pages are mapped.
pub(super) const ENTRIES: u64 = SYS + 0x18_0000;

pub(super) const VOLATILE_PAGES: u64 = 8;

/// Bytes of the program's two pages and the page behind them.
pub(super) const CODE_LEN: usize = 0x3000;
/// Where the page that differs between the address spaces begins.
pub(super) const OVERLAY_AT: usize = 0x2000;
/// Offset of the data pages from [`KERNEL`] and [`USER`].
pub(super) const DATA: u64 = 0x1_0000;

/// A data page: where it leads, and its rights.
pub(super) struct DataPage {
    /// In either address space.
    pub(super) frames: [u64; 2],
    pub(super) flags: u64,
    /// The user's page is a supervisor's, and the other way round.
    pub(super) foreign: bool,
}

const fn page(frame: u64, flags: u64) -> DataPage {
    DataPage { frames: [frame; 2], flags, foreign: false }
}

const RW: u64 = pte::P | pte::RW;

/// The data pages in their order. Names for some of them follow.
pub(super) const DATA_PAGES: &[DataPage] = &[
    page(0x4_0000, RW),
    page(0x4_1000, RW),
    // Its neighbours aren't neighbours in memory.
    page(0x4_5000, RW),
    page(0x4_3000, pte::P),
    page(0, 0),
    // The first page once more.
    page(0x4_0000, RW),
    page(MMIO, RW),
    DataPage { frames: [0x4_7000; 2], flags: RW, foreign: true },
    DataPage { frames: [0x4_8000, 0x4_9000], flags: RW, foreign: false },
    page(0x4_6000, RW),
    page(0, 0),
    page(0x4_a000, RW),
    page(0x4_b000, RW),
    page(0, 0),
    // The program's pages once more.
    page(CODE, RW),
    page(CODE + PAGE, RW),
];

pub(super) const READ_ONLY: u64 = 3;
pub(super) const ABSENT: u64 = 4;
pub(super) const DEVICE: u64 = 6;
pub(super) const FOREIGN: u64 = 7;
pub(super) const COUNTERS: u64 = 9;
pub(super) const STACK_PAGE: u64 = 12;
pub(super) const CODE_ALIAS: u64 = 14;

/// Offset of data page `page` from [`KERNEL`] and [`USER`].
pub(super) const fn data(page: u64) -> u64 {
    DATA + page * PAGE
}

/// Where the stack pointer starts, from [`KERNEL`] or [`USER`].
pub(super) const STACK_TOP: u64 = data(STACK_PAGE) + 0x800;

/// How the processor runs a sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// 64-bit mode, 4-level paging.
    Long,
    /// 32-bit code under a 64-bit system.
    Compat,
    /// Protected mode with PAE paging.
    Pae,
    /// Protected mode with 32-bit paging.
    Paged32,
}

impl Mode {
    /// Bits of the program's code.
    #[must_use]
    pub fn bits(self) -> u32 {
        if self == Self::Long { 64 } else { 32 }
    }

    /// Whether exceptions are handled by 64-bit code.
    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Self::Long | Self::Compat)
    }

    /// Bytes of a page-table entry.
    pub(super) fn entry_bytes(self) -> u64 {
        if self == Self::Paged32 { 4 } else { 8 }
    }

    pub(super) fn case_mode(self, user: bool) -> CaseMode {
        let world = match self {
            Self::Long => CaseWorld::Long,
            Self::Compat => CaseWorld::Compat,
            Self::Pae => CaseWorld::Pae,
            Self::Paged32 => CaseWorld::Paged32,
        };
        CaseMode { world, user }
    }
}

/// The choices that make up a sequence's machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct World {
    /// How the processor runs.
    pub mode: Mode,
    /// Starts in ring 3.
    pub user: bool,
    pub(super) smap: bool,
    pub(super) smep: bool,
    pub(super) pcid: bool,
    pub(super) write_protect: bool,
    pub(super) alignment: bool,
    pub(super) global: bool,
    pub(super) iopl: u8,
    /// Turns of single-stepping before the handler ends it.
    pub(super) traps: u32,
    /// A supervisor's SYSCALL entry that returns to the user, or one that goes on in ring 0.
    pub(super) returning: bool,
}

impl World {
    pub(super) fn random(random: &mut Random) -> Self {
        let mode = match random.below(100) {
            0..=74 => Mode::Long,
            75..=84 => Mode::Compat,
            85..=92 => Mode::Pae,
            _ => Mode::Paged32,
        };
        // Without a stack table only a change of rings gives handlers a stack that holds.
        let user = !mode.is_long() || random.percent(50);
        Self {
            mode,
            user,
            smap: random.percent(40),
            smep: random.percent(40),
            pcid: mode.is_long() && random.percent(50),
            write_protect: random.percent(80),
            alignment: random.percent(20),
            global: random.percent(50),
            iopl: if random.percent(40) { 3 } else { 0 },
            traps: 1 + random.below(40) as u32,
            returning: random.percent(70),
        }
    }

    /// Where the program starts to see itself.
    pub(super) fn home(self) -> u64 {
        if self.user { USER } else { KERNEL }
    }

    /// CR3 for an address space.
    pub(super) fn root(self, space: u64) -> u64 {
        let tables = TABLES + space * SPACE;
        match self.mode {
            Mode::Long | Mode::Compat => tables | if self.pcid { space + 1 } else { 0 },
            Mode::Pae => tables + PAGE,
            Mode::Paged32 => tables + 2 * PAGE,
        }
    }
}

/// Where in an image of all RAM a guest-physical address is.
pub(super) fn image_offset(at: u64) -> usize {
    (if at < TABLES { at } else { at - TABLES + LOW_RAM }) as usize
}

/// The guest-physical address of an offset in an image of all RAM.
pub(super) fn physical(offset: usize) -> u64 {
    let offset = offset as u64;
    if offset < LOW_RAM { offset } else { offset - LOW_RAM + TABLES }
}

/// Guest-physical pages that code runs from: the handlers' and the program's.
pub fn code_frames() -> impl Iterator<Item = u64> {
    std::iter::once(system::COMMON).chain((CODE..FUNCTIONS).step_by(PAGE as usize))
}
