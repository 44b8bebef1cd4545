//! CPUID: the machine's table with what depends on the vCPU and its state laid over it (SDM 2A CPUID).

use crate::cpu::{Cpu, Step};
use crate::op::Op;
use engine::Platform;
use x86::control::cr4;
use x86::cpuid::Leaf;

/// The legacy region and the header of an XSAVE image.
const XSAVE_BASE: u32 = 576;

/// One of CPUID's output registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Cpu {
    /// Whether the guest's CPUID has a feature bit set.
    pub(crate) fn offers(&self, leaf: u32, subleaf: u32, output: Output, bit: u32) -> bool {
        let answer = self.setup.cpuid.stored(leaf, subleaf);
        let register = match output {
            Output::Eax => answer.eax,
            Output::Ebx => answer.ebx,
            Output::Ecx => answer.ecx,
            Output::Edx => answer.edx,
        };
        register >> bit & 1 != 0
    }

    /// Whether the guest's CPU says it is Intel's.
    pub(crate) fn is_intel(&self) -> bool {
        // "Genu"
        self.setup.cpuid.stored(0, 0).ebx == 0x756e_6547
    }

    /// What CPUID gives on this vCPU now.
    pub(crate) fn cpuid(&self, leaf: u32, subleaf: u32, io: &mut dyn Platform) -> Leaf {
        let mut answer = self.setup.cpuid.query(leaf, subleaf);
        let set = |register: &mut u32, bit: u32, on: bool| {
            *register = *register & !(1 << bit) | u32::from(on) << bit;
        };
        let state = &self.state;
        match leaf {
            1 => {
                answer.ebx = answer.ebx & 0x00ff_ffff | self.id.0 << 24;
                set(&mut answer.ecx, 27, state.cr4 & cr4::OSXSAVE != 0);
                let apic = answer.edx >> 9 & 1 != 0 && io.apic_enabled();
                set(&mut answer.edx, 9, apic);
            }
            7 if subleaf == 0 => set(&mut answer.ecx, 4, state.cr4 & cr4::PKE != 0),
            0xb | 0x1f if leaf <= self.setup.cpuid.stored(0, 0).eax => answer.edx = self.id.0,
            0xd if subleaf == 0 => answer.ebx = self.xsave_size(state.vector.xcr0, false),
            0xd if subleaf == 1 => {
                answer.ebx = if answer.eax & 0b1010 != 0 {
                    self.xsave_size(state.vector.xcr0 | state.xss, true)
                } else {
                    0
                };
            }
            0x8000_0001 => {
                let apic = answer.edx >> 9 & 1 != 0 && io.apic_enabled();
                set(&mut answer.edx, 9, apic);
            }
            0x8000_001e => answer.eax = if answer == Leaf::default() { 0 } else { self.id.0 },
            _ => {}
        }
        answer
    }

    /// Bytes of an XSAVE image with these components, standard or compacted (SDM 1 13.4).
    pub(crate) fn xsave_size(&self, components: u64, compacted: bool) -> u32 {
        let mut size = XSAVE_BASE;
        for component in 2..63 {
            if components >> component & 1 == 0 {
                continue;
            }
            let leaf = self.setup.cpuid.stored(0xd, component);
            if compacted {
                // ECX bit 1: the component starts on a 64-byte boundary.
                let start = if leaf.ecx & 2 != 0 { size.next_multiple_of(64) } else { size };
                size = start.saturating_add(leaf.eax);
            } else {
                size = size.max(leaf.ebx.saturating_add(leaf.eax));
            }
        }
        size
    }
}

/// CPUID.
pub(super) fn cpuid(cpu: &mut Cpu, _: &Op, io: &mut dyn Platform) -> Step {
    super::serialize();
    let answer = cpu.cpuid(cpu.regs[0] as u32, cpu.regs[1] as u32, io);
    cpu.regs[0] = answer.eax.into();
    cpu.regs[3] = answer.ebx.into();
    cpu.regs[1] = answer.ecx.into();
    cpu.regs[2] = answer.edx.into();
    Ok(())
}
