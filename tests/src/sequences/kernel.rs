//! The guest's own system: handlers that note each exception, find where the program goes on, and offer a few services.
//!
//! Every handler writes vector, error code, RIP, CS, RFLAGS, RSP, CR2 and DR6 to the log. After a fault the program goes on
//! behind the instruction that faulted; where that isn't in the program, at its next landing. The code is the same for
//! 64-bit and 32-bit systems but for operand size.

use super::furnish::{Image, selector, volatile_entries};
use super::layout::{CHANGING, CODE_LEN, ENTRIES, KERNEL, Mode, SYS, USER, World, system};
use super::program::Program;

/// Software interrupts that the system answers; the others come back without effect.
pub(super) mod service {
    /// The program is done.
    pub(crate) const END: u8 = 0x4f;
    /// Goes on in ring 3.
    pub(crate) const TO_USER: u8 = 0x41;
    /// Goes on in ring 0.
    pub(crate) const TO_KERNEL: u8 = 0x42;
    /// Gives volatile page EAX the entry ECX of [`super::volatile_entries`], and invalidates it.
    pub(crate) const SET_ENTRY: u8 = 0x45;
    /// Goes on in the other address space.
    pub(crate) const SWITCH: u8 = 0x46;
}

/// Offsets in the page of variables.
mod variable {
    pub(super) const LOG: u64 = 0;
    pub(super) const COUNT: u64 = 4;
    pub(super) const LANDING: u64 = 8;
    pub(super) const TRAPS: u64 = 12;
    pub(super) const LANDINGS: u64 = 0x20;
    pub(super) const ENTRIES: u64 = 0x40;
}

const RETURNING: u64 = 0x800;
const STAYING: u64 = 0x900;
/// Offsets below this tell where in the program an address is, whichever ring's view it belongs to.
pub(super) const VIEW_MASK: u32 = 0xf_ffff;

/// What LSTAR is: an entry that returns to ring 3, or one that goes on in ring 0.
pub(super) fn syscall_entry(returning: bool) -> u64 {
    SYS + system::COMMON + if returning { RETURNING } else { STAYING }
}

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const CC_E: u8 = 4;
const CC_NE: u8 = 5;
const CC_B: u8 = 2;
const CC_AE: u8 = 3;
const CC_G: u8 = 15;

/// Places in the handler that jumps lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Fault,
    Known,
    Resume,
    Out,
    Wild,
    Debug,
    Soft,
    ToUser,
    ToKernel,
    SetEntry,
    Switch,
    Halt,
}

struct Handler {
    wide: bool,
    bytes: Vec<u8>,
    places: Vec<(Place, usize)>,
    jumps: Vec<(usize, Place)>,
}

impl Handler {
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn with32(&mut self, bytes: &[u8], value: u64) {
        self.raw(bytes);
        self.raw(&(value as u32).to_le_bytes());
    }

    /// Operand size of a word.
    fn word_sized(&mut self) {
        if self.wide {
            self.raw(&[0x48]);
        }
    }

    /// Words to bytes.
    fn words(&self, count: u8) -> u8 {
        count * if self.wide { 8 } else { 4 }
    }

    fn load(&mut self, register: u8, name: u64) {
        self.with32(&[0x8b, register << 3 | 4, 0x25], SYS + system::VARIABLES + name);
    }

    fn store(&mut self, register: u8, name: u64) {
        self.with32(&[0x89, register << 3 | 4, 0x25], SYS + system::VARIABLES + name);
    }

    /// Loads a word of the stack.
    fn peek(&mut self, register: u8, word: u8) {
        self.word_sized();
        let at = self.words(word);
        self.raw(&[0x8b, 0x44 | register << 3, 0x24, at]);
    }

    fn poke(&mut self, register: u8, word: u8) {
        self.word_sized();
        let at = self.words(word);
        self.raw(&[0x89, 0x44 | register << 3, 0x24, at]);
    }

    fn poke_value(&mut self, word: u8, value: u16) {
        self.word_sized();
        let at = self.words(word);
        self.with32(&[0xc7, 0x44, 0x24, at], u64::from(value));
    }

    /// Stores RAX to a word of the log's entry at RCX.
    fn note(&mut self, word: u8) {
        self.word_sized();
        let at = self.words(word);
        self.raw(&[0x89, 0x41, at]);
    }

    /// Is the interrupted code the user's?
    fn test_ring(&mut self) {
        let at = self.words(FRAME_CS);
        self.raw(&[0xf6, 0x44, 0x24, at, 3]);
    }

    fn compare_eax(&mut self, value: u32) {
        self.with32(&[0x3d], u64::from(value));
    }

    fn jump(&mut self, to: Place) {
        self.with32(&[0xe9], 0);
        self.jumps.push((self.bytes.len(), to));
    }

    fn jump_if(&mut self, condition: u8, to: Place) {
        self.with32(&[0x0f, 0x80 | condition], 0);
        self.jumps.push((self.bytes.len(), to));
    }

