//! What the driver has written to the common configuration.

use super::spec::{common, feature, status};
use crate::queue::RingState;
use serde::{Deserialize, Serialize};

/// A ring's registers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    /// The size is at first the most that there may be.
    pub(super) ring: RingState,
    pub(super) enabled: bool,
}

/// The common configuration, but for vectors.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    /// What the driver accepts.
    pub(super) features: u64,
    pub(super) status: u8,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
}

impl Registers {
    /// After a reset.
    pub(super) fn new(sizes: &[u16]) -> Self {
        let queue =
            |&size: &u16| QueueRegisters { ring: RingState { size, ..RingState::default() }, enabled: false };
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            features: 0,
            status: 0,
            queue_select: 0,
            queues: sizes.iter().map(queue).collect(),
        }
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    pub(super) fn is_running(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    fn selected(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The field at `offset` that only takes looking at, if there is one of `len` bytes.
    pub(super) fn read(&mut self, offset: u64, len: usize, offered: u64) -> Option<u64> {
        let half = |value: u64, select: u32| match select {
            0 => value & 0xffff_ffff,
            1 => value >> 32,
            _ => 0,
        };
        let count = self.queues.len() as u64;
        let (notify_off, features) = (self.queue_select, self.features);
        Some(match (offset, len) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select.into(),
            (common::DEVICE_FEATURE, 4) => half(offered, self.device_feature_select),
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select.into(),
            (common::DRIVER_FEATURE, 4) => half(features, self.driver_feature_select),
            (common::NUM_QUEUES, 2) => count,
            (common::QUEUE_SELECT, 2) => self.queue_select.into(),
            (common::QUEUE_SIZE, 2) => self.selected().map_or(0, |queue| queue.ring.size.into()),
            (common::QUEUE_ENABLE, 2) => self.selected().map_or(0, |queue| queue.enabled.into()),
            (common::QUEUE_NOTIFY_OFF, 2) => self.selected().map_or(0, |_| notify_off.into()),
            (common::QUEUE_DESCRIPTORS.., 4 | 8) => {
                let (field, shift) = (offset & !7, (offset & 4) * 8);
                let value = self.address(field)?.map_or(0, |address| *address) >> shift;
                if len == 4 { value & 0xffff_ffff } else { value }
            }
            _ => return None,
        })
    }

    /// One of the three addresses of the selected ring: `None`, if `field` is none of them, `Some(None)`, if there is no ring.
    fn address(&mut self, field: u64) -> Option<Option<&mut u64>> {
        let ring = self.selected().map(|queue| &mut queue.ring);
        Some(match field {
            common::QUEUE_DESCRIPTORS => ring.map(|ring| &mut ring.descriptors),
            common::QUEUE_DRIVER => ring.map(|ring| &mut ring.available),
            common::QUEUE_DEVICE => ring.map(|ring| &mut ring.used),
            _ => return None,
        })
    }

    /// Writes a field that means nothing more. `None`: there is none of `len` bytes at `offset`. Values that can't be are ignored, and
    /// so is everything of a ring that is in use, and of features that have been agreed on.
    pub(super) fn write(&mut self, offset: u64, len: usize, value: u64, sizes: &[u16]) -> Option<()> {
        let may_negotiate = self.status & status::FEATURES_OK == 0;
        let select = usize::from(self.queue_select);
        let is_running = self.is_running();
        let ring_is_free = !is_running && self.queues.get(select).is_some_and(|queue| !queue.enabled);
        match (offset, len) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            (common::DRIVER_FEATURE, 4) => {
                let select = self.driver_feature_select;
                if may_negotiate && select < 2 {
                    let shift = 32 * select;
                    self.features = self.features & !(0xffff_ffff << shift) | value << shift;
                }
            }
            (common::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (common::QUEUE_SIZE, 2) => {
                let size = value as u16;
                let most = sizes.get(select).copied().unwrap_or(0);
                if ring_is_free && size.is_power_of_two() && size <= most {
                    self.queues[select].ring.size = size;
                }
            }
            (common::QUEUE_ENABLE, 2) => {
                if ring_is_free && value == 1 {
                    self.queues[select].enabled = true;
                }
            }
            (common::QUEUE_DESCRIPTORS.., 4 | 8) => {
                let (field, shift) = (offset & !7, (offset & 4) * 8);
                let address = self.address(field)?;
                if let Some(address) = address.filter(|_| ring_is_free) {
                    let mask = if len == 8 { u64::MAX } else { 0xffff_ffff << shift };
                    *address = *address & !mask | value << shift;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Takes the status that the driver writes; it has agreed to features that are `offered`, or can't have agreed.
    pub(super) fn set_status(&mut self, value: u8, offered: u64) {
        let mut new = (self.status | value) & status::WRITABLE;
        if new & !self.status & status::FEATURES_OK != 0
            && (self.features & !offered != 0 || !self.has(feature::VERSION_1))
        {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.status = new;
    }

    /// Whether this can be the state of a device with rings of up to `sizes` entries that offers `offered`.
    pub(super) fn is_possible(&self, sizes: &[u16], offered: u64) -> bool {
        let agreed = self.status & status::FEATURES_OK == 0 || self.features & !offered == 0;
        let ordered = !self.is_running() || self.status & status::FEATURES_OK != 0;
        agreed
            && ordered
            && self.queues.len() == sizes.len()
            && self
                .queues
                .iter()
                .zip(sizes)
                .all(|(queue, most)| queue.ring.size.is_power_of_two() && queue.ring.size <= *most)
    }
}
