use super::*;
use crate::spec::{Status, register};
use chipset::pci::{Decoder, PciFunction};
use chipset::{At, BusDevice, Device, Line, LineSink, Msi, MsiSink, WindowId};
use disk::{DiskError, Layer, LayerInfo, Sector};
use memory::{GuestMemory, Layout, Region};
use std::io;
use std::sync::{Arc, Mutex};
use workers::Staff;
use x86::Gpa;

const RAM: u64 = 4 << 20;
/// Admin queues, then I/O queues, which are all on pages of their own; data.
const QUEUES: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const LIST: u64 = 0x20_0000;
/// Entries of the tests' queues.
const SIZE: u32 = 8;
const SECTORS: u64 = 4096;

/// A disk in memory that remembers what it was told to do, and fails when told to.
struct Fake {
    bytes: Mutex<Vec<u8>>,
    done: Mutex<Vec<&'static str>>,
    fails: Mutex<Option<io::ErrorKind>>,
    read_only: bool,
}

impl Fake {
    fn say(&self, what: &'static str) -> Result<(), DiskError> {
        self.done.lock().unwrap().push(what);
        match *self.fails.lock().unwrap() {
            Some(kind) => Err(DiskError::Host(kind.into())),
            None if self.read_only && what != "read" => Err(DiskError::ReadOnly),
            None => Ok(()),
        }
    }
}

impl Layer for Fake {
    fn info(&self) -> LayerInfo {
        LayerInfo { sectors: SECTORS, read_only: self.read_only }
    }
    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError> {
        self.say("read")?;
        let at = first.byte() as usize;
        into.copy_from_slice(&self.bytes.lock().unwrap()[at..at + into.len()]);
        Ok(())
    }
    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError> {
        self.say("write")?;
        let at = first.byte() as usize;
        self.bytes.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
    fn zero(&self, _: Sector, _: u64, unmap: bool) -> Result<(), DiskError> {
        self.say(if unmap { "unmap" } else { "zero" })
    }
    fn discard(&self, _: Sector, _: u64) -> Result<(), DiskError> {
        self.say("discard")
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.say("flush")
    }
}

/// Remembers messages, and the level of one line.
#[derive(Default)]
struct Ears {
    messages: Mutex<Vec<u32>>,
    level: Mutex<bool>,
}

impl MsiSink for Ears {
    fn send(&self, msi: Msi) -> bool {
        self.messages.lock().unwrap().push(msi.data);
        true
    }
}

impl LineSink for Ears {
    fn set_pin(&self, _: u8, high: bool) {
        *self.level.lock().unwrap() = high;
    }
}

/// A command's dwords, of which a test names those that aren't zero.
#[derive(Clone, Copy, Default)]
struct Words {
    opcode: u8,
    namespace: u32,
    prps: (u64, u64),
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
}

/// A board around one controller, and a driver.
struct Board {
    memory: GuestMemory,
    controller: Nvme,
    ears: Arc<Ears>,
    disk: Arc<Fake>,
    /// Of each queue pair: tail, head of the completion queue, and the phase of new entries.
    places: Vec<(u32, u32, bool)>,
    last_id: u16,
}

impl Board {
    fn new(staff: Staff) -> Self {
        Self::with(staff, false)
    }

