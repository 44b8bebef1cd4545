//! Control registers, XCR0, PKRU and what invalidates translations (SDM 3A 2.5, 2.6, 4.10.4; 2B MOV CRn).

use crate::cpu::{Cpu, Step, special};
use crate::native::xstate;
use crate::op::Op;
use engine::Platform;
use iced_x86::{Mnemonic, Register};
use x86::control::{cr0, cr4, efer, xcr0};
use x86::descriptor::system;
use x86::state::{MXCSR_INIT, seg};
use x86::{Exception, Rflags};

/// Bit 63 of a value for CR3 with PCIDs: keep the PCID's translations.
const NO_FLUSH: u64 = 1 << 63;

impl Cpu {
    /// Loads CR0 with all that follows: paging and long mode go on and off here (SDM 3A 9.8.5).
    pub(super) fn write_cr0(&mut self, value: u64, io: &mut dyn Platform) -> Step {
        let bad = Err(Exception::GP0.into());
        if value >> 32 != 0 {
            return bad;
        }
        let old = self.state.cr0;
        let new = value & cr0::DEFINED | cr0::ET;
        if new & cr0::PG != 0 && new & cr0::PE == 0 || new & cr0::NW != 0 && new & cr0::CD == 0 {
            return bad;
        }
        let changed = old ^ new;
        let mut efer = self.state.efer;
        let code = self.state.segments[seg::CS].attributes;
        if changed & cr0::PG != 0 {
            if new & cr0::PG != 0 && efer & efer::LME != 0 {
                let small_tss = matches!(self.state.tr.attributes.kind(), system::TSS16 | system::TSS16_BUSY);
                if self.state.cr4 & cr4::PAE == 0 || code.is_long() || small_tss {
                    return bad;
                }
                efer |= efer::LMA;
            } else if new & cr0::PG == 0 {
                if self.in_64_bit_mode() || self.state.cr4 & cr4::PCIDE != 0 {
                    return bad;
                }
                efer &= !efer::LMA;
            }
        }
        let legacy_pae = new & cr0::PG != 0 && self.state.cr4 & cr4::PAE != 0 && efer & efer::LMA == 0;
        if legacy_pae && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            let Some(pdptes) = self.read_pdptes(self.state.cr3, io) else { return bad };
            self.state.pdptes = pdptes;
        }
        self.state.cr0 = new;
        self.state.efer = efer;
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.tlb.flush();
        }
        self.update_mode();
        Ok(())
    }

    pub(crate) fn write_cr3(&mut self, value: u64, io: &mut dyn Platform) -> Step {
        let pcid = self.state.cr4 & cr4::PCIDE != 0;
        let value = if pcid { value & !NO_FLUSH } else { value };
        if self.long_mode && value & !self.physical_mask() != 0 {
            return Err(Exception::GP0.into());
        }
        if self.paging() && !self.long_mode && self.state.cr4 & cr4::PAE != 0 {
            let Some(pdptes) = self.read_pdptes(value, io) else { return Err(Exception::GP0.into()) };
            self.state.pdptes = pdptes;
        }
        self.state.cr3 = value;
        self.tlb.flush_local();
        Ok(())
    }

    /// CR4 bits that the guest's CPUID offers.
    fn cr4_offered(&self) -> u64 {
        let basic = self.setup.cpuid.stored(1, 0);
        let extended = self.setup.cpuid.stored(7, 0);
        let bit = |register: u32, number: u32, bits: u64| if register >> number & 1 != 0 { bits } else { 0 };
        bit(basic.edx, 1, cr4::VME | cr4::PVI)
            | bit(basic.edx, 4, cr4::TSD)
            | bit(basic.edx, 2, cr4::DE)
            | bit(basic.edx, 3, cr4::PSE)
            | bit(basic.edx, 6, cr4::PAE)
            | bit(basic.edx, 7, cr4::MCE)
            | bit(basic.edx, 13, cr4::PGE)
            | cr4::PCE
            | bit(basic.edx, 24, cr4::OSFXSR)
            | bit(basic.edx, 25, cr4::OSXMMEXCPT)
            | bit(basic.ecx, 17, cr4::PCIDE)
            | bit(basic.ecx, 26, cr4::OSXSAVE)
            | bit(extended.ebx, 0, cr4::FSGSBASE)
            | bit(extended.ebx, 7, cr4::SMEP)
            | bit(extended.ebx, 20, cr4::SMAP)
            | bit(extended.ecx, 2, cr4::UMIP)
            | bit(extended.ecx, 3, cr4::PKE)
            | bit(extended.ecx, 16, cr4::LA57)
    }

    fn write_cr4(&mut self, value: u64, io: &mut dyn Platform) -> Step {
        let bad = Err(Exception::GP0.into());
        if value & !self.cr4_offered() != 0 {
            return bad;
        }
        let changed = self.state.cr4 ^ value;
        if self.long_mode && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0) {
            return bad;
        }
        let sets_pcide = changed & value & cr4::PCIDE != 0;
        if sets_pcide && (!self.long_mode || self.state.cr3 & 0xfff != 0) {
            return bad;
        }
        const TRANSLATION: u64 =
            cr4::PAE | cr4::PSE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE | cr4::LA57;
        if self.paging()
            && !self.long_mode
            && value & cr4::PAE != 0
            && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0
        {
            let Some(pdptes) = self.read_pdptes(self.state.cr3, io) else { return bad };
            self.state.pdptes = pdptes;
        }
        self.state.cr4 = value;
        if changed & TRANSLATION != 0 {
            self.tlb.flush();
        }
        self.update_mode();
        Ok(())
    }

    /// EFER, whose LMA bit is read-only (SDM 3A 2.2.1).
    pub(super) fn write_efer(&mut self, value: u64) -> Step {
        let extended = self.setup.cpuid.stored(0x8000_0001, 0).edx;
        let bit = |number: u32, bits: u64| if extended >> number & 1 != 0 { bits } else { 0 };
        let mut offered = bit(11, efer::SCE) | bit(20, efer::NXE) | bit(29, efer::LME | efer::LMA);
        if !self.is_intel() {
            offered |= bit(25, efer::FFXSR);
            if self.setup.cpuid.stored(0x8000_0021, 0).eax >> 8 & 1 != 0 {
                // Remembered; there is nothing to restrict.
                offered |= efer::AIBRSE;
            }
        }
        if value & !offered != 0 {
            return Err(Exception::GP0.into());
        }
        let old = self.state.efer;
        if (old ^ value) & efer::LME != 0 && self.paging() {
            return Err(Exception::GP0.into());
        }
        self.state.efer = value & !efer::LMA | old & efer::LMA;
        if (old ^ value) & efer::NXE != 0 {
            self.tlb.flush();
        }
        self.update_mode();
        Ok(())
    }

    /// XCR0's components that CPUID offers (SDM 1 13.2).
    pub(super) fn xcr0_offered(&self) -> u64 {
        let leaf = self.setup.cpuid.stored(0xd, 0);
        u64::from(leaf.eax) | u64::from(leaf.edx) << 32
    }
}

