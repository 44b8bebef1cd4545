//! A vCPU's registers as text, in the order in which people look for them. For messages about a guest that died.

use crate::CpuState;
use std::fmt;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

impl fmt::Display for CpuState {
    /// Several lines, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rip {:016x}  rflags {:08x}  cpl {}", self.rip, self.rflags.bits(), self.cpl)?;
        for (names, values) in NAMES.chunks(4).zip(self.gpr.chunks(4)) {
            let row: Vec<String> =
                names.iter().zip(values).map(|(name, value)| format!("{name:<3} {value:016x}")).collect();
            writeln!(f, "{}", row.join("  "))?;
        }
        for (name, segment) in
            SEGMENTS.iter().zip(&self.segments).chain([(&"ldt", &self.ldtr), (&"tr", &self.tr)])
        {
            writeln!(
                f,
                "{name:<3} {:04x}  base {:016x}  limit {:08x}  attributes {:04x}",
                segment.selector.0, segment.base, segment.limit, segment.attributes.0
            )?;
        }
        writeln!(f, "gdt base {:016x}  limit {:04x}", self.gdtr.base, self.gdtr.limit)?;
        writeln!(f, "idt base {:016x}  limit {:04x}", self.idtr.base, self.idtr.limit)?;
        write!(
            f,
            "cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}",
            self.cr0, self.cr2, self.cr3, self.cr4, self.efer
        )
    }
}
