//! Local APICs: priorities, destinations, modes, errors, timers, pins.

use super::*;

// Priorities.

#[test]
fn a_higher_class_interrupts_the_service_of_a_lower_one_and_not_the_other_way_round() {
    let board = Board::new(1);
    board.ipi(0, 0, 0x40);
    assert_eq!(board.take(0), interrupt(0x40));
    board.ipi(0, 0, 0x4f);
    assert_eq!(board.take(0), None, "the same class waits");
    board.ipi(0, 0, 0x51);
    assert_eq!(board.take(0), interrupt(0x51));
    assert_eq!(board.read(0, PPR), 0x50);
    assert_eq!(board.read(0, ISR + 0x20), 1 | 1 << 17);
    assert_eq!(board.read(0, IRR + 0x20), 1 << 15);
    board.kicks(0);
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), None);
    board.write(0, EOI, 0);
    assert_eq!(board.kicks(0), 1, "the end of 0x40 lets 0x4f through");
    assert_eq!(board.take(0), interrupt(0x4f));
}

#[test]
fn task_priority_holds_interrupts_back_until_it_is_lowered() {
    let board = Board::new(1);
    board.lapics.set_cr8(0, 4);
    assert_eq!(board.read(0, TPR), 0x40);
    board.ipi(0, 0, 0x41);
    assert!(!board.lapics.is_pending(0));
    assert_eq!(board.kicks(0), 0);
    board.write(0, TPR, 0x3f);
    assert_eq!(board.lapics.cr8(0), 3);
    assert_eq!(board.kicks(0), 1);
    assert_eq!(board.take(0), interrupt(0x41));
}

#[test]
fn closed_windows_keep_events_pending() {
    let board = Board::new(1);
    board.ipi(0, 0, 0x41);
    board.ipi(0, 0, 0x400);
    assert_eq!(board.lapics.take_event(0, false, false), None);
    assert!(board.lapics.is_pending(0));
    assert_eq!(board.lapics.take_event(0, false, true), interrupt(0x41));
    assert_eq!(board.take(0), Some(ApicEvent::Nmi));
}

#[test]
fn a_software_disabled_apic_takes_nmi_and_init_but_no_interrupts() {
    let board = Board::new(2);
    board.write(1, LINT0, 0x30);
    board.write(1, SVR, 0xff);
    assert_eq!(board.read(1, LINT0), 0x10030);
    board.write(1, LINT0, 0x31);
    assert_eq!(board.read(1, LINT0), 0x10031, "the mask can't be cleared");
    board.ipi(0, 1, 0x41);
    assert_eq!(board.take(1), None);
    board.ipi(0, 1, 0x4400);
    assert_eq!(board.take(1), Some(ApicEvent::Nmi));
    board.ipi(0, 1, 0x4500);
    assert_eq!(board.take(1), Some(ApicEvent::Init));
}

// Destinations.

fn takers(board: &Board) -> Vec<u32> {
    let count = board.lapics.count() as u32;
    let takers = (0..count).filter(|cpu| board.take(*cpu).is_some()).collect();
    for cpu in 0..count {
        if board.lapics.mmio_base(cpu).is_some() {
            board.write(cpu, EOI, 0);
        } else {
            board.lapics.wrmsr(cpu, 0x80b, 0).expect("EOI");
        }
    }
    takers
}

#[test]
fn shorthands_reach_self_all_and_all_others() {
    let board = Board::new(4);
    for (shorthand, expected) in [(1, vec![2]), (2, vec![0, 1, 2, 3]), (3, vec![0, 1, 3])] {
        board.write(2, ICR, 0x50 | shorthand << 18);
        assert_eq!(takers(&board), expected);
    }
    board.ipi(2, 0xff, 0x50);
    assert_eq!(takers(&board), [0, 1, 2, 3]);
    board.ipi(2, 3, 0x50);
    assert_eq!(takers(&board), [3]);
    board.ipi(2, 9, 0x50);
    assert_eq!(takers(&board), []);
}

