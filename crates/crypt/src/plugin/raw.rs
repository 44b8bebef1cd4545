//! `include/ombra_crypt.h` in Rust: loading a library and calling what it offers. Called by [`library`](super::library) only.
//!
//! What a library does can't be checked; loading one trusts it as much as Ombra itself.

#![allow(unsafe_code, reason = "a library's functions are called by address")]

use super::{Answer, Disk, MOST_HEADER};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

/// OMBRA_CRYPT_API.
const API: u32 = 1;
/// Bytes of an error's text.
const ERROR: usize = 256;
/// Room for a new disk's header.
const ROOM: usize = 1 << 20;

/// struct ombra_crypt_disk.
#[repr(C)]
struct CDisk {
    bytes: u64,
    header: *const u8,
    header_bytes: usize,
    key: *const u8,
    key_bytes: usize,
    options: *const c_char,
}

/// struct ombra_crypt_volume.
#[repr(C)]
#[derive(Default)]
struct CVolume {
    offset: u64,
    bytes: u64,
    sector_bytes: u32,
    header_bytes: u32,
}

impl From<CVolume> for Answer {
    fn from(volume: CVolume) -> Self {
        let CVolume { offset, bytes, sector_bytes, header_bytes } = volume;
        Self { offset, bytes, sector_bytes, header_bytes }
    }
}

type Open = unsafe extern "C" fn(*const CDisk, *mut CVolume, *mut *mut c_void, *mut c_char, usize) -> c_int;
type Create = unsafe extern "C" fn(*const CDisk, *mut CVolume, *mut u8, usize, *mut c_char, usize) -> c_int;
type Turn = unsafe extern "C" fn(*mut c_void, u64, *mut u8, usize) -> c_int;
type Close = unsafe extern "C" fn(*mut c_void);

/// struct ombra_crypt_plugin.
#[repr(C)]
#[derive(Clone, Copy)]
struct CPlugin {
    api: u32,
    name: *const c_char,
    open: Option<Open>,
    create: Option<Create>,
    encrypt: Option<Turn>,
    decrypt: Option<Turn>,
    close: Option<Close>,
}

/// What a loaded library offers.
pub(super) struct Interface {
    open: Open,
    create: Option<Create>,
    encrypt: Turn,
    decrypt: Turn,
    close: Close,
    /// Last, since the functions are in it.
    _library: libloading::Library,
}

impl Interface {
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        // A bare name would be looked for in the system's folders.
        let path = path.canonicalize().map_err(|error| error.to_string())?;
        // SAFETY: the user names the library for its code to be run; that code is trusted as our own is.
        let library = unsafe { libloading::Library::new(&path) }.map_err(|error| error.to_string())?;
        // SAFETY: the header file gives this symbol this type.
        let plugin = unsafe {
            let entry: libloading::Symbol<'_, unsafe extern "C" fn() -> *const CPlugin> =
                library.get(b"ombra_crypt_plugin\0").map_err(|error| error.to_string())?;
            let plugin = entry();
            if plugin.is_null() || !plugin.is_aligned() {
                return Err("it offers nothing".to_owned());
            }
            // Its first member tells whether the rest is there.
            if (*plugin).api != API {
                return Err(format!(
                    "it is made for version {} of the API, and this is {API}",
                    (*plugin).api
                ));
            }
            *plugin
        };
        match plugin {
            CPlugin {
                open: Some(open),
                create,
                encrypt: Some(encrypt),
                decrypt: Some(decrypt),
                close: Some(close),
                ..
            } => Ok(Self { open, create, encrypt, decrypt, close, _library: library }),
            _ => Err("it lacks a function".to_owned()),
        }
    }

    pub(super) fn open(interface: &Arc<Self>, disk: &Disk<'_>) -> Result<(Answer, State), String> {
        let options = CString::new(disk.options).map_err(|error| error.to_string())?;
        let told = c_disk(disk, &options);
        let mut volume = CVolume::default();
        let mut state = ptr::null_mut();
        let mut error = [0; ERROR];
        // SAFETY: all pointers are to live values of the types that the header file gives them, and as long as it says.
        let status = unsafe { (interface.open)(&told, &mut volume, &mut state, error.as_mut_ptr(), ERROR) };
        if status != 0 {
            return Err(text(&error, status));
        }
        Ok((volume.into(), State { state, interface: Arc::clone(interface) }))
    }

    pub(super) fn create(&self, disk: &Disk<'_>) -> Result<(Answer, Vec<u8>), String> {
        let Some(create) = self.create else {
            let answer = Answer { offset: 0, bytes: 0, sector_bytes: 512, header_bytes: 0 };
            return Ok((answer, Vec::new()));
        };
        let options = CString::new(disk.options).map_err(|error| error.to_string())?;
        let told = CDisk { header: ptr::null(), ..c_disk(disk, &options) };
        let mut volume = CVolume::default();
        let mut header = vec![0; ROOM];
        let mut error = [0; ERROR];
        // SAFETY: as in `open`; the header's room is what is said.
        let status =
            unsafe { create(&told, &mut volume, header.as_mut_ptr(), ROOM, error.as_mut_ptr(), ERROR) };
        if status != 0 {
            return Err(text(&error, status));
        }
        if volume.header_bytes as usize > ROOM || volume.offset > MOST_HEADER {
            return Err("its header is larger than there was room".to_owned());
        }
        header.truncate(volume.header_bytes as usize);
        Ok((volume.into(), header))
    }
}

fn c_disk(disk: &Disk<'_>, options: &CStr) -> CDisk {
    CDisk {
        bytes: disk.bytes,
        header: disk.header.as_ptr(),
        header_bytes: disk.header.len(),
        key: disk.key.as_ptr(),
        key_bytes: disk.key.len(),
        options: options.as_ptr(),
    }
}

/// What a library says of its failure.
fn text(error: &[c_char; ERROR], status: c_int) -> String {
    let bytes: Vec<u8> = error.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
    let text: String = String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { format!("it failed with {status}") } else { text }
}

/// A disk that a library has open.
pub(super) struct State {
    state: *mut c_void,
    interface: Arc<Interface>,
}

// SAFETY: the header file demands functions that may be called from any thread.
unsafe impl Send for State {}
// SAFETY: and from several at once.
unsafe impl Sync for State {}

impl State {
    pub(super) fn encrypt(&self, sector: u64, data: &mut [u8]) -> i32 {
        // SAFETY: the state is the library's own and open; `data` is writable and as long as is said.
        unsafe { (self.interface.encrypt)(self.state, sector, data.as_mut_ptr(), data.len()) }
    }

    pub(super) fn decrypt(&self, sector: u64, data: &mut [u8]) -> i32 {
        // SAFETY: as above.
        unsafe { (self.interface.decrypt)(self.state, sector, data.as_mut_ptr(), data.len()) }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: the state is open, and closed once.
        unsafe { (self.interface.close)(self.state) };
    }
}
