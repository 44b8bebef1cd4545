//! Random numbers with a bias to the edges, the same for the same seed on every host.

/// A generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

/// Integers at which carries, signs and widths change.
const EDGES: [u64; 24] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0x81,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0xffff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ffff_ff80,
    0x5555_5555_5555_5555,
];

/// Zeros, ones, infinities, quiet and signalling NaNs, denormals and extremes, single precision.
const SINGLES: [u32; 20] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc1_2345,
    0x7f80_0001,
    0xffa5_5a5a,
    1,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x4f00_0000,
    0xcf00_0000,
    0x5f00_0000,
    0x3f00_0000,
    0x4049_0fdb,
    0x3fc0_0000,
];

/// The same in double precision.
const DOUBLES: [u64; 18] = [
    0,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_dead_beef,
    0x7ff0_0000_0000_0001,
    0x7ff4_0000_0000_0000,
    1,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x41e0_0000_0000_0000,
    0xc3e0_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x4009_21fb_5444_2d18,
];

/// And in half precision.
const HALVES: [u16; 12] =
    [0, 0x8000, 0x3c00, 0xbc00, 0x7c00, 0xfc00, 0x7e00, 0x7c01, 1, 0x03ff, 0x7bff, 0x4248];

impl Random {
    /// A generator for this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// True in `percent` of 100 calls.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, which isn't empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A byte, often an edge.
    pub fn byte(&mut self) -> u8 {
        match self.below(3) {
            0 => self.pick(&[0, 1, 0xff, 0x80, 0x7f, 2, 8, 31, 32, 63, 64]),
            _ => self.bits() as u8,
        }
    }

    /// An integer register's value.
    pub fn integer(&mut self) -> u64 {
        match self.below(10) {
            0..=3 => self.bits(),
            4..=6 => self.pick(&EDGES),
            7 => self.below(256),
            8 => self.bits() as i32 as u64,
            _ => self.bits() >> self.below(64),
        }
    }

    /// Eight bytes of a vector register or of memory.
    pub fn lane(&mut self) -> u64 {
        match self.below(12) {
            0..=3 => self.bits(),
            4 => self.pick(&EDGES),
            5 | 6 => u64::from(self.pick(&SINGLES)) | u64::from(self.pick(&SINGLES)) << 32,
            7 | 8 => self.pick(&DOUBLES),
            9 => (0..4).fold(0, |all, i| all | u64::from(self.pick(&HALVES)) << (16 * i)),
            // Plain numbers, so that arithmetic isn't always an edge.
            10 => {
                let (a, b) = (self.below(2000) as f32 / 16.0 - 60.0, self.below(99) as f32);
                u64::from(a.to_bits()) | u64::from(b.to_bits()) << 32
            }
            _ => (self.below(1 << 20) as f64 / 128.0 - 4000.0).to_bits(),
        }
    }
}
