//! Walks that leave no trace against those that do: on random page tables both must find the same, and only where nothing would have
//! to be set.

use engine::{Access, Event, GpFault, Hypercall, HypercallOutcome, Platform, Setup, VcpuId, Window};
use interpreter::{Core, Viewer};
use memory::{GuestMemory, Layout, Region};
use x86::control::{cr0, cr4, efer};
use x86::cpuid::Cpuid;
use x86::paging::pte;
use x86::{Gpa, Rflags};

const RAM: u64 = 1 << 20;
/// The first table is the root. There are this many, and they lead to each other.
const TABLES: u64 = 0x8000;
const TABLE_COUNT: u64 = 8;

/// No devices.
struct Nothing;

impl Platform for Nothing {
    fn mmio(&mut self, _: Gpa, access: Access<'_>) {
        if let Access::Read(data) = access {
            data.fill(0xff);
        }
    }
    fn pio(&mut self, _: u16, _: Access<'_>) {}
    fn rdmsr(&mut self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn wrmsr(&mut self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn hypercall(&mut self, _: Hypercall<'_>) -> HypercallOutcome {
        HypercallOutcome::Undefined
    }
    fn cr8(&mut self) -> u8 {
        0
    }
    fn set_cr8(&mut self, _: u8) {}
    fn take_event(&mut self, _: Window) -> Option<Event> {
        None
    }
    fn apic_enabled(&mut self) -> bool {
        true
    }
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }
    /// `bits`, as often as `percent` says.
    fn maybe(&mut self, percent: u64, bits: u64) -> u64 {
        if self.below(100) < percent { bits } else { 0 }
    }
}

#[derive(Clone, Copy, Debug)]
enum Paging {
    Bits32,
    Pae,
    Long,
}

const INDICES: [u64; 5] = [0, 1, 2, 3, 511];

fn entry(random: &mut Random) -> u64 {
    let leads_to = if random.below(3) > 0 {
        TABLES + random.below(TABLE_COUNT) * 0x1000
    } else {
        random.below(RAM >> 12) << 12
    };
    leads_to
        | random.maybe(95, pte::P)
        | random.maybe(85, pte::RW)
        | random.maybe(85, pte::US)
        | random.maybe(80, pte::A)
        | random.maybe(60, pte::D)
        | random.maybe(10, pte::PS)
        | random.maybe(20, pte::G)
}

fn furnish(memory: &GuestMemory, paging: Paging, random: &mut Random) {
    memory.zero(Gpa(TABLES), TABLE_COUNT * 0x1000).expect("RAM");
    for table in 0..TABLE_COUNT {
        for index in INDICES {
            let mut entry = entry(random);
            if entry & pte::PS != 0 && random.below(2) == 0 {
                // So that large pages are aligned, and lie in RAM, now and then.
                entry &= 0xfff;
            }
            let at = TABLES + table * 0x1000;
            match paging {
                Paging::Bits32 => {
                    memory.write(Gpa(at + index * 4), &(entry as u32).to_le_bytes()).expect("RAM");
                }
                _ => {
                    entry |= random.maybe(10, pte::XD)
                        | random.maybe(1, 1 << 45)
                        | random.below(16) << pte::KEY_SHIFT & random.maybe(50, u64::MAX);
                    memory.write(Gpa(at + index * 8), &entry.to_le_bytes()).expect("RAM");
                }
            }
        }
    }
}

fn address(paging: Paging, random: &mut Random) -> u64 {
    let mut index = || INDICES[random.below(INDICES.len() as u64) as usize];
    match paging {
        Paging::Bits32 => index() << 22 | index() << 12,
        Paging::Pae => (index() & 3) << 30 | index() << 21 | index() << 12,
        Paging::Long => {
            let low = index() << 39 | index() << 30 | index() << 21 | index() << 12;
            ((low << 16) as i64 >> 16) as u64
        }
    }
}

/// A vCPU with random rights; says as whom it sees.
fn set_up(core: &mut Core, paging: Paging, random: &mut Random) -> Viewer {
    let state = core.lend_state().expect("the state");
    state.cr0 = cr0::PE | cr0::PG | random.maybe(60, cr0::WP);
    state.cr4 = random.maybe(80, cr4::PGE) | random.maybe(50, cr4::SMEP) | random.maybe(50, cr4::SMAP);
    state.efer = random.maybe(80, efer::NXE);
    state.cr3 = TABLES;
    match paging {
        Paging::Bits32 => state.cr4 |= random.maybe(70, cr4::PSE),
        Paging::Pae => {
            state.cr4 |= cr4::PAE;
            state.pdptes = std::array::from_fn(|_| {
                (TABLES + random.below(TABLE_COUNT) * 0x1000) | random.maybe(80, pte::P)
            });
        }
        Paging::Long => {
            state.cr4 |= cr4::PAE | random.maybe(30, cr4::PKE);
            state.efer |= efer::LME | efer::LMA;
        }
    }
    state.vector.pkru = random.next() as u32;
    state.cpl = if random.below(2) == 0 { 0 } else { 3 };
    state.rflags = Rflags::ONE;
    state.rflags.set(Rflags::AC, random.below(2) == 0);
    let open = state.rflags.contains(Rflags::AC) || state.cr4 & cr4::SMAP == 0;
    let viewer = match (state.cpl, open) {
        (3, _) => Viewer::User,
        (_, false) => Viewer::Supervisor,
        (_, true) => Viewer::SupervisorOpen,
    };
    core.begin();
    viewer
}

#[test]
fn probes_find_what_walks_find_without_setting_anything() {
    let region = Region { start: Gpa(0), len: RAM };
    let memory = GuestMemory::new(Layout::new(vec![region]).expect("a layout")).expect("memory");
    let setup = Setup { memory: memory.clone(), cpuid: Cpuid::default(), tsc_offset: 0 };
    let mut core = Core::new(VcpuId(0), setup).expect("a vCPU");
    let mut random = Random(0x1234_5678_9abc_def1);
    let tables = || {
        let mut bytes = vec![0; (TABLE_COUNT * 0x1000) as usize];
        memory.read(Gpa(TABLES), &mut bytes).expect("RAM");
        bytes
    };
    let mut found = [0; 3];
    for round in 0..3000 {
        let paging = [Paging::Bits32, Paging::Pae, Paging::Long][round % 3];
        furnish(&memory, paging, &mut random);
        let viewer = set_up(&mut core, paging, &mut random);
        let addresses: Vec<u64> = (0..20).map(|_| address(paging, &mut random)).collect();
        for at in addresses {
            let context = format!("round {round}, {paging:?}, {viewer:?}, address {at:#x}");
            let before = tables();
            let probed = core.prober().probe(at, viewer);
            assert_eq!(before, tables(), "{context}: a probe has set something");
            let read = core.map(at, false, &mut Nothing);
            let untouched = before == tables();
            match (probed.filter(|page| page.read), read) {
                (Some(page), Some(walked)) => {
                    assert!(untouched, "{context}: the walk had something to set");
                    let of_probe = (page.ram, page.write, page.global, page.large);
                    assert_eq!(
                        of_probe,
                        (walked.ram, walked.write, walked.global, walked.large),
                        "{context}"
                    );
                    found[0] += 1;
                }
                (None, Some(_)) => assert!(!untouched, "{context}: the probe has missed a page"),
                (Some(_), None) => panic!("{context}: the walk finds nothing"),
                (None, None) => {}
            }
            if probed.is_some_and(|page| page.write) {
                let now = tables();
                assert!(core.map(at, true, &mut Nothing).is_some_and(|walked| walked.write), "{context}");
                assert_eq!(now, tables(), "{context}: D was clear");
                found[1] += 1;
            }
            // The walk for reading may have set accessed bits.
            let before = tables();
            let probed = core.prober().probe(at, viewer).filter(|page| page.fetch);
            let fetched = core.map_code(at, &mut Nothing);
            match (probed, fetched) {
                (Some(page), Some(walked)) => {
                    assert_eq!((page.ram, before == tables()), (walked.ram, true), "{context}");
                    found[2] += 1;
                }
                (None, Some(_)) => assert_ne!(before, tables(), "{context}: the probe has missed code"),
                (Some(_), None) => panic!("{context}: the walk finds no code"),
                (None, None) => {}
            }
        }
    }
    assert!(found.iter().all(|&count| count > 1000), "too little was found to compare: {found:?}");
}

#[test]
fn a_prober_goes_from_page_to_page_as_fresh_ones_do() {
    let region = Region { start: Gpa(0), len: RAM };
    let memory = GuestMemory::new(Layout::new(vec![region]).expect("a layout")).expect("memory");
    let setup = Setup { memory: memory.clone(), cpuid: Cpuid::default(), tsc_offset: 0 };
    let mut core = Core::new(VcpuId(0), setup).expect("a vCPU");
    let mut random = Random(0xfedc_ba98_7654_3211);
    let mut found = 0;
    for round in 0..600 {
        let paging = [Paging::Bits32, Paging::Pae, Paging::Long][round % 3];
        furnish(&memory, paging, &mut random);
        let viewer = set_up(&mut core, paging, &mut random);
        let mut prober = core.prober();
        for _ in 0..100 {
            let at = address(paging, &mut random);
            let probed = prober.probe(at, viewer);
            assert_eq!(probed, core.prober().probe(at, viewer), "round {round}, {paging:?}, address {at:#x}");
            found += u32::from(probed.is_some());
        }
    }
    assert!(found > 1000, "too little was found to compare: {found}");
}
