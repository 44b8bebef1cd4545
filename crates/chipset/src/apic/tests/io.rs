//! The I/O APIC together with the local ones.

use super::*;

#[test]
fn io_apic_identity_and_read_only_bits() {
    let board = Board::new(1);
    board.io_write(0, 0xff00_0000);
    assert_eq!((board.io_read(0), board.io_read(2)), (0x0f00_0000, 0x0f00_0000));
    assert_eq!(board.io_read(1), 0x0017_0020);
    assert_eq!(board.io_read(0x3e), 0x1_0000);
    board.io_write(0x3e, !0);
    board.io_write(0x3f, !0);
    assert_eq!((board.io_read(0x3e), board.io_read(0x3f)), (0x1_afff, 0xff00_0000));
    assert_eq!(board.io_read(0x40), 0);
}

#[test]
fn an_edge_is_sent_once_and_dropped_while_masked() {
    let board = Board::new(1);
    let line = Line::new(board.ioapic.clone(), 4);
    line.pulse();
    line.set(true);
    board.io_write(0x18, 0x44);
    assert_eq!(board.take(0), None);
    line.set(false);
    line.set(true);
    assert_eq!(board.take(0), interrupt(0x44));
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), None);
}

#[test]
fn a_level_comes_again_after_eoi_until_the_line_falls() {
    let board = Board::new(1);
    let line = Line::new(board.ioapic.clone(), 10);
    line.set(true);
    board.io_write(0x24, 0x8045);
    assert_eq!(board.io_read(0x24), 0xc045);
    assert_eq!(board.take(0), interrupt(0x45));
    assert_eq!(board.read(0, 0x1a0), 1 << 5, "TMR");
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), interrupt(0x45));
    line.set(false);
    assert_eq!(board.io_read(0x24), 0xc045, "until the EOI");
    board.write(0, EOI, 0);
    assert_eq!(board.io_read(0x24), 0x8045);
    assert_eq!(board.take(0), None);
}

#[test]
fn with_broadcast_suppressed_the_eoi_register_ends_a_level() {
    let board = Board::new(1);
    board.write(0, SVR, 0x11ff);
    let line = Line::new(board.ioapic.clone(), 10);
    board.io_write(0x24, 0x8045);
    line.set(true);
    assert_eq!(board.take(0), interrupt(0x45));
    board.write(0, EOI, 0);
    assert_eq!(board.io_read(0x24), 0xc045);
    assert_eq!(board.take(0), None);
    board.ioapic.write_mmio(0x40, &0x45u32.to_le_bytes());
    assert_eq!(board.take(0), interrupt(0x45));
    line.set(false);
    board.ioapic.write_mmio(0x40, &[0x45]);
    assert_eq!(board.io_read(0x24), 0x8045);
}

#[test]
fn turning_an_entry_to_edge_and_back_clears_remote_irr() {
    let board = Board::new(1);
    board.io_write(0x24, 0x8045);
    board.ioapic.set_pin(10, true);
    board.ioapic.set_pin(10, false);
    board.io_write(0x24, 0x1_0045);
    board.io_write(0x24, 0x8045);
    assert_eq!(board.io_read(0x24), 0x8045);
}

#[test]
fn nmi_entries_are_edges_whatever_the_trigger_bit_says() {
    let board = Board::new(2);
    board.io_write(0x25, 1 << 24);
    board.io_write(0x24, 0x8400);
    board.ioapic.set_pin(10, true);
    assert_eq!(board.io_read(0x24), 0x8400);
    assert_eq!(board.take(1), Some(ApicEvent::Nmi));
    assert_eq!(board.take(0), None);
}

#[test]
fn an_extint_entry_lends_intr_to_its_target() {
    let board = Board::new(1);
    let pic = Pic::wire(&board);
    pic.raise();
    assert_eq!(board.take(0), None);
    board.io_write(0x10, 0x700);
    board.ioapic.set_pin(0, true);
    assert_eq!(board.take(0), interrupt(0x30));
    pic.raise();
    assert_eq!(board.take(0), None, "one message, one acknowledge");
}

#[test]
fn a_level_that_nobody_takes_does_not_make_the_input_deaf() {
    let board = Board::new(1);
    // Disabled by software.
    board.write(0, SVR, 0xff);
    let line = Line::new(board.ioapic.clone(), 10);
    line.set(true);
    board.io_write(0x24, 0x8045);
    assert_eq!(board.io_read(0x24), 0x8045, "not waiting for an EOI");
    board.write(0, SVR, 0x1ff);
    assert_eq!(board.take(0), None);
    // Writing another entry is enough.
    board.io_write(0x26, 0x1_0000);
    assert_eq!(board.io_read(0x24), 0xc045);
    assert_eq!(board.take(0), interrupt(0x45));
    // No such processor; the next rise is heard again.
    line.set(false);
    board.write(0, EOI, 0);
    board.io_write(0x25, 7 << 24);
    line.set(true);
    assert_eq!(board.io_read(0x24), 0x8045);
    board.io_write(0x25, 0);
    assert_eq!(board.take(0), interrupt(0x45));
}
