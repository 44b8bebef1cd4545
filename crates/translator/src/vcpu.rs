//! One translated vCPU: the run loop that finds translations, enters them, and deals with whatever made them leave.
//!
//! Code that is met for the first few times is interpreted; code that is met again is translated. Between two entries of translated
//! code everything architectural is in the reference's [`Core`], so that anything may be left to it at any time.

use crate::cache::{BlockId, Cache, MAX_BYTES, Place, next_page};
use crate::changing::Changing;
use crate::checker::Checker;
use crate::context::{Context, XSAVE};
use crate::counts::{Counts, Fallbacks};
use crate::crossing::Crossing;
use crate::emit::{Features, Mode, VectorLevel};
use crate::heat::{Heat, Rewritten};
use crate::listing::Dump;
use crate::raw::enter::{self, ContextCell};
use crate::raw::fill::Filler;
use crate::raw::signals;
use crate::raw::stack::ReturnStacks;
use crate::spaces::Spaces;
use crate::stubs::ExitReason;
use crate::watched::Watched;
use crate::{Options, xstate};
use engine::{Budget, Counters, EngineError, Exit, Groups, Kicker, Platform, Setup, Vcpu, VcpuId};
use interpreter::{CodeMode, Core, Outcome};
use memory::{DirectWriter, GuestMemory, RamOffset};
use shadow::Shared;
use std::sync::Arc;
use x86::control::{cr0, cr4};
use x86::state::seg;
use x86::{CpuState, Rflags};

/// How IRETQ is written.
const IRETQ: [u8; 2] = [0x48, 0xcf];

/// Faults in a row without any instruction completing before a run comes back.
const MOST_STUCK: u32 = 1000;

pub(crate) struct TranslatedVcpu {
    /// Owns the block of memory that `context` lies in.
    filler: Box<Filler>,
    cache: Cache,
    context: ContextCell,
    stacks: ReturnStacks,
    memory: GuestMemory,
    writer: Arc<DirectWriter>,
    kicker: Kicker,
    heat: Heat,
    rewritten: Rewritten,
    changing: Changing,
    /// Position in the memory's log of first marks up to which the views know them.
    marks_seen: u64,
    /// Epoch of the memory up to which blocks have been checked.
    writes_seen: u64,
    /// The vector registers are in the context's XSAVE image, not in the core.
    vector_away: bool,
    xstate: xstate::Layout,
    crossing: Crossing,
    /// The modes that the tables of indirect targets hold translations for: supervisor's and user's.
    table_modes: [Option<Mode>; 2],
    counts: Counts,
    spaces: Spaces,
    /// The translation to go on with at an address, instead of what would be found for it.
    next: Option<(u64, BlockId)>,
    /// What is left of the instruction budget, if there is one.
    left: Option<u64>,
    /// Instructions that translated code has counted.
    translated: u64,
    dump: Option<Dump>,
}

