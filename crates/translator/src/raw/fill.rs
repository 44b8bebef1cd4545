//! What translated code calls when a view has no entry, and the call into translated code itself.
//!
//! A [`Filler`] is what both need: the reference's core for walks, the views, and the platform that page tables may lie in.
//! Translated code gets its address; while it runs, nobody else uses the filler.

use crate::Options;
use crate::cache::Place;
use crate::cells::Cells;
use crate::chaos::Chaos;
use crate::checker::{Checker, Held, Walk};
use crate::context::Context;
use crate::raw::enter::{ContextCell, enter};
use crate::raw::signals::{self, Running};
use crate::spaces::Spaces;
use crate::stubs::Want;
use engine::{Counters, Platform};
use interpreter::{Core, Probed, Prober, Viewer};
use memory::{GuestMemory, RamOffset};
use shadow::{Fill, Shared, View};
use std::ptr::NonNull;
use x86::Rflags;
use x86::control::cr4;

const USER: usize = 0;
const SUPERVISOR: usize = 1;
const SUPERVISOR_OPEN: usize = 2;
/// How many views a vCPU has.
pub(crate) const VIEWS: usize = 3;

/// What the views may cost where there is chaos: room for some hundred pages.
const CHAOS_BUDGET: usize = 128 * shadow::REGION_BYTES;

pub(crate) struct Filler {
    pub(crate) core: Core,
    memory: GuestMemory,
    views: [Option<View>; VIEWS],
    /// The view in force.
    current: usize,
    /// The host has refused a view: no use in asking again.
    refused: bool,
    shared: Shared,
    io: Option<NonNull<dyn Platform>>,
    /// The running vCPU's, during a run.
    context: *mut Context,
    lent: Option<Lent>,
    /// Where entries are checked.
    checker: Option<Checker>,
    pub(crate) fills: u64,
    /// Bytes that the views may cost; times that they cost more, and regions given back then.
    budget: usize,
    reclaims: u64,
    reclaimed: u64,
    /// Everything is dropped now and then.
    chaos: Option<Chaos>,
    /// User code may set GS.
    fsgsbase: bool,
}

// SAFETY: the pointers are used by the vCPU's thread only, `io` only during a run.
unsafe impl Send for Filler {}

impl Filler {
    pub(crate) fn new(
        core: Core,
        memory: GuestMemory,
        shared: Shared,
        fsgsbase: bool,
        checker: Option<Checker>,
        options: &Options,
    ) -> Box<Self> {
        Box::new(Self {
            fsgsbase,
            core,
            memory,
            views: [None, None, None],
            current: SUPERVISOR,
            refused: false,
            shared,
            io: None,
            context: std::ptr::null_mut(),
            lent: None,
            checker,
            fills: 0,
            budget: if options.chaos { CHAOS_BUDGET } else { options.shadow_memory },
            reclaims: 0,
            reclaimed: 0,
            chaos: options.chaos.then(Chaos::default),
        })
    }

    /// The address that translated code calls.
    pub(crate) fn entry() -> u64 {
        fill as *const () as u64
    }

    /// Chooses the view by privilege and SMAP. False: the host has no address space for it.
    pub(crate) fn select_view(&mut self, context: &mut Context) -> bool {
        if !self.choose_view() {
            return false;
        }
        let origin = |view: usize| self.views[view].as_ref().map_or(0, View::origin);
        // Without SMAP, RFLAGS.AC changes nothing.
        let closed = if self.core.state().cr4 & cr4::SMAP == 0 { SUPERVISOR_OPEN } else { SUPERVISOR };
        context.views = [origin(USER), origin(closed), origin(SUPERVISOR_OPEN)];
        true
    }

    /// Translated code may have changed its privilege level and RFLAGS.AC since it was entered.
    fn follow(&mut self) {
        // SAFETY: set by `run`; translated code waits for this function.
        let (user, lifted) = unsafe { ((*self.context).user != 0, (*self.context).alignment_flag != 0) };
        let state = self.core.state();
        let crossed = user != (state.cpl == 3);
        let moved = !user && lifted != state.rflags.contains(Rflags::AC);
        if crossed {
            self.core.set_privilege(if user { 3 } else { 0 });
        }
        if moved {
            self.core.set_alignment_flag(lifted);
        }
        if crossed || moved {
            self.choose_view();
        }
    }

