//! Frames for the guest, made from their parts; and the last touch on those of TCP flows.
//!
//! Each `push_*` appends one complete frame's bytes to an empty buffer. Lengths are those that callers have checked: a
//! datagram is at most 65507 bytes.

use crate::frame::{ETHERNET, Offload, Offloads, PartialChecksum, Segment, SegmentKind};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message,
    Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    UdpPacket,
};
use std::net::Ipv4Addr;

/// The most that an IP packet has, in bytes, but for those that the guest segments itself.
pub(super) const MTU: usize = 1500;
/// Length of an IPv4 header without options.
pub(super) const IPV4: usize = 20;
/// Length of a UDP header.
pub(super) const UDP: usize = 8;
/// The most that a datagram behind these two holds.
pub(super) const LONGEST_DATAGRAM: usize = 65535 - IPV4 - UDP;
/// Time to live of what comes from here.
const HOPS: u8 = 64;

/// From whom and to whom on the guest's cable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    pub(super) source: EthernetAddress,
    pub(super) destination: EthernetAddress,
}

/// Puts an Ethernet header at the start of `frame`.
fn ethernet(frame: &mut [u8], ends: Ends, protocol: EthernetProtocol) {
    let mut header = EthernetFrame::new_unchecked(frame);
    header.set_src_addr(ends.source);
    header.set_dst_addr(ends.destination);
    header.set_ethertype(protocol);
}

/// Puts an Ethernet header in front of the IPv4 packet that `frame` has behind the place for it.
pub(super) fn wrap(frame: &mut [u8], ends: Ends) {
    ethernet(frame, ends, EthernetProtocol::Ipv4);
}

/// An ARP message.
pub(super) fn push_arp(
    into: &mut Vec<u8>,
    ends: Ends,
    operation: ArpOperation,
    sender: Ipv4Addr,
    target: (EthernetAddress, Ipv4Addr),
) {
    let message = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: ends.source,
        source_protocol_addr: sender,
        target_hardware_addr: target.0,
        target_protocol_addr: target.1,
    };
    into.resize(ETHERNET + message.buffer_len(), 0);
    ethernet(into, ends, EthernetProtocol::Arp);
    message.emit(&mut ArpPacket::new_unchecked(&mut into[ETHERNET..]));
}

/// An IPv4 packet of `payload` bytes, which the caller then fills from [`ETHERNET`]` + `[`IPV4`] on.
fn push_ipv4(
    into: &mut Vec<u8>,
    ends: Ends,
    (from, to): (Ipv4Addr, Ipv4Addr),
    protocol: IpProtocol,
    payload: usize,
) {
    into.resize(ETHERNET + IPV4 + payload, 0);
    wrap(into, ends);
    let header = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload,
        hop_limit: HOPS,
    };
    header.emit(&mut Ipv4Packet::new_unchecked(&mut into[ETHERNET..]), &ChecksumCapabilities::default());
}

/// A UDP datagram, longer than a packet where `data` is; [`fragments`] cuts it.
pub(super) fn push_udp(
    into: &mut Vec<u8>,
    ends: Ends,
    (from, from_port): (Ipv4Addr, u16),
    (to, to_port): (Ipv4Addr, u16),
    data: &[u8],
) {
    push_ipv4(into, ends, (from, to), IpProtocol::Udp, UDP + data.len());
    let bytes = &mut into[ETHERNET + IPV4..];
    bytes[UDP..].copy_from_slice(data);
    let mut packet = UdpPacket::new_unchecked(bytes);
    packet.set_src_port(from_port);
    packet.set_dst_port(to_port);
    packet.set_len((UDP + data.len()) as u16);
    packet.fill_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to));
}

/// An ICMP message as it is, with its checksum made anew.
pub(super) fn push_icmp(into: &mut Vec<u8>, ends: Ends, addresses: (Ipv4Addr, Ipv4Addr), message: &[u8]) {
    push_ipv4(into, ends, addresses, IpProtocol::Icmp, message.len());
    let bytes = &mut into[ETHERNET + IPV4..];
    bytes.copy_from_slice(message);
    Icmpv4Packet::new_unchecked(bytes).fill_checksum();
}

/// What RFC 792 wants back of a packet: its header and 8 bytes. Nothing where `packet` has less.
pub(super) fn quote(packet: &[u8]) -> Vec<u8> {
    let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    packet[..packet.len().min(header + 8)].to_vec()
}

/// Destination unreachable, with `code` of RFC 792 and RFC 1122, about the packet that `quoted` begins.
pub(super) fn push_unreachable(
    into: &mut Vec<u8>,
    ends: Ends,
    addresses: (Ipv4Addr, Ipv4Addr),
    code: u8,
    quoted: &[u8],
) {
    let mut message = vec![u8::from(Icmpv4Message::DstUnreachable), code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quoted);
    push_icmp(into, ends, addresses, &message);
}

/// The reset that answers a segment nobody wants (RFC 9293, 3.10.7.1). `None`: a reset has no answer.
pub(super) fn push_reset(
    into: &mut Vec<u8>,
    ends: Ends,
    (from, to): (Ipv4Addr, Ipv4Addr),
    segment: &TcpPacket<&[u8]>,
) -> Option<()> {
    if segment.rst() {
        return None;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(segment.seq_number() + segment.segment_len()))
    };
    let reset = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    push_ipv4(into, ends, (from, to), IpProtocol::Tcp, reset.buffer_len());
    let mut packet = TcpPacket::new_unchecked(&mut into[ETHERNET + IPV4..]);
    reset.emit(&mut packet, &IpAddress::Ipv4(from), &IpAddress::Ipv4(to), &ChecksumCapabilities::default());
    Some(())
}

