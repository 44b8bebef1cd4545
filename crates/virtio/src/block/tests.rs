use super::*;
use crate::Staff;
use crate::testkit::{Board, NEXT, VERSION_1, WRITE};
use disk::{DiskError, LayerInfo, Sector};
use std::io;
use std::sync::Mutex;
use x86::Gpa;

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xf000;
const FLUSH: u64 = 1 << 9;

/// A disk in memory that remembers what it was told to do, and fails when told to.
#[derive(Default)]
struct Fake {
    bytes: Mutex<Vec<u8>>,
    done: Mutex<Vec<&'static str>>,
    fails: Mutex<bool>,
    read_only: bool,
}

impl Fake {
    fn say(&self, what: &'static str) -> Result<(), DiskError> {
        self.done.lock().expect("not poisoned").push(what);
        if *self.fails.lock().expect("not poisoned") {
            return Err(DiskError::Host(io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }
}

impl Layer for Fake {
    fn info(&self) -> LayerInfo {
        LayerInfo { sectors: 64, read_only: self.read_only }
    }
    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError> {
        self.say("read")?;
        let at = first.byte() as usize;
        into.copy_from_slice(&self.bytes.lock().expect("not poisoned")[at..at + into.len()]);
        Ok(())
    }
    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError> {
        self.say("write")?;
        let at = first.byte() as usize;
        self.bytes.lock().expect("not poisoned")[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
    fn zero(&self, first: Sector, count: u64, unmap: bool) -> Result<(), DiskError> {
        self.say(if unmap { "unmap" } else { "zero" })?;
        let at = first.byte() as usize;
        self.bytes.lock().expect("not poisoned")[at..at + (count * 512) as usize].fill(0);
        Ok(())
    }
    fn discard(&self, _: Sector, _: u64) -> Result<(), DiskError> {
        self.say("discard")
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.say("flush")
    }
}

struct Bench {
    board: Board,
    disk: Arc<Fake>,
}

fn bench_with(fake: Fake, features: u64) -> Bench {
    let disk = Arc::new(fake);
    *disk.bytes.lock().expect("not poisoned") = (0..64u8).flat_map(|sector| [sector; 512]).collect();
    let device = Block::new(disk.clone(), "test".to_owned(), "serial", 2);
    let mut board = Board::new(Box::new(device), Staff::Caller);
    board.bring_up(VERSION_1 | features);
    Bench { board, disk }
}

fn bench() -> Bench {
    bench_with(Fake::default(), FLUSH)
}

impl Bench {
    /// Header, `len` bytes at [`DATA`] that the device writes or reads, status. Gives the status and the bytes written.
    fn request(&mut self, kind: u32, sector: u64, len: u32, device_writes: bool) -> (u8, u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        let board = &mut self.board;
        board.memory.write(Gpa(HEADER), &header).expect("RAM");
        board.memory.write(Gpa(STATUS), &[0xee]).expect("RAM");
        board.descriptor(0, HEADER, 16, NEXT, if len > 0 { 1 } else { 3 });
        // Cut into two pieces that are no sectors.
        let direction = if device_writes { WRITE } else { 0 };
        board.descriptor(1, DATA, len / 3, NEXT | direction, 2);
        board.descriptor(2, DATA + u64::from(len / 3), len - len / 3, NEXT | direction, 3);
        board.descriptor(3, STATUS, 1, WRITE, 0);
        board.offer(0);
        let written = board.used().last().expect("it came back").1;
        (board.bytes(STATUS, 1)[0], written)
    }

    fn done(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.disk.done.lock().expect("not poisoned"))
    }

    fn range(&self, sector: u64, count: u32, flags: u32) {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.board.memory.write(Gpa(DATA), &bytes).expect("RAM");
    }
}

#[test]
fn sectors_are_read_and_written() {
    let mut bench = bench();
    assert_eq!(bench.request(0, 5, 1024, true), (0, 1025));
    assert_eq!(bench.board.bytes(DATA, 1024), [[5; 512], [6; 512]].concat());
    bench.board.memory.write(Gpa(DATA), &[0xaa; 512]).expect("RAM");
    assert_eq!(bench.request(1, 63, 512, false), (0, 1));
    assert_eq!(bench.request(0, 63, 512, true), (0, 513));
    assert_eq!(bench.board.bytes(DATA, 512), [0xaa; 512]);
    assert_eq!(bench.done(), ["read", "write", "read"]);
}

#[test]
fn a_flush_is_one_and_without_the_feature_every_write_has_its_own() {
    let mut bench = bench();
    assert_eq!(bench.request(4, 0, 0, false), (0, 1));
    assert_eq!(bench.done(), ["flush"]);
    let mut simple = bench_with(Fake::default(), 0);
    simple.request(1, 0, 512, false);
    assert_eq!(simple.done(), ["write", "flush"]);
}

#[test]
fn what_is_not_on_the_disk_fails() {
    let mut bench = bench();
    for (sector, len) in [(64, 512), (63, 1024), (u64::MAX, 512), (0, 511), (0, 513)] {
        assert_eq!(bench.request(0, sector, len, true).0, 1, "{sector}");
        assert_eq!(bench.request(1, sector, len, false).0, 1, "{sector}");
    }
    assert_eq!(bench.request(77, 0, 0, false).0, 2, "unknown");
    assert!(bench.done().is_empty());
}

#[test]
fn the_hosts_errors_are_the_guests() {
    let mut bench = bench();
    *bench.disk.fails.lock().expect("not poisoned") = true;
    assert_eq!(bench.request(0, 0, 512, true), (1, 0));
    assert_eq!(bench.request(1, 0, 512, false).0, 1);
    assert_eq!(bench.request(4, 0, 0, false).0, 1);
    *bench.disk.fails.lock().expect("not poisoned") = false;
    assert_eq!(bench.request(0, 0, 512, true), (0, 513), "it goes on");
}

#[test]
fn the_serial_number_has_twenty_bytes() {
    let mut bench = bench();
    assert_eq!(bench.request(8, 0, 20, true), (0, 21));
    assert_eq!(bench.board.bytes(DATA, 20), *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.request(8, 0, 19, true).0, 1);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut bench = bench();
    bench.range(8, 4, 0);
    assert_eq!(bench.request(11, 0, 16, false).0, 0);
    assert_eq!(bench.request(13, 0, 16, false).0, 0);
    bench.range(8, 4, 1);
    assert_eq!(bench.request(13, 0, 16, false).0, 0);
    assert_eq!(bench.request(11, 0, 16, false).0, 2, "a discard unmaps anyway");
    assert_eq!(bench.done(), ["discard", "zero", "unmap"]);
    for (sector, count, flags, status) in
        [(60, 5, 0, 1), (u64::MAX, 1, 0, 1), (0, u32::MAX, 0, 1), (0, 1, 2, 2)]
    {
        bench.range(sector, count, flags);
        assert_eq!(bench.request(13, 0, 16, false).0, status);
    }
    assert_eq!(bench.request(13, 0, 17, false).0, 1, "no whole ranges");
    assert_eq!(bench.request(13, 0, 0, false).0, 1, "none");
    assert!(bench.done().is_empty());
}

#[test]
fn a_request_without_a_header_or_room_for_a_status_is_no_trouble() {
    let mut bench = bench();
    let board = &mut bench.board;
    board.descriptor(0, HEADER, 8, NEXT, 3);
    board.descriptor(3, STATUS, 1, WRITE, 0);
    board.offer(0);
    assert_eq!(board.bytes(STATUS, 1), [1]);
    board.descriptor(0, HEADER, 16, 0, 0);
    board.offer(0);
    board.descriptor(0, 0xffff_ffff_0000, 16, NEXT, 3);
    board.offer(0);
    assert_eq!((board.used().len(), board.status()), (3, 15));
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let mut bench = bench();
    assert_eq!(bench.board.read(0x2000, 8), 64);
    assert_eq!(bench.board.read(0x2000 + 34, 2), 2, "rings");
    bench.board.write(0, 4, 0);
    assert_eq!(bench.board.read(4, 4) & 1 << 5, 0);
    let mut fixed = bench_with(Fake { read_only: true, ..Fake::default() }, FLUSH);
    fixed.board.write(0, 4, 0);
    assert_eq!(
        fixed.board.read(4, 4) & (1 << 5 | 1 << 13 | 1 << 14),
        1 << 5,
        "read-only, and nothing to discard"
    );
}