    fn here(&mut self, place: Place) {
        self.places.push((place, self.bytes.len()));
    }

    fn finish(mut self) -> Vec<u8> {
        for &(end, to) in &self.jumps {
            let target = self.places.iter().find(|(place, _)| *place == to).map_or(0, |&(_, at)| at);
            let distance = (target as i32).wrapping_sub(end as i32);
            self.bytes[end - 4..end].copy_from_slice(&distance.to_le_bytes());
        }
        self.bytes
    }
}

// Words of the stack after three pushes: RDX, RCX, RAX, vector, error code, then the frame.
const SAVED_RCX: u8 = 1;
const SAVED_RAX: u8 = 2;
const VECTOR: u8 = 3;
const FRAME_IP: u8 = 5;
const FRAME_CS: u8 = 6;
const FRAME_FLAGS: u8 = 7;
const FRAME_SS: u8 = 9;

fn handler(world: World) -> Vec<u8> {
    let wide = world.mode.is_long();
    let mut h = Handler { wide, bytes: Vec::new(), places: Vec::new(), jumps: Vec::new() };
    h.raw(&[0x50, 0x51, 0x52]);
    // The log's entry.
    h.load(RCX, variable::LOG);
    h.with32(&[0x81, 0xc1], SYS + system::LOG);
    for (at, word) in (VECTOR..FRAME_SS).enumerate() {
        h.peek(RAX, word);
        h.note(at as u8);
    }
    h.raw(&[0x0f, 0x20, 0xd0]); // mov rax, cr2
    h.note(6);
    h.raw(&[0x0f, 0x21, 0xf0]); // mov rax, dr6
    h.note(7);
    h.load(RAX, variable::LOG);
    let entry = u64::from(h.words(8));
    h.with32(&[0x05], entry);
    h.with32(&[0x25], 0xfff);
    h.store(RAX, variable::LOG);
    h.load(RAX, variable::COUNT);
    h.with32(&[0x05], 1);
    h.store(RAX, variable::COUNT);
    // What is it?
    h.peek(RAX, VECTOR);
    for (vector, condition, to) in
        [(0, CC_E, Place::Fault), (1, CC_E, Place::Debug), (5, CC_B, Place::Out), (32, CC_AE, Place::Soft)]
    {
        h.compare_eax(vector);
        h.jump_if(condition, to);
    }
    h.here(Place::Fault);
    h.peek(RAX, FRAME_IP);
    h.with32(&[0xb8 | RCX], USER);
    h.test_ring();
    h.jump_if(CC_NE, Place::Known);
    h.with32(&[0xb8 | RCX], KERNEL);
    h.here(Place::Known);
    h.word_sized();
    h.raw(&[0x29, 0xc8]); // sub rax, rcx
    h.word_sized();
    h.with32(&[0x3d], CODE_LEN as u64);
    h.jump_if(CC_AE, Place::Wild);
    h.with32(&[0x0f, 0xb7, 0x04, 0x45], SYS + system::RECOVERY); // movzx eax, word [rax*2 + ..]
    h.here(Place::Resume);
    h.word_sized();
    h.raw(&[0x01, 0xc8]); // add rax, rcx
    h.poke(RAX, FRAME_IP);
    h.here(Place::Out);
    h.raw(&[0x5a, 0x59, 0x58]);
    h.word_sized();
    let two = h.words(2);
    h.raw(&[0x83, 0xc4, two]);
    h.word_sized();
    h.raw(&[0xcf]);
    h.here(Place::Wild);
    h.load(RAX, variable::LANDING);
    h.with32(&[0x05], 1);
    h.with32(&[0x25], 7);
    h.store(RAX, variable::LANDING);
    h.with32(&[0x0f, 0xb7, 0x04, 0x45], SYS + system::VARIABLES + variable::LANDINGS);
    h.jump(Place::Resume);
    h.here(Place::Debug);
    h.load(RAX, variable::TRAPS);
    h.with32(&[0x2d], 1);
    h.store(RAX, variable::TRAPS);
    h.compare_eax(0);
    h.jump_if(CC_G, Place::Out);
    let flags = h.words(FRAME_FLAGS);
    h.with32(&[0x81, 0x64, 0x24, flags], !0x100); // and dword [rsp + ..], ~TF
    h.with32(&[0xb8 | RAX], u64::from(world.traps));
    h.store(RAX, variable::TRAPS);
    h.with32(&[0xb8 | RAX], x86::control::dr6::RESET);
    h.raw(&[0x0f, 0x23, 0xf0]); // mov dr6, rax
    h.jump(Place::Out);
    h.here(Place::Soft);
    for (vector, to) in [
        (service::END, Place::Halt),
        (service::TO_USER, Place::ToUser),
        (service::TO_KERNEL, Place::ToKernel),
        (service::SET_ENTRY, Place::SetEntry),
        (service::SWITCH, Place::Switch),
    ] {
        h.compare_eax(u32::from(vector));
        h.jump_if(CC_E, to);
    }
    h.jump(Place::Out);
    rings(&mut h, world.mode);
    paging(&mut h, world);
    h.here(Place::Halt);
    h.raw(&[0xfa, 0xf4, 0xeb, 0xfd]); // cli; again: hlt; jmp again
    h.finish()
}

