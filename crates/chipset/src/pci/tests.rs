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

mod functions {
    use std::sync::Mutex;

    use super::super::*;
    use crate::bus::Router;
    use crate::testkit::Wires;
    use crate::{Msi, MsiSink};

    #[derive(Default)]
    struct Messages(Mutex<Vec<Msi>>);

    impl MsiSink for Messages {
        fn send(&self, msi: Msi) -> bool {
            self.0.lock().expect("not poisoned").push(msi);
            true
        }
    }

    impl Messages {
        fn take(&self) -> Vec<u32> {
            self.0.lock().expect("not poisoned").drain(..).map(|msi| msi.data).collect()
        }
    }

    /// Answers with the number of its window.
    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
            data.fill(self.0 + at.window.0);
            Ok(())
        }
        fn write(&mut self, _: At, _: &[u8]) -> Result<(), BusFault> {
            Ok(())
        }
    }

    const IDENTITY: Identity =
        Identity { vendor: 0x1234, device: 0x5678, class: 0x01_02_03, revision: 4, subsystem: (5, 6) };

    fn endpoint(decode: &Decode, vectors: u16) -> (Endpoint, Arc<Interrupts>, Arc<Messages>, Arc<Wires>) {
        let (messages, wires) = (Arc::new(Messages::default()), Wires::new());
        let interrupts = Interrupts::new(vectors, wires.line(1), messages.clone());
        let mut endpoint = Endpoint::new(IDENTITY, decode.clone(), Arc::clone(&interrupts));
        endpoint.bar(0, 0x1000, WindowId(0), 0xc000_0000);
        endpoint.bar(2, 0x100, WindowId(2), 0xc000_1000);
        endpoint.messages(0, 0, 0x800);
        (endpoint, interrupts, messages, wires)
    }

    fn register(endpoint: &mut Endpoint, at: u16) -> u32 {
        let mut data = [0; 4];
        endpoint.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_endpoint_says_who_it_is_and_what_it_has() {
        let (mut endpoint, ..) = endpoint(&Decoder::new().add(), 3);
        assert_eq!(register(&mut endpoint, 0x00), 0x5678_1234);
        assert_eq!(register(&mut endpoint, 0x08), 0x0102_0304);
        assert_eq!(register(&mut endpoint, 0x2c), 0x0006_0005);
        assert_eq!(register(&mut endpoint, 0x3c) >> 8 & 0xff, 1, "INTA#");
        assert_eq!(register(&mut endpoint, 0x34), 0x40);
        assert_eq!(register(&mut endpoint, 0x40), 0x0002_0011, "MSI-X with three vectors");
        assert_eq!((register(&mut endpoint, 0x44), register(&mut endpoint, 0x48)), (0, 0x800));
        for (at, size) in [(0x10, 0xffff_f000), (0x14, 0), (0x18, 0xffff_ff00)] {
            endpoint.write(at, &[0xff; 4]);
            assert_eq!(register(&mut endpoint, at), size);
        }
    }

    #[test]
    fn functions_answer_where_they_say_and_only_while_they_are_there() {
        let decoder = Decoder::new();
        let (first, second) = (decoder.add(), decoder.add());
        let one = Arc::new(Mutex::new(Echo(0x10)));
        let two = Arc::new(Mutex::new(Echo(0x20)));
        first.reaches(&one);
        second.reaches(&two);
        let at = |address| {
            let route = decoder.route(address)?;
            let mut data = [0];
            let place = At { window: route.id, offset: address - route.range.start() };
            route.device.lock().expect("not poisoned").read(place, &mut data).expect("it answers");
            Some(data[0])
        };
        let (mut endpoint, ..) = endpoint(&first, 0);
        assert_eq!(at(0xc000_0000), None, "not before memory is enabled");
        endpoint.write(0x04, &[2, 0]);
        second.set(vec![(0xc000_1080..=0xc000_10ff, WindowId(1)), (0xd000_0000..=0xd000_000f, WindowId(1))]);
        assert_eq!([0xc000_0fff, 0xc000_10ff, 0xd000_0000].map(at), [Some(0x10), Some(0x12), Some(0x21)]);
        endpoint.write(0x18, &0xd000_0000u32.to_le_bytes());
        assert_eq!([0xc000_10ff, 0xd000_0000, 0xd000_0010].map(at), [Some(0x21), Some(0x12), Some(0x12)]);
        drop(one);
        assert_eq!([0xc000_0000, 0xd000_0000].map(at), [None, Some(0x21)], "it is gone");
    }

    #[test]
    fn messages_wait_while_they_are_masked_and_silence_the_line() {
        let (mut endpoint, interrupts, messages, wires) = endpoint(&Decoder::new().add(), 2);
        interrupts.send(0);
        interrupts.assert(true);
        assert!(messages.take().is_empty() && wires.high(1), "no MSI-X yet");
        assert_eq!(register(&mut endpoint, 0x04) >> 19 & 1, 1, "interrupt status");
        for vector in 0..2u64 {
            interrupts.write_table(16 * vector, &0xfee0_0000u64.to_le_bytes());
            interrupts.write_table(16 * vector + 8, &(7 + vector).to_le_bytes());
        }
        endpoint.write(0x42, &0xc000u16.to_le_bytes());
        assert!(!wires.high(1), "the line is out of use");
        interrupts.send(1);
        interrupts.send(2);
        let mut pending = [0; 8];
        interrupts.read_pending(0, &mut pending);
        assert_eq!((messages.take(), pending[0]), (vec![], 2), "the function is masked");
        endpoint.write(0x42, &0x8000u16.to_le_bytes());
        assert_eq!(messages.take(), [8]);
        interrupts.write_table(12, &1u32.to_le_bytes());
        interrupts.send(0);
        interrupts.send(0);
        assert!(messages.take().is_empty());
        interrupts.write_table(12, &0u32.to_le_bytes());
        assert_eq!(messages.take(), [7], "once");
        interrupts.write_table(14, &1u16.to_le_bytes());
        interrupts.send(0);
        assert_eq!(messages.take(), [7], "narrow writes of the table have no effect");
        endpoint.write(0x42, &[0, 0]);
        assert!(wires.high(1));
        endpoint.write(0x04, &0x0400u16.to_le_bytes());
        assert!(!wires.high(1), "INTx disabled");
    }

    #[test]
    fn an_endpoints_state_is_taken_back_by_one_of_its_kind_alone() {
        let (mut endpoint, interrupts, ..) = endpoint(&Decoder::new().add(), 2);
        endpoint.write(0x10, &0xd000_0000u32.to_le_bytes());
        interrupts.write_table(0, &0xfee0_1000u64.to_le_bytes());
        let state = endpoint.save();
        endpoint.reset();
        assert_ne!(endpoint.save(), state);
        assert!(endpoint.restore(&state));
        assert_eq!(endpoint.save(), state);
        let (mut other, ..) = self::endpoint(&Decoder::new().add(), 3);
        let before = other.save();
        assert!(!other.restore(&state));
        assert_eq!(other.save(), before);
    }
}
