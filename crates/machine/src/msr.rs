//! The model-specific registers that are the machine's, not the CPU's: MTRRs, machine check, platform identification, and the
//! others that operating systems touch (SDM 4; AMD APM 2 appendix A).
//!
//! One [`Msrs`] per vCPU, behind that vCPU's [`Platform`](engine::Platform); its local APIC's MSRs go to the APIC before
//! they come here. Most of these registers only remember what was written: nothing in this machine is cached by type,
//! throttled or counted. What isn't known gets `#GP`, as on hardware, and is logged once a machine, up to a limit.
//!
//! Threads: used by the vCPU's thread only. No locks, except the set of what has been logged.

use crate::cpuid::{Vendor, vendor};
use engine::GpFault;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use x86::cpuid::Cpuid;
use x86::msr;

/// Variable-range MTRR pairs.
const MTRR_PAIRS: u32 = 8;
/// Machine-check banks.
const BANKS: u32 = 4;

const FEATURE_CONTROL_LOCKED: u64 = 1;
/// RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO,
/// PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO. See the trade in [`cpuid`](crate::cpuid).
const ARCH_CAPABILITIES: u64 = bits(&[0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62]);
/// MISC_ENABLE: fast strings; no branch trace storage, no PEBS.
const MISC_ENABLE: u64 = bits(&[0, 11, 12]);
/// MISC_ENABLE bits that can be written: fast strings, thermal monitors, SpeedStep, MONITOR, CPUID limit, xTPR, XD disable.
const MISC_ENABLE_WRITABLE: u64 = bits(&[0, 1, 3, 16, 18, 22, 23, 34, 38]);
/// DEBUGCTL bits that can be written: LBR, which records nothing here. Not BTF: it would have to change what TF does.
const DEBUG_CTL_WRITABLE: u64 = 1;
/// A microcode revision that no driver finds too old, in the upper half as the register has it.
const MICROCODE: u64 = 0xffff_ffff << 32;
/// The same for AMD, where the register is the plain patch level.
const PATCH_LEVEL: u64 = 0x0fff_ffff;
/// Fixed and variable ranges, write-combining: all that SDM 3A 11.11.1 knows but SMRR.
const MTRR_CAP: u64 = MTRR_PAIRS as u64 | 1 << 8 | 1 << 10;
/// Ranges on, fixed ranges on, write-back by default.
const MTRR_DEF_TYPE: u64 = 1 << 11 | 1 << 10 | WRITE_BACK;
const WRITE_BACK: u64 = 6;
/// MCG_CAP: that many banks, MCG_CTL present.
const MCG_CAP: u64 = BANKS as u64 | 1 << 8;

