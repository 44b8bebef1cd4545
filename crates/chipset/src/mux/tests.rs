//! The fabric alone, and with real controllers behind it: every short sequence of what devices, the guest and the VMM can do.

use super::*;
use crate::apic::{ApicEvent, Attention, EoiSink, IoApic, Lapics, Processor};
use crate::clock::{Alarm, AlarmSink, Clock, Nanos};
use crate::line::Line;
use crate::pic::Pic;
use crate::{At, BusDevice, WindowId};
use std::sync::atomic::AtomicUsize;

#[derive(Default)]
struct Log(Mutex<Vec<(u8, bool, bool)>>);

impl Log {
    fn take(&self) -> Vec<(u8, bool, bool)> {
        std::mem::take(&mut *self.0.lock().expect("not poisoned"))
    }
}

impl LineSink for Log {
    fn set_pin(&self, pin: u8, high: bool) {
        self.0.lock().expect("not poisoned").push((pin, high, true));
    }
    fn place_pin(&self, pin: u8, high: bool) {
        self.0.lock().expect("not poisoned").push((pin, high, false));
    }
}

fn fabric() -> (Arc<Log>, Arc<Mux>) {
    let log = Arc::new(Log::default());
    (log.clone(), Arc::new(Mux::new(log, 4)))
}

#[test]
fn lines_of_the_guest_pass_as_if_nothing_were_there() {
    let (log, mux) = fabric();
    let line = Line::new(mux.clone(), 2);
    line.pulse();
    line.set(true);
    assert_eq!(log.take(), [(2, true, true), (2, false, true), (2, true, true)]);
    let state = mux.line(2).expect("there");
    assert_eq!((state.rises, state.to_guest, state.to_vmm, state.high), (2, 2, 0, true));
    assert!(!mux.is_signalled() && !mux.take_status(2));
}

#[test]
fn lines_of_the_vmm_set_status_and_signal_it_once() {
    let (log, mux) = fabric();
    let signals = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&signals);
    mux.connect(Box::new(move || {
        seen.fetch_add(1, Ordering::Relaxed);
    }));
    let line = Line::new(mux.clone(), 1);
    assert!(mux.set_route(1, Route::Vmm));
    log.take();
    for _ in 0..1000 {
        line.pulse();
    }
    assert_eq!((log.take(), signals.load(Ordering::Relaxed)), (vec![], 1), "a storm is one signal");
    assert!(mux.is_signalled() && mux.take_status(1) && !mux.take_status(1) && !mux.is_signalled());
    mux.set_masked(1, true);
    line.set(true);
    assert!(!mux.is_signalled(), "masked");
    mux.set_masked(1, false);
    assert!(mux.is_signalled() && mux.take_status(1) && mux.is_signalled(), "the level is still there");
    line.set(false);
    assert!(!mux.is_signalled());
    assert_eq!(signals.load(Ordering::Relaxed), 2);
}

#[test]
fn an_edge_that_the_vmm_has_not_taken_goes_with_the_line() {
    let (log, mux) = fabric();
    let line = Line::new(mux.clone(), 0);
    mux.set_route(0, Route::Vmm);
    line.pulse();
    log.take();
    mux.set_route(0, Route::Guest);
    assert_eq!(log.take(), [(0, true, true), (0, false, true)]);
    mux.set_route(0, Route::Vmm);
    line.set(true);
    assert!(mux.take_status(0));
    log.take();
    mux.set_route(0, Route::Guest);
    assert_eq!(log.take(), [(0, true, false)], "a level, but no edge");
    mux.set_route(0, Route::Vmm);
    assert_eq!(log.take(), [(0, false, false)]);
    assert!(mux.is_signalled() && !mux.take_status(0), "it is high, and its edge was the guest's");
}

