//! A frame and what is left to do on it: checksums and segmentation that one side leaves to the other.

/// A frame on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// From the destination's address on, without a frame check sequence.
    pub bytes: &'a [u8],
    /// What its sender has left to do.
    pub offload: Offload,
}

impl<'a> Frame<'a> {
    /// A frame that is complete.
    #[must_use]
    pub const fn complete(bytes: &'a [u8]) -> Self {
        Self { bytes, offload: Offload::NONE }
    }
}

/// What is left to do on a frame.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offload {
    /// The transport's checksum covers only the pseudo-header as yet.
    pub checksum: Option<PartialChecksum>,
    /// It is longer than the network takes and to be cut.
    pub segment: Option<Segment>,
}

impl Offload {
    /// Nothing is left to do.
    pub const NONE: Self = Self { checksum: None, segment: None };
}

/// Where a checksum is to go and from where on it counts (virtio 1.2, 5.1.6.2, `csum_start` and `csum_offset`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// First byte that is summed, in bytes from the frame's start.
    pub start: u16,
    /// Where the sum goes, in bytes from `start`.
    pub offset: u16,
}

/// How a frame is to be cut into segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Which headers are repeated.
    pub kind: SegmentKind,
    /// Length of all headers, in bytes.
    pub headers: u16,
    /// The most payload a segment may have, in bytes.
    pub size: u16,
}

/// The protocols whose packets may be left to cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// What one side can take with work left to do.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offloads {
    /// Frames with a partial checksum.
    pub checksum: bool,
    /// TCP over IPv4 to be cut; goes with `checksum`.
    pub tcp4: bool,
    /// TCP over IPv6 to be cut; goes with `checksum`.
    pub tcp6: bool,
}

/// Length of an Ethernet header, in bytes.
pub(crate) const ETHERNET: usize = 14;

/// Length of the header that virtio-net and tap devices have in front of a frame, in bytes.
pub const HEADER: usize = 12;

/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6).
mod spec {
    pub(super) const NEEDS_CSUM: u8 = 1;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCPV4: u8 = 1;
    pub(super) const GSO_TCPV6: u8 = 4;
    /// Goes with a type: segments may be marked for congestion, which changes nothing here.
    pub(super) const GSO_ECN: u8 = 0x80;
}

impl Offload {
    /// What a header says; `None` where it names something that nobody negotiates, or contradicts itself.
    #[must_use]
    pub fn from_header(header: &[u8; HEADER]) -> Option<Self> {
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let checksum =
            (header[0] & spec::NEEDS_CSUM != 0).then(|| PartialChecksum { start: word(6), offset: word(8) });
        let kind = match header[1] & !spec::GSO_ECN {
            spec::GSO_NONE => return Some(Self { checksum, segment: None }),
            spec::GSO_TCPV4 => SegmentKind::Tcp4,
            spec::GSO_TCPV6 => SegmentKind::Tcp6,
            _ => return None,
        };
        let segment = Segment { kind, headers: word(2), size: word(4) };
        (segment.size != 0 && checksum.is_some()).then_some(Self { checksum, segment: Some(segment) })
    }

    /// The header that says this, for a frame in one buffer.
    #[must_use]
    pub fn to_header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let mut put = |at: usize, word: u16| header[at..at + 2].copy_from_slice(&word.to_le_bytes());
        if let Some(segment) = self.segment {
            put(2, segment.headers);
            put(4, segment.size);
        }
        if let Some(checksum) = self.checksum {
            put(6, checksum.start);
            put(8, checksum.offset);
        }
        put(10, 1);
        header[0] = if self.checksum.is_some() { spec::NEEDS_CSUM } else { 0 };
        header[1] = match self.segment.map(|segment| segment.kind) {
            None => spec::GSO_NONE,
            Some(SegmentKind::Tcp4) => spec::GSO_TCPV4,
            Some(SegmentKind::Tcp6) => spec::GSO_TCPV6,
        };
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_is_left_to_do() {
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        for offload in [
            Offload::NONE,
            Offload { checksum, segment: None },
            Offload { checksum, segment: Some(Segment { kind: SegmentKind::Tcp4, headers: 54, size: 1460 }) },
            Offload { checksum, segment: Some(Segment { kind: SegmentKind::Tcp6, headers: 74, size: 1440 }) },
        ] {
            assert_eq!(Offload::from_header(&offload.to_header()), Some(offload));
        }
    }

    #[test]
    fn headers_that_make_no_sense_say_nothing() {
        let segment = Some(Segment { kind: SegmentKind::Tcp4, headers: 54, size: 0 });
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        assert_eq!(Offload::from_header(&Offload { checksum, segment }.to_header()), None);
        let unsummed = Offload { checksum: None, segment: segment.map(|s| Segment { size: 9, ..s }) };
        assert_eq!(Offload::from_header(&unsummed.to_header()), None);
        let mut fragments = Offload::NONE.to_header();
        fragments[1] = 3;
        assert_eq!(Offload::from_header(&fragments), None);
    }
}