    fn choose_view(&mut self) -> bool {
        let state = self.core.state();
        let open = state.cr4 & cr4::SMAP == 0 || state.rflags.contains(Rflags::AC);
        self.current = match (state.cpl == 3, open) {
            (true, _) => USER,
            (false, false) => SUPERVISOR,
            (false, true) => SUPERVISOR_OPEN,
        };
        if self.views[self.current].is_none() && !self.refused {
            match View::new(&self.shared) {
                Ok(view) => self.views[self.current] = Some(view),
                Err(error) => {
                    tracing::warn!(%error, "no address space for translated code; interpreting");
                    self.refused = true;
                }
            }
        }
        self.views[self.current].is_some()
    }

    /// What instructions that invalidate translations need, for the next [`Filler::run`]. They belong to whoever calls that, and
    /// may not be touched until it has come back. `writes_seen`: position in the memory's log of writes that is known.
    pub(crate) fn lend(&mut self, cells: *mut Cells, spaces: *mut Spaces, writes_seen: u64) {
        self.lent = Some(Lent { cells, spaces, writes_seen });
    }

    /// Runs translated code until it leaves.
    pub(crate) fn run(&mut self, stub: u64, context: *mut Context, io: &mut dyn Platform, running: Running) {
        let Some(view) = &self.views[self.current] else { return };
        let origin = view.origin();
        // SAFETY: only the lifetime is changed; the pointer is taken back before this function returns.
        self.io = Some(NonNull::from(unsafe {
            std::mem::transmute::<&mut dyn Platform, &'static mut dyn Platform>(io)
        }));
        self.context = context;
        let this: *mut Self = self;
        signals::set_running(Some(running));
        // SAFETY: the context is the one behind `origin`; the stub was made by `stubs`; `this` is used by translated code's calls
        // alone until it leaves.
        unsafe {
            (*context).vcpu = this as u64;
            enter(stub, origin, self.fsgsbase);
        }
        signals::set_running(None);
        self.io = None;
        self.lent = None;
    }

    /// The guest flushes: what isn't global, or everything. What is entered from here on is new.
    pub(crate) fn begin_flush(&mut self, all: bool) {
        if let Some(checker) = &mut self.checker {
            checker.begin(all);
        }
    }

    /// Drops what the views hold of one linear address.
    pub(crate) fn drop_address(&mut self, address: u64) {
        for view in self.views.iter_mut().flatten() {
            view.drop_address(address);
        }
    }

    /// Drops what the views hold of global pages, or of all others, and gives the pages.
    pub(crate) fn take(&mut self, global: bool, pages: &mut [Vec<u64>; VIEWS]) {
        for (view, pages) in self.views.iter_mut().zip(pages) {
            match view {
                Some(view) if global => view.take_global(pages),
                Some(view) => view.take_local(pages),
                None => {}
            }
        }
    }

    /// Whether a view has an entry for a page.
    pub(crate) fn has_entry(&self, view: usize, page: u64) -> bool {
        self.views[view].as_ref().is_some_and(|view| view.read_entry(page) != 0)
    }

    /// The tables that are in force, and the views.
    pub(crate) fn parts(&mut self) -> (Prober<'_>, Views<'_>) {
        let views = Views { views: &mut self.views, memory: &self.memory, checker: self.checker.as_mut() };
        (self.core.prober(), views)
    }

    /// Compares what the views hold, after a flush, with the walks it came from and with fresh ones.
    ///
    /// # Panics
    /// Where they differ.
    pub(crate) fn check(&mut self) {
        let Some(checker) = &mut self.checker else { return };
        let mut prober = self.core.prober();
        let held = |view: usize, page| {
            let view = self.views[view].as_ref();
            view.map_or(Held { read: 0, write: 0 }, |view| Held {
                read: view.read_entry(page),
                write: view.write_entry(page),
            })
        };
        checker.compare(held, |view, page| {
            let found = prober.probe(page, viewer(view)).filter(|found| found.read)?;
            Some(walk(&self.memory, found))
        });
    }