#[test]
fn a_line_whose_devices_have_two_owners_goes_to_both() {
    let (log, mux) = fabric();
    let (ours, theirs) = (Line::new(mux.clone(), 3), Line::new(mux.clone(), 3));
    let theirs = {
        drop(theirs);
        ours.share()
    };
    mux.set_route(3, Route::Both);
    ours.set(true);
    theirs.set(true);
    assert_eq!(log.take(), [(3, true, true)]);
    assert!(mux.is_signalled() && mux.take_status(3));
    ours.set(false);
    assert!(mux.is_signalled(), "the other one still holds it");
    theirs.set(false);
    assert!(!mux.is_signalled());
    assert_eq!(log.take(), [(3, false, true)]);
}

#[test]
fn there_are_no_other_lines() {
    let (log, mux) = fabric();
    mux.set_pin(4, true);
    mux.place_pin(255, true);
    assert!(!mux.set_route(4, Route::Vmm) && !mux.set_masked(200, true) && mux.line(4).is_none());
    assert_eq!((log.take(), mux.last_edge(9), mux.count()), (vec![], Edge::Gone, 4));
}

// The model check.

struct Still;
impl Clock for Still {
    fn now(&self) -> Nanos {
        Nanos(0)
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
        0
    }
}

struct Nobody;
impl AlarmSink for Nobody {
    fn set(&self, _: Option<Nanos>) {}
}
impl Attention for Nobody {
    fn kick(&self) {}
}

/// Both controllers behind a line, as a PC has them.
struct Fan(Arc<dyn LineSink>, Arc<dyn LineSink>);
impl LineSink for Fan {
    fn set_pin(&self, pin: u8, high: bool) {
        self.0.set_pin(pin, high);
        self.1.set_pin(pin, high);
    }
    fn place_pin(&self, pin: u8, high: bool) {
        self.0.place_pin(pin, high);
        self.1.place_pin(pin, high);
    }
}

/// Which controller the guest uses, and how its input is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    IoEdge,
    IoLevel,
    PicEdge,
    PicLevel,
}

impl Kind {
    fn is_level(self) -> bool {
        matches!(self, Self::IoLevel | Self::PicLevel)
    }
    fn is_pic(self) -> bool {
        matches!(self, Self::PicEdge | Self::PicLevel)
    }
}

/// The line of the model, and what its vector is behind either controller.
const LINE: u8 = 10;
const IO_VECTOR: u8 = 0x45;
const PIC_VECTOR: u8 = 0x2a;

/// What can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Rise,
    Fall,
    ToGuest,
    ToVmm,
    Take,
    End,
    Vmm,
}

const ACTS: [Act; 7] = [Act::Rise, Act::Fall, Act::ToGuest, Act::ToVmm, Act::Take, Act::End, Act::Vmm];

struct Model {
    kind: Kind,
    mux: Arc<Mux>,
    line: Line,
    lapics: Arc<Lapics>,
    pic: Pic,
    _ioapic: Arc<IoApic>,
    _output: Arc<Pic>,
    high: bool,
    in_service: bool,
    /// Whom the model says the line belongs to, and which edges it says wait: at the guest's controllers, in the status.
    with_vmm: bool,
    waiting: [bool; 2],
    /// Edges that came, less those that found another waiting where they went; and those that arrived.
    came: u32,
    arrived: u32,
}

impl Model {
    fn new(kind: Kind) -> Self {
        let alarm: Alarm = Arc::new(Nobody);
        let processor = Processor { attention: Arc::new(Nobody), alarm };
        let lapics = Arc::new(Lapics::new(Arc::new(Still), 40, vec![processor]));
        lapics.virtual_wire(0);
        let ioapic = Arc::new(IoApic::new(lapics.clone()));
        let sink: Arc<dyn EoiSink> = ioapic.clone();
        lapics.connect_eoi(Arc::downgrade(&sink));
        let pic = Pic::new(Line::new(lapics.clone(), 0));
        let output = Arc::new(pic.clone());
        let source: std::sync::Weak<Pic> = Arc::downgrade(&output);
        lapics.connect_pic(source);
        let mux = Arc::new(Mux::new(Arc::new(Fan(output.clone(), ioapic.clone())), 16));
        let line = Line::new(mux.clone(), LINE);
        let mut model = Self {
            kind,
            mux,
            line,
            lapics,
            pic,
            _ioapic: ioapic.clone(),
            _output: output,
            high: false,
            in_service: false,
            with_vmm: false,
            waiting: [false; 2],
            came: 0,
            arrived: 0,
        };
        if kind.is_pic() {
            model.set_up_pic();
        } else {
            ioapic.write_mmio(0, &[0x10 + 2 * LINE]);
            let level = if kind.is_level() { 0x8000u32 } else { 0 };
            ioapic.write_mmio(0x10, &(level | u32::from(IO_VECTOR)).to_le_bytes());
        }
        model
    }