impl TranslatedVcpu {
    pub(crate) fn new(
        id: VcpuId,
        setup: Setup,
        options: &Options,
        checker: Option<Checker>,
    ) -> Result<Self, EngineError> {
        let host = |what| move |source| EngineError::Host { what, source };
        let fsgsbase = !options.without.fsgsbase && enter::has_fsgsbase();
        let features = Features {
            rdtscp: setup.cpuid.stored(0x8000_0001, 0).edx >> 27 & 1 != 0,
            view_switch: setup.cpuid.stored(7, 0).ebx >> 20 & 1 != 0 && fsgsbase,
            crossing: fsgsbase,
        };
        let core = Core::new(id, setup)?;
        let memory = core.memory().clone();
        let kicker = core.kicker();
        let shared = Shared::new().map_err(host("memory for a vCPU"))?;
        let mut context = ContextCell::new(&shared);
        let xstate = xstate::Layout::of_host(options.without);
        let cache = Cache::new(features, options.code_cache, xstate.avx, xstate.xsaveopt)
            .map_err(host("executable memory"))?;
        let stacks = ReturnStacks::new(cache.stubs.bottom).map_err(host("memory for a stack"))?;
        let interrupt = kicker.clone();
        let writer = memory.add_direct_writer(Box::new(move || interrupt.kick()));
        for user in [false, true] {
            cache.forget_targets(user, &mut context);
        }
        let filler = Filler::new(core, memory.clone(), shared, fsgsbase, checker, options);
        let fixed = context.get();
        fixed.fill = Filler::entry();
        fixed.proceed = kicker.word().as_ptr() as u64;
        fixed.stack_starts = stacks.starts();
        fixed.epoch = memory.epoch_address();
        Crossing::begin(fixed);
        fixed.page_mask = 0x0000_ffff_ffff_f000;
        fixed.offset_mask = 0xfff;
        fixed.cross_bounce = (fixed.bounce.as_ptr() as u64).next_multiple_of(64) + 64;
        fixed.sign_bits = !0 << 47;
        fixed.mixed_signs = 0x1fffe;
        fixed.outside_mask = !0xfff;
        fixed.watched_mask = (shadow::WATCHED_SLOTS as u64 - 1) << 12;
        fixed.granule_mask = 0xfff & !(memory::GRANULE - 1);
        fixed.one = 1;
        fixed.sign_mask = 1 << 63;
        let untouched = Rflags::all() - (Rflags::ARITHMETIC | Rflags::DF | Rflags::IF | Rflags::ONE);
        fixed.popf_mask = untouched.bits();
        fixed.interrupt_mask = Rflags::IF.bits();
        fixed.bit_masks = [31, 63];
        fixed.target_mask = crate::context::target_in_slot(crate::context::TARGET_SLOTS - 1);
        fixed.cross_masks = std::array::from_fn(|n| 0xfff & !((2u64 << n) - 1));
        fixed.xsave_mask = xstate.mask;
        fixed.host_mxcsr = u64::from(enter::mxcsr());
        let marks_seen = memory.marks();
        let writes_seen = memory.epoch();
        Ok(Self {
            filler,
            cache,
            context,
            stacks,
            memory,
            writer,
            kicker,
            heat: Heat::new(options.hot),
            rewritten: Rewritten::new(),
            changing: Changing::new(options.rewrites),
            marks_seen,
            writes_seen,
            vector_away: false,
            xstate,
            crossing: Crossing::default(),
            table_modes: [None; 2],
            counts: Counts {
                fallbacks: options.count_fallbacks.then(Fallbacks::default),
                ..Counts::default()
            },
            spaces: Spaces::new(options.keep_spaces, options.chaos),
            next: None,
            left: None,
            translated: 0,
            dump: options.dump.clone(),
        })
    }

    fn core(&mut self) -> &mut Core {
        &mut self.filler.core
    }

    /// Runs up to `limit` instructions, or without counting.
    fn execute(&mut self, limit: Option<u64>, io: &mut Watched<'_>) -> Exit {
        self.core().begin();
        self.left = limit.map(|limit| limit.min(i64::MAX as u64));
        let (mut seen, mut stuck) = (u64::MAX, 0u32);
        loop {
            if self.filler.core.wants_attention() {
                if let Some(exit) = self.filler.core.attend(io) {
                    return exit;
                }
                if self.filler.core.wants_event() {
                    continue;
                }
            }
            if self.left == Some(0) {
                return Exit::Budget;
            }
            self.catch_up();
            let outcome = match self.mode() {
                Some(mode) => self.advance(mode, io),
                None => self.interpret(u64::MAX, io),
            };
            match outcome {
                Outcome::Ran => {}
                Outcome::Exit(exit) => return exit,
                Outcome::WantsVector => unreachable!("`interpret` has brought them back"),
            }
            let done = self.filler.core.instructions() + self.translated;
            if self.left.is_some() && done == seen {
                stuck += 1;
                if stuck == MOST_STUCK {
                    return Exit::Kicked;
                }
            } else {
                (seen, stuck) = (done, 0);
            }
        }
    }