    fn with(staff: Staff, read_only: bool) -> Self {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: RAM }]).expect("a sound layout");
        let memory = GuestMemory::new(layout).expect("the host has 4 MiB");
        let ears = Arc::new(Ears::default());
        let bytes = (0..SECTORS).flat_map(|sector| [sector as u8; 512]).collect();
        let disk = Arc::new(Fake {
            bytes: Mutex::new(bytes),
            done: Mutex::default(),
            fails: Mutex::default(),
            read_only,
        });
        let wiring = Wiring {
            name: "test".to_owned(),
            number: 7,
            memory: memory.clone(),
            decode: Decoder::new().add(),
            line: Line::new(ears.clone(), 16),
            messages: ears.clone(),
            address: 0xc000_0000,
            staff,
            on_panic: Arc::new(|_| ()),
        };
        let controller = Nvme::new(disk.clone(), "test".to_owned(), "serial", 2, wiring);
        Self { memory, controller, ears, disk, places: vec![(0, 0, true); 3], last_id: 0 }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.controller.read(At { window: WindowId(0), offset }, &mut data).expect("a register");
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.controller.write(At { window: WindowId(0), offset }, &value.to_le_bytes()).expect("a register");
    }

    fn enable(&mut self) {
        self.memory.zero(Gpa(QUEUES), 0x1_0000).expect("RAM");
        self.places.fill((0, 0, true));
        self.write(register::AQA, (SIZE - 1) << 16 | (SIZE - 1));
        self.write(register::ASQ, QUEUES as u32);
        self.write(register::ACQ, QUEUES as u32 + 0x1000);
        self.write(register::CC, 6 << 16 | 4 << 20 | 1);
    }

    /// Enabled, with MSI-X and both pairs of I/O queues.
    fn up() -> Self {
        let mut board = Self::new(Staff::Caller);
        board.bring_up();
        board
    }

    fn bring_up(&mut self) {
        for vector in 0..3 {
            self.write(u64::from(spec::TABLE) + 16 * vector, 0xfee0_0000);
            self.write(u64::from(spec::TABLE) + 16 * vector + 8, vector as u32);
            self.write(u64::from(spec::TABLE) + 16 * vector + 12, 0);
        }
        self.controller.write_config(0x04, &[6, 0]);
        self.controller.write_config(0x42, &0x8000u16.to_le_bytes());
        self.enable();
        for queue in 1..3 {
            self.create(queue);
        }
        self.ears.messages.lock().unwrap().clear();
    }

    fn create(&mut self, queue: u32) {
        let at = QUEUES + 0x2000 * u64::from(queue);
        let completions = Words {
            opcode: 5,
            prps: (at + 0x1000, 0),
            cdw10: (SIZE - 1) << 16 | queue,
            cdw11: queue << 16 | 3,
            ..Words::default()
        };
        assert_eq!(self.admin(completions), (0, Status::Success as u16));
        let submissions = Words {
            opcode: 1,
            prps: (at, 0),
            cdw10: (SIZE - 1) << 16 | queue,
            cdw11: queue << 16 | 1,
            ..Words::default()
        };
        assert_eq!(self.admin(submissions), (0, Status::Success as u16));
    }

    /// Puts a command into a queue without ringing.
    fn put(&mut self, queue: usize, words: Words) -> u16 {
        self.last_id += 1;
        let mut bytes = [0; 64];
        let mut put =
            |dword: usize, value: u32| bytes[4 * dword..][..4].copy_from_slice(&value.to_le_bytes());
        put(0, u32::from(words.opcode) | u32::from(self.last_id) << 16);
        put(1, words.namespace);
        put(6, words.prps.0 as u32);
        put(7, (words.prps.0 >> 32) as u32);
        put(8, words.prps.1 as u32);
        put(9, (words.prps.1 >> 32) as u32);
        put(10, words.cdw10);
        put(11, words.cdw11);
        put(12, words.cdw12);
        let tail = &mut self.places[queue].0;
        let at = QUEUES + 0x2000 * queue as u64 + 64 * u64::from(*tail);
        *tail = (*tail + 1) % SIZE;
        self.memory.write(Gpa(at), &bytes).expect("RAM");
        self.last_id
    }

    fn ring(&mut self, queue: usize) {
        let tail = self.places[queue].0;
        self.write(register::DOORBELLS + 8 * queue as u64, tail);
    }

    /// Takes the next completion: identifier, result, status.
    fn take(&mut self, queue: usize) -> Option<(u16, u32, u16)> {
        let (_, head, phase) = &mut self.places[queue];
        let at = QUEUES + 0x2000 * queue as u64 + 0x1000 + 16 * u64::from(*head);
        let mut bytes = [0; 16];
        self.memory.read(Gpa(at), &mut bytes).expect("RAM");
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        if (word(12) >> 16 & 1 == 1) != *phase {
            return None;
        }
        assert_eq!(word(8) >> 16, queue as u32, "submission queue");
        *head = (*head + 1) % SIZE;
        *phase ^= *head == 0;
        Some((word(12) as u16, word(0), (word(12) >> 17) as u16 & 0x7ff))
    }

    fn seen(&mut self, queue: usize) {
        let head = self.places[queue].1;
        self.write(register::DOORBELLS + 8 * queue as u64 + 4, head);
    }

    fn run(&mut self, queue: usize, words: Words) -> (u32, u16) {
        let id = self.put(queue, words);
        self.ring(queue);
        let (found, result, status) = self.take(queue).expect("it is done");
        assert_eq!(found, id);
        self.seen(queue);
        (result, status)
    }

    fn admin(&mut self, words: Words) -> (u32, u16) {
        self.run(0, words)
    }

    /// A read or write of `blocks` at [`DATA`].
    fn io(&mut self, opcode: u8, first: u32, blocks: u32) -> u16 {
        let words = Words {
            opcode,
            namespace: 1,
            prps: (DATA, DATA + 0x1000),
            cdw10: first,
            cdw12: blocks - 1,
            ..Words::default()
        };
        self.run(1, words).1
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Gpa(at), &mut bytes).expect("RAM");
        bytes
    }

    fn done(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.disk.done.lock().unwrap())
    }

    fn messages(&self) -> Vec<u32> {
        std::mem::take(&mut *self.ears.messages.lock().unwrap())
    }

    fn fails(&self, kind: Option<io::ErrorKind>) {
        *self.disk.fails.lock().unwrap() = kind;
    }
}

