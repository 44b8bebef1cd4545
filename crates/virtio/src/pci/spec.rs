//! Registers of the PCI transport (VIRTIO 1.2, 4.1), and where they lie in its one base address.

/// PCI vendor of all virtio devices (4.1.2).
pub(super) const VENDOR: u16 = 0x1af4;
/// Device IDs are this and the device's type (4.1.2.1).
pub(super) const FIRST_DEVICE: u16 = 0x1040;
/// Not transitional: a revision from 1, a subsystem ID from 0x40 (4.1.2.1).
pub(super) const REVISION: u8 = 1;
pub(super) const SUBSYSTEM: u16 = 0x1100;

/// Capability ID: vendor-specific (4.1.4).
pub(super) const CAPABILITY: u8 = 0x09;
/// Kinds of it (`cfg_type`).
pub(super) mod capability {
    pub(crate) const COMMON: u8 = 1;
    pub(crate) const NOTIFY: u8 = 2;
    pub(crate) const ISR: u8 = 3;
    pub(crate) const DEVICE: u8 = 4;
    pub(crate) const PCI: u8 = 5;
}

/// The base address and what is where in it.
pub(super) const BAR: u8 = 0;
pub(super) const BAR_BYTES: u32 = 0x8000;
pub(super) const COMMON: u32 = 0x0000;
pub(super) const COMMON_BYTES: u32 = 56;
pub(super) const ISR: u32 = 0x1000;
pub(super) const DEVICE: u32 = 0x2000;
pub(super) const DEVICE_BYTES: u32 = 0x1000;
/// One doorbell a ring, each [`DOORBELL_BYTES`] wide.
pub(super) const NOTIFY: u32 = 0x3000;
pub(super) const NOTIFY_BYTES: u32 = 0x1000;
pub(super) const DOORBELL_BYTES: u32 = 4;
pub(super) const TABLE: u32 = 0x4000;
pub(super) const TABLE_BYTES: u32 = 0x2000;
pub(super) const PENDING: u32 = 0x6000;

/// The most rings that a device can have here: a vector each and one for its configuration.
pub(super) const MOST_QUEUES: usize = (TABLE_BYTES / 16) as usize - 1;

/// Common configuration (4.1.4.3): offset of each field.
pub(super) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(crate) const DEVICE_FEATURE: u64 = 4;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(crate) const DRIVER_FEATURE: u64 = 12;
    pub(crate) const CONFIG_VECTOR: u64 = 16;
    pub(crate) const NUM_QUEUES: u64 = 18;
    pub(crate) const STATUS: u64 = 20;
    pub(crate) const GENERATION: u64 = 21;
    pub(crate) const QUEUE_SELECT: u64 = 22;
    pub(crate) const QUEUE_SIZE: u64 = 24;
    pub(crate) const QUEUE_VECTOR: u64 = 26;
    pub(crate) const QUEUE_ENABLE: u64 = 28;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(crate) const QUEUE_DESCRIPTORS: u64 = 32;
    pub(crate) const QUEUE_DRIVER: u64 = 40;
    pub(crate) const QUEUE_DEVICE: u64 = 48;
}

/// Device status (2.1).
pub(super) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
    /// What a driver may set: acknowledge, driver, those above, failed.
    pub(crate) const WRITABLE: u8 = 1 | 2 | DRIVER_OK | FEATURES_OK | 128;
}

/// Reserved feature bits (6) that the transport has a say in.
pub(super) mod feature {
    pub(crate) const INDIRECT: u64 = 1 << 28;
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    pub(crate) const VERSION_1: u64 = 1 << 32;
}
