//! Features that a driver may look at and set (5.14, 5.21).

use crate::spec::Status;
use serde::{Deserialize, Serialize};

/// Feature identifiers (5.21.1).
mod id {
    pub(super) const ARBITRATION: u8 = 0x01;
    pub(super) const POWER: u8 = 0x02;
    pub(super) const TEMPERATURE: u8 = 0x04;
    pub(super) const ERROR_RECOVERY: u8 = 0x05;
    pub(super) const WRITE_CACHE: u8 = 0x06;
    pub(super) const QUEUES: u8 = 0x07;
    pub(super) const COALESCING: u8 = 0x08;
    pub(super) const VECTOR: u8 = 0x09;
    pub(super) const ATOMICITY: u8 = 0x0a;
    pub(super) const EVENTS: u8 = 0x0b;
}

/// Kelvin from which the composite temperature warns: what [`crate::identify`] says, and the default.
pub(crate) const WARNING_TEMPERATURE: u16 = 343;
/// Kelvin that other thresholds begin with: over, and under.
const NO_LIMIT: (u16, u16) = (0xffff, 0);
/// Sensors that have thresholds: the composite temperature and eight more.
const SENSORS: usize = 9;

/// What a driver has set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Features {
    arbitration: u32,
    /// Over and under, by sensor.
    temperatures: Vec<(u16, u16)>,
    error_recovery: u32,
    pub(crate) write_cache: bool,
    coalescing: u32,
    /// Vectors without coalescing, one bit each. There are fewer than 64.
    direct_vectors: u64,
    atomicity: u32,
    events: u32,
}

impl Features {
    pub(crate) fn new() -> Self {
        let mut temperatures = vec![NO_LIMIT; SENSORS];
        temperatures[0].0 = WARNING_TEMPERATURE;
        Self {
            arbitration: 0,
            temperatures,
            error_recovery: 0,
            write_cache: true,
            coalescing: 0,
            direct_vectors: 0,
            atomicity: 0,
            events: 0,
        }
    }

    pub(crate) fn is_possible(&self) -> bool {
        self.temperatures.len() == SENSORS
    }

    fn temperature(&mut self, dword: u32) -> Result<&mut u16, Status> {
        let sensor = (dword >> 16 & 15) as usize;
        let (over, under) = self.temperatures.get_mut(sensor).ok_or(Status::InvalidField)?;
        match dword >> 20 & 3 {
            0 => Ok(over),
            1 => Ok(under),
            _ => Err(Status::InvalidField),
        }
    }

    /// The current value of a feature, with the dword that says more of what is asked. `queues`: pairs of I/O queues, `vectors`:
    /// interrupt vectors.
    fn value(&mut self, id: u8, dword: u32, queues: u16, vectors: u16) -> Result<u32, Status> {
        Ok(match id {
            id::ARBITRATION => self.arbitration,
            id::POWER => 0,
            id::TEMPERATURE => u32::from(*self.temperature(dword)?),
            id::ERROR_RECOVERY => self.error_recovery,
            id::WRITE_CACHE => self.write_cache.into(),
            id::QUEUES => u32::from(queues - 1) | u32::from(queues - 1) << 16,
            id::COALESCING => self.coalescing,
            id::VECTOR => {
                let vector = dword & 0xffff;
                if vector >= u32::from(vectors) {
                    return Err(Status::InvalidField);
                }
                vector | u32::from(self.direct_vectors >> vector & 1 != 0) << 16
            }
            id::ATOMICITY => self.atomicity,
            id::EVENTS => self.events,
            _ => return Err(Status::InvalidField),
        })
    }

    /// Get Features: `which` is CDW10, `dword` CDW11.
    pub(crate) fn get(&mut self, which: u32, dword: u32, queues: u16, vectors: u16) -> Result<u32, Status> {
        let id = which as u8;
        match which >> 8 & 7 {
            0 => self.value(id, dword, queues, vectors),
            // Default, and saved, which is the default where nothing can be saved.
            1 | 2 => Self::new().value(id, dword, queues, vectors),
            // Can be changed, is not of a namespace, can't be saved.
            3 => self.value(id, dword, queues, vectors).map(|_| 1 << 2),
            _ => Err(Status::InvalidField),
        }
    }

    /// Set Features: `which` is CDW10, `dword` CDW11. `has_queues`: there are I/O queues already.
    pub(crate) fn set(
        &mut self,
        which: u32,
        dword: u32,
        queues: u16,
        vectors: u16,
        has_queues: bool,
    ) -> Result<u32, Status> {
        if which >> 31 != 0 {
            return Err(Status::NotSaveable);
        }
        let id = which as u8;
        match id {
            id::ARBITRATION => self.arbitration = dword,
            id::POWER if dword & 0x1f == 0 => {}
            id::TEMPERATURE => *self.temperature(dword)? = dword as u16,
            id::ERROR_RECOVERY => self.error_recovery = dword & 0xffff,
            id::WRITE_CACHE => self.write_cache = dword & 1 != 0,
            id::QUEUES => {
                if has_queues {
                    return Err(Status::Sequence);
                }
                if dword & 0xffff == 0xffff || dword >> 16 == 0xffff {
                    return Err(Status::InvalidField);
                }
                return self.value(id, dword, queues, vectors);
            }
            id::COALESCING => self.coalescing = dword & 0xffff,
            id::VECTOR => {
                let vector = dword & 0xffff;
                if vector >= u32::from(vectors) {
                    return Err(Status::InvalidField);
                }
                self.direct_vectors =
                    self.direct_vectors & !(1 << vector) | u64::from(dword >> 16 & 1) << vector;
            }
            id::ATOMICITY => self.atomicity = dword & 1,
            id::EVENTS => self.events = dword,
            _ => return Err(Status::InvalidField),
        }
        Ok(0)
    }
}
