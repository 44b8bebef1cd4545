//! The KVM probe: a few instructions of 64-bit guest code with paging, SSE2, BMI2 and an interrupt gate.
//!
//! Called in a process of its own. What it checks is what stock kernels do early; a KVM that can't do it is of no use,
//! whatever its ioctls answer. No threads.
#![expect(unsafe_code, reason = "KVM takes guest memory as an address")]

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ptr;

/// Guest memory: 2 MiB from 0, mapped to itself by one large page.
const MEMORY: usize = 2 << 20;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const GDT: usize = 0x4000;
const IDT: usize = 0x5000;
const CODE: usize = 0x6000;
const HANDLER: usize = 0x7000;
const STACK: u64 = 0x9000;

const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;
/// The port that the code writes its results to, and the results.
const PORT: u16 = 0x80;
const EXPECTED: u32 = 0x0002_4680 + 1;

const CODE_BYTES: &[u8] = &[
    0xb8, 0x34, 0x12, 0x00, 0x00, // mov eax, 0x1234
    0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx, 4
    0xc4, 0xe2, 0xf1, 0xf7, 0xc0, // shlx rax, rax, rcx
    0x66, 0x0f, 0x6e, 0xc0, // movd xmm0, eax
    0x66, 0x0f, 0xfe, 0xc0, // paddd xmm0, xmm0
    0x66, 0x0f, 0x7e, 0xc0, // movd eax, xmm0
    0xcc, // int3
    0xe7, PORT as u8, // out PORT, eax
    0xf4,       // hlt
];
/// The same without BMI2, for hosts that don't have it.
const CODE_BYTES_OLD: &[u8] = &[
    0xb8, 0x40, 0x23, 0x01, 0x00, // mov eax, 0x12340
    0x66, 0x0f, 0x6e, 0xc0, // movd xmm0, eax
    0x66, 0x0f, 0xfe, 0xc0, // paddd xmm0, xmm0
    0x66, 0x0f, 0x7e, 0xc0, // movd eax, xmm0
    0xcc, // int3
    0xe7, PORT as u8, // out PORT, eax
    0xf4,       // hlt
];
const HANDLER_BYTES: &[u8] = &[
    0xff, 0xc0, // inc eax
    0x48, 0xcf, // iretq
];

/// Guest memory, unmapped when dropped.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Result<Memory> {
        // SAFETY: a fresh anonymous mapping wherever the kernel likes.
        let at = unsafe {
            mmap_anonymous(ptr::null_mut(), MEMORY, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }
        .context("no memory for a guest")?;
        Ok(Memory(at.cast()))
    }

    /// Before the guest runs.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: within the mapping, which nothing else uses yet.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our mapping; the guest that used it is gone, since it was made later and is dropped earlier.
        let _ = unsafe { munmap(self.0.cast(), MEMORY) };
    }
}

/// Runs it.
///
/// # Errors
/// How far it came.
pub(super) fn run_guest_code() -> Result<()> {
    let kvm = Kvm::new().context("/dev/kvm doesn't open")?;
    let mut memory = Memory::new()?;
    let has_bmi2 = std::arch::is_x86_feature_detected!("bmi2");
    memory.put(CODE, if has_bmi2 { CODE_BYTES } else { CODE_BYTES_OLD });
    memory.put(HANDLER, HANDLER_BYTES);
    fill_tables(&mut memory);

    let vm = kvm.create_vm().context("no virtual machine")?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.0 as u64,
    };
    // SAFETY: the mapping is as large as the region and outlives the virtual machine.
    unsafe { vm.set_user_memory_region(region) }.context("no guest memory")?;
    let mut vcpu = vm.create_vcpu(0).context("no vCPU")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("no CPUID")?;
    vcpu.set_cpuid2(&cpuid).context("CPUID refused")?;

    let segment = |selector: u16, kind: u8, long: u8| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..kvm_segment::default()
    };
    let mut special = vcpu.get_sregs().context("no registers")?;
    special.cs = segment(CODE_SELECTOR, 11, 1);
    let data = segment(DATA_SELECTOR, 3, 0);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.gdt.base = GDT as u64;
    special.gdt.limit = 3 * 8 - 1;
    special.idt.base = IDT as u64;
    special.idt.limit = 256 * 16 - 1;
    special.cr3 = PML4 as u64;
    special.cr4 = 1 << 5 | 1 << 9 | 1 << 10; // PAE, OSFXSR, OSXMMEXCPT
    special.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31; // PE, MP, ET, NE, PG
    special.efer = 1 << 8 | 1 << 10; // LME, LMA
    vcpu.set_sregs(&special).context("long mode refused")?;
    let mut registers = vcpu.get_regs().context("no registers")?;
    registers.rip = CODE as u64;
    registers.rsp = STACK;
    registers.rflags = 2;
    vcpu.set_regs(&registers).context("registers refused")?;

    match vcpu.run().context("the first instructions don't run")? {
        VcpuExit::IoOut(PORT, data) => {
            if data == EXPECTED.to_le_bytes() {
                return Ok(());
            }
            bail!("its instructions give wrong results ({data:02x?})");
        }
        VcpuExit::InternalError => bail!("an internal error of KVM (it can't emulate an instruction)"),
        VcpuExit::Shutdown => bail!("a triple fault where there should be none"),
        VcpuExit::FailEntry(reason, _) => bail!("the CPU refuses to enter the guest (reason {reason:#x})"),
        other => bail!("an unexpected exit: {other:?}"),
    }
}

/// Page tables (SDM 3A 4.5), a GDT (3A 3.4.5) and an IDT with the breakpoint's gate (3A 7.14.1).
fn fill_tables(memory: &mut Memory) {
    const PRESENT_WRITABLE: usize = 3;
    const LARGE: usize = 1 << 7;
    for (at, entry) in
        [(PML4, PDPT | PRESENT_WRITABLE), (PDPT, PD | PRESENT_WRITABLE), (PD, PRESENT_WRITABLE | LARGE)]
    {
        memory.put(at, &(entry as u64).to_le_bytes());
    }
    memory.put(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    memory.put(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    let offset = HANDLER as u64;
    let gate = offset & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e << 40 | (offset >> 16 & 0xffff) << 48;
    memory.put(IDT + 3 * 16, &gate.to_le_bytes());
}
