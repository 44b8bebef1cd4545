//! In what two runs of a case differ.
//!
//! Not compared: arithmetic flags where they are undefined, by the place they are looked at; FOP, FIP and FDP of x87, which
//! an engine that runs instructions natively needn't know. Two different engines may set accessed flags early: a processor may
//! translate an address for an access that then isn't made, a misaligned one for instance (SDM 3A 4.10.2.3). Missing accessed
//! flags, and dirty flags either way, are differences.

use super::layout::{CODE_LEN, KERNEL, LOW_RAM, Mode, RAM, SYS, USER, World, physical, system};
use super::program::Program;
use super::runner::Outcome;
use std::fmt::Write;
use x86::paging::pte;
use x86::{CpuState, Rflags};

/// The first piece in which two runs differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// What.
    pub what: String,
    /// The values.
    pub values: String,
}

/// What is compared, and what isn't.
pub(super) struct Judge<'a> {
    pub(super) world: World,
    pub(super) program: &'a Program,
    pub(super) early: Early,
}

/// Which of two engines may set accessed flags early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Early {
    /// None: both are the reference.
    Neither,
    /// The second, not the reference.
    Other,
    /// An engine that leaves some of its work to the reference: which depends on the pieces that it runs in.
    Either,
}

fn differ(all: &mut Vec<Difference>, what: &str, one: &str, other: &str) {
    if one != other {
        all.push(Difference { what: what.to_owned(), values: format!("{one} / {other}") });
    }
}