const PPIN_CTL: u32 = 0x4e;
const PPIN: u32 = 0x4f;
const SMI_COUNT: u32 = 0x34;
const CORE_CAPABILITIES: u32 = 0xcf;
const PLATFORM_INFO: u32 = 0xce;
const PKG_CST_CONFIG: u32 = 0xe2;
const MISC_PWR_MGMT: u32 = 0x1aa;
const UCODE_WRITE: u32 = 0x79;
const BBL_CR_CTL3: u32 = 0x11e;
const MISC_FEATURES: u32 = 0x140;
const TEST_CTRL: u32 = 0x33;
const THERM_INTERRUPT: u32 = 0x19b;
const THERM_STATUS: u32 = 0x19c;
const PERF_STATUS: u32 = 0x198;
const PERF_CTL: u32 = 0x199;
const CLOCK_MODULATION: u32 = 0x19a;
const TEMPERATURE_TARGET: u32 = 0x1a2;
const OFFCORE_RSP: [u32; 2] = [0x1a6, 0x1a7];
const ENERGY_PERF_BIAS: u32 = 0x1b0;
const LBR_SELECT: u32 = 0x1c8;
const LBR_TOS: u32 = 0x1c9;
const POWER_CTL: u32 = 0x1fc;
const MC_CTL2: u32 = 0x280;
const RAPL_UNIT: u32 = 0x606;
const PERF_CAPABILITIES: u32 = 0x345;
const AMD_SYSCFG: u32 = 0xc001_0010;
const AMD_HWCR: u32 = 0xc001_0015;
const AMD_TOP_MEM: u32 = 0xc001_001a;
const AMD_TOP_MEM2: u32 = 0xc001_001d;
const AMD_NB_CFG: u32 = 0xc001_001f;
const AMD_PATCH_LOADER: u32 = 0xc001_0020;
const AMD_PSTATE_LIMIT: u32 = 0xc001_0061;
const AMD_PSTATE_CTL: u32 = 0xc001_0062;
const AMD_PSTATE_STATUS: u32 = 0xc001_0063;
const AMD_OSVW_LENGTH: u32 = 0xc001_0140;
const AMD_OSVW_STATUS: u32 = 0xc001_0141;
const AMD_VM_CR: u32 = 0xc001_0114;
const AMD_SMM_ADDR: u32 = 0xc001_0112;
const AMD_SMM_MASK: u32 = 0xc001_0113;
const AMD_PERF_CTL0: u32 = 0xc001_0200;
const AMD_TW_CFG: u32 = 0xc001_1023;
const AMD_LS_CFG: u32 = 0xc001_1020;
const AMD_DC_CFG: u32 = 0xc001_1022;
const AMD_DE_CFG: u32 = 0xc001_1029;
const AMD_BU_CFG2: u32 = 0xc001_102a;
/// HWCR.McStatusWrEn and a few that the BIOS sets; bit 24 (TscFreqSel): the TSC counts at the P0 frequency.
const HWCR_RESET: u64 = 1 << 24;
/// DE_CFG: LFENCE is serializing.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// Unknown registers that are remembered as logged. A guest may ask for all four thousand million.
const MOST_LOGGED: usize = 256;

const fn bits(numbers: &[u32]) -> u64 {
    let mut value = 0;
    let mut index = 0;
    while index < numbers.len() {
        value |= 1 << numbers[index];
        index += 1;
    }
    value
}

/// What a register does with a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Write {
    /// Remembers it; bits outside the mask are reserved.
    Keep(u64),
    /// Takes it and stays as it is.
    Ignore,
    /// `#GP`.
    Refuse,
    /// Takes zero only (SDM 3B 15.3.2.2: writing other values to MCi_STATUS faults).
    Zero,
    /// Takes all zeros or all ones (SDM 3B 15.3.2.1), and ones but for the single bits that Linux clears on some CPUs.
    Switches,
    /// An MTRR default type: type and two enables.
    DefaultType,
    /// Eight memory types.
    Types,
    /// A memory type and an address.
    RangeBase,
    /// A valid bit and a mask.
    RangeMask,
}

/// One vCPU's machine-side MSRs.
pub struct Msrs {
    vendor: Vendor,
    /// IA32_ARCH_CAPABILITIES exists.
    has_capabilities: bool,
    /// MONITOR is offered.
    has_monitor: bool,
    /// Bits that a guest-physical address may have.
    address_mask: u64,
    /// What was written where it differs from the power-up value.
    written: BTreeMap<u32, u64>,
    /// Registers already complained about, for the whole machine.
    logged: Unknown,
}

/// The registers that a guest asked for and that don't exist; shared by a machine's vCPUs so that each is logged once.
pub type Unknown = Arc<Mutex<BTreeSet<u32>>>;

impl Msrs {
    /// The registers at power-up, of a CPU that `cpuid` describes.
    #[must_use]
    pub fn new(cpuid: &Cpuid, logged: Unknown) -> Self {
        let physical_bits = (cpuid.stored(0x8000_0008, 0).eax & 0xff).clamp(36, 52);
        Self {
            vendor: vendor(cpuid.stored(0, 0)),
            has_capabilities: cpuid.stored(7, 0).edx >> 29 & 1 != 0,
            has_monitor: cpuid.stored(1, 0).ecx >> 3 & 1 != 0,
            address_mask: (1 << physical_bits) - 1,
            written: BTreeMap::new(),
            logged,
        }
    }

    /// Back to power-up.
    pub fn reset(&mut self) {
        self.written.clear();
    }