    fn interpret(&mut self, most: u64, io: &mut Watched<'_>) -> Outcome {
        if self.left == Some(0) {
            // The reference would take a careful step even of none.
            return Outcome::Ran;
        }
        self.counts.interpreted += 1;
        let before = self.filler.core.instructions();
        let most = most.min(self.left.unwrap_or(u64::MAX));
        let mut outcome = self.filler.core.interpret(most, io);
        if outcome == Outcome::WantsVector {
            self.bring_vector_back();
            outcome = self.filler.core.interpret(most, io);
        }
        if let Some(left) = &mut self.left {
            *left -= (self.filler.core.instructions() - before).min(*left);
        }
        outcome
    }

    /// What the code at hand would be translated for; `None` where it is the reference's as a whole.
    fn mode(&mut self) -> Option<Mode> {
        let core = &self.filler.core;
        if !core.is_plain() {
            return None;
        }
        let state = core.state();
        let long = match core.code_mode() {
            CodeMode::Bits64 => true,
            CodeMode::Bits32 => false,
            CodeMode::Bits16 => return None,
        };
        let user = match state.cpl {
            0 => false,
            3 => true,
            _ => return None,
        };
        let checks_alignment = user && state.cr0 & cr0::AM != 0 && state.rflags.contains(Rflags::AC);
        let forbids_rdtsc = user && state.cr4 & cr4::TSD != 0;
        if checks_alignment
            || forbids_rdtsc
            || state.cr4 & cr4::LA57 != 0
            || state.cr0 & cr0::PE == 0
            || state.rflags.contains(Rflags::VM)
        {
            return None;
        }
        let bases = core.segment_bases();
        let mut flat = 0;
        if !long {
            let unchecked = core.unchecked_segments();
            for index in 0..6 {
                let based = matches!(index, seg::FS | seg::GS);
                if unchecked[index] && (based || bases[index] == 0) {
                    flat |= 1 << index;
                }
            }
            if bases[seg::CS] != 0 || core.code_limit() != 0xffff_ffff {
                return None;
            }
            if core.stack_mask() != 0xffff_ffff {
                flat &= !(1 << seg::SS);
            }
        }
        let vector = if state.cr0 & (cr0::EM | cr0::TS) != 0 || state.cr4 & cr4::OSFXSR == 0 {
            VectorLevel::None
        } else if state.cr4 & cr4::OSXSAVE == 0 || state.vector.xcr0 & 6 != 6 {
            VectorLevel::Sse
        } else if state.vector.xcr0 & 0xe0 != 0xe0 {
            VectorLevel::Avx
        } else {
            VectorLevel::Avx512
        };
        Some(Mode {
            long,
            user,
            flat,
            vector: vector.min(self.xstate.level),
            counted: self.left.is_some(),
            single: false,
        })
    }

    /// Runs translated code from here on, or interprets some.
    fn advance(&mut self, mode: Mode, io: &mut Watched<'_>) -> Outcome {
        let rip = self.filler.core.rip();
        let next = self.next.take().and_then(|(at, block)| {
            let single = Mode { single: true, ..mode };
            (at == rip && self.cache.find(rip, single) == Some(block)).then_some(block)
        });
        let Some(block) = next.or_else(|| self.find(rip, mode, io)) else {
            if let Some(fallbacks) = &mut self.counts.fallbacks {
                fallbacks.interpreted_at(rip);
            }
            return self.interpret(u64::MAX, io);
        };
        if !self.filler.select_view(self.context.get()) {
            return self.interpret(u64::MAX, io);
        }
        self.run(block, mode, io)
    }

