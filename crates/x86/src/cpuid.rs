//! CPUID as a table (SDM 2A CPUID).
//!
//! A machine builds the table once, from the host's leaves and its own configuration; an engine answers the
//! instruction from it and overlays what depends on the vCPU's current state (OSXSAVE, OSPKE, APIC enable, XSAVE
//! sizes).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The four registers of one CPUID answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Every leaf a guest can see. Leaves without sub-leaves are stored under sub-leaf 0.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cpuid {
    leaves: BTreeMap<(u32, u32), Leaf>,
}

/// Whether a leaf's answer depends on ECX.
#[must_use]
pub const fn has_subleaves(leaf: u32) -> bool {
    matches!(
        leaf,
        4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1d | 0x1e | 0x1f | 0x20 | 0x24
    ) || leaf == 0x8000_001d
}

impl Cpuid {
    /// Sets one answer.
    pub fn set(&mut self, leaf: u32, subleaf: u32, answer: Leaf) {
        self.leaves.insert((leaf, subleaf), answer);
    }

    /// The answer as stored; all zeros where there is none. No clamping.
    #[must_use]
    pub fn stored(&self, leaf: u32, subleaf: u32) -> Leaf {
        self.leaves.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }

    /// Changes a stored answer in place, creating it where missing.
    pub fn leaf_mut(&mut self, leaf: u32, subleaf: u32) -> &mut Leaf {
        self.leaves.entry((leaf, subleaf)).or_default()
    }

    /// What the CPUID instruction gives for EAX = `leaf`, ECX = `subleaf`: a leaf beyond the highest basic one
    /// answers with the highest basic leaf's data (SDM 2A CPUID, "INPUT EAX > maximum").
    #[must_use]
    pub fn query(&self, leaf: u32, subleaf: u32) -> Leaf {
        let highest_basic = self.stored(0, 0).eax;
        let in_range = match leaf {
            0..=0x3fff_ffff => leaf <= highest_basic,
            0x4000_0000..=0x4fff_ffff => {
                let highest = self.stored(0x4000_0000, 0).eax;
                // Some hypervisors leave the maximum zero and mean one leaf.
                leaf <= highest.max(0x4000_0001)
            }
            0x8000_0000.. => leaf <= self.stored(0x8000_0000, 0).eax,
            _ => false,
        };
        let leaf = if in_range { leaf } else { highest_basic };
        self.stored(leaf, if has_subleaves(leaf) { subleaf } else { 0 })
    }
}
