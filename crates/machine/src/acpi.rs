//! ACPI tables: what the machine tells a guest's firmware interpreter about the board.
//!
//! [`build`] is called once before each start of the machine, by [`crate::boot`], and its answer is copied into the
//! BIOS area of guest memory. Tables follow the ACPI Specification 6.4, section numbers below are its. The RSDP and
//! the RSDT are put together here because `acpi_tables` leaves the RSDT's address out of its RSDP, the MADT because it
//! knows neither interrupt source overrides nor the PC-compatible flag; everything else is that crate's.
//!
//! ACPI mode is always on (no SMI command port), so bit 0 of the PM1a control register must read as one. Left out: PCI
//! interrupt routing for guests that use the PIC (their PCI devices interrupt by message, or not at all); processor power states;
//! NUMA.
//!
//! Threads: plain functions.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE,
    PackageBuilder, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

const OEM_ID: [u8; 6] = *b"OMBRA ";
const OEM_TABLE_ID: [u8; 8] = *b"OMBRAPC ";
const OEM_REVISION: u32 = 1;

/// Bytes of address space that ECAM takes: 256 buses of 1 MiB (PCI Express Base 7.2.2).
pub const ECAM_BYTES: u32 = 256 << 20;

/// One serial port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialFacts {
    /// First of its eight I/O ports.
    pub port: u16,
    /// Its interrupt, 0..=15.
    pub irq: u8,
}

/// Where COM1 to COM4 are. A PC shares IRQ 4 and 3 between pairs of ports; COM3 and COM4 have free ones of their own
/// here, because ISA's edges cannot be shared.
pub const COM_PORTS: [SerialFacts; 4] = [
    SerialFacts { port: 0x3f8, irq: 4 },
    SerialFacts { port: 0x2f8, irq: 3 },
    SerialFacts { port: 0x3e8, irq: 5 },
    SerialFacts { port: 0x2e8, irq: 7 },
];

/// The numbers of the board that firmware tables and boot structures tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BoardFacts {
    /// Number of vCPUs; their APIC ids are 0..cpus.
    pub cpus: u32,
    /// The serial ports that are there.
    pub serial: [Option<SerialFacts>; 4],
    /// First port of the power-management block: PM1a event (4 ports) at +0, PM1a control (2) at +4, timer (4) at +8.
    pub pm_base: u16,
    /// SLP_TYP that means power off (S5), 0..=7.
    pub s5_sleep_type: u8,
    /// The system control interrupt: active high, level.
    pub sci: u8,
    /// Whether there is a keyboard controller at ports 0x60 and 0x64.
    pub i8042: bool,
    /// Guest-physical address of the local APICs' registers.
    pub lapic: u32,
    /// Guest-physical address of the IOAPIC's registers; its pins are interrupts 0 to 23.
    pub ioapic: u32,
    /// APIC id of the IOAPIC.
    pub ioapic_id: u8,
    /// The HPET, if there is one: its guest-physical address.
    pub hpet: Option<u32>,
    /// Low half of the HPET's capability register: comparators, counter size, vendor (IA-PC HPET 2.3.4).
    pub hpet_id: u32,
    /// Memory-mapped PCI configuration space ([`ECAM_BYTES`]), if there is one. Must lie outside RAM.
    pub ecam: Option<u32>,
    /// First byte of the window below 4 GiB where PCI devices' memory goes.
    pub pci_window: u32,
    /// Last byte of that window.
    pub pci_window_last: u32,
    /// The first of the four interrupts that PCI devices share, level and of the I/O APIC only; see [`BoardFacts::pci_interrupt`].
    pub pci_interrupts: u8,
}

impl BoardFacts {
    /// The usual PC with `cpus` vCPUs and COM1.
    #[must_use]
    pub const fn pc(cpus: u32) -> Self {
        Self {
            cpus,
            serial: [Some(COM_PORTS[0]), None, None, None],
            pm_base: 0x600,
            s5_sleep_type: 0,
            sci: 9,
            i8042: true,
            lapic: 0xfee0_0000,
            ioapic: 0xfec0_0000,
            ioapic_id: 0,
            hpet: Some(0xfed0_0000),
            hpet_id: 0x8086_a201,
            ecam: None,
            pci_window: 0xc000_0000,
            pci_window_last: 0xfebf_ffff,
            pci_interrupts: 16,
        }
    }

