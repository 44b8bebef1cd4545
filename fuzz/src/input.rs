//! The bytes that a run is made of, taken from front to back. After the end there are zeros.

/// A reader of hostile input.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing but zeros will come.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Up to `most` bytes as they are; fewer near the end.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(most.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn little_endian<const N: usize>(&mut self) -> [u8; N] {
        let mut value = [0; N];
        let taken = self.bytes(N);
        value[..taken.len()].copy_from_slice(taken);
        value
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.little_endian())
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.little_endian())
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.little_endian())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.little_endian())
    }

    /// A number below `count`, which must not be 0, made of one byte (two where that isn't enough).
    pub fn below(&mut self, count: usize) -> usize {
        let number = if count <= 256 { usize::from(self.u8()) } else { usize::from(self.u16()) };
        number % count
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Yes or no.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number where the interesting ones are at the edges: a byte selects one of them, or a width to read.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => u64::from(u32::MAX),
            4 => 1 << 31,
            5 => 1 << 63,
            6 => 0x7fff_ffff,
            // A power of two, or just below one.
            kind @ 7..=39 => {
                let power = 1_u64 << (self.u8() & 63);
                if kind & 1 == 0 { power } else { power - 1 }
            }
            kind if kind < 120 => self.u8().into(),
            kind if kind < 170 => self.u16().into(),
            kind if kind < 220 => self.u32().into(),
            _ => self.u64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_end_there_are_zeros() {
        let mut input = Input::new(&[1, 2, 3]);
        assert_eq!((input.u16(), input.is_empty()), (0x201, false));
        assert_eq!((input.u32(), input.is_empty()), (3, true));
        assert_eq!((input.u64(), input.below(7), input.number(), input.bytes(5)), (0, 0, 0, &[][..]));
    }
}
