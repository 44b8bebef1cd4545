//! What the vCPUs of a machine share of Hyper-V's interface: identity, pages, connections, and each vCPU's interrupt controller.
//!
//! Threads: any. Lock order: connections, a vCPU's controller, the local APIC; the shared registers are a leaf.

use super::spec::{ENABLE, LOCKED, PAGE, Status, tsc_page};
use super::synic::{Message, Synic};
use super::timers;
use crate::hub::Hub;
use crate::page::Place;
use crate::scale::reference_scale;
use engine::{GpFault, VcpuId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use x86::Gpa;

/// VMCALL and RET: what a hypercall page has. Either vendor's CPU does VMCALL here.
const HYPERCALL_PAGE: [u8; 4] = [0x0f, 0x01, 0xc1, 0xc3];

/// Messages that may wait for one slot from one connection.
const MOST_WAITING: usize = 1;

/// Where a connection leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connection {
    /// A message comes back as it is, to that source of that vCPU.
    Echo(u32, usize),
    /// A signal sets its event flag of that source of that vCPU.
    Event(u32, usize),
}

#[derive(Default)]
struct Registers {
    os_id: u64,
    hypercall: u64,
    reference_tsc: (u64, Option<Place>),
    crash: [u64; 5],
}

struct Controller {
    synic: Mutex<Synic>,
    /// Messages wait for their slots.
    waits: AtomicBool,
}

/// What vCPUs share of the interface.
pub struct Partition {
    pub(super) hub: Arc<Hub>,
    registers: Mutex<Registers>,
    controllers: Box<[Controller]>,
    connections: Mutex<BTreeMap<u32, Connection>>,
    /// A guest has moved a TSC, so that it isn't the reference any more.
    tsc_moved: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partition {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let controllers = (0..hub.count())
            .map(|cpu| Controller { synic: Mutex::new(Synic::new(cpu)), waits: AtomicBool::new(false) });
        Self {
            controllers: controllers.collect(),
            hub,
            registers: Mutex::default(),
            connections: Mutex::default(),
            tsc_moved: AtomicBool::new(false),
        }
    }

    /// Power-up state of what isn't a vCPU's own.
    pub(super) fn reset(&self) {
        *lock(&self.registers) = Registers::default();
        lock(&self.connections).clear();
        self.tsc_moved.store(false, Ordering::Relaxed);
    }

    /// Works on a vCPU's controller; then its timers' alarm is as it has to be. `None`: there is no such vCPU.
    pub(super) fn with<R>(&self, cpu: u32, work: impl FnOnce(&mut Synic, u64) -> R) -> Option<R> {
        let controller = self.controllers.get(cpu as usize)?;
        let mut synic = lock(&controller.synic);
        let now = timers::units(self.hub.clock.now());
        let before = synic.timers.next();
        let result = work(&mut synic, now);
        controller.waits.store(synic.waits(), Ordering::Relaxed);
        let next = synic.timers.next();
        if next != before
            && let Some(alarm) = self.hub.alarm(VcpuId(cpu))
        {
            // Within the lock, so that the last one set is the right one.
            alarm.set(next);
        }
        Some(result)
    }

    /// Whether messages wait for the slots of a vCPU. Takes no lock.
    pub(super) fn waits(&self, cpu: u32) -> bool {
        self.controllers.get(cpu as usize).is_some_and(|controller| controller.waits.load(Ordering::Relaxed))
    }

    /// The alarm of a vCPU's timers went off.
    pub(crate) fn timer_alarm(&self, cpu: u32) {
        let lapics = &self.hub.lapics;
        self.with(cpu, |synic, now| {
            synic.run_timers(lapics, now);
            // What the host was late for may be due again already; the alarm has gone off and has to be set anew.
            if let (Some(next), Some(alarm)) = (synic.timers.next(), self.hub.alarm(VcpuId(cpu))) {
                alarm.set(Some(next));
            }
        });
    }

    /// The guest may have freed slots.
    pub(super) fn rescan(&self, cpu: u32, told: bool) {
        let lapics = &self.hub.lapics;
        self.with(cpu, |synic, now| {
            if told {
                synic.end_of_message(lapics);
            } else {
                synic.deliver(lapics);
            }
            synic.run_timers(lapics, now);
        });
    }

    /// Requests the interrupt of a source. False: there is none.
    pub fn raise(&self, cpu: u32, source: usize) -> bool {
        source < 16 && self.with(cpu, |synic, _| synic.raise(&self.hub.lapics, source)).unwrap_or(false)
    }

    /// Makes a connection, in the place of one that has the number already.
    pub fn connect(&self, number: u32, connection: Connection) {
        lock(&self.connections).insert(number, connection);
    }