const OK: u16 = Status::Success as u16;

#[test]
fn the_registers_say_what_there_is() {
    let mut board = Board::new(Staff::Caller);
    assert_eq!(board.read(register::CAP) & 0xffff, 1023);
    assert_eq!(board.read(register::CAP_HIGH) >> 5 & 1, 1, "the NVM command set");
    assert_eq!((board.read(register::VS), board.read(register::CSTS)), (0x1_0400, 0));
    let mut class = [0; 4];
    board.controller.read_config(8, &mut class);
    assert_eq!(class[1..], [2, 8, 1]);
    board.enable();
    assert_eq!(board.read(register::CSTS), 1);
    board.write(register::CC, 0);
    assert_eq!(board.read(register::CSTS), 0);
    board.write(register::CC, 6 << 16 | 4 << 20 | 1 << 7 | 1);
    assert_eq!(board.read(register::CSTS), 2, "pages of 8 KiB aren't offered");
    board.write(register::CC, 0);
    assert_eq!(board.read(register::CSTS), 0);
}

#[test]
fn blocks_are_read_and_written() {
    let mut board = Board::up();
    assert_eq!(board.io(2, 5, 16), OK);
    let expected: Vec<u8> = (5..21u8).flat_map(|sector| [sector; 512]).collect();
    assert!(board.bytes(DATA, 8192) == expected);
    board.memory.write(Gpa(DATA), &[0xaa; 512]).unwrap();
    assert_eq!(board.io(1, SECTORS as u32 - 1, 1), OK);
    assert!(board.disk.bytes.lock().unwrap().ends_with(&[0xaa; 512]));
    assert_eq!(board.done(), ["read", "write"]);
}

#[test]
fn lists_of_pages_lead_to_the_data() {
    let mut board = Board::up();
    let pages: Vec<u8> = (1..256u64).rev().flat_map(|page| (DATA + page * 4096).to_le_bytes()).collect();
    board.memory.write(Gpa(LIST), &pages).unwrap();
    let mut words = Words { opcode: 2, namespace: 1, prps: (DATA, LIST), cdw12: 2047, ..Words::default() };
    assert_eq!(board.run(1, words).1, OK);
    assert!(board.bytes(DATA, 4096)[..512] == [0; 512], "the first page");
    assert!(board.bytes(DATA + 255 * 4096, 512) == [8; 512], "the second");
    words.cdw12 = 2048;
    assert_eq!(board.run(1, words).1, Status::InvalidField as u16, "more than a command may have");
    words = Words { cdw12: 63, prps: (DATA, RAM), ..words };
    assert_eq!(board.run(1, words).1, Status::DataTransfer as u16, "no list");
    words.prps = (RAM - 4096, DATA);
    board.memory.write(Gpa(DATA), &[0xff; 4096]).unwrap();
    assert_eq!(board.run(1, words).1, Status::PrpOffset as u16, "a damaged list");
}