#[test]
fn flat_and_cluster_models_select_by_logical_id() {
    let board = Board::new(4);
    for cpu in 0..4 {
        board.write(cpu, LDR, 1 << (24 + cpu));
    }
    board.ipi(0, 0b1010, 0x850);
    assert_eq!(takers(&board), [1, 3]);
    for cpu in 0..4 {
        board.write(cpu, DFR, 0);
        assert_eq!(board.read(cpu, DFR), 0x0fff_ffff);
        board.write(cpu, LDR, ((cpu / 2) << 4 | 1 << (cpu % 2)) << 24);
    }
    board.ipi(0, 0x12, 0x850);
    assert_eq!(takers(&board), [3]);
    board.ipi(0, 0x03, 0x850);
    assert_eq!(takers(&board), [0, 1]);
    board.ipi(0, 0xf1, 0x850);
    assert_eq!(takers(&board), [0, 2]);
}

#[test]
fn x2apic_logical_ids_follow_from_the_id() {
    let board = Board::new(18);
    for cpu in 0..18 {
        board.x2apic(cpu);
    }
    assert_eq!(board.lapics.rdmsr(17, 0x802), Ok(17));
    assert_eq!(board.lapics.rdmsr(17, 0x80d), Ok(0x1_0002));
    let icr = |destination: u64, low: u64| {
        board.lapics.wrmsr(0, 0x830, destination << 32 | low).expect("legal");
    };
    icr(0x1_0003, 0x850);
    assert_eq!(takers(&board), [16, 17]);
    icr(17, 0x50);
    assert_eq!(takers(&board), [17]);
    icr(0xff, 0x50);
    assert_eq!(takers(&board), [], "255 is an id, not a broadcast");
    icr(0xffff_ffff, 0x50);
    assert_eq!(takers(&board).len(), 18);
    board.lapics.wrmsr(5, 0x83f, 0x61).expect("legal");
    assert_eq!(board.take(5), interrupt(0x61));
}

#[test]
fn lowest_priority_goes_to_the_least_busy_enabled_processor() {
    let board = Board::new(3);
    for cpu in 0..3 {
        board.write(cpu, LDR, 1 << (24 + cpu));
    }
    board.write(0, TPR, 0x40);
    board.write(1, SVR, 0xff);
    for _ in 0..3 {
        board.ipi(0, 0b111, 0x950);
        assert_eq!(takers(&board), [2]);
    }
    board.write(0, TPR, 0);
    let mut seen = [0; 3];
    for _ in 0..30 {
        board.lapics.send(Msi { address: 0xfee0_700c, data: 0x50 });
        for cpu in takers(&board) {
            seen[cpu as usize] += 1;
        }
    }
    assert_eq!(seen[0] + seen[2], 30);
    assert!(seen[0] > 5 && seen[2] > 5, "ties take turns: {seen:?}");
}

// INIT and start-up.

#[test]
fn broadcast_init_and_one_startup_start_every_other_processor_without_delay() {
    let board = Board::cold(3);
    assert!(!board.lapics.is_pending(1));
    board.write(0, ICR, 0xc_4500);
    board.write(0, ICR, 0xc_4600);
    for cpu in 1..3 {
        assert!(board.kicks(cpu as usize) > 0);
        assert_eq!(board.lapics.take_event(cpu, false, false), Some(ApicEvent::Init));
        assert_eq!(board.lapics.take_event(cpu, false, false), Some(ApicEvent::Startup(0)));
        assert_eq!(board.take(cpu), None);
    }
    assert_eq!(board.take(0), None);
    // The customary second one finds nobody waiting.
    board.write(0, ICR, 0xc_4608);
    assert_eq!(board.take(1), None);
}