fn differ_hex(all: &mut Vec<Difference>, what: &str, one: u64, other: u64) {
    if one != other {
        all.push(Difference { what: what.to_owned(), values: format!("{one:#x} / {other:#x}") });
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Whether an address is in a handler.
fn in_system(rip: u64) -> bool {
    (SYS..SYS + RAM).contains(&rip)
}

impl Judge<'_> {
    /// Flags that hold anything at an instruction.
    fn undefined_at(&self, rip: u64) -> Rflags {
        if in_system(rip) {
            return Rflags::ARITHMETIC;
        }
        if self.world.user && (KERNEL..KERNEL + CODE_LEN as u64).contains(&rip) {
            // A user program's code of ring 0 is entered by gates, with whatever flags there were.
            return Rflags::ARITHMETIC;
        }
        let offset = [KERNEL, USER]
            .into_iter()
            .map(|view| rip.wrapping_sub(view))
            .find(|&offset| offset < CODE_LEN as u64);
        match offset.map(|offset| self.program.placed_at(offset)) {
            Some(Some(placed)) => placed.undefined & Rflags::ARITHMETIC,
            Some(None) => Rflags::empty(),
            // A jump that went astray: any instruction may have come before.
            None => Rflags::ARITHMETIC,
        }
    }

    /// Everything in which two runs differ, at the ends of pieces first.
    pub(super) fn compare(&self, one: &Outcome, other: &Outcome) -> Vec<Difference> {
        let mut all = Vec::new();
        if one.stops.len() == other.stops.len() {
            for (a, b) in one.stops.iter().zip(&other.stops) {
                differ_hex(&mut all, "instructions at a stop", a.0, b.0);
                self.compare_states(&mut all, &a.1, &b.1);
                if !all.is_empty() {
                    all.insert(0, Difference { what: "at instruction".to_owned(), values: a.0.to_string() });
                    return all;
                }
            }
        }
        if one.end != other.end {
            differ(&mut all, "end", &format!("{:?}", one.end), &format!("{:?}", other.end));
        }
        if let (Some(one), Some(other)) = (one.instructions, other.instructions) {
            differ_hex(&mut all, "instructions", one, other);
        }
        self.compare_states(&mut all, &one.state, &other.state);
        self.compare_memory(&mut all, one, other);
        if one.record != other.record {
            let (a, b) = (&one.record.calls, &other.record.calls);
            let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
            all.push(Difference {
                what: format!("call {at} of {} / {}", one.record.count, other.record.count),
                values: format!("{:?} / {:?}", a.get(at), b.get(at)),
            });
        }
        all
    }

    fn compare_states(&self, all: &mut Vec<Difference>, one: &CpuState, other: &CpuState) {
        let mut one = one.clone();
        let mask = if one.rip == other.rip { self.undefined_at(one.rip) } else { Rflags::empty() };
        one.rflags = one.rflags & !mask | other.rflags & mask;
        one.vector.x87[6..32].copy_from_slice(&other.vector.x87[6..32]);
        // The handler has the flags in RAX on their way to the log.
        let on_the_way = (one.gpr[0] ^ other.gpr[0]) & !Rflags::ARITHMETIC.bits() == 0;
        if one.rip == other.rip && in_system(one.rip) && on_the_way {
            one.gpr[0] = other.gpr[0];
        }
        if one == *other {
            return;
        }
        differ_hex(all, "rip", one.rip, other.rip);
        for (i, name) in NAMES.iter().enumerate() {
            differ_hex(all, name, one.gpr[i], other.gpr[i]);
        }
        if one.rflags != other.rflags {
            all.push(Difference {
                what: "rflags".to_owned(),
                values: format!(
                    "{:#x} / {:#x}: {:?}",
                    one.rflags.bits(),
                    other.rflags.bits(),
                    one.rflags ^ other.rflags
                ),
            });
        }
        for (name, a, b) in [
            ("cr0", one.cr0, other.cr0),
            ("cr2", one.cr2, other.cr2),
            ("cr3", one.cr3, other.cr3),
            ("cr4", one.cr4, other.cr4),
            ("dr6", one.dr6, other.dr6),
            ("cpl", u64::from(one.cpl), u64::from(other.cpl)),
            ("kernel_gs_base", one.kernel_gs_base, other.kernel_gs_base),
            ("mxcsr", u64::from(one.vector.mxcsr), u64::from(other.vector.mxcsr)),
        ] {
            differ_hex(all, name, a, b);
        }
        for i in 0..32 {
            differ(all, &format!("zmm{i}"), &hex(&one.vector.zmm[i]), &hex(&other.vector.zmm[i]));
        }
        for i in 0..8 {
            differ_hex(all, &format!("k{i}"), one.vector.k[i], other.vector.k[i]);
        }
        differ(all, "x87", &hex(&one.vector.x87), &hex(&other.vector.x87));
        for i in 0..6 {
            let segment = |state: &CpuState| format!("{:x?}", state.segments[i]);
            differ(all, &format!("segment {i}"), &segment(&one), &segment(other));
        }
        // Something rare: say it all.
        if all.is_empty() {
            differ(all, "state", &format!("{one:x?}"), &format!("{other:x?}"));
        }
    }

    fn compare_memory(&self, all: &mut Vec<Difference>, one: &Outcome, other: &Outcome) {
        if one.ram == other.ram {
            return;
        }
        let (mut a, mut b) = (one.ram.clone(), other.ram.clone());
        self.forgive(&mut a, &mut b, one.state.rip);
        let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) else { return };
        let count = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        let first = at & !7;
        let end = (first + 32).min(a.len());
        all.push(Difference {
            what: format!(
                "{count} bytes of memory, first at {:#x}{}",
                physical(at),
                self.place(physical(at))
            ),
            values: format!("\n      {}\n      {}", hex(&a[first..end]), hex(&b[first..end])),
        });
    }

    /// Makes undefined flags alike in the handlers' log and stacks, the run having ended at `rip`.
    fn forgive(&self, one: &mut [u8], other: &mut [u8], rip: u64) {
        let word = if self.world.mode.is_long() { 8 } else { 4 };
        let read = |ram: &[u8], at: usize| {
            let mut bytes = [0; 8];
            bytes[..word].copy_from_slice(&ram[at..at + word]);
            u64::from_le_bytes(bytes)
        };
        let alike = |one: &mut [u8], at: usize, mask: Rflags| {
            for byte in 0..2 {
                let mask = (mask.bits() >> (8 * byte)) as u8;
                one[at + byte] = one[at + byte] & !mask | other[at + byte] & mask;
            }
        };
        for entry in (system::LOG as usize..(system::LOG + 0x1000) as usize).step_by(8 * word) {
            let rip = read(other, entry + 2 * word);
            let mask = if rip == 0 { Rflags::empty() } else { self.undefined_at(rip) };
            alike(one, entry + 4 * word, mask);
        }
        if in_system(rip) {
            // The entry that is being written has the RIP of one exception and the flags of another.
            let entry = read(other, system::VARIABLES as usize) as usize & 0xfff;
            alike(one, system::LOG as usize + entry + 4 * word, Rflags::ARITHMETIC);
        }
        for top in [system::STACK, system::NMI_STACK, system::STACK0] {
            alike(one, top as usize - 3 * word, Rflags::ARITHMETIC);
        }
        if self.early != Early::Neither {
            let bytes = self.world.mode.entry_bytes() as usize;
            for entry in (LOW_RAM as usize..one.len()).step_by(bytes) {
                let present = one[entry] & other[entry] & pte::P as u8 != 0;
                if present {
                    one[entry] |= other[entry] & pte::A as u8;
                    if self.early == Early::Either {
                        other[entry] |= one[entry] & pte::A as u8;
                    }
                }
            }
        }
    }

    /// What lies at a physical address.
    fn place(&self, at: u64) -> String {
        let names: &[(u64, &str)] = &[
            (system::GDT, "descriptors"),
            (system::STUBS, "handlers"),
            (system::LOG, "log of exceptions"),
            (system::VARIABLES, "variables"),
            (system::RECOVERY, "recovery table"),
            (system::STACK - 0x1000, "handlers' stacks"),
            (super::layout::CODE, "code"),
            (0x4_0000, "data"),
            (super::layout::TABLES, "page tables"),
        ];
        let name = names.iter().rev().find(|(from, _)| *from <= at).map_or("", |(_, name)| name);
        let entry = (name == "page tables").then(|| {
            let table = (at - super::layout::TABLES) / 0x1000;
            let bytes = Mode::entry_bytes(self.world.mode);
            format!(" {table}, entry {}", (at & 0xfff) / bytes)
        });
        format!(" ({name}{})", entry.unwrap_or_default())
    }
}
