//! The DHCP server (RFC 2131): one address for each card that asks, from the guest's own upward, for as long as the NAT lives.

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};
use std::net::Ipv4Addr;

/// In seconds. Nobody else gets the address, so it is only a matter of how often guests ask.
const LEASE: u32 = 24 * 60 * 60;

/// What the server gives out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) server: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
    pub(super) router: Ipv4Addr,
    pub(super) resolver: Ipv4Addr,
    /// The first address that is given out, and how many there are.
    pub(super) first: Ipv4Addr,
    pub(super) count: u8,
}

/// Who has which address: the position is the distance from the first.
#[derive(Debug)]
pub(super) struct Server {
    offer: Offer,
    leases: Vec<EthernetAddress>,
}

impl Server {
    pub(super) const fn new(offer: Offer) -> Self {
        Self { offer, leases: Vec::new() }
    }

    /// The reply to a client's message, to be sent to everybody on the cable. `None`: it needs none.
    pub(super) fn answer(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let packet = DhcpPacket::new_checked(message).ok()?;
        let asked = DhcpRepr::parse(&packet).ok()?;
        if asked.server_identifier.is_some_and(|server| server != self.offer.server) {
            return None;
        }
        let client = asked.client_hardware_address;
        let kind = match asked.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request => DhcpMessageType::Ack,
            DhcpMessageType::Inform => {
                return Some(self.reply(&asked, DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED));
            }
            _ => return None,
        };
        let address = self.lease(client)?;
        let wanted = asked.requested_ip.or((!asked.client_ip.is_unspecified()).then_some(asked.client_ip));
        if kind == DhcpMessageType::Ack && wanted.is_some_and(|wanted| wanted != address) {
            return Some(self.reply(&asked, DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED));
        }
        Some(self.reply(&asked, kind, address))
    }

    fn lease(&mut self, client: EthernetAddress) -> Option<Ipv4Addr> {
        if !client.is_unicast() {
            return None;
        }
        let position = match self.leases.iter().position(|lease| *lease == client) {
            Some(position) => position,
            None if self.leases.len() < usize::from(self.offer.count) => {
                self.leases.push(client);
                self.leases.len() - 1
            }
            None => return None,
        };
        Some(Ipv4Addr::from(u32::from(self.offer.first) + position as u32))
    }

    fn reply(&self, asked: &DhcpRepr<'_>, kind: DhcpMessageType, address: Ipv4Addr) -> Vec<u8> {
        let offer = &self.offer;
        let refused = kind == DhcpMessageType::Nak;
        let leased = !refused && !address.is_unspecified();
        let reply = DhcpRepr {
            message_type: kind,
            transaction_id: asked.transaction_id,
            secs: 0,
            client_hardware_address: asked.client_hardware_address,
            client_ip: asked.client_ip,
            your_ip: address,
            server_ip: offer.server,
            router: (!refused).then_some(offer.router),
            subnet_mask: (!refused).then_some(offer.mask),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: asked.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(offer.server),
            parameter_request_list: None,
            dns_servers: (!refused).then(|| [offer.resolver].into_iter().collect()),
            max_size: None,
            lease_duration: leased.then_some(LEASE),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; reply.buffer_len()];
        let emitted = reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]));
        debug_assert!(emitted.is_ok(), "the buffer has the length that was asked for");
        bytes
    }
}
