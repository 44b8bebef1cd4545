//! System instructions and event delivery.
//!
//! | module | what |
//! |---|---|
//! | `deliver`, `gates` | exceptions, interrupts, traps; the IDT |
//! | `iret`, `far` | returns from handlers, far transfers, call gates |
//! | `tasks` | hardware task switches |
//! | `stack` | frames on stacks that may not be the current one |
//! | `segments`, `tables` | segment registers; GDT, LDT, IDT, TR |
//! | `control` | control registers, XCR0, PKRU, invalidation of translations |
//! | `syscall` | SYSCALL, SYSENTER, SWAPGS, FS and GS bases |
//! | `msr`, `cpuid` | model-specific registers; CPUID and feature bits |
//! | `flags`, `io`, `debug`, `misc` | CLI to POPF; ports; debug registers; the rest |
//! | `raw` | the host's TSC |
//!
//! Everything here runs on the vCPU's thread and takes no locks.

mod control;
mod cpuid;
mod debug;
pub(crate) mod deliver;
mod far;
mod flags;
mod gates;
mod io;
mod iret;
mod misc;
mod msr;
mod raw;
mod segments;
mod stack;
mod syscall;
mod tables;
mod tasks;

pub(crate) use cpuid::Output;
pub(crate) use syscall::fast_segments;

use crate::op::Handler;
use iced_x86::{Instruction, Mnemonic as M};

/// The handler of a system instruction.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    if instruction.is_call_far()
        || instruction.is_jmp_far()
        || instruction.is_call_far_indirect()
        || instruction.is_jmp_far_indirect()
    {
        return Some(far::transfer);
    }
    Some(match instruction.mnemonic() {
        M::Mov => return mov(instruction),
        M::Push if instruction.op0_register().is_segment_register() => segments::push_segment,
        M::Pop if instruction.op0_register().is_segment_register() => segments::pop_segment,
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => segments::load_far_pointer,
        M::Lar | M::Lsl => segments::lar_lsl,
        M::Verr | M::Verw => segments::verify,
        M::Arpl => segments::arpl,

        M::Int | M::Int1 | M::Int3 | M::Into => deliver::interrupt,
        M::Bound => deliver::bound,
        M::Iret | M::Iretd | M::Iretq => iret::iret,
        M::Retf => far::ret,

        M::Lgdt | M::Lidt => tables::load_table,
        M::Sgdt | M::Sidt => tables::store_table,
        M::Lldt => tables::lldt,
        M::Ltr => tables::ltr,
        M::Sldt | M::Str | M::Smsw => tables::store_word,
        M::Lmsw => tables::lmsw,

        M::Clts => control::clts,
        M::Invlpg => control::invlpg,
        M::Invpcid => control::invpcid,
        M::Invd | M::Wbinvd | M::Wbnoinvd => control::write_back,
        M::Xgetbv => control::xgetbv,
        M::Xsetbv => control::xsetbv,
        M::Rdpkru | M::Wrpkru => control::pkru,
        M::Stac | M::Clac => control::access_flag,

        M::Syscall => syscall::syscall,
        M::Sysret | M::Sysretq => syscall::sysret,
        M::Sysenter => syscall::sysenter,
        M::Sysexit | M::Sysexitq => syscall::sysexit,
        M::Swapgs => syscall::swapgs,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => syscall::segment_bases,

        M::Rdmsr => msr::rdmsr,
        M::Wrmsr => msr::wrmsr,
        M::Cpuid => cpuid::cpuid,

        M::Cli => flags::cli,
        M::Sti => flags::sti,
        M::Pushf | M::Pushfd | M::Pushfq => flags::pushf,
        M::Popf | M::Popfd | M::Popfq => flags::popf,

        M::In => io::input,
        M::Out => io::output,

        M::Hlt => misc::hlt,
        M::Vmcall | M::Vmmcall => misc::hypercall,
        M::Monitor => misc::monitor,
        M::Mwait => misc::mwait,
        M::Pause => misc::pause,
        M::Rdtsc => misc::rdtsc,
        M::Rdtscp => misc::rdtscp,
        M::Rdpid => misc::rdpid,
        M::Rdpmc => misc::rdpmc,
        M::Serialize => misc::serialize,
        M::Mfence => misc::fence,
        M::Clflush | M::Clflushopt | M::Clwb => misc::flush_line,

        M::Nop
        | M::Endbr32
        | M::Endbr64
        | M::Lfence
        | M::Sfence
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetch
        | M::Prefetchit0
        | M::Prefetchit1
        | M::Cldemote
        // Without shadow stacks these are hints (SDM 2B RDSSP), and C libraries use them as such.
        | M::Rdsspd
        | M::Rdsspq
        | M::Reservednop => misc::nothing,

        // Never offered: VMX, SVM, SMX, and leaving a system management mode that one is never in.
        M::Ud0
        | M::Ud1
        | M::Ud2
        | M::Rsm
        | M::Getsec
        | M::Vmlaunch
        | M::Vmresume
        | M::Vmxoff
        | M::Vmxon
        | M::Vmptrld
        | M::Vmptrst
        | M::Vmclear
        | M::Vmread
        | M::Vmwrite
        | M::Vmfunc
        | M::Invept
        | M::Invvpid
        | M::Vmload
        | M::Vmsave
        | M::Vmrun
        | M::Stgi
        | M::Clgi
        | M::Skinit
        | M::Invlpga
        | M::Invlpgb
        | M::Tlbsync
        | M::Enqcmd
        | M::Enqcmds
        | M::Ptwrite => misc::undefined,
        _ => return None,
    })
}

/// MOV with a segment, control or debug register.
fn mov(instruction: &Instruction) -> Option<Handler> {
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    Some(if to.is_segment_register() {
        segments::mov_to_segment
    } else if from.is_segment_register() {
        segments::mov_from_segment
    } else if to.is_cr() {
        control::mov_to_control
    } else if from.is_cr() {
        control::mov_from_control
    } else if to.is_dr() {
        debug::mov_to_debug
    } else if from.is_dr() {
        debug::mov_from_debug
    } else if to.is_tr() || from.is_tr() {
        misc::undefined
    } else {
        return None;
    })
}

/// What serializing instructions do to memory order: every store before is visible to all before anything after is done
/// (SDM 3A 8.3).
pub(crate) fn serialize() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}