#[test]
fn init_deassert_does_nothing() {
    let board = Board::new(2);
    board.ipi(0, 1, 0x8500);
    assert_eq!(board.take(1), None);
}

#[test]
fn init_clears_registers_but_keeps_mode_and_base() {
    let board = Board::new(2);
    board.x2apic(1);
    board.lapics.wrmsr(1, 0x808, 0x33).expect("TPR");
    board.ipi(0, 1, 0x41);
    board.ipi(0, 1, 0x4500);
    assert_eq!(board.take(1), Some(ApicEvent::Init));
    assert_eq!(board.lapics.rdmsr(1, BASE_MSR), Ok(0xfee0_0c00));
    assert_eq!(board.lapics.rdmsr(1, 0x808), Ok(0));
    assert_eq!(board.lapics.rdmsr(1, 0x80f), Ok(0xff));
    assert_eq!(board.lapics.rdmsr(1, 0x802), Ok(1));
    assert_eq!(board.take(1), None);
}

#[test]
fn init_of_the_boot_processor_does_not_make_it_wait() {
    let board = Board::new(2);
    board.ipi(1, 0, 0x4500);
    assert_eq!(board.take(0), Some(ApicEvent::Init));
    board.ipi(1, 0, 0x4601);
    assert_eq!(board.take(0), None);
    board.ipi(1, 0, 0x4400);
    assert_eq!(board.take(0), Some(ApicEvent::Nmi));
}

// Modes and MSRs.

#[test]
fn only_the_manuals_changes_of_mode_are_legal() {
    let board = Board::new(1);
    let set = |value: u64| board.lapics.wrmsr(0, BASE_MSR, value);
    assert_eq!(board.lapics.rdmsr(0, BASE_MSR), Ok(0xfee0_0900));
    assert_eq!(set(0xfee0_0500), Err(MsrFault), "extended without enabled");
    assert_eq!(set(0xfee0_0b00), Err(MsrFault), "reserved bit");
    assert_eq!(set(1 << 40 | 0xfee0_0900), Err(MsrFault), "beyond the address width");
    assert_eq!(set(0xfee0_0100), Ok(()));
    assert_eq!(board.lapics.mmio_base(0), None);
    assert!(!board.lapics.is_enabled(0));
    assert_eq!(set(0xfee0_0d00), Err(MsrFault), "disabled to x2APIC");
    assert_eq!(set(0xfee0_0900), Ok(()));
    assert_eq!(board.read(0, SVR), 0xff, "as after power-up");
    assert_eq!(set(0xfee0_0d00), Ok(()));
    assert_eq!(board.lapics.mmio_base(0), None);
    assert_eq!(set(0xfee0_0900), Err(MsrFault), "x2APIC to xAPIC");
    assert_eq!(set(0xfee0_0100), Ok(()));
    assert_eq!(set(0xd000_0900), Ok(()));
    assert_eq!(board.lapics.mmio_base(0), Some(0xd000_0000));
}

#[test]
fn x2apic_registers_fault_as_the_manual_says() {
    let board = Board::new(1);
    let lapics = &board.lapics;
    assert_eq!(lapics.rdmsr(0, 0x802), Err(MsrFault), "xAPIC mode");
    assert_eq!(lapics.wrmsr(0, 0x808, 0), Err(MsrFault), "xAPIC mode");
    board.x2apic(0);
    for unreadable in [0x800, 0x809, 0x80b, 0x80e, 0x82f, 0x831, 0x83f, 0x840, 0x8ff] {
        assert_eq!(lapics.rdmsr(0, unreadable), Err(MsrFault), "{unreadable:#x}");
    }
    let read_only = [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x818, 0x827, 0x831, 0x839, 0x8ff];
    for number in read_only {
        assert_eq!(lapics.wrmsr(0, number, 0), Err(MsrFault), "{number:#x}");
    }
    let refused = [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x2000),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 20),
        (0x832, 1 << 19),
        (0x835, 1 << 11),
        (0x837, 1 << 8),
        (0x838, 1 << 32),
        (0x83e, 4),
        (0x83f, 0x100),
    ];
    for (number, value) in refused {
        assert_eq!(lapics.wrmsr(0, number, value), Err(MsrFault), "{number:#x} = {value:#x}");
    }
    let taken = [(0x808, 0xff), (0x80b, 0), (0x80f, 0x11ff), (0x828, 0), (0x830, 0xff_0000_0041)];
    for (number, value) in taken {
        assert_eq!(lapics.wrmsr(0, number, value), Ok(()), "{number:#x} = {value:#x}");
    }
    assert_eq!(lapics.rdmsr(0, 0x830), Ok(0xff_0000_0041));
    assert_eq!(lapics.rdmsr(0, 0x803), Ok(0x0105_0014));
}

