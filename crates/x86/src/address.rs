//! Address newtypes. A bare `u64` is never an address in Ombra's interfaces.

use core::fmt;
use core::ops::Add;

/// Bytes in a 4 KiB page, the unit of translation and of tracing.
pub const PAGE_SIZE: u64 = 4096;

/// A guest-virtual (linear) address: after segmentation, before paging.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gva(pub u64);

/// A guest-physical address: after paging, before the machine's memory map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

macro_rules! address {
    ($name:ident, $tag:literal) => {
        impl $name {
            /// The address rounded down to its page.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// The offset within the page, 0..4096.
            #[must_use]
            pub const fn offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(Gva, "gva");
address!(Gpa, "gpa");
