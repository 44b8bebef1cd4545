//! Code that is rarely run, and how it is reached.
//!
//! JRCXZ reaches 127 bytes. What it jumps to when something is rare - an *island* - lies at the block's end, so the way leads over a *step*,
//! a jump of five bytes within reach. Steps are written where nothing runs into them: in groups that are jumped over, each with
//! some to spare for the accesses that follow it, which reach them backwards; and behind the block.

use super::{Address, Emitter, Mark};
use crate::asm::*;
use crate::context::field;
use crate::stubs::ExitReason;
use smallvec::{SmallVec, smallvec};

/// How far a short jump reaches.
const REACH: usize = 127;
/// Bytes of a step.
const STEP: usize = 5;
/// Bytes that the code of most accesses is shorter than, and that of most instructions without one.
pub(super) const ACCESS_ROOM: usize = 66;
pub(super) const PLAIN_ROOM: usize = 40;
/// Steps that are written for the accesses that follow.
const SPARE_STEPS: usize = 2;

/// Jumps to one place.
pub(super) type Holes = SmallVec<[Hole8; 2]>;

/// Code that is rarely run. JRCXZ doesn't reach far, so it is got to by way of a *step*: a jump of five bytes in reach.
pub(super) struct Island {
    /// Jumps that wait for a step.
    pub(super) from: Holes,
    /// Offset of the guest instruction that it belongs to.
    pub(super) guest: u16,
    pub(super) rare: Rare,
}

/// What an island does.
#[derive(Clone, Copy)]
pub(super) enum Rare {
    /// Makes an access possible.
    Access(Access),
    /// Takes this link.
    Link(usize),
    /// Leaves the instruction to the reference.
    Interpret,
    /// Leaves with the block's number.
    Exit(ExitReason),
    /// Asks for the vector registers and goes on at this offset.
    Vector(usize),
}

/// See [`Rare::Access`].
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) address: Address,
    /// R11 holds something else that is needed afterwards.
    pub(super) keeps: bool,
    /// To be called.
    pub(super) stub: u64,
    /// For those that may cross a page: their bytes.
    pub(super) bytes: Option<u32>,
    /// Offset to go on at where the page is to be looked up again.
    pub(super) back: usize,
    /// Offset to go on at with RCX as the stub leaves it.
    pub(super) after: Option<usize>,
}

impl Emitter<'_> {
    /// Leaves with the block's number.
    pub(super) fn exit_block(&mut self, reason: ExitReason) {
        self.asm.store_number(Mem::Gs(field!(argument)), self.request.block as i32, Depends::Block);
        self.asm.store_immediate(Size::B8, Mem::Gs(field!(reason)), reason as i32);
        self.asm.jump(self.request.stubs.exit);
    }

    /// Before `room` bytes are emitted: writes steps for the waiting islands if they might be out of reach afterwards.
    /// Scratch registers and flags are kept.
    pub(super) fn make_room(&mut self, room: usize) {
        let Some(&first) = self.islands.first().and_then(|island| island.from.first()) else { return };
        let most = if self.cautious { 15 } else { (REACH - room).saturating_sub(STEP * self.islands.len()) };
        if self.asm.distance(first) <= most {
            return;
        }
        let over = self.asm.jump_short();
        self.write_steps();
        self.steps.clear();
        for _ in 0..SPARE_STEPS {
            self.asm.jump(self.asm.here());
            self.steps.push(self.asm.len() - 4);
        }
        self.must_reach(over);
        self.marks.push(Mark { host: self.asm.len() as u32, guest: self.guest });
    }

    /// Where jumps to an island that have yet to be written may go to: a step in reach, for the next `bytes` bytes.
    pub(super) fn step_in_reach(&mut self, bytes: usize) -> Option<usize> {
        let &step = self.steps.last()?;
        (self.asm.len() + bytes <= step + REACH && !self.cautious).then(|| {
            self.steps.pop();
            step
        })
    }

    /// An island for jumps from `from`.
    pub(super) fn island(&mut self, from: Holes, rare: Rare) {
        self.islands.push(Island { from, guest: self.guest, rare });
    }

    /// Leaves the running instruction to the reference from `hole`.
    pub(super) fn leave_from(&mut self, hole: Hole8) {
        self.island(smallvec![hole], Rare::Interpret);
    }

    /// Writes steps for the islands that wait for one. Nothing runs into them.
    pub(super) fn write_steps(&mut self) {
        for island in std::mem::take(&mut self.islands) {
            for &hole in &island.from {
                self.must_reach(hole);
            }
            match island.rare {
                Rare::Link(link) => {
                    self.asm.jump(self.asm.here());
                    self.late.push((self.asm.len() - 4, link));
                    self.links[link].jump = self.asm.len() as u32 - 4;
                }
                Rare::Interpret => {
                    self.marks.push(Mark { host: self.asm.len() as u32, guest: island.guest });
                    self.asm.call(self.request.stubs.interpret);
                }
                _ => {
                    self.asm.jump(self.asm.here());
                    self.far.push((self.asm.len() - 4, island));
                }
            }
        }
    }

    /// Writes the islands that have steps.
    pub(super) fn write_islands(&mut self) {
        for (step, island) in std::mem::take(&mut self.far) {
            self.asm.set_relative(step, self.asm.len());
            self.marks.push(Mark { host: self.asm.len() as u32, guest: island.guest });
            match island.rare {
                Rare::Access(access) => self.write_access(access),
                Rare::Exit(reason) => self.exit_block(reason),
                Rare::Vector(back) => {
                    let block = self.request.block as i32;
                    self.asm.store_number(Mem::Gs(field!(argument)), block, Depends::Block);
                    self.asm.call(self.request.stubs.vector);
                    self.asm.jump_back(back);
                }
                Rare::Link(_) | Rare::Interpret => unreachable!("their steps are all there is of them"),
            }
        }
    }

    pub(super) fn write_access(&mut self, access: Access) {
        if access.keeps {
            self.asm.store_gs(field!(held), R11);
        }
        access.address.to_r11(&mut self.asm);
        if let Some(bytes) = access.bytes {
            self.asm.store_immediate(Size::B8, Mem::Gs(field!(cross_size)), bytes as i32);
        }
        self.asm.call(access.stub);
        if access.keeps {
            self.asm.load_gs(R11, field!(held));
        }
        if let Some(after) = access.after {
            let again = self.asm.jrcxz();
            self.asm.jump_back(after);
            self.must_reach(again);
        }
        self.asm.jump_back(access.back);
    }
}