    /// The translation of the code at `rip`, if there is one or it is time for one.
    fn find(&mut self, rip: u64, mode: Mode, io: &mut Watched<'_>) -> Option<BlockId> {
        if let Some(block) = self.cache.find(rip, mode) {
            return Some(block);
        }
        // Code of the user's may have been met at another address. The kernel's is where it was: if it is translated it is hot, unless it
        // shares its slot with something else; so no walk for it while it is cold.
        let known = if mode.user { Some(self.place(rip, io)?) } else { None };
        let met = known.map_or(rip, |place| place.at.0);
        let hot = self.heat.meet(met, mode.user);
        let eager = self.changing.any() && self.heat.may_try(met);
        let place = match known {
            Some(place) if hot || eager || self.cache.has_twin(mode, place) => place,
            None if hot || eager => self.place(rip, io)?,
            _ => return None,
        };
        if self.cache.has_twin(mode, place) {
            if let Some(block) = self.cache.find_at(rip, mode, place, None, &mut self.context) {
                return Some(block);
            }
            let fixed = self.last_x87_block();
            if let Some(block) = self.cache.adopt(rip, mode, place, fixed, &mut self.context) {
                return Some(block);
            }
        }
        let mut checks = self.changing.has(place.at.frame());
        // Where code changes all the time, to be decoded by the reference is as good as a write.
        if !hot && !checks {
            return None;
        }
        let second = if self.cache.is_straddling(rip, mode, place) {
            Some(self.place_after(rip, mode, io)?)
        } else {
            None
        };
        if let Some(block) = self.cache.find_at(rip, mode, place, second, &mut self.context) {
            return Some(block);
        }
        let mut block = self.cache.translate(rip, mode, place, None, checks, &self.memory, &mut self.context);
        if block.is_none() && self.goes_on(mode, place) {
            let second = self.place_after(rip, mode, io)?;
            checks |= self.changing.has(second.at.frame());
            let (cache, memory) = (&mut self.cache, &self.memory);
            block = cache.translate(rip, mode, place, Some(second), checks, memory, &mut self.context);
        }
        if block.is_none() {
            self.heat.cool(met);
            if let Some(fallbacks) = &mut self.counts.fallbacks {
                let mut bytes = [0; 15];
                let len = bytes.len().min((0x1000 - place.at.offset_in_page()) as usize);
                self.memory.load_bytes(place.at, &mut bytes[..len]);
                fallbacks.refuse(rip, &bytes[..len], mode.long);
            }
        }
        if let (Some(dump), Some(id)) = (&self.dump, block)
            && dump.wants(rip, self.cache.guest_code(id, rip).0.len())
        {
            let level = if mode.user { "user" } else { "supervisor" };
            let bits = if mode.long { 64 } else { 32 };
            (dump.to)(&format!("translation of {rip:016x}: {bits}-bit {level}\n{}", self.cache.listing(id)));
        }
        // Bytes may have been marked, which the views have to know.
        self.catch_up();
        block.filter(|&id| self.cache.find(rip, mode) == Some(id))
    }

    fn place(&mut self, rip: u64, io: &mut Watched<'_>) -> Option<Place> {
        let mapping = self.filler.core.map_code(rip, io)?;
        Some(Place {
            at: RamOffset(mapping.ram.0 + (rip & 0xfff)),
            global: mapping.global,
            large: mapping.large,
        })
    }

    /// The start of the next page.
    fn place_after(&mut self, rip: u64, mode: Mode, io: &mut Watched<'_>) -> Option<Place> {
        self.place(next_page(rip, mode), io)
    }

    /// Whether the instruction at `place` needs bytes of the next page. Looking for them is no more than it does itself.
    fn goes_on(&self, mode: Mode, place: Place) -> bool {
        let left = (0x1000 - place.at.offset_in_page()) as usize;
        if left >= MAX_BYTES {
            return false;
        }
        let mut bytes = [0; MAX_BYTES];
        self.memory.load_bytes(place.at, &mut bytes[..left]);
        let bitness = if mode.long { 64 } else { 32 };
        let mut decoder = iced_x86::Decoder::new(bitness, &bytes[..left], iced_x86::DecoderOptions::NONE);
        let _ = decoder.decode();
        decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
    }