    pub(crate) fn drop_everything(&mut self) {
        for view in self.views.iter_mut().flatten() {
            view.drop_all();
        }
    }

    /// Something is derived from these pages of RAM now.
    pub(crate) fn give_up_writing(&mut self, frames: &[u64]) {
        let ram = self.memory.host_address(RamOffset(0));
        for view in self.views.iter_mut().flatten() {
            view.drop_writable(|host| frames.contains(&(host.wrapping_sub(ram) >> 12)));
        }
    }

    /// What the views are doing.
    pub(crate) fn counters(&self, into: &mut Counters) {
        into.add("tlb", "fills", self.fills);
        into.add("tlb", "reclaims", self.reclaims);
        into.add("tlb", "reclaimed_regions", self.reclaimed);
        if let Some(checker) = &self.checker {
            into.add("check", "compared", checker.compared);
            into.add("check", "moved_meanwhile", checker.moved);
        }
        let views = || self.views.iter().flatten();
        into.add("tlb", "entries", views().map(|view| view.filled() as u64).sum());
        let ranges: Vec<_> = views().map(View::tables).collect();
        if let Some(bytes) = memory::resident_bytes(&ranges) {
            into.add("tlb", "resident_bytes", bytes);
        }
    }

    /// Nothing is derived from these pages of RAM any more.
    pub(crate) fn allow_writing(&mut self, frame: u64) {
        let host = self.memory.host_address(RamOffset(frame << 12));
        for view in self.views.iter_mut().flatten() {
            view.drop_watched(host);
        }
    }

    /// Finds what is to be added to a linear address for an access, a store of `bytes` in one page or, for 0, a read. Enters it
    /// into the view in force where it is good for the whole page. 0: the instruction is for the reference.
    fn fill(&mut self, address: u64, bytes: u64) -> u64 {
        let Some(mut io) = self.io else { return 0 };
        // SAFETY: set by `run`, which is on this thread's stack below and doesn't use it meanwhile.
        let io = unsafe { io.as_mut() };
        let write = bytes != 0;
        self.mind_budget(address);
        // A page that is written for the first time is the reference's, and has its entry from the next write on: the instruction
        // may fault yet, for its operand's alignment, and would have set the D bit.
        let Some(mapping) = self.core.map(address, write, io) else { return 0 };
        let derived = self.memory.is_derived(mapping.ram);
        if !mapping.read || write && (!mapping.write || derived && bytes == WHOLE_PAGE) {
            return 0;
        }
        let Some(view) = &mut self.views[self.current] else { return 0 };
        self.fills += 1;
        let fill = Fill {
            page: address & !0xfff,
            host: self.memory.host_address(mapping.ram),
            read: true,
            write: mapping.write && !derived,
            global: mapping.global,
            large: mapping.large,
        };
        if let Some(checker) = &mut self.checker {
            let walk = Walk { host: fill.host, write: mapping.write, global: mapping.global };
            checker.record(self.current, fill.page, walk);
        }
        if write && derived {
            // First the address, then a look: see `watch_granules`.
            view.watch(&fill, self.memory.watch_granules(mapping.ram));
            let touched = memory::granules(RamOffset(address & 0xfff), bytes);
            if self.memory.marked_granules(mapping.ram) & touched != 0 {
                return 0;
            }
            return fill.host.wrapping_sub(fill.page);
        }
        view.fill(&fill);
        // A page whose host and guest address are equal has no entry.
        if write { view.write_entry(address) } else { view.read_entry(address) }
    }