#[test]
fn odd_accesses_to_the_page_are_tolerated() {
    let board = Board::new(1);
    let mut byte = [0];
    board.lapics.read_mmio(0, 0x32, &mut byte);
    assert_eq!(byte, [0x05]);
    let mut wide = [1; 8];
    board.lapics.read_mmio(0, 0x3c, &mut wide);
    assert_eq!(wide, [0; 8]);
    board.lapics.write_mmio(0, TPR + 1, &[0x50; 4]);
    board.lapics.write_mmio(0, TPR, &[0x50]);
    assert_eq!(board.read(0, TPR), 0);
}

// Errors.

#[test]
fn esr_shows_errors_only_after_it_is_written_and_then_once() {
    let board = Board::new(2);
    board.write(0, LVT_ERROR, 0x60);
    board.ipi(0, 1, 0x0f);
    assert_eq!(board.read(0, ESR), 0);
    assert_eq!(board.take(0), interrupt(0x60));
    board.write(0, EOI, 0);
    board.ipi(0, 1, 0x0f);
    assert_eq!(board.take(0), None, "not armed before ESR is written");
    board.write(0, ESR, 0);
    assert_eq!(board.read(0, ESR), 1 << 5);
    board.read(0, 0x3f0);
    assert_eq!(board.take(0), interrupt(0x60));
    board.write(0, ESR, 0);
    assert_eq!(board.read(0, ESR), 1 << 7);
    board.write(0, ESR, 0);
    assert_eq!(board.read(0, ESR), 0);
    board.lapics.send(Msi { address: 0xfee0_1000, data: 5 });
    board.write(1, ESR, 0);
    assert_eq!(board.read(1, ESR), 1 << 6);
    assert_eq!(board.take(1), None);
}

#[test]
fn an_error_vector_that_is_itself_illegal_does_no_harm() {
    let board = Board::new(1);
    board.write(0, LVT_ERROR, 3);
    board.read(0, 0x3f0);
    board.write(0, ESR, 0);
    assert_eq!(board.read(0, ESR), 1 << 7 | 1 << 6);
}

// The timer.

#[test]
fn one_shot_timer_counts_down_and_fires_once() {
    let board = Board::new(1);
    board.write(0, DIVIDE, 0b1010); // by 128
    board.write(0, LVT_TIMER, 0x70);
    board.write(0, INITIAL, 1000);
    assert_eq!(board.read(0, CURRENT), 1000);
    board.advance(128 * 250);
    assert_eq!(board.read(0, CURRENT), 750);
    board.advance(128 * 1000 - 1);
    assert_eq!(board.take(0), None);
    board.advance(128 * 1000);
    assert_eq!(board.take(0), interrupt(0x70));
    assert_eq!(board.read(0, CURRENT), 0);
    board.advance(1 << 40);
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), None);
}

