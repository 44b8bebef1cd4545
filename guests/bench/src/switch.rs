//! Switches between address spaces: processes in a ring, each of which touches its own pages and passes a byte on.

use crate::raw::{self, Child, Mapping, PAGE, Protection};
use crate::workload::{Group, Needs, Run, Workload, fold, try_timed};
use std::io::{self, Error, PipeReader, PipeWriter, Read, Write};

const fn workload(name: &'static str, iterations: u64, run: fn(u64) -> io::Result<Run>) -> Workload {
    Workload { name, group: Group::Switches, needs: Needs::Nothing, iterations, run }
}

/// An iteration is a byte passed to the next process.
pub(crate) const WORKLOADS: &[Workload] = &[
    workload("switch-2", 12_000, |times| ring(2, times)),
    workload("switch-8", 12_000, |times| ring(8, times)),
    workload("switch-32", 12_000, |times| ring(32, times)),
    workload("switch-96", 12_000, |times| ring(96, times)),
];

/// Pages that a process touches each time.
const PAGES: usize = 64;

/// One process of the ring.
struct Member {
    input: PipeReader,
    output: PipeWriter,
    pages: Mapping,
}

impl Member {
    /// Takes a place in the ring: reads from its own pipe and writes to the next one. Closes all other ends, so that the end of
    /// one process is seen by the next.
    fn new(index: usize, mut ends: Ends) -> io::Result<Member> {
        let missing = || Error::other("no such place");
        let next = (index + 1) % ends.len();
        let input = ends.get_mut(index).and_then(|(input, _)| input.take()).ok_or_else(missing)?;
        let output = ends.get_mut(next).and_then(|(_, output)| output.take()).ok_or_else(missing)?;
        Ok(Member { input, output, pages: Mapping::new(PAGES * PAGE, Protection::ReadWrite)? })
    }

    /// Changes a byte of each page; gives their sum.
    fn touch(&mut self, byte: u8) -> u8 {
        let pages = self.pages.bytes().chunks_exact_mut(PAGE).enumerate();
        pages.fold(byte, |sum, (index, page)| {
            // Not the same line of the cache in all pages.
            let place = &mut page[index * 64 % PAGE];
            *place = place.wrapping_add(sum | 1);
            sum.wrapping_add(*place)
        })
    }

    fn wait(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn pass(&mut self, byte: u8) -> io::Result<()> {
        self.output.write_all(&[byte])
    }

    /// Answers until the one before it ends.
    fn serve(&mut self) -> i32 {
        while let Ok(byte) = self.wait() {
            let answer = self.touch(byte);
            if self.pass(answer).is_err() {
                return 1;
            }
        }
        0
    }
}

type Ends = Vec<(Option<PipeReader>, Option<PipeWriter>)>;

/// As many rounds as make `times` hops. All processes are on one processor, as in the guest.
fn ring(members: usize, times: u64) -> io::Result<Run> {
    let _pinned = raw::Pinned::to_one_cpu()?;
    let mut ends: Ends = Vec::new();
    for _ in 0..members {
        let (input, output) = io::pipe()?;
        ends.push((Some(input), Some(output)));
    }
    let mut children: Vec<Child> = Vec::new();
    for index in 1..members {
        // What the child takes from its copy stays in ours.
        children.push(raw::fork(|| match Member::new(index, std::mem::take(&mut ends)) {
            Ok(mut member) => member.serve(),
            Err(_) => 2,
        })?);
    }
    let mut first = Member::new(0, ends)?;
    let run = round_after_round(&mut first, members, times);
    drop(first);
    for child in children {
        match child.wait()? {
            0 => {}
            ended => return Err(Error::other(format!("a process ended with {ended}"))),
        }
    }
    run
}

fn round_after_round(first: &mut Member, members: usize, times: u64) -> io::Result<Run> {
    let mut round = |byte: u8| {
        let byte = first.touch(byte);
        first.pass(byte)?;
        first.wait()
    };
    // Everybody's pages are there after this.
    let mut byte = round(1)?;
    try_timed(|| {
        let mut checksum = 0;
        for _ in 0..times.div_ceil(members as u64) {
            byte = round(byte)?;
            checksum = fold(checksum, u64::from(byte));
        }
        Ok(checksum)
    })
}
