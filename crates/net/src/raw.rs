//! Opening a tap device: ioctls, which have no safe form.

#![allow(unsafe_code, reason = "ioctl takes a pointer to what its number says")]

use crate::frame::Offloads;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Setter, opcode};
use std::os::fd::AsFd;

/// struct ifreq of netdevice(7), as far as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    _rest: [u8; 22],
}

/// linux/if_tun.h.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
const IFF_TAP: i16 = 0x2;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const TUN_F_CSUM: usize = 1;
const TUN_F_TSO4: usize = 2;
const TUN_F_TSO6: usize = 4;

/// Opens the tap device `name`, of at most 15 bytes. Frames have a virtio-net header of `header` bytes in front.
///
/// # Errors
/// No /dev/net/tun, no such device of this user's, or no right to make one.
pub(crate) fn tap(name: &str, header: i32) -> Result<OwnedFd, Errno> {
    let mut request =
        InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, _rest: [0; 22] };
    if name.len() > 15 || name.contains('\0') {
        return Err(Errno::INVAL);
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: TUNSETIFF reads a struct ifreq, whatever type its number names.
    unsafe { ioctl::ioctl(&tap, Setter::<TUNSETIFF, InterfaceRequest>::new(request))? };
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { ioctl::ioctl(&tap, Setter::<TUNSETVNETHDRSZ, i32>::new(header))? };
    set_offloads(tap.as_fd(), Offloads::default())?;
    Ok(tap)
}

/// What the host may leave to us: checksums, and TCP to cut.
///
/// # Errors
/// The device is gone.
pub(crate) fn set_offloads(tap: BorrowedFd<'_>, offloads: Offloads) -> Result<(), Errno> {
    let bit = |set: bool, bit: usize| if set { bit } else { 0 };
    // The kernel takes cutting only with checksums.
    let number = if offloads.checksum {
        TUN_F_CSUM | bit(offloads.tcp4, TUN_F_TSO4) | bit(offloads.tcp6, TUN_F_TSO6)
    } else {
        0
    };
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    unsafe { ioctl::ioctl(tap, ioctl::IntegerSetter::<TUNSETOFFLOAD>::new_usize(number)) }
}