    fn pic_write(&mut self, window: WindowId, offset: u64, value: u8) {
        self.pic.write(At { window, offset }, &[value]).expect("a port of the PIC's");
    }

    fn set_up_pic(&mut self) {
        use crate::pic::{ELCR, MASTER, SLAVE};
        for (window, base, cascade) in [(MASTER, 0x20, 4), (SLAVE, 0x28, 2)] {
            for (offset, value) in [(0, 0x11), (1, base), (1, cascade), (1, 1), (1, 0)] {
                self.pic_write(window, offset, value);
            }
        }
        if self.kind.is_level() {
            self.pic_write(ELCR, 1, 1 << (LINE - 8));
        }
    }

    /// The guest ends what it has in service.
    fn end(&mut self) {
        use crate::pic::{MASTER, SLAVE};
        if !std::mem::take(&mut self.in_service) {
            return;
        }
        if self.kind.is_pic() {
            // Specific ends, as Linux writes them.
            self.pic_write(SLAVE, 0, 0x60 | (LINE - 8));
            self.pic_write(MASTER, 0, 0x62);
        } else {
            self.lapics.eoi(0);
        }
    }

    /// The guest takes an interrupt. True: there was one.
    fn take(&mut self) -> bool {
        if self.in_service {
            return false;
        }
        let wanted = if self.kind.is_pic() { PIC_VECTOR } else { IO_VECTOR };
        match self.lapics.take_event(0, true, true) {
            Some(ApicEvent::Interrupt(vector)) if vector == wanted => {
                self.in_service = true;
                true
            }
            // A level-triggered request that was withdrawn (8259A data sheet, "default IR7").
            Some(ApicEvent::Interrupt(0x2f | 0x27)) if self.kind == Kind::PicLevel => {
                // The first chip has the cascade in service.
                self.pic_write(crate::pic::MASTER, 0, 0x62);
                false
            }
            Some(other) => panic!("{other:?}"),
            None => false,
        }
    }

    fn arrive(&mut self, at_vmm: bool) {
        self.arrived += 1;
        self.waiting[usize::from(at_vmm)] = false;
    }

    /// An edge goes somewhere; one that finds another merges with it, as in every controller.
    fn come(&mut self, at_vmm: bool) {
        let waiting = &mut self.waiting[usize::from(at_vmm)];
        self.came += u32::from(!*waiting);
        *waiting = true;
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Rise if !self.high => {
                self.high = true;
                self.come(self.with_vmm);
                self.line.set(true);
            }
            Act::Fall => {
                self.high = false;
                self.line.set(false);
            }
            Act::ToGuest => {
                self.mux.set_route(LINE, Route::Guest);
                self.with_vmm = false;
                if std::mem::take(&mut self.waiting[1]) {
                    self.came -= 1;
                    self.come(false);
                }
            }
            Act::ToVmm => {
                self.mux.set_route(LINE, Route::Vmm);
                self.with_vmm = true;
            }
            Act::Take => {
                if self.take() {
                    self.arrive(false);
                }
            }
            Act::End => self.end(),
            Act::Vmm => {
                if self.mux.take_status(LINE) {
                    self.arrive(true);
                }
            }
            Act::Rise => {}
        }
    }

    /// Everybody does what is to be done, until nothing is left.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.end();
            if self.take() {
                self.arrive(false);
            }
            if self.mux.take_status(LINE) {
                self.arrive(true);
            }
        }
        self.end();
    }

    fn check(mut self, acts: &[Act]) {
        let kind = self.kind;
        if kind.is_level() {
            self.settle();
            let owner = self.mux.line(LINE).expect("there").route;
            // Who owns the line sees its level, and nobody else does.
            let guest = self.take();
            self.end();
            assert_eq!(guest, self.high && owner == Route::Guest, "{kind:?}: {acts:?}");
            assert_eq!(self.mux.is_signalled(), self.high && owner == Route::Vmm, "{kind:?}: {acts:?}");
        } else {
            self.settle();
            assert_eq!(self.arrived, self.came, "{kind:?}: {acts:?}");
            assert!(!self.take(), "one too many, {kind:?}: {acts:?}");
        }
    }
}

