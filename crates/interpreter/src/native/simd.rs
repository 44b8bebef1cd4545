//! MXCSR around a stub: unmasked SIMD exceptions without letting the host raise them (SDM 1 11.5.2, 11.5.3).
//!
//! Called by `Inner::run` for instructions that may look at MXCSR. Everything is masked while the stub runs; what it raised
//! is judged afterwards. Unmasked underflow happens on tininess alone, masked only with inexactness. Flush-to-zero mode shows
//! tininess of single and double results, so it is on while the guest has underflow unmasked; half-precision results
//! ignore that mode, there the results themselves are looked at.
//!
//! Left out: where unmasked overflow or underflow is raised, PE says whether the result is inexact even with a wider
//! exponent. What the masked run says is taken for that, which is wrong where only the exponent doesn't fit.

use super::{Inner, NativeContext, Stub, raw};
use iced_x86::{Instruction, OpKind, Register, RoundingControl};
use x86::state::VectorState;

const PRE_COMPUTATION: u32 = 0x07;
const OVERFLOW: u32 = 0x08;
const UNDERFLOW: u32 = 0x10;
const PRECISION: u32 = 0x20;
const ALL_MASKED: u32 = 0x1f80;
const FLUSH: u32 = 1 << 15;

/// How an instruction deals with exceptions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behaviour {
    /// Raises what is unmasked.
    Raises,
    /// As that, and results are of half precision.
    RaisesHalf,
    /// Raises, but no underflow; flush-to-zero mode counts while the guest has underflow masked.
    RaisesNoUnderflow,
    /// Scales by powers of two: overflow and underflow that are raised are exact.
    RaisesScaled,
    /// As that, and results are of half precision.
    RaisesHalfScaled,
    /// Notes flags, raises nothing: complex multiplications on all hosts that have them.
    Notes,
    /// Neither: approximations, and whatever suppresses exceptions by its encoding.
    Silent,
}

impl Behaviour {
    pub(super) fn of(instruction: &Instruction) -> Self {
        if instruction.suppress_all_exceptions() || instruction.rounding_control() != RoundingControl::None {
            return Self::Silent;
        }
        let name = format!("{:?}", instruction.mnemonic()).to_ascii_lowercase();
        let name = name.strip_prefix('v').unwrap_or(&name);
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let half = name.ends_with("ph") || name.ends_with("sh") || name.ends_with("phx");
        if half && begins(&["fmulc", "fcmulc", "fmaddc", "fcmaddc"]) {
            return Self::Notes;
        }
        if begins(&["rcp", "rsqrt"]) {
            return Self::Silent;
        }
        if begins(&["reduce"]) {
            return Self::RaisesNoUnderflow;
        }
        if begins(&["scalef"]) {
            return if half { Self::RaisesHalfScaled } else { Self::RaisesScaled };
        }
        if half && begins(&["add", "sub", "mul", "div", "fm", "fnm", "cvt"]) {
            return Self::RaisesHalf;
        }
        Self::Raises
    }
}

impl Inner {
    /// Runs a stub. False: an unmasked exception, and nothing is stored but its flags.
    pub(super) fn run_with_mxcsr<C: NativeContext>(
        &mut self,
        stub: &Stub,
        instruction: &Instruction,
        context: &mut C,
    ) -> Result<bool, raw::Stale> {
        let behaviour = stub.traits.behaviour;
        let (gpr, vector) = context.registers();
        let guest = vector.mxcsr;
        let unmasked = match behaviour {
            Behaviour::Notes | Behaviour::Silent => 0,
            _ => !(guest >> 7) & 0x3f,
        };
        let tininess = unmasked & UNDERFLOW != 0;
        let quiet = (guest & !0x3f) | ALL_MASKED;
        self.frame.mxcsr_in = match behaviour {
            // With underflow unmasked there is no flushing.
            Behaviour::Silent | Behaviour::RaisesNoUnderflow => {
                quiet & !(ALL_MASKED & UNDERFLOW << 7) | guest & UNDERFLOW << 7
            }
            _ if tininess => quiet | FLUSH,
            _ => quiet,
        };
        let scaled = matches!(behaviour, Behaviour::RaisesScaled | Behaviour::RaisesHalfScaled);
        if matches!(behaviour, Behaviour::RaisesHalf | Behaviour::RaisesHalfScaled) && tininess {
            let (mut gpr, mut results) = (*gpr, vector.clone());
            let memory = self.frame.bounce;
            self.frame.mxcsr_trap = 0;
            self.arena.run(stub.entry, &mut self.frame, &mut gpr, &mut results)?;
            let raised = self.frame.mxcsr_out & 0x3f;
            if raised & unmasked & PRE_COMPUTATION == 0
                && has_tiny_half(instruction, &results, vector, &self.frame.bounce)
            {
                let raised = if scaled { without_exact(raised, unmasked & OVERFLOW) } else { raised };
                vector.mxcsr |= raised | UNDERFLOW;
                return Ok(false);
            }
            self.frame.bounce = memory;
        }
        self.frame.mxcsr_trap = unmasked;
        let completed = self.arena.run(stub.entry, &mut self.frame, gpr, vector)?;
        let mut raised = self.frame.mxcsr_out & 0x3f;
        if !completed {
            if raised & unmasked & PRE_COMPUTATION != 0 {
                raised &= PRE_COMPUTATION;
            } else if scaled {
                // Half-precision results aren't flushed: underflow that shows in a masked run is inexact.
                let exact = if behaviour == Behaviour::RaisesScaled { unmasked } else { unmasked & OVERFLOW };
                raised = without_exact(raised, exact);
            } else if tininess && behaviour != Behaviour::RaisesNoUnderflow {
                // Flushing reports a loss of precision that the real result may not have.
                self.frame.mxcsr_in = quiet & !FLUSH;
                let (mut gpr, mut vector) = (*gpr, vector.clone());
                self.arena.run(stub.entry, &mut self.frame, &mut gpr, &mut vector)?;
                raised = (raised & !PRECISION) | (self.frame.mxcsr_out & PRECISION);
            }
        }
        vector.mxcsr |= raised;
        Ok(completed)
    }
}

/// The flags of a scaling that raises: overflow and underflow lose precision but for those in `exact`.
fn without_exact(raised: u32, exact: u32) -> u32 {
    let inexact = raised & (OVERFLOW | UNDERFLOW) & !exact != 0;
    (raised & !PRECISION) | if inexact { PRECISION } else { 0 }
}

/// Whether a half-precision result that the mask lets through is denormal.
fn has_tiny_half(
    instruction: &Instruction,
    results: &VectorState,
    before: &VectorState,
    memory: &[u8; 64],
) -> bool {
    let scalar = format!("{:?}", instruction.mnemonic()).ends_with("sh");
    let (bytes, len): (&[u8], usize) = if instruction.op0_kind() == OpKind::Memory {
        (memory, instruction.memory_size().size())
    } else {
        let register = instruction.op0_register();
        (&results.zmm[register.number()], register.size())
    };
    let mask = match instruction.op_mask() {
        Register::None => u64::MAX,
        mask => before.k[mask.number()],
    };
    let lanes = if scalar { 1 } else { len / 2 };
    bytes.chunks_exact(2).take(lanes).enumerate().any(|(i, lane)| {
        let number = u16::from_le_bytes([lane[0], lane[1]]);
        mask >> i & 1 != 0 && number & 0x7c00 == 0 && number & 0x3ff != 0
    })
}
