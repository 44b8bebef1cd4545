//! One local APIC (SDM 3A 10.4 to 10.9, 10.12): registers, priorities, LVT. A value that calls nobody but its clock and alarm.
//!
//! Owned by `Lapics`, which locks it, routes the messages it wants sent ([`Action`]), and kicks its vCPU when
//! [`Lapic::attend`] has been set.
//!
//! Polarity bits are kept but have no effect: wires here say asserted or not.

use super::bits::Vectors;
use super::spec::{VERSION, base, esr, icr, lvt, mode, reg, svr};
use super::timer::{Mode, Timer};
use super::{ApicEvent, MsrFault};
use crate::clock::{Alarm, Clock, Nanos};
use crate::line::Edge;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the owner has to do once the APIC is unlocked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    None,
    /// Send what the ICR says.
    Ipi(u64),
    /// Tell the I/O APIC.
    Eoi(u8),
}

/// What one local APIC has counted since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ApicCounts {
    /// Interrupts that the vCPU took from it.
    pub delivered: u64,
    /// EOIs that the guest wrote.
    pub eoi_explicit: u64,
    /// EOIs that the guest left in the page that it shares, see [`Lapics::arm_lazy`](super::Lapics::arm_lazy).
    pub eoi_lazy: u64,
    /// Interrupts that ended as they were taken, see [`Lapics::set_auto_eoi`](super::Lapics::set_auto_eoi).
    pub eoi_auto: u64,
    /// EOIs that named their vector, see [`Lapics::eoi_of`](super::Lapics::eoi_of).
    pub eoi_selective: u64,
}

/// Guest-visible state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) base: u64,
    pub(super) tpr: u8,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// Vectors that end as they are taken.
    auto: Vectors,
    /// The guest may end the highest vector in service without telling.
    pub(super) lazy: bool,
    /// What the last write of ESR latched, and what has come up since.
    esr: u32,
    errors: u32,
    icr: u64,
    pub(super) lvt: [u32; lvt::COUNT],
    timer: Timer,
    /// Pending, to be taken by the vCPU.
    init: bool,
    startup: Option<u8>,
    /// Two can wait: one that the vCPU takes at once, and one that it latches meanwhile. See [`Lapic::nmi`].
    nmis: u8,
    /// An ExtINT message came: INTR is this vCPU's until it acknowledges.
    pub(super) extint: bool,
    /// The vCPU waits for a start-up IPI.
    waiting: bool,
}

impl State {
    fn power_up(id: u32) -> Self {
        Self {
            base: base::DEFAULT | base::EN | if id == 0 { base::BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: !0,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            auto: Vectors::default(),
            lazy: false,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [lvt::MASKED; lvt::COUNT],
            timer: Timer::default(),
            init: false,
            startup: None,
            nmis: 0,
            extint: false,
            waiting: id != 0,
        }
    }

    /// Whether this is a state that the chip can be in.
    pub(super) fn is_possible(&self) -> bool {
        (self.base & base::EXTD == 0 || self.base & base::EN != 0)
            && [&self.isr, &self.irr].iter().all(|set| set.register(0) & 0xffff == 0)
            && self.svr & !svr::WRITABLE == 0
            && self.nmis <= 2
            && self.timer.is_possible()
            && self.lvt.iter().zip(lvt::WRITABLE).all(|(entry, mask)| entry & !(mask | lvt::REMOTE_IRR) == 0)
    }
}

pub(super) struct Lapic {
    // Configuration.
    id: u32,
    /// IA32_APIC_BASE bits that must be zero.
    base_reserved: u64,
    // Wiring.
    clock: Arc<dyn Clock>,
    alarm: Alarm,
    // Runtime.
    alarm_at: Option<Nanos>,
    pub(super) quiesced: bool,
    /// Levels of LINT0 and LINT1 as last seen; stale while the pin is masked.
    seen: [bool; 2],
    /// Something new is pending.
    pub(super) attend: bool,
    pub(super) counts: ApicCounts,
    // Guest-visible state.
    pub(super) state: State,
}

impl Lapic {
    pub(super) fn new(id: u32, physical_bits: u8, clock: Arc<dyn Clock>, alarm: Alarm) -> Self {
        let physical = u64::MAX.checked_shl(physical_bits.into()).unwrap_or(0);
        Self {
            id,
            base_reserved: physical | 0x2ff,
            clock,
            alarm,
            alarm_at: None,
            quiesced: false,
            seen: [false; 2],
            attend: false,
            counts: ApicCounts::default(),
            state: State::power_up(id),
        }
    }