    /// The interrupt of pin `pin` (0 is INTA#) of PCI device `device`. Neighbours get different ones, as PCI boards are wired.
    #[must_use]
    pub const fn pci_interrupt(&self, device: u8, pin: u8) -> u8 {
        self.pci_interrupts + (device + pin) % 4
    }
}

/// Finished tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tables {
    /// The RSDP (at the start) and all tables it leads to, to be put at the address [`build`] was told.
    pub bytes: Vec<u8>,
    /// The FACS (64 bytes, to be put at the address [`build`] was told); the guest writes to it.
    pub facs: Vec<u8>,
}

/// Builds the tables for guest-physical address `base` (16-byte aligned), the FACS for `facs` (64-byte aligned).
#[must_use]
pub fn build(facts: &BoardFacts, base: u32, facs: u32) -> Tables {
    let mut area = Area { base, bytes: vec![0; 64] };
    let dsdt = area.place(dsdt(facts).as_slice());
    let mut tables = vec![area.place(&fadt(facts, dsdt, facs)), area.place(madt(facts).as_slice())];
    if let Some(at) = facts.hpet {
        tables.push(area.place(hpet(at, facts.hpet_id).as_slice()));
    }
    if let Some(at) = facts.ecam {
        let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        mcfg.add_ecam(u64::from(at), 0, 0, 255);
        tables.push(area.place(&to_bytes(&mcfg)));
    }
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut rsdt = table(*b"RSDT", 1);
    for &at in &tables {
        xsdt.add_entry(u64::from(at));
        rsdt.append_slice(&at.to_le_bytes());
    }
    let xsdt = area.place(&to_bytes(&xsdt));
    let rsdt = area.place(rsdt.as_slice());
    area.bytes[..36].copy_from_slice(&rsdp(rsdt, xsdt));
    Tables { bytes: area.bytes, facs: to_bytes(&FACS::new()) }
}

/// Tables one after the other, each 16-byte aligned; the first 64 bytes are kept for the RSDP.
struct Area {
    base: u32,
    bytes: Vec<u8>,
}

