//! Tests of the local APICs and the I/O APIC, through the interfaces that a machine uses. Here is the board that they share.

mod ends;
mod io;
mod local;
mod traffic;

use super::*;
use crate::clock::{AlarmSink, Clock, Nanos};
use crate::line::{Line, LineSink, Msi, MsiSink};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const BASE_MSR: u32 = 0x1b;
const DEADLINE_MSR: u32 = 0x6e0;
const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ISR: u64 = 0x100;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

/// A clock that the test moves; its TSC runs at 2 GHz.
#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Nanos {
        Nanos(self.0.load(Ordering::Relaxed))
    }
    fn tsc_hz(&self) -> u64 {
        2_000_000_000
    }
    fn tsc_at(&self, at: Nanos) -> u64 {
        at.to_ticks(self.tsc_hz())
    }
    fn when_tsc(&self, tsc: u64) -> Nanos {
        Nanos::from_ticks(tsc, self.tsc_hz())
    }
    fn wall_seconds(&self) -> u64 {
        0
    }
}

#[derive(Default)]
struct TestAlarm(Mutex<Option<Nanos>>);

impl AlarmSink for TestAlarm {
    fn set(&self, at: Option<Nanos>) {
        *self.0.lock().expect("not poisoned") = at;
    }
}

#[derive(Default)]
struct Kicks(AtomicUsize);

impl Attention for Kicks {
    fn kick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Board {
    clock: Arc<TestClock>,
    lapics: Arc<Lapics>,
    ioapic: Arc<IoApic>,
    alarms: Vec<Arc<TestAlarm>>,
    kicks: Vec<Arc<Kicks>>,
}

impl Board {
    /// Software-enabled everywhere, the other processors started.
    fn new(count: usize) -> Self {
        let board = Self::cold(count);
        for cpu in 0..count as u32 {
            if cpu != 0 {
                board.lapics.with_started(cpu);
            }
            board.write(cpu, SVR, 0x1ff);
        }
        board
    }

    fn cold(count: usize) -> Self {
        let clock = Arc::new(TestClock::default());
        let alarms: Vec<_> = (0..count).map(|_| Arc::new(TestAlarm::default())).collect();
        let kicks: Vec<_> = (0..count).map(|_| Arc::new(Kicks::default())).collect();
        let processors = alarms
            .iter()
            .zip(&kicks)
            .map(|(alarm, kicks)| Processor { attention: kicks.clone(), alarm: alarm.clone() });
        let lapics = Arc::new(Lapics::new(clock.clone(), 40, processors.collect()));
        let ioapic = Arc::new(IoApic::new(lapics.clone()));
        let sink: Arc<dyn EoiSink> = ioapic.clone();
        lapics.connect_eoi(Arc::downgrade(&sink));
        Self { clock, lapics, ioapic, alarms, kicks }
    }

    fn read(&self, cpu: u32, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.lapics.read_mmio(cpu, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, cpu: u32, offset: u64, value: u32) {
        self.lapics.write_mmio(cpu, offset, &value.to_le_bytes());
    }

    fn take(&self, cpu: u32) -> Option<ApicEvent> {
        self.lapics.take_event(cpu, true, true)
    }

    fn ipi(&self, cpu: u32, destination: u32, low: u32) {
        self.write(cpu, ICR_HIGH, destination << 24);
        self.write(cpu, ICR, low);
    }

    fn x2apic(&self, cpu: u32) {
        let old = self.lapics.rdmsr(cpu, BASE_MSR).expect("readable");
        self.lapics.wrmsr(cpu, BASE_MSR, old | 0xc00).expect("a legal step");
    }

    /// Moves time on and sounds the alarms that this makes due.
    fn advance(&self, to: u64) {
        self.clock.0.store(to, Ordering::Relaxed);
        for (cpu, alarm) in (0..).zip(&self.alarms) {
            let due = alarm.0.lock().expect("not poisoned").take_if(|at| at.0 <= to).is_some();
            if due {
                self.lapics.timer_alarm(cpu);
            }
        }
    }

    fn io_write(&self, register: u8, value: u32) {
        self.ioapic.write_mmio(0, &[register]);
        self.ioapic.write_mmio(0x10, &value.to_le_bytes());
    }

    fn io_read(&self, register: u8) -> u32 {
        self.ioapic.write_mmio(0, &[register]);
        let mut data = [0; 4];
        self.ioapic.read_mmio(0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn kicks(&self, cpu: usize) -> usize {
        self.kicks[cpu].0.swap(0, Ordering::Relaxed)
    }
}

impl Lapics {
    fn with_started(&self, cpu: u32) {
        self.send(Msi { address: LAPIC_BASE | u64::from(cpu) << 12, data: 0x500 });
        assert_eq!(self.take_event(cpu, false, false), Some(ApicEvent::Init));
        // From the boot processor, by its ICR.
        self.write_mmio(0, ICR_HIGH, &(cpu << 24).to_le_bytes());
        self.write_mmio(0, ICR, &0x4601u32.to_le_bytes());
        assert_eq!(self.take_event(cpu, false, false), Some(ApicEvent::Startup(1)));
    }
}

fn interrupt(vector: u8) -> Option<ApicEvent> {
    Some(ApicEvent::Interrupt(vector))
}

/// A PIC with one request. As the real one does, it changes its line with its own lock held.
struct Pic {
    line: Mutex<Line>,
    pending: AtomicBool,
}

impl ExtIntSource for Pic {
    fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }
    fn acknowledge(&self) -> u8 {
        let line = self.line.lock().expect("not poisoned");
        self.pending.store(false, Ordering::Relaxed);
        line.set(false);
        0x30
    }
}

impl Pic {
    fn wire(board: &Board) -> Arc<Self> {
        let line = Line::new(board.lapics.clone(), 0);
        let pic = Arc::new(Self { line: Mutex::new(line), pending: AtomicBool::new(false) });
        let source: Arc<dyn ExtIntSource> = pic.clone();
        board.lapics.connect_pic(Arc::downgrade(&source));
        pic
    }

    fn raise(&self) {
        self.pending.store(true, Ordering::Relaxed);
        self.line.lock().expect("not poisoned").set(true);
    }
}
