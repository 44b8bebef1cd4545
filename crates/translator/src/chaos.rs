//! What may happen at any time, for no reason: a TLB may lose what it holds whenever it likes (SDM 3A 4.10.2.2), and an engine that
//! relies on anything being there is wrong. For tests and `--feature chaos=on`.
//!
//! Called on the vCPU's thread; no locks. Equal runs do equal things.

/// Strikes at random, once in [`PERIOD`] times.
#[derive(Debug)]
pub(crate) struct Chaos {
    state: u64,
}

const PERIOD: u64 = 32;

impl Default for Chaos {
    fn default() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Chaos {
    pub(crate) fn strikes(&mut self) -> bool {
        // Marsaglia's xorshift.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 20 & (PERIOD - 1) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_strikes_now_and_then() {
        let mut chaos = Chaos::default();
        let strikes = (0..PERIOD * 1000).filter(|_| chaos.strikes()).count();
        assert!((900..1100).contains(&strikes), "{strikes}");
    }
}
