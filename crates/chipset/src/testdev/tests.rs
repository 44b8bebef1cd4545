use proptest::prelude::*;

use super::*;
use crate::testkit::{TestClock, TestPower, Wires, acts, hammer, inb, inl, outb, outl};

fn test_device() -> (TestDevice, Arc<Wires>) {
    let wires = Wires::new();
    (TestDevice::new((0..24).map(|n| wires.line(n)).collect()), wires)
}

fn fetch(fw_cfg: &mut FwCfg, selector: u16, len: usize) -> Vec<u8> {
    let at = At { window: SELECTOR_AND_DATA, offset: 0 };
    fw_cfg.write(at, &selector.to_le_bytes()).expect("the selector exists");
    (0..len).map(|_| inb(fw_cfg, SELECTOR_AND_DATA, 1)).collect()
}

#[test]
fn exit_statuses_are_odd() {
    let power = TestPower::new();
    let mut exit = DebugExit::new(power.clone());
    outl(&mut exit, EXIT, 0, 0);
    outb(&mut exit, EXIT, 0, 38);
    assert_eq!(power.requests(), [PowerRequest::Exit(1), PowerRequest::Exit(77)]);
}

#[test]
fn fw_cfg_tells_its_items_and_zeros_after_them() {
    let mut fw_cfg = FwCfg::new(0x1_2345_6000, 3);
    assert_eq!(fetch(&mut fw_cfg, 0, 5), b"QEMU\0");
    assert_eq!(fetch(&mut fw_cfg, 1, 4), [1, 0, 0, 0]);
    assert_eq!(fetch(&mut fw_cfg, 3, 10), [0, 0x60, 0x45, 0x23, 1, 0, 0, 0, 0, 0]);
    assert_eq!(fetch(&mut fw_cfg, 5, 3), [3, 0, 0]);
    assert_eq!(fetch(&mut fw_cfg, 0x0f, 2), [3, 0]);
    assert_eq!(fetch(&mut fw_cfg, 0x11, 8), [0; 8]);
}

#[test]
fn the_latch_takes_every_size_and_shows_in_both_places() {
    let (mut device, _) = test_device();
    outl(&mut device, LATCH, 0, 0x1234_5678);
    outb(&mut device, LATCH, 1, 0xab);
    assert_eq!(inl(&mut device, LATCH, 0), 0x1234_ab78);
    assert_eq!(inb(&mut device, LATCH_BYTES, 3), 0x12);
    outl(&mut device, FLUSH, 0, 0xffff_f000);
}

#[test]
fn ports_drive_interrupt_lines() {
    let (mut device, wires) = test_device();
    outb(&mut device, INTERRUPTS, 13, 1);
    assert!(wires.high(13));
    outl(&mut device, INTERRUPTS, 11, 1);
    assert!(wires.high(11));
    outb(&mut device, INTERRUPTS, 13, 0);
    assert!(!wires.high(13));
    device.reset();
    assert!(!wires.high(11));
}

#[test]
fn the_ram_remembers() {
    let (mut device, _) = test_device();
    outl(&mut device, RAM, 0xfffc, 0xdead_beef);
    assert_eq!(inl(&mut device, RAM, 0xfffc), 0xdead_beef);
    let saved = device.save();
    let (mut other, _) = test_device();
    other.restore(&saved).expect("its own format");
    assert_eq!(inb(&mut other, RAM, 0xffff), 0xde);
}

proptest! {
    #[test]
    fn no_register_access_panics(acts in acts()) {
        let clock = TestClock::new();
        let (mut device, _) = test_device();
        let windows = [&TEST_DEVICE_PORTS[..], &TEST_DEVICE_MMIO[..]].concat();
        hammer(&mut device, &windows, &acts, &clock, |_| {});
        hammer(&mut FwCfg::new(1 << 30, 1), &FW_CFG_PORTS, &acts, &clock, |_| {});
        hammer(&mut DebugExit::new(TestPower::new()), &DEBUG_EXIT_PORTS, &acts, &clock, |_| {});
    }
}
