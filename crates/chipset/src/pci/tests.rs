use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::PowerRequest;
use crate::testkit::{TestClock, TestPower, acts, hammer, inb, inl, outb, outl};

fn bench() -> (PciHost, Arc<TestPower>) {
    let power = TestPower::new();
    (PciHost::new(power.clone()), power)
}

fn select(pci: &mut PciHost, place: DevFn, register: u8) {
    outl(pci, MECHANISM_1, 0, ADDRESS_ENABLE | u32::from(place.0) << 8 | u32::from(register));
}

#[test]
fn both_mechanisms_find_the_bridges() {
    let (mut pci, _) = bench();
    select(&mut pci, HOST_BRIDGE, 0);
    assert_eq!(inl(&mut pci, MECHANISM_1, 4), 0x29c0_8086);
    select(&mut pci, HOST_BRIDGE, 8);
    assert_eq!(inl(&mut pci, MECHANISM_1, 4) >> 8, 0x06_00_00);
    assert_eq!(inb(&mut pci, MECHANISM_1, 7), 0x06, "a byte of the data port");
    assert_eq!(inl(&mut pci, ECAM, u64::from(ISA_BRIDGE.0) << 12), 0x2918_8086);
    assert_eq!(inl(&mut pci, ECAM, 0x100), 0, "no extended capabilities");
}

#[test]
fn what_is_not_there_reads_all_ones() {
    let (mut pci, _) = bench();
    select(&mut pci, DevFn::new(5, 0), 0);
    assert_eq!(inl(&mut pci, MECHANISM_1, 4), 0xffff_ffff);
    outl(&mut pci, MECHANISM_1, 0, ADDRESS_ENABLE | 1 << 16);
    assert!(pci.read(At { window: MECHANISM_1, offset: 4 }, &mut [0; 4]).is_err(), "no bus 1");
    outl(&mut pci, MECHANISM_1, 0, 0);
    assert!(pci.read(At { window: MECHANISM_1, offset: 4 }, &mut [0; 4]).is_err(), "not enabled");
}

#[test]
fn the_address_register_takes_dwords_only_and_0xcf9_resets() {
    let (mut pci, power) = bench();
    outl(&mut pci, MECHANISM_1, 0, 0xffff_ffff);
    assert_eq!(inl(&mut pci, MECHANISM_1, 0), 0x80ff_fffc);
    let _ = pci.write(At { window: MECHANISM_1, offset: 3 }, &[1]);
    assert_eq!(inl(&mut pci, MECHANISM_1, 0), 0x80ff_fffc);
    outb(&mut pci, MECHANISM_1, 1, 0x02);
    assert_eq!(inb(&mut pci, MECHANISM_1, 1), 0x02);
    outb(&mut pci, MECHANISM_1, 1, 0x06);
    assert_eq!(power.requests(), [PowerRequest::Reset]);
}

#[test]
fn only_writable_bits_are_written() {
    let (mut pci, _) = bench();
    select(&mut pci, ISA_BRIDGE, 0);
    outl(&mut pci, MECHANISM_1, 4, 0);
    assert_eq!(inl(&mut pci, MECHANISM_1, 4), 0x2918_8086);
    select(&mut pci, ISA_BRIDGE, 4);
    outl(&mut pci, MECHANISM_1, 4, 0xffff_ffff);
    assert_eq!(inl(&mut pci, MECHANISM_1, 4), 0x0507);
}

#[test]
fn a_function_plugs_in_once() {
    let (mut pci, _) = bench();
    let function = Arc::new(Mutex::new(ConfigSpace::new(0x1af4, 0x1042, 0x01_00_00, 1, 0)));
    pci.plug(DevFn::new(3, 0), function.clone()).expect("free");
    assert!(pci.plug(DevFn::new(3, 0), function.clone()).is_err());
    assert!(pci.plug(HOST_BRIDGE, function).is_err());
    assert_eq!(inl(&mut pci, ECAM, 3 << 15), 0x1042_1af4);
}

proptest! {
    #[test]
    fn no_register_access_panics(acts in acts()) {
        let (mut pci, _) = bench();
        let windows = [PORTS[0].clone(), MMIO[0].clone()];
        hammer(&mut pci, &windows, &acts, &TestClock::new(), |_| {});
        let saved = pci.save();
        pci.restore(&saved).expect("its own format");
    }
}
