//! Makes cases: which instructions, with which operands, on which state.
//!
//! Instructions are made as bytes: prefixes, opcode as the encoding's description says, then random ModRM, SIB,
//! displacement and immediate. Decoding them tells whether the wanted encoding came out; so every addressing form and
//! prefix combination occurs, also those that no assembler writes. Then registers or displacements are set so that most
//! memory operands lie in the data window.

pub(crate) mod encode;
mod fit;

use super::case::{CODE, CODE_LEN, DATA, DATA_LEN, Initial, MAX_CODE};
use super::images::{self, Image};
use super::random::Random;
use super::{exclude, undefined, vendor};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix, Mnemonic,
    OpCodeInfo, OpCodeOperandKind, OpKind, RflagsBits,
};
use std::collections::BTreeMap;
use x86::Rflags;

/// What kind of sequence a case is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// One instruction.
    Single,
    /// Two to eight without branches.
    Sequence,
    /// The same with branches forward.
    Branches,
    /// One instruction's bytes, mutated: often undefined.
    Mutated,
}

/// A case and what is known about its code.
#[derive(Clone)]
pub struct Case {
    /// The seed that makes it again.
    pub seed: u64,
    /// Its kind.
    pub shape: Shape,
    /// The state it starts from.
    pub initial: Initial,
    /// Each instruction's address and length, and the flags that are undefined before it.
    pub instructions: Vec<(u64, usize, Rflags)>,
    /// The flags that are undefined behind the last one.
    pub undefined: Rflags,
    /// What the encodings need.
    pub features: Vec<CpuidFeature>,
}

/// An encoding that instructions can be drawn from.
pub(crate) struct Encoding {
    pub(crate) info: &'static OpCodeInfo,
    opcode_register: bool,
}

impl Encoding {
    pub(crate) fn new(code: Code) -> Self {
        let info = code.op_code();
        let opcode_register = info.op_kinds().iter().any(|kind| {
            matches!(
                kind,
                OpCodeOperandKind::r8_opcode
                    | OpCodeOperandKind::r16_opcode
                    | OpCodeOperandKind::r32_opcode
                    | OpCodeOperandKind::r64_opcode
                    | OpCodeOperandKind::sti_opcode
            )
        });
        Self { info, opcode_register }
    }
}

/// Makes cases from seeds.
pub struct Generator {
    integer: Vec<Encoding>,
    x87: Vec<Encoding>,
    vector: Vec<Encoding>,
    absent: Vec<Encoding>,
    offered: BTreeMap<String, u64>,
    only: Option<Mnemonic>,
}