#[test]
fn what_is_not_on_the_disk_and_what_is_not_known_fails() {
    let mut board = Board::up();
    assert_eq!(board.io(2, SECTORS as u32 - 1, 2), Status::LbaRange as u16);
    assert_eq!(board.io(1, SECTORS as u32, 1), Status::LbaRange as u16);
    assert_eq!(board.io(0x7f, 0, 1), Status::InvalidOpcode as u16);
    let far = Words { opcode: 2, namespace: 1, cdw10: u32::MAX, cdw11: u32::MAX, ..Words::default() };
    assert_eq!(board.run(1, far).1, Status::LbaRange as u16);
    assert_eq!(board.run(1, Words { namespace: 2, ..far }).1, Status::InvalidNamespace as u16);
    assert!(board.done().is_empty());
    // The error log has the latest first.
    let log = Words { opcode: 2, prps: (DATA, 0), cdw10: 63 << 16 | 1, ..Words::default() };
    assert_eq!(board.admin(log), (0, OK));
    let page = board.bytes(DATA, 256);
    assert_eq!((page[0], page[8], page[64], page[24]), (5, 1, 4, 1));
}

#[test]
fn the_hosts_errors_are_the_guests() {
    let mut board = Board::up();
    board.fails(Some(io::ErrorKind::UnexpectedEof));
    assert_eq!(board.io(2, 0, 1), Status::ReadError as u16);
    assert_eq!(board.io(1, 0, 1), Status::WriteFault as u16);
    assert_eq!(board.io(0, 0, 1), Status::Internal as u16);
    board.fails(Some(io::ErrorKind::StorageFull));
    assert_eq!(board.io(1, 0, 1), Status::Capacity as u16);
    board.fails(None);
    assert_eq!(board.io(2, 0, 1), OK, "it goes on");
}

#[test]
fn a_disk_that_is_only_read_is_protected() {
    let mut board = Board::with(Staff::Caller, true);
    board.bring_up();
    assert_eq!(board.io(1, 0, 1), Status::WriteProtected as u16);
    assert_eq!(board.io(2, 0, 1), OK);
    let identify = Words { opcode: 6, namespace: 1, prps: (DATA, 0), ..Words::default() };
    assert_eq!(board.admin(identify), (0, OK));
    assert_eq!(board.bytes(DATA + 99, 1), [1]);
}

#[test]
fn flushes_zeroes_and_discards_reach_the_disk() {
    let mut board = Board::up();
    let flush = Words { opcode: 0, namespace: spec::ALL_NAMESPACES, ..Words::default() };
    assert_eq!(board.run(1, flush).1, OK);
    let zeroes = Words { opcode: 8, namespace: 1, cdw12: 7, ..Words::default() };
    assert_eq!(board.run(1, zeroes).1, OK);
    assert_eq!(board.run(1, Words { cdw12: 7 | 1 << 25, ..zeroes }).1, OK);
    let mut range = [0; 32];
    range[4] = 8;
    range[20] = 8;
    range[24] = 16;
    board.memory.write(Gpa(DATA), &range).unwrap();
    let dataset = Words { opcode: 9, namespace: 1, prps: (DATA, 0), cdw10: 1, cdw11: 4, ..Words::default() };
    assert_eq!(board.run(1, dataset).1, OK);
    assert_eq!(board.run(1, Words { cdw11: 1, ..dataset }).1, OK, "a hint");
    assert_eq!(board.done(), ["flush", "zero", "unmap", "discard", "discard"]);
    range[29] = 1;
    board.memory.write(Gpa(DATA), &range).unwrap();
    assert_eq!(board.run(1, dataset).1, Status::LbaRange as u16);
}