    /// A look-up has come to nothing: it may have cost the host memory, of which there is so much.
    fn mind_budget(&mut self, address: u64) {
        if self.chaos.as_mut().is_some_and(Chaos::strikes) {
            self.drop_everything();
        }
        if let Some(view) = &mut self.views[self.current] {
            view.touch(address);
        }
        let cost: usize = self.views.iter().flatten().map(View::cost).sum();
        if cost > self.budget {
            self.reclaims += 1;
            for view in self.views.iter_mut().flatten() {
                self.reclaimed += view.reclaim(self.budget / 2 / VIEWS) as u64;
            }
        }
    }

    /// Executes MOV to CR3, or INVLPG. 0: the reference has to, once more; neither minds. `cell`: that of the code which asks.
    fn invalidate(&mut self, operand: u64, root: bool, cell: u32) -> u64 {
        let (Some(lent), Some(mut io)) = (self.lent, self.io) else { return 0 };
        // They serialize: code that others have changed must not run any more.
        if self.memory.epoch() != lent.writes_seen {
            return 0;
        }
        if root {
            // SAFETY: set by `run`, which is on this thread's stack below and doesn't use it meanwhile.
            if !self.core.load_root(operand, unsafe { io.as_mut() }) {
                return 0;
            }
            // SAFETY: set by `run`; translated code waits for this function.
            unsafe { (*self.context).control[3] = self.core.state().cr3 };
        } else {
            self.core.drop_address(operand);
        }
        let mut context = ContextCell::new(&self.shared);
        // SAFETY: `lend` says that nobody else uses them during a run, and they are no part of this.
        let (cells, spaces) = unsafe { (&mut *lent.cells, &mut *lent.spaces) };
        cells.begin_inside();
        spaces.catch_up_inside(self, cells, &mut context);
        // User code's returns would come back to pages without looking at their cells: they start over.
        // SAFETY: set by `run`; translated code waits for this function.
        unsafe { (*self.context).user_stack = (*self.context).stack_starts[1] };
        // Supervisor code's do, and translated code goes on without looking at its own page's cell.
        let lost = cells.has_lost();
        u64::from(!lost && cells.is_valid(cell))
    }

    /// A way to access `bytes` at an address from which they cross into the next page: 0 for none, 1 if both pages lie in RAM as they
    /// do in the address space, else what has to be added to the address to find a copy of the bytes.
    fn cross(&mut self, address: u64, bytes: u64, write: bool) -> u64 {
        let (last, on_first) = (address.wrapping_add(bytes - 1), 0x1000 - (address & 0xfff));
        for at in [address, last] {
            let view = self.views[self.current].as_ref();
            let entry = view.map_or(0, |view| if write { view.write_entry(at) } else { view.read_entry(at) });
            if entry == 0 && self.fill(at, if write { WHOLE_PAGE } else { 0 }) == 0 {
                return 0;
            }
        }
        let Some(view) = self.views[self.current].as_ref() else { return 0 };
        // The second fill may have dropped what the first one made.
        let (first, second) = if write {
            (view.write_entry(address), view.write_entry(last))
        } else {
            (view.read_entry(address), view.read_entry(last))
        };
        if first == second {
            return u64::from(first != 0);
        }
        if write || first == 0 || second == 0 || bytes > 64 {
            return 0;
        }
        let Some(io) = self.io else { return 0 };
        // SAFETY: set by `run`; translated code waits for this function.
        let bounce = unsafe { &mut (*self.context).bounce };
        // Misaligned by as much as the guest's own bytes, since some instructions mind.
        let start = (bounce.as_ptr() as u64).next_multiple_of(64) + (address & 63);
        let mut copy = [0; 64];
        let split = on_first as usize;
        for (at, range) in [(address, 0..split), (last & !0xfff, split..bytes as usize)] {
            let mut io = io;
            // SAFETY: as in `fill`.
            let Some(mapping) = self.core.map(at, false, unsafe { io.as_mut() }) else { return 0 };
            self.memory.load_bytes(RamOffset(mapping.ram.0 + (at & 0xfff)), &mut copy[range]);
        }
        // SAFETY: `bytes` is at most 64 and the field has 192, of which alignment and misalignment take less than 128.
        unsafe { (start as *mut u8).copy_from_nonoverlapping(copy.as_ptr(), bytes as usize) };
        let delta = start.wrapping_sub(address);
        if delta <= 1 { 0 } else { delta }
    }
}

