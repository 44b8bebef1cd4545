//! What CPUID tells the guest.
//!
//! The table is the host's, cut down to an allow-list ([`features`]): what runs unprivileged runs as itself on the host CPU, so
//! the guest may have it if the host does; what is privileged is software's, so the guest gets what the reference engine
//! honours, whatever the host has. Topology, TSC frequency and the hypervisor leaves are the machine's own.
//!
//! **Mitigations.** The guest is told that the CPU has none of the known leaks (`RDCL_NO`, `MDS_NO`, enhanced IBRS and so on),
//! because under a software engine none of the guest's workarounds would do anything but cost time: guest kernel and guest user
//! already share a host process, and the host's own mitigations, which guard that process's boundary, stay in force. The trade: a
//! guest must not be relied on to keep its own users apart from each other against such leaks. With [`Mitigations::Guest`] it is
//! told what the host's CPUID says instead. Only the register IA32_ARCH_CAPABILITIES isn't offered then, since a process
//! can't read the host's: the guest assumes the worst of its CPU's model.
//!
//! Called once a machine, before the engine is made; the vCPU's engine overlays APIC id, OSXSAVE, OSPKE and XSAVE sizes.
//! No threads, no locks.

mod features;

pub use control::Mitigations;
use features::{FEATURES, Rule};
use x86::cpuid::{Cpuid, Leaf};

/// The frequency of the local APIC's timer and of the "crystal" that the TSC's frequency is a multiple of, in Hz.
pub const BUS_HZ: u64 = chipset::apic::TIMER_HZ;
/// The hypervisor signature in leaf 0x40000000: EBX, ECX, EDX.
pub const SIGNATURE: &[u8; 12] = b"OmbraOmbra\0\0";
/// Most guest-physical address bits.
const MAX_PHYSICAL_BITS: u32 = 46;
/// Highest basic leaf: V2 extended topology.
const HIGHEST_BASIC: u32 = 0x1f;

/// Extended state components that can be offered. Where each is in an image is the host's to say (it differs between Intel and
/// AMD): the engine lays images out as the host does.
const COMPONENTS: [u32; 5] = [2, 5, 6, 7, 9];
/// The legacy region and the header of an XSAVE image.
const XSAVE_LEAST: u32 = 576;
/// Component flags in leaf 0xD that the engine follows: aligned to 64 bytes in the compacted form.
const XSAVE_ALIGNED: u32 = 1 << 1;

/// Leaf 5: lines of 64 bytes, the extension that lets masked interrupts end MWAIT, and one kind of C1 (SDM 2A CPUID).
const MONITOR_LINE: Leaf = Leaf { eax: 64, ebx: 64, ecx: 0b11, edx: 1 << 4 };

/// What isn't the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Number of vCPUs.
    pub cpus: u32,
    /// The guest TSC's frequency in Hz.
    pub tsc_hz: u64,
    /// Offers 5-level paging. Off by default: Linux then uses it for every address space, and each page walk costs more.
    pub la57: bool,
    /// Offers MONITOR and MWAIT. Off by default: HLT costs the guest less.
    pub mwait: bool,
    /// What the guest is told of the CPU's leaks.
    pub mitigations: Mitigations,
}

/// Who made the host CPU, as far as the tables differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD, HygonGenuine and others.
    Amd,
}

/// The vendor that a CPUID table names.
#[must_use]
pub fn vendor(leaf0: Leaf) -> Vendor {
    if leaf0.ebx == u32::from_le_bytes(*b"Genu") { Vendor::Intel } else { Vendor::Amd }
}

/// The host's answer.
#[must_use]
pub fn host(leaf: u32, subleaf: u32) -> Leaf {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Leaf { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

/// The host's answers, cut to the leaves that it has.
struct Host<'a> {
    query: &'a dyn Fn(u32, u32) -> Leaf,
    basic: u32,
    extended: u32,
}

impl Host<'_> {
    fn leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        let highest = if leaf >= 0x8000_0000 { self.extended } else { self.basic };
        if leaf > highest || (leaf == 7 && subleaf > 0 && subleaf > (self.query)(7, 0).eax) {
            return Leaf::default();
        }
        (self.query)(leaf, subleaf)
    }
}

/// Bits of guest-physical addresses on this host.
#[must_use]
pub fn physical_bits(query: &dyn Fn(u32, u32) -> Leaf) -> u32 {
    let told = if query(0x8000_0000, 0).eax >= 0x8000_0008 { query(0x8000_0008, 0).eax & 0xff } else { 0 };
    if told < 36 { 36 } else { told.min(MAX_PHYSICAL_BITS) }
}