    /// Takes notice of what the guest, other vCPUs and devices have invalidated.
    fn catch_up(&mut self) {
        self.spaces.catch_up(&mut self.filler, &mut self.cache.cells, &mut self.context);
        if self.memory.epoch() != self.writes_seen {
            self.check_written();
        }
        let now = self.turns();
        if self.changing.is_due(now) {
            let (cache, memory, heat) = (&mut self.cache, &self.memory, &mut self.heat);
            for frame in self.changing.look(now, |frame| cache.has_moved_on(frame, memory)) {
                cache.forget_frame(frame, |met| heat.warm(met));
            }
        }
    }

    /// The time, for guesses.
    fn turns(&self) -> u64 {
        self.counts.entries + self.counts.interpreted
    }

    /// Drops the translations of code that has changed, and takes back marks that are in the way.
    fn check_written(&mut self) {
        let now = self.turns();
        let (cache, memory, heat) = (&mut self.cache, &self.memory, &mut self.heat);
        let mut frames = Vec::new();
        if !memory.written_since(&mut self.writes_seen, |frame| frames.push(frame)) {
            cache.check_all(memory, |met| heat.die(met));
            return;
        }
        frames.sort_unstable();
        frames.dedup();
        self.counts.code_pages += frames.len() as u64;
        let made = self.filler.core.decoded() + cache.counts.translated;
        let mut own = 0;
        for frame in frames {
            let mut died = false;
            let mut held = cache.check_frame(frame, memory, |met| {
                heat.die(met);
                died = true;
            });
            if died && self.changing.note_death(frame, now) {
                cache.forget_frame(frame, |_| {});
                held = 0;
            }
            let at = RamOffset(frame << 12);
            let often = self.rewritten.note(frame, made) || self.changing.has(frame);
            if often && memory.marked_granules(at) & !held != 0 {
                held |= memory.monitored_granules(at);
            }
            let vain = memory.marked_granules(at) & !held;
            if often && vain != 0 {
                if held != 0 {
                    own += u64::from(memory.unmark_derived(at, vain));
                } else {
                    own += 1;
                    if memory.leave_page(at) {
                        self.filler.allow_writing(frame);
                    }
                }
            }
        }
        // That counts as a write; for this vCPU it is none.
        if memory.epoch() == self.writes_seen + own {
            self.writes_seen += own;
        }
    }

    /// Enters a block and deals with how it was left.
    fn run(&mut self, block: BlockId, mode: Mode, io: &mut Watched<'_>) -> Outcome {
        // Code without windows goes on where all other code does.
        let mode = Mode { single: false, ..mode };
        if self.table_modes[usize::from(mode.user)] != Some(mode) {
            self.cache.forget_targets(mode.user, &mut self.context);
            self.table_modes[usize::from(mode.user)] = Some(mode);
        }
        let ready =
            [false, true].map(|user| self.table_modes[usize::from(user)] == Some(Mode { user, ..mode }));
        self.crossing.prepare(&self.filler.core, mode, ready, self.context.get());
        let entry = self.cache.block(block).entry;
        self.publish(entry, io.quiet);
        while !self.memory.enter_direct(&self.writer, self.marks_seen) {
            let mut frames = Vec::new();
            if self.memory.marked_since(&mut self.marks_seen, |frame| frames.push(frame)) {
                self.filler.give_up_writing(&frames);
            } else {
                self.filler.drop_everything();
            }
        }
        if std::mem::take(&mut self.cache.patched) {
            enter::serialize();
        }
        let running = signals::Running {
            code: self.cache.code_range(),
            guards: self.stacks.guards(),
            stack_starts: self.stacks.starts(),
            fault_stub: self.cache.stubs.fault,
            argument: &raw mut self.context.get().argument,
        };
        self.filler.lend(&raw mut self.cache.cells, &raw mut self.spaces, self.writes_seen);
        self.filler.run(self.cache.stubs.enter, self.context.pointer(), io, running);
        self.writer.leave();
        self.counts.entries += 1;
        self.collect();
        // Code of the other level is of the same kind otherwise.
        let mode = Mode { user: self.context.get().user != 0, ..mode };
        self.settle(mode, io)
    }

