//! Ends of interrupts beside the EOI register: out of order, by themselves, and untold.

use super::*;

/// Puts vectors into service, one inside the other; they have to come in ascending priority.
fn nest(board: &Board, vectors: &[u8]) {
    for &vector in vectors {
        assert!(board.lapics.request(0, vector));
        assert_eq!(board.take(0), interrupt(vector));
    }
}

fn in_service(board: &Board) -> Vec<u8> {
    (0..=255u8).filter(|v| board.read(0, ISR + u64::from(v >> 5) * 0x10) >> (v & 31) & 1 != 0).collect()
}

#[test]
fn three_levels_end_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let board = Board::new(1);
        let vectors = [0x31, 0x52, 0x93];
        nest(&board, &vectors);
        let mut left = vectors.to_vec();
        for at in order {
            board.lapics.eoi_of(0, vectors[at]);
            left.retain(|vector| *vector != vectors[at]);
            assert_eq!(in_service(&board), left);
            assert_eq!(board.read(0, PPR), left.last().map_or(0, |vector| u32::from(*vector & 0xf0)));
        }
        assert_eq!(board.lapics.counts(0).eoi_selective, 3);
    }
}

#[test]
fn the_end_of_a_vector_that_is_not_in_service_is_nothing() {
    let board = Board::new(1);
    nest(&board, &[0x31]);
    assert!(board.lapics.request(0, 0x30));
    for vector in [0, 5, 0x30, 0x32, 0xff] {
        board.lapics.eoi_of(0, vector);
    }
    assert_eq!((in_service(&board), board.take(0)), (vec![0x31], None));
    assert_eq!(board.lapics.counts(0).eoi_selective, 0);
}

#[test]
fn a_lower_vector_that_ends_first_lets_nothing_past_the_higher_one() {
    let board = Board::new(1);
    nest(&board, &[0x31, 0x92]);
    assert!(board.lapics.request(0, 0x61));
    board.lapics.eoi_of(0, 0x31);
    assert_eq!(board.take(0), None, "0x92 is still in service");
    board.kicks(0);
    board.lapics.eoi_of(0, 0x92);
    assert!(board.kicks(0) > 0);
    assert_eq!(board.take(0), interrupt(0x61));
}

#[test]
fn a_level_that_ends_out_of_order_comes_again_if_its_line_is_still_high() {
    let board = Board::new(1);
    let line = Line::new(board.ioapic.clone(), 10);
    board.io_write(0x24, 0x8045);
    line.set(true);
    assert_eq!(board.take(0), interrupt(0x45));
    nest(&board, &[0x91]);
    board.lapics.eoi_of(0, 0x45);
    assert_eq!(board.io_read(0x24), 0xc045, "sent again");
    assert_eq!(board.take(0), None, "but 0x91 comes first");
    line.set(false);
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), interrupt(0x45));
    board.lapics.eoi_of(0, 0x45);
    assert_eq!((board.io_read(0x24), board.take(0)), (0x8045, None));
}

#[test]
fn a_vector_that_ends_by_itself_is_never_in_service_and_holds_nothing_back() {
    let board = Board::new(1);
    board.lapics.set_auto_eoi(0, 0x91, true);
    for _ in 0..3 {
        nest(&board, &[0x91]);
        assert_eq!((in_service(&board), board.read(0, PPR)), (vec![], 0));
    }
    assert!(board.lapics.request(0, 0x31) && board.lapics.request(0, 0x91));
    assert_eq!((board.take(0), board.take(0)), (interrupt(0x91), interrupt(0x31)));
    assert_eq!(in_service(&board), [0x31]);
    // An EOI that the guest writes all the same ends what else there is.
    board.write(0, EOI, 0);
    board.lapics.set_auto_eoi(0, 0x91, false);
    nest(&board, &[0x91]);
    assert_eq!(in_service(&board), [0x91]);
    let counts = board.lapics.counts(0);
    assert_eq!((counts.eoi_auto, counts.eoi_explicit, counts.delivered), (4, 1, 6));
}