/// Builds the table from the host's answers.
#[must_use]
pub fn build(query: &dyn Fn(u32, u32) -> Leaf, options: Options) -> Cpuid {
    let host = Host { query, basic: query(0, 0).eax, extended: query(0x8000_0000, 0).eax };
    let vendor = vendor(query(0, 0));
    let mut table = Cpuid::default();
    set_identity(&mut table, &host, vendor);
    set_features(&mut table, &host, vendor, options);
    set_caches(&mut table, &host, options.cpus);
    set_topology(&mut table, vendor, options.cpus);
    set_extended_state(&mut table, &host);
    set_frequencies(&mut table, options.tsc_hz);
    if options.mwait {
        table.set(5, 0, MONITOR_LINE);
    }
    table
}

fn set_identity(table: &mut Cpuid, host: &Host<'_>, vendor: Vendor) {
    table.set(0, 0, Leaf { eax: HIGHEST_BASIC, ..host.leaf(0, 0) });
    let one = host.leaf(1, 0);
    // Family, model and stepping are the host's. EBX: CLFLUSH line of 8 quadwords; the rest comes with the topology.
    table.set(1, 0, Leaf { eax: one.eax, ebx: 8 << 8, ..Leaf::default() });
    table.set(6, 0, Leaf { eax: 1 << 2, ..Leaf::default() }); // ARAT: the APIC timer never stops.
    let highest = if vendor == Vendor::Amd { 0x8000_0021 } else { 0x8000_0008 };
    table.set(0x8000_0000, 0, Leaf { eax: highest, ..host.leaf(0x8000_0000, 0) });
    let extended = host.leaf(0x8000_0001, 0);
    let amd_signature = if vendor == Vendor::Amd { extended.eax } else { 0 };
    table.set(0x8000_0001, 0, Leaf { eax: amd_signature, ..Leaf::default() });
    for brand in 0x8000_0002..=0x8000_0004 {
        table.set(brand, 0, host.leaf(brand, 0));
    }
    let word = |at: usize| {
        u32::from_le_bytes([SIGNATURE[at], SIGNATURE[at + 1], SIGNATURE[at + 2], SIGNATURE[at + 3]])
    };
    table.set(0x4000_0000, 0, Leaf { eax: 0x4000_0010, ebx: word(0), ecx: word(4), edx: word(8) });
}

fn set_features(table: &mut Cpuid, host: &Host<'_>, vendor: Vendor, options: Options) {
    // Sub-leaves 1 and 2 of leaf 7 exist whatever the host has.
    table.leaf_mut(7, 0).eax = 2;
    let immune = options.mitigations == Mitigations::Off;
    for feature in FEATURES {
        let on_host = feature.is_in(host.leaf(feature.leaf, feature.subleaf));
        let offered = match feature.rule {
            Rule::Host => on_host,
            Rule::Always => true,
            Rule::Immune => immune || on_host,
            Rule::IntelImmune => vendor == Vendor::Intel && (immune || on_host),
            Rule::AmdImmune => vendor == Vendor::Amd && (immune || on_host),
            Rule::IntelTold => vendor == Vendor::Intel && immune,
            Rule::Remedy => !immune && on_host,
            Rule::Amd => vendor == Vendor::Amd,
            Rule::La57 => options.la57,
            Rule::Mwait => options.mwait,
            Rule::Smp => options.cpus > 1,
            Rule::AmdSmp => vendor == Vendor::Amd && options.cpus > 1,
        };
        if offered {
            feature.set(table, true);
        }
    }
    // A host may hide a feature but not those that build on it, so repeat until nothing more falls.
    while FEATURES.iter().any(|feature| {
        let falls = feature.is_offered(table) && !feature.needs.iter().all(|name| offers(table, name));
        if falls {
            feature.set(table, false);
        }
        falls
    }) {}
    let linear_bits = if options.la57 { 57 } else { 48 };
    let sizes = table.leaf_mut(0x8000_0008, 0);
    sizes.eax = physical_bits(host.query) | linear_bits << 8;
}

/// Whether a feature, by its name in the table, is offered.
fn offers(table: &Cpuid, name: &str) -> bool {
    FEATURES.iter().any(|feature| feature.name == name && feature.is_offered(table))
}

/// The names of the features that a table offers, in the table's order; Linux's names where it has one.
#[must_use]
pub fn offered_features(table: &Cpuid) -> Vec<&'static str> {
    FEATURES.iter().filter(|feature| feature.is_offered(table)).map(|feature| feature.name).collect()
}

fn set_caches(table: &mut Cpuid, host: &Host<'_>, cpus: u32) {
    table.set(2, 0, host.leaf(2, 0));
    for subleaf in 0..8 {
        let cache = host.leaf(4, subleaf);
        let kind = cache.eax & 0x1f;
        if kind == 0 {
            break;
        }
        // Levels 1 and 2 are a core's own, the third is everybody's. One socket.
        let sharing = if cache.eax >> 5 & 7 >= 3 { cpus - 1 } else { 0 };
        let eax = cache.eax & 0x3fff | sharing.min(0xfff) << 14 | (cpus - 1).min(0x3f) << 26;
        table.set(4, subleaf, Leaf { eax, ..cache });
    }
    for leaf in [0x8000_0005, 0x8000_0006] {
        table.set(leaf, 0, host.leaf(leaf, 0));
    }
}

