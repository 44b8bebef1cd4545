//! Translations for people: guest instructions, and under each the host code that it became.
//!
//! ```text
//! 0000000000001000  mov eax,[rdi+8]
//!   +004b  lea r11,[rdi+8]
//!   +004f  lea rcx,[r11+3]
//!   ...
//! ```
//!
//! Host addresses are shown as offsets in the block, stubs and fields of the context by name, so that the text is the same on every
//! run. Called for `--dump-translation` and by the golden tests.

use crate::context;
use crate::emit::Mark;
use crate::stubs::Stubs;
use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, OpKind, Register, SymbolResolver,
    SymbolResult,
};
use std::fmt::Write;
use std::sync::Arc;

/// Which translations to print, and where to.
#[derive(Clone)]
pub struct Dump {
    /// Linear addresses of guest code.
    pub addresses: Vec<u64>,
    /// Gets the text of one translation, of several lines, on the vCPU's thread.
    pub to: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dump").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Dump {
    /// Whether one of the addresses lies in the code.
    pub(crate) fn wants(&self, rip: u64, len: usize) -> bool {
        self.addresses.iter().any(|address| address.wrapping_sub(rip) < len as u64)
    }
}

/// A translation to list.
pub(crate) struct Listed<'a> {
    /// Guest code.
    pub(crate) bytes: &'a [u8],
    pub(crate) rip: u64,
    pub(crate) long: bool,
    /// Host code, and where it runs.
    pub(crate) code: &'a [u8],
    pub(crate) base: u64,
    pub(crate) marks: &'a [Mark],
    /// Offset of the links' stubs.
    pub(crate) links: Option<u32>,
    pub(crate) stubs: &'a Stubs,
}

/// Names for addresses in host code.
struct Names {
    stubs: Vec<(u64, &'static str)>,
    base: u64,
    end: u64,
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let text = if instruction.op_kind(operand) == OpKind::Memory {
            if instruction.memory_segment() != Register::GS || instruction.memory_base() != Register::None {
                return None;
            }
            context::name(address as i32)?
        } else if (self.base..self.end).contains(&address) {
            format!("+{:04x}", address - self.base)
        } else {
            self.stubs.iter().find(|(at, _)| *at == address)?.1.to_owned()
        };
        Some(SymbolResult::with_string(address, text))
    }
}

fn formatter(names: Option<Box<dyn SymbolResolver>>) -> IntelFormatter {
    let mut formatter = IntelFormatter::with_options(names, None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_show_branch_size(false);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    formatter
}

/// The text of one guest instruction.
fn guest_line(guest: &mut IntelFormatter, listed: &Listed<'_>, offset: u16) -> String {
    let rip = listed.rip.wrapping_add(u64::from(offset));
    let bytes = listed.bytes.get(usize::from(offset)..).unwrap_or_default();
    let bitness = if listed.long { 64 } else { 32 };
    let instruction = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE).decode();
    let mut text = format!("{rip:016x}  ");
    guest.format(&instruction, &mut text);
    text
}

/// The text of a translation, one line for each guest and each host instruction.
pub(crate) fn listing(listed: &Listed<'_>) -> String {
    let end = listed.base + listed.code.len() as u64;
    let names = Names { stubs: listed.stubs.names(), base: listed.base, end };
    let (mut host, mut guest) = (formatter(Some(Box::new(names))), formatter(None));
    let mut out = String::from("entry\n");
    let mut seen = Vec::new();
    let mut marks = listed.marks.iter().peekable();
    let mut links = listed.links;
    let decoder = Decoder::with_ip(64, listed.code, listed.base, DecoderOptions::NONE);
    for instruction in decoder {
        let offset = (instruction.ip() - listed.base) as u32;
        while let Some(mark) = marks.next_if(|mark| mark.host <= offset) {
            // What is rarely run comes after what is.
            let again = if seen.contains(&mark.guest) { "  (rarely)" } else { "" };
            seen.push(mark.guest);
            let _ = writeln!(out, "{}{again}", guest_line(&mut guest, listed, mark.guest));
        }
        if links.is_some_and(|links| links <= offset) {
            links = None;
            out.push_str("links\n");
        }
        let _ = write!(out, "  +{offset:04x}  ");
        host.format(&instruction, &mut out);
        out.push('\n');
    }
    out
}
