//! Register formats of the 16550A (National PC16550D data sheet, table 2).

bitflags::bitflags! {
    /// Interrupt enable register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct Enable: u8 {
        const RECEIVED = 1 << 0;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    /// Line status register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct LineStatus: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const HOLDING_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
    }

    /// Modem control register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct ModemControl: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOPBACK = 1 << 4;
    }

    /// Modem status register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct ModemStatus: u8 {
        const CTS_CHANGED = 1 << 0;
        const DSR_CHANGED = 1 << 1;
        const RI_ENDED = 1 << 2;
        const DCD_CHANGED = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
        const CHANGES = 0x0f;
        const LEVELS = 0xf0;
    }
}

// Interrupt identification register.
pub(super) const NONE: u8 = 0x01;
pub(super) const MODEM_STATUS: u8 = 0x00;
pub(super) const TRANSMITTER_EMPTY: u8 = 0x02;
pub(super) const RECEIVED: u8 = 0x04;
pub(super) const LINE_STATUS: u8 = 0x06;
pub(super) const TIMEOUT: u8 = 0x0c;
pub(super) const FIFOS_ON: u8 = 0xc0;

// FIFO control register.
pub(super) const FIFO_ENABLE: u8 = 0x01;
pub(super) const CLEAR_RECEIVER: u8 = 0x02;

/// Divisor latch access bit of the line control register.
pub(super) const DLAB: u8 = 0x80;
/// Bytes in each FIFO.
pub(super) const FIFO: usize = 16;
