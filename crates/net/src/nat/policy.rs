//! Where on the host a destination of the guest's leads, and the addresses of the guest's network.
//!
//! They are those that people know from QEMU's user network.

use super::dhcp::Offer;
use super::host::Host;
use control::UserNet;
use smoltcp::wire::EthernetAddress;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The guest's router, and its name for the host.
pub(super) const GATEWAY: Ipv4Addr = UserNet::GATEWAY;
/// The guest's resolver.
pub(super) const RESOLVER: Ipv4Addr = UserNet::RESOLVER;
/// The guest. Others on its cable get the addresses behind it.
pub(super) const GUEST: Ipv4Addr = UserNet::GUEST;
/// Of the gateway and of the resolver: locally administered.
pub(super) const MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);

const MASK: u32 = u32::MAX << (32 - UserNet::PREFIX);
/// The network, as a number.
const NETWORK: u32 = GATEWAY.to_bits() & MASK;
/// Of DNS, over UDP and over TCP.
const DOMAIN: u16 = 53;

/// What DHCP gives out.
pub(super) fn offer() -> Offer {
    Offer {
        server: GATEWAY,
        mask: Ipv4Addr::from(MASK),
        router: GATEWAY,
        resolver: RESOLVER,
        first: GUEST,
        count: 240 - GUEST.octets()[3],
    }
}

/// Whether an address is one that a guest on the cable may have.
pub(super) fn is_guest(address: Ipv4Addr) -> bool {
    let number = u32::from(address);
    let host = number & !MASK;
    number & MASK == NETWORK && host != 0 && host != !MASK && address != GATEWAY && address != RESOLVER
}

/// Whether ARP is answered for it.
pub(super) fn is_ours(address: Ipv4Addr) -> bool {
    address == GATEWAY || address == RESOLVER
}

/// Where a destination leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// To this address.
    To(SocketAddr),
    /// To one of the host's resolvers.
    Resolver,
    /// Nobody is there, as far as the guest may know.
    Refused,
    /// Nowhere; no answer is due.
    Nowhere,
}

/// Where a packet of the guest's to `address` and `port` may go.
pub(super) fn way(host: &impl Host, host_loopback: bool, address: Ipv4Addr, port: u16) -> Way {
    if address == RESOLVER {
        return if port == DOMAIN { Way::Resolver } else { Way::Refused };
    }
    if address == GATEWAY {
        return if host_loopback {
            Way::To(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        } else {
            Way::Refused
        };
    }
    let [first, ..] = address.octets();
    // This network, loopback, multicast, and what is reserved (RFC 6890): none of them has a way out through a router.
    let on_cable = u32::from(address) & MASK == NETWORK;
    if on_cable || first == 0 || first == 127 || first >= 224 || port == 0 {
        return Way::Nowhere;
    }
    if !host_loopback && host.is_own(address) {
        return Way::Refused;
    }
    Way::To(SocketAddr::new(IpAddr::V4(address), port))
}

/// Whether the guest's router is what a packet to this address comes to, so that it answers for what it doesn't let through.
pub(super) fn is_routed(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    is_ours(address) || (!is_guest(address) && first != 0 && first < 224)
}