#[test]
fn periodic_timer_keeps_its_phase_and_loses_what_nobody_takes() {
    let board = Board::new(1);
    board.write(0, DIVIDE, 0b1011); // by 1
    board.write(0, LVT_TIMER, 0x2_0070);
    board.write(0, INITIAL, 1_000_000);
    board.advance(3_400_000);
    assert_eq!(board.take(0), interrupt(0x70));
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), None);
    assert_eq!(board.read(0, CURRENT), 600_000);
    board.advance(4_000_000);
    assert_eq!(board.take(0), interrupt(0x70));
    // To one-shot: the running period is the last.
    board.write(0, LVT_TIMER, 0x70);
    board.advance(5_000_000);
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), interrupt(0x70));
    assert_eq!(board.read(0, CURRENT), 0);
    board.write(0, LVT_TIMER, 0x2_0070);
    assert_eq!(board.read(0, CURRENT), 0, "a count that stopped stays so");
}

#[test]
fn a_masked_timer_counts_without_an_alarm() {
    let board = Board::new(1);
    board.write(0, DIVIDE, 0b1011);
    board.write(0, INITIAL, 1_000_000);
    assert_eq!(*board.alarms[0].0.lock().expect("not poisoned"), None);
    board.advance(400_000);
    assert_eq!(board.read(0, CURRENT), 600_000);
    board.write(0, LVT_TIMER, 0x70);
    board.advance(1_000_000);
    assert_eq!(board.take(0), interrupt(0x70));
}

#[test]
fn absurdly_short_periods_do_not_sound_the_alarm_all_the_time() {
    let board = Board::new(1);
    board.write(0, DIVIDE, 0b1011);
    board.write(0, LVT_TIMER, 0x2_0070);
    board.write(0, INITIAL, 3);
    board.advance(10);
    let next = board.alarms[0].0.lock().expect("not poisoned").expect("armed");
    assert!(next.0 > 10_000);
    assert!(board.read(0, CURRENT) <= 3);
}

#[test]
fn tsc_deadline_fires_reads_zero_then_and_is_disarmed_by_zero() {
    let board = Board::new(1);
    let lapics = &board.lapics;
    lapics.wrmsr(0, DEADLINE_MSR, 5000).expect("ignored");
    assert_eq!(lapics.rdmsr(0, DEADLINE_MSR), Ok(0), "another mode");
    board.write(0, LVT_TIMER, 0x4_0070);
    board.write(0, INITIAL, 77);
    assert_eq!(board.read(0, INITIAL), 0);
    lapics.wrmsr(0, DEADLINE_MSR, 5000).expect("armed");
    assert_eq!(lapics.rdmsr(0, DEADLINE_MSR), Ok(5000));
    board.advance(2499);
    assert_eq!(board.take(0), None);
    board.advance(2500);
    assert_eq!(board.take(0), interrupt(0x70));
    assert_eq!(lapics.rdmsr(0, DEADLINE_MSR), Ok(0));
    board.write(0, EOI, 0);
    lapics.wrmsr(0, DEADLINE_MSR, 9000).expect("armed");
    lapics.wrmsr(0, DEADLINE_MSR, 0).expect("disarmed");
    board.advance(1 << 30);
    assert_eq!(board.take(0), None);
    board.kicks(0);
    lapics.wrmsr(0, DEADLINE_MSR, 1).expect("in the past");
    assert!(board.kicks(0) > 0);
    assert_eq!(board.take(0), interrupt(0x70));
    board.write(0, EOI, 0);
    lapics.wrmsr(0, DEADLINE_MSR, u64::MAX).expect("armed");
    board.write(0, LVT_TIMER, 0x70);
    board.write(0, LVT_TIMER, 0x4_0070);
    assert_eq!(lapics.rdmsr(0, DEADLINE_MSR), Ok(0), "a change of mode disarms");
}

