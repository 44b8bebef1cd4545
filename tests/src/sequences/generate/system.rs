//! Rings, events, ports, control registers, segments: what isn't a program's own business.

use super::{Builder, RAX, RCX, RDX};
use crate::cases::platform::{INTERRUPT_PORT, NMI_PORT};
use crate::sequences::furnish::selector;
use crate::sequences::kernel::{self, service};
use crate::sequences::layout::{ABSENT, KERNEL, READ_ONLY, STACK_PAGE, STACK_TOP, USER, data};
use crate::sequences::program::Target;
use x86::{Rflags, msr};

/// An address that isn't canonical.
const NOT_CANONICAL: u64 = 0x0000_8000_0000_0000;
/// An address without a page.
const NOWHERE: u64 = 0x3000_0000;

impl Builder<'_> {
    pub(super) fn system_item(&mut self) {
        match self.random.below(24) {
            0 | 1 => {
                let to = self.random.pick(&[service::TO_USER, service::TO_KERNEL]);
                self.asm.raw(&[0xcd, to]);
            }
            2 | 3 if self.wide() => {
                self.asm.raw(&[0x0f, 0x05]);
            }
            4 if self.wide() => self.sysret(),
            5 | 6 if self.wide() => self.iret(),
            5..=7 => self.iret32(),
            8 | 9 if self.wide() => self.bases(),
            10 => {
                let byte = self.random.pick(&[0xfa, 0xfb]);
                self.asm.raw(&[byte]); // cli, sti
            }
            11 | 12 => self.port(),
            13..=15 => self.event(),
            16..=18 => self.flags(),
            19 => self.task_switched(),
            20 => self.segment(),
            21 | 22 => self.interrupt(),
            _ => self.query(),
        }
    }

    fn sysret(&mut self) {
        let there = self.asm.label(Rflags::empty());
        self.address_of(RAX, there);
        self.view_from(USER);
        self.asm.raw(&[0x89, 0xc1]); // mov ecx, eax
        self.asm.raw(&[0x9c]);
        self.asm.raw(&[0x41, 0x5b]); // pop r11
        self.asm.raw(&[0x48, 0x0f, 0x07]);
        self.asm.need_defined();
        self.asm.bind(there);
    }

    /// IRETQ to a label, in the same ring or out to ring 3.
    fn iret(&mut self) {
        let there = self.asm.label(Rflags::empty());
        let (view, code, stack) = if self.random.percent(50) {
            (USER, selector::USER64, selector::USER_DATA)
        } else {
            (KERNEL, selector::CODE64, selector::STACK64)
        };
        self.asm.raw(&[0x89, 0xe0]); // mov eax, esp
        self.view_from(view);
        self.asm.raw32(&[0x68], u64::from(stack));
        self.asm.raw(&[0x50]);
        self.asm.raw(&[0x9c]);
        self.asm.raw32(&[0x68], u64::from(code));
        self.address_of(RAX, there);
        self.view_from(view);
        self.asm.raw(&[0x50]);
        self.asm.need_defined();
        self.asm.raw(&[0x48, 0xcf]);
        self.asm.need_defined();
        self.asm.bind(there);
    }

    /// IRET within ring 3, or within 32-bit ring 0.
    fn iret32(&mut self) {
        if self.wide() {
            return self.iret();
        }
        let there = self.asm.label(Rflags::empty());
        self.asm.raw(&[0x9c]);
        self.asm.raw(&[0x0e]); // push cs
        self.address_of(RAX, there);
        self.asm.raw(&[0x50]);
        self.asm.need_defined();
        self.asm.raw(&[0xcf]);
        self.asm.need_defined();
        self.asm.bind(there);
    }

    /// FS and GS bases: SWAPGS, MSRs, WRFSBASE and its kin.
    fn bases(&mut self) {
        let base = match self.random.below(10) {
            0 => NOT_CANONICAL,
            1..=5 => self.world.home() + data(0) + 0x800,
            _ => USER + data(1) + self.random.below(64) * 8,
        };
        match self.random.below(8) {
            0..=2 => {
                self.asm.raw(&[0x0f, 0x01, 0xf8]); // swapgs
            }
            3 | 4 => {
                let number =
                    self.random.pick(&[msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE, msr::TSC_AUX]);
                self.set(RCX, u64::from(number));
                self.set(RAX, base & 0xffff_ffff);
                self.set(RDX, base >> 32);
                self.asm.raw(&[0x0f, 0x30]);
            }
            5 => {
                let entry = kernel::syscall_entry(self.random.percent(50));
                self.set(RCX, u64::from(msr::LSTAR));
                self.set(RAX, entry);
                self.set(RDX, 0);
                self.asm.raw(&[0x0f, 0x30]);
            }
            6 => {
                let number =
                    self.random.pick(&[msr::FS_BASE, msr::GS_BASE, msr::EFER, msr::STAR, 0x1234, 0x1235]);
                self.set(RCX, u64::from(number));
                self.asm.raw(&[0x0f, 0x32]);
            }
            _ => {
                // rdfsbase, rdgsbase, wrfsbase, wrgsbase
                let register = self.scratch();
                let operation = self.random.below(4) as u8;
                if operation >= 2 {
                    self.set(register, base);
                }
                self.asm.raw(&[0xf3, 0x48, 0x0f, 0xae, 0xc0 | operation << 3 | register]);
            }
        }
    }

    fn port(&mut self) {
        match self.random.below(4) {
            0 => {
                let port = self.random.pick(&[0x60, 0x61, 0x80]);
                let opcode = self.random.pick(&[0xe4, 0xe5, 0xe6, 0xe7]);
                self.asm.raw(&[opcode, port]);
            }
            _ => {
                let port = 0x3f0 + self.random.below(16);
                self.set(RDX, port);
                let bytes: &[u8] =
                    self.random.pick(&[&[0xec][..], &[0xed], &[0xee], &[0xef], &[0x66, 0xed], &[0x66, 0xef]]);
                self.asm.raw(bytes);
            }
        }
    }

    /// The program has the machine raise an interrupt or an NMI.
    fn event(&mut self) {
        let held = self.random.percent(30);
        if held {
            self.asm.raw(&[0xfa]);
        }
        let nmi = self.random.percent(20);
        self.set(RDX, u64::from(if nmi { NMI_PORT } else { INTERRUPT_PORT }));
        let vector = 0x30 + self.random.below(8);
        self.set(RAX, vector);
        self.asm.raw(&[0xee]);
        if held {
            for _ in 0..self.random.below(3) {
                self.plain();
            }
            self.asm.raw(&[0xfb]);
            if self.random.percent(20) {
                self.asm.raw(&[0xf4]); // the interrupt ends it
            }
        }
    }

    /// Changes flags by PUSHF and POPF, TF among them.
    fn flags(&mut self) {
        let flag = match self.random.below(10) {
            0..=3 => Rflags::TF,
            4 => Rflags::DF,
            5 => Rflags::AC,
            6 => Rflags::ID,
            7 => Rflags::NT,
            8 => Rflags::IF,
            _ => Rflags::CF | Rflags::OF,
        };
        self.asm.raw(&[0x9c]);
        self.asm.raw32(&[0x81, 0x34, 0x24], flag.bits()); // xor dword [rsp], ..
        self.asm.raw(&[0x9d]);
    }

    /// CR0.TS, after which vector instructions raise #NM, and CR8.
    fn task_switched(&mut self) {
        if self.wide() && self.random.percent(20) {
            let value = self.random.below(18);
            self.set(RAX, value);
            self.asm.raw(&[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
            self.asm.raw(&[0x44, 0x0f, 0x20, 0xc0]);
            return;
        }
        self.asm.raw(&[0x0f, 0x20, 0xc0]);
        self.asm.raw32(&[0x0d], x86::control::cr0::TS);
        self.asm.raw(&[0x0f, 0x22, 0xc0]);
        for _ in 0..1 + self.random.below(3) {
            self.plain();
        }
        self.asm.raw(&[0x0f, 0x06]); // clts
    }

    /// Loads and stores of segment registers.
    fn segment(&mut self) {
        let long = self.world.mode.is_long();
        // A 32-bit system's handlers use the program's DS.
        let choices: &[u16] = if long {
            &[0, 3, selector::USER_DATA, selector::DATA, selector::TSS, 0xfff8]
        } else {
            &[selector::USER_DATA, selector::TSS, 0xfff8]
        };
        let value = self.random.pick(choices);
        match self.random.below(6) {
            0 | 1 => {
                self.set(RAX, u64::from(value));
                // es, ds; ss casts a shadow.
                let register = self.random.pick(&[0xc0, 0xd8]);
                self.asm.raw(&[0x8e, register]);
            }
            2 => {
                let own = if self.world.user { selector::USER_DATA } else { selector::DATA };
                self.set(RAX, u64::from(own));
                self.asm.raw(&[0x8e, 0xd0]);
                self.plain();
            }
            3 => {
                let from = self.random.pick(&[0xc0, 0xc8, 0xd0, 0xd8]);
                self.asm.raw(&[0x8c, from]);
            }
            4 => {
                self.set(RAX, u64::from(value));
                // lar, lsl
                let opcode = self.random.pick(&[0x02, 0x03]);
                self.asm.need_defined();
                self.asm.raw(&[0x0f, opcode, 0xc8]);
            }
            _ => {
                // verr, verw, smsw, str
                self.set(RAX, u64::from(value));
                let bytes: [u8; 3] = self.random.pick(&[
                    [0x0f, 0x00, 0xe0],
                    [0x0f, 0x00, 0xe8],
                    [0x0f, 0x01, 0xe0],
                    [0x0f, 0x00, 0xc8],
                ]);
                self.asm.raw(&bytes);
            }
        }
    }

    /// Software interrupts and instructions that are exceptions.
    fn interrupt(&mut self) {
        match self.random.below(12) {
            0..=2 => {
                self.asm.need_defined();
                self.asm.raw(&[0xcc]);
            }
            3 | 4 => {
                let vector = self.random.pick(&[3, 4, 13, 14, 0x30, 0x43, 0x48]);
                self.asm.need_defined();
                self.asm.raw(&[0xcd, vector]);
            }
            5 => {
                self.asm.need_defined();
                self.asm.raw(&[0xf1]);
            }
            6 | 7 => {
                self.asm.need_defined();
                self.asm.raw(&[0x0f, 0x0b]);
            }
            8 if self.random.percent(20) => {
                self.asm.raw(&[0xf4]);
            }
            9 if !self.wide() => {
                self.asm.raw(&[0xce]); // into
            }
            _ => {
                // A privileged one.
                let bytes: &[u8] =
                    self.random.pick(&[&[0x0f, 0x09][..], &[0x0f, 0x20, 0xd0], &[0x0f, 0x21, 0xf8]]);
                self.asm.raw(bytes);
            }
        }
    }

    /// What the processor says of itself.
    fn query(&mut self) {
        match self.random.below(2) {
            0 => {
                self.set(RCX, 0);
                self.asm.raw(&[0x0f, 0x01, 0xd0]); // xgetbv
            }
            _ => {
                // CPUID, with RBX kept: it is a pointer.
                self.set(RAX, 1);
                if self.wide() {
                    self.asm.raw(&[0x53]);
                    self.asm.raw(&[0x0f, 0xa2]);
                    self.asm.raw(&[0x5b]);
                } else {
                    self.plain();
                }
            }
        }
    }

    /// Jumps that lead nowhere, and stacks that are none.
    pub(super) fn wild_item(&mut self) {
        let wide = self.wide();
        let home = self.world.home();
        let register = self.scratch();
        if self.random.percent(55) {
            let mut to = match self.random.below(8) {
                0 | 1 => NOWHERE + self.random.below(0x1000),
                2 | 3 if wide => NOT_CANONICAL + self.random.below(0x1000),
                4 => home + data(ABSENT) + self.random.below(0x1000),
                _ => home + data(ABSENT) + 0xffe,
            };
            if !wide {
                to &= 0xffff_ffff;
            }
            self.set(register, to);
            self.asm.need_defined();
            match self.random.below(3) {
                0 => self.asm.raw(&[0xff, 0xe0 | register]),
                1 => self.asm.raw(&[0xff, 0xd0 | register]),
                _ => {
                    self.asm.raw(&[0x50 | register]);
                    self.asm.raw(&[0xc3])
                }
            };
            return;
        }
        if !self.world.mode.is_long() || !self.random.percent(90) {
            // An address no register holds by accident.
            self.set(register, if wide { NOT_CANONICAL } else { 0xffff_fffe });
            let opcode = self.random.pick(&[0x8b, 0x89, 0x01]);
            let rex: &[u8] = if wide { &[0x48] } else { &[] };
            self.asm.raw(&[rex, &[opcode, register]].concat());
            return;
        }
        let top = match self.random.below(8) {
            0 => home + data(STACK_PAGE + 2) + 4,
            1 => home + data(READ_ONLY) + 0x10,
            2 => home + data(ABSENT) + 0x800,
            3 if wide => NOT_CANONICAL,
            4 => home + STACK_TOP + self.random.below(8),
            5 => home + data(STACK_PAGE) + 4,
            6 => home + data(2) + 2,
            _ => home + data(1),
        };
        self.set(4, top);
        for _ in 0..1 + self.random.below(3) {
            match self.random.below(4) {
                0 => self.asm.raw(&[0x50]),
                1 => self.asm.raw(&[0x5a]),
                2 => self.asm.raw(&[0x9c]),
                _ => {
                    self.call_function();
                    true
                }
            };
        }
        self.address(4, Target::Offset(STACK_TOP));
    }
}