    /// Hands the architectural state to translated code.
    fn publish(&mut self, entry: u64, quiet: bool) {
        let context = self.context.get();
        let core = &mut self.filler.core;
        context.gpr = *core.registers();
        let flags = core.rflags();
        context.flags = (flags & (Rflags::ARITHMETIC | Rflags::DF)).bits() | 2;
        context.interrupt_flag = (flags & Rflags::IF).bits();
        context.alignment_flag = (flags & Rflags::AC).bits();
        context.system_flags = (flags - (Rflags::ARITHMETIC | Rflags::DF | Rflags::IF | Rflags::AC)).bits();
        context.calm = u64::from(quiet && !core.wants_event());
        context.after_sti = crate::context::NOWHERE;
        let state = core.state();
        context.kernel_gs_base = state.kernel_gs_base;
        context.tsc_aux = state.tsc_aux;
        context.selectors = std::array::from_fn(|index| u64::from(state.segments[index].selector.0));
        context.control = [state.cr0, 0, state.cr2, state.cr3, state.cr4];
        context.segment_base = core.segment_bases();
        context.tsc_offset = core.state().tsc_offset;
        context.vector_ready = 0;
        context.vector_saved = u64::from(self.vector_away);
        context.left = self.left.unwrap_or(0);
        context.writes_seen = self.writes_seen;
        context.target = entry;
        context.reason = 0;
    }

    /// Takes it back.
    fn collect(&mut self) {
        let context = self.context.get();
        let core = &mut self.filler.core;
        if let Some(pair) = self.crossing.loaded(context.loaded) {
            core.set_code_and_stack(pair);
        }
        *core.registers() = context.gpr;
        let flags = Rflags::from_bits_truncate(context.flags);
        core.set_arithmetic_flags(flags & Rflags::ARITHMETIC);
        let system = context.system_flags | context.interrupt_flag | context.alignment_flag;
        let system = Rflags::from_bits_truncate(system);
        core.set_system_flags(system | flags & Rflags::DF | Rflags::ONE);
        core.set_bases(context.segment_base[seg::FS], context.segment_base[seg::GS], context.kernel_gs_base);
        if let Some(left) = &mut self.left {
            self.translated += *left - context.left;
            *left = context.left;
        }
        if context.vector_saved != 0 {
            self.vector_away = true;
            core.keep_vector(true);
        }
    }