/// One socket of `cpus` cores of one thread; APIC ids count from 0 (SDM 2A CPUID, leaves 0BH and 1FH).
fn set_topology(table: &mut Cpuid, vendor: Vendor, cpus: u32) {
    let id_bits = cpus.next_power_of_two().trailing_zeros();
    table.leaf_mut(1, 0).ebx |= cpus.min(255) << 16;
    for leaf in [0xb, 0x1f] {
        table.set(leaf, 0, Leaf { eax: 0, ebx: 1, ecx: 1 << 8, edx: 0 });
        table.set(leaf, 1, Leaf { eax: id_bits, ebx: cpus, ecx: 2 << 8 | 1, edx: 0 });
        table.set(leaf, 2, Leaf { ecx: 2, ..Leaf::default() });
    }
    if vendor == Vendor::Amd {
        table.leaf_mut(0x8000_0008, 0).ecx = (cpus - 1).min(0xff) | id_bits << 12;
    }
}

/// Leaf 0xD from the features that have state of their own. EBX of sub-leaves 0 and 1 is for all components; the engine overlays
/// it with what is enabled.
fn set_extended_state(table: &mut Cpuid, host: &Host<'_>) {
    if !offers(table, "xsave") {
        for subleaf in 0..=9 {
            table.set(0xd, subleaf, Leaf::default());
        }
        return;
    }
    let mut mask = 0b11u32;
    for (feature, components) in [("avx", 1 << 2), ("avx512f", 0b111 << 5), ("pku", 1 << 9)] {
        if offers(table, feature) {
            mask |= components;
        }
    }
    let mut standard = XSAVE_LEAST;
    let mut compacted = XSAVE_LEAST;
    for number in COMPONENTS.into_iter().filter(|number| mask >> number & 1 == 1) {
        let Leaf { eax: bytes, ebx: offset, ecx, .. } = host.leaf(0xd, number);
        let flags = ecx & XSAVE_ALIGNED;
        table.set(0xd, number, Leaf { eax: bytes, ebx: offset, ecx: flags, edx: 0 });
        standard = standard.max(offset.saturating_add(bytes));
        if flags != 0 {
            compacted = compacted.next_multiple_of(64);
        }
        compacted = compacted.saturating_add(bytes);
    }
    table.set(0xd, 0, Leaf { eax: mask, ebx: standard, ecx: standard, edx: 0 });
    let kinds = table.stored(0xd, 1).eax;
    let compacted = if kinds & 0b1010 == 0 { 0 } else { compacted };
    table.set(0xd, 1, Leaf { eax: kinds, ebx: compacted, ecx: 0, edx: 0 });
}

/// Leaves 0x15, 0x16 and 0x40000010.
fn set_frequencies(table: &mut Cpuid, tsc_hz: u64) {
    let (denominator, numerator) = ratio(tsc_hz);
    let crystal = u32::try_from(BUS_HZ).unwrap_or(u32::MAX);
    table.set(0x15, 0, Leaf { eax: denominator, ebx: numerator, ecx: crystal, edx: 0 });
    let mhz = u32::try_from((tsc_hz + 500_000) / 1_000_000).unwrap_or(0xffff).min(0xffff);
    table.set(0x16, 0, Leaf { eax: mhz, ebx: mhz, ecx: 100, edx: 0 });
    let khz = |hz: u64| u32::try_from((hz + 500) / 1000).unwrap_or(u32::MAX);
    table.set(0x4000_0010, 0, Leaf { eax: khz(tsc_hz), ebx: khz(BUS_HZ), ecx: 0, edx: 0 });
}

/// The fraction of small terms that comes closest to TSC / crystal: (denominator, numerator). Small, because Linux multiplies the
/// crystal's kHz with the numerator in 32 bits.
fn ratio(tsc_hz: u64) -> (u32, u32) {
    let highest_numerator = u64::from(u32::MAX) / (BUS_HZ / 1000);
    let candidates = (1..=highest_numerator).filter_map(|denominator| {
        let exact = u128::from(tsc_hz) * u128::from(denominator);
        let numerator = u64::try_from((exact + u128::from(BUS_HZ / 2)) / u128::from(BUS_HZ)).ok()?;
        if numerator == 0 || numerator > highest_numerator {
            return None;
        }
        // Error in units of 1 Hz / denominator, made comparable by cross-multiplying with the largest denominator.
        let error =
            exact.abs_diff(u128::from(numerator) * u128::from(BUS_HZ)) * 1_000_000 / u128::from(denominator);
        Some((error, u32::try_from(denominator).ok()?, u32::try_from(numerator).ok()?))
    });
    candidates.min().map_or((1, 1), |(_, denominator, numerator)| (denominator, numerator))
}

#[cfg(test)]
mod tests;
