//! kvm-clock: machine time as a factor of the vCPU's TSC, in a page that the guest reads without asking.

use super::spec::{time_info, wall_clock};
use crate::hub::Hub;
use crate::page::Place;
use crate::scale::PvScale;
use engine::GpFault;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One vCPU's clock.
#[derive(Default)]
pub(super) struct Clock {
    /// What was last written to the two MSRs.
    pub(super) wall: u64,
    pub(super) system: u64,
    place: Option<Place>,
    /// The vCPU's TSC is this much ahead of the machine's, wrapping.
    ahead: u64,
}

impl Clock {
    /// The MSR that names the vCPU's structure: bit 0 switches it on.
    pub(super) fn set_system(&mut self, hub: &Hub, value: u64) -> Result<(), GpFault> {
        let place =
            if value & 1 != 0 { Some(super::place(hub, value & !1, time_info::BYTES, 4)?) } else { None };
        (self.system, self.place) = (value, place);
        self.publish(hub);
        Ok(())
    }

    pub(super) fn set_ahead(&mut self, hub: &Hub, ahead: u64) {
        self.ahead = ahead;
        self.publish(hub);
    }

    fn publish(&self, hub: &Hub) {
        let Some(place) = &self.place else { return };
        let scale = PvScale::of(hub.clock.tsc_hz());
        // A guest that moves one TSC apart from the others can't count on readings of several.
        let flags = if self.ahead == 0 { time_info::TSC_STABLE } else { 0 };
        place.write_versioned(time_info::VERSION, |place| {
            place.store(time_info::TSC_TIMESTAMP, self.ahead);
            place.store(time_info::SYSTEM_TIME, 0u64);
            place.store(time_info::MUL, scale.mul);
            place.store(time_info::SHIFT, scale.shift as u8);
            place.store(time_info::FLAGS, flags);
        });
    }

    /// The MSR that asks once for the wall clock at which machine time began. The host may have set its clock meanwhile.
    pub(super) fn write_wall(&mut self, hub: &Hub, value: u64) -> Result<(), GpFault> {
        let place = super::place(hub, value, wall_clock::BYTES, 4)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began = now.saturating_sub(Duration::from_nanos(hub.clock.now().0));
        place.write_versioned(wall_clock::VERSION, |place| {
            place.store(wall_clock::SECONDS, began.as_secs() as u32);
            place.store(wall_clock::NANOSECONDS, began.subsec_nanos());
        });
        self.wall = value;
        Ok(())
    }
}
