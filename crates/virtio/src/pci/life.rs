//! A transport as a device of the machine: reset, stopped, saved and restored.
//!
//! Saving wants the device's threads to have ended, since they have the rings; [`chipset::Device::quiesce`] sees to that and
//! [`chipset::Device::resume`] starts them again where they were.
//!
//! Threads: the machine's, which may wait.

use super::registers::Registers;
use super::{Phase, Transport};
use crate::interrupt::NO_VECTOR;
use chipset::device::{decode, encode};
use chipset::pci::EndpointState;
use chipset::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

/// Guest-visible state.
#[derive(Serialize, Deserialize)]
struct State {
    endpoint: EndpointState,
    registers: Registers,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    needs_reset: bool,
    device: Vec<u8>,
}

impl chipset::Device for Transport {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&mut self) {
        self.stop();
        self.registers = Registers::new(&self.sizes);
        self.signals.reset();
        self.endpoint.reset();
    }

    fn quiesce(&mut self) {
        let resetting = self.phase == Phase::Stopping;
        self.stop();
        if resetting {
            self.try_finish_reset();
        }
        self.quiesced = true;
    }

    fn resume(&mut self) {
        self.quiesced = false;
        if self.registers.is_running() {
            self.start();
        }
    }

    fn save(&self) -> Saved {
        let (isr, config_vector, queue_vectors) = self.signals.save();
        encode(&State {
            endpoint: self.endpoint.save(),
            registers: self.registers.clone(),
            isr,
            config_vector,
            queue_vectors,
            needs_reset: self.signals.needs_reset(),
            device: self.device.save().0,
        })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("virtio", saved)?;
        let impossible = |what| RestoreError::Impossible { device: "virtio", what };
        if !state.registers.is_possible(&self.sizes, self.offered()) {
            return Err(impossible("registers of another device"));
        }
        let possible = |vector: &u16| *vector == NO_VECTOR || *vector < self.interrupts.vectors();
        if state.queue_vectors.len() != self.sizes.len()
            || !state.queue_vectors.iter().chain([&state.config_vector]).all(possible)
        {
            return Err(impossible("interrupt vectors"));
        }
        let before = self.endpoint.save();
        if !self.endpoint.restore(&state.endpoint) {
            return Err(impossible("configuration space of another device"));
        }
        if let Err(error) = self.device.restore(&Saved(state.device)) {
            let _ = self.endpoint.restore(&before);
            return Err(error);
        }
        self.stop();
        self.registers = state.registers;
        self.signals.restore(state.isr, state.config_vector, &state.queue_vectors, state.needs_reset);
        Ok(())
    }
}
