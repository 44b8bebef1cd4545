//! The architectural state of one vCPU, as an engine, a debugger or a saved machine sees it.

use crate::control::{dr6, dr7};
use crate::descriptor::{Attributes, RawDescriptor, Selector};
use crate::flags::Rflags;
use serde::{Deserialize, Serialize};

/// General registers in encoding order.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// Segment registers in encoding order; index into [`CpuState::segments`].
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// A segment register with its hidden part (SDM 3A 3.4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct Segment {
    /// Base, a linear address.
    pub base: u64,
    /// Limit in bytes, inclusive, granularity applied.
    pub limit: u32,
    /// Attributes of the descriptor it was loaded from. All zero (so: not present) after a null selector.
    pub attributes: Attributes,
    /// The visible selector.
    pub selector: Selector,
}

impl Segment {
    /// The register after loading `selector`, whose descriptor is `raw`.
    #[must_use]
    pub const fn from_descriptor(selector: Selector, raw: RawDescriptor) -> Self {
        Self { base: raw.base(), limit: raw.limit(), attributes: raw.attributes(), selector }
    }

    /// What a real-mode or virtual-8086 load leaves: base = selector * 16 (SDM 3B 20.1.1).
    #[must_use]
    pub const fn real_mode(selector: u16, attributes: Attributes) -> Self {
        Self { base: (selector as u64) << 4, limit: 0xffff, attributes, selector: Selector(selector) }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// x87, SSE, AVX and AVX-512 registers.
///
/// Kept apart, not in a memory image of XSAVE: the images are made when a guest asks for one.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct VectorState {
    /// ZMM0-31; YMM and XMM are their low parts.
    pub zmm: [[u8; 64]; 32],
    /// Opmask registers k0-k7.
    pub k: [u64; 8],
    /// The legacy FXSAVE64 region's first 160 bytes: FCW, FSW, FTW (abridged), FOP, FIP, FDP, MXCSR, mask, ST0-7.
    /// MXCSR here is not used; see [`VectorState::mxcsr`].
    pub x87: [u8; 160],
    /// SSE control and status.
    pub mxcsr: u32,
    /// Protection-key rights for user pages.
    pub pkru: u32,
    /// XCR0.
    pub xcr0: u64,
}

/// x87 control word after FNINIT (SDM 1 8.1.5).
pub const FCW_INIT: u16 = 0x37f;
/// MXCSR after reset (SDM 1 10.2.3).
pub const MXCSR_INIT: u32 = 0x1f80;

impl Default for VectorState {
    fn default() -> Self {
        let mut x87 = [0; 160];
        x87[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
        Self { zmm: [[0; 64]; 32], k: [0; 8], x87, mxcsr: MXCSR_INIT, pkru: 0, xcr0: 1 }
    }
}

/// What a vCPU is doing (SDM 3B 24.4.2 names the same states).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Activity {
    /// Executes instructions.
    #[default]
    Running,
    /// HLT or MWAIT: an event wakes it.
    Halted,
    /// After INIT: only a start-up IPI wakes it.
    WaitForStartup,
    /// After a triple fault: only reset or INIT wakes it.
    Shutdown,
}

/// Every architectural register of one vCPU that is not its local APIC's.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15: see [`gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer (an offset in CS).
    pub rip: u64,
    /// Flags.
    pub rflags: Rflags,
    /// ES, CS, SS, DS, FS, GS: see [`seg`].
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// Current privilege level, 0..=3.
    pub cpl: u8,
    /// CR0.
    pub cr0: u64,
    /// CR2: address of the last page fault.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The four PAE page-directory-pointer entries, loaded with CR3 (SDM 3A 4.4.1).
    pub pdptes: [u64; 4],
    /// DR0-DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// Guest TSC = host TSC + this, wrapping.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// No interrupt is taken before the next instruction has completed (after STI; SDM 2B STI).
    pub sti_shadow: bool,
    /// Nor is a debug trap (after MOV SS, POP SS; SDM 3A 6.8.3).
    pub mov_ss_shadow: bool,
    /// Debug traps that wait for the next instruction boundary: 0, or bit 12 with DR6's B0-B3 (SDM 3C 24.4.2).
    pub pending_debug: u64,
    /// NMIs are blocked until IRET (SDM 3A 6.7.1).
    pub nmi_blocked: bool,
    /// What the vCPU is doing.
    pub activity: Activity,
    /// x87, SSE, AVX, AVX-512.
    pub vector: VectorState,
}

/// IA32_PAT after reset (SDM 3A 11.12.4).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl Default for CpuState {
    /// The state after power-up (SDM 3A table 9-1): real mode at f000:fff0.
    fn default() -> Self {
        let data = Segment::real_mode(0, Attributes(0x93));
        let mut segments = [data; 6];
        segments[seg::CS] = Segment {
            base: 0xffff_0000,
            limit: 0xffff,
            attributes: Attributes(0x9b),
            selector: Selector(0xf000),
        };
        let mut registers = [0; 16];
        registers[gpr::RDX] = 0x600;
        Self {
            gpr: registers,
            rip: 0xfff0,
            rflags: Rflags::ONE,
            segments,
            ldtr: Segment { limit: 0xffff, attributes: Attributes(0x82), ..Segment::default() },
            tr: Segment { limit: 0xffff, attributes: Attributes(0x8b), ..Segment::default() },
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cpl: 0,
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdptes: [0; 4],
            dr: [0; 4],
            dr6: dr6::RESET,
            dr7: dr7::RESET,
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: PAT_RESET,
            tsc_aux: 0,
            xss: 0,
            spec_ctrl: 0,
            tsc_offset: 0,
            tsc_adjust: 0,
            sti_shadow: false,
            mov_ss_shadow: false,
            pending_debug: 0,
            nmi_blocked: false,
            activity: Activity::Running,
            vector: VectorState::default(),
        }
    }
}
