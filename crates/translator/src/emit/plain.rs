//! Instructions that are run as themselves: registers renamed, memory operand replaced, encoded by iced.
//!
//! The integer ones are on a list. Vector and x87 ones are those that the reference runs natively too, with one explicit
//! memory operand or none.

use super::kinds::{
    implicit_rcx, is_hint, is_immediate, is_integer, is_optional, is_shift, is_vector,
    keeps_more_than_registers, level,
};
use super::{Emitted, Emitter, Encoded, Flow, NotEmitted, VectorLevel, host, is_high_byte, number, slots};
use crate::asm::*;
use crate::context::gpr;
use iced_x86::{Code, EncodingKind, Instruction, MemorySize, Mnemonic, OpAccess, OpKind, Register};
use interpreter::native::Native;

/// A hole in a plan: which scratch register stands for which guest register.
#[derive(Clone, Copy)]
struct Stand {
    guest: usize,
    scratch: Reg,
    reads: bool,
    writes: bool,
}

/// How the operands of one instruction are renamed.
#[derive(Default)]
struct Plan {
    stands: Vec<Stand>,
    /// RCX of the host has to hold the guest's: CL, ECX implicitly, or a form without REX.
    rcx: Option<(bool, bool)>,
    /// The memory operand's bytes and whether it is written.
    memory: Option<(u32, bool)>,
    no_rex: bool,
}

/// What may stand for guest registers without a host register.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    /// For any use, in this order.
    first: Option<Reg>,
    second: Option<Reg>,
    /// The operand's address is in this register alone.
    merged: Option<Reg>,
}

impl Plan {
    /// Chooses what stands for which register. Registers that are only written may stand where the operand's address is, or where
    /// one is that is only read: all is read before anything is written.
    fn stand_in(&mut self, scratch: Scratch) -> Option<()> {
        let busy = self.rcx.is_some();
        let mut free: Vec<Reg> = [scratch.first, scratch.second]
            .into_iter()
            .flatten()
            .filter(|&reg| !(busy && reg == RCX))
            .collect();
        free.reverse();
        for stand in self.stands.iter_mut().filter(|stand| stand.reads) {
            stand.scratch = free.pop()?;
        }
        let taken: Vec<Reg> = self
            .stands
            .iter()
            .filter(|stand| stand.reads && stand.writes)
            .map(|stand| stand.scratch)
            .collect();
        let mut left: Vec<Reg> =
            [R11, RCX].into_iter().filter(|&reg| !(taken.contains(&reg) || busy && reg == RCX)).collect();
        for stand in self.stands.iter_mut().filter(|stand| !stand.reads) {
            stand.scratch = left.pop()?;
        }
        Some(())
    }
}

/// Gives an instruction another memory operand.
fn set_operand(own: &mut Instruction, operand: Mem) {
    let Mem::At { base, index, disp } = operand else { unreachable!("operands have registers") };
    let register = |reg: Reg| Register::RAX + u32::from(reg.0);
    own.set_memory_base(base.map_or(Register::None, register));
    own.set_memory_index(index.map_or(Register::None, |(index, _)| register(index)));
    own.set_memory_index_scale(index.map_or(1, |(_, scale)| u32::from(scale)));
    own.set_memory_displacement64(i64::from(disp) as u64);
    let short = i8::try_from(disp).is_ok() && own.encoding() != EncodingKind::EVEX;
    own.set_memory_displ_size(match disp {
        0 => 0,
        _ if short => 1,
        _ => 8,
    });
}