    /// Reads one.
    ///
    /// # Errors
    /// There is no such register here.
    pub fn read(&mut self, number: u32) -> Result<u64, GpFault> {
        let Some((initial, write)) = self.register(number) else { return Err(self.unknown(number, "read")) };
        match write {
            Write::Ignore | Write::Refuse | Write::Zero => Ok(initial),
            _ => Ok(self.written.get(&number).copied().unwrap_or(initial)),
        }
    }

    /// Writes one.
    ///
    /// # Errors
    /// There is no such register here, or it refuses the value.
    pub fn write(&mut self, number: u32, value: u64) -> Result<(), GpFault> {
        let Some((_, write)) = self.register(number) else { return Err(self.unknown(number, "write")) };
        let takes = match write {
            Write::Keep(mask) => value & !mask == 0,
            Write::Ignore => return Ok(()),
            Write::Zero => return if value == 0 { Ok(()) } else { Err(GpFault) },
            Write::Refuse => false,
            Write::Switches => value == 0 || value | 1 << 10 | 1 == u64::MAX,
            Write::DefaultType => value & !0xcff == 0 && is_memory_type(value as u8),
            Write::Types => value.to_le_bytes().into_iter().all(is_memory_type),
            Write::RangeBase => {
                value & !(self.address_mask & !0xfff | 0xff) == 0 && is_memory_type(value as u8)
            }
            Write::RangeMask => value & !(self.address_mask & !0xfff | 1 << 11) == 0,
        };
        if !takes {
            return Err(GpFault);
        }
        self.written.insert(number, value);
        Ok(())
    }

    fn unknown(&self, number: u32, what: &str) -> GpFault {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < MOST_LOGGED && logged.insert(number) {
            tracing::debug!("{what} of MSR {number:#x}, which does not exist: #GP");
        }
        GpFault
    }

    /// A register's value at power-up and what it does with writes; `None` where there is none.
    fn register(&self, number: u32) -> Option<(u64, Write)> {
        use Write::{DefaultType, Ignore, Keep, Refuse, Switches, Types, Zero};
        let any = Keep(u64::MAX);
        Some(match number {
            // Machine check of the Pentium: addresses and types, never used since.
            0 | 1 => (0, Ignore),
            msr::MTRR_CAP => (MTRR_CAP, Refuse),
            msr::MTRR_DEF_TYPE => (MTRR_DEF_TYPE, DefaultType),
            msr::MTRR_FIX64K_00000 => (WRITE_BACK * 0x0101_0101_0101_0101, Types),
            msr::MTRR_FIX16K_80000 => (WRITE_BACK * 0x0101_0101_0101_0101, Types),
            msr::MTRR_FIX16K_A0000 => (0, Types),
            msr::MTRR_FIX4K_C0000..=msr::MTRR_FIX4K_F8000 => (0x0505_0505_0505_0505, Types),
            msr::MTRR_PHYS_BASE0..0x300 if number < msr::MTRR_PHYS_BASE0 + 2 * MTRR_PAIRS => {
                self.variable_range(number - msr::MTRR_PHYS_BASE0)
            }
            msr::MCG_CAP => (MCG_CAP, Refuse),
            msr::MCG_STATUS => (0, Keep(0b1111)),
            msr::MCG_CTL => (0, any),
            msr::MC0_CTL.. if number < msr::MC0_CTL + 4 * BANKS => match number % 4 {
                0 => (0, Switches),
                1 => (0, Zero),
                // Address and miscellany remember anything.
                _ => (0, any),
            },
            MC_CTL2.. if number < MC_CTL2 + BANKS => (0, Keep(0x4000_7fff)),
            msr::UCODE_REV => match self.vendor {
                Vendor::Intel => (MICROCODE, Ignore),
                Vendor::Amd => (PATCH_LEVEL, Ignore),
            },
            UCODE_WRITE => (0, Ignore),
            // As long as MONITOR is offered, this says so.
            msr::MISC_ENABLE if self.vendor == Vendor::Intel => {
                let enable = MISC_ENABLE | u64::from(self.has_monitor) << 18;
                (enable, Keep(enable | MISC_ENABLE_WRITABLE))
            }
            msr::ARCH_CAPABILITIES if self.has_capabilities => (ARCH_CAPABILITIES, Refuse),
            _ => {
                return match self.vendor {
                    Vendor::Intel => intel(number, any),
                    Vendor::Amd => amd(number, any),
                };
            }
        })
    }