    fn settle(&mut self, mode: Mode, io: &mut Watched<'_>) -> Outcome {
        let Context { reason, argument, r11, last_return, .. } = *self.context.get();
        if let Some(count) = self.counts.exits.get_mut(reason as usize) {
            *count += 1;
        }
        let link = argument as u32;
        const LINK: u64 = ExitReason::Link as u64;
        const POLL: u64 = ExitReason::Poll as u64;
        const RETURN: u64 = ExitReason::Return as u64;
        const INTERPRET: u64 = ExitReason::Interpret as u64;
        const FAULT: u64 = ExitReason::Fault as u64;
        const STALE: u64 = ExitReason::Stale as u64;
        const VECTOR: u64 = ExitReason::Vector as u64;
        const BUDGET: u64 = ExitReason::Budget as u64;
        const CHANGED: u64 = ExitReason::Changed as u64;
        match reason {
            LINK => {
                let target = self.cache.link_target(link);
                self.stop_at(target);
                let evictions = self.cache.counts.evictions;
                let single = self.cache.link_is_single(link);
                let found = if self.filler.core.wants_attention() {
                    None
                } else {
                    self.find(target, Mode { single, ..mode }, io)
                };
                if let Some(block) = found {
                    if self.cache.counts.evictions == evictions {
                        self.cache.link(link, block);
                    }
                    // By its address alone the run loop would find the one that has just been left.
                    self.next = single.then_some((target, block));
                } else if single {
                    return self.interpret(1, io);
                }
                Outcome::Ran
            }
            POLL => {
                let target = self.cache.link_target(link);
                self.stop_at(target);
                Outcome::Ran
            }
            RETURN => {
                self.stop_at(r11);
                let canonical = (r11 as i64) << 16 >> 16 == r11 as i64;
                if mode.long && !canonical {
                    // The RET itself faults: put back what it popped.
                    let at = self.cache.address_in((last_return >> 12) as BlockId, last_return & 0xfff);
                    if let Some(at) = at {
                        self.undo_return(at, io);
                        self.give_back(1);
                        self.stop_at(at);
                        return self.interpret(1, io);
                    }
                }
                if !self.filler.core.wants_attention()
                    && let Some(block) = self.find(r11, mode, io)
                {
                    self.cache.remember_target(block, &mut self.context);
                }
                Outcome::Ran
            }
            INTERPRET | FAULT => {
                let host = if reason == INTERPRET { argument - 1 } else { argument };
                let (block, rip) = self.cache.locate(host).expect("translated code leaves from a block");
                self.stop_at(rip);
                if self.left.is_some() {
                    self.give_back(u64::from(self.cache.not_done(block, rip)));
                }
                if let Some(fallbacks) = &mut self.counts.fallbacks {
                    let (bytes, long) = self.cache.guest_code(block, rip);
                    fallbacks.note(bytes, long);
                }
                let returns =
                    mode.long && !mode.user && self.cache.guest_code(block, rip).0.starts_with(&IRETQ);
                if self.cache.is_outdated(block, &self.memory) {
                    self.renew(block);
                }
                let outcome = self.interpret(1, io);
                if returns && outcome == Outcome::Ran {
                    self.learn_return(io);
                }
                self.after_interpreted(block, rip, io);
                outcome
            }
            CHANGED => {
                let rip = self.cache.rip_of(link).expect("a block names itself");
                self.stop_at(rip);
                self.renew(link);
                Outcome::Ran
            }
            BUDGET => {
                let rip = self.cache.rip_of(link).expect("a block names itself");
                self.stop_at(rip);
                self.interpret(u64::MAX, io)
            }
            STALE | VECTOR => {
                let rip = self.cache.rip_of(link).expect("a block names itself");
                self.stop_at(rip);
                if reason == VECTOR {
                    self.send_vector();
                } else if let Some(block) = self.find(rip, mode, io) {
                    self.cache.remember_target(block, &mut self.context);
                }
                Outcome::Ran
            }
            _ => unreachable!("translated code leaves with a reason"),
        }
    }

    /// The reference has executed an IRETQ: translated code may execute the next one, and looks at the descriptors.
    fn learn_return(&mut self, io: &mut Watched<'_>) {
        self.crossing.learn(&mut self.filler.core, self.context.get(), io);
        let (mut prober, mut views) = self.filler.parts();
        for at in self.crossing.descriptors() {
            views.enter_supervisor(&mut prober, at & !0xfff);
        }
    }

    /// The block by whose place in code memory the last x87 instruction is known, if it is.
    fn last_x87_block(&mut self) -> Option<BlockId> {
        if !self.vector_away {
            return None;
        }
        let image = self.context.bytes(XSAVE, crate::context::XSAVE_BYTES);
        let pointer = u64::from_le_bytes(image[8..16].try_into().unwrap_or_default());
        self.cache.locate(pointer).map(|(block, _)| block)
    }

    /// A block has found that its source has changed.
    fn renew(&mut self, block: BlockId) {
        if self.last_x87_block() == Some(block) {
            self.bring_vector_back();
        }
        self.changing.note_change(self.cache.frame_of(block));
        self.cache.renew(block, &self.memory);
    }

    /// Sets RIP. After STI the next instruction is shielded from events, if that is where translated code left.
    fn stop_at(&mut self, rip: u64) {
        self.filler.core.set_rip(rip);
        let context = self.context.get();
        if context.after_sti == rip && context.interrupt_flag != 0 {
            self.filler.core.cast_sti_shadow();
        }
    }

    /// Instructions that were counted but not executed.
    fn give_back(&mut self, count: u64) {
        if let Some(left) = &mut self.left {
            *left += count;
            self.translated -= count;
        }
    }