    pub(super) fn reset(&mut self) {
        self.state = State::power_up(self.id);
        self.arm();
    }

    /// After power-up everything but base and ID is as after INIT (SDM 3A 10.4.7.1, 10.4.7.3; 10.12.5.1: x2APIC mode stays).
    fn clear_registers(&mut self) {
        let (old, power_up) = (&self.state, State::power_up(self.id));
        let timer = old.timer.after_init();
        self.state = State {
            base: old.base,
            init: old.init,
            startup: old.startup,
            auto: old.auto,
            waiting: old.waiting,
            nmis: old.nmis,
            timer,
            ..power_up
        };
        self.arm();
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.state.base & base::EN != 0
    }

    pub(super) fn is_x2apic(&self) -> bool {
        self.state.base & base::EXTD != 0
    }

    pub(super) fn is_software_enabled(&self) -> bool {
        self.state.svr & svr::ENABLED != 0
    }

    /// LDR as messages are matched with it (SDM 3A 10.12.10.2 for x2APIC).
    pub(super) fn logical_id(&self) -> u32 {
        if self.is_x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 15) } else { self.state.ldr }
    }

    // Priorities.

    /// Processor priority (SDM 3A 10.8.3.1).
    pub(super) fn ppr(&self) -> u8 {
        let in_service = self.state.isr.highest().unwrap_or(0);
        if self.state.tpr >> 4 >= in_service >> 4 { self.state.tpr } else { in_service & 0xf0 }
    }

    fn apr(&self) -> u8 {
        let requested = self.state.irr.highest().unwrap_or(0);
        let in_service = self.state.isr.highest().unwrap_or(0);
        if self.state.tpr >> 4 >= requested >> 4 && self.state.tpr >> 4 > in_service >> 4 {
            self.state.tpr
        } else {
            (self.state.tpr & 0xf0).max(requested & 0xf0).max(in_service & 0xf0)
        }
    }

    fn deliverable(&self) -> Option<u8> {
        let vector = self.state.irr.highest()?;
        (self.is_enabled() && vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// Whether the vCPU would find something if all its windows were open. INTR apart.
    pub(super) fn has_event(&self) -> bool {
        let state = &self.state;
        state.init
            || if state.waiting {
                state.startup.is_some()
            } else {
                // What the guest has ended without telling blocks nothing, and only the vCPU can find out.
                let unsure = state.lazy && state.irr.highest().is_some() && self.is_enabled();
                state.nmis != 0 || unsure || self.deliverable().is_some()
            }
    }

    /// What has become of a message, or of LINT0's edge with that entry, if this APIC was meant. `refused`: the vCPU has looked at
    /// what there is and couldn't take it.
    pub(super) fn last_edge(&self, delivery: u32, vector: u8, refused: bool) -> Edge {
        let (waits, deliverable) = match delivery {
            mode::FIXED | mode::LOWEST => {
                let free = self.state.lazy || self.deliverable() == Some(vector);
                (self.state.irr.contains(vector), free && !self.state.waiting)
            }
            mode::NMI => (self.state.nmis != 0, true),
            mode::EXTINT => (self.state.extint, true),
            _ => (false, false),
        };
        match (waits, deliverable && !refused) {
            (false, _) => Edge::Gone,
            (true, true) => Edge::Unseen,
            (true, false) => Edge::Held,
        }
    }

    /// The same of what the PIC's output asks.
    pub(super) fn last_intr(&self, refused: bool) -> Edge {
        let entry = self.state.lvt[lvt::LINT0];
        if self.passes_intr() {
            if refused { Edge::Held } else { Edge::Unseen }
        } else if self.listens(0) {
            self.last_edge(mode::of(entry), entry as u8, refused)
        } else {
            Edge::Gone
        }
    }

    /// INIT, start-up or NMI, if the vCPU takes one.
    pub(super) fn take_urgent(&mut self, nmi_window: bool) -> Option<ApicEvent> {
        if self.state.init {
            self.state.init = false;
            self.state.nmis = 0;
            self.state.waiting = self.state.base & base::BSP == 0;
            self.clear_registers();
            self.attend = true;
            return Some(ApicEvent::Init);
        }
        if self.state.waiting {
            let vector = self.state.startup.take()?;
            self.state.waiting = false;
            self.attend = true;
            return Some(ApicEvent::Startup(vector));
        }
        if !nmi_window {
            // One is latched while NMIs are blocked (SDM 3A 6.7.1); others are lost.
            self.state.nmis = self.state.nmis.min(1);
        } else if self.state.nmis != 0 {
            self.state.nmis -= 1;
            self.attend = true;
            return Some(ApicEvent::Nmi);
        }
        None
    }

    /// The acknowledge cycle: IRR to ISR (SDM 3A 10.8.4). Never spurious: looking and taking are one step. A vector that ends by
    /// itself is never in service; if it is level-triggered, its source hears of the end at once.
    pub(super) fn take_interrupt(&mut self) -> Option<(u8, Action)> {
        if self.state.waiting {
            return None;
        }
        let vector = self.deliverable()?;
        self.state.irr.remove(vector);
        self.counts.delivered += 1;
        if !self.state.auto.contains(vector) {
            self.state.isr.insert(vector);
            return Some((vector, Action::None));
        }
        self.counts.eoi_auto += 1;
        // What has a lower priority isn't held back.
        self.attend = true;
        Some((vector, self.ended(vector)))
    }

    // Messages coming in.

    /// A message of the given delivery mode has reached this APIC; `false` if it doesn't take it.
    pub(super) fn accept(&mut self, delivery: u32, vector: u8, level: bool) -> bool {
        match delivery {
            mode::FIXED | mode::LOWEST => return self.request(vector, level),
            mode::NMI => self.nmi(),
            mode::INIT => {
                self.state.init = true;
                // A start-up IPI from before it has come to nothing.
                self.state.startup = None;
                self.attend = true;
            }
            // The manual: only a processor that waits for it takes notice; the first of two starts it.
            mode::STARTUP => {
                let will_wait = self.state.init && self.state.base & base::BSP == 0;
                if (self.state.waiting || will_wait) && self.state.startup.is_none() {
                    self.state.startup = Some(vector);
                    self.attend = true;
                }
            }
            mode::EXTINT => {
                self.state.extint = true;
                self.attend = true;
            }
            _ => return false,
        }
        true
    }

    /// While the vCPU waits for a start-up IPI it stays latched.
    ///
    /// A CPU starts on an NMI within some instructions, so that a second one from elsewhere finds the latch empty. Here the vCPU
    /// may be busy with something else for longer, so the second waits beside the first until the vCPU has looked.
    fn nmi(&mut self) {
        self.state.nmis = (self.state.nmis + 1).min(2);
        self.attend = true;
    }

    fn request(&mut self, vector: u8, level: bool) -> bool {
        // SDM 3A 10.4.7.2: disabled by software, it takes no interrupts.
        if !self.is_software_enabled() || !self.is_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(esr::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        if level {
            self.state.tmr.insert(vector);
        } else {
            self.state.tmr.remove(vector);
        }
        if !self.state.irr.contains(vector) {
            self.state.irr.insert(vector);
            self.attend = true;
        }
        true
    }

    fn error(&mut self, bit: u32) {
        // SDM 3A 10.5.3: the next interrupt comes only after ESR has been written.
        let first = self.state.errors == 0;
        self.state.errors |= bit;
        let entry = self.state.lvt[lvt::ERROR];
        if first && entry & lvt::MASKED == 0 {
            self.request(entry as u8, false);
        }
    }

    // LINT pins.

    /// Whether INTR reaches the vCPU through this APIC, past all priorities.
    pub(super) fn passes_intr(&self) -> bool {
        let entry = self.state.lvt[lvt::LINT0];
        let wired = if self.is_enabled() {
            entry & lvt::MASKED == 0 && mode::of(entry) == mode::EXTINT
        } else {
            // SDM 3A 10.4.3: LINT0 is then the INTR pin, which boards wire to one processor.
            self.id == 0
        };
        (wired || self.state.extint) && !self.state.waiting
    }

    /// Whether the APIC itself has to hear of changes of LINT `pin`.
    pub(super) fn listens(&self, pin: usize) -> bool {
        let entry = self.state.lvt[lvt::LINT0 + pin];
        if self.is_enabled() { entry & lvt::MASKED == 0 && mode::of(entry) != mode::EXTINT } else { pin == 1 }
    }

    /// A pin that was not listened to is again: what happened meanwhile was no edge.
    pub(super) fn resume_pin(&mut self, pin: usize, high: bool) {
        self.seen[pin] = high;
        self.drive_pin(pin, false);
    }

    pub(super) fn set_pin(&mut self, pin: usize, high: bool) {
        let rising = high && !self.seen[pin];
        self.seen[pin] = high;
        self.drive_pin(pin, rising);
    }

    fn drive_pin(&mut self, pin: usize, rising: bool) {
        if !self.listens(pin) {
            return;
        }
        if !self.is_enabled() {
            if rising {
                self.nmi();
            }
            return;
        }
        let entry = self.state.lvt[lvt::LINT0 + pin];
        // NMI and INIT are edges whatever the trigger bit says (SDM 3A 10.5.1).
        let is_level = entry & lvt::LEVEL != 0 && mode::of(entry) == mode::FIXED;
        match mode::of(entry) {
            mode::FIXED if is_level && self.seen[pin] && entry & lvt::REMOTE_IRR == 0 => {
                self.state.lvt[lvt::LINT0 + pin] |= lvt::REMOTE_IRR;
                self.request(entry as u8, true);
            }
            delivery @ (mode::FIXED | mode::NMI | mode::INIT) if rising && !is_level => {
                self.accept(delivery, entry as u8, false);
            }
            _ => {}
        }
    }

    // The timer.

    fn timer_mode(&self) -> Mode {
        Mode::of(self.state.lvt[lvt::TIMER])
    }

    /// The alarm went off, or somebody looks.
    pub(super) fn catch_up(&mut self, now: Nanos) {
        let mode = self.timer_mode();
        if self.state.timer.catch_up(mode, &*self.clock, now) {
            let entry = self.state.lvt[lvt::TIMER];
            if entry & lvt::MASKED == 0 {
                self.request(entry as u8, false);
            }
        }
    }

    /// Called by the machine when the alarm goes off.
    pub(super) fn on_alarm(&mut self) {
        if self.quiesced {
            return;
        }
        self.alarm_at = None;
        self.catch_up(self.clock.now());
        self.arm();
    }

    /// A masked timer runs, but nobody needs waking for it.
    pub(super) fn arm(&mut self) {
        let masked = self.state.lvt[lvt::TIMER] & lvt::MASKED != 0;
        let due = if masked || self.quiesced {
            None
        } else {
            self.state.timer.due(self.timer_mode(), &*self.clock)
        };
        if due != self.alarm_at {
            self.alarm_at = due;
            self.alarm.set(due);
        }
    }

    pub(super) fn tsc_deadline(&mut self) -> u64 {
        self.catch_up(self.clock.now());
        self.state.timer.tsc_deadline(self.timer_mode())
    }

    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        let now = self.clock.now();
        self.catch_up(now);
        self.state.timer.set_tsc_deadline(self.timer_mode(), value);
        self.catch_up(now);
        self.arm();
    }

    pub(super) fn set_tsc_offset(&mut self, offset: u64) {
        self.state.timer.tsc_offset = offset;
        self.catch_up(self.clock.now());
        self.arm();
    }

    // Registers.

    /// IA32_APIC_BASE and its legal transitions (SDM 3A 10.12.5, figure 10-26).
    pub(super) fn set_base(&mut self, value: u64) -> Result<(), MsrFault> {
        let old = self.state.base;
        let enabled = |value| value & base::EN != 0;
        let extended = |value| value & base::EXTD != 0;
        let illegal = value & self.base_reserved != 0
            || extended(value) && !enabled(value)
            || extended(value) && !enabled(old)
            || extended(old) && enabled(value) && !extended(value);
        if illegal {
            return Err(MsrFault);
        }
        // Who booted is not the guest's to change: the vCPU's answer to INIT depends on it, here and in the engine.
        let value = value & !base::BSP | old & base::BSP;
        self.state.base = value;
        if enabled(old) && !enabled(value) {
            self.clear_registers();
        }
        if extended(value) && !extended(old) {
            // SDM 3A 10.12.5.1: all is kept, but the destination doesn't mean the same any more.
            self.state.icr &= 0xffff_ffff;
        }
        self.attend = true;
        Ok(())
    }

    /// Reads a register that both modes have, or `None`.
    fn read(&mut self, register: u8) -> Option<u32> {
        let state = &self.state;
        Some(match register {
            reg::ID if self.is_x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => state.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::LDR => self.logical_id(),
            reg::SVR => state.svr,
            reg::ISR..=reg::ISR_LAST => state.isr.register(register - reg::ISR),
            reg::TMR..=reg::TMR_LAST => state.tmr.register(register - reg::TMR),
            reg::IRR..=reg::IRR_LAST => state.irr.register(register - reg::IRR),
            reg::ESR => state.esr,
            reg::ICR => state.icr as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => state.lvt[usize::from(register - reg::LVT_TIMER)],
            reg::TIMER_INITIAL => state.timer.initial,
            reg::TIMER_CURRENT => {
                let now = self.clock.now();
                self.catch_up(now);
                self.arm();
                self.state.timer.current(self.timer_mode(), now)
            }
            reg::TIMER_DIVIDE => state.timer.divide,
            _ => return None,
        })
    }

    /// Reads an xAPIC register.
    pub(super) fn read_mmio(&mut self, register: u8) -> u32 {
        match register {
            reg::APR => self.apr().into(),
            reg::EOI | reg::REMOTE_READ => 0,
            reg::DFR => self.state.dfr,
            reg::ICR_HIGH => (self.state.icr >> 32) as u32,
            _ => self.read(register).unwrap_or_else(|| {
                self.error(esr::ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes an xAPIC register. Reserved bits are dropped.
    pub(super) fn write_mmio(&mut self, register: u8, value: u32) -> Action {
        match register {
            reg::ID..=reg::VERSION
            | reg::APR..=reg::PPR
            | reg::REMOTE_READ
            | reg::ISR..=reg::IRR_LAST
            | reg::TIMER_CURRENT => {}
            reg::LDR => self.state.ldr = value & 0xff00_0000,
            reg::DFR => self.state.dfr = value | 0x0fff_ffff,
            reg::ICR => {
                self.state.icr = self.state.icr & !0xffff_ffff | u64::from(value) & icr::LOW;
                return self.send();
            }
            reg::ICR_HIGH => {
                self.state.icr = self.state.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            _ => return self.write(register, value),
        }
        Action::None
    }

    /// RDMSR in x2APIC mode (SDM 3A 10.12.1.2).
    pub(super) fn read_msr(&mut self, register: u8) -> Result<u64, MsrFault> {
        if register == reg::ICR {
            return Ok(self.state.icr);
        }
        self.read(register).map(u64::from).ok_or(MsrFault)
    }

    /// WRMSR in x2APIC mode.
    pub(super) fn write_msr(&mut self, register: u8, value: u64) -> Result<Action, MsrFault> {
        let legal: u64 = match register {
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => svr::WRITABLE.into(),
            reg::ICR => !icr::RESERVED,
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                let entry = usize::from(register - reg::LVT_TIMER);
                u64::from(lvt::WRITABLE[entry] | lvt::READ_ONLY[entry])
            }
            reg::TIMER_INITIAL => 0xffff_ffff,
            reg::TIMER_DIVIDE => 0xb,
            _ => return Err(MsrFault),
        };
        if value & !legal != 0 {
            return Err(MsrFault);
        }
        Ok(match register {
            reg::ICR => {
                self.state.icr = value & (icr::LOW | 0xffff_ffff << 32);
                self.send()
            }
            reg::SELF_IPI => {
                self.request(value as u8, false);
                Action::None
            }
            _ => self.write(register, value as u32),
        })
    }

    /// Writes a register that both modes have.
    fn write(&mut self, register: u8, value: u32) -> Action {
        match register {
            reg::TPR => self.set_tpr(value as u8),
            reg::EOI => return self.eoi(),
            reg::SVR => {
                self.state.svr = value & svr::WRITABLE;
                if !self.is_software_enabled() {
                    for entry in &mut self.state.lvt {
                        *entry |= lvt::MASKED;
                    }
                    self.arm();
                }
            }
            reg::ESR => self.state.esr = std::mem::take(&mut self.state.errors),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.set_lvt(usize::from(register - reg::LVT_TIMER), value),
            reg::TIMER_INITIAL => {
                let now = self.clock.now();
                self.catch_up(now);
                self.state.timer.set_initial(self.timer_mode(), value, now);
                self.arm();
            }
            reg::TIMER_DIVIDE => {
                let now = self.clock.now();
                self.catch_up(now);
                self.state.timer.set_divide(self.timer_mode(), value, now);
                self.arm();
            }
            _ => self.error(esr::ILLEGAL_REGISTER),
        }
        Action::None
    }

    pub(super) fn set_tpr(&mut self, value: u8) {
        self.state.tpr = value;
    }

    fn set_lvt(&mut self, entry: usize, value: u32) {
        if entry == lvt::TIMER {
            // What was due under the old setting comes first.
            self.catch_up(self.clock.now());
            self.state.timer.change_mode(self.timer_mode(), Mode::of(value));
        }
        let mut new = value & lvt::WRITABLE[entry] | self.state.lvt[entry] & lvt::REMOTE_IRR;
        if new & lvt::LEVEL == 0 {
            new &= !lvt::REMOTE_IRR;
        }
        if !self.is_software_enabled() {
            new |= lvt::MASKED;
        }
        // A pin that nobody listened to has a stale level; the owner brings that up to date.
        let pin = entry.checked_sub(lvt::LINT0).filter(|pin| *pin < 2 && self.listens(*pin));
        self.state.lvt[entry] = new;
        if let Some(pin) = pin {
            self.drive_pin(pin, false);
        }
        if entry == lvt::TIMER {
            self.arm();
        }
    }

    /// The EOI register: the highest vector in service ends.
    pub(super) fn eoi(&mut self) -> Action {
        self.counts.eoi_explicit += 1;
        self.end_highest()
    }

    fn end_highest(&mut self) -> Action {
        let Some(vector) = self.state.isr.highest() else { return Action::None };
        self.state.isr.remove(vector);
        self.ended(vector)
    }

    /// The named vector ends, whatever else is in service. Nothing happens if it isn't.
    pub(super) fn eoi_of(&mut self, vector: u8) -> Action {
        if !self.state.isr.contains(vector) {
            return Action::None;
        }
        self.counts.eoi_selective += 1;
        self.state.isr.remove(vector);
        self.attend = true;
        self.ended(vector)
    }

    /// Who has to hear that a vector is not in service any more.
    fn ended(&mut self, vector: u8) -> Action {
        if !self.state.tmr.contains(vector) {
            return Action::None;
        }
        for pin in 0..2 {
            let entry = &mut self.state.lvt[lvt::LINT0 + pin];
            if *entry & lvt::REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !lvt::REMOTE_IRR;
                self.drive_pin(pin, false);
            }
        }
        if self.state.svr & svr::NO_EOI_BROADCAST != 0 { Action::None } else { Action::Eoi(vector) }
    }

    /// The vector, 0..=255, ends as it is taken from now on, or doesn't any more.
    pub(super) fn set_auto_eoi(&mut self, vector: u8, on: bool) {
        if on {
            self.state.auto.insert(vector);
        } else {
            self.state.auto.remove(vector);
        }
    }

    /// Lets the guest end the highest vector in service without telling, if nobody would have to hear of it: nothing else is
    /// requested, and it is an edge.
    pub(super) fn arm_lazy(&mut self) -> bool {
        let quiet = self.state.irr.highest().is_none();
        let edge = self.state.isr.highest().is_some_and(|vector| !self.state.tmr.contains(vector));
        self.state.lazy = quiet && edge;
        self.state.lazy
    }

    /// The guest has or hasn't ended that vector, and has to tell again from now on.
    pub(super) fn settle_lazy(&mut self, ended: bool) -> Action {
        if !std::mem::take(&mut self.state.lazy) || !ended {
            return Action::None;
        }
        self.counts.eoi_lazy += 1;
        self.attend = true;
        self.end_highest()
    }

    fn send(&mut self) -> Action {
        let command = self.state.icr;
        let delivery = mode::of(command as u32);
        if matches!(delivery, mode::FIXED | mode::LOWEST) && (command as u8) < 16 {
            self.error(esr::SEND_ILLEGAL_VECTOR);
            return Action::None;
        }
        Action::Ipi(command)
    }

    /// What firmware leaves behind on the boot processor: INTR through LINT0, NMI on LINT1 (MultiProcessor specification
    /// 3.6.2.2, virtual wire mode).
    pub(super) fn virtual_wire(&mut self) {
        self.state.svr = svr::ENABLED | 0xff;
        self.state.lvt[lvt::LINT0] = lvt::LEVEL | mode::EXTINT << 8;
        self.state.lvt[lvt::LINT1] = lvt::LEVEL | mode::NMI << 8;
        self.attend = true;
    }

    /// After a restore: alarms from the state.
    pub(super) fn resume(&mut self) {
        self.quiesced = false;
        self.alarm_at = None;
        self.catch_up(self.clock.now());
        self.arm();
        self.attend = true;
    }

    pub(super) fn quiesce(&mut self) {
        self.quiesced = true;
        self.arm();
    }
}
