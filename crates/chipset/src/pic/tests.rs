use proptest::prelude::*;

use super::*;
use crate::testkit::{TestClock, Wires, acts, hammer, inb, outb};

fn set_up() -> (Pic, Arc<Wires>) {
    let wires = Wires::new();
    let mut pic = Pic::new(wires.line(0));
    for (window, base) in [(MASTER, 0x20), (SLAVE, 0x28)] {
        outb(&mut pic, window, 0, 0x11);
        outb(&mut pic, window, 1, base);
        outb(&mut pic, window, 1, if window == MASTER { 4 } else { 2 });
        outb(&mut pic, window, 1, 1);
        outb(&mut pic, window, 1, 0);
    }
    (pic, wires)
}

fn command(pic: &mut Pic, value: u8) {
    outb(pic, MASTER, 0, value);
}

#[test]
fn the_lower_input_wins_and_blocks_the_higher_until_eoi() {
    let (mut pic, wires) = set_up();
    pic.set_pin(5, true);
    pic.set_pin(3, true);
    assert!(wires.high(0));
    assert_eq!(pic.acknowledge(), 0x23);
    assert!(!wires.high(0), "5 is less urgent than 3, which is in service");
    pic.set_pin(1, true);
    assert_eq!(pic.acknowledge(), 0x21, "1 interrupts 3");
    command(&mut pic, 0x20);
    assert!(!pic.pending());
    command(&mut pic, 0x20);
    assert_eq!(pic.acknowledge(), 0x25);
}

#[test]
fn an_edge_interrupts_once_and_a_level_as_long_as_it_is_high() {
    let (mut pic, _) = set_up();
    outb(&mut pic, ELCR, 0, 0xff);
    outb(&mut pic, ELCR, 1, 0xff);
    assert_eq!((inb(&mut pic, ELCR, 0), inb(&mut pic, ELCR, 1)), (0xf8, 0xde));
    pic.set_pin(1, true);
    assert_eq!(pic.acknowledge(), 0x21);
    command(&mut pic, 0x20);
    assert!(!pic.pending());
    pic.set_pin(5, true);
    for _ in 0..2 {
        assert_eq!(pic.acknowledge(), 0x25);
        command(&mut pic, 0x20);
    }
    pic.set_pin(5, false);
    assert!(!pic.pending());
}

#[test]
fn a_withdrawn_request_gives_the_spurious_vector_and_nothing_in_service() {
    let (mut pic, _) = set_up();
    assert_eq!(pic.acknowledge(), 0x27);
    command(&mut pic, 0x0b);
    assert_eq!(inb(&mut pic, MASTER, 0), 0);
}

#[test]
fn the_second_chip_comes_in_over_input_2_and_needs_both_eois() {
    let (mut pic, wires) = set_up();
    pic.set_pin(12, true);
    pic.set_pin(4, true);
    assert_eq!(pic.acknowledge(), 0x2c);
    command(&mut pic, 0x0b);
    assert_eq!(inb(&mut pic, MASTER, 0), 0x04);
    outb(&mut pic, SLAVE, 0, 0x20);
    assert!(!wires.high(0));
    command(&mut pic, 0x20);
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn a_more_urgent_input_of_the_second_chip_waits_unless_specially_nested() {
    for (special, nested) in [(false, 0x01), (true, 0x11)] {
        let (mut pic, _) = set_up();
        for value in [0x20, 4, nested] {
            if value == 0x20 {
                command(&mut pic, 0x11);
            }
            outb(&mut pic, MASTER, 1, value);
        }
        pic.set_pin(12, true);
        assert_eq!(pic.acknowledge(), 0x2c);
        pic.set_pin(9, true);
        assert_eq!(pic.pending(), special);
    }
}

#[test]
fn auto_eoi_leaves_nothing_in_service_and_can_rotate() {
    let (mut pic, _) = set_up();
    command(&mut pic, 0x11);
    for value in [0x20, 4, 0x03] {
        outb(&mut pic, MASTER, 1, value);
    }
    command(&mut pic, 0x80);
    pic.set_pin(3, true);
    assert_eq!(pic.acknowledge(), 0x23);
    pic.set_pin(3, false);
    pic.set_pin(3, true);
    pic.set_pin(4, true);
    assert_eq!(pic.acknowledge(), 0x24, "3 is now the least urgent");
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn specific_eoi_and_set_priority() {
    let (mut pic, _) = set_up();
    command(&mut pic, 0xc0 | 4);
    pic.set_pin(0, true);
    pic.set_pin(5, true);
    assert_eq!(pic.acknowledge(), 0x25, "4 is lowest, so 5 is highest");
    command(&mut pic, 0x60 | 5);
    assert_eq!(pic.acknowledge(), 0x20);
    command(&mut pic, 0xe0);
    pic.set_pin(1, true);
    pic.set_pin(7, true);
    assert_eq!(pic.acknowledge(), 0x21, "0 is lowest after its rotating specific eoi");
}

#[test]
fn special_mask_mode_lets_less_urgent_inputs_through_a_masked_one() {
    let (mut pic, _) = set_up();
    pic.set_pin(3, true);
    assert_eq!(pic.acknowledge(), 0x23);
    pic.set_pin(6, true);
    outb(&mut pic, MASTER, 1, 1 << 3);
    assert!(!pic.pending());
    command(&mut pic, 0x68);
    assert!(pic.pending());
    command(&mut pic, 0x20);
    command(&mut pic, 0x0b);
    assert_eq!(inb(&mut pic, MASTER, 0), 1 << 3, "a plain eoi passes over what is masked");
    command(&mut pic, 0x48);
    assert!(!pic.pending());
}

#[test]
fn polling_acknowledges() {
    let (mut pic, wires) = set_up();
    command(&mut pic, 0x0c);
    assert_eq!(inb(&mut pic, MASTER, 0), 0);
    pic.set_pin(6, true);
    command(&mut pic, 0x0c);
    assert_eq!(inb(&mut pic, MASTER, 0), 0x86);
    assert!(!wires.high(0));
    assert_eq!(inb(&mut pic, MASTER, 1), 0, "the next read is of the mask again");
}

#[test]
fn the_mask_holds_requests_back_without_losing_them() {
    let (mut pic, wires) = set_up();
    outb(&mut pic, MASTER, 1, 0xff);
    pic.set_pin(1, true);
    pic.set_pin(1, false);
    assert!(!wires.high(0));
    assert_eq!(inb(&mut pic, MASTER, 0), 2);
    outb(&mut pic, MASTER, 1, 0xfd);
    assert_eq!(pic.acknowledge(), 0x21);
}

#[test]
fn a_saved_pic_goes_on_where_it_was() {
    let (mut pic, _) = set_up();
    pic.set_pin(3, true);
    let saved = pic.save();
    let wires = Wires::new();
    let mut other = Pic::new(wires.line(0));
    other.restore(&saved).expect("its own format");
    other.resume();
    assert!(wires.high(0));
    assert_eq!(other.acknowledge(), 0x23);
    assert!(pic.restore(&Saved(vec![1, 2])).is_err());
}

proptest! {
    #[test]
    fn no_register_access_panics(acts in acts()) {
        let mut pic = Pic::new(Wires::new().line(0));
        hammer(&mut pic, &PORTS, &acts, &TestClock::new(), |pic| {
            pic.set_pin(11, !pic.pending());
            let _ = pic.acknowledge();
        });
    }
}