impl Generator {
    /// A generator of all that the host has, or of one mnemonic.
    #[must_use]
    pub fn new(only: Option<Mnemonic>) -> Self {
        let mut known: BTreeMap<u32, bool> = BTreeMap::new();
        let mut this = Self {
            integer: Vec::new(),
            x87: Vec::new(),
            vector: Vec::new(),
            absent: Vec::new(),
            offered: BTreeMap::new(),
            only,
        };
        for code in Code::values() {
            let info = code.op_code();
            if !info.is_instruction()
                || !info.mode64()
                || info.fwait()
                || info.must_be_cpl0()
                || !matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX | EncodingKind::EVEX)
                || only.is_some_and(|mnemonic| mnemonic != code.mnemonic())
                || exclude::is_excluded_code(code)
            {
                continue;
            }
            let features = code.cpuid_features();
            let present = features
                .iter()
                .all(|&feature| *known.entry(feature as u32).or_insert_with(|| exclude::host_has(feature)));
            let encoding = Encoding::new(code);
            if !present {
                this.absent.push(encoding);
                continue;
            }
            for feature in features {
                this.offered.insert(format!("{feature:?}"), 0);
            }
            let is = |wanted: &[CpuidFeature]| features.iter().any(|feature| wanted.contains(feature));
            if is(&[CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387]) {
                this.x87.push(encoding);
            } else if info.encoding() != EncodingKind::Legacy
                || info.mandatory_prefix() != MandatoryPrefix::None
                || is(&[CpuidFeature::MMX])
            {
                this.vector.push(encoding);
            } else {
                this.integer.push(encoding);
            }
        }
        this
    }

    /// Whether there is anything to generate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.integer.is_empty() && self.x87.is_empty() && self.vector.is_empty() && self.absent.is_empty()
    }

    /// The CPUID features of all encodings that can be generated, each with 0.
    #[must_use]
    pub fn features(&self) -> BTreeMap<String, u64> {
        self.offered.clone()
    }

    fn pool(&self, random: &mut Random) -> &[Encoding] {
        let pools = match random.below(100) {
            0..=44 => [&self.integer, &self.vector, &self.x87, &self.absent],
            45..=54 => [&self.x87, &self.integer, &self.vector, &self.absent],
            55..=97 => [&self.vector, &self.integer, &self.x87, &self.absent],
            _ => [&self.absent, &self.integer, &self.vector, &self.x87],
        };
        pools.into_iter().find(|pool| !pool.is_empty()).map_or(&[], Vec::as_slice)
    }

    /// The case that belongs to `seed`.
    #[must_use]
    pub fn case(&self, seed: u64) -> Case {
        let mut random = Random::new(seed);
        let shape = match random.below(100) {
            0..=54 => Shape::Single,
            55..=84 => Shape::Sequence,
            85..=92 => Shape::Branches,
            _ => Shape::Mutated,
        };
        let mut builder = Builder {
            initial: initial(&mut random),
            pinned: 1 << 4,
            before: Rflags::empty(),
            branches: Vec::new(),
            case_features: Vec::new(),
            pointers_set: false,
            instructions: Vec::new(),
            undefined: Rflags::empty(),
            random,
            shape,
        };
        let count = match shape {
            Shape::Single | Shape::Mutated => 1,
            _ => 2 + builder.random.below(7) as usize,
        };
        let mut tries = 0;
        while builder.instructions.len() < count && tries < 200 {
            tries += 1;
            let pool = self.pool(&mut builder.random);
            if pool.is_empty() {
                break;
            }
            let at = builder.random.below(pool.len() as u64) as usize;
            builder.append(&pool[at]);
        }
        builder.patch_branches();
        Case {
            seed,
            shape,
            initial: builder.initial,
            instructions: builder.instructions,
            undefined: builder.undefined,
            features: builder.case_features,
        }
    }

    /// The mnemonic this generator is restricted to.
    #[must_use]
    pub fn only(&self) -> Option<Mnemonic> {
        self.only
    }
}

