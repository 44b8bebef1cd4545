//! The flows: found by what the guest's packets say, by their sockets' tokens, by their time; and the queue of those that may
//! have something for the guest.
//!
//! A token holds the slot's number and how often it was used, so that news about a socket that is gone find nobody.

use super::datagram::{Datagrams, Echo};
use super::forward::{TcpPort, UdpPort};
use super::tcp::{Pair, Tcp};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// By what packets of the guest's find their flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Key {
    Tcp(Pair),
    Udp(Pair),
    /// The guest's address, the peer's, the identifier.
    Echo(Ipv4Addr, Ipv4Addr, u16),
}

impl Key {
    /// Stands for all connections, where only the kind counts.
    pub(super) const TCP: Self =
        Self::Tcp(Pair { guest: (Ipv4Addr::UNSPECIFIED, 0), peer: (Ipv4Addr::UNSPECIFIED, 0) });
    /// Stands for all UDP flows.
    pub(super) const UDP: Self =
        Self::Udp(Pair { guest: (Ipv4Addr::UNSPECIFIED, 0), peer: (Ipv4Addr::UNSPECIFIED, 0) });

    const fn kind(&self) -> usize {
        match self {
            Self::Tcp(_) => 0,
            Self::Udp(_) => 1,
            Self::Echo(..) => 2,
        }
    }
}

/// A flow, or a port that makes some.
pub(super) enum Flow {
    Tcp(Box<Tcp>),
    Datagrams(Datagrams),
    Echo(Echo),
    TcpPort(TcpPort),
    UdpPort(UdpPort),
}

struct Slot {
    generation: u32,
    flow: Option<Flow>,
    key: Option<Key>,
    queued: bool,
    deadline: Option<Duration>,
}

/// All flows.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: HashMap<Key, u32>,
    counts: [usize; 3],
    ready: VecDeque<u32>,
    timers: BTreeSet<(Duration, u32)>,
}

fn token(slot: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(slot)
}

impl Table {
    /// Number of flows of the kind that `key` has.
    pub(super) fn count(&self, key: &Key) -> usize {
        self.counts[key.kind()]
    }

    /// Takes a slot for a flow that [`Table::put`] or [`Table::leave`] follows up.
    pub(super) fn reserve(&mut self) -> (u32, u64) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, flow: None, key: None, queued: false, deadline: None });
            (self.slots.len() - 1) as u32
        });
        (slot, token(slot, self.slots[slot as usize].generation))
    }

    /// Fills a reserved slot.
    pub(super) fn put(&mut self, slot: u32, key: Option<Key>, flow: Flow) {
        let place = &mut self.slots[slot as usize];
        place.flow = Some(flow);
        place.key = key;
        if let Some(key) = key {
            self.keys.insert(key, slot);
            self.counts[key.kind()] += 1;
        }
    }

    /// Gives a slot back, with the flow in it if there is one.
    pub(super) fn leave(&mut self, slot: u32) -> Option<Flow> {
        self.set_deadline(slot, None);
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        let flow = place.flow.take();
        if let Some(key) = place.key.take() {
            self.keys.remove(&key);
            self.counts[key.kind()] -= 1;
        }
        self.free.push(slot);
        flow
    }

    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.keys.get(key).copied()
    }

    /// Whose socket has this token.
    pub(super) fn by_token(&self, wanted: u64) -> Option<u32> {
        let slot = wanted as u32;
        let place = self.slots.get(slot as usize)?;
        (place.flow.is_some() && token(slot, place.generation) == wanted).then_some(slot)
    }

    pub(super) fn flow(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slots.get_mut(slot as usize)?.flow.as_mut()
    }

    /// All flows with their slots.
    pub(super) fn flows(&mut self) -> impl Iterator<Item = (u32, &mut Flow)> {
        self.slots
            .iter_mut()
            .enumerate()
            .filter_map(|(slot, place)| Some((slot as u32, place.flow.as_mut()?)))
    }

    /// It may have something for the guest.
    pub(super) fn queue(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        if !std::mem::replace(&mut place.queued, true) {
            self.ready.push_back(slot);
        }
    }

    /// The next that may have something. A slot may have been left meanwhile.
    pub(super) fn next_ready(&mut self) -> Option<u32> {
        let slot = self.ready.pop_front()?;
        self.slots[slot as usize].queued = false;
        Some(slot)
    }

    pub(super) fn set_deadline(&mut self, slot: u32, deadline: Option<Duration>) {
        let place = &mut self.slots[slot as usize];
        if place.deadline == deadline {
            return;
        }
        if let Some(before) = std::mem::replace(&mut place.deadline, deadline) {
            self.timers.remove(&(before, slot));
        }
        if let Some(deadline) = deadline {
            self.timers.insert((deadline, slot));
        }
    }

    /// The first deadline of all.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.timers.first().map(|&(deadline, _)| deadline)
    }

    /// Takes one whose deadline has come.
    pub(super) fn expired(&mut self, now: Duration) -> Option<u32> {
        let &(deadline, slot) = self.timers.first()?;
        if deadline > now {
            return None;
        }
        self.set_deadline(slot, None);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::forward::UdpPort;

    fn port() -> Flow {
        Flow::UdpPort(UdpPort::for_test())
    }

    #[test]
    fn news_of_a_flow_that_is_gone_find_nobody() {
        let mut table = Table::default();
        let (slot, old) = table.reserve();
        table.put(slot, None, port());
        assert_eq!(table.by_token(old), Some(slot));
        table.leave(slot);
        assert_eq!(table.by_token(old), None);
        let (again, new) = table.reserve();
        table.put(again, None, port());
        assert_eq!((again, table.by_token(old), table.by_token(new)), (slot, None, Some(slot)));
    }

    #[test]
    fn deadlines_come_in_order_and_once() {
        let mut table = Table::default();
        let at = Duration::from_secs;
        for seconds in [3, 1, 2] {
            let (slot, _) = table.reserve();
            table.put(slot, None, port());
            table.set_deadline(slot, Some(at(seconds)));
        }
        table.set_deadline(2, Some(at(9)));
        assert_eq!(table.deadline(), Some(at(1)));
        assert_eq!(table.expired(at(5)), Some(1));
        assert_eq!(table.expired(at(5)), Some(0));
        assert_eq!((table.expired(at(5)), table.deadline()), (None, Some(at(9))));
    }

    #[test]
    fn a_flow_waits_in_the_queue_once() {
        let mut table = Table::default();
        let (slot, _) = table.reserve();
        table.put(slot, None, port());
        table.queue(slot);
        table.queue(slot);
        assert_eq!((table.next_ready(), table.next_ready()), (Some(slot), None));
    }
}