/// Cuts a frame with an IPv4 packet that is longer than the MTU. Empty where it isn't.
pub(super) fn fragments(frame: &[u8], identification: u16) -> Vec<Vec<u8>> {
    if frame.len() <= ETHERNET + MTU {
        return Vec::new();
    }
    // Offsets count in 8 bytes.
    const PIECE: usize = (MTU - IPV4) & !7;
    let payload = &frame[ETHERNET + IPV4..];
    let pieces = payload.len().div_ceil(PIECE);
    let cut = |(number, piece): (usize, &[u8])| {
        let mut bytes = frame[..ETHERNET + IPV4].to_vec();
        bytes.extend_from_slice(piece);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[ETHERNET..]);
        packet.set_total_len((IPV4 + piece.len()) as u16);
        packet.set_ident(identification);
        packet.set_dont_frag(false);
        packet.set_more_frags(number + 1 < pieces);
        packet.set_frag_offset((number * PIECE) as u16);
        packet.fill_checksum();
        bytes
    };
    payload.chunks(PIECE).enumerate().map(cut).collect()
}

/// Finishes a TCP frame whose checksum is still open: leaves it to the guest where that takes it, with the sum of the
/// pseudo-header in place (virtio 1.2, 5.1.6.2.1), and makes it otherwise. `size`: to be cut into segments of that payload.
pub(super) fn finish_tcp(frame: &mut [u8], deliver: Offloads, size: Option<u16>) -> Offload {
    let packet = Ipv4Packet::new_unchecked(&frame[ETHERNET..]);
    let header = usize::from(packet.header_len());
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let start = ETHERNET + header;
    let length = frame.len() - start;
    if !deliver.checksum {
        let mut packet = TcpPacket::new_unchecked(&mut frame[start..]);
        packet.fill_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to));
        return Offload::NONE;
    }
    let sum = pseudo_header(from, to, length);
    let mut packet = TcpPacket::new_unchecked(&mut frame[start..]);
    packet.set_checksum(sum);
    let headers = start + usize::from(packet.header_len());
    /// Of a TCP header's checksum.
    const OFFSET: u16 = 16;
    Offload {
        checksum: Some(PartialChecksum { start: start as u16, offset: OFFSET }),
        segment: size.map(|size| Segment { kind: SegmentKind::Tcp4, headers: headers as u16, size }),
    }
}

/// The sum of what isn't in the segment but counts (RFC 9293, 3.1), not complemented.
fn pseudo_header(from: Ipv4Addr, to: Ipv4Addr, length: usize) -> u16 {
    let words = |address: Ipv4Addr| {
        let [a, b, c, d] = address.octets();
        u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]))
    };
    let mut sum = words(from) + words(to) + u32::from(u8::from(IpProtocol::Tcp)) + length as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends { source: EthernetAddress([2; 6]), destination: EthernetAddress([4; 6]) };
    const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    #[test]
    fn a_long_datagram_is_cut_into_packets_that_hold_all_of_it() {
        let data: Vec<u8> = (0..5000).map(|number| number as u8).collect();
        let mut frame = Vec::new();
        push_udp(&mut frame, ENDS, (FROM, 1), (TO, 2), &data);
        let pieces = fragments(&frame, 7);
        assert_eq!(pieces.len(), 4);
        let mut back = vec![0; UDP + data.len()];
        for (number, piece) in pieces.iter().enumerate() {
            let packet = Ipv4Packet::new_checked(&piece[ETHERNET..]).unwrap();
            assert!(packet.verify_checksum() && packet.total_len() as usize <= MTU);
            assert_eq!(packet.more_frags(), number < 3);
            let at = usize::from(packet.frag_offset());
            back[at..at + packet.payload().len()].copy_from_slice(packet.payload());
        }
        let datagram = UdpPacket::new_checked(&back[..]).unwrap();
        assert!(datagram.verify_checksum(&FROM.into(), &TO.into()));
        assert_eq!(datagram.payload(), data);
        assert!(fragments(&frame[..100], 7).is_empty());
    }

    #[test]
    fn a_checksum_left_to_the_guest_comes_out_right_when_it_is_finished() {
        let segment =
            [&[0, 80, 4, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0][..], b"odd"].concat();
        let mut frame = Vec::new();
        push_ipv4(&mut frame, ENDS, (FROM, TO), IpProtocol::Tcp, segment.len());
        frame[ETHERNET + IPV4..].copy_from_slice(&segment);
        let mut whole = frame.clone();
        let left = Offloads { checksum: true, tcp4: true, tcp6: false };
        let offload = finish_tcp(&mut frame, left, Some(1460));
        let partial = offload.checksum.unwrap();
        let (start, at) = (usize::from(partial.start), usize::from(partial.start + partial.offset));
        // What a card does: the one's complement of the sum from `start` on, the field's content included.
        let mut sum: u32 = frame[start..]
            .chunks(2)
            .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        assert_eq!(offload.segment, Some(Segment { kind: SegmentKind::Tcp4, headers: 54, size: 1460 }));
        assert_eq!(finish_tcp(&mut whole, Offloads::default(), None), Offload::NONE);
        assert_eq!(frame, whole);
    }

    #[test]
    fn quotes_are_never_longer_than_what_they_quote() {
        assert_eq!(quote(&[]), []);
        assert_eq!(quote(&[0x4f; 5]).len(), 5);
        assert_eq!(quote(&[0x45; 100]).len(), 28);
    }
}