#[test]
fn a_far_deadline_on_a_shifted_tsc_does_not_wrap_into_the_past() {
    let board = Board::new(1);
    board.advance(1_000_000);
    board.lapics.set_tsc_offset(0, 2_000_000u64.wrapping_neg());
    board.write(0, LVT_TIMER, 0x4_0070);
    board.lapics.wrmsr(0, DEADLINE_MSR, u64::MAX).expect("armed");
    let at = board.alarms[0].0.lock().expect("not poisoned").expect("armed");
    assert!(at.0 > 1 << 60);
    board.lapics.wrmsr(0, DEADLINE_MSR, 2000).expect("armed");
    board.advance(1_000_999);
    assert_eq!(board.take(0), None);
    board.advance(1_001_000);
    assert_eq!(board.take(0), interrupt(0x70));
}

// INTR and the LINT pins.

#[test]
fn the_virtual_wire_carries_intr_past_all_priorities() {
    let board = Board::cold(2);
    let pic = Pic::wire(&board);
    pic.raise();
    assert_eq!(board.take(0), None, "LINT0 is masked after power-up");
    board.lapics.virtual_wire(0);
    assert!(board.kicks(0) > 0);
    board.write(0, TPR, 0xff);
    assert!(board.lapics.is_pending(0));
    assert!(!board.lapics.is_pending(1));
    assert_eq!(board.lapics.take_event(0, true, false), None);
    assert_eq!(board.take(0), interrupt(0x30));
    assert_eq!(board.read(0, ISR + 0x10), 0, "not in service here");
    assert_eq!(board.take(0), None);
    pic.raise();
    assert!(board.kicks(0) > 0);
    board.write(0, LINT0, 0x1_0700);
    assert_eq!(board.take(0), None);
}

#[test]
fn a_disabled_apic_lets_intr_through_to_the_boot_processor() {
    let board = Board::new(1);
    let pic = Pic::wire(&board);
    board.lapics.wrmsr(0, BASE_MSR, 0xfee0_0100).expect("legal");
    pic.raise();
    assert!(board.kicks(0) > 0);
    assert_eq!(board.take(0), interrupt(0x30));
}

#[test]
fn the_apics_own_interrupt_follows_after_intr() {
    let board = Board::new(1);
    let pic = Pic::wire(&board);
    board.write(0, LINT0, 0x700);
    board.ipi(0, 0, 0x41);
    pic.raise();
    assert_eq!(board.take(0), interrupt(0x30));
    assert_eq!(board.take(0), interrupt(0x41));
}

#[test]
fn lint_pins_deliver_levels_edges_and_nmi() {
    let board = Board::new(1);
    let lapics = &board.lapics;
    lapics.set_pin(0, true);
    board.write(0, LINT0, 0x8041);
    assert_eq!(board.take(0), interrupt(0x41), "a level that was there before");
    assert_eq!(board.read(0, LINT0), 0xc041);
    board.write(0, EOI, 0);
    assert_eq!(board.take(0), interrupt(0x41), "and still is");
    lapics.set_pin(0, false);
    board.write(0, EOI, 0);
    assert_eq!(board.read(0, LINT0), 0x8041);
    assert_eq!(board.take(0), None);
    lapics.set_pin(1, true);
    board.write(0, LINT1, 0x400);
    assert_eq!(board.take(0), None, "no edge");
    lapics.set_pin(1, false);
    lapics.set_pin(1, true);
    assert_eq!(board.take(0), Some(ApicEvent::Nmi));
    assert_eq!(board.take(0), None);
}

#[test]
fn who_booted_is_not_the_guests_to_change() {
    let board = Board::cold(2);
    for (cpu, is_bsp) in [(0, true), (1, false)] {
        let old = board.lapics.rdmsr(cpu, BASE_MSR).expect("readable");
        assert_eq!(old & 0x100 != 0, is_bsp);
        assert_eq!(board.lapics.wrmsr(cpu, BASE_MSR, old ^ 0x100), Ok(()));
        assert_eq!(board.lapics.rdmsr(cpu, BASE_MSR), Ok(old));
        assert_eq!(board.lapics.is_bsp(cpu), is_bsp);
    }
}