/// Whether XCR0 may hold a value, apart from what is offered (SDM 1 13.3).
fn xcr0_is_valid(value: u64) -> bool {
    let avx512 = value & xcr0::AVX512;
    value & xcr0::X87 != 0
        && (value & xcr0::AVX == 0 || value & xcr0::SSE != 0)
        && (avx512 == 0 || avx512 == xcr0::AVX512 && value & xcr0::AVX != 0)
        // The bound registers, and the tile registers, go in pairs.
        && matches!(value >> 3 & 3, 0 | 3)
        && matches!(value >> 17 & 3, 0 | 3)
}

/// MOV to a control register.
pub(super) fn mov_to_control(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    super::serialize();
    let register = op.instruction().op0_register();
    if !matches!(register, Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8) {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let value = cpu.operand(op, 1, io)?;
    match register {
        Register::CR0 => cpu.write_cr0(value, io)?,
        Register::CR2 => cpu.state.cr2 = value,
        Register::CR3 => cpu.write_cr3(value, io)?,
        Register::CR4 => cpu.write_cr4(value, io)?,
        _ => {
            if value > 15 {
                return Err(Exception::GP0.into());
            }
            io.set_cr8(value as u8);
            cpu.special |= special::RECHECK;
        }
    }
    Ok(())
}

/// MOV from a control register.
pub(super) fn mov_from_control(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let register = op.instruction().op1_register();
    if !matches!(register, Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8) {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let value = match register {
        Register::CR0 => cpu.state.cr0,
        Register::CR2 => cpu.state.cr2,
        Register::CR3 => cpu.state.cr3,
        Register::CR4 => cpu.state.cr4,
        _ => io.cr8().into(),
    };
    cpu.set_operand(op, 0, value, io)
}

/// CLTS.
pub(super) fn clts(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.require_cpl0()?;
    cpu.state.cr0 &= !cr0::TS;
    Ok(())
}

/// INVLPG.
pub(super) fn invlpg(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    super::serialize();
    cpu.require_cpl0()?;
    let offset = cpu.effective_address(op);
    let mut address = cpu.segment_base[usize::from(op.segment & 7)].wrapping_add(offset);
    if !cpu.long_mode {
        address &= 0xffff_ffff;
    } else if !cpu.is_canonical(address) {
        // A no-operation then (SDM 2A INVLPG).
        return Ok(());
    }
    cpu.tlb.flush_address(address);
    Ok(())
}

/// INVPCID (SDM 2A INVPCID).
pub(super) fn invpcid(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    super::serialize();
    if !cpu.offers(7, 0, super::Output::Ebx, 10) {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let kind = cpu.operand(op, 0, io)?;
    let at = cpu.effective_address(op);
    let pcid: u64 = cpu.read(op.segment, at, io)?;
    let address: u64 = cpu.read(op.segment, at.wrapping_add(8) & op.address_mask, io)?;
    let pcide = cpu.state.cr4 & cr4::PCIDE != 0;
    let bad = match kind {
        0 => pcid >> 12 != 0 || !pcide && pcid != 0 || !cpu.is_canonical(address),
        1 => pcid >> 12 != 0 || !pcide && pcid != 0,
        2 | 3 => pcid >> 12 != 0,
        _ => true,
    };
    if bad {
        return Err(Exception::GP0.into());
    }
    // Only the current PCID's translations are ever held.
    let current = !pcide || pcid == cpu.state.cr3 & 0xfff;
    match kind {
        0 if current => cpu.tlb.flush_address(address),
        1 if current => cpu.tlb.flush_local(),
        0 | 1 => {}
        2 => cpu.tlb.flush(),
        _ => cpu.tlb.flush_local(),
    }
    Ok(())
}

/// INVD, WBINVD, WBNOINVD: there are no caches to write back.
pub(super) fn write_back(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    super::serialize();
    cpu.require_cpl0()
}

impl Cpu {
    fn require_xsave(&self) -> Step {
        if self.state.cr4 & cr4::OSXSAVE == 0 { Err(Exception::UD.into()) } else { Ok(()) }
    }
}

/// XGETBV: XCR0, and by ECX = 1 those of its components that aren't in their initial configuration (SDM 1 13.6). MXCSR
/// counts as SSE's there, as on Intel's CPUs.
pub(super) fn xgetbv(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.require_xsave()?;
    let value = match cpu.regs[1] as u32 {
        0 => cpu.state.vector.xcr0,
        1 if cpu.offers(0xd, 1, super::Output::Eax, 2) => {
            let vector = &cpu.state.vector;
            let sse = u64::from(vector.mxcsr != MXCSR_INIT) << 1;
            vector.xcr0 & (xstate::in_use(vector) | sse)
        }
        _ => return Err(Exception::GP0.into()),
    };
    cpu.set_edx_eax(value);
    Ok(())
}

/// XSETBV.
pub(super) fn xsetbv(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.require_xsave()?;
    cpu.require_cpl0()?;
    let value = cpu.edx_eax();
    if cpu.regs[1] as u32 != 0 || value & !cpu.xcr0_offered() != 0 || !xcr0_is_valid(value) {
        return Err(Exception::GP0.into());
    }
    cpu.state.vector.xcr0 = value;
    Ok(())
}

/// RDPKRU, WRPKRU (SDM 2B).
pub(super) fn pkru(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    if cpu.state.cr4 & cr4::PKE == 0 {
        return Err(Exception::UD.into());
    }
    if cpu.regs[1] as u32 != 0 {
        return Err(Exception::GP0.into());
    }
    if op.instruction().mnemonic() == Mnemonic::Rdpkru {
        cpu.set_edx_eax(cpu.state.vector.pkru.into());
        return Ok(());
    }
    if cpu.regs[2] as u32 != 0 {
        return Err(Exception::GP0.into());
    }
    let value = cpu.regs[0] as u32;
    if value != cpu.state.vector.pkru {
        cpu.state.vector.pkru = value;
        // Cached rights have the keys in them.
        cpu.tlb.flush();
    }
    Ok(())
}

/// STAC, CLAC.
pub(super) fn access_flag(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    if !cpu.offers(7, 0, super::Output::Ebx, 20) || cpu.cpl() != 0 {
        return Err(Exception::UD.into());
    }
    cpu.state.rflags.set(Rflags::AC, op.instruction().mnemonic() == Mnemonic::Stac);
    cpu.select_tlb();
    Ok(())
}
