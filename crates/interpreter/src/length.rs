//! How long undefined instructions are where iced doesn't say.
//!
//! Called by `decode.rs` for what iced calls invalid. A processor takes an instruction in to its end before it raises #UD:
//! bytes past a page's end are fetched, and more than 15 are #GP(0). Left out: immediates of maps 1 and 2 where the opcode is
//! undefined, and other encodings, which end where iced says.

use crate::cpu::CodeSize;

/// The length of the VEX or EVEX instruction that starts `bytes`, or of one of maps 0F38 and 0F3A, from the bytes there are; 0 if it is
/// something else.
pub(crate) fn undefined_length(bytes: &[u8], size: CodeSize) -> usize {
    let long = size == CodeSize::Bits64;
    let start = prefixes(bytes, size);
    let byte = |at: usize| bytes.get(start + at).copied();
    // LES, LDS and BOUND with a memory operand outside 64-bit mode.
    let is_vex = |second: Option<u8>| long || second.is_some_and(|byte| byte >= 0xc0);
    let (head, map) = match byte(0) {
        Some(0x62) if is_vex(byte(1)) => (4, byte(1).map_or(0, |byte| byte & 7)),
        Some(0xc4) if is_vex(byte(1)) => (3, byte(1).map_or(0, |byte| byte & 31)),
        Some(0xc5) if is_vex(byte(1)) => (2, 1),
        Some(0x0f) if byte(1) == Some(0x38) => (2, 2),
        Some(0x0f) if byte(1) == Some(0x3a) => (2, 3),
        _ => return 0,
    };
    let opcode = byte(head).unwrap_or(0);
    if map == 1 && opcode == 0x77 {
        return start + head + 1;
    }
    let modrm = byte(head + 1);
    let mut len = start + head + 2;
    if let Some(modrm) = modrm {
        let small = !long && (size == CodeSize::Bits16) != bytes[..start].contains(&0x67);
        len += operand_bytes(modrm, byte(head + 2), small);
    }
    len + usize::from(map == 3 || map == 1 && matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6))
}

/// Whether `bytes` start EXTRQ or INSERTQ with immediates. A processor without SSE4A knows that it is undefined when it has
/// seen the ModRM byte, and doesn't take in the immediates.
pub(crate) fn is_sse4a(bytes: &[u8], size: CodeSize) -> bool {
    let (prefixes, rest) = bytes.split_at(prefixes(bytes, size));
    let mandatory = prefixes.iter().any(|byte| matches!(byte, 0x66 | 0xf2));
    mandatory && matches!(rest, [0x0f, 0x78, 0xc0..=0xff, ..])
}

/// How many prefix bytes `bytes` start with.
fn prefixes(bytes: &[u8], size: CodeSize) -> usize {
    let is_prefix = |byte: u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || size == CodeSize::Bits64 && byte & 0xf0 == 0x40
    };
    bytes.iter().take_while(|byte| is_prefix(**byte)).count()
}

/// The bytes of SIB and displacement. `small`: 16-bit addresses.
fn operand_bytes(modrm: u8, sib: Option<u8>, small: bool) -> usize {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    match (mode, small) {
        (3, _) => 0,
        (0, true) => 2 * usize::from(rm == 6),
        (mode, true) => usize::from(mode),
        (mode, false) => {
            let has_sib = rm == 4;
            let base = if has_sib { sib.unwrap_or(0) & 7 } else { rm };
            let displacement = match mode {
                0 => 4 * usize::from(base == 5),
                1 => 1,
                _ => 4,
            };
            usize::from(has_sib) + displacement
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_counts_prefixes_sib_displacement_and_immediate() {
        let length = |bytes: &[u8]| undefined_length(bytes, CodeSize::Bits64);
        assert_eq!(length(&[0x66, 0x62, 0xf1, 0x7d, 0x8b, 0xfd, 0xc0]), 7);
        assert_eq!(length(&[0x62, 0xf1, 0x7d, 0x8b, 0xfd, 0x84, 0x24, 0, 0, 0, 0]), 11);
        assert_eq!(length(&[0xc4, 0xe3, 0x79, 0x01, 0x04, 0x25]), 11);
        assert_eq!(length(&[0xc5, 0xf8, 0x77]), 3);
        assert_eq!(length(&[0x0f, 0x0b]), 0);
        assert_eq!(length(&[0xf3, 0x48, 0x0f, 0x38, 0xf1, 0x89]), 10);
        assert_eq!(length(&[0x0f, 0x3a, 0xf1, 0xc0]), 5);
        assert_eq!(undefined_length(&[0xc5, 0x00], CodeSize::Bits32), 0);
    }

    #[test]
    fn sse4a_is_known_by_its_first_bytes() {
        assert!(is_sse4a(&[0x66, 0x41, 0x0f, 0x78, 0xc1], CodeSize::Bits64));
        assert!(is_sse4a(&[0xf2, 0x0f, 0x78, 0xd3, 4], CodeSize::Bits32));
        assert!(!is_sse4a(&[0x66, 0x0f, 0x78], CodeSize::Bits64), "no ModRM byte yet");
        assert!(!is_sse4a(&[0x0f, 0x78, 0xc1], CodeSize::Bits64), "VMREAD");
        assert!(
            !is_sse4a(&[0x66, 0x0f, 0x79, 0xc1], CodeSize::Bits64),
            "the form with a register has no immediates"
        );
    }
}
