//! Devices that answer from the input, and check what the interpreter asks of them.

use crate::Input;
use engine::{Access, Event, GpFault, Hypercall, HypercallOutcome, Kicker, Platform, Window};
use memory::GuestMemory;
use x86::Gpa;

/// Device accesses after which a run is ended: a long REP INS is as endless as a loop.
const ACCESSES: u32 = 3000;
/// Bytes of input that answers are made of.
const ANSWERS: usize = 16;

pub(super) struct Devices {
    memory: GuestMemory,
    kicker: Kicker,
    answers: [u8; ANSWERS],
    next: usize,
    accesses: u32,
    event: Option<Event>,
    cr8: u8,
}

impl Devices {
    pub(super) fn new(input: &mut Input<'_>, memory: GuestMemory, kicker: Kicker) -> Self {
        let mut answers = [0; ANSWERS];
        let taken = input.bytes(ANSWERS);
        answers[..taken.len()].copy_from_slice(taken);
        Self { memory, kicker, answers, next: 0, accesses: 0, event: None, cr8: 0 }
    }

    /// Offers an event at the start of the next run.
    pub(super) fn offer(&mut self, kind: u8, vector: u8) {
        self.event = match kind & 15 {
            0 | 1 => Some(Event::Interrupt(vector)),
            2 => Some(Event::Nmi),
            3 if vector == 3 => Some(Event::Init),
            4 if vector < 4 => Some(Event::Startup(vector)),
            _ => return,
        };
        self.kicker.kick();
    }

    fn byte(&mut self) -> u8 {
        self.next = self.next.wrapping_add(1);
        // The position takes part, so that a loop sees changes.
        self.answers[self.next % ANSWERS].rotate_left((self.next / ANSWERS) as u32)
    }

    fn answer(&mut self, data: &mut [u8]) {
        for byte in data {
            *byte = self.byte();
        }
    }

    /// A busy device: now and then it wants attention, and after very many accesses it ends the run.
    fn count(&mut self) {
        self.accesses += 1;
        if self.accesses >= ACCESSES {
            self.accesses = 0;
            self.kicker.kick();
        }
    }
}

impl Platform for Devices {
    fn mmio(&mut self, at: Gpa, access: Access<'_>) {
        self.count();
        let len = match access {
            Access::Read(data) => {
                self.answer(data);
                data.len()
            }
            Access::Write(data) => data.len(),
        };
        assert!(matches!(len, 1 | 2 | 4 | 8), "a device access of {len} bytes at {at}");
        assert!(self.memory.locate(at).is_none(), "{at} is RAM");
    }

    fn pio(&mut self, port: u16, access: Access<'_>) {
        self.count();
        match access {
            Access::Read(data) => {
                assert!(matches!(data.len(), 1 | 2 | 4), "a port access of {} bytes", data.len());
                self.answer(data);
            }
            Access::Write(data) => {
                assert!(matches!(data.len(), 1 | 2 | 4), "a port access of {} bytes", data.len());
                // Some ports make a device write to memory, where code or page tables may be.
                if port & 3 == 3 {
                    let at = u64::from(self.byte()) << 11 | u64::from(self.byte()) << 3;
                    let _ = self.memory.write(Gpa(at), data);
                }
            }
        }
    }

    fn rdmsr(&mut self, _msr: u32) -> Result<u64, GpFault> {
        if self.byte() & 1 == 0 { Err(GpFault) } else { Ok(u64::from(self.byte()) << 8) }
    }

    fn wrmsr(&mut self, _msr: u32, _value: u64) -> Result<(), GpFault> {
        if self.byte() & 1 == 0 { Err(GpFault) } else { Ok(()) }
    }

    fn hypercall(&mut self, _: Hypercall<'_>) -> HypercallOutcome {
        HypercallOutcome::Undefined
    }

    fn cr8(&mut self) -> u8 {
        self.cr8
    }

    fn set_cr8(&mut self, priority: u8) {
        assert!(priority <= 15, "a task priority class of {priority}");
        self.cr8 = priority;
    }

    fn take_event(&mut self, window: Window) -> Option<Event> {
        self.event.take_if(|event| match event {
            Event::Nmi => window.nmi,
            Event::Interrupt(_) => window.interrupt,
            Event::Init | Event::Startup(_) | Event::Flush(_) => true,
            Event::Wake => window.halted,
        })
    }

    fn has_event(&mut self) -> bool {
        self.event.is_some()
    }

    fn apic_enabled(&mut self) -> bool {
        true
    }
}
