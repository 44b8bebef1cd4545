//! What a run has counted, and what it took of the host, for people: `ombra run --stats`.
//!
//! Made by the machine when its vCPUs have come back from their threads, on the thread that ran the machine.

use chipset::mux::Mux;
use engine::{Counters, Engine, Vcpu};
use memory::GuestMemory;
use std::time::Duration;

/// A run in numbers.
#[derive(Clone, Debug)]
pub struct Report {
    /// The engine's name.
    pub engine: &'static str,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// How long the run took.
    pub elapsed: Duration,
    /// What the vCPUs have counted, added up; and the memory.
    pub counters: Counters,
    /// Bytes of memory that back guest RAM, where the host tells.
    pub ram_bytes: Option<u64>,
    /// Bytes of memory that the process has beside guest RAM, where the host tells.
    pub beside_ram_bytes: Option<u64>,
}

/// What has been counted of the interrupt lines that have risen.
pub(crate) fn lines(mux: &Mux) -> Counters {
    let mut counters = Counters::new();
    let states = (0..mux.count()).filter_map(|line| Some((line, mux.line(line as u8)?)));
    for (line, state) in states {
        counters.add("lines", "mux_direct", state.to_guest);
        counters.add("lines", "mux_vmm", state.to_vmm);
        counters.add("lines", "reroutes", state.reroutes);
        if state.rises > 0 {
            counters.add("lines", format!("line_{line}"), state.rises);
        }
    }
    counters
}

pub(crate) fn collect<'a>(
    engine: &dyn Engine,
    vcpus: impl Iterator<Item = (&'a dyn Vcpu, Counters)>,
    lines: &Counters,
    memory: &GuestMemory,
    elapsed: Duration,
) -> Report {
    let mut counters = Counters::new();
    let mut count = 0;
    for (vcpu, platform) in vcpus {
        counters.merge(&vcpu.counters());
        counters.merge(&platform);
        count += 1;
    }
    let traces = memory.trace_counts();
    let everybody = traces.parties * traces.events.iter().sum::<u64>();
    for (name, count) in [
        ("events_by_vcpus", traces.events[0]),
        ("events_by_devices", traces.events[1]),
        ("notices", traces.notices),
        ("notices_if_all_were_told", everybody),
        ("guards_asked", traces.asked),
    ] {
        counters.add("traces", name, count);
    }
    counters.merge(lines);
    let ram_bytes = memory.resident();
    let beside_ram_bytes = memory::resident_in_all().zip(ram_bytes).map(|(all, ram)| all.saturating_sub(ram));
    Report { engine: engine.caps().name, vcpus: count, elapsed, counters, ram_bytes, beside_ram_bytes }
}