    /// Ends a connection, if it is of that kind.
    pub fn disconnect(&self, number: u32, events: bool) {
        let mut connections = lock(&self.connections);
        if connections.get(&number).is_some_and(|it| matches!(it, Connection::Event(..)) == events) {
            connections.remove(&number);
        }
    }

    /// A guest's message to a connection.
    pub(super) fn post(&self, number: u32, kind: u32, payload: Vec<u8>) -> Status {
        let Some(&Connection::Echo(cpu, source)) = lock(&self.connections).get(&number) else {
            return Status::InvalidConnection;
        };
        let message = Message { kind, sender: number.into(), payload };
        self.with(cpu, |synic, _| synic.post(&self.hub.lapics, source, message, MOST_WAITING))
            .unwrap_or(Status::InvalidConnection)
    }

    /// A guest's signal to a connection.
    pub(super) fn signal(&self, number: u32, flag: u16) -> Status {
        let Some(&Connection::Event(cpu, source)) = lock(&self.connections).get(&number) else {
            return Status::InvalidConnection;
        };
        self.with(cpu, |synic, _| synic.signal(&self.hub.lapics, source, flag))
            .unwrap_or(Status::InvalidConnection)
    }

    // Registers that vCPUs share.

    pub(super) fn os_id(&self) -> u64 {
        lock(&self.registers).os_id
    }

    /// Without an identity there are no hypercalls.
    pub(super) fn set_os_id(&self, value: u64) {
        let mut registers = lock(&self.registers);
        registers.os_id = value;
        if value == 0 {
            registers.hypercall &= !ENABLE;
        }
    }

    pub(super) fn accepts_calls(&self) -> bool {
        let registers = lock(&self.registers);
        registers.os_id != 0 && registers.hypercall & ENABLE != 0
    }

    pub(super) fn hypercall_page(&self) -> u64 {
        lock(&self.registers).hypercall
    }

    pub(super) fn set_hypercall_page(&self, value: u64) -> Result<(), GpFault> {
        let mut registers = lock(&self.registers);
        // Nothing happens before the guest has said who it is, or after it has locked the page.
        if registers.os_id == 0 || registers.hypercall & LOCKED != 0 {
            return Ok(());
        }
        if value & ENABLE != 0 {
            let place = Place::new(&self.hub.memory, Gpa(value & PAGE), 0x1000).ok_or(GpFault)?;
            place.store_bytes(0, &HYPERCALL_PAGE);
        }
        registers.hypercall = value & (PAGE | LOCKED | ENABLE);
        Ok(())
    }

    pub(super) fn reference_tsc(&self) -> u64 {
        lock(&self.registers).reference_tsc.0
    }

    pub(super) fn set_reference_tsc(&self, value: u64) -> Result<(), GpFault> {
        let mut registers = lock(&self.registers);
        let place = if value & ENABLE != 0 {
            Some(Place::new(&self.hub.memory, Gpa(value & PAGE), tsc_page::BYTES).ok_or(GpFault)?)
        } else {
            None
        };
        registers.reference_tsc = (value, place);
        self.publish_tsc(&registers);
        Ok(())
    }

    /// The TSC of a vCPU is ahead of the machine's: the page tells the guest to ask for the time.
    pub(super) fn tsc_moved(&self, ahead: u64) {
        if ahead != 0 && !self.tsc_moved.swap(true, Ordering::Relaxed) {
            self.publish_tsc(&lock(&self.registers));
        }
    }

    fn publish_tsc(&self, registers: &Registers) {
        let Some(place) = &registers.reference_tsc.1 else { return };
        place.store(tsc_page::SEQUENCE, 0u32);
        if !self.tsc_moved.load(Ordering::Relaxed) {
            place.store(tsc_page::SCALE, reference_scale(self.hub.clock.tsc_hz()));
            place.store(tsc_page::OFFSET, 0u64);
            place.store(tsc_page::SEQUENCE, 1u32);
        }
    }

    pub(super) fn crash_parameter(&self, number: usize) -> u64 {
        lock(&self.registers).crash[number]
    }

    pub(super) fn set_crash_parameter(&self, number: usize, value: u64) {
        lock(&self.registers).crash[number] = value;
    }

    /// The guest says that it has crashed: its parameters and message go to the log.
    pub(super) fn crashed(&self, with_message: bool) {
        let parameters = lock(&self.registers).crash;
        let mut text = String::new();
        if with_message {
            // Text of a guest: no more than a page, and nothing that a terminal would obey.
            let mut bytes = vec![0; parameters[4].min(0x1000) as usize];
            if self.hub.memory.read(Gpa(parameters[3]), &mut bytes).is_ok() {
                let letters = String::from_utf8_lossy(&bytes);
                text = letters.chars().filter(|c| !c.is_control() || *c == '\n').collect();
            }
        }
        tracing::error!("the guest has crashed, {parameters:x?}: {}", text.trim_end());
    }
}
