//! A plain configuration space: 256 bytes, some of whose bits can be written. Beyond them it reads zero.

use super::PciFunction;

const SIZE: usize = 256;

/// The registers of a function that needs no more than to be found (type 0 header).
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl ConfigSpace {
    /// A header without base addresses or capabilities; `class` is class, subclass and programming interface. The command
    /// register's enables and the interrupt line can be written.
    #[must_use]
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8, header_type: u8) -> Self {
        let mut space = Self { bytes: vec![0; SIZE], writable: vec![0; SIZE] };
        space.put(0x00, &vendor.to_le_bytes(), &[]);
        space.put(0x02, &device.to_le_bytes(), &[]);
        // I/O, memory, bus master; SERR, INTx disable.
        space.put(0x04, &[0, 0], &[0x07, 0x05]);
        space.put(0x08, &[revision], &[]);
        space.put(0x09, &class.to_le_bytes()[..3], &[]);
        space.put(0x0c, &[0], &[0xff]);
        space.put(0x0e, &[header_type], &[]);
        space.put(0x3c, &[0], &[0xff]);
        space
    }

    /// Sets register bytes from `at` on, and which of their bits the guest can write. What lies beyond 256 bytes is dropped.
    pub fn put(&mut self, at: u8, values: &[u8], writable: &[u8]) {
        let at = usize::from(at);
        for (place, value) in self.bytes[at..].iter_mut().zip(values) {
            *place = *value;
        }
        for (place, value) in self.writable[at..].iter_mut().zip(writable) {
            *place = *value;
        }
    }

    /// Whether this and `other` differ in writable bits only, which are the same in both.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let fixed = |space: &Self| -> Vec<u8> {
            space.bytes.iter().zip(&space.writable).map(|(byte, writable)| byte & !writable).collect()
        };
        self.is_possible() && self.writable == other.writable && fixed(self) == fixed(other)
    }

    pub(super) fn is_possible(&self) -> bool {
        self.bytes.len() == SIZE && self.writable.len() == SIZE
    }
}

impl PciFunction for ConfigSpace {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        for (value, at) in data.iter_mut().zip(usize::from(offset)..) {
            *value = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        for (value, at) in data.iter().zip(usize::from(offset)..) {
            if let (Some(place), Some(writable)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *place = *place & !writable | value & writable;
            }
        }
    }
}
