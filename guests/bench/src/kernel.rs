//! What makes the kernel work: system calls, processes, mappings, signals, files of a tmpfs.

use crate::raw::{self, Mapping, PAGE, Protection};
use crate::workload::{Group, Needs, Run, Workload, fold, try_timed};
use std::fs::{self, File};
use std::io::{self, Error, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

const fn workload(name: &'static str, iterations: u64, run: fn(u64) -> io::Result<Run>) -> Workload {
    Workload { name, group: Group::Kernel, needs: Needs::Nothing, iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("syscall", 200_000, syscall),
    workload("pipe", 5000, pipe),
    workload("fork", 60, fork),
    workload("exec", 40, exec),
    workload("mmap", 800, mmap),
    workload("mprotect", 6000, mprotect),
    workload("signal", 12_000, signal),
    workload("sigsegv", 12_000, sigsegv),
    workload("futex", 8000, futex),
    workload("files", 2000, files),
    workload("stat", 25_000, stat),
    workload("read-64k", 8000, read),
];

/// The argument with which this program ends at once, with [`EXEC_STATUS`].
pub(crate) const EXEC_ARGUMENT: &str = "--end-at-once";
pub(crate) const EXEC_STATUS: i32 = 7;

/// The cheapest system call that nobody answers without the kernel.
fn syscall(times: u64) -> io::Result<Run> {
    let parent = raw::parent();
    try_timed(|| Ok((0..times).filter(|_| raw::parent() == parent).count() as u64))
}

/// A byte there and back between two processes, both on one processor as in the guest.
fn pipe(times: u64) -> io::Result<Run> {
    let _pinned = raw::Pinned::to_one_cpu()?;
    let (mut answers, mut answer) = io::pipe()?;
    let (mut questions, mut ask) = io::pipe()?;
    let child = raw::fork(move || {
        let mut byte = [0];
        for _ in 0..times {
            if questions.read_exact(&mut byte).is_err() || answer.write_all(&[byte[0] ^ 0x5a]).is_err() {
                return 1;
            }
        }
        0
    })?;
    let run = try_timed(|| {
        let mut checksum = 0;
        for time in 0..times {
            let mut byte = [time as u8];
            ask.write_all(&byte)?;
            answers.read_exact(&mut byte)?;
            checksum = fold(checksum, u64::from(byte[0]));
        }
        Ok(checksum)
    });
    if run.is_err() {
        child.kill();
    }
    wait_for(child, 0).and(run)
}

fn wait_for(child: raw::Child, status: i32) -> io::Result<()> {
    match child.wait()? {
        ended if ended == status => Ok(()),
        ended => Err(Error::other(format!("the child ended with {ended}"))),
    }
}

/// A child that ends at once, waited for.
fn fork(times: u64) -> io::Result<Run> {
    try_timed(|| {
        for time in 0..times {
            let status = time as i32 & 63;
            wait_for(raw::fork(|| status)?, status)?;
        }
        Ok(times)
    })
}

/// A child that becomes this program again and ends at once.
fn exec(times: u64) -> io::Result<Run> {
    let myself = std::env::current_exe()?;
    try_timed(|| {
        for _ in 0..times {
            wait_for(raw::fork(|| raw::exec(&myself, EXEC_ARGUMENT))?, EXEC_STATUS)?;
        }
        Ok(times)
    })
}

/// 16 pages mapped, each touched, unmapped.
fn mmap(times: u64) -> io::Result<Run> {
    try_timed(|| {
        let mut sum = 0;
        for time in 0..times {
            let mut mapping = Mapping::new(16 * PAGE, Protection::ReadWrite)?;
            for page in mapping.bytes().chunks_exact_mut(PAGE) {
                page[time as usize % PAGE] += 1;
                sum += u64::from(page[time as usize % PAGE]);
            }
        }
        Ok(sum)
    })
}

/// One page of four made read-only, writable again and written.
fn mprotect(times: u64) -> io::Result<Run> {
    let mut mapping = Mapping::new(4 * PAGE, Protection::ReadWrite)?;
    mapping.bytes().fill(1);
    try_timed(|| {
        let mut sum = 0;
        for time in 0..times {
            mapping.protect(PAGE, PAGE, Protection::Read)?;
            mapping.protect(PAGE, PAGE, Protection::ReadWrite)?;
            let byte = &mut mapping.bytes()[PAGE + time as usize % PAGE];
            *byte = byte.wrapping_add(1);
            sum += u64::from(*byte);
        }
        Ok(sum)
    })
}

/// A signal to ourselves, counted by its handler.
fn signal(times: u64) -> io::Result<Run> {
    let handled = raw::count_signals()?;
    let before = handled.load(Ordering::Relaxed);
    try_timed(|| {
        for _ in 0..times {
            raw::signal_ourselves()?;
        }
        Ok(handled.load(Ordering::Relaxed) - before)
    })
}

/// A load from a page that may not be read; the handler goes on behind it.
fn sigsegv(times: u64) -> io::Result<Run> {
    let mapping = Mapping::new(PAGE, Protection::None)?;
    let handled = raw::skip_faults()?;
    let before = handled.load(Ordering::Relaxed);
    let run = try_timed(|| {
        for _ in 0..times {
            raw::faulting_load(&mapping);
        }
        Ok(handled.load(Ordering::Relaxed) - before)
    });
    raw::fault_as_usual()?;
    run
}

/// Two threads that wake each other in turn, both on one processor as in the guest.
fn futex(times: u64) -> io::Result<Run> {
    let _pinned = raw::Pinned::to_one_cpu()?;
    let turn = AtomicU32::new(0);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            for time in 0..times as u32 {
                wait_until(&turn, 2 * time + 1);
                pass(&turn, 2 * time + 2);
            }
        });
        let run = try_timed(|| {
            for time in 0..times as u32 {
                pass(&turn, 2 * time + 1);
                wait_until(&turn, 2 * time + 2);
            }
            Ok(u64::from(turn.load(Ordering::Relaxed)))
        });
        other.join().map_err(|_| Error::other("the other thread panicked"))?;
        run
    })
}