impl Area {
    fn place(&mut self, table: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = self.base + u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(table);
        at
    }
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with nothing but its header.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// Root system description pointer (5.2.5.3): the first checksum covers ACPI 1.0's 20 bytes, the second all.
fn rsdp(rsdt: u32, xsdt: u32) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(&OEM_ID);
    bytes[15] = 2;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[20..24].copy_from_slice(&36u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Fixed ACPI description table (5.2.9).
fn fadt(facts: &BoardFacts, dsdt: u32, facs: u32) -> Vec<u8> {
    let io =
        |bits: u8, size: AccessSize, port: u16| GAS::new(GasSpace::SystemIo, bits, 0, size, u64::from(port));
    let (event, control, timer) = (facts.pm_base, facts.pm_base + 4, facts.pm_base + 8);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No sleep button, and the RTC doesn't wake: both flags say "not among the fixed events".
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .firmware_ctrl_32(facs);
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(facts.sci).into();
    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = io(32, AccessSize::WordAccess, event);
    fadt.x_pm1a_cnt_blk = io(16, AccessSize::WordAccess, control);
    fadt.x_pm_tmr_blk = io(32, AccessSize::DwordAccess, timer);
    // Latencies above 100 and 1000 microseconds say that there is no C2 and no C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = 0x32;
    // IAPC_BOOT_ARCH: legacy devices, perhaps an 8042, no VGA (5.2.9.3).
    fadt.iapc_boot_arch = (1 | u16::from(facts.i8042) << 1 | 1 << 2).into();
    fadt.reset_reg = io(8, AccessSize::ByteAccess, 0xcf9);
    fadt.reset_value = 6;
    to_bytes(&fadt.finalize())
}

/// Multiple APIC description table (5.2.12).
fn madt(facts: &BoardFacts) -> Sdt {
    /// APIC ids from here on need an x2APIC entry; 255 is the broadcast id.
    const FIRST_X2APIC: u32 = 255;
    let mut body = Vec::new();
    body.dword(facts.lapic);
    body.dword(1); // PCAT_COMPAT: there are 8259s too.
    for cpu in 0..facts.cpus {
        match u8::try_from(cpu) {
            Ok(id) if cpu < FIRST_X2APIC => body.vec(&[0, 8, id, id, 1, 0, 0, 0]),
            _ => {
                body.vec(&[9, 16, 0, 0]);
                body.dword(cpu);
                body.dword(1);
                body.dword(cpu);
            }
        }
    }
    body.vec(&[1, 12, facts.ioapic_id, 0]);
    body.dword(facts.ioapic);
    body.dword(0);
    source_override(&mut body, 0, 2, 0);
    // The SCI is active high and level, which ISA's default (edge) isn't.
    source_override(&mut body, facts.sci, u32::from(facts.sci), 0b1101);
    // NMI at LINT1 of every processor.
    body.vec(&[4, 6, 0xff, 0, 0, 1]);
    if facts.cpus > FIRST_X2APIC {
        body.vec(&[10, 12, 0, 0]);
        body.dword(u32::MAX);
        body.vec(&[1, 0, 0, 0]);
    }
    let mut madt = table(*b"APIC", 5);
    madt.append_slice(&body);
    madt
}

/// Interrupt source override (5.2.12.5); `flags`: polarity in bits 0-1, trigger mode in bits 2-3.
fn source_override(body: &mut Vec<u8>, irq: u8, gsi: u32, flags: u16) {
    body.vec(&[2, 10, 0, irq]);
    body.dword(gsi);
    body.word(flags);
}

/// HPET description table (IA-PC HPET 3.2.4).
fn hpet(at: u32, id: u32) -> Sdt {
    let mut body = Vec::new();
    body.dword(id);
    GAS::new(GasSpace::SystemMemory, 64, 0, AccessSize::Undefined, u64::from(at)).to_aml_bytes(&mut body);
    body.byte(0); // sequence number
    body.word(0x80); // least ticks that a periodic comparator can do
    body.byte(0); // no page protection
    let mut hpet = table(*b"HPET", 1);
    hpet.append_slice(&body);
    hpet
}

/// Differentiated system description table: the devices, in AML.
fn dsdt(facts: &BoardFacts) -> Sdt {
    let mut devices = Vec::new();
    pci_root(facts, &mut devices);
    motherboard(facts, &mut devices);
    legacy_devices(facts, &mut devices);
    for cpu in 0..facts.cpus {
        Device::new(
            Path::new(&format!("C{cpu:03X}")),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &cpu)],
        )
        .to_aml_bytes(&mut devices);
    }

    let mut body = Scope::raw(Path::new("\\_SB_"), devices);
    let mut s5 = PackageBuilder::new();
    for value in [facts.s5_sleep_type, facts.s5_sleep_type, 0, 0] {
        s5.add_element(&value);
    }
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut body);
    let mut dsdt = table(*b"DSDT", 2);
    dsdt.append_slice(&body);
    dsdt
}

