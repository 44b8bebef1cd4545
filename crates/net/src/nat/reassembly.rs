//! Puts the guest's IPv4 fragments together (RFC 791, 3.2). Called by the NAT for every fragment.
//!
//! Bounded: a few datagrams at a time, the oldest gives way. Fragments that overlap are how filters are deceived; a datagram
//! that has some is dropped whole, as RFC 5722 has it for IPv6.

use super::packet::IPV4;
use smoltcp::wire::Ipv4Packet;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Datagrams that are being put together at a time.
const MOST: usize = 8;
/// RFC 1122, 3.3.2, wants 60 to 120 s at most; nothing gets lost on this cable.
const PATIENCE: Duration = Duration::from_secs(15);
/// The longest payload that an IPv4 packet without options can have.
const LONGEST: usize = 65535 - IPV4;

/// Datagrams of which something is missing.
#[derive(Default, Debug)]
pub(super) struct Reassembly {
    partial: Vec<Datagram>,
}

type Key = (Ipv4Addr, Ipv4Addr, u8, u16);

#[derive(Debug)]
struct Datagram {
    key: Key,
    since: Duration,
    /// An IPv4 header without options, and the payload as far as it is known.
    bytes: Vec<u8>,
    /// Which parts of the payload have come, by their ends.
    parts: Vec<(usize, usize)>,
    /// Length of the payload, once the last fragment has told.
    total: Option<usize>,
}

impl Reassembly {
    /// Adds a fragment. Returns the packet that it completes, with a header that has no options.
    pub(super) fn add(&mut self, packet: &Ipv4Packet<&[u8]>, now: Duration) -> Option<Vec<u8>> {
        self.partial.retain(|datagram| now - datagram.since < PATIENCE);
        let key = (packet.src_addr(), packet.dst_addr(), u8::from(packet.next_header()), packet.ident());
        let start = usize::from(packet.frag_offset());
        let payload = packet.payload();
        let end = start + payload.len();
        let at = self.partial.iter().position(|datagram| datagram.key == key);
        if end > LONGEST || payload.is_empty() || (packet.more_frags() && !payload.len().is_multiple_of(8)) {
            at.map(|at| self.partial.remove(at));
            return None;
        }
        let at = at.unwrap_or_else(|| {
            if self.partial.len() >= MOST {
                self.partial.remove(0);
            }
            self.partial.push(Datagram {
                key,
                since: now,
                bytes: vec![0; IPV4],
                parts: Vec::new(),
                total: None,
            });
            self.partial.len() - 1
        });
        let datagram = &mut self.partial[at];
        let last = (!packet.more_frags()).then_some(end);
        let overlaps = datagram.parts.iter().any(|&(from, to)| start < to && from < end);
        let disagrees = match (datagram.total, last) {
            (Some(total), None) => end > total,
            (Some(_), Some(_)) => true,
            (None, Some(total)) => datagram.parts.iter().any(|&(_, to)| to > total),
            (None, None) => false,
        };
        if overlaps || disagrees {
            self.partial.remove(at);
            return None;
        }
        datagram.total = datagram.total.or(last);
        if datagram.bytes.len() < IPV4 + end {
            datagram.bytes.resize(IPV4 + end, 0);
        }
        datagram.bytes[IPV4 + start..IPV4 + end].copy_from_slice(payload);
        if start == 0 {
            datagram.bytes[..IPV4].copy_from_slice(&packet.as_ref()[..IPV4]);
        }
        datagram.parts.push((start, end));
        // Nothing overlaps, so all is there when there is as much as the whole has.
        let have: usize = datagram.parts.iter().map(|&(from, to)| to - from).sum();
        if datagram.total != Some(have) {
            return None;
        }
        let mut bytes = self.partial.remove(at).bytes;
        let mut whole = Ipv4Packet::new_unchecked(&mut bytes[..]);
        whole.set_version(4);
        whole.set_header_len(IPV4 as u8);
        whole.set_total_len((IPV4 + have) as u16);
        whole.set_more_frags(false);
        whole.set_frag_offset(0);
        whole.fill_checksum();
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{self, Ends};
    use super::*;
    use crate::frame::ETHERNET;
    use smoltcp::wire::EthernetAddress;

    fn pieces(identification: u16) -> (Vec<u8>, Vec<Vec<u8>>) {
        let data: Vec<u8> = (0..4000).map(|number| (number / 7) as u8).collect();
        let ends = Ends { source: EthernetAddress([2; 6]), destination: EthernetAddress([4; 6]) };
        let mut frame = Vec::new();
        let (from, to) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(1, 2, 3, 4));
        packet::push_udp(&mut frame, ends, (from, 1), (to, 2), &data);
        let pieces = packet::fragments(&frame, identification);
        (frame[ETHERNET + IPV4..].to_vec(), pieces.iter().map(|piece| piece[ETHERNET..].to_vec()).collect())
    }

    fn add(reassembly: &mut Reassembly, piece: &[u8], seconds: u64) -> Option<Vec<u8>> {
        reassembly.add(&Ipv4Packet::new_checked(piece).unwrap(), Duration::from_secs(seconds))
    }

    #[test]
    fn fragments_in_any_order_make_the_datagram() {
        let (payload, pieces) = pieces(1);
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut reassembly = Reassembly::default();
            let mut whole = order.map(|number| add(&mut reassembly, &pieces[number], 0));
            assert!(whole[0].is_none() && whole[1].is_none());
            let whole = whole[2].take().unwrap();
            let packet = Ipv4Packet::new_checked(&whole[..]).unwrap();
            assert!(packet.verify_checksum() && !packet.more_frags());
            assert_eq!(packet.payload(), payload);
            assert!(reassembly.partial.is_empty());
        }
    }

    #[test]
    fn overlaps_end_a_datagram_and_time_does_too() {
        let (_, pieces) = pieces(1);
        let mut reassembly = Reassembly::default();
        add(&mut reassembly, &pieces[0], 0);
        add(&mut reassembly, &pieces[0], 0);
        assert!(reassembly.partial.is_empty());
        add(&mut reassembly, &pieces[0], 0);
        add(&mut reassembly, &pieces[1], 1);
        assert!(add(&mut reassembly, &pieces[2], 20).is_none());
    }

    #[test]
    fn a_flood_of_first_fragments_stays_small() {
        let mut reassembly = Reassembly::default();
        for identification in 0..100 {
            add(&mut reassembly, &pieces(identification).1[0], 0);
        }
        assert_eq!(reassembly.partial.len(), MOST);
    }
}