fn wait_until(turn: &AtomicU32, value: u32) {
    loop {
        let now = turn.load(Ordering::Acquire);
        if now == value {
            return;
        }
        raw::futex_wait(turn, now);
    }
}

fn pass(turn: &AtomicU32, value: u32) {
    turn.store(value, Ordering::Release);
    raw::futex_wake(turn);
}

/// A folder of a tmpfs, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Folder> {
        let path = PathBuf::from(format!("/dev/shm/bench-{}", process::id()));
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over in a tmpfs is gone with the guest.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file made, written with 4 KiB, read, and removed.
fn files(times: u64) -> io::Result<Run> {
    let folder = Folder::new()?;
    let path = folder.0.join("file");
    try_timed(|| {
        let mut bytes = [0u8; 4096];
        let mut checksum = 0;
        for time in 0..times {
            bytes.fill(time as u8);
            File::create_new(&path)?.write_all(&bytes)?;
            bytes.fill(0);
            File::open(&path)?.read_exact(&mut bytes)?;
            fs::remove_file(&path)?;
            checksum = fold(checksum, u64::from(bytes[time as usize % 4096]));
        }
        Ok(checksum)
    })
}

/// A path of three folders looked up.
fn stat(times: u64) -> io::Result<Run> {
    let folder = Folder::new()?;
    let path = folder.0.join("file");
    fs::write(&path, [0; 100])?;
    try_timed(|| {
        let mut sum = 0;
        for _ in 0..times {
            sum += fs::metadata(&path)?.len();
        }
        Ok(sum)
    })
}

/// 64 KiB of a file, copied by the kernel.
fn read(times: u64) -> io::Result<Run> {
    let folder = Folder::new()?;
    let path = folder.0.join("file");
    fs::write(&path, [0x5a; 64 << 10])?;
    let file = File::open(&path)?;
    let mut bytes = vec![0u8; 64 << 10];
    try_timed(|| {
        let mut sum = 0;
        for time in 0..times {
            file.read_exact_at(&mut bytes, 0)?;
            sum += u64::from(bytes[time as usize % bytes.len()]);
        }
        Ok(sum)
    })
}