    /// Range 0 makes the hole below 4 GiB uncached, as firmware leaves it; the others are off.
    fn variable_range(&self, index: u32) -> (u64, Write) {
        match index {
            0 => (0xc000_0000, Write::RangeBase),
            1 => (self.address_mask & !0x3fff_ffff | 1 << 11, Write::RangeMask),
            _ if index.is_multiple_of(2) => (0, Write::RangeBase),
            _ => (0, Write::RangeMask),
        }
    }
}

/// The memory types of SDM 3A table 11-8.
fn is_memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

fn intel(number: u32, any: Write) -> Option<(u64, Write)> {
    use Write::{Ignore, Keep, Refuse};
    Some(match number {
        msr::PLATFORM_ID => (0, Refuse),
        msr::FEATURE_CONTROL => (FEATURE_CONTROL_LOCKED, Refuse),
        msr::DEBUG_CTL => (0, Keep(DEBUG_CTL_WRITABLE)),
        CORE_CAPABILITIES | PERF_CAPABILITIES | SMI_COUNT | RAPL_UNIT | PPIN => (0, Refuse),
        // No turbo, no CPUID faulting, no TDP limits: all zero but the ratio, which nobody needs to know.
        PLATFORM_INFO => (0, Refuse),
        PPIN_CTL => (1, Refuse),
        THERM_STATUS | PERF_STATUS | TEMPERATURE_TARGET => (0, Ignore),
        MISC_FEATURES => (0, Keep(0)),
        TEST_CTRL | BBL_CR_CTL3 | PKG_CST_CONFIG | MISC_PWR_MGMT | THERM_INTERRUPT | PERF_CTL
        | CLOCK_MODULATION | POWER_CTL | LBR_SELECT | LBR_TOS => (0, any),
        ENERGY_PERF_BIAS => (6, Keep(0xf)),
        _ if OFFCORE_RSP.contains(&number) => (0, any),
        _ => return None,
    })
}

