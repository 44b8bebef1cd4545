//! What the controller and its namespace are (5.15).

use crate::features::WARNING_TEMPERATURE;
use crate::log::ERRORS;
use crate::shared::{MOST_EVENT_REQUESTS, Shared};
use crate::spec::{ALL_NAMESPACES, COMMAND_SHIFT, COMPLETION_SHIFT, MOST_DATA, NAMESPACE, Status, VERSION};
use crate::{SUBSYSTEM, VENDOR};

/// Bytes of every answer.
pub(crate) const BYTES: usize = 4096;

/// Controller or namespace structure (5.15.1).
mod structure {
    pub(super) const NAMESPACE: u8 = 0x00;
    pub(super) const CONTROLLER: u8 = 0x01;
    pub(super) const NAMESPACES: u8 = 0x02;
    pub(super) const DESCRIPTORS: u8 = 0x03;
}

/// Firmware revision, as there is none.
pub(crate) const REVISION: [u8; 8] = *b"1       ";

/// A page that is filled in.
struct Page(Vec<u8>);

impl Page {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// ASCII, with spaces behind (1.5).
    fn text(&mut self, at: usize, len: usize, text: &str) {
        self.0[at..at + len].fill(b' ');
        for (place, byte) in self.0[at..at + len].iter_mut().zip(text.bytes()) {
            *place = if (0x20..0x7f).contains(&byte) { byte } else { b'?' };
        }
    }
}

/// The answer for `structure`, of namespace `namespace`.
pub(crate) fn page(shared: &Shared, structure: u8, namespace: u32) -> Result<Vec<u8>, Status> {
    let mut page = Page(vec![0; BYTES]);
    match structure {
        structure::CONTROLLER => controller(&mut page, shared),
        structure::NAMESPACE if matches!(namespace, NAMESPACE | ALL_NAMESPACES) => {
            self::namespace(&mut page, shared, namespace == NAMESPACE);
        }
        // All that come after it.
        structure::NAMESPACES if namespace < 0xffff_fffe => {
            if namespace < NAMESPACE {
                page.put(0, &NAMESPACE.to_le_bytes());
            }
        }
        structure::DESCRIPTORS if namespace == NAMESPACE => {
            page.put(0, &[3, 16]);
            page.put(4, &identifier(shared));
        }
        structure::NAMESPACE | structure::NAMESPACES | structure::DESCRIPTORS => {
            return Err(Status::InvalidNamespace);
        }
        _ => return Err(Status::InvalidField),
    }
    Ok(page.0)
}

/// A UUID that tells the disks of one machine apart and is the same in each run (RFC 9562, version 8).
fn identifier(shared: &Shared) -> [u8; 16] {
    let mut bytes = *b"ombra\0\x80\0\x80\0\0\0nvme";
    bytes[11] = shared.names.number;
    bytes
}

/// Figure 247.
fn controller(page: &mut Page, shared: &Shared) {
    page.put(0, &VENDOR.to_le_bytes());
    page.put(2, &SUBSYSTEM.to_le_bytes());
    page.text(4, 20, &shared.names.serial);
    page.text(24, 40, "Ombra disk");
    page.put(64, &REVISION);
    page.put(77, &[MOST_DATA]);
    page.put(78, &1u16.to_le_bytes());
    page.put(80, &VERSION.to_le_bytes());
    // An I/O controller.
    page.put(111, &[1]);
    // Aborts and event requests that may wait, counted from zero.
    page.put(258, &[3, MOST_EVENT_REQUESTS as u8 - 1]);
    // One firmware slot, which can't be written; log pages may be read in parts; entries of the error log, from zero.
    page.put(260, &[1 | 1 << 1, 1 << 2, ERRORS as u8 - 1]);
    page.put(266, &WARNING_TEMPERATURE.to_le_bytes());
    page.put(268, &(WARNING_TEMPERATURE + 20).to_le_bytes());
    // Entry sizes, required and possible.
    page.put(512, &[COMMAND_SHIFT as u8 * 0x11, COMPLETION_SHIFT as u8 * 0x11]);
    page.put(516, &NAMESPACE.to_le_bytes());
    // Dataset management and write zeroes.
    page.put(520, &(1u16 << 2 | 1 << 3).to_le_bytes());
    // A volatile write cache; a flush may be of all namespaces.
    page.put(525, &[1 | 3 << 1]);
    let hex: String = identifier(shared).iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = format!(
        "nqn.2014-08.org.nvmexpress:uuid:{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    page.put(768, uuid.as_bytes());
    // Power state 0, the only one: at most 0.01 W, which is the least that can be said.
    page.put(2048, &1u16.to_le_bytes());
}

/// Figure 245. What all namespaces have in common says no size.
fn namespace(page: &mut Page, shared: &Shared, of_one: bool) {
    let info = shared.disk.info();
    if of_one {
        for at in [0, 8, 16] {
            page.put(at, &info.sectors.to_le_bytes());
        }
        page.put(99, &[info.read_only.into()]);
    }
    // Write zeroes may give space back.
    page.put(33, &[1 << 3]);
    // Format 0: blocks of 512 bytes without metadata.
    page.put(128, &[0, 0, 9, 0]);
}