/// The PCI root bridge and what it passes on.
fn pci_root(facts: &BoardFacts, into: &mut Vec<u8>) {
    let last = match facts.ecam {
        Some(ecam)
            if (facts.pci_window..=facts.pci_window_last).contains(&ecam) && ecam > facts.pci_window =>
        {
            ecam - 1
        }
        _ => facts.pci_window_last,
    };
    let buses = AddressSpace::new_bus_number(0u16, 255u16);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let low_ports = AddressSpace::new_io(0u16, 0xcf7u16, None);
    let high_ports = AddressSpace::new_io(0xd00u16, 0xffffu16, None);
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        facts.pci_window,
        last,
        None::<u32>,
    );
    let resources = ResourceTemplate::new(vec![&buses, &config, &low_ports, &high_ports, &memory]);
    // With ECAM it is a PCI Express bridge, compatible with a plain one.
    let plain = EISAName::new("PNP0A03");
    let express = EISAName::new("PNP0A08");
    let hid = Name::new("_HID".into(), if facts.ecam.is_some() { &express } else { &plain });
    let cid = Name::new("_CID".into(), &plain);
    let mut children: Vec<&dyn Aml> = vec![&hid];
    if facts.ecam.is_some() {
        children.push(&cid);
    }
    let (uid, bbn, seg) =
        (Name::new("_UID".into(), &ZERO), Name::new("_BBN".into(), &ZERO), Name::new("_SEG".into(), &ZERO));
    let crs = Name::new("_CRS".into(), &resources);
    let routing = pci_routing(facts);
    let prt = Name::new("_PRT".into(), &routing);
    children.extend([&uid as &dyn Aml, &bbn, &seg, &crs, &prt]);
    Device::new("PCI0".into(), children).to_aml_bytes(into);
}

/// Interrupts of all PCI devices' pins (6.2.13): address of a device with all its functions, pin, no link device, interrupt.
fn pci_routing(facts: &BoardFacts) -> PackageBuilder {
    let mut routing = PackageBuilder::new();
    for device in 1..=30u8 {
        for pin in 0..4u8 {
            let mut entry = PackageBuilder::new();
            entry.add_element(&(u32::from(device) << 16 | 0xffff));
            entry.add_element(&pin);
            entry.add_element(&ZERO);
            entry.add_element(&facts.pci_interrupt(device, pin));
            routing.add_element(&entry);
        }
    }
    routing
}

/// Ports and memory that belong to the board itself, so that nothing else is put there.
fn motherboard(facts: &BoardFacts, into: &mut Vec<u8>) {
    let power = IO::new(facts.pm_base, facts.pm_base, 1, 0x10);
    let fast_gate = IO::new(0x92, 0x92, 1, 1);
    let triggers = IO::new(0x4d0, 0x4d0, 1, 2);
    let ecam = facts.ecam.map(|at| Memory32Fixed::new(true, at, ECAM_BYTES));
    let mut resources: Vec<&dyn Aml> = vec![&power, &fast_gate, &triggers];
    if let Some(ecam) = &ecam {
        resources.push(ecam);
    }
    simple_device(into, "MBRD", "PNP0C02", 0, resources);
}

fn legacy_devices(facts: &BoardFacts, into: &mut Vec<u8>) {
    let interrupt = |irq: u8| Interrupt::new(true, true, false, false, u32::from(irq));
    simple_device(
        into,
        "PIC_",
        "PNP0000",
        0,
        vec![&IO::new(0x20, 0x20, 1, 2), &IO::new(0xa0, 0xa0, 1, 2), &interrupt(2)],
    );
    simple_device(into, "PIT_", "PNP0100", 0, vec![&IO::new(0x40, 0x40, 1, 4), &interrupt(0)]);
    simple_device(into, "RTC_", "PNP0B00", 0, vec![&IO::new(0x70, 0x70, 1, 2), &interrupt(8)]);
    if facts.i8042 {
        simple_device(
            into,
            "KBD_",
            "PNP0303",
            0,
            vec![&IO::new(0x60, 0x60, 1, 1), &IO::new(0x64, 0x64, 1, 1), &interrupt(1)],
        );
    }
    if let Some(at) = facts.hpet {
        simple_device(into, "HPET", "PNP0103", 0, vec![&Memory32Fixed::new(false, at, 0x400)]);
    }
    for (number, port) in (1u8..).zip(&facts.serial) {
        if let Some(SerialFacts { port, irq }) = *port {
            let name = format!("COM{number}");
            simple_device(into, &name, "PNP0501", number, vec![&IO::new(port, port, 1, 8), &interrupt(irq)]);
        }
    }
}