/// The services that change rings. Only long mode has a stack for handlers in both.
fn rings(h: &mut Handler, mode: Mode) {
    let (user, kernel, stack) = match mode {
        Mode::Long => (selector::USER64, selector::CODE64, selector::STACK64),
        _ => (selector::USER32, selector::CODE32, selector::DATA),
    };
    for (place, condition, view, code, stack) in [
        (Place::ToUser, CC_NE, USER, user, selector::USER_DATA),
        (Place::ToKernel, CC_E, KERNEL, kernel, stack),
    ] {
        h.here(place);
        if !mode.is_long() {
            h.jump(Place::Out);
            continue;
        }
        h.test_ring();
        h.jump_if(condition, Place::Out);
        h.peek(RAX, FRAME_IP);
        h.with32(&[0x25], u64::from(VIEW_MASK));
        h.with32(&[0x0d], view);
        h.poke(RAX, FRAME_IP);
        h.poke_value(FRAME_CS, code);
        h.poke_value(FRAME_SS, stack);
        h.jump(Place::Out);
    }
}

fn paging(h: &mut Handler, world: World) {
    let entries = SYS + system::VARIABLES + variable::ENTRIES;
    h.here(Place::SetEntry);
    h.peek(RCX, SAVED_RCX);
    h.raw(&[0x83, 0xe1, 15]);
    h.peek(RAX, SAVED_RAX);
    h.raw(&[0x83, 0xe0, 7]);
    if world.mode.entry_bytes() == 8 && !h.wide {
        // High half first; it holds nothing but XD.
        h.with32(&[0x8b, 0x14, 0xcd], entries + 4);
        h.with32(&[0x89, 0x14, 0xc5], ENTRIES + 4);
    }
    h.word_sized();
    h.with32(&[0x8b, RDX << 3 | 4, 0xcd], entries); // mov rdx, [rcx*8 + ..]
    h.word_sized();
    let scale = if world.mode.entry_bytes() == 8 { 0xc5 } else { 0x85 };
    h.with32(&[0x89, RDX << 3 | 4, scale], ENTRIES); // mov [rax*8 + ..], rdx
    h.raw(&[0xc1, 0xe0, 12]); // shl eax, 12
    h.with32(&[0x05], CHANGING);
    h.raw(&[0x0f, 0x01, 0x38]); // invlpg [rax]
    h.jump(Place::Out);
    h.here(Place::Switch);
    h.raw(&[0x0f, 0x20, 0xd8]); // mov rax, cr3
    h.with32(&[0x35], world.root(0) ^ world.root(1));
    h.raw(&[0x0f, 0x22, 0xd8]);
    h.jump(Place::Out);
}

fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Puts handlers, their tables and variables into memory.
pub(super) fn furnish(image: &mut Image, world: World, program: &Program) {
    for vector in 0..256 {
        let at = system::STUBS + 16 * vector;
        let first: [u8; 2] = if has_error_code(vector) { [0x90, 0x90] } else { [0x6a, 0] };
        image.copy(at, &first);
        image.put(at + 2, 1, 0x68);
        image.put(at + 3, 4, vector);
        image.put(at + 7, 1, 0xe9);
        image.put(at + 8, 4, (system::COMMON).wrapping_sub(at + 12));
    }
    let code = handler(world);
    debug_assert!(code.len() < RETURNING as usize, "the handler reaches into SYSCALL's entries");
    image.copy(system::COMMON, &code);
    for (entry, view) in [(RETURNING, USER), (STAYING, KERNEL)] {
        let at = system::COMMON + entry;
        image.copy(at, &[0x81, 0xe1]); // and ecx, ..
        image.put(at + 2, 4, u64::from(VIEW_MASK));
        image.copy(at + 6, &[0x81, 0xc9]); // or ecx, ..
        image.put(at + 8, 4, view);
        let end: &[u8] = if entry == RETURNING { &[0x48, 0x0f, 0x07] } else { &[0xff, 0xe1] };
        image.copy(at + 12, end);
    }
    for (offset, resume) in program.recovery().into_iter().enumerate() {
        image.put(system::RECOVERY + 2 * offset as u64, 2, u64::from(resume));
    }
    image.put(system::VARIABLES + variable::TRAPS, 4, u64::from(world.traps));
    for (index, &landing) in program.landings.iter().enumerate() {
        image.put(system::VARIABLES + variable::LANDINGS + 2 * index as u64, 2, u64::from(landing));
    }
    for (index, entry) in volatile_entries(world.mode).into_iter().enumerate() {
        image.put(system::VARIABLES + variable::ENTRIES + 8 * index as u64, 8, entry);
    }
}