fn amd(number: u32, any: Write) -> Option<(u64, Write)> {
    use Write::{Ignore, Keep, Refuse};
    Some(match number {
        msr::MISC_ENABLE => (0, Ignore),
        msr::DEBUG_CTL => (0, Keep(DEBUG_CTL_WRITABLE)),
        // Counters and their selectors, old and new: firmware-like code clears them blindly. None counts, and they keep
        // nothing, by which Linux sees that there is none: it would read them with RDPMC and wait for their NMIs.
        0xc001_0000..=0xc001_0007 => (0, Ignore),
        AMD_PERF_CTL0.. if number < AMD_PERF_CTL0 + 12 => (0, Ignore),
        AMD_SYSCFG => (1 << 20, any),
        AMD_HWCR => (HWCR_RESET, any),
        // Both tops of memory: the machine's layout is in the e820 map and nobody derives it from here.
        AMD_TOP_MEM | AMD_TOP_MEM2 => (0, any),
        AMD_NB_CFG | AMD_TW_CFG | AMD_LS_CFG | AMD_DC_CFG | AMD_BU_CFG2 => (0, any),
        AMD_DE_CFG => (DE_CFG_LFENCE, any),
        AMD_PATCH_LOADER => (0, Ignore),
        AMD_PSTATE_LIMIT | AMD_PSTATE_STATUS => (0, Refuse),
        AMD_PSTATE_CTL => (0, Ignore),
        0xc001_0064..=0xc001_006b => (0, any),
        AMD_OSVW_LENGTH | AMD_OSVW_STATUS => (0, any),
        // SVM is off and locked off.
        AMD_VM_CR => (1 << 3 | 1 << 4, Ignore),
        AMD_SMM_ADDR | AMD_SMM_MASK => (0, any),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::cpuid::Leaf;

    fn msrs(vendor: &[u8; 4]) -> Msrs {
        let mut cpuid = Cpuid::default();
        cpuid.set(0, 0, Leaf { ebx: u32::from_le_bytes(*vendor), ..Leaf::default() });
        cpuid.set(0x8000_0008, 0, Leaf { eax: 0x302e, ..Leaf::default() });
        if vendor == b"Genu" {
            cpuid.set(7, 0, Leaf { edx: 1 << 29, ..Leaf::default() });
        }
        Msrs::new(&cpuid, Unknown::default())
    }

    #[test]
    fn mtrrs_keep_what_is_legal_and_refuse_reserved_bits() {
        let mut msrs = msrs(b"Genu");
        assert_eq!(msrs.read(msr::MTRR_CAP).expect("exists") & 0xff, 8);
        assert_eq!(msrs.write(msr::MTRR_CAP, 0), Err(GpFault));
        for (number, good, bad) in [
            (msr::MTRR_DEF_TYPE, 0x0, 0x1000),
            (msr::MTRR_DEF_TYPE, 0xc06, 0xc07),
            (msr::MTRR_DEF_TYPE, 0xc05, 0xc02),
            (msr::MTRR_FIX64K_00000, 0x0504_0106_0000_0000, 0x0700_0000_0000_0000),
            (msr::MTRR_FIX4K_F8000, 0x0606_0606_0606_0606, 0x02),
            (msr::MTRR_PHYS_BASE0 + 2, 0x2000_0000_0006, 0x4000_0000_0006),
            (msr::MTRR_PHYS_BASE0 + 2, 0x1000, 0x1100),
            (msr::MTRR_PHYS_BASE0 + 3, 0x3fff_ffff_f800, 0x400),
            (msr::MTRR_PHYS_BASE0 + 15, 0, 1 << 46),
        ] {
            assert_eq!(msrs.write(number, good), Ok(()), "{number:#x}");
            assert_eq!(msrs.write(number, bad), Err(GpFault), "{number:#x}");
            assert_eq!(msrs.read(number), Ok(good), "{number:#x}");
        }
        assert_eq!(msrs.read(msr::MTRR_PHYS_BASE0 + 16), Err(GpFault));
    }

    #[test]
    fn machine_check_banks_take_what_hardware_takes() {
        let mut msrs = msrs(b"Genu");
        assert_eq!(msrs.read(msr::MCG_CAP), Ok(0x104));
        for bank in 0..BANKS {
            let control = msr::MC0_CTL + 4 * bank;
            for value in [u64::MAX, !(1 << 10), 0] {
                assert_eq!(msrs.write(control, value), Ok(()));
                assert_eq!(msrs.read(control), Ok(value));
            }
            assert_eq!(msrs.write(control, 0xaaaa), Err(GpFault));
            let status = control + 1;
            assert_eq!(msrs.write(status, 0), Ok(()));
            assert_eq!(msrs.write(status, 1), Err(GpFault));
            assert_eq!(msrs.read(status), Ok(0));
            for number in [control + 2, control + 3] {
                assert_eq!(msrs.write(number, 0xaaaa_aaaa_aaaa_aaaa), Ok(()));
                assert_eq!(msrs.read(number), Ok(0xaaaa_aaaa_aaaa_aaaa));
            }
        }
        assert_eq!(msrs.read(msr::MC0_CTL + 4 * BANKS), Err(GpFault));
    }

    #[test]
    fn commands_to_the_cpu_are_not_the_machines() {
        let mut msrs = msrs(b"Genu");
        for number in [msr::PRED_CMD, msr::FLUSH_CMD] {
            assert_eq!(msrs.read(number), Err(GpFault));
        }
    }

    #[test]
    fn unknown_registers_fault_and_are_remembered_once() {
        let mut msrs = msrs(b"Genu");
        for _ in 0..2 {
            assert_eq!(msrs.read(0xdead_beef), Err(GpFault));
            assert_eq!(msrs.write(0xdead_beef, 0), Err(GpFault));
        }
        assert_eq!(msrs.logged.lock().expect("not poisoned").len(), 1);
    }

    #[test]
    fn a_guest_that_asks_for_every_register_does_not_fill_the_hosts_memory() {
        let mut msrs = msrs(b"Genu");
        for number in 0x1000_0000..0x1000_0000 + 10 * MOST_LOGGED as u32 {
            assert_eq!(msrs.read(number), Err(GpFault));
        }
        assert_eq!(msrs.logged.lock().expect("not poisoned").len(), MOST_LOGGED);
    }

    #[test]
    fn stepping_by_branches_is_refused_rather_than_done_wrong() {
        for vendor in [b"Genu", b"Auth"] {
            let mut msrs = msrs(vendor);
            assert_eq!(msrs.write(msr::DEBUG_CTL, 1), Ok(()));
            assert_eq!(msrs.write(msr::DEBUG_CTL, 0b10), Err(GpFault));
            assert_eq!(msrs.read(msr::DEBUG_CTL), Ok(1));
            // The engine's, not the machine's.
            assert_eq!(msrs.read(msr::SPEC_CTRL), Err(GpFault));
        }
    }

    #[test]
    fn each_vendor_has_its_own_registers() {
        let mut intel = msrs(b"Genu");
        let mut amd = msrs(b"Auth");
        assert_eq!(intel.read(msr::ARCH_CAPABILITIES).expect("exists") & 1, 1);
        assert_eq!(intel.write(msr::ARCH_CAPABILITIES, 0), Err(GpFault));
        assert_eq!(amd.read(msr::ARCH_CAPABILITIES), Err(GpFault));
        for counter in 0..8 {
            assert_eq!(amd.write(0xc001_0000 + counter, 0xabcd), Ok(()));
            assert_eq!(amd.read(0xc001_0000 + counter), Ok(0), "counters that keep a value are used");
            assert_eq!(intel.write(0xc001_0000 + counter, 0), Err(GpFault));
        }
        for number in [AMD_HWCR, AMD_SYSCFG, AMD_DE_CFG, msr::UCODE_REV] {
            assert!(amd.read(number).is_ok(), "{number:#x}");
        }
    }

    /// The bits of SDM 4 table 2-2 by which Linux finds that an Intel CPU hasn't got a leak; IBRS_ALL is the remedy without retpolines.
    #[test]
    fn every_immunity_that_intel_has_a_bit_for_is_claimed_where_the_register_is_offered() {
        let told = msrs(b"Genu").read(msr::ARCH_CAPABILITIES).expect("offered");
        for (bit, name) in [
            (0, "RDCL_NO"),
            (1, "IBRS_ALL"),
            (4, "SSB_NO"),
            (5, "MDS_NO"),
            (6, "IF_PSCHANGE_MC_NO"),
            (8, "TAA_NO"),
            (13, "SBDR_SSDP_NO"),
            (14, "FBSDP_NO"),
            (15, "PSDP_NO"),
            (20, "BHI_NO"),
            (24, "PBRSB_NO"),
            (26, "GDS_NO"),
            (27, "RFDS_NO"),
            (62, "ITS_NO"),
        ] {
            assert_eq!(told >> bit & 1, 1, "{name}");
        }
        // TSX_CTRL, GDS_CTRL and the like would be registers to write to; RSBA and RRSBA say that there is a leak.
        assert_eq!(told & (1 << 2 | 1 << 7 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 25), 0);
        let mut cpuid = Cpuid::default();
        cpuid.set(0, 0, Leaf { ebx: u32::from_le_bytes(*b"Genu"), ..Leaf::default() });
        let mut without = Msrs::new(&cpuid, Unknown::default());
        assert_eq!(without.read(msr::ARCH_CAPABILITIES), Err(GpFault));
    }

    #[test]
    fn reset_brings_the_power_up_values_back() {
        let mut msrs = msrs(b"Genu");
        msrs.write(msr::MTRR_DEF_TYPE, 0).expect("legal");
        msrs.reset();
        assert_eq!(msrs.read(msr::MTRR_DEF_TYPE), Ok(MTRR_DEF_TYPE));
    }
}
