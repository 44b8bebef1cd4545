//! How a device tells its driver something: MSI-X where the driver uses it, else INTA# with the ISR register.
//!
//! Source: VIRTIO 1.2, 4.1.4.5 (ISR status) and 4.1.5.3, 4.1.5.4. Shared by the transport, whose registers the driver writes,
//! and the device's threads.
//!
//! Threads: any. Lock order: the transport's, then this one, then the function's interrupts.

use chipset::pci::Interrupts;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// No vector: a change is not told (4.1.4.3).
pub(crate) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

struct State {
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    /// Counts changes of the configuration space, for the transport's `config_generation`.
    generation: u8,
}

/// A device's voice.
pub struct Signals {
    interrupts: Arc<Interrupts>,
    /// The device wants to be reset.
    needs_reset: AtomicBool,
    state: Mutex<State>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").field("needs_reset", &self.needs_reset).finish_non_exhaustive()
    }
}

impl Signals {
    pub(crate) fn new(interrupts: Arc<Interrupts>, queues: usize) -> Arc<Self> {
        let state =
            State { isr: 0, config_vector: NO_VECTOR, queue_vectors: vec![NO_VECTOR; queues], generation: 0 };
        Arc::new(Self { interrupts, needs_reset: AtomicBool::new(false), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, state: &mut State, vector: u16, cause: u8) {
        if self.interrupts.uses_messages() {
            self.interrupts.send(vector);
        } else {
            state.isr |= cause;
            self.interrupts.assert(true);
        }
    }

    /// Ring `index` has used buffers.
    pub(crate) fn queue(&self, index: u16) {
        let mut state = self.lock();
        let vector = state.queue_vectors.get(usize::from(index)).copied().unwrap_or(NO_VECTOR);
        self.raise(&mut state, vector, ISR_QUEUE);
    }

    /// The device's configuration space has changed.
    pub fn config_changed(&self) {
        let mut state = self.lock();
        state.generation = state.generation.wrapping_add(1);
        let vector = state.config_vector;
        self.raise(&mut state, vector, ISR_CONFIG);
    }

    /// The device can't go on until it is reset (2.1.2); the driver is told as of a changed configuration.
    pub(crate) fn need_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            self.config_changed();
        }
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(crate) fn generation(&self) -> u8 {
        self.lock().generation
    }

    /// Reading the ISR register clears it, and lowers the line.
    pub(crate) fn take_isr(&self) -> u8 {
        let mut state = self.lock();
        let isr = std::mem::take(&mut state.isr);
        self.interrupts.assert(false);
        isr
    }

    /// The vector as the driver reads it back: none, where there is no such vector.
    fn possible(&self, vector: u16) -> u16 {
        if vector < self.interrupts.vectors() { vector } else { NO_VECTOR }
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.lock().config_vector
    }

    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.lock().config_vector = self.possible(vector);
    }

    pub(crate) fn queue_vector(&self, index: u16) -> u16 {
        self.lock().queue_vectors.get(usize::from(index)).copied().unwrap_or(NO_VECTOR)
    }

    pub(crate) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(place) = self.lock().queue_vectors.get_mut(usize::from(index)) {
            *place = self.possible(vector);
        }
    }

    /// ISR, configuration vector and the rings' vectors.
    pub(crate) fn save(&self) -> (u8, u16, Vec<u16>) {
        let state = self.lock();
        (state.isr, state.config_vector, state.queue_vectors.clone())
    }

    /// Takes over what [`Signals::save`] gave.
    pub(crate) fn restore(&self, isr: u8, config_vector: u16, queue_vectors: &[u16], needs_reset: bool) {
        let mut state = self.lock();
        state.isr = isr & (ISR_QUEUE | ISR_CONFIG);
        state.config_vector = self.possible(config_vector);
        for (place, vector) in state.queue_vectors.iter_mut().zip(queue_vectors) {
            *place = self.possible(*vector);
        }
        self.needs_reset.store(needs_reset, Ordering::Release);
        self.interrupts.assert(state.isr != 0);
    }

    /// Back to power-up.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.isr = 0;
        state.config_vector = NO_VECTOR;
        state.queue_vectors.fill(NO_VECTOR);
        self.needs_reset.store(false, Ordering::Release);
        self.interrupts.assert(false);
    }
}