impl Emitter<'_> {
    pub(super) fn plain(&mut self, instruction: &Instruction) -> Emitted {
        if is_hint(instruction) {
            return Ok(Flow::Next);
        }
        match instruction.mnemonic() {
            Mnemonic::Lea => return self.lea(instruction),
            Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => {
                let bytes = self.encode(instruction)?;
                self.asm.raw(&bytes);
                return Ok(Flow::Next);
            }
            Mnemonic::Pause => return Err(NotEmitted),
            _ => {}
        }
        if is_integer(instruction) {
            if is_optional(instruction.mnemonic()) && !Native::supports(instruction) {
                return Err(NotEmitted);
            }
            if instruction.encoding() == EncodingKind::VEX && self.request.mode.vector < VectorLevel::Sse {
                // The reference knows what it needs.
                return Err(NotEmitted);
            }
            // A bit string in memory reaches beyond its operand.
            if matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
                && instruction.op0_kind() == OpKind::Memory
                && instruction.op1_kind() == OpKind::Register
            {
                return self.bit_string(instruction);
            }
            // Segment, control and debug registers.
            for n in 0..instruction.op_count() {
                let other =
                    instruction.op_kind(n) == OpKind::Register && !instruction.op_register(n).is_gpr();
                if other {
                    return self.system(instruction);
                }
            }
        } else if is_vector(instruction) {
            // 32-bit code has eight registers to clear, the host clears sixteen.
            let clears = matches!(instruction.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper);
            if clears && !self.request.mode.long {
                return Err(NotEmitted);
            }
            if self.request.mode.vector < level(instruction) || keeps_more_than_registers(instruction) {
                return Err(NotEmitted);
            }
        } else {
            return self.system(instruction);
        }
        if self.is_same(instruction) {
            let from = usize::from(self.guest);
            self.asm.raw(&self.request.bytes[from..from + instruction.len()]);
            return Ok(Flow::Next);
        }
        self.renamed(instruction)
    }

    pub(super) fn encode(&mut self, instruction: &Instruction) -> Result<Encoded, NotEmitted> {
        let encoder = &mut self.desk.encoder;
        let outcome = encoder.encode(instruction, self.asm.here());
        let mut buffer = encoder.take_buffer();
        let bytes = Encoded::from_slice(&buffer);
        buffer.clear();
        encoder.set_buffer(buffer);
        if outcome.is_ok() { Ok(bytes) } else { Err(NotEmitted) }
    }

    /// Runs the instruction with other registers.
    ///
    /// ```text
    /// add rax,rbx
    ///   add rax,rbx
    /// add r11,r13
    ///   mov rcx,gs:[guest.r13]
    ///   add gs:[guest.r11],rcx
    /// add r11d,r13d
    ///   mov rcx,gs:[guest.r11]
    ///   add ecx,gs:[guest.r13]
    ///   mov gs:[guest.r11],rcx
    /// shl eax,cl
    ///   mov rcx,r9
    ///   shl eax,cl
    /// lock cmpxchg [rdi],r11
    ///   ...                                      look-up for writing
    ///   mov r11,gs:[guest.r11]
    ///   lock cmpxchg [rdi+rcx],r11
    /// ```
    fn renamed(&mut self, instruction: &Instruction) -> Emitted {
        let mut plan = self.plan(instruction)?;
        let mut own = *instruction;
        long_form(&mut own);
        own.set_segment_prefix(Register::None);
        if plan.memory.is_none() && is_integer(instruction) && !plan.stands.is_empty() {
            let mut written = [false; 16];
            for stand in &plan.stands {
                written[stand.guest] = stand.writes;
            }
            if let Some((other, guest)) = slots::in_place(&own, &written) {
                own = other;
                plan.stands.retain(|stand| stand.guest != guest);
            }
        }
        let mut window = plan.memory.and_then(|(bytes, write)| self.choose_window(instruction, bytes, write));
        let scratch = match plan.memory {
            None => Scratch { first: Some(RCX), second: Some(R11), merged: None },
            Some(_) if window.is_some() => Scratch { first: Some(RCX), second: None, merged: None },
            Some(_) => self.scratch_beside_memory(instruction, &plan),
        };
        let mut merged = scratch.merged;
        if plan.stand_in(scratch).is_none() {
            window.take().ok_or(NotEmitted)?;
            let scratch = self.scratch_beside_memory(instruction, &plan);
            merged = scratch.merged;
            plan.stand_in(scratch).ok_or(NotEmitted)?;
        }
        if plan.no_rex && plan.memory.is_some() {
            merged = Some(RCX);
        }
        for n in 0..own.op_count() {
            if own.op_kind(n) != OpKind::Register {
                continue;
            }
            let register = own.op_register(n);
            if !register.is_gpr() {
                continue;
            }
            let guest = number(register);
            let renamed = if guest == 1 && plan.rcx.is_some() {
                RCX
            } else if let Some(stand) = plan.stands.iter().find(|stand| stand.guest == guest) {
                stand.scratch
            } else {
                host(guest).ok_or(NotEmitted)?
            };
            own.set_op_register(n, named(register, renamed)?);
        }
        // What the operand will be is known only when its address is computed. Try the encoding first.
        if plan.memory.is_some() {
            let base = merged.or(window.map(|window| window.reg())).unwrap_or(R11);
            let index = if window.is_some() { R11 } else { RCX };
            set_operand(
                &mut own,
                Mem::At { base: Some(base), index: merged.is_none().then_some((index, 1)), disp: 0 },
            );
        }
        let trial = self.encode(&own)?;
        let takes_r11 = plan.stands.iter().any(|stand| stand.scratch == R11);
        if window.is_none() && (takes_r11 || merged == Some(R11)) {
            self.window = None;
        }
        if let Some((bytes, write)) = plan.memory {
            let mut operand = match window {
                Some(window) => self.enter_window(window),
                None => {
                    let address = self.address(instruction, 0);
                    self.look_up(address, bytes, write)
                }
            };
            if let Some(reg) = merged {
                self.asm.lea(reg, operand);
                operand = Mem::near(reg, 0);
            }
            set_operand(&mut own, operand);
        }
        for stand in plan.stands.iter().filter(|stand| stand.reads) {
            self.asm.load_gs(stand.scratch, gpr(stand.guest));
        }
        let guest_rcx = host(1).expect("RCX has a host register");
        if let Some((true, _)) = plan.rcx {
            self.asm.mov(RCX, guest_rcx);
        }
        let bytes = if plan.memory.is_some() { self.encode(&own)? } else { trial };
        self.asm.raw(&bytes);
        if let Some((_, true)) = plan.rcx {
            self.asm.mov(guest_rcx, RCX);
        }
        for stand in plan.stands.iter().filter(|stand| stand.writes) {
            self.asm.store_gs(gpr(stand.guest), stand.scratch);
        }
        if takes_r11 {
            self.window = None;
        }
        Ok(Flow::Next)
    }

    /// Which registers are free beside an operand that is looked up by itself.
    fn scratch_beside_memory(&self, instruction: &Instruction, plan: &Plan) -> Scratch {
        let reading = plan.stands.iter().filter(|stand| stand.reads).count();
        let address_in_r11 = self.address_needs_r11(instruction);
        if plan.rcx.is_some() || reading > usize::from(!address_in_r11) {
            // The address is merged into R11.
            Scratch { first: Some(RCX), second: None, merged: Some(R11) }
        } else if reading == 1 {
            Scratch { first: Some(R11), second: None, merged: None }
        } else {
            Scratch { first: None, second: None, merged: None }
        }
    }

    /// Decides how operands are renamed.
    fn plan(&mut self, instruction: &Instruction) -> Result<Plan, NotEmitted> {
        let mut plan = Plan::default();
        let mut explicit_memory = false;
        for n in 0..instruction.op_count() {
            match instruction.op_kind(n) {
                OpKind::Memory => explicit_memory = true,
                OpKind::Register => {
                    if is_high_byte(instruction.op_register(n)) {
                        plan.no_rex = true;
                    }
                }
                kind if is_immediate(kind) => {}
                _ => return Err(NotEmitted),
            }
        }
        let info = self.desk.info.info(instruction);
        let memories = info.used_memory();
        if memories.len() > usize::from(explicit_memory) {
            return Err(NotEmitted);
        }
        if let Some(memory) = memories.first() {
            let write =
                !matches!(memory.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            let bytes = match instruction.memory_size() {
                MemorySize::Unknown => 0,
                size => size.size() as u32,
            };
            if bytes == 0 || bytes > 64 || memory.access() == OpAccess::NoMemAccess {
                return Err(NotEmitted);
            }
            plan.memory = Some((bytes, write));
        } else if explicit_memory {
            return Err(NotEmitted);
        }
        // Registers: each of the sixteen as a whole.
        let mut used = [(false, false); 16];
        for register in info.used_registers() {
            let name = register.register();
            if !name.is_gpr() {
                continue;
            }
            let (reads, writes) = match register.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                // Whatever isn't written for certain and as a whole keeps its old value.
                OpAccess::Write if name.size() >= 4 => (false, true),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                    (true, true)
                }
                _ => continue,
            };
            let entry = &mut used[number(name)];
            *entry = (entry.0 | reads, entry.1 | writes);
        }
        let mut explicit = [false; 16];
        for n in 0..instruction.op_count() {
            if instruction.op_kind(n) == OpKind::Register && instruction.op_register(n).is_gpr() {
                explicit[number(instruction.op_register(n))] = true;
            }
        }
        // A register that is only part of the address isn't the instruction's own.
        let in_address = |guest: usize| {
            explicit_memory
                && [instruction.memory_base(), instruction.memory_index()]
                    .iter()
                    .any(|register| register.is_gpr() && number(*register) == guest)
        };
        let implicit_rcx = implicit_rcx(instruction);
        let shift_by_cl = (0..instruction.op_count()).any(|n| {
            instruction.op_kind(n) == OpKind::Register && instruction.op_register(n) == Register::CL
        }) && is_shift(instruction.mnemonic());
        let (rcx_reads, rcx_writes) = used[1];
        if implicit_rcx || shift_by_cl || plan.no_rex && explicit[1] {
            plan.rcx = Some((rcx_reads || !rcx_writes, rcx_writes));
        }
        if plan.no_rex {
            // Neither R8-R15 nor what stands for RSP can be named beside AH.
            if explicit[4] || plan.rcx.is_some() && plan.memory.is_some() {
                return Err(NotEmitted);
            }
        }
        for guest in (0..16).filter(|&guest| host(guest).is_none()) {
            if !explicit[guest] {
                // The instruction's own implicit registers are all among the first eight.
                if used[guest] != (false, false) && !in_address(guest) {
                    return Err(NotEmitted);
                }
                continue;
            }
            let (reads, writes) = used[guest];
            // Some that are said to write leave the old value in part or in some cases.
            let moves = matches!(
                instruction.mnemonic(),
                Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd
            ) || instruction.encoding() == EncodingKind::VEX && writes && !reads;
            let reads = reads || !moves;
            plan.stands.push(Stand { guest, scratch: RSP, reads, writes });
        }
        if plan.memory.is_some() {
            self.can_address(instruction)?;
        }
        Ok(plan)
    }

    /// ```text
    /// lea rax,[rbx+rcx*4+8]
    ///   lea rax,[rbx+r9*4+8]
    /// lea r11,[rip+0x10]
    ///   mov ecx,0x1017
    ///   mov gs:[guest.r11],rcx
    /// ```
    fn lea(&mut self, instruction: &Instruction) -> Emitted {
        let long = self.request.mode.long;
        let destination = instruction.op0_register();
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if destination.size() == 2 || base.size() == 2 || index.size() == 2 {
            return Err(NotEmitted);
        }
        if base == Register::None && index == Register::None && instruction.memory_displ_size() == 2 {
            return Err(NotEmitted);
        }
        let wide = destination.size() == 8;
        let guest = number(destination);
        if matches!(base, Register::RIP | Register::EIP) || base == Register::None && index == Register::None
        {
            let narrow = !long
                || base == Register::EIP
                || base == Register::None && instruction.memory_displ_size() == 4
                || !wide;
            let value = instruction.memory_displacement64() & if narrow { 0xffff_ffff } else { u64::MAX };
            if base != Register::RIP || narrow {
                self.asm.pin();
            }
            match host(guest) {
                Some(own) => self.asm.mov_guest(own, value, Depends::Address),
                None => {
                    self.asm.mov_guest(RCX, value, Depends::Address);
                    self.asm.store_gs(gpr(guest), RCX);
                }
            }
            return Ok(Flow::Next);
        }
        let narrow = !long || !wide || base.size() == 4 || base == Register::None && index.size() == 4;
        let mem = self.register_operand(instruction, 0, RCX);
        let to = host(guest).unwrap_or(RCX);
        if narrow {
            self.asm.lea32(to, mem);
        } else {
            self.asm.lea(to, mem);
        }
        if host(guest).is_none() {
            self.asm.store_gs(gpr(guest), RCX);
        }
        Ok(Flow::Next)
    }
}

/// Replaces encodings that 64-bit code doesn't have.
fn long_form(instruction: &mut Instruction) {
    let code = match instruction.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        code => code,
    };
    instruction.set_code(code);
}

/// `register`'s part of the host register `own`.
fn named(register: Register, own: Reg) -> Result<Register, NotEmitted> {
    let n = u32::from(own.0);
    Ok(match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            if own.0 > 3 {
                return Err(NotEmitted);
            }
            Register::AH + n
        }
        register => match register.size() {
            // AH to BH come between.
            1 => Register::AL + if n >= 4 { n + 4 } else { n },
            2 => Register::AX + n,
            4 => Register::EAX + n,
            _ => Register::RAX + n,
        },
    })
}