fn explore(kind: Kind, depth: usize) {
    let sequences = ACTS.len().pow(depth as u32);
    for number in 0..sequences {
        let mut rest = number;
        let acts: Vec<Act> = (0..depth)
            .map(|_| {
                let act = ACTS[rest % ACTS.len()];
                rest /= ACTS.len();
                act
            })
            .collect();
        let mut model = Model::new(kind);
        for act in &acts {
            model.act(*act);
        }
        model.check(&acts);
    }
}

/// Steps of the sequences that are all tried; `OMBRA_LONG=1` tries longer ones.
fn depth() -> usize {
    if std::env::var_os("OMBRA_LONG").is_some_and(|value| value == "1") { 7 } else { 5 }
}

#[test]
fn every_edge_arrives_once_at_the_io_apic_or_the_vmm_whoever_owns_the_line() {
    explore(Kind::IoEdge, depth());
}

#[test]
fn every_edge_arrives_once_at_the_pic_or_the_vmm_whoever_owns_the_line() {
    explore(Kind::PicEdge, depth());
}

#[test]
fn every_level_is_looked_at_again_by_the_io_apic_whoever_owned_the_line() {
    explore(Kind::IoLevel, depth());
}

#[test]
fn every_level_is_looked_at_again_by_the_pic_whoever_owned_the_line() {
    explore(Kind::PicLevel, depth());
}

#[test]
fn a_hundred_thousand_random_reroutes_lose_and_double_nothing() {
    // Marsaglia's xorshift: the same sequence each time.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for kind in [Kind::IoEdge, Kind::PicEdge, Kind::IoLevel, Kind::PicLevel] {
        let mut model = Model::new(kind);
        let mut reroutes = 0;
        while reroutes < 25_000 {
            let act = ACTS[(random() % ACTS.len() as u64) as usize];
            reroutes += u32::from(matches!(act, Act::ToGuest | Act::ToVmm));
            model.act(act);
        }
        model.check(&[]);
    }
}

#[test]
fn devices_and_reroutes_on_different_threads_lose_no_edge() {
    const EDGES: u64 = 20_000;
    let (log, mux) = fabric();
    let line = Line::new(mux.clone(), 1);
    let done = Arc::new(AtomicBool::new(false));
    let reroutes = std::thread::spawn({
        let (mux, done) = (Arc::clone(&mux), Arc::clone(&done));
        move || {
            let mut taken = 0u64;
            while !done.load(Ordering::Acquire) {
                mux.set_route(1, Route::Vmm);
                taken += u64::from(mux.take_status(1));
                mux.set_route(1, Route::Guest);
            }
            mux.set_route(1, Route::Guest);
            taken
        }
    });
    for _ in 0..EDGES {
        line.pulse();
    }
    done.store(true, Ordering::Release);
    let taken = reroutes.join().expect("no panic");
    let to_guest = log.take().iter().filter(|(_, high, edge)| *high && *edge).count() as u64;
    let state = mux.line(1).expect("there");
    assert_eq!((state.rises, state.to_guest), (EDGES, to_guest));
    // Those in status that found another there are merged; none is lost otherwise.
    let direct = EDGES - state.to_vmm;
    assert!(
        to_guest >= direct && taken + to_guest <= EDGES && taken + to_guest >= direct,
        "{state:?} {taken}"
    );
    assert!(!state.status);
}