/// See [`Filler::lend`].
#[derive(Clone, Copy)]
struct Lent {
    cells: *mut Cells,
    spaces: *mut Spaces,
    writes_seen: u64,
}

/// All views of a vCPU, to be filled in advance.
pub(crate) struct Views<'a> {
    views: &'a mut [Option<View>; VIEWS],
    memory: &'a GuestMemory,
    checker: Option<&'a mut Checker>,
}

/// As whom a view sees.
fn viewer(view: usize) -> Viewer {
    match view {
        USER => Viewer::User,
        SUPERVISOR => Viewer::Supervisor,
        _ => Viewer::SupervisorOpen,
    }
}

/// What a walk that leaves no trace has found.
fn walk(memory: &GuestMemory, found: Probed) -> Walk {
    Walk { host: memory.host_address(found.ram), write: found.write, global: found.global }
}

impl Views<'_> {
    /// Enters a page if the tables that are in force allow it without anything being set in them.
    pub(crate) fn enter(&mut self, prober: &mut Prober<'_>, view: usize, page: u64) -> bool {
        let number = view;
        let (Some(view), Some(found)) = (&mut self.views[number], prober.probe(page, viewer(number))) else {
            return false;
        };
        if let Some(checker) = &mut self.checker {
            checker.record(number, page, walk(self.memory, found));
        }
        view.fill(&Fill {
            page,
            host: self.memory.host_address(found.ram),
            read: found.read,
            write: found.write && !self.memory.is_derived(found.ram),
            global: found.global,
            large: found.large,
        });
        found.read
    }

    /// The same for the supervisor's views.
    pub(crate) fn enter_supervisor(&mut self, prober: &mut Prober<'_>, page: u64) {
        for view in [SUPERVISOR, SUPERVISOR_OPEN] {
            self.enter(prober, view, page);
        }
    }

    /// Where a page of code is, if code may be fetched there without anything being set in the tables.
    pub(crate) fn code(&self, prober: &mut Prober<'_>, page: u64, user: bool) -> Option<Place> {
        let viewer = if user { Viewer::User } else { Viewer::Supervisor };
        let found = prober.probe(page, viewer).filter(|found| found.fetch)?;
        Some(Place { at: found.ram, global: found.global, large: found.large })
    }
}

/// Answers translated code's wish; see [`Want`]. 0: the instruction is for the reference.
extern "sysv64" fn fill(filler: *mut Filler, address: u64, want: u64) -> u64 {
    // SAFETY: translated code passes what `run` put into the context, and one of `Want`'s numbers; a panic would have to cross
    // translated code, so it ends the process instead (`extern` functions abort on unwinding).
    unsafe {
        let filler = &mut *filler;
        filler.follow();
        match want {
            READ => u64::from(filler.fill(address, 0) != 0),
            WRITE => u64::from(filler.fill(address, WHOLE_PAGE) != 0),
            STORE => {
                let bytes = (*filler.context).fill_bytes;
                filler.fill(address, bytes)
            }
            LOAD_ROOT | DROP_ADDRESS => {
                let cell = (*filler.context).fill_bytes as u32;
                filler.invalidate(address, want == LOAD_ROOT, cell)
            }
            _ => {
                let bytes = (*filler.context).cross_size;
                filler.cross(address, bytes, want == CROSSING_WRITE)
            }
        }
    }
}

const READ: u64 = Want::Read as u64;
const WRITE: u64 = Want::Write as u64;
const STORE: u64 = Want::Store as u64;
const LOAD_ROOT: u64 = Want::LoadRoot as u64;
const DROP_ADDRESS: u64 = Want::DropAddress as u64;
/// Stores of any length, so that the page needs an entry.
const WHOLE_PAGE: u64 = 4096;
const CROSSING_WRITE: u64 = Want::CrossingWrite as u64;