/// A device that is an id, a number and resources.
fn simple_device(into: &mut Vec<u8>, name: &str, id: &str, unit: u8, resources: Vec<&dyn Aml>) {
    let id = EISAName::new(id);
    let resources = ResourceTemplate::new(resources);
    // _STA is left out: a device without it is present and working (6.3.7).
    let unit: &dyn Aml = if unit == 1 { &ONE } else { &unit };
    Device::new(
        Path::new(name),
        vec![
            &Name::new("_HID".into(), &id),
            &Name::new("_UID".into(), unit),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(into);
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 0xe_0000;
    const FACS_AT: u32 = 0xf_7000;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn dword(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// The table at a guest-physical address, its checksum verified.
    fn at(tables: &Tables, address: u32) -> &[u8] {
        let from = &tables.bytes[(address - BASE) as usize..];
        let table = &from[..dword(from, 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
        table
    }

    fn listed(tables: &Tables) -> Vec<&[u8]> {
        let rsdt = at(tables, dword(&tables.bytes, 16));
        rsdt[36..].chunks(4).map(|entry| at(tables, dword(entry, 0))).collect()
    }

    #[test]
    fn both_root_tables_lead_to_the_same_sound_tables() {
        let tables = build(&BoardFacts { ecam: Some(0xe000_0000), ..BoardFacts::pc(2) }, BASE, FACS_AT);
        assert_eq!(&tables.bytes[..8], b"RSD PTR ");
        assert_eq!(sum(&tables.bytes[..20]), 0);
        assert_eq!(sum(&tables.bytes[..36]), 0);
        let rsdt = at(&tables, dword(&tables.bytes, 16));
        let xsdt = at(&tables, dword(&tables.bytes, 24));
        let narrow: Vec<u32> = rsdt[36..].chunks(4).map(|entry| dword(entry, 0)).collect();
        let wide: Vec<u32> = xsdt[36..].chunks(8).map(|entry| dword(entry, 0)).collect();
        assert_eq!(narrow, wide);
        let names: Vec<&[u8]> = listed(&tables).iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"HPET", b"MCFG"]);
        assert_eq!((&tables.facs[..4], tables.facs.len()), (&b"FACS"[..], 64));
    }

    #[test]
    fn the_fadt_names_the_power_management_ports_and_the_reset_register() {
        let tables = build(&BoardFacts::pc(1), BASE, FACS_AT);
        let fadt = listed(&tables)[0];
        assert_eq!(dword(fadt, 36), FACS_AT);
        assert_eq!(&at(&tables, dword(fadt, 40))[..4], b"DSDT");
        assert_eq!(fadt[46], 9);
        assert_eq!((dword(fadt, 56), dword(fadt, 64), dword(fadt, 76)), (0x600, 0x604, 0x608));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b111);
        assert_eq!(dword(fadt, 112) & (1 << 8 | 1 << 10 | 1 << 20), 1 << 8 | 1 << 10);
        assert_eq!((&fadt[116..120], dword(fadt, 120), fadt[128]), (&[1u8, 8, 0, 1][..], 0xcf9, 6));
    }

    #[test]
    fn every_vcpu_is_in_the_madt_and_those_beyond_254_as_x2apics() {
        let tables = build(&BoardFacts::pc(300), BASE, FACS_AT);
        let madt = listed(&tables)[1];
        assert_eq!((dword(madt, 36), dword(madt, 40)), (0xfee0_0000, 1));
        let (mut entries, mut kinds) = (&madt[44..], [0; 11]);
        while !entries.is_empty() {
            kinds[usize::from(entries[0])] += 1;
            entries = &entries[usize::from(entries[1])..];
        }
        assert_eq!(kinds, [255, 1, 2, 0, 1, 0, 0, 0, 0, 45, 1]);
    }

    #[test]
    fn the_dsdt_has_only_the_serial_ports_that_are_there() {
        let facts = BoardFacts { serial: [None, Some(COM_PORTS[1]), None, None], ..BoardFacts::pc(1) };
        let tables = build(&facts, BASE, FACS_AT);
        let dsdt = at(&tables, dword(listed(&tables)[0], 40));
        let has = |name: &[u8]| dsdt.windows(name.len()).any(|window| window == name);
        assert!(has(b"COM2") && !has(b"COM1") && !has(b"COM3"));
        assert!(has(b"C000") && has(b"PCI0") && has(b"\x08_S5_\x12"));
    }
}