    /// After an instruction that may have been an indirect branch: its target may be one to remember.
    fn after_interpreted(&mut self, block: BlockId, from: u64, io: &mut Watched<'_>) {
        let rip = self.filler.core.rip();
        // Most often the next instruction. But a switch may lead to its first case.
        if rip.wrapping_sub(from) < MAX_BYTES as u64 + 1 && !self.cache.is_indirect_branch(block, from) {
            return;
        }
        self.catch_up();
        if let Some(mode) = self.mode()
            && self.table_modes[usize::from(mode.user)] == Some(mode)
            && let Some(block) = self.find(rip, mode, io)
        {
            self.cache.remember_target(block, &mut self.context);
        }
    }

    /// RSP as it was before the RET at `at`.
    fn undo_return(&mut self, at: u64, io: &mut Watched<'_>) {
        let mut bytes = [0; 15];
        let mut len = 0;
        while len < bytes.len() {
            let address = at.wrapping_add(len as u64);
            let Some(mapping) = self.filler.core.map_code(address, io) else { break };
            let left = (0x1000 - (address & 0xfff)) as usize;
            let part = left.min(bytes.len() - len);
            self.memory.load_bytes(RamOffset(mapping.ram.0 + (address & 0xfff)), &mut bytes[len..len + part]);
            len += part;
        }
        let mut decoder = iced_x86::Decoder::with_ip(64, &bytes[..len], at, iced_x86::DecoderOptions::NONE);
        let instruction = decoder.decode();
        let extra = if instruction.op_count() == 1 { instruction.immediate(0) } else { 0 };
        let rsp = &mut self.filler.core.registers()[x86::state::gpr::RSP];
        *rsp = rsp.wrapping_sub(8 + extra);
    }

    /// Vector registers: from the context's image to the core.
    fn bring_vector_back(&mut self) {
        if std::mem::take(&mut self.vector_away) {
            let image = self.context.bytes(XSAVE, crate::context::XSAVE_BYTES);
            let registers = self.filler.core.vector();
            self.xstate.read(image, registers);
            // The host's x87 instruction pointer is a host address.
            let field = |from: usize| {
                u64::from_le_bytes(registers.x87[from..from + 8].try_into().unwrap_or_default())
            };
            if let Some((rip, opcode)) = self.cache.x87_instruction(field(8)) {
                registers.x87[6..8].copy_from_slice(&opcode.to_le_bytes());
                registers.x87[8..16].copy_from_slice(&rip.to_le_bytes());
                // Which guest address the operand had is lost.
                registers.x87[16..24].fill(0);
            }
            self.filler.core.keep_vector(false);
        }
    }

    /// Vector registers: from the core to the context's image.
    fn send_vector(&mut self) {
        if !self.vector_away {
            let image = self.context.bytes(XSAVE, crate::context::XSAVE_BYTES);
            self.xstate.write(self.filler.core.vector(), image);
            self.filler.core.keep_vector(true);
            self.vector_away = true;
        }
    }
}

impl Vcpu for TranslatedVcpu {
    fn run(&mut self, budget: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError> {
        signals::prepare_thread().map_err(|source| EngineError::Host { what: "signal handlers", source })?;
        let limit = match budget {
            Budget::Unlimited => None,
            Budget::Instructions(count) => Some(count),
        };
        Ok(self.execute(limit, &mut Watched::new(platform)))
    }

    fn state(&mut self, _groups: Groups) -> Result<&mut CpuState, EngineError> {
        self.bring_vector_back();
        self.core().lend_state()
    }

    fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    fn instructions(&self) -> u64 {
        self.filler.core.instructions() + self.translated
    }

    fn counters(&self) -> Counters {
        let mut counters = self.filler.core.counters();
        // Translated code counts only where there is a budget.
        if self.translated > 0 {
            counters.add("instructions", "translated", self.translated);
        }
        self.counts.counters(&self.cache, &mut counters);
        self.filler.counters(&mut counters);
        self.spaces.counters(&mut counters);
        counters
    }
}