#[test]
fn a_write_that_is_forced_or_without_a_cache_is_flushed() {
    let mut board = Board::up();
    let forced = Words { opcode: 1, namespace: 1, prps: (DATA, 0), cdw12: 1 << 30, ..Words::default() };
    assert_eq!(board.run(1, forced).1, OK);
    assert_eq!(board.done(), ["write", "flush"]);
    assert_eq!(board.admin(Words { opcode: 9, cdw10: 6, ..Words::default() }), (0, OK));
    assert_eq!(board.io(1, 0, 1), OK);
    assert_eq!(board.done(), ["write", "flush"]);
    assert_eq!(board.admin(Words { opcode: 10, cdw10: 6 | 1 << 8, ..Words::default() }), (1, OK), "default");
}

#[test]
fn the_controller_says_who_it_is() {
    let mut board = Board::up();
    let identify = |structure, namespace| Words {
        opcode: 6,
        namespace,
        prps: (DATA, 0),
        cdw10: structure,
        ..Words::default()
    };
    assert_eq!(board.admin(identify(1, 0)), (0, OK));
    let page = board.bytes(DATA, 4096);
    assert_eq!(page[4..24], *b"serial              ");
    assert_eq!((page[77], page[512], page[513], page[516]), (8, 0x66, 0x44, 1));
    assert!(
        page[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:6f6d6272-6100-8000-8000-00076e766d65\0")
    );
    assert_eq!(board.admin(identify(0, 1)), (0, OK));
    let page = board.bytes(DATA, 4096);
    assert_eq!((&page[..8], &page[128..132]), (&SECTORS.to_le_bytes()[..], &[0, 0, 9, 0][..]));
    assert_eq!(board.admin(identify(2, 0)), (0, OK));
    assert_eq!(board.bytes(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(board.admin(identify(3, 1)), (0, OK));
    assert_eq!(board.bytes(DATA, 2), [3, 16]);
    assert_eq!(board.admin(identify(0, 2)).1, Status::InvalidNamespace as u16);
    assert_eq!(board.admin(identify(0x77, 1)).1, Status::InvalidField as u16);
    let health = Words { opcode: 2, prps: (DATA, 0), cdw10: 127 << 16 | 2, ..Words::default() };
    assert_eq!(board.admin(health), (0, OK));
    assert_eq!(board.admin(Words { cdw10: 0x99, ..health }).1, Status::LogPage as u16);
}

#[test]
fn queues_are_made_and_deleted_in_order() {
    let mut board = Board::up();
    let make = |opcode, queue: u32, flags| Words {
        opcode,
        prps: (0x8_0000, 0),
        cdw10: 7 << 16 | queue,
        cdw11: flags,
        ..Words::default()
    };
    let status = |board: &mut Board, words| board.admin(words).1;
    assert_eq!(status(&mut board, make(5, 1, 3)), Status::QueueIdentifier as u16, "it is there");
    assert_eq!(status(&mut board, make(5, 3, 3)), Status::QueueIdentifier as u16, "there are two");
    assert_eq!(status(&mut board, make(4, 1, 0)), Status::QueueDeletion as u16, "it is in use");
    assert_eq!(status(&mut board, make(0, 1, 0)), OK);
    assert_eq!(status(&mut board, make(0, 1, 0)), Status::QueueIdentifier as u16);
    assert_eq!(status(&mut board, make(4, 1, 0)), OK);
    assert_eq!(status(&mut board, make(1, 1, 1 << 16 | 1)), Status::CompletionQueueInvalid as u16);
    assert_eq!(status(&mut board, make(5, 1, 9 << 16 | 3)), Status::InterruptVector as u16);
    assert_eq!(status(&mut board, make(5, 1, 2)), Status::InvalidField as u16, "not in one piece");
    let large = Words { cdw10: 0xffff_0001, ..make(5, 1, 3) };
    assert_eq!(status(&mut board, large), Status::QueueSize as u16);
    assert_eq!(status(&mut board, make(5, 1, 3)), OK);
    assert_eq!(status(&mut board, make(1, 1, 1 << 16 | 1)), OK);
    let count = Words { opcode: 9, cdw10: 7, cdw11: 0x000f_000f, ..Words::default() };
    assert_eq!(board.admin(count).1, Status::Sequence as u16, "there are queues");
    assert_eq!(board.admin(Words { opcode: 10, ..count }), (0x0001_0001, OK));
}

#[test]
fn one_interrupt_stands_for_many_completions_until_the_driver_has_looked() {
    let mut board = Board::up();
    let flush = Words { opcode: 0, namespace: 1, ..Words::default() };
    for _ in 0..3 {
        board.put(1, flush);
    }
    board.ring(1);
    assert_eq!(board.messages(), [1]);
    board.put(1, flush);
    board.ring(1);
    assert!(board.messages().is_empty(), "the driver hasn't looked");
    assert!((0..3).all(|_| board.take(1).is_some()));
    board.seen(1);
    assert_eq!(board.messages(), [1], "there is one that it hasn't seen");
    assert!(board.take(1).is_some() && board.take(1).is_none());
    board.seen(1);
    assert!(board.messages().is_empty());
    board.put(1, flush);
    board.ring(1);
    assert_eq!(board.messages(), [1]);
}

#[test]
fn commands_wait_while_the_completion_queue_is_full() {
    let mut board = Board::up();
    let flush = Words { opcode: 0, namespace: 1, ..Words::default() };
    for _ in 0..SIZE - 1 {
        board.put(1, flush);
    }
    board.ring(1);
    for _ in 0..3 {
        board.put(1, flush);
    }
    board.ring(1);
    assert_eq!(board.done().len(), 7, "seven entries may be full of eight");
    for _ in 0..2 {
        assert!(board.take(1).is_some());
    }
    board.seen(1);
    assert_eq!(board.done().len(), 2, "as many as there is room again");
    let rest = (0..).map_while(|_| board.take(1)).count();
    assert_eq!(rest, 7);
    board.seen(1);
    assert_eq!((board.done().len(), board.take(1).is_some()), (1, true));
}

#[test]
fn without_messages_the_pin_is_high_until_all_is_seen() {
    let mut board = Board::new(Staff::Caller);
    board.enable();
    let features = Words { opcode: 10, cdw10: 7, ..Words::default() };
    board.put(0, features);
    board.put(0, features);
    board.ring(0);
    let level = |board: &Board| *board.ears.level.lock().unwrap();
    assert!(level(&board));
    board.write(register::INTMS, 1);
    assert!(!level(&board));
    assert_eq!(board.read(register::INTMC), 1);
    board.write(register::INTMC, 1);
    assert!(level(&board));
    board.take(0);
    board.seen(0);
    assert!(level(&board), "one is left");
    board.take(0);
    board.seen(0);
    assert!(!level(&board) && board.messages().is_empty());
}

#[test]
fn wrong_doorbells_are_events() {
    let mut board = Board::up();
    let event = Words { opcode: 12, ..Words::default() };
    let ids: Vec<u16> = (0..4).map(|_| board.put(0, event)).collect();
    board.ring(0);
    assert!(board.take(0).is_none(), "nothing has happened");
    assert_eq!(board.admin(event).1, Status::AsyncEventLimit as u16);
    board.write(register::DOORBELLS + 8, SIZE);
    assert_eq!(board.take(0), Some((ids[0], 0x0001_0100, OK)), "a value that the queue doesn't have");
    board.seen(0);
    board.write(register::DOORBELLS + 8 * 9, 1);
    assert!(board.take(0).is_none(), "the log hasn't been read");
    let log = Words { opcode: 2, prps: (DATA, 0), cdw10: 15 << 16 | 1, ..Words::default() };
    board.put(0, log);
    board.ring(0);
    board.take(0);
    board.seen(0);
    assert_eq!(board.take(0), Some((ids[1], 0x0001_0000, OK)), "a queue that isn't there");
    board.seen(0);
    // One that waits can be aborted, twice not.
    let abort = Words { opcode: 8, cdw10: u32::from(ids[2]) << 16, ..Words::default() };
    board.put(0, abort);
    board.ring(0);
    assert_eq!(board.take(0).map(|taken| taken.1), Some(0));
    assert_eq!(board.take(0), Some((ids[2], 0, Status::Aborted as u16)));
    board.seen(0);
    assert_eq!(board.admin(abort), (1, OK));
    // A head beyond what there is.
    board.write(register::DOORBELLS + 4, (board.places[0].1 + 1) % SIZE);
    assert!(board.take(0).is_none(), "the log hasn't been read");
}

#[test]
fn a_queue_that_is_not_ram_is_fatal_until_the_reset() {
    let mut board = Board::new(Staff::Caller);
    board.enable();
    board.write(register::CC, 0);
    board.write(register::ASQ, RAM as u32);
    board.write(register::CC, 6 << 16 | 4 << 20 | 1);
    board.write(register::DOORBELLS, 1);
    assert_eq!(board.read(register::CSTS), 2);
    board.write(register::CC, 0);
    assert_eq!(board.read(register::CSTS), 0);
    board.bring_up();
    assert_eq!(board.io(2, 0, 1), OK);
}

#[test]
fn a_shutdown_flushes() {
    let mut board = Board::up();
    board.write(register::CC, 6 << 16 | 4 << 20 | 1 << 14 | 1);
    assert_eq!((board.read(register::CSTS), board.done()), (1 | 2 << 2, vec!["flush"]));
    board.write(register::CC, 0);
    assert_eq!(board.read(register::CSTS), 0);
    board.bring_up();
    assert_eq!(board.io(2, 0, 1), OK);
}

#[test]
fn a_reset_forgets_queues_and_features_but_not_the_admin_queues_places() {
    let mut board = Board::up();
    assert_eq!(board.admin(Words { opcode: 9, cdw10: 5, cdw11: 7, ..Words::default() }), (0, OK));
    board.write(register::CC, 0);
    assert_eq!(board.read(register::ASQ), QUEUES as u32);
    board.enable();
    assert_eq!(board.admin(Words { opcode: 10, cdw10: 5, ..Words::default() }), (0, OK));
    board.create(1);
    assert_eq!(board.io(2, 0, 1), OK);
    Device::reset(&mut board.controller);
    assert_eq!((board.read(register::ASQ), board.read(register::CSTS)), (0, 0));
}

#[test]
fn a_saved_controller_goes_on_elsewhere() {
    let mut board = Board::up();
    let event = Words { opcode: 12, ..Words::default() };
    let id = board.put(0, event);
    board.ring(0);
    board.put(1, Words { opcode: 0, namespace: 1, ..Words::default() });
    board.controller.quiesce();
    board.ring(1);
    let saved = board.controller.save();
    let mut other = Board::new(Staff::Caller);
    let mut damaged = saved.clone();
    damaged.0.truncate(saved.0.len() / 2);
    assert!(other.controller.restore(&damaged).is_err());
    other.controller.restore(&saved).expect("one of its kind");
    assert_eq!(other.controller.save(), saved);
    assert!(board.take(1).is_none());
    board.controller.resume();
    assert!(board.take(1).is_some(), "what was rung for while nobody worked");
    other.controller.resume();
    other.write(register::DOORBELLS + 8, SIZE);
    assert_eq!(other.read(register::CSTS), 1);
    assert!(id > 0 && other.messages().contains(&0), "the event request is there");
}

#[test]
fn threads_serve_and_end() {
    let mut board = Board::new(Staff::Threads);
    let wait = |board: &mut Board, queue: usize| {
        for _ in 0..2000 {
            if let Some(taken) = board.take(queue) {
                return taken;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("nothing came");
    };
    for _ in 0..3 {
        board.enable();
        for _ in 0..20 {
            board.put(0, Words { opcode: 10, cdw10: 7, ..Words::default() });
            board.ring(0);
            assert_eq!(wait(&mut board, 0).1, 0x0001_0001);
            board.seen(0);
        }
        board.write(register::CC, 0);
        while board.read(register::CSTS) & 1 != 0 {
            std::thread::yield_now();
        }
    }
}
