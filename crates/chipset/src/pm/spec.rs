//! Register formats of the PM1 blocks (ACPI 6.5, 4.8.3).

bitflags::bitflags! {
    /// PM1 status and enable registers.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct Event: u16 {
        const TIMER = 1 << 0;
        const GLOBAL = 1 << 5;
        const POWER_BUTTON = 1 << 8;
        const SLEEP_BUTTON = 1 << 9;
        const RTC = 1 << 10;
        const PCIE_WAKE = 1 << 14;
        const WAKE = 1 << 15;
        /// Those that raise the SCI where both registers have them.
        const INTERRUPTS = Self::TIMER.bits()
            | Self::GLOBAL.bits()
            | Self::POWER_BUTTON.bits()
            | Self::SLEEP_BUTTON.bits()
            | Self::RTC.bits();
    }

    /// PM1 control register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct Control: u16 {
        const SCI_EN = 1 << 0;
        const BM_RLD = 1 << 1;
        const SLP_TYP = 7 << 10;
        const SLP_EN = 1 << 13;
        /// What is stored.
        const KEPT = Self::BM_RLD.bits() | Self::SLP_TYP.bits();
    }
}

impl Control {
    pub(super) fn sleep_type(self) -> u8 {
        ((self & Self::SLP_TYP).bits() >> 10) as u8
    }
}
