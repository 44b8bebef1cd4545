//! KVM's hypercalls: number in RAX, arguments in RBX, RCX, RDX and RSI, result in RAX.

use super::Kvm;
use super::spec::{call, error, feature};
use engine::{Hypercall, HypercallOutcome, VcpuId};
use x86::state::gpr;

/// Delivery modes of an IPI that may be sent (SDM 3A 10.6.1).
const FIXED: u64 = 0;
const NMI: u64 = 4;

impl Kvm {
    pub(super) fn call(&mut self, call: Hypercall<'_>) -> HypercallOutcome {
        let Hypercall { registers, long, cpl, .. } = call;
        let argument = |index: usize| if long { registers[index] } else { registers[index] & 0xffff_ffff };
        let arguments = [gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI].map(argument);
        let number = argument(gpr::RAX);
        let result = if cpl == 0 { self.answer(number, arguments, long) } else { error::NOT_PERMITTED };
        // A call from 32-bit code gives 32 bits.
        registers[gpr::RAX] = if long { result as u64 } else { u64::from(result as u32) };
        HypercallOutcome::Done
    }

    fn answer(&mut self, number: u64, arguments: [u64; 4], long: bool) -> i64 {
        let [first, second, third, fourth] = arguments;
        match number {
            // The first argument is for flags, none of which exist.
            call::KICK_CPU if self.has(feature::PV_UNHALT) => {
                self.counts.kicks += 1;
                // Nobody answers for an APIC that isn't there.
                let _ = self.hub.wake(VcpuId(second as u32));
                0
            }
            call::SEND_IPI if self.has(feature::PV_SEND_IPI) => {
                self.counts.ipi_calls += 1;
                self.send_ipis([first, second], third, fourth, if long { 64 } else { 32 })
            }
            call::SCHED_YIELD if self.has(feature::PV_SCHED_YIELD) => {
                self.counts.yields += 1;
                std::thread::yield_now();
                0
            }
            _ => {
                self.counts.unknown += 1;
                error::NO_SUCH_CALL
            }
        }
    }

    /// An IPI to the APICs of a map whose first bit is APIC `lowest`, each word of which has `width` bits: how many took it.
    fn send_ipis(&mut self, map: [u64; 2], lowest: u64, command: u64, width: u32) -> i64 {
        let (vector, mode) = (command as u8, command >> 8 & 7);
        if !matches!(mode, FIXED | NMI) {
            return error::INVALID;
        }
        let lapics = &self.hub.lapics;
        let mut taken = 0;
        for (word, mut bits) in (0u32..).zip(map) {
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                let Ok(id) = u32::try_from(lowest.saturating_add(u64::from(word * width + bit))) else {
                    break;
                };
                let took = if mode == NMI { lapics.request_nmi(id) } else { lapics.request(id, vector) };
                taken += i64::from(took);
            }
        }
        self.counts.ipis += taken as u64;
        taken
    }
}
