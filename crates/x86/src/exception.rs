//! Exceptions and their classes (SDM 3A 6.3-6.15).

use serde::{Deserialize, Serialize};

/// Exception vectors (SDM 3A table 6-1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87 = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    Simd = 19,
    Virtualization = 20,
    ControlProtection = 21,
}

impl Vector {
    /// Whether the exception pushes an error code.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Self::DoubleFault
                | Self::InvalidTss
                | Self::SegmentNotPresent
                | Self::StackFault
                | Self::GeneralProtection
                | Self::PageFault
                | Self::AlignmentCheck
                | Self::ControlProtection
        )
    }

    /// Whether a second exception of a contributory class on top of it is a double fault (SDM 3A table 6-4).
    #[must_use]
    pub const fn is_contributory(self) -> bool {
        matches!(
            self,
            Self::DivideError
                | Self::InvalidTss
                | Self::SegmentNotPresent
                | Self::StackFault
                | Self::GeneralProtection
                | Self::ControlProtection
        )
    }
}

/// An exception that an instruction raised. For page faults the address is in CR2 (set by whoever delivers it).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Exception {
    /// Which one.
    pub vector: Vector,
    /// The error code; 0 where the vector has none.
    pub code: u32,
}

impl Exception {
    /// An exception without an error code, or with error code 0.
    #[must_use]
    pub const fn new(vector: Vector) -> Self {
        Self { vector, code: 0 }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn with_code(vector: Vector, code: u32) -> Self {
        Self { vector, code }
    }

    /// `#UD`.
    pub const UD: Self = Self::new(Vector::InvalidOpcode);
    /// `#GP(0)`.
    pub const GP0: Self = Self::new(Vector::GeneralProtection);
    /// `#SS(0)`.
    pub const SS0: Self = Self::new(Vector::StackFault);
    /// `#NM`.
    pub const NM: Self = Self::new(Vector::DeviceNotAvailable);
    /// `#DE`.
    pub const DE: Self = Self::new(Vector::DivideError);
}