#[test]
fn a_level_whose_vector_ends_by_itself_comes_as_long_as_its_line_is_high() {
    let board = Board::new(1);
    board.lapics.set_auto_eoi(0, 0x45, true);
    let line = Line::new(board.ioapic.clone(), 10);
    board.io_write(0x24, 0x8045);
    line.set(true);
    assert_eq!((board.take(0), board.take(0)), (interrupt(0x45), interrupt(0x45)));
    line.set(false);
    assert_eq!(board.take(0), interrupt(0x45), "had been sent already");
    assert_eq!((board.take(0), board.io_read(0x24)), (None, 0x8045));
}

#[test]
fn an_interrupt_may_end_untold_only_if_nobody_has_to_hear_of_it() {
    let board = Board::new(1);
    assert!(!board.lapics.arm_lazy(0), "nothing is in service");
    nest(&board, &[0x41]);
    assert!(board.lapics.arm_lazy(0) && board.lapics.is_lazy(0));
    board.lapics.settle_lazy(0, true);
    assert_eq!((in_service(&board), board.lapics.is_lazy(0)), (vec![], false));
    // Another one waits.
    assert!(board.lapics.request(0, 0x61) && board.lapics.request(0, 0x41));
    assert_eq!(board.take(0), interrupt(0x61));
    assert!(!board.lapics.arm_lazy(0));
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), interrupt(0x41));
    board.write(0, EOI, 0);
    // The I/O APIC waits for it.
    let line = Line::new(board.ioapic.clone(), 10);
    board.io_write(0x24, 0x8045);
    line.set(true);
    assert_eq!(board.take(0), interrupt(0x45));
    assert!(!board.lapics.arm_lazy(0));
}

#[test]
fn an_interrupt_that_comes_while_an_end_may_be_untold_kicks_the_vcpu() {
    for ended in [false, true] {
        let board = Board::new(1);
        nest(&board, &[0x91]);
        assert!(board.lapics.arm_lazy(0));
        board.kicks(0);
        assert!(board.lapics.request(0, 0x31));
        assert!(board.kicks(0) > 0 && board.lapics.is_pending(0));
        board.lapics.settle_lazy(0, ended);
        assert_eq!(board.take(0), if ended { interrupt(0x31) } else { None });
        board.write(0, EOI, 0);
        assert_eq!(board.take(0), if ended { None } else { interrupt(0x31) });
        assert_eq!(board.lapics.counts(0).eoi_lazy, u64::from(ended));
    }
}

#[test]
fn a_nested_interrupt_ends_untold_before_the_outer_one_is_told() {
    let board = Board::new(1);
    nest(&board, &[0x31, 0x91]);
    assert!(board.lapics.arm_lazy(0));
    board.lapics.settle_lazy(0, true);
    assert_eq!(in_service(&board), [0x31]);
    board.write(0, EOI, 0);
    assert_eq!(in_service(&board), []);
}

#[test]
fn init_and_reset_leave_no_untold_end_behind() {
    let board = Board::new(2);
    assert!(board.lapics.request(1, 0x91));
    assert_eq!(board.take(1), interrupt(0x91));
    assert!(board.lapics.arm_lazy(1));
    board.lapics.with_started(1);
    assert!(!board.lapics.is_lazy(1));
    board.lapics.settle_lazy(1, true);
    assert_eq!(board.lapics.counts(1).eoi_lazy, 0);
    board.lapics.set_auto_eoi(1, 0x91, true);
    board.lapics.reset();
    board.lapics.with_started(1);
    board.write(1, SVR, 0x1ff);
    assert!(board.lapics.request(1, 0x91));
    assert_eq!(board.take(1), interrupt(0x91));
    assert_eq!(board.lapics.counts(1).eoi_auto, 0, "power-up forgets");
}

#[test]
fn nobody_is_asked_who_is_not_there() {
    let board = Board::new(1);
    assert!(
        !board.lapics.request(1, 0x40)
            && !board.lapics.request(u32::MAX, 0x40)
            && !board.lapics.request_nmi(7)
    );
    assert!(!board.lapics.request(0, 3), "no such vector");
    assert!(board.lapics.request_nmi(0));
    assert_eq!(board.take(0), Some(ApicEvent::Nmi));
}
