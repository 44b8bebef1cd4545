//! What a console and its driver say to each other (VIRTIO 1.2, 5.3).

/// Feature bits (5.3.3).
pub(super) mod feature {
    /// There are several ports, and a pair of rings to talk about them.
    pub(crate) const MULTIPORT: u64 = 1 << 1;
}

/// Rings (5.3.2): the first port's two, the two of control, then two for each further port.
pub(super) const CONTROL_RECEIVE: u16 = 2;
pub(super) const CONTROL_TRANSMIT: u16 = 3;

/// A port's ring to the guest; the one from the guest follows.
pub(super) fn receive_ring(port: usize) -> u16 {
    if port == 0 { 0 } else { 2 * port as u16 + 2 }
}

/// Bytes of the configuration space: columns and rows, which aren't offered, and the most ports there are (5.3.4).
pub(super) const CONFIG_BYTES: usize = 12;
pub(super) const MOST_PORTS: usize = 4;

/// Bytes of a control message: port, event, value (5.3.6.2).
pub(super) const MESSAGE_BYTES: usize = 8;

/// Events (5.3.6.2).
pub(super) mod event {
    /// From the driver: it takes messages now, or can't.
    pub(crate) const DEVICE_READY: u16 = 0;
    /// To the driver: there is such a port.
    pub(crate) const PORT_ADD: u16 = 1;
    /// From the driver: it knows the port, or can't have it.
    pub(crate) const PORT_READY: u16 = 3;
    /// To the driver: the port is a console.
    pub(crate) const CONSOLE_PORT: u16 = 4;
    /// Both ways: somebody has opened the port (1), or closed it (0).
    pub(crate) const PORT_OPEN: u16 = 6;
    /// To the driver: the port's name follows.
    pub(crate) const PORT_NAME: u16 = 7;
}

/// A control message, with what follows it.
pub(super) fn message(port: u32, event: u16, value: u16, more: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MESSAGE_BYTES + more.len());
    bytes.extend(port.to_le_bytes());
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes.extend(more);
    bytes
}

/// Port, event and value of a message.
pub(super) fn parse(bytes: [u8; MESSAGE_BYTES]) -> (u32, u16, u16) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]))
}
