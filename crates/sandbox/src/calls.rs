//! The filter of system calls. What is forbidden fails with EPERM, so that a thread that tries it finds out and goes on.

use crate::{Needs, SandboxError, Sockets};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::env::consts::ARCH;

/// What no thread here ever needs.
const NEVER: &[c_long] = &[
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // What the system looks like.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Interfaces of the kernel in which much has been found.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_uselib,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_vmsplice,
];

/// What only those need who manage others' files.
const FILES: &[c_long] = &[
    libc::SYS_unshare,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
];

/// What only those need who make sockets.
const SOCKETS: &[c_long] =
    &[libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// A rule about the low half of one argument.
fn argument(number: u8, operation: SeccompCmpOp, value: u64) -> Result<Vec<SeccompRule>, SandboxError> {
    let condition = SeccompCondition::new(number, SeccompCmpArgLen::Dword, operation, value)?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}

fn forbidden(needs: &Needs) -> Result<Rules, SandboxError> {
    // An empty list: whatever the arguments are.
    let mut rules: Rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    if !needs.manages_files {
        rules.extend(FILES.iter().map(|call| (*call, Vec::new())));
    }
    // Threads, but no processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, argument(0, SeccompCmpOp::MaskedEq(thread), 0)?);
    match needs.sockets {
        Sockets::None => rules.extend(SOCKETS.iter().map(|call| (*call, Vec::new()))),
        Sockets::Unix => {
            rules.insert(libc::SYS_socket, argument(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?);
        }
        // Up to netlink, by which a process learns its addresses; what comes after is packets, ciphers, buses.
        Sockets::Internet => {
            rules.insert(libc::SYS_socket, argument(0, SeccompCmpOp::Gt, libc::AF_NETLINK as u64)?);
        }
    }
    Ok(rules)
}

fn filter(rules: Rules, errno: i32) -> Result<BpfProgram, SandboxError> {
    let arch = ARCH.try_into().map_err(|_| SandboxError::Architecture)?;
    let action = SeccompAction::Errno(errno as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()?)
}

/// Applies the filters to all threads.
pub(super) fn confine(needs: &Needs) -> Result<(), SandboxError> {
    let first = filter(forbidden(needs)?, libc::EPERM)?;
    // Its arguments are in memory, where a filter can't look; the C library then takes `clone`.
    let second = filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)?;
    apply_filter_all_threads(&first)?;
    apply_filter_all_threads(&second)?;
    Ok(())
}
