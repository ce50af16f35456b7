//! Random bytes from a seed: the same at both ends of a tunnel, quick to make, impossible to
//! compress.

/// xorshift64* (Vigna 2016, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// Two different seeds give unrelated sequences.
    pub(crate) fn new(seed: u64) -> Self {
        // Small seeds differ in few bits; a multiplication spreads them. Zero would stay zero.
        let state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Self { state: state | 1 };
        random.next();
        random
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from `range`.
    pub(crate) fn between(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        let (low, high) = range.into_inner();
        let span = (high - low + 1) as u64;
        low + usize::try_from(self.next() % span).expect("below a usize")
    }

    /// Overwrites `bytes`. Filling in pieces of a multiple of 8 bytes gives the same as filling at
    /// once.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }

    /// `length` random bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}
