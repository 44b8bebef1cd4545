//! What a PC's BIOS leaves behind and bare-metal code looks for: interrupt vectors, data area, a few real-mode
//! handlers, programmed interrupt controllers and a running timer.
//!
//! Called by the boot module before a kernel is loaded, so a kernel that lies over any of this wins. [`PORT_WRITES`]
//! is for the machine to play on its bus. It is not a BIOS: services answer "not there" (carry set, AH = 86h), except
//! INT 12h (low memory).
//!
//! Threads: plain functions.

use super::map;
use memory::{GuestMemory, MemoryError};
use x86::Gpa;

/// Port writes (port, byte), in order, that leave the interrupt controllers and the timer as a BIOS does: IRQ 0-7 at
/// vectors 8-15, IRQ 8-15 at 70h-77h, timer, keyboard and cascade unmasked, and the timer ticking 18.2 times a second.
pub const PORT_WRITES: &[(u16, u8)] = &[
    (0x20, 0x11),
    (0xa0, 0x11),
    (0x21, 0x08),
    (0xa1, 0x70),
    (0x21, 0x04),
    (0xa1, 0x02),
    (0x21, 0x01),
    (0xa1, 0x01),
    (0x21, 0xf8),
    (0xa1, 0xff),
    (0x43, 0x34),
    (0x40, 0x00),
    (0x40, 0x00),
];

/// Real-mode segment of the BIOS area.
const SEGMENT: u16 = 0xf000;
/// KiB below the EBDA.
const LOW_KIB: u16 = 639;

/// A handler's machine code.
struct Handlers {
    code: Vec<u8>,
}

impl Handlers {
    /// Adds a handler, 16-byte aligned, and gives its offset in [`SEGMENT`].
    fn add(&mut self, code: &[u8]) -> u16 {
        self.code.resize(self.code.len().next_multiple_of(16), 0xcc);
        let offset = (map::BIOS_CODE & 0xffff) as usize + self.code.len();
        self.code.extend_from_slice(code);
        u16::try_from(offset).unwrap_or(0)
    }
}

/// Writes vectors, data area and handlers.
///
/// # Errors
/// Where guest memory has no RAM below 1 MiB.
pub(super) fn write(memory: &GuestMemory) -> Result<(), MemoryError> {
    let mut handlers = Handlers { code: Vec::new() };
    let iret = handlers.add(&[0xcf]);
    // push ax; mov al, 20h; out 20h, al; pop ax; iret
    let master = handlers.add(&[0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf]);
    // push ax; mov al, 20h; out a0h, al; out 20h, al; pop ax; iret
    let slave = handlers.add(&[0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf]);
    let timer = handlers.add(&[
        0x1e, 0x50, // push ds; push ax
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0x66, 0xff, 0x06, 0x6c, 0x04, // inc dword [46ch], the tick counter
        0xcd, 0x1c, // int 1ch, the user's tick
        0xb0, 0x20, 0xe6, 0x20, // mov al, 20h; out 20h, al
        0x58, 0x1f, 0xcf, // pop ax; pop ds; iret
    ]);
    // mov ax, 639; iret
    let low_memory = handlers.add(&[0xb8, LOW_KIB as u8, (LOW_KIB >> 8) as u8, 0xcf]);
    // mov ah, 86h; push bp; mov bp, sp; or byte [bp+6], 1 (the caller's carry); pop bp; iret
    let unsupported = handlers.add(&[0xb4, 0x86, 0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf]);
    // mov dx, cf9h; mov al, 6; out dx, al; cli; hlt; jmp to the hlt
    let restart = handlers.add(&[0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xfa, 0xf4, 0xeb, 0xfd]);
    memory.write(Gpa(map::BIOS_CODE), &handlers.code)?;

    let mut vectors = [iret; 256];
    vectors[0x08] = timer;
    vectors[0x09..=0x0f].fill(master);
    vectors[0x70..=0x77].fill(slave);
    vectors[0x12] = low_memory;
    vectors[0x13] = unsupported;
    vectors[0x15] = unsupported;
    vectors[0x19] = restart;
    let table: Vec<u8> =
        vectors.iter().flat_map(|offset| [offset.to_le_bytes(), SEGMENT.to_le_bytes()].concat()).collect();
    memory.write(Gpa(0), &table)?;

    // BIOS data area: COM1's port, EBDA segment, low memory.
    memory.zero(Gpa(0x400), 0x100)?;
    memory.write(Gpa(0x400), &0x3f8u16.to_le_bytes())?;
    memory.write(Gpa(0x40e), &((map::EBDA >> 4) as u16).to_le_bytes())?;
    memory.write(Gpa(0x413), &LOW_KIB.to_le_bytes())?;
    // The EBDA's first byte is its size in KiB.
    memory.write(Gpa(map::EBDA), &[1])?;

    // The reset entry, the BIOS date and the model byte of a PC AT.
    let [low, high] = restart.to_le_bytes();
    let [segment_low, segment_high] = SEGMENT.to_le_bytes();
    let mut top = [0u8; 16];
    top[..5].copy_from_slice(&[0xea, low, high, segment_low, segment_high]);
    top[5..13].copy_from_slice(b"01/01/26");
    top[14] = 0xfc;
    memory.write(Gpa(map::HIGH - 16), &top)
}