/// Random state, not yet fitted to the code.
fn initial(random: &mut Random) -> Initial {
    let mut initial = Initial::default();
    for value in &mut initial.gpr {
        *value = if random.percent(15) { pointer(random, 8) } else { random.integer() };
    }
    initial.gpr[4] = match random.below(20) {
        0 => DATA + random.below(16),
        1 => DATA + DATA_LEN as u64 - random.below(16),
        2 => DATA + 0x1000 - random.below(16),
        3..=5 => DATA + 0x100 + random.below(DATA_LEN as u64 - 0x200),
        _ => DATA + 0x1000 + random.below(0x100) * 8,
    };
    let arithmetic = random.bits() & Rflags::ARITHMETIC.bits();
    initial.rflags = 0x202 | arithmetic;
    if random.percent(15) {
        initial.rflags |= Rflags::DF.bits();
    }
    if random.percent(3) {
        initial.rflags |= Rflags::AC.bits();
    }
    for zmm in &mut initial.vector.zmm {
        for lane in zmm.chunks_exact_mut(8) {
            lane.copy_from_slice(&random.lane().to_le_bytes());
        }
    }
    for k in &mut initial.vector.k {
        *k = if random.percent(30) {
            random.pick(&[0, 1, u64::MAX, 0xff, 0xffff, 0xffff_ffff])
        } else {
            random.bits()
        };
    }
    if random.percent(40) {
        // Masks stay masked mostly; rounding, FTZ, DAZ and sticky flags vary.
        initial.vector.mxcsr = 0x1f80 | random.bits() as u32 & 0xe07f;
        if random.percent(20) {
            initial.vector.mxcsr &= !(random.bits() as u32 & 0x1f80);
        }
    }
    let x87 = &mut initial.vector.x87;
    if random.percent(60) {
        let mut fcw = 0x37f | random.bits() as u16 & 0x0f00;
        if random.percent(15) {
            fcw &= !(random.bits() as u16 & 0x3f);
        }
        x87[..2].copy_from_slice(&fcw.to_le_bytes());
        // TOP, condition codes and, rarely, sticky exceptions.
        let mut fsw = random.bits() as u16 & 0x7f00;
        if random.percent(20) {
            fsw |= random.bits() as u16 & 0x7f;
        }
        if fsw & !fcw & 0x3f != 0 {
            fsw |= 0x8080;
        }
        x87[2..4].copy_from_slice(&fsw.to_le_bytes());
        let some = random.bits() as u8;
        x87[4] = random.pick(&[0, 0xff, 0xff, 0xff, 0x0f, some]);
        for register in x87[32..160].chunks_exact_mut(16) {
            register[..8].copy_from_slice(&random.lane().to_le_bytes());
            let exponent = match random.below(6) {
                0 => 0x7fff,
                1 => 0,
                2 => 0xffff,
                3 => random.bits() as u16,
                _ => 0x3fff + random.below(70) as u16 - 5,
            };
            if exponent & 0x7fff != 0 && random.percent(90) {
                register[7] |= 0x80;
            }
            register[8..10].copy_from_slice(&exponent.to_le_bytes());
        }
    } else {
        x87[32..160].fill(0);
    }
    for lane in initial.data.chunks_exact_mut(8) {
        let value = if random.percent(4) { DATA + random.below(DATA_LEN as u64) } else { random.lane() };
        lane.copy_from_slice(&value.to_le_bytes());
    }
    initial.rip = if random.percent(4) {
        CODE + CODE_LEN as u64 - 1 - random.below(30)
    } else {
        CODE + 0x100 + random.below(64)
    };
    initial
}

/// An address for an operand of `size` bytes: mostly inside the window, often at an edge.
fn pointer(random: &mut Random, size: u64) -> u64 {
    let size = size.max(1);
    let end = DATA + DATA_LEN as u64;
    let align = |address: u64| address & !(size.next_power_of_two() - 1);
    match random.below(100) {
        0..=59 => align(DATA + random.below(DATA_LEN as u64 - size)),
        60..=79 => DATA + random.below(DATA_LEN as u64 - size),
        80..=90 => DATA + 0x1000 - random.below(size),
        91 | 92 => end + random.below(0x1000),
        93 | 94 => end - random.below(size),
        95 => end + 0x1000 - random.below(size),
        96 => DATA - random.below(size + 1),
        97 => end + 0x1000 + random.below(64),
        98 => random.pick(&[0x8000_0000_0000_0000, 0x0000_8000_0000_0000, 0x00ff_0000_1234_5678]),
        _ => align(end - size),
    }
}

struct Builder {
    random: Random,
    shape: Shape,
    initial: Initial,
    /// General registers whose values matter already.
    pinned: u16,
    /// Offset and size of each branch displacement, and where the branch ends.
    branches: Vec<(usize, usize, usize)>,
    instructions: Vec<(u64, usize, Rflags)>,
    /// Undefined in front of the instruction being appended, and behind it.
    before: Rflags,
    undefined: Rflags,
    case_features: Vec<CpuidFeature>,
    /// An instruction has run that changes x87's pointers.
    pointers_set: bool,
}

/// An instruction is at most this long.
const LONGEST: usize = 15;

