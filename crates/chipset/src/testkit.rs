//! What the chips' unit tests share: a clock that is set by hand, alarms and wires that remember, and hostile accesses.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::{
    AlarmSink, At, BusDevice, Clock, Edge, Line, LineSink, Nanos, PowerRequest, PowerSink, WindowId,
};

/// The wall clock of the tests at guest time 0: 2024-02-28 23:59:50 UTC.
pub(crate) const WALL: u64 = 1_709_164_790;

#[derive(Default)]
pub(crate) struct TestClock(Mutex<u64>);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(crate) fn set(&self, nanos: u64) {
        *self.0.lock().expect("not poisoned") = nanos;
    }
    pub(crate) fn advance(&self, nanos: u64) {
        *self.0.lock().expect("not poisoned") += nanos;
    }
}

impl Clock for TestClock {
    fn now(&self) -> Nanos {
        Nanos(*self.0.lock().expect("not poisoned"))
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
    fn tsc_at(&self, at: Nanos) -> u64 {
        at.0
    }
    fn when_tsc(&self, tsc: u64) -> Nanos {
        Nanos(tsc)
    }
    fn wall_seconds(&self) -> u64 {
        WALL + self.now().0 / 1_000_000_000
    }
}

/// Remembers when it would ring.
#[derive(Default)]
pub(crate) struct TestAlarm(Mutex<Option<Nanos>>);

impl TestAlarm {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(crate) fn at(&self) -> Option<u64> {
        self.0.lock().expect("not poisoned").map(|at| at.0)
    }
}

impl AlarmSink for TestAlarm {
    fn set(&self, at: Option<Nanos>) {
        *self.0.lock().expect("not poisoned") = at;
    }
}

/// Remembers levels and counts rising edges. What has become of the last one is said by the test.
pub(crate) struct Wires(Mutex<[(bool, u32); 32]>, Mutex<Edge>);

impl Wires {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default(), Mutex::new(Edge::Gone)))
    }
    /// What [`LineSink::last_edge`] says from now on.
    pub(crate) fn set_last_edge(&self, edge: Edge) {
        *self.1.lock().expect("not poisoned") = edge;
    }
    pub(crate) fn line(self: &Arc<Self>, pin: u8) -> Line {
        Line::new(self.clone(), pin)
    }
    pub(crate) fn high(&self, pin: u8) -> bool {
        self.0.lock().expect("not poisoned")[usize::from(pin)].0
    }
    pub(crate) fn edges(&self, pin: u8) -> u32 {
        self.0.lock().expect("not poisoned")[usize::from(pin)].1
    }
}

impl LineSink for Wires {
    fn set_pin(&self, pin: u8, high: bool) {
        let pin = &mut self.0.lock().expect("not poisoned")[usize::from(pin)];
        pin.0 = high;
        pin.1 += u32::from(high);
    }

    fn last_edge(&self, _: u8) -> Edge {
        *self.1.lock().expect("not poisoned")
    }
}

#[derive(Default)]
pub(crate) struct TestPower(Mutex<Vec<PowerRequest>>);

impl TestPower {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(crate) fn requests(&self) -> Vec<PowerRequest> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl PowerSink for TestPower {
    fn request(&self, request: PowerRequest) {
        self.0.lock().expect("not poisoned").push(request);
    }
}

/// One access, or time going by.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Read { window: usize, offset: u64, size: u32 },
    Write { window: usize, offset: u64, size: u32, value: u64 },
    Wait(u64),
}

/// Random sequences of accesses.
pub(crate) fn acts() -> impl Strategy<Value = Vec<Act>> {
    let value = prop_oneof![any::<u64>(), any::<u8>().prop_map(u64::from), Just(u64::MAX), Just(0)];
    let wait = prop_oneof![0..2_000_000_u64, any::<u32>().prop_map(u64::from), 0..1_u64 << 50];
    vec(
        prop_oneof![
            3 => (any::<usize>(), any::<u64>(), 0..4_u32)
                .prop_map(|(window, offset, size)| Act::Read { window, offset, size }),
            6 => (any::<usize>(), any::<u64>(), 0..4_u32, value)
                .prop_map(|(window, offset, size, value)| Act::Write { window, offset, size, value }),
            1 => wait.prop_map(Act::Wait),
        ],
        1..200,
    )
}

/// Does them; `waited` is called when time went by. Accesses stay in their window, as the bus promises.
pub(crate) fn hammer<D: BusDevice>(
    device: &mut D,
    windows: &[(RangeInclusive<u64>, WindowId)],
    acts: &[Act],
    clock: &TestClock,
    waited: impl Fn(&mut D),
) {
    let place = |window: usize, offset: u64, size: u32| {
        let (range, window) = &windows[window % windows.len()];
        let room = range.end() - range.start() + 1;
        let mut len = 1_u64 << size;
        while len > room {
            len /= 2;
        }
        (At { window: *window, offset: offset % (room - len + 1) }, len as usize)
    };
    for act in acts {
        match *act {
            Act::Read { window, offset, size } => {
                let (at, len) = place(window, offset, size);
                let _ = device.read(at, &mut [0; 8][..len]);
            }
            Act::Write { window, offset, size, value } => {
                let (at, len) = place(window, offset, size);
                let _ = device.write(at, &value.to_le_bytes()[..len]);
            }
            Act::Wait(nanos) => {
                clock.advance(nanos);
                waited(device);
            }
        }
    }
}

/// Reads one byte.
pub(crate) fn inb(device: &mut dyn BusDevice, window: WindowId, offset: u64) -> u8 {
    let mut data = [0];
    device.read(At { window, offset }, &mut data).expect("the register exists");
    data[0]
}

/// Writes one byte.
pub(crate) fn outb(device: &mut dyn BusDevice, window: WindowId, offset: u64, value: u8) {
    device.write(At { window, offset }, &[value]).expect("the register exists");
}

/// Reads four bytes.
pub(crate) fn inl(device: &mut dyn BusDevice, window: WindowId, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(At { window, offset }, &mut data).expect("the register exists");
    u32::from_le_bytes(data)
}

/// Writes four bytes.
pub(crate) fn outl(device: &mut dyn BusDevice, window: WindowId, offset: u64, value: u32) {
    device.write(At { window, offset }, &value.to_le_bytes()).expect("the register exists");
}
