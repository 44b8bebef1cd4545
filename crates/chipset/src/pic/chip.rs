//! One 8259A: registers, priorities, commands. Knows nothing of its sibling but that the first chip's input 2 is a cascade.

/// The first chip's input that the second chip drives.
pub(super) const CASCADE: u8 = 2;

/// Which initialization command word comes next.
#[derive(Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
enum Expect {
    #[default]
    Commands,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are the chip's mode bits")]
pub(super) struct Chip {
    /// Drives the processor and has the cascade.
    first: bool,
    /// Levels of the inputs.
    inputs: u8,
    /// Edges that wait to be acknowledged.
    edges: u8,
    mask: u8,
    in_service: u8,
    elcr: u8,
    base: u8,
    /// The input of lowest priority: the next one has the highest.
    lowest: u8,
    expect: Expect,
    wants_icw4: bool,
    single: bool,
    /// ICW1's LTIM: all inputs are level-triggered.
    all_level: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_nested: bool,
    poll: bool,
    read_in_service: bool,
}

impl Chip {
    pub(super) fn new(first: bool) -> Self {
        Self { first, mask: 0xff, lowest: 7, ..Self::default() }
    }

    pub(super) fn reset(&mut self) {
        *self = Self { inputs: self.inputs, ..Self::new(self.first) };
    }

    fn level_triggered(&self) -> u8 {
        let cascade = if self.first { 1 << CASCADE } else { 0 };
        let chosen = if self.all_level { 0xff } else { self.elcr };
        chosen | cascade
    }

    fn requests(&self) -> u8 {
        let level = self.level_triggered();
        self.edges & !level | self.inputs & level
    }

    pub(super) fn set_pin(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if high && self.inputs & bit == 0 && self.level_triggered() & bit == 0 {
            self.edges |= bit;
        }
        if high {
            self.inputs |= bit;
        } else {
            self.inputs &= !bit;
        }
    }

    /// The level without an edge.
    pub(super) fn place_pin(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        self.inputs = if high { self.inputs | bit } else { self.inputs & !bit };
    }

    /// How urgent the most urgent of `inputs` is: 0 is most, 8 is none.
    fn urgency(&self, inputs: u8) -> u32 {
        inputs.rotate_right(u32::from(self.lowest) + 1).trailing_zeros()
    }

    fn input_at(&self, urgency: u32) -> u8 {
        (self.lowest + 1 + urgency as u8) & 7
    }

    /// The input that the chip asks service for.
    pub(super) fn request(&self) -> Option<u8> {
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.special_nested && self.first {
            // The second chip decides whether a request of its own outranks the one in service.
            blocking &= !(1 << CASCADE);
        }
        let urgency = self.urgency(self.requests() & !self.mask);
        (urgency < self.urgency(blocking)).then(|| self.input_at(urgency))
    }

    /// Whether an edge of `input` waits to be acknowledged and isn't masked.
    pub(super) fn has_edge(&self, input: u8) -> bool {
        self.requests() & self.edges & !self.mask & 1 << (input & 7) != 0
    }

    /// Acknowledges `input`.
    pub(super) fn take(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        self.edges &= !bit;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input & 7;
        }
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.base | input
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    /// System timer, keyboard, cascade, RTC and FPU inputs are always edge-triggered.
    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value & if self.first { 0xf8 } else { 0xde };
    }

    pub(super) fn read(&mut self, offset: u64) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.request() {
                None => 0,
                Some(input) => {
                    self.take(input);
                    0x80 | input
                }
            };
        }
        match offset {
            1 => self.mask,
            _ if self.read_in_service => self.in_service,
            _ => self.requests(),
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) {
        match (offset, self.expect) {
            (0, _) if value & 0x10 != 0 => self.icw1(value),
            (0, _) if value & 0x08 != 0 => self.ocw3(value),
            (0, _) => self.ocw2(value),
            (_, Expect::Commands) => self.mask = value,
            (_, Expect::Icw2) => {
                self.base = value & 0xf8;
                self.expect = if self.single { self.after_icw3() } else { Expect::Icw3 };
            }
            (_, Expect::Icw3) => self.expect = self.after_icw3(),
            (_, Expect::Icw4) => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_nested = value & 0x10 != 0;
                self.expect = Expect::Commands;
            }
        }
    }

    fn after_icw3(&self) -> Expect {
        if self.wants_icw4 { Expect::Icw4 } else { Expect::Commands }
    }

    fn icw1(&mut self, value: u8) {
        *self = Self {
            first: self.first,
            inputs: self.inputs,
            elcr: self.elcr,
            base: self.base,
            lowest: 7,
            expect: Expect::Icw2,
            wants_icw4: value & 0x01 != 0,
            single: value & 0x02 != 0,
            all_level: value & 0x08 != 0,
            ..Self::default()
        };
    }

    fn ocw2(&mut self, value: u8) {
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        let level = value & 7;
        match (eoi, specific) {
            (false, false) => self.rotate_on_auto_eoi = rotate,
            (false, true) if rotate => self.lowest = level,
            (false, true) => {}
            (true, true) => {
                self.in_service &= !(1 << level);
                if rotate {
                    self.lowest = level;
                }
            }
            (true, false) => {
                // In special mask mode what is masked doesn't count as being in service.
                let counted = if self.special_mask { !self.mask } else { 0xff };
                let urgency = self.urgency(self.in_service & counted);
                if urgency < 8 {
                    let input = self.input_at(urgency);
                    self.in_service &= !(1 << input);
                    if rotate {
                        self.lowest = input;
                    }
                }
            }
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
    }

    /// Whether a restored state can be.
    pub(super) fn is_possible(&self) -> bool {
        self.lowest < 8 && self.base & 7 == 0
    }
}