impl Builder {
    fn end(&self) -> usize {
        self.initial.code_len as usize
    }

    fn append(&mut self, encoding: &Encoding) {
        let start = self.end();
        if start + LONGEST + 1 > MAX_CODE {
            return;
        }
        let ip = self.initial.rip + start as u64;
        let Some((mut bytes, instruction)) = self.encode(encoding, ip) else { return };
        let len = instruction.len();
        if instruction.is_invalid() {
            if vendor::is_amd() && vendor::may_define(ip, &bytes[..len]) {
                return;
            }
            self.before = self.undefined;
            self.push(&bytes[..len], ip);
            return;
        }
        if exclude::is_excluded(&instruction)
            || vendor::is_amd() && vendor::differs(&instruction, &bytes[..len])
        {
            return;
        }
        if let Some(image) = images::kind(&instruction) {
            let first = self.instructions.is_empty();
            if !first && (image != Image::Pointers || self.pointers_set) {
                return;
            }
        }
        let branch = (0..instruction.op_count()).any(|i| {
            matches!(
                instruction.op_kind(i),
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
            )
        });
        if branch && self.shape == Shape::Sequence {
            return;
        }
        let undefined = undefined::flags(&instruction);
        if !self.flags_allow(&instruction, undefined) {
            return;
        }
        let offsets = {
            let mut decoder = Decoder::with_ip(64, &bytes[..len], ip, DecoderOptions::NONE);
            let again = decoder.decode();
            decoder.get_constant_offsets(&again)
        };
        if branch {
            if offsets.immediate_size() == 0 {
                return;
            }
            self.branches.push((start + offsets.immediate_offset(), offsets.immediate_size(), start + len));
        }
        let displacement = (offsets.displacement_offset(), offsets.displacement_size());
        self.fit(&instruction, &mut bytes, displacement);
        self.push(&bytes[..len], ip);
        self.pointers_set |= images::sets_pointers(&instruction);
        if self.shape != Shape::Mutated {
            self.case_features.extend_from_slice(encoding.info.code().cpuid_features());
        }
    }

    fn push(&mut self, bytes: &[u8], ip: u64) {
        let start = self.end();
        self.initial.code[start..start + bytes.len()].copy_from_slice(bytes);
        self.initial.code_len += bytes.len() as u64;
        self.instructions.push((ip, bytes.len(), self.before));
    }

    /// Whether the instruction's use of flags is determined; if so, accounts for those it leaves undefined.
    fn flags_allow(&mut self, instruction: &Instruction, undefined: Rflags) -> bool {
        let read = from_iced(instruction.rflags_read());
        if read.intersects(self.undefined) {
            return false;
        }
        // Which instructions run isn't known behind a branch: keep to those that define all.
        if self.shape == Shape::Branches && !undefined.is_empty() {
            return false;
        }
        self.before = self.undefined;
        let defined =
            from_iced(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set());
        let conditional = writes_flags_conditionally(instruction);
        if !conditional {
            self.undefined -= defined;
        }
        self.undefined |= undefined;
        true
    }
}

/// Whether the instruction may leave all flags as they were: counts of zero.
pub(crate) fn writes_flags_conditionally(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Sal
            | Mnemonic::Shld
            | Mnemonic::Shrd
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
    ) || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
}

/// Flags as iced numbers them.
pub(crate) fn from_iced(bits: u32) -> Rflags {
    [
        (RflagsBits::OF, Rflags::OF),
        (RflagsBits::SF, Rflags::SF),
        (RflagsBits::ZF, Rflags::ZF),
        (RflagsBits::AF, Rflags::AF),
        (RflagsBits::CF, Rflags::CF),
        (RflagsBits::PF, Rflags::PF),
        (RflagsBits::DF, Rflags::DF),
        (RflagsBits::AC, Rflags::AC),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(Rflags::empty(), |all, (_, flag)| all | flag)
}
