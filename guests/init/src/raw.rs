//! The C library's functions that std doesn't wrap.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// glibc's `struct termios` on x86-64.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Termios {
    modes: [u32; 4],
    line: u8,
    characters: [u8; 32],
    speeds: [u32; 2],
}

/// `c_cflag` in [`Termios::modes`].
const CONTROL: usize = 2;
/// RTS and CTS say who may send.
const CRTSCTS: u32 = 0o20_000_000_000;

/// `struct winsize`.
#[repr(C)]
struct Size {
    rows: u16,
    columns: u16,
    pixels: [u16; 2],
}

const TIOCSWINSZ: c_ulong = 0x5414;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const TCSANOW: c_int = 0;

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn tcgetattr(fd: c_int, to: *mut Termios) -> c_int;
    fn tcsetattr(fd: c_int, when: c_int, from: *const Termios) -> c_int;
    fn cfmakeraw(termios: *mut Termios);
    fn tcdrain(fd: c_int) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn sync();
    fn syscall(number: c_long, ...) -> c_long;
}

fn result(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `MS_RDONLY`.
pub(crate) const READ_ONLY: c_ulong = 1;
/// `MS_MOVE`.
pub(crate) const MOVE: c_ulong = 8192;

/// Mounts `source`, or moves it.
pub(crate) fn mount_at(kind: &str, source: &str, to: &str, flags: c_ulong, options: &str) -> io::Result<()> {
    let strings = [source, to, kind, options].map(CString::new);
    let [Ok(source), Ok(to), Ok(kind), Ok(options)] = strings else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: four strings that end in NUL and outlive the call.
    result(unsafe { mount(source.as_ptr(), to.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) })
}

/// Unmounts, if something is mounted.
pub(crate) fn unmount(at: &str) {
    if let Ok(at) = CString::new(at) {
        // SAFETY: a string that ends in NUL and outlives the call.
        unsafe { umount2(at.as_ptr(), 0) };
    }
}

/// Mounts a file system that has no device.
pub(crate) fn mount_kind(kind: &str, to: &str) -> io::Result<()> {
    let (kind, to) = (CString::new(kind)?, CString::new(to)?);
    // SAFETY: three strings that end in NUL and outlive the call; no data.
    result(unsafe { mount(kind.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
}

const SYS_FINIT_MODULE: c_long = 313;

/// Gives the kernel a module. One that is loaded already is no failure.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: an open descriptor, an empty string of parameters that ends in NUL, no flags.
    let code = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0) };
    match result(code as c_int) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Bytes pass as they are: no echo, no signals, no line editing, no newline translation.
pub(crate) fn make_raw(port: &File) -> io::Result<()> {
    let mut termios = Termios::default();
    // SAFETY: the descriptor is open, the structure is glibc's and lives through the calls.
    let code = unsafe {
        let code = tcgetattr(port.as_raw_fd(), &mut termios);
        cfmakeraw(&mut termios);
        code | tcsetattr(port.as_raw_fd(), TCSANOW, &termios)
    };
    result(code)
}

/// The port asks the host to wait, by RTS, before the kernel's buffers overflow: they drop bytes when a reader is slow.
pub(crate) fn control_flow(port: &File) -> io::Result<()> {
    let mut termios = Termios::default();
    // SAFETY: as in `make_raw`.
    let code = unsafe {
        let code = tcgetattr(port.as_raw_fd(), &mut termios);
        termios.modes[CONTROL] |= CRTSCTS;
        code | tcsetattr(port.as_raw_fd(), TCSANOW, &termios)
    };
    result(code)
}

pub(crate) fn set_size(terminal: &File, rows: u16, columns: u16) {
    let size = Size { rows, columns, pixels: [0; 2] };
    // SAFETY: the descriptor is open and the request reads one `Size`. Its failure leaves the size as it was.
    unsafe { ioctl(terminal.as_raw_fd(), TIOCSWINSZ, &size) };
}

/// Waits until all that was written has left the port.
pub(crate) fn drain(port: &File) {
    // SAFETY: the descriptor is open.
    unsafe { tcdrain(port.as_raw_fd()) };
}

pub(crate) fn power_off() -> ! {
    // SAFETY: no arguments that could be wrong; process 1 may.
    unsafe {
        sync();
        reboot(RB_POWER_OFF);
    }
    // A kernel that can't power off stops here; process 1 must not end.
    loop {
        std::thread::park();
    }
}

const TIOCSPTLCK: c_ulong = 0x4004_5431;
const TIOCGPTPEER: c_ulong = 0x5441;
const O_RDWR: c_int = 2;
const O_NOCTTY: c_int = 0o400;

/// The other end of a pseudo-terminal, given `/dev/ptmx`.
pub(crate) fn peer(terminal: &File) -> io::Result<File> {
    let unlocked: c_int = 0;
    // SAFETY: the descriptor is open; the request reads one int.
    result(unsafe { ioctl(terminal.as_raw_fd(), TIOCSPTLCK, &unlocked) })?;
    // SAFETY: as above; this one takes flags, and gives a new descriptor.
    let fd = unsafe { ioctl(terminal.as_raw_fd(), TIOCGPTPEER, O_RDWR | O_NOCTTY) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nobody else has the descriptor.
    Ok(unsafe { File::from_raw_fd(fd) })
}
